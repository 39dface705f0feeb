"""The one small problem behind the projections: a quadratic over non-negative numbers.

Letters: t objectives.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from numpy import ndarray

# A slope this small, relative to the linear term and the solution, is rounding: a gradient that
# depends on those already in the support has no other.
_SLOPE = 1e-13


def nonnegative_minimum(
    matrix: Float[ndarray, "t t"], linear: Float[ndarray, " t"], *, guess: Sequence[int] = ()
) -> Float[ndarray, " t"]:
    """Minimise a convex quadratic over x >= 0.

        1/2 x^T M x - h^T x

    Args:
        matrix: M, symmetric and positive semi-definite with a diagonal near 1; the minimum must
            exist.
        linear: h.
        guess: Indices that may be the positive ones; a right guess saves the search.

    References:
        Lawson, Hanson, "Solving Least Squares Problems", 1974, chapter 23 (NNLS), on the normal
        equations.
    """
    t = len(linear)
    if guess:
        x = _solution(matrix, linear, list(guess))
        if x is not None and x.min() >= 0 and not _risers(matrix, linear, x, list(guess)):
            return x
    x = np.zeros(t)
    support: list[int] = []
    barred: list[int] = []  # those whose entry did not descend, until something else does
    for _ in range(3 * t + 10):  # a few entries and exits for each index; 3 t is customary
        risers = _risers(matrix, linear, x, support + barred)
        if not risers:
            break
        trial = [*support, risers[0]]
        entered = _descend(matrix, linear, x, trial)
        if entered is None:
            barred.append(risers[0])
        else:
            x = entered
            support = [i for i in trial if x[i] > 0]
            barred = []
    return x


def _risers(
    matrix: Float[ndarray, "t t"],
    linear: Float[ndarray, " t"],
    x: Float[ndarray, " t"],
    excluded: list[int],
) -> list[int]:
    """List the indices along which the value still falls, steepest first."""
    slope = linear - matrix @ x
    slope[excluded] = 0
    least = _SLOPE * (np.abs(linear).max() + np.abs(x).max())
    return [int(i) for i in np.argsort(-slope) if slope[i] > least]


def _descend(
    matrix: Float[ndarray, "t t"],
    linear: Float[ndarray, " t"],
    x: Float[ndarray, " t"],
    support: list[int],
) -> Float[ndarray, " t"] | None:
    """Go towards the minimum over the support, dropping each index that meets zero."""
    support = list(support)
    newest = support[-1]
    x = x.copy()
    while True:
        goal = _solution(matrix, linear, support)
        if goal is None or (newest in support and goal[newest] <= 0):
            return None
        falling = [i for i in support if goal[i] <= 0]
        if not falling:
            return goal
        share, first = min((x[i] / (x[i] - goal[i]), i) for i in falling)
        x += share * (goal - x)
        x[first] = 0
        support.remove(first)


def _solution(
    matrix: Float[ndarray, "t t"], linear: Float[ndarray, " t"], support: list[int]
) -> Float[ndarray, " t"] | None:
    x = np.zeros(len(linear))
    try:
        x[support] = np.linalg.solve(matrix[np.ix_(support, support)], linear[support])
    except np.linalg.LinAlgError:
        return None
    return x
