"""Classes that come later: a place for each, from a few examples, in closed form.

No prototype moves and no score of an old class is computed again, so nothing that was decided
between old classes can change. Letters: n examples of the new class, k prototypes there are, r
reserved ones, d dimensions.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from spherescan.calibration.checks import checked, unit_rows
from spherescan.ops import linear

# The length of a mean, or of what is left of a direction, that is rounding of float32 embeddings.
_VANISHED = 1e-6


@dataclass(frozen=True, slots=True, eq=False)
class NewClass:
    """Hold where a new class goes.

    Args:
        prototype: A unit vector, of the type of the prototypes there are.
        reserved: The row of the reserved prototypes it takes; None where there are none.
        max_cosine: The largest cosine with a prototype there is: the nearer to 1, the harder the
            two classes are to tell apart.
    """

    prototype: Float[Tensor, " d"]
    reserved: int | None
    max_cosine: float


def class_direction(
    embeddings: Float[Tensor, "n d"],
    *,
    prior: Float[Tensor, " d"] | None = None,
    strength: float = 0.0,
) -> Float[Tensor, " d"]:
    """Estimate the direction of a class from a few of its embeddings.

        (sum_i z_i + strength prior) / |sum_i z_i + strength prior|

    Without a prior it is the mean direction, the maximum-likelihood centre of a von Mises-Fisher
    distribution; with it, the most probable centre when the centre itself has such a distribution
    around the prior, `strength` times as concentrated as the embeddings are around the centre.

    Args:
        embeddings: Unit vectors.
        prior: A unit vector to shrink towards.
        strength: How many examples the prior counts for; infinity is the prior itself.

    Returns:
        A unit vector in float64.

    Raises:
        ValueError: No embeddings, or one that is not a unit vector; a negative strength, or one
            without a prior; vectors that cancel.

    References:
        Mardia and El-Atoum, "Bayesian inference for the von Mises-Fisher distribution", 1976;
        Qi, Brown, Lowe, "Low-Shot Learning with Imprinted Weights", 2018, arXiv:1712.07136 (the
        mean direction as the prototype of a new class).

    Example:
        >>> examples = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> [round(x, 6) for x in class_direction(examples).tolist()]
        [0.707107, 0.707107]
    """
    if not strength >= 0:
        raise ValueError(f"the strength is {strength}; it must not be negative")
    total = unit_rows(embeddings, of="embeddings").sum(0)
    if strength > 0:
        if prior is None:
            raise ValueError(f"the strength is {strength} but there is no prior to shrink towards")
        towards = unit_rows(prior[None], of="prior directions")[0]
        total = towards if math.isinf(strength) else total + strength * towards
    length = torch.linalg.vector_norm(total)
    if length <= _VANISHED:
        raise ValueError("the embeddings cancel, so the class has no direction; give others")
    direction: Tensor = total / length
    return direction


def separated_direction(
    direction: Float[Tensor, " d"], prototypes: Float[Tensor, "k d"]
) -> Float[Tensor, " d"]:
    """Return what of a direction no prototype explains: the nearest with cosine 0 to all of them.

        (I - P^+ P) m / |(I - P^+ P) m|

    Args:
        direction: A unit vector, see `class_direction`.
        prototypes: Unit rows.

    Returns:
        A unit vector in float64.

    Raises:
        ValueError: A vector that is not a unit vector, or a direction that the prototypes span:
            always so once there are d independent ones. More room takes a larger d, or reserved
            prototypes, before training.
    """
    m = unit_rows(direction[None], of="directions")[0]
    _, size, axes = torch.linalg.svd(unit_rows(prototypes, of="prototypes"), full_matrices=False)
    # In float32 the rows of a simplex, which add up to zero, have rank k - 1 only up to rounding.
    rounding = max(prototypes.shape) * torch.finfo(prototypes.dtype).eps
    axes = axes[size > rounding * size[0]]
    left = m - axes.T @ (axes @ m)
    length = torch.linalg.vector_norm(left)
    if length <= _VANISHED:
        raise ValueError(
            f"the {len(prototypes)} prototypes span the direction, so nothing of it is left; "
            "use class_direction as it is, or train with more dimensions"
        )
    # Once more: where little was left, the first rounding is a large part of it.
    left = left / length
    left = left - axes.T @ (axes @ left)
    separated: Tensor = left / torch.linalg.vector_norm(left)
    return separated


def place_class(
    embeddings: Float[Tensor, "n d"],
    prototypes: Float[Tensor, "k d"],
    *,
    reserved: Float[Tensor, "r d"] | None = None,
    strength: float = 0.0,
) -> NewClass:
    """Choose the prototype of a new class.

    Its prior is the free reserved prototype nearest to the mean direction of the examples or, where
    none is free, the direction separated from all prototypes; `class_direction` weighs it against
    the examples.

    A network that never saw the class does not send it to a place of our choice. With strength 0,
    the default, the class is where its examples are; infinity puts it exactly on the reserved
    prototype, which pays only if the network learns from the new class afterwards.

    Args:
        embeddings: Unit vectors of examples of the new class.
        prototypes: Unit rows of the classes there are.
        reserved: Unit rows that no class has taken yet; none when missing.
        strength: How many examples the prior counts for.

    Raises:
        ValueError: No embeddings or prototypes, or one that is not a unit vector; examples that
            cancel; a negative strength, or a positive one where the prototypes leave no direction.

    References:
        Yang et al., "Neural Collapse Inspired Feature-Classifier Alignment for Few-Shot Class
        Incremental Learning", 2023, arXiv:2302.03004 (prototypes kept for classes to come).

    Notes:
        There a projection is then trained to send the new class to its prototype.

    Example:
        >>> place_class(torch.tensor([[0.6, 0.8]]), torch.eye(2)[:1], strength=math.inf)
        NewClass(prototype=tensor([0., 1.]), reserved=None, max_cosine=0.0)
    """
    mean = class_direction(embeddings)
    old = unit_rows(prototypes, of="prototypes")
    slot, prior = None, None
    if reserved is not None and len(reserved):
        slot = int((unit_rows(reserved, of="reserved prototypes") @ mean).argmax())
        prior = reserved[slot]
    elif strength > 0:
        prior = separated_direction(mean, prototypes)
    placed = class_direction(embeddings, prior=prior, strength=strength)
    return NewClass(placed.to(prototypes.dtype), slot, float((old @ placed).max()))


def append_cosines(
    cosines: Float[Tensor, "n k"], z: Float[Tensor, "n d"], prototype: Float[Tensor, " d"]
) -> Float[Tensor, "n k+1"]:
    """Add the scores of a new class to those of the old ones.

    The old ones are copied, bit for bit. One product with all k + 1 prototypes would not do: how a
    library rounds a matrix product depends on its shape.

    Args:
        cosines: With the prototypes of the old classes.
        z: Unit embeddings.
        prototype: Of the new class, a unit vector.

    Raises:
        ValueError: No samples, or a value that is not finite; embeddings or a prototype of another
            length than 1.
    """
    for rows, of in ((z, "embeddings"), (prototype[None], "prototypes")):
        unit_rows(rows, of=of)
    checked(cosines, (None, None), of="cosines")
    return torch.cat((cosines, linear(z, prototype[None])), dim=1)
