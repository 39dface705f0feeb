"""Classification losses against unit prototypes.

Letters: d dimensions, k classes.
"""

from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from spherescan.losses.classes import cross_entropy
from spherescan.ops import linear
from spherescan.ops.argument import expect_shape
from spherescan.ops.targets import check_target


def prototype_cosine_loss(
    z: Float[Tensor, "*batch d"], prototypes: Float[Tensor, "k d"], target: Int[Tensor, "*batch"]
) -> Float[Tensor, "*batch"]:
    """Pull each feature vector towards the prototype of its class.

        (1 - cos(z, p_target))^2

    Only attraction: with learnable prototypes everything can collapse onto one point.

    Args:
        z: Features of any length.
        prototypes: One row per class, of any length.
        target: Class of each feature vector.

    Raises:
        TypeError: Targets that are no integers.
        ValueError: A target outside the classes, or not one per sample; misshapen prototypes.

    References:
        Mettes, van der Pol, Snoek, "Hyperspherical Prototype Networks", 2019, arXiv:1901.10514.
        There the losses of a batch are added.
    """
    _check(z, prototypes, target)
    own = functional.normalize(functional.embedding(target.long(), prototypes), dim=-1)
    return (1 - (functional.normalize(z, dim=-1) * own).sum(-1)).square()


def prototype_softmax_loss(
    z: Float[Tensor, "*batch d"],
    prototypes: Float[Tensor, "k d"],
    target: Int[Tensor, "*batch"],
    *,
    scale: float,
    margin: float = 0.0,
) -> Float[Tensor, "*batch"]:
    """Take the cross-entropy of a softmax over scaled cosines, with an additive margin.

        -log softmax_j(scale (cos(z, p_j) - margin [j = target]))_target

    Args:
        z: Features of any length.
        prototypes: One row per class, of any length.
        target: Class of each feature vector.
        scale: Inverse temperature; cosines lie in -1..1, so it bounds the confidence.
        margin: By how much the own cosine must exceed the others.

    Raises:
        TypeError: Targets that are no integers.
        ValueError: A target outside the classes, or not one per sample; misshapen prototypes; a
            scale that is not positive.

    References:
        Wang, Xiang, Cheng, Yuille, "NormFace", 2017, arXiv:1704.06369 (scale); Wang et al.,
        "CosFace", 2018, arXiv:1801.09414 (margin).
    """
    if not scale > 0:
        raise ValueError(f"scale is {scale}; it must be positive")
    _check(z, prototypes, target)
    cosines = linear(functional.normalize(z, dim=-1), functional.normalize(prototypes, dim=1))
    if margin:
        own = functional.one_hot(target.long(), prototypes.shape[0])
        cosines = cosines - margin * own.to(cosines.dtype)
    return cross_entropy(scale * cosines, target)


def hpn_rust_trainer_loss(
    z: Float[Tensor, "*batch d"], prototypes: Float[Tensor, "k d"], target: Int[Tensor, "*batch"]
) -> Float[Tensor, "*batch"]:
    """Return the loss of rust_trainer 0.1.4: only z is normalised, the prototype is not.

        (1 - <z / max(|z|, 1e-8), p_target>)^2

    It rewards any z that has an inner product of 1 with its prototype, so learned prototypes can
    make it zero at chance accuracy; kept to reproduce that program.

    Args:
        z: Features of any length.
        prototypes: One row per class, as they are stored.
        target: Class of each feature vector.

    Raises:
        TypeError: Targets that are no integers.
        ValueError: A target outside the classes, or not one per sample; misshapen prototypes.
    """
    _check(z, prototypes, target)
    own = functional.embedding(target.long(), prototypes)
    return (1 - (functional.normalize(z, dim=-1, eps=1e-8) * own).sum(-1)).square()


def _check(z: Tensor, prototypes: Tensor, target: Tensor) -> None:
    expect_shape("prototypes", prototypes, (prototypes.shape[0], z.shape[-1]))
    check_target(target, prototypes.shape[0], z.shape[:-1], of="prototypes")
