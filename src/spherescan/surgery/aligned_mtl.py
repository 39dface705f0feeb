"""Independent component alignment.

Letters: t objectives, p parameters.
"""

import math

import numpy as np
from jaxtyping import Float
from torch import Tensor

from spherescan.surgery.gram import Rows, aggregate, weights_from

_EPSILON = float(np.finfo(np.float64).eps)


def aligned_mtl(jacobian: Float[Tensor, "t p"]) -> Float[Tensor, " p"]:
    """Average the gradients after making them orthogonal and equally long.

        d = 1/t sum_i (sigma U V^T)_i,  J = U S V^T,  sigma = the smallest singular value

    Args:
        jacobian: One gradient per objective.

    References:
        Senushkin et al., "Independent Component Alignment for Multi-Task Learning", 2023,
        arXiv:2305.19000, Algorithm 1, with equal preferences.

    Notes:
        Singular values count as zero where their square is below t 2^-52 of the greatest square;
        a gradient less than 10^-8 of another one is then not seen. The step across that threshold
        is the method's own: the smallest singular value decides the length. Shortly above it that
        value has few digits.

    Example:
        >>> import torch
        >>> aligned_mtl(torch.tensor([[3.0, 0.0], [0.0, 1.0]])).tolist()
        [0.5, 0.5]
    """
    return aggregate(jacobian, aligned_mtl_weights)


def aligned_mtl_weights(gram: Float[Tensor, "t t"]) -> Float[Tensor, " t"]:
    """Find the weights of `aligned_mtl` from the inner products of the gradients."""
    return weights_from(gram, _weights)


def _weights(rows: Rows) -> list[float]:
    norms = rows.norms
    if len(norms) == 2:
        return _of_two(norms[0], norms[1], rows.cosines[0][1])
    values, vectors = np.linalg.eigh(np.array(rows.cosines) * np.outer(norms, norms))
    kept = values > len(norms) * _EPSILON * values[-1]
    if not kept.any():
        return [1 / len(norms)] * len(norms)
    values, vectors = values[kept], vectors[:, kept]
    balance = (vectors * np.sqrt(values[0] / values)) @ vectors.T
    return list(map(float, balance.mean(axis=1)))


def _of_two(first: float, second: float, cosine: float) -> list[float]:
    """Use the closed form of G^(-1/2), up to the root of the smallest eigenvalue."""
    a, b, product = first * first, second * second, first * second * cosine
    root = first * second * math.sqrt((1 - cosine) * (1 + cosine))  # of the determinant
    greatest = (a + b + math.hypot(a - b, 2 * product)) / 2
    if not greatest:
        return [0.5, 0.5]
    if root * root <= 2 * _EPSILON * greatest * greatest:  # rank 1: the projector onto its range
        return [(a + product) / (2 * (a + b)), (b + product) / (2 * (a + b))]
    scale = 2 * math.sqrt(greatest * (a + b + 2 * root))
    return [(b + root - product) / scale, (a + root - product) / scale]
