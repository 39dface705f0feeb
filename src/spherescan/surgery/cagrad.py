"""Conflict-averse gradient descent.

Letters: t objectives, p parameters.
"""

import math

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from spherescan.surgery.gram import Rows, aggregate, weights_from
from spherescan.surgery.quadratic import nonnegative_minimum

# The square of the mean gradient below which it is the rounding of the Gram matrix.
_VANISHED = 1e-15
# The square of a sum of unit gradients, relative to the sum of their parts: the same rounding.
_CANCELLED = 1e-14


def cagrad(jacobian: Float[Tensor, "t p"], *, c: float = 0.5) -> Float[Tensor, " p"]:
    """Help the objective that is worst off, in a ball around the mean gradient.

        d = argmax min_i <g_i, d>  over  |d - g_0| <= c |g_0|,  g_0 = 1/t sum_i g_i
          = g_0 + c |g_0| g_w / |g_w|,
        g_w = argmin <g_w, g_0> + c |g_0| |g_w|  over convex combinations of the gradients

    Args:
        jacobian: One gradient per objective.
        c: Radius of the ball; at 0 d is the mean gradient, from 1 on the mean objective is not
            certain to fall.

    Raises:
        ValueError: A c that is negative or not finite.

    References:
        Liu et al., "Conflict-Averse Gradient Descent for Multi-task Learning", 2021,
        arXiv:2110.14048, Algorithm 1.

    Notes:
        As in the paper the direction is not rescaled; the authors' code offers d / (1 + c) and
        d / (1 + c^2). A zero gradient counts in the mean but not among the worst off: nothing can
        be done for it, and it would forbid to help others. One gradient alone is returned as it
        is, where the formula would lengthen it by 1 + c. Where g_w vanishes, d is the vector
        nearest to g_0 that conflicts with no gradient.

    Example:
        >>> import torch
        >>> cagrad(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), c=1.0).tolist()
        [1.0, 1.0]
    """
    return aggregate(jacobian, lambda gram: cagrad_weights(gram, c=c))


def cagrad_weights(gram: Float[Tensor, "t t"], *, c: float = 0.5) -> Float[Tensor, " t"]:
    """Find the weights of `cagrad` from the inner products of the gradients.

    Raises:
        ValueError: A c that is negative or not finite.
    """
    if not 0 <= c < math.inf:
        raise ValueError(f"c is {c}; it must be finite and not negative")
    return weights_from(gram, lambda rows: _weights(rows, c))


def _weights(rows: Rows, c: float) -> list[float]:
    norms, table = rows
    t = len(norms)
    if t == 1:
        return [1.0]
    present = [i for i in range(t) if norms[i]]
    # <u_i, g_0> for each unit gradient u_i, and |g_0|^2
    mean = [sum(norms[j] * table[i][j] for j in present) / t for i in present]
    square = sum(norms[i] * value for i, value in zip(present, mean, strict=True)) / t
    weights = [1 / t] * t
    if square <= _VANISHED or not c:
        return weights
    radius = c * math.sqrt(square)
    lengths = [norms[i] for i in present]
    mean = [value / radius for value in mean]
    if len(present) == 1:
        parts = [1.0]
    elif len(present) == 2:
        parts = _of_two(lengths[0], lengths[1], table[present[0]][present[1]], mean)
    else:
        cosines = np.array(table)[np.ix_(present, present)]
        parts = _of_many(np.array(lengths), cosines, np.array(mean))
    for i, part in zip(present, parts, strict=True):
        weights[i] += radius * part / norms[i]
    return weights


def _of_two(first: float, second: float, cosine: float, mean: list[float]) -> list[float]:
    """Help one objective if it stays the worse one, else both until they are equal."""
    if first * (mean[0] + 1) <= second * (mean[1] + cosine):
        return [1.0, 0.0]
    if second * (mean[1] + 1) <= first * (mean[0] + cosine):
        return [0.0, 1.0]
    # The added unit vector e has <g_1 - g_2, e> = gap; z, on the line through both gradients, is
    # orthogonal to g_1 - g_2 and carries the rest.
    apart = first * first + second * second - 2 * first * second * cosine
    gap = second * mean[1] - first * mean[0]
    rest = math.sqrt(max(1 - gap * gap / apart, 0.0))
    sine = math.sqrt((1 - cosine) * (1 + cosine))
    along = rest / (sine * math.sqrt(apart)) if sine else 0.0
    return [
        gap * first / apart + along * (second - first * cosine),
        -gap * second / apart + along * (first - second * cosine),
    ]


def _of_many(
    norms: NDArray[np.float64], cosines: NDArray[np.float64], mean: NDArray[np.float64]
) -> list[float]:
    """Follow the added vector as the worst off is asked for more, until its length is 1.

    For a level tau the shortest e with |g_i| (mean_i + <u_i, e>) >= tau for all i is a
    non-negative combination y of unit gradients. With tau = s - sum_i shares_i y_i it exists for
    every s, is piecewise linear in s, and its length grows with s.
    """
    shares = norms.min() / norms
    matrix = cosines + np.outer(shares, shares)
    low, high = float((mean / shares).min()), math.inf  # y is 0 at the lower end
    peace = nonnegative_minimum(cosines, -mean)  # tau = 0: no gradient is conflicted with
    support = [int(i) for i in np.flatnonzero(peace)] or [int(np.argmin(mean / shares))]
    if peace @ cosines @ peace > 1:
        high = float(shares @ peace)
    parts = peace
    for _ in range(200):  # the pieces are few; a bisection of 60 steps ends what rounding leaves
        s = _unit_length_at(matrix, cosines, shares, mean, support)
        exact = s is not None and low < s < high
        if not exact or s is None:
            s = _between(low, high)
        parts = nonnegative_minimum(matrix, s * shares - mean, guess=support)
        found = [int(i) for i in np.flatnonzero(parts)]
        square = float(parts @ cosines @ parts)
        if high == math.inf and square <= _CANCELLED * float(parts.sum()) ** 2:
            return list(map(float, peace))  # more cannot be had for all
        if abs(square - 1) < 1e-14 or (exact and found == support):
            break
        low, high = (s, high) if square < 1 else (low, s)
        support = found
    return list(map(float, parts))


def _between(low: float, high: float) -> float:
    """Halve an interval whose ends may be of any size and sign; without an end, go up."""
    if high == math.inf:
        return math.sinh(math.asinh(low) + 4)
    return math.sinh((math.asinh(low) + math.asinh(high)) / 2)


def _unit_length_at(
    matrix: NDArray[np.float64],
    cosines: NDArray[np.float64],
    shares: NDArray[np.float64],
    mean: NDArray[np.float64],
    support: list[int],
) -> float | None:
    """Solve for s on one piece, where y = s p - q."""
    inside = np.ix_(support, support)
    try:
        p, q = np.linalg.solve(matrix[inside], np.array([shares[support], mean[support]]).T).T
    except np.linalg.LinAlgError:
        return None
    a, b, d = p @ cosines[inside] @ p, p @ cosines[inside] @ q, q @ cosines[inside] @ q - 1
    if a <= 0 or b * b < a * d:
        return None
    return float((b + math.sqrt(b * b - a * d)) / a)
