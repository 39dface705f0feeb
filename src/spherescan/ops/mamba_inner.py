"""What a Mamba layer computes between its two big projections, as one operator where it can be.

    u       = silu(conv1d(x))
    r, B, C = x_proj u
    y       = selective_scan(u, softplus(dt_proj r + dt_bias), A, B, C, D) silu(gate)

One operator writes the gradients of x and of the gate side by side, as the input projection wants
them, and those of r, B and C as the selection projection wants them: nothing is copied together.

Letters: b batch, l length, e projected channels, d inner channels, n state, k kernel width,
w = k - 1, r step-size rank, s = r + 2 n.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from spherescan.ops import native
from spherescan.ops.argument import expect, sizes
from spherescan.ops.causal_conv1d import causal_conv1d, conv_tail
from spherescan.ops.form import form_for, records_gradient
from spherescan.ops.linear import add_input_gradient, input_gradient, product, weight_gradient
from spherescan.ops.native_conv import ConvInputs, conv_backward, conv_forward
from spherescan.ops.native_scan import ScanInputs, scan_backward, scan_forward
from spherescan.ops.operator import operator
from spherescan.ops.selective_scan import selective_scan


def mamba_inner(
    projected: Float[Tensor, "b l e"],
    conv_weight: Float[Tensor, "d k"],
    conv_bias: Float[Tensor, " d"] | None,
    x_proj: Float[Tensor, "s d"],
    dt_proj: Float[Tensor, "d r"],
    dt_bias: Float[Tensor, " d"],
    A: Float[Tensor, "d n"],
    D: Float[Tensor, " d"],
    *,
    conv_state: Float[Tensor, "b d w"] | None = None,
    ssm_state: Float[Tensor, "b d n"] | None = None,
    reset: Bool[Tensor, "b l"] | None = None,
) -> tuple[Float[Tensor, "b l d"], Float[Tensor, "b d w"], Float[Tensor, "b d n"]]:
    """Convolve, select and scan.

    Under autocast to bfloat16 the values are bfloat16; parameters and states stay float32.

    Args:
        projected: x and, when it is twice as wide as D, the gate behind it.
        conv_weight: Kernel of each channel.
        conv_bias: Bias of the convolution; none when missing.
        x_proj: Weight from u to r, B and C, in this order.
        dt_proj: Weight from r to the step sizes.
        dt_bias: Bias of the step sizes.
        A: Decay rates.
        D: Skip weights.
        conv_state: The k - 1 inputs before the first position; zero when missing.
        ssm_state: State before the first position; zero when missing.
        reset: True where a new document starts.

    Returns:
        The gated output, and the two states after the last position.

    Raises:
        TypeError: Whole or complex numbers, or no tensor.
        ValueError: A shape that does not fit.
    """
    _check_shapes(projected, conv_weight, conv_bias, x_proj, dt_proj, dt_bias, A, D)
    (batch, length, _), (d_inner, d_state) = projected.shape, A.shape
    expect("conv_state", conv_state, (batch, d_inner, conv_weight.shape[1] - 1))
    expect("ssm_state", ssm_state, (batch, d_inner, d_state))
    expect("reset", reset, (batch, length), dtype=torch.bool)
    parameters = (conv_weight, conv_bias, x_proj, dt_proj, dt_bias, A, D)
    values = _autocast(projected)
    states = (conv_state, ssm_state)
    double = values.dtype != torch.float64 and any(
        t is not None and t.dtype == torch.float64 for t in states
    )
    native_types = not double and _in_operator_types(values, *parameters)
    if form_for(values, *parameters) != "native" or not native_types:
        return _composed(projected, *parameters, *states, reset)
    keep = records_gradient(values, *parameters, *states)
    compute = native.compute_dtype(values.dtype)
    carried = [None if t is None or t.numel() == 0 else t.to(compute) for t in states]
    level = native.simd_for(d_inner, d_state, values.dtype)
    y, final_state, *_ = _operator(values, *parameters, *carried, reset, level, keep)
    x = values[..., :d_inner]
    if conv_state is None:
        conv_state = x.new_zeros(x.shape[0], d_inner, conv_weight.shape[1] - 1)
    return y, conv_tail(x, conv_state, reset), final_state


def _check_shapes(
    projected: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor | None,
    x_proj: Tensor,
    dt_proj: Tensor,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor,
) -> None:
    _, _, channels = sizes("projected", projected, "batch, length, channels")
    (d_inner,) = sizes("D", D, "channels")
    _, d_state = sizes("A", A, "channels, states")
    _, rank = sizes("dt_proj", dt_proj, "channels, rank")
    _, width = sizes("conv_weight", conv_weight, "channels, taps")
    if channels not in {d_inner, 2 * d_inner}:
        raise ValueError(
            f"projected has {channels} channels; expected {d_inner}, or {2 * d_inner} with a gate"
        )
    expect("conv_weight", conv_weight, (d_inner, width))
    expect("conv_bias", conv_bias, (d_inner,))
    expect("x_proj", x_proj, (rank + 2 * d_state, d_inner))
    expect("dt_proj", dt_proj, (d_inner, rank))
    expect("dt_bias", dt_bias, (d_inner,))
    expect("A", A, (d_inner, d_state))


def _autocast(projected: Tensor) -> Tensor:
    if not torch.is_autocast_enabled("cpu") or projected.dtype == torch.float64:
        return projected
    return projected.to(torch.get_autocast_dtype("cpu"))


def _in_operator_types(values: Tensor, *parameters: Tensor | None) -> bool:
    compute = native.compute_dtype(values.dtype)
    return all(p is None or p.dtype == compute for p in parameters)


def _composed(
    projected: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor | None,
    x_proj: Tensor,
    dt_proj: Tensor,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor,
    conv_state: Tensor | None,
    ssm_state: Tensor | None,
    reset: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    d_inner, d_state = A.shape
    x, gate = projected[..., :d_inner], None
    if projected.shape[-1] > d_inner:
        x, gate = projected.chunk(2, dim=-1)
    u, conv_state = causal_conv1d(x, conv_weight, conv_bias, state=conv_state, reset=reset)
    rank = dt_proj.shape[1]
    r, B, C = torch.split(functional.linear(u, x_proj), [rank, d_state, d_state], dim=-1)
    y, ssm_state = selective_scan(
        u,
        functional.linear(r, dt_proj),
        A,
        B,
        C,
        D,
        delta_bias=dt_bias,
        delta_softplus=True,
        gate=gate,
        state=ssm_state,
        reset=reset,
    )
    return y, conv_state, ssm_state


class _Inputs(NamedTuple):
    projected: Tensor
    conv_weight: Tensor
    conv_bias: Tensor | None
    x_proj: Tensor
    dt_proj: Tensor
    dt_bias: Tensor
    A: Tensor
    D: Tensor
    conv_state: Tensor | None
    ssm_state: Tensor | None
    reset: Tensor | None
    simd: int

    @property
    def x(self) -> Tensor:
        return self.projected[..., : self.D.shape[0]]

    @property
    def gate(self) -> Tensor | None:
        d_inner = self.D.shape[0]
        return self.projected[..., d_inner:] if self.projected.shape[-1] > d_inner else None

    def conv(self) -> ConvInputs:
        return ConvInputs(
            self.x,
            self.conv_weight,
            self.conv_bias,
            self.conv_state,
            self.reset,
            silu=True,
            simd=self.simd,
        )

    def scan(self, u: Tensor, delta: Tensor, selected: Tensor) -> ScanInputs:
        rank, n = self.dt_proj.shape[1], self.A.shape[1]
        B, C = selected[..., rank : rank + n], selected[..., rank + n :]
        return ScanInputs(
            u,
            delta,
            self.A,
            B,
            C,
            self.D,
            self.dt_bias,
            self.gate,
            self.ssm_state,
            self.reset,
            delta_softplus=True,
            simd=self.simd,
        )


_N_INPUTS = len(_Inputs._fields)
_N_GRADIENTS = 10
_READS = (
    "Tensor projected, Tensor conv_weight, Tensor? conv_bias, Tensor x_proj, Tensor dt_proj, "
    "Tensor dt_bias, Tensor A, Tensor D, Tensor? conv_state, Tensor? ssm_state, Tensor? reset, "
    "int simd"
)


def _forward(*arguments: Any) -> tuple[Tensor, ...]:
    """Return y, the final state, and for the backward pass u, delta, r B C and the checkpoints."""
    inputs, keep = _Inputs(*arguments[:_N_INPUTS]), arguments[_N_INPUTS]
    dtype = inputs.projected.dtype
    u = conv_forward(inputs.conv())
    selected = product(u, inputs.x_proj.to(dtype))
    delta = product(selected[..., : inputs.dt_proj.shape[1]], inputs.dt_proj.to(dtype))
    y, state, checkpoints = scan_forward(inputs.scan(u, delta, selected), keep=keep)
    if not keep:
        u, delta, selected = (u.new_empty(0) for _ in range(3))
    return y, state, u, delta, selected, checkpoints


def _backward(*arguments: Any) -> tuple[Tensor, ...]:
    """Return one gradient per tensor of `_Inputs` but the last; empty where it was missing."""
    inputs = _Inputs(*arguments[:_N_INPUTS])
    u, delta, selected, checkpoints, y_grad, state_grad = arguments[_N_INPUTS:]
    d_inner, n = inputs.A.shape
    rank, dtype = inputs.dt_proj.shape[1], inputs.projected.dtype
    projected_grad = torch.empty_like(inputs.projected, memory_format=torch.contiguous_format)
    selected_grad = torch.empty_like(selected)
    scanned = scan_backward(
        inputs.scan(u, delta, selected),
        checkpoints,
        y_grad,
        state_grad,
        gate_grad=None if inputs.gate is None else projected_grad[..., d_inner:],
        B_grad=selected_grad[..., rank : rank + n],
        C_grad=selected_grad[..., rank + n :],
    )
    delta_grad, u_grad = scanned.delta.view(-1, d_inner), scanned.u.view(-1, d_inner)
    rows, rows_grad = selected.view(-1, rank + 2 * n), selected_grad.view(-1, rank + 2 * n)
    rows_grad[:, :rank] = input_gradient(delta_grad, inputs.dt_proj.to(dtype))
    dt_proj_grad = weight_gradient(delta_grad, rows[:, :rank])
    u_grad = add_input_gradient(u_grad, rows_grad, inputs.x_proj.to(dtype))
    x_proj_grad = weight_gradient(rows_grad, u.view(-1, d_inner))
    convolved = conv_backward(
        inputs.conv(), u_grad.view_as(u), x_grad=projected_grad[..., :d_inner]
    )
    return (
        projected_grad,
        convolved.weight,
        convolved.bias,
        x_proj_grad.to(inputs.x_proj.dtype),
        dt_proj_grad.to(inputs.dt_proj.dtype),
        scanned.delta_bias,
        scanned.A,
        scanned.D,
        convolved.state,
        scanned.state,
    )


def _shapes(*arguments: Any) -> tuple[Tensor, ...]:
    inputs, keep = _Inputs(*arguments[:_N_INPUTS]), arguments[_N_INPUTS]
    values, compute = inputs.projected, native.compute_dtype(inputs.projected.dtype)
    (b, length), (d, n) = values.shape[:2], inputs.A.shape
    selected = inputs.x_proj.shape[0]
    double = values.dtype == torch.float64
    kept = native.checkpoint_values(b, length, d, n, double=double, simd=inputs.simd) if keep else 0
    return (
        values.new_empty((b, length, d)),
        values.new_empty((b, d, n), dtype=compute),
        *(values.new_empty((b, length, c) if keep else (0,)) for c in (d, d, selected)),
        values.new_empty((kept,), dtype=compute),
    )


def _backward_shapes(*arguments: Any) -> tuple[Tensor, ...]:
    return tuple(
        arguments[0].new_empty(0) if x is None else x.new_empty(x.shape)
        for x in arguments[:_N_GRADIENTS]
    )


_backward_operator = operator(
    "mamba_inner_backward",
    f"({_READS}, Tensor u, Tensor delta, Tensor selected, Tensor checkpoints, Tensor y_grad, "
    f"Tensor? state_grad) -> ({', '.join(['Tensor'] * _N_GRADIENTS)})",
    _backward,
    _backward_shapes,
)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[: _N_INPUTS - 1], *output[2:])
    ctx.simd = inputs[_N_INPUTS - 1]
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, y_grad: Tensor | None, state_grad: Tensor | None, *_: Any) -> Any:
    tensors = ctx.saved_tensors
    reads, kept = tensors[: _N_INPUTS - 1], tensors[_N_INPUTS - 1 :]
    if y_grad is None:
        y_grad = torch.zeros_like(kept[0])
    found = _backward_operator(*reads, ctx.simd, *kept, y_grad, state_grad)
    gradients = [None if x is None else g for x, g in zip(reads, found, strict=False)]
    return *gradients, None, None, None


_operator = operator(
    "mamba_inner",
    f"({_READS}, bool keep) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _forward,
    _shapes,
    gradients=_gradients,
    remember=_remember,
)
