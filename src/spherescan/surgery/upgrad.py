"""Unconflicting projection.

Letters: t objectives, p parameters.
"""

import numpy as np
from jaxtyping import Float
from torch import Tensor

from spherescan.surgery.gram import Rows, aggregate, weights_from
from spherescan.surgery.quadratic import nonnegative_minimum


def upgrad(jacobian: Float[Tensor, "t p"]) -> Float[Tensor, " p"]:
    """Project each gradient onto the directions that conflict with no gradient; average.

        d = 1/t sum_i argmin |d_i - g_i|  over  <g_j, d_i> >= 0 for all j

    Args:
        jacobian: One gradient per objective.

    References:
        Quinton, Rey, "Jacobian Descent for Multi-Objective Optimization", 2024, arXiv:2406.16232,
        section 3.

    Notes:
        For two objectives it is half of `pcgrad`.

    Example:
        >>> import torch
        >>> upgrad(torch.tensor([[1.0, 0.0], [-1.0, 1.0]])).tolist()
        [0.25, 0.75]
    """
    return aggregate(jacobian, upgrad_weights)


def upgrad_weights(gram: Float[Tensor, "t t"]) -> Float[Tensor, " t"]:
    """Find the weights of `upgrad` from the inner products of the gradients."""
    return weights_from(gram, _weights)


def _weights(rows: Rows) -> list[float]:
    norms, table = rows
    t = len(norms)
    weights = [1 / t] * t
    cosines = np.array(table) if t > 2 else None
    for i in range(t):
        conflicting = [j for j in range(t) if table[i][j] < 0]
        if not conflicting:
            continue
        # g_i = |g_i| u_i, and the projection of u_i adds a non-negative amount of each u_j.
        if cosines is None:
            added = [max(0.0, -cosine) for cosine in table[i]]
        else:
            added = nonnegative_minimum(cosines, -cosines[i], guess=conflicting).tolist()
        for j in range(t):
            if added[j]:
                weights[j] += norms[i] / norms[j] * added[j] / t
    return weights
