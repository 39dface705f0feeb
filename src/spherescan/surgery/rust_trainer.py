"""The surgery of the Rust trainer that spherescan can reproduce, under its own names.

Its methods change one gradient only, that of the local objective, and differ from the published
ones of a similar name. `pcgrad`, `gradnorm_ff_scale` and `cagradstep` are the functions of that
program, f and b the local gradient and that of backprop; `rust_*` are aggregators made of them.

Letters: t objectives (always two: local, then backprop), p parameters.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from spherescan.ops.argument import expect_numbers
from spherescan.surgery.gram import gram_matrix


def pcgrad(
    grad_ff: Float[Tensor, " n"], grad_bp: Float[Tensor, " m"], epsilon: float
) -> Float[Tensor, " n"]:
    """Take from the local gradient what conflicts with that of backprop.

        f                                             if <f, b> >= 0
        f - <f, b> / (|b|^2 + max(epsilon, 0)) b      otherwise

    Raises:
        TypeError: Gradients that are no floating-point numbers.
        ValueError: Unequal lengths.
    """
    return cagradstep(grad_ff, grad_bp, 1.0, epsilon)


def gradnorm_ff_scale(
    grad_ff: Float[Tensor, " n"], grad_bp: Float[Tensor, " m"], alpha: float, epsilon: float
) -> float:
    """Find a factor for the local gradient that grows with its disagreement.

        exp(alpha |f / (|f| + epsilon) - b / (|b| + epsilon)|)

    Raises:
        TypeError: Gradients that are no floating-point numbers.
        ValueError: Unequal lengths.

    Notes:
        With epsilon 0 a zero gradient stays zero; the formula would divide it by zero.
    """
    return _strength(_products(grad_ff, grad_bp), alpha, epsilon)


def cagradstep(
    grad_ff: Float[Tensor, " n"], grad_bp: Float[Tensor, " m"], lam: float, epsilon: float
) -> Float[Tensor, " n"]:
    """Add gradient of backprop to a local one that conflicts with it.

        f                                                          if <f, b> >= 0
        f - max(lam, 0) <f, b> / (|b|^2 + max(epsilon, 0)) b       otherwise

    Raises:
        TypeError: Gradients that are no floating-point numbers.
        ValueError: Unequal lengths.
    """
    amount = _correction(_products(grad_ff, grad_bp), lam, epsilon)
    return grad_ff + amount * grad_bp if amount else grad_ff


def rust_pcgrad(
    jacobian: Float[Tensor, "t p"], *, epsilon: float = 1e-8, local_scale: float = 1.0
) -> Float[Tensor, " p"]:
    """Add the local gradient, after `pcgrad`, to that of backprop.

        local_scale pcgrad(f, b) + b

    It is `rust_cagradstep`, see there, with lam 1.
    """
    return rust_cagradstep(jacobian, epsilon=epsilon, local_scale=local_scale)


def rust_gradnorm(
    jacobian: Float[Tensor, "t p"],
    *,
    alpha: float = 0.2,
    epsilon: float = 1e-8,
    local_scale: float = 1.0,
) -> Float[Tensor, " p"]:
    """Add the local gradient, times `gradnorm_ff_scale`, to that of backprop.

        local_scale exp(alpha |f / (|f| + epsilon) - b / (|b| + epsilon)|) f + b

    Args:
        jacobian: As of `rust_cagradstep`.
        alpha: How much disagreement strengthens the local gradient.
        epsilon: Added to a length, so it is absolute.
        local_scale: As of `rust_cagradstep`.

    Raises:
        ValueError: Not two gradients.
    """
    factor = _strength(_two(jacobian), alpha, epsilon)
    return jacobian.new_tensor([local_scale * factor, 1.0]) @ jacobian


def rust_cagradstep(
    jacobian: Float[Tensor, "t p"],
    *,
    lam: float = 1.0,
    epsilon: float = 1e-8,
    local_scale: float = 1.0,
) -> Float[Tensor, " p"]:
    """Add the local gradient, after `cagradstep`, to that of backprop.

        local_scale cagradstep(f, b) + b

    Args:
        jacobian: The local gradient and that of backprop, in this order.
        lam: How much of the conflict to remove; 1 is `rust_pcgrad`, more turns it around.
        epsilon: Added to a squared length, so it is absolute: gradients shorter than its root
            are changed less.
        local_scale: Factor of the local gradient after surgery.

    Raises:
        ValueError: Not two gradients.
    """
    amount = _correction(_two(jacobian), lam, epsilon)
    return jacobian.new_tensor([local_scale, 1 + local_scale * amount]) @ jacobian


class _Products(NamedTuple):
    """|f|^2, <f, b> and |b|^2, in float64."""

    ff: float
    fb: float
    bb: float


def _correction(products: _Products, lam: float, epsilon: float) -> float:
    """Return how much of b `cagradstep` adds."""
    if products.fb >= 0:
        return 0.0
    return max(lam, 0.0) * -products.fb / (products.bb + max(epsilon, 0.0))


def _strength(products: _Products, alpha: float, epsilon: float) -> float:
    ff, fb, bb = products
    to_unit = [1 / length if length else 0.0 for length in (ff**0.5 + epsilon, bb**0.5 + epsilon)]
    square = to_unit[0] ** 2 * ff + to_unit[1] ** 2 * bb - 2 * to_unit[0] * to_unit[1] * fb
    return math.exp(alpha * math.sqrt(max(square, 0.0)))  # below 0 it is rounding


def _two(jacobian: Tensor) -> _Products:
    gram = gram_matrix(jacobian).tolist()
    if len(gram) != 2:
        raise ValueError(
            f"{len(gram)} gradients were given; this method takes two, the local one and that of "
            "backprop"
        )
    (ff, fb), (_, bb) = gram
    return _Products(ff, fb, bb)


def _products(grad_ff: Tensor, grad_bp: Tensor) -> _Products:
    expect_numbers("grad_ff", grad_ff)
    expect_numbers("grad_bp", grad_bp)
    if grad_ff.shape != grad_bp.shape:
        raise ValueError(
            f"the local gradient has {len(grad_ff)} elements and that of backprop "
            f"{len(grad_bp)}; both must belong to the same parameters"
        )
    return _two(torch.stack([grad_ff, grad_bp]))
