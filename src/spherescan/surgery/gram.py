"""What every method shares: the small matrix it reads, and the combination it returns.

A method sees the gradients of t objectives through their t x t Gram matrix only, so that the
problem it solves does not grow with the number of parameters.

Letters: t objectives, p parameters.
"""

import math
import sys
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from spherescan.ops.argument import sizes

# Columns converted to float64 at a time: 512 KB a row stay in the cache and bound the memory.
_COLUMNS = 1 << 16
# Below it the square of a gradient is denormal, has lost digits, and is read as zero.
_SMALLEST_SQUARE = sys.float_info.min / sys.float_info.epsilon


class Rows(NamedTuple):
    """The gradients up to a rotation and a common scale.

    Attributes:
        norms: Length of each gradient divided by the greatest one; 0 for a zero gradient.
        cosines: Cosine of each pair; 1 on the diagonal, 0 in the row of a zero gradient.
    """

    norms: list[float]
    cosines: list[list[float]]


def gram_matrix(jacobian: Float[Tensor, "t p"]) -> Float[Tensor, "t t"]:
    """Compute all inner products of the gradients, in float64.

        J J^T

    Args:
        jacobian: One gradient per objective.

    Raises:
        TypeError: Gradients that are no floating-point numbers.
        ValueError: No gradients, or not one row each.
    """
    check_gradients(jacobian)
    first, *others = torch.split(jacobian.detach(), _COLUMNS, dim=1)
    wide = first.double()
    gram = wide @ wide.T
    for part in others:
        wide = part.double()
        gram += wide @ wide.T
    return gram


def check_gradients(jacobian: Float[Tensor, "t p"]) -> None:
    """Refuse what no method can aggregate.

    Raises:
        TypeError: Gradients that are no floating-point numbers.
        ValueError: No gradients, or not one row each.
    """
    t, _ = sizes("jacobian", jacobian, "objectives, parameters")
    _check_count(t)


def aggregate(
    jacobian: Float[Tensor, "t p"], weigh: Callable[[Tensor], Tensor]
) -> Float[Tensor, " p"]:
    """Combine the gradients with weights that depend on their Gram matrix.

    Args:
        jacobian: One gradient per objective.
        weigh: Maps the Gram matrix to one weight per objective.
    """
    return weigh(gram_matrix(jacobian)).to(jacobian.dtype) @ jacobian


def weights_from(
    gram: Float[Tensor, "t t"], method: Callable[[Rows], list[float]]
) -> Float[Tensor, " t"]:
    """Apply a method to a Gram matrix of any scale.

    Weights are NaN where the matrix is not finite, so that such a gradient is seen downstream.

    Args:
        gram: Inner products of the gradients.
        method: Maps the normalised gradients to one weight per objective.

    Raises:
        ValueError: No objectives.
    """
    table: list[list[float]] = gram.tolist()
    _check_count(len(table))
    if not math.isfinite(sum(map(sum, table))):
        return gram.new_full((len(table),), math.nan, dtype=torch.float64)
    return gram.new_tensor(method(_normalised(table)), dtype=torch.float64)


def _check_count(t: int) -> None:
    if not t:
        raise ValueError("no gradients were given; surgery needs at least one objective")


def _normalised(table: list[list[float]]) -> Rows:
    squares = [table[i][i] for i in range(len(table))]
    lengths = [math.sqrt(square) if square > _SMALLEST_SQUARE else 0.0 for square in squares]
    greatest = max(lengths) or 1.0
    cosines = [
        [_cosine(table[min(i, j)][max(i, j)], lengths[i], lengths[j]) for j in range(len(table))]
        for i in range(len(table))
    ]
    for i, length in enumerate(lengths):
        cosines[i][i] = 1.0 if length else 0.0
    return Rows([length / greatest for length in lengths], cosines)


def _cosine(product: float, first: float, second: float) -> float:
    if not (first and second):
        return 0.0
    return min(1.0, max(-1.0, product / first / second))
