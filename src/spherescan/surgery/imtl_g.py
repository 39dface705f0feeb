"""Impartial multi-task learning: equal projections.

Letters: t objectives, p parameters.
"""

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from spherescan.surgery.gram import Rows, aggregate, weights_from

# Unit gradients with a smaller eigenvalue are linearly dependent: it is the square of their
# distance from dependence, here a millionth, and the Gram matrix leaves it 4 digits.
_DEPENDENT = 1e-12
# Eigenvalues below it, relative to the greatest and times t, are the rounding of the Gram matrix.
_ROUNDING = 16 * float(np.finfo(np.float64).eps)


def imtl_g(jacobian: Float[Tensor, "t p"]) -> Float[Tensor, " p"]:
    """Find the direction whose projections onto all gradients have the same length.

        d = sum_i w_i g_i,  w = v / sum_i v_i,  v = pinv(G) sqrt(diag G)

    Args:
        jacobian: One gradient per objective.

    References:
        Liu et al., "Towards Impartial Multi-task Learning", 2021 (IMTL-G); the form with a
        pseudo-inverse, for dependent gradients, is that of Quinton, Rey, 2024, arXiv:2406.16232.

    Notes:
        Weights may be negative, and with three objectives or more their sum may be negative before
        it is made 1: then d points against every gradient. Where the sum vanishes d is zero.

    Example:
        >>> import torch
        >>> imtl_g(torch.tensor([[3.0, 0.0], [0.0, 1.0]])).tolist()
        [0.75, 0.75]
    """
    return aggregate(jacobian, imtl_g_weights)


def imtl_g_weights(gram: Float[Tensor, "t t"]) -> Float[Tensor, " t"]:
    """Find the weights of `imtl_g` from the inner products of the gradients."""
    return weights_from(gram, _weights)


def _weights(rows: Rows) -> list[float]:
    norms, cosines = rows
    if len(norms) == 2 and all(norms) and 1 - abs(cosines[0][1]) > _DEPENDENT:
        return [norms[1] / (norms[0] + norms[1]), norms[0] / (norms[0] + norms[1])]
    values = _equal_projections(np.array(norms), np.array(cosines))
    total = float(values.sum())
    if abs(total) <= 1e-12 * float(np.abs(values).sum()):  # cancelled up to rounding
        return [0.0] * len(norms)
    return list(map(float, values / total))


def _equal_projections(
    norms: NDArray[np.float64], cosines: NDArray[np.float64]
) -> NDArray[np.float64]:
    if norms.all() and np.linalg.eigvalsh(cosines)[0] > _DEPENDENT:
        unit = np.linalg.solve(cosines, np.ones(len(norms)))
        return np.asarray(unit * norms.min() / norms, np.float64)
    gram = cosines * np.outer(norms, norms)
    inverse = np.linalg.pinv(gram, rcond=_ROUNDING * len(norms), hermitian=True)
    return np.asarray(inverse @ norms, np.float64)
