"""Regression onto the sphere: two opposing poles, and the value as the cosine with one of them.

Letters: d dimensions.
"""

import math

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from spherescan.ops.argument import expect_shape


def to_cosine(
    value: Float[Tensor, "*batch"], *, lower: float, upper: float
) -> Float[Tensor, "*batch"]:
    """Map lower..upper linearly onto -1..1, the cosine with the upper pole.

    Raises:
        ValueError: An empty range, or one whose width is not finite.
    """
    _check_range(lower, upper)
    return 2 * (value - lower) / (upper - lower) - 1


def from_cosine(
    cosine: Float[Tensor, "*batch"], *, lower: float, upper: float
) -> Float[Tensor, "*batch"]:
    """Invert `to_cosine`.

    Raises:
        ValueError: An empty range, or one whose width is not finite.

    Example:
        >>> import torch
        >>> from_cosine(to_cosine(torch.tensor([3.0]), lower=2, upper=6), lower=2, upper=6).tolist()
        [3.0]
    """
    _check_range(lower, upper)
    return lower + (cosine + 1) / 2 * (upper - lower)


def sphere_regression_loss(
    z: Float[Tensor, "*batch d"], pole: Float[Tensor, " d"], target: Float[Tensor, "*batch"]
) -> Float[Tensor, "*batch"]:
    """Turn each feature vector until its cosine with the upper pole is the target.

        (target - cos(z, pole))^2

    Args:
        z: Features of any length.
        pole: The upper pole; the lower one is its opposite.
        target: Wanted cosine, see `to_cosine`. A value beyond -1..1 has the pole as its optimum.

    Raises:
        ValueError: A target that is not one per sample, or a pole of another width.

    References:
        Mettes, van der Pol, Snoek, "Hyperspherical Prototype Networks", 2019, arXiv:1901.10514,
        section on regression.
    """
    expect_shape("pole", pole, z.shape[-1:])
    expect_shape("target", target, z.shape[:-1])
    return (target - functional.cosine_similarity(z, pole.expand_as(z), dim=-1)).square()


def _check_range(lower: float, upper: float) -> None:
    if not lower < upper:
        raise ValueError(f"the range {lower}..{upper} is empty; upper must exceed lower")
    if not math.isfinite(upper - lower):
        raise ValueError(f"the range {lower}..{upper} has no finite width; give finite bounds")
