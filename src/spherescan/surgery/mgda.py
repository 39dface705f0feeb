"""Multiple-gradient descent: the shortest convex combination.

Letters: t objectives, p parameters.
"""

import numpy as np
from jaxtyping import Float
from torch import Tensor

from spherescan.surgery.gram import Rows, aggregate, weights_from
from spherescan.surgery.quadratic import nonnegative_minimum


def mgda(jacobian: Float[Tensor, "t p"]) -> Float[Tensor, " p"]:
    """Find the shortest vector among the convex combinations of the gradients.

        d = argmin |d|  over  d = sum_i w_i g_i,  w >= 0,  sum_i w_i = 1

    It improves all objectives at an equal rate, save those that improve faster, and is zero where
    none can improve without harm to another.

    Args:
        jacobian: One gradient per objective.

    References:
        Desideri, "Multiple-gradient descent algorithm", 2012; Sener, Koltun, "Multi-Task Learning
        as Multi-Objective Optimization", 2018, arXiv:1810.04650, equation 3.

    Notes:
        The minimum is exact; the papers approach it by Frank-Wolfe steps.

    Example:
        >>> import torch
        >>> mgda(torch.tensor([[2.0, 0.0], [0.0, 2.0]])).tolist()
        [1.0, 1.0]
    """
    return aggregate(jacobian, mgda_weights)


def mgda_weights(gram: Float[Tensor, "t t"]) -> Float[Tensor, " t"]:
    """Find the weights of `mgda` from the inner products of the gradients."""
    return weights_from(gram, _weights)


def _weights(rows: Rows) -> list[float]:
    norms = rows.norms
    if not all(norms):
        idle = [float(norm == 0) for norm in norms]
        return [share / sum(idle) for share in idle]
    if len(norms) == 2:
        return _of_two(norms[0], norms[1], rows.cosines[0][1])
    # In x = w / shortest, up to a factor: min |sum x_i g_i|^2 + (sum x_i - 1)^2 over x >= 0 has
    # the wanted proportions. In terms of unit gradients it is well scaled whatever the norms are.
    shares = min(norms) / np.array(norms)
    parts = nonnegative_minimum(np.array(rows.cosines) + np.outer(shares, shares), shares)
    weights = parts * shares
    return list(map(float, weights / weights.sum()))


def _of_two(first: float, second: float, cosine: float) -> list[float]:
    if second * cosine >= first:
        return [1.0, 0.0]
    if first * cosine >= second:
        return [0.0, 1.0]
    share = second * (second - first * cosine)
    rest = first * (first - second * cosine)
    return [share / (share + rest), rest / (share + rest)]
