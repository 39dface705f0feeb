"""The native residual sum and RMS norm: calls of the kernels, and those as operators of torch.

x, the sum and the weight share one type; beside float32, the update and the norm may be bfloat16.

Letters: r rows, m width.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from spherescan.ops import native
from spherescan.ops.operator import operator


class NormInputs(NamedTuple):
    """What the norm reads, and how."""

    x: Tensor
    update: Tensor | None
    weight: Tensor
    epsilon: float
    normed_dtype: torch.dtype
    simd: int


class NormGradients(NamedTuple):
    """One gradient per tensor of `NormInputs`; that of the update empty where there was none."""

    x: Tensor
    update: Tensor
    weight: Tensor


class FixedNorm:
    """Norms between tensors that stay where they are, checked once.

    Nobody but the caller may write to the tensors, and what is written there counts from the next
    call on.

    Args:
        inputs: All contiguous.

    Attributes:
        normed: The norm, after a call.
        total: The sum, or `inputs.x` itself without an update.
        scale: The scale of each row.
    """

    def __init__(self, inputs: NormInputs) -> None:
        x = inputs.x
        self.normed: Float[Tensor, "*r m"] = torch.empty(x.shape, dtype=inputs.normed_dtype)
        self.total: Float[Tensor, "*r m"] = x if inputs.update is None else torch.empty_like(x)
        self.scale: Float[Tensor, "*r"] = x.new_empty(x.shape[:-1])
        self._held = inputs
        self._call = _call(inputs)
        self._call.normed, self._call.scale = self.normed.data_ptr(), self.scale.data_ptr()
        if inputs.update is not None:
            self._call.total = self.total.data_ptr()

    def __call__(self) -> None:
        """Read the inputs and fill what is to be found."""
        native.call("spherescan_rms_norm", self._call)


def norm_forward(inputs: NormInputs) -> tuple[Tensor, Tensor, Tensor]:
    """Return the norm, the sum (empty without an update) and the scale of each row."""
    norm = FixedNorm(_followed(inputs))
    norm()
    total = inputs.x.new_empty(0) if inputs.update is None else norm.total
    return norm.normed, total, norm.scale


def norm_backward(
    total: Tensor,
    weight: Tensor,
    scale: Tensor,
    normed_grad: Tensor,
    total_grad: Tensor | None,
    update_dtype: torch.dtype | None,
    simd: int,
) -> NormGradients:
    """Compute all gradients.

    Args:
        total: The sum that was normalised.
        weight: The weight.
        scale: The scale of each row.
        normed_grad: Gradient of the norm.
        total_grad: Gradient of the sum; zero when missing.
        update_dtype: Type of the update; None when there was none.
        simd: The SIMD level.
    """
    shape = tuple(total.shape)
    weight, normed_grad = weight.contiguous(), normed_grad.contiguous()
    if total_grad is not None:
        total_grad = total_grad.contiguous()
    call = _sized(total, weight, normed_grad.dtype, update_dtype or total.dtype, simd)
    x_grad, weight_grad = torch.empty_like(total), torch.empty_like(weight)
    update_grad = torch.empty(shape if update_dtype else (0,), dtype=update_dtype or total.dtype)
    call.total = native.dense("total", total, shape, total.dtype)
    call.scale = native.dense("scale", scale, shape[:-1], total.dtype)
    call.normed_grad = native.dense("normed_grad", normed_grad, shape, normed_grad.dtype)
    call.total_grad = native.dense("total_grad", total_grad, shape, total.dtype)
    call.x_grad, call.weight_grad = x_grad.data_ptr(), weight_grad.data_ptr()
    if update_dtype is not None:
        call.update_grad = update_grad.data_ptr()
    native.call("spherescan_rms_norm_backward", call)
    return NormGradients(x_grad, update_grad, weight_grad)


def _followed(inputs: NormInputs) -> NormInputs:
    update = None if inputs.update is None else inputs.update.contiguous()
    return inputs._replace(
        x=inputs.x.contiguous(), update=update, weight=inputs.weight.contiguous()
    )


def _sized(
    x: Tensor, weight: Tensor, normed: torch.dtype, update: torch.dtype, simd: int
) -> native.Norm:
    """Check the types that go together and fill in the sizes."""
    allowed = {x.dtype} if x.dtype == torch.float64 else {torch.float32, torch.bfloat16}
    if x.dtype == torch.bfloat16 or {normed, update} - allowed:
        raise TypeError(f"no kernel for x {x.dtype}, update {update}, norm {normed}")
    width = x.shape[-1]
    native.positive(values=x.numel())
    native.dense("weight", weight, (width,), x.dtype)
    return native.Norm(
        rows=x.numel() // width,
        width=width,
        type=native.type_code(x.dtype),
        update_type=native.type_code(update),
        normed_type=native.type_code(normed),
        threads=native.threads(),
        simd=native.usable_simd(simd),
        weight=weight.data_ptr(),
    )


def _call(inputs: NormInputs) -> native.Norm:
    x, update = inputs.x, inputs.update
    update_dtype = x.dtype if update is None else update.dtype
    call = _sized(x, inputs.weight, inputs.normed_dtype, update_dtype, inputs.simd)
    call.epsilon = inputs.epsilon
    call.x = native.dense("x", x, tuple(x.shape), x.dtype)
    call.update = native.dense("update", update, tuple(x.shape), update_dtype)
    return call


def _norm(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    return norm_forward(NormInputs(*arguments))


def _norm_shapes(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    inputs = NormInputs(*arguments)
    x = inputs.x
    return (
        x.new_empty(x.shape, dtype=inputs.normed_dtype),
        x.new_empty((0,) if inputs.update is None else x.shape),
        x.new_empty(x.shape[:-1]),
    )


def _norm_backward(*arguments: Any) -> tuple[Tensor, ...]:
    return norm_backward(*arguments)


def _backward_shapes(*arguments: Any) -> tuple[Tensor, ...]:
    total, weight, *_, update_dtype, _ = arguments
    return (
        total.new_empty(total.shape),
        total.new_empty(total.shape if update_dtype else (0,), dtype=update_dtype or total.dtype),
        weight.new_empty(weight.shape),
    )


_backward_operator = operator(
    "add_rms_norm_backward",
    "(Tensor total, Tensor weight, Tensor scale, Tensor normed_grad, Tensor? total_grad, "
    "ScalarType? update_dtype, int simd) -> (Tensor, Tensor, Tensor)",
    _norm_backward,
    _backward_shapes,
)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    read = NormInputs(*inputs)
    total = read.x if read.update is None else output[1]
    ctx.save_for_backward(total, read.weight, output[2])
    ctx.update_dtype = None if read.update is None else read.update.dtype
    ctx.normed_dtype, ctx.simd = read.normed_dtype, read.simd
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, normed_grad: Tensor | None, total_grad: Tensor | None, _: Any) -> Any:
    total, weight, scale = ctx.saved_tensors
    if normed_grad is None:
        normed_grad = torch.zeros_like(total, dtype=ctx.normed_dtype)
    if ctx.update_dtype is None:
        total_grad = None
    x, update, weight_grad = _backward_operator(
        total.contiguous(), weight, scale, normed_grad, total_grad, ctx.update_dtype, ctx.simd
    )
    return x, None if ctx.update_dtype is None else update, weight_grad, None, None, None


norm_operator = operator(
    "add_rms_norm",
    "(Tensor x, Tensor? update, Tensor weight, float epsilon, ScalarType normed_dtype, int simd) "
    "-> (Tensor, Tensor, Tensor)",
    _norm,
    _norm_shapes,
    gradients=_gradients,
    remember=_remember,
)
