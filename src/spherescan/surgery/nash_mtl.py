"""Bargaining between objectives.

Letters: t objectives, p parameters.
"""

import math

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from spherescan.surgery.gram import Rows, aggregate, weights_from

# The bargain fails where a convex combination of unit gradients vanishes; beta grows there without
# end. At this size that combination is shorter than 1e-7, the square root of the Gram's rounding.
_NO_BARGAIN = 1e7


def nash_mtl(jacobian: Float[Tensor, "t p"]) -> Float[Tensor, " p"]:
    """Find the Nash bargaining solution: no objective can gain more, relatively, than others lose.

        d = sqrt(|G|) sum_i alpha_i g_i,  G alpha = 1 / alpha,  alpha > 0,  |G| the Frobenius norm

    Equivalently d maximises the product of the <g_i, d> among vectors of its length. Scaling a
    single gradient changes the length of d only.

    Args:
        jacobian: One gradient per objective.

    References:
        Navon et al., "Multi-Task Learning as a Bargaining Game", 2022, arXiv:2202.01017,
        Claim 3.1.

    Notes:
        The system is solved exactly and without state; the authors approach it by a few convex
        programs that begin at the last solution. The factor sqrt(|G|) is ours: the published d has
        the length sqrt(t) however long the gradients are, and is then shortened to 1 at most; with
        the factor it grows with the gradients, and equal gradients give their sum. A zero gradient
        takes no part. Where no direction improves all the others, d is zero.

    Example:
        >>> import torch
        >>> direction = nash_mtl(torch.tensor([[2.0, 0.0], [0.0, 0.1]]))
        >>> bool((direction[0] - direction[1]).abs() < 1e-6)
        True
    """
    return aggregate(jacobian, nash_mtl_weights)


def nash_mtl_weights(gram: Float[Tensor, "t t"]) -> Float[Tensor, " t"]:
    """Find the weights of `nash_mtl` from the inner products of the gradients."""
    return weights_from(gram, _weights)


def _weights(rows: Rows) -> list[float]:
    norms, table = rows
    t = len(norms)
    present = [i for i in range(t) if norms[i]]
    # With beta_i = alpha_i |g_i| the norms leave the problem: C beta = 1 / beta.
    if len(present) == 1:
        bargain = [1.0]
    elif len(present) == 2:
        near = 1 + table[present[0]][present[1]]
        bargain = [1 / math.sqrt(near)] * 2 if near * _NO_BARGAIN**2 > 1 else [0.0, 0.0]
    else:
        bargain = _bargain(np.array(table)[np.ix_(present, present)])
    pairs = [(i, j) for i in range(t) for j in range(t)]
    frobenius = math.sqrt(sum((norms[i] * norms[j] * table[i][j]) ** 2 for i, j in pairs))
    weights = [0.0] * t
    for i, beta in zip(present, bargain, strict=True):
        weights[i] = math.sqrt(frobenius) * beta / norms[i]
    return weights


def _bargain(cosines: NDArray[np.float64]) -> list[float]:
    """Minimise 1/2 beta^T C beta - sum log beta, self-concordant, by Newton's method."""
    t = len(cosines)
    if not t:
        return []
    beta = np.ones(t)
    # Seven steps are usual. Where beta has no end a step adds one part in 1 + sqrt(t) to it.
    for _ in range(100 + 17 * math.ceil(math.sqrt(t))):
        slope = cosines @ beta - 1 / beta
        step = np.linalg.solve(cosines + np.diag(1 / beta**2), slope)
        decrement = math.sqrt(max(float(slope @ step), 0.0))
        # Full steps converge quadratically from a quarter on (Boyd, Vandenberghe, section 9.6).
        beta = beta - (step if decrement < 0.25 else step / (1 + decrement))
        if beta.max() > _NO_BARGAIN:
            return [0.0] * t
        if decrement < 1e-9:  # that step has left an error of its square
            break
    return list(map(float, beta))
