"""A linear map under the loss of regression onto the sphere, fitted in closed-form steps.

Letters: n samples, f features.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from spherescan.features.ridge import PENALTIES, products, ridge
from spherescan.ops.argument import expect_numbers, expect_shape

_MOST_STEPS = 50
_STEP_SIZES = tuple(0.5**i for i in range(12))  # a tangent can promise more than the cosine gives
_SMALLEST_GAIN = 1e-9  # of the objective, for which no other step is made
_LEAST_SLOPE = 1e-6  # of the cosine; beyond, weights would vanish


@dataclass(frozen=True, slots=True)
class SphereRidge:
    """A fitted map.

    Attributes:
        weight: With `bias` the map, z = x w + bias.
        bias: See there, of shape ().
        penalty: The one that was chosen.
        left_out: Cosine that each sample has without its own influence, to first order.
    """

    weight: Float[Tensor, " f"]
    bias: Float[Tensor, ""]
    penalty: float
    left_out: Float[Tensor, " n"]

    def __call__(self, x: Float[Tensor, "m f"]) -> Float[Tensor, " m"]:
        """Return the cosine with the upper pole."""
        return cosine_of_height(products(x, self.weight[:, None])[:, 0] + self.bias)


def sphere_ridge(
    x: Float[Tensor, "n f"],
    target: Float[Tensor, " n"],
    *,
    penalties: Sequence[float] = PENALTIES,
) -> SphereRidge:
    """Fit points (z, 1), whose cosine with the pole (1, 0) is to be the target.

        w = argmin sum_i (target_i - cos((z_i, 1), (1, 0)))^2 + penalty |w|^2,   z_i = x_i w + b

    The loss is that of `sphere_regression_loss`. It is minimised by Gauss-Newton steps: with the
    cosine replaced by its tangent each is a weighted ridge. The penalty is chosen in the first of
    them by leaving one out, and the last one says what each sample would have got, left out.

    Args:
        x: Features, finite.
        target: Wanted cosines, above -1 and below 1.
        penalties: To choose from, all positive.

    Returns:
        The map, in the type of `target`. `x` itself may be narrower: parts of it are widened.

    Raises:
        TypeError: Targets that are no floating-point numbers.
        ValueError: Fewer than two samples, no positive penalty, or a target outside -1..1.

    References:
        Mettes, van der Pol, Snoek, "Hyperspherical Prototype Networks", 2019, arXiv:1901.10514,
        section on regression (the loss).

    Example:
        >>> import torch
        >>> x = torch.linspace(-1, 1, 9, dtype=torch.float64)[:, None]
        >>> fitted = sphere_ridge(x, 0.8 * x[:, 0], penalties=[1e-9])
        >>> bool((fitted(x) - 0.8 * x[:, 0]).abs().max() < 0.1)
        True
    """
    expect_numbers("target", target)
    expect_shape("target", target, x.shape[:1])
    goal = target.double()
    if not bool((goal.abs() < 1).all()):
        raise ValueError("got a target that is not between -1 and 1; widen the range of values")
    slope = (1 - goal.square()) ** 1.5
    height = goal / (1 - goal.square()).sqrt()
    first = ridge(x, height[:, None], weights=slope.square(), penalties=penalties)
    weight, bias, penalty = first.weight, first.bias, first.penalty

    def lost(weight: Tensor, bias: Tensor) -> float:
        missing = goal - cosine_of_height(_heights(x, weight, bias))
        return float(missing.square().sum() + penalty * weight.square().sum())

    least = lost(weight, bias)
    middle = goal.mean()  # of all constant cosines the best
    flat = torch.zeros_like(weight), (middle / (1 - middle.square()).sqrt())[None]
    if lost(*flat) < least:  # near the poles heights are too far apart for a line
        (weight, bias), least = flat, lost(*flat)
    for _ in range(_MOST_STEPS):
        height = _heights(x, weight, bias)
        slope = ((1 + height.square()) ** -1.5).clamp(min=_LEAST_SLOPE)
        wanted = height + (goal - cosine_of_height(height)) / slope
        step = ridge(x, wanted[:, None], weights=slope.square(), penalties=[penalty])
        before = least
        for size in _STEP_SIZES:
            moved = weight + size * (step.weight - weight), bias + size * (step.bias - bias)
            if (found := lost(*moved)) < least:
                (weight, bias), least = moved, found
                break
        if least > (1 - _SMALLEST_GAIN) * before:
            break
    return SphereRidge(
        weight[:, 0].to(target.dtype),
        bias[0].to(target.dtype),
        penalty,
        cosine_of_height(step.left_out[:, 0]).to(target.dtype),
    )


def _heights(
    x: Float[Tensor, "n f"], weight: Float[Tensor, "f 1"], bias: Float[Tensor, " 1"]
) -> Float[Tensor, " n"]:
    return (products(x, weight) + bias)[:, 0]


def cosine_of_height(z: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """Return the cosine of (z, 1) with (1, 0).

    Example:
        >>> cosine_of_height(torch.tensor([0.0, 0.75, 1e30])).tolist()
        [0.0, 0.6000000238418579, 1.0]
    """
    return z / torch.hypot(z, torch.ones_like(z))


def seen_from_below(z: Float[Tensor, "n e"]) -> Float[Tensor, "n d"]:
    """Lift points to height 1 and return the directions in which they lie from the origin.

    Example:
        >>> seen_from_below(torch.tensor([[0.0, 0.0], [0.0, 0.75]])).tolist()
        [[0.0, 0.0, 1.0], [0.0, 0.6000000238418579, 0.800000011920929]]
    """
    return functional.normalize(functional.pad(z, (0, 1), value=1.0), dim=1)
