"""The residual sum and its RMS norm: the choice of the form.

Letters: m model width.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from spherescan.ops import native, reference
from spherescan.ops.argument import expect, expect_numbers
from spherescan.ops.form import form_for
from spherescan.ops.native_norm import norm_operator


def add_rms_norm(
    x: Float[Tensor, "*batch m"],
    update: Float[Tensor, "*batch m"] | None,
    weight: Float[Tensor, " m"],
    *,
    eps: float = 1e-5,
    dtype: torch.dtype | None = None,
) -> tuple[Float[Tensor, "*batch m"], Float[Tensor, "*batch m"]]:
    """Add an update to the residual stream and normalise the sum by its root mean square.

        total  = x + update
        normed = total / sqrt(mean(total^2) + eps) weight

    Args:
        x: Residual stream.
        update: What is added; nothing when missing.
        weight: Scale of each channel.
        eps: Keeps the norm of a zero finite.
        dtype: Type of the norm; that of `x` when missing. The sum has the type of `x`.

    Returns:
        The norm, and the sum.

    Raises:
        TypeError: Whole or complex numbers, or no tensor.
        ValueError: A shape that does not fit.

    References:
        Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019, arXiv:1910.07467.

    Example:
        >>> import torch
        >>> x, ones = torch.tensor([[3.0, 1.0]]), torch.ones(1, 2)
        >>> normed, total = add_rms_norm(x, ones, torch.ones(2))
        >>> total.tolist(), [round(value, 3) for value in normed[0].tolist()]
        ([[4.0, 2.0]], [1.265, 0.632])
    """
    expect_numbers("x", x)
    expect("weight", weight, x.shape[-1:])
    expect("update", update, x.shape)
    dtype = dtype or x.dtype
    form = form_for(x, update, weight)
    if form == "reference":
        normed, total = reference.add_rms_norm(x, update, weight, eps=eps)
        return normed.to(dtype), total
    if form == "native" and _has_kernel(x, update, weight, dtype):
        normed, total, _ = norm_operator(x, update, weight, eps, dtype, native.simd())
        return normed, x if update is None else total
    total = x if update is None else (x + update).to(x.dtype)
    return functional.rms_norm(total, total.shape[-1:], weight, eps).to(dtype), total


def _has_kernel(x: Tensor, update: Tensor | None, weight: Tensor, dtype: torch.dtype) -> bool:
    beside = {dtype, x.dtype if update is None else update.dtype}
    if x.dtype == torch.float32:
        return weight.dtype == x.dtype and beside <= {torch.float32, torch.bfloat16}
    return x.dtype == torch.float64 and weight.dtype == x.dtype and beside == {x.dtype}
