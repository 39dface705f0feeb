"""Projection of conflicting gradients.

Letters: t objectives, p parameters.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from spherescan.surgery.gram import Rows, aggregate, weights_from
from spherescan.surgery.order import others


def pcgrad(
    jacobian: Float[Tensor, "t p"], *, generator: torch.Generator | None = None
) -> Float[Tensor, " p"]:
    """Take from each gradient what conflicts with another one, then add them.

        g_i' = g_i;  for j != i:  if <g_i', g_j> < 0:  g_i' -= <g_i', g_j> / |g_j|^2 g_j
        d = sum_i g_i'

    Args:
        jacobian: One gradient per objective.
        generator: Draws the order of j anew for each i. Without it the order is i + 1, i + 2, ...
            in a circle. For two objectives there is one order only.

    References:
        Yu et al., "Gradient Surgery for Multi-Task Learning", 2020, arXiv:2001.06782, Algorithm 1.

    Example:
        >>> pcgrad(torch.tensor([[1.0, 0.0], [-1.0, 1.0]])).tolist()
        [0.5, 1.5]
    """
    return aggregate(jacobian, lambda gram: pcgrad_weights(gram, generator=generator))


def pcgrad_weights(
    gram: Float[Tensor, "t t"], *, generator: torch.Generator | None = None
) -> Float[Tensor, " t"]:
    """Find the weights of `pcgrad` from the inner products of the gradients."""
    return weights_from(gram, lambda rows: _weights(rows, generator))


def _weights(rows: Rows, generator: torch.Generator | None) -> list[float]:
    norms, cosines = rows
    t = len(norms)
    weights = [1.0] * t
    for i in range(t):
        parts = [0.0] * t  # of g_i' along each unit gradient
        parts[i] = norms[i]
        for j in others(i, t, generator):
            along = sum(part * cosine for part, cosine in zip(parts, cosines[j], strict=True))
            if along < 0:
                parts[j] -= along
                weights[j] -= along / norms[j]
    return weights
