"""The native causal convolution: calls of its kernels, and those calls as operators of torch.

x, y and their gradients share one element type; weight, bias and state are float32 beside float32
and bfloat16 values, float64 beside float64 ones.

Letters: b batch, l length, d channels, k kernel width, w = k - 1.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from spherescan.ops import native
from spherescan.ops.operator import operator


class ConvInputs(NamedTuple):
    """What a convolution reads, and how."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    state: Tensor | None
    reset: Tensor | None
    silu: bool
    simd: int


class ConvGradients(NamedTuple):
    """One gradient per tensor of `ConvInputs`; empty where there was none."""

    x: Tensor
    weight: Tensor
    bias: Tensor
    state: Tensor


def conv_forward(inputs: ConvInputs) -> Tensor:
    """Run the convolution and its activation."""
    inputs = _followed(inputs)
    y = torch.empty(inputs.x.shape, dtype=inputs.x.dtype)
    call = _call(inputs)
    call.y = native.rows("y", y, tuple(inputs.x.shape), y.dtype)
    native.call("spherescan_causal_conv1d", call)
    return y


def conv_backward(
    inputs: ConvInputs, y_grad: Tensor, *, x_grad: Tensor | None = None
) -> ConvGradients:
    """Compute all gradients.

    Args:
        inputs: What the forward pass read.
        y_grad: Gradient of the output.
        x_grad: Where to write this gradient; new memory when missing.

    Raises:
        ValueError: An output that shares memory with an input.
    """
    inputs = _followed(inputs)
    shape, values = tuple(inputs.x.shape), inputs.x.dtype
    dtype = native.compute_dtype(values)
    y_grad = native.contiguous_rows(y_grad)
    if x_grad is None:
        x_grad = torch.empty(shape, dtype=values)
    else:
        native.disjoint({"x_grad": x_grad}, {"x": inputs.x, "y_grad": y_grad})
    gradients = ConvGradients(
        x=x_grad,
        weight=torch.empty_like(inputs.weight),
        bias=torch.empty(0, dtype=dtype) if inputs.bias is None else torch.empty_like(inputs.bias),
        state=torch.empty(0, dtype=dtype)
        if inputs.state is None
        else torch.zeros_like(inputs.state),
    )
    call = _call(inputs)
    call.y_grad = native.rows("y_grad", y_grad, shape, values)
    call.x_grad = native.rows("x_grad", x_grad, shape, values)
    call.weight_grad = gradients.weight.data_ptr()
    if inputs.bias is not None:
        call.bias_grad = gradients.bias.data_ptr()
    if inputs.state is not None and gradients.state.numel() > 0:
        call.state_grad = gradients.state.data_ptr()
    native.call("spherescan_causal_conv1d_backward", call)
    return gradients


def _followed(inputs: ConvInputs) -> ConvInputs:
    """Copy what lies in memory in a way that the kernels cannot follow."""
    dense: dict[str, Any] = {
        name: None if tensor is None else tensor.contiguous()
        for name in ("weight", "bias", "state", "reset")
        for tensor in (getattr(inputs, name),)
    }
    return inputs._replace(x=native.contiguous_rows(inputs.x), **dense)


def _call(inputs: ConvInputs) -> native.Conv:
    """Check every tensor and fill in where it lies."""
    b, length, d = inputs.x.shape
    k = inputs.weight.shape[1]
    values, dtype = inputs.x.dtype, native.compute_dtype(inputs.x.dtype)
    native.positive(batch=b, length=length, channels=d, width=k)
    call = native.Conv(
        batch=b,
        length=length,
        d_inner=d,
        width=k,
        type=native.type_code(values),
        threads=native.threads(),
        silu=inputs.silu,
        simd=native.usable_simd(inputs.simd),
        x=native.rows("x", inputs.x, (b, length, d), values),
        weight=native.dense("weight", inputs.weight, (d, k), dtype),
        bias=native.dense("bias", inputs.bias, (d,), dtype),
        state=native.dense("state", inputs.state, (b, d, k - 1), dtype),
    )
    if inputs.reset is not None:
        native.dense("reset", inputs.reset, (b, length), torch.bool)
        call.reset = native.Rows(inputs.reset.data_ptr(), length, 1)
    return call


_READS = "Tensor x, Tensor weight, Tensor? bias, Tensor? state, Tensor? reset, bool silu, int simd"
_N_GRADIENTS = len(ConvGradients._fields)


def _conv(*arguments: Any) -> Tensor:
    return conv_forward(ConvInputs(*arguments))


def _conv_shapes(*arguments: Any) -> Tensor:
    x: Tensor = arguments[0]
    return x.new_empty(x.shape)


def _conv_backward(*arguments: Any) -> tuple[Tensor, ...]:
    return conv_backward(ConvInputs(*arguments[:-1]), arguments[-1])


def _backward_shapes(*arguments: Any) -> tuple[Tensor, ...]:
    x = arguments[0]
    return tuple(
        x.new_empty(0) if tensor is None else tensor.new_empty(tensor.shape)
        for tensor in arguments[:_N_GRADIENTS]
    )


_backward_operator = operator(
    "causal_conv1d_backward",
    f"({_READS}, Tensor y_grad) -> ({', '.join(['Tensor'] * _N_GRADIENTS)})",
    _conv_backward,
    _backward_shapes,
)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001
    ctx.save_for_backward(*inputs[:5])
    ctx.options = inputs[5:]


def _gradients(ctx: Any, y_grad: Tensor) -> Any:
    tensors = ctx.saved_tensors
    found = _backward_operator(*tensors, *ctx.options, y_grad)
    gradients = [None if x is None else g for x, g in zip(tensors, found, strict=False)]
    return *gradients, None, None, None


# The output alone: the final state is a slice of the inputs, which torch can take by itself.
conv_operator = operator(
    "causal_conv1d",
    f"({_READS}) -> Tensor",
    _conv,
    _conv_shapes,
    gradients=_gradients,
    remember=_remember,
)


class FixedConvStep:
    """One position after the other, between tensors that stay where they are.

    All but the state is checked here, once: half of a small step is that. Nobody but the caller may
    write to the tensors, and what is written there counts from the next call on.

    Args:
        x: Input of each position; its last axis is contiguous.
        weight: One kernel per channel, contiguous.
        bias: Added before the activation, contiguous.
        silu: Whether that is a SiLU.
        simd: The SIMD level.

    Attributes:
        y: Output of the last call.
    """

    def __init__(
        self,
        x: Float[Tensor, "b d"],
        weight: Float[Tensor, "d k"],
        bias: Float[Tensor, " d"] | None,
        *,
        silu: bool,
        simd: int,
    ) -> None:
        b, d = x.shape
        k = weight.shape[1]
        values, self._dtype = x.dtype, native.compute_dtype(x.dtype)
        native.positive(batch=b, channels=d, width=k)
        self.y = torch.empty(b, d, dtype=values)
        self._shape = (b, d, k - 1)
        self._held = (x, weight, bias)
        self._call = native.ConvStep(
            batch=b,
            d_inner=d,
            width=k,
            type=native.type_code(values),
            threads=native.threads(),
            silu=silu,
            simd=native.usable_simd(simd),
            x=native.rows("x", x.unsqueeze(1), (b, 1, d), values),
            y=native.rows("y", self.y.unsqueeze(1), (b, 1, d), values),
            weight=native.dense("weight", weight, (d, k), self._dtype),
            bias=native.dense("bias", bias, (d,), self._dtype),
        )

    def __call__(self, state: Float[Tensor, "b d w"]) -> Float[Tensor, "b d w"]:
        """Return the state after the position, in new memory."""
        new_state = torch.empty(self._shape, dtype=self._dtype)
        self._call.state = native.dense("state", state, self._shape, self._dtype)
        self._call.new_state = new_state.data_ptr()
        native.call("spherescan_causal_conv1d_step", self._call)
        return new_state


def conv_step(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    state: Tensor,
    silu: bool,  # noqa: FBT001 - an operator of torch takes its arguments in order
    simd: int,
) -> tuple[Tensor, Tensor]:
    """Advance by one position; records no gradient.

    Returns:
        The output and the new state, in new memory.
    """
    bias = None if bias is None else bias.contiguous()
    x, weight = native.contiguous_rows(x), weight.contiguous()
    step = FixedConvStep(x, weight, bias, silu=silu, simd=simd)
    new_state = step(state.contiguous())
    return step.y, new_state


def _step_shapes(*arguments: Any) -> tuple[Tensor, Tensor]:
    x, state = arguments[0], arguments[3]
    return x.new_empty(x.shape), state.new_empty(state.shape)


step_operator = operator(
    "causal_conv1d_step",
    "(Tensor x, Tensor weight, Tensor? bias, Tensor state, bool silu, int simd) -> "
    "(Tensor, Tensor)",
    conv_step,
    _step_shapes,
)
