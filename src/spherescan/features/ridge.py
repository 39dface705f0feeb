"""A linear map onto prototypes in closed form, and what it would have said of each sample unseen.

Letters: n samples, f features, d dimensions of the targets, a penalties.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

# Of features whose columns have a squared norm of about one for each sample.
PENALTIES = tuple(10.0 ** (e / 2) for e in range(-8, 9))


@dataclass(frozen=True, slots=True)
class Ridge:
    """A fitted map.

    Attributes:
        weight: With `bias` the map, z = x W + bias.
        bias: See there.
        penalty: The one that was chosen.
        left_out: What the map fitted without a sample makes of it, for each sample.
    """

    weight: Float[Tensor, "f d"]
    bias: Float[Tensor, " d"]
    penalty: float
    left_out: Float[Tensor, "n d"]

    def __call__(self, x: Float[Tensor, "m f"]) -> Float[Tensor, "m d"]:
        """Return x W + bias."""
        return x @ self.weight + self.bias


def ridge(
    x: Float[Tensor, "n f"],
    target: Float[Tensor, "n d"],
    *,
    weights: Float[Tensor, " n"] | None = None,
    penalties: Sequence[float] = PENALTIES,
) -> Ridge:
    """Fit a linear map with an intercept by ridge regression, the penalty by leaving one out.

        W = argmin sum_i w_i |x_i W + b - target_i|^2 + penalty |W|^2

    The penalty is the one with the smallest squared error over samples of which each was left out;
    of equals the largest. All of it follows from one eigendecomposition of the inner products
    of the samples, so features may be many more than samples.

    Args:
        x: Features, finite.
        target: For a classification the prototype of each sample's class.
        weights: How much the error of each sample counts, above 0 and finite; 1 when missing.
        penalties: To choose from, all positive.

    Returns:
        The map, in the type of `x`.

    Raises:
        ValueError: Fewer than two samples, or no positive penalty or weight.

    References:
        Rifkin, Lippert, "Notes on Regularized Least Squares", 2007, MIT-CSAIL-TR-2007-025: leaving
        out sample i changes its residual from r_i to r_i / (1 - h_ii).

    Example:
        >>> import torch
        >>> x = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
        >>> fitted = ridge(x, 2 * x + 1, penalties=[1e-6])
        >>> fitted.weight, fitted.bias
        (tensor([[2.0000]]), tensor([1.0000]))
    """
    if len(x) < 2:
        raise ValueError(f"got {len(x)} samples; at least two are needed to leave one out")
    if not penalties or min(penalties) <= 0:
        raise ValueError(f"got the penalties {list(penalties)}; give one or more above 0")
    if weights is not None and not bool(((weights > 0) & weights.isfinite()).all()):
        raise ValueError("got a weight that is not above 0 and finite; leave such samples out")
    wide, goal = x.double(), target.double()
    root = torch.ones(len(x), dtype=torch.float64) if weights is None else weights.double().sqrt()
    share = (root.square() / root.square().sum())[:, None]
    x_mean, goal_mean = (share * wide).sum(0), (share * goal).sum(0)
    root = root[:, None]
    centred, wanted = root * (wide - x_mean), root * (goal - goal_mean)
    values, vectors = torch.linalg.eigh(centred @ centred.T)
    values = values.clamp(min=0)
    rotated = vectors.T @ wanted
    # Without what the intercept fits; subtracting its share below would lose all digits.
    constant = share.sqrt()
    squares = (vectors - constant * (constant.T @ vectors)).square()
    best: tuple[float, float, Tensor] | None = None
    for penalty in sorted(penalties, reverse=True):
        kept = penalty / (values + penalty)
        unseen = vectors @ (kept[:, None] * rotated) / (squares @ kept)[:, None]
        error = float(unseen.square().sum())
        if best is None or error < best[0]:
            best = (error, penalty, unseen)
    assert best is not None
    _, penalty, unseen = best
    weight = centred.T @ (vectors @ (rotated / (values + penalty)[:, None]))
    return Ridge(
        weight.to(x.dtype),
        (goal_mean - x_mean @ weight).to(x.dtype),
        penalty,
        (goal - unseen / root).to(x.dtype),
    )
