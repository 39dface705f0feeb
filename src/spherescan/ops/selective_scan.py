"""The selective scan (S6) of Mamba: the choice of its form, the torch form, and its single step.

Letters: b batch, l length, d channels, n state.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from spherescan.ops import native, reference
from spherescan.ops.argument import expect, sizes
from spherescan.ops.form import form_for, only_operators, records_gradient
from spherescan.ops.native_scan import scan_operator, scan_step, step_operator


def selective_scan(
    u: Float[Tensor, "b l d"],
    delta: Float[Tensor, "b l d"],
    A: Float[Tensor, "d n"],
    B: Float[Tensor, "b l n"],
    C: Float[Tensor, "b l n"],
    D: Float[Tensor, " d"],
    *,
    delta_bias: Float[Tensor, " d"] | None = None,
    delta_softplus: bool = False,
    gate: Float[Tensor, "b l d"] | None = None,
    state: Float[Tensor, "b d n"] | None = None,
    reset: Bool[Tensor, "b l"] | None = None,
) -> tuple[Float[Tensor, "b l d"], Float[Tensor, "b d n"]]:
    """Scan a sequence with input-dependent decay, input and output maps.

        delta' = softplus(delta + delta_bias)
        h_t    = exp(delta'_t A) h_{t-1} + (delta'_t u_t) B_t
        y_t    = (<h_t, C_t> + D u_t) silu(gate_t)

    State and decay are computed in at least float32, whatever the inputs; `y` has the dtype of `u`.

    Args:
        u: Input.
        delta: Step sizes, before the bias and the softplus when these are asked for.
        A: Decay rates, negative for a state that forgets.
        B: Input map of each position.
        C: Output map of each position.
        D: Skip weight of each channel.
        delta_bias: Added to every step size.
        delta_softplus: Whether to pass the step sizes through a softplus.
        gate: Multiplied onto the output through a SiLU.
        state: State before the first position; zero when missing.
        reset: True where a new document starts: the state is cleared before that position.

    Returns:
        The output, and the state after the last position.

    Raises:
        TypeError: Whole or complex numbers, or no tensor.
        ValueError: A shape that does not fit.

    References:
        Gu and Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces", 2023,
        arXiv:2312.00752, algorithm 2. As in the published kernel, B is discretised by Euler's rule.

    Example:
        >>> import torch
        >>> one = torch.ones(1, 3, 1)
        >>> y, state = selective_scan(one, one, torch.zeros(1, 1), one, one, torch.zeros(1))
        >>> y.flatten().tolist(), state.item()
        ([1.0, 2.0, 3.0], 3.0)
    """
    batch, length, d_inner = sizes("u", u, "batch, length, channels")
    _, d_state = sizes("A", A, "channels, states")
    expect("delta", delta, (batch, length, d_inner))
    expect("A", A, (d_inner, d_state))
    expect("B", B, (batch, length, d_state))
    expect("C", C, (batch, length, d_state))
    expect("D", D, (d_inner,))
    expect("delta_bias", delta_bias, (d_inner,))
    expect("gate", gate, (batch, length, d_inner))
    expect("state", state, (batch, d_inner, d_state))
    expect("reset", reset, (batch, length), dtype=torch.bool)
    floating = (u, delta, A, B, C, D, delta_bias, gate, state)
    form = form_for(*floating)
    if form == "native":
        return _native_scan(*floating, reset, delta_softplus=delta_softplus)
    # Every form computes in the same type, under autocast too.
    dtype = _state_dtype(*floating)
    if state is None:
        state = u.new_zeros(batch, d_inner, d_state, dtype=dtype)
    scan = reference.selective_scan if form == "reference" else _unbound_scan
    with torch.autocast(u.device.type, enabled=False):
        y, state = scan(
            *(x.to(dtype) for x in (u, delta, A, B, C, D)),
            delta_bias=None if delta_bias is None else delta_bias.to(dtype),
            delta_softplus=delta_softplus,
            gate=None if gate is None else gate.to(dtype),
            state=state.to(dtype),
            reset=reset,
        )
    return y.to(u.dtype), state


def selective_scan_step(
    u: Float[Tensor, "b d"],
    delta: Float[Tensor, "b d"],
    A: Float[Tensor, "d n"],
    B: Float[Tensor, "b n"],
    C: Float[Tensor, "b n"],
    D: Float[Tensor, " d"],
    *,
    delta_bias: Float[Tensor, " d"] | None = None,
    delta_softplus: bool = False,
    gate: Float[Tensor, "b d"] | None = None,
    state: Float[Tensor, "b d n"],
) -> tuple[Float[Tensor, "b d"], Float[Tensor, "b d n"]]:
    """Advance `selective_scan` by one position.

    Args:
        u: Input at this position.
        delta: Step sizes, before the bias and the softplus when these are asked for.
        A: Decay rates.
        B: Input map.
        C: Output map.
        D: Skip weights.
        delta_bias: Added to the step sizes.
        delta_softplus: Whether to pass the step sizes through a softplus.
        gate: Multiplied onto the output through a SiLU.
        state: State before this position. It is not changed.

    Returns:
        The output and the new state.

    Raises:
        TypeError: Whole or complex numbers, or no tensor.
        ValueError: A shape that does not fit.
    """
    batch, d_inner = sizes("u", u, "batch, channels")
    _, d_state = sizes("A", A, "channels, states")
    expect("delta", delta, (batch, d_inner))
    expect("A", A, (d_inner, d_state))
    expect("B", B, (batch, d_state))
    expect("C", C, (batch, d_state))
    expect("D", D, (d_inner,))
    expect("delta_bias", delta_bias, (d_inner,))
    expect("gate", gate, (batch, d_inner))
    expect("state", state, (batch, d_inner, d_state))
    tensors = (u, delta, A, B, C, D, delta_bias, gate, state)
    if form_for(*tensors) == "native" and not records_gradient(*tensors):
        inputs = _in_matching_types(*tensors)
        # Eager calls go straight to the kernel: an operator costs as much as the step itself.
        step: Any = step_operator if only_operators() else scan_step
        y, state = step(*inputs, delta_softplus, native.simd())
        return y.to(u.dtype), state
    y, state = reference.selective_scan_step(
        u,
        delta,
        A,
        B,
        C,
        D,
        delta_bias=delta_bias,
        delta_softplus=delta_softplus,
        gate=gate,
        state=state.to(_state_dtype(*tensors)),
    )
    return y.to(u.dtype), state


def _native_scan(
    *tensors: Tensor | None, delta_softplus: bool
) -> tuple[Float[Tensor, "b l d"], Float[Tensor, "b d n"]]:
    *floating, reset = tensors
    u, _, A, *_ = inputs = _in_matching_types(*floating)
    level = native.simd_for(A.shape[0], A.shape[1], u.dtype)
    keep = records_gradient(*floating)
    y, state, _ = scan_operator(*inputs, reset, delta_softplus, level, keep)
    u = tensors[0]
    assert u is not None
    return y.to(u.dtype), state


def _in_matching_types(*tensors: Tensor | None) -> list[Any]:
    """Cast as the kernels want it: values of one type, parameters and states of what computes.

    Args:
        tensors: u, delta, A, B, C, D, delta_bias, gate, state.
    """
    values = {index: x.dtype for index, x in enumerate(tensors) if x is not None}
    double = torch.float64 in values.values()
    short = all(values[i] == torch.bfloat16 for i in _VALUES if i in values)
    parameter_dtype = torch.float64 if double else torch.float32
    value_dtype = torch.bfloat16 if short and not double else parameter_dtype
    return [
        x if x is None else x.to(value_dtype if index in _VALUES else parameter_dtype)
        for index, x in enumerate(tensors)
    ]


# Of u, delta, A, B, C, D, delta_bias, gate, state: those that vary with the position.
_VALUES = (0, 1, 3, 4, 7)


def _unbound_scan(
    u: Float[Tensor, "b l d"],
    delta: Float[Tensor, "b l d"],
    A: Float[Tensor, "d n"],
    B: Float[Tensor, "b l n"],
    C: Float[Tensor, "b l n"],
    D: Float[Tensor, " d"],
    *,
    delta_bias: Float[Tensor, " d"] | None,
    delta_softplus: bool,
    gate: Float[Tensor, "b l d"] | None,
    state: Float[Tensor, "b d n"],
    reset: Bool[Tensor, "b l"] | None,
) -> tuple[Float[Tensor, "b l d"], Float[Tensor, "b d n"]]:
    """Loop over `unbind` slices, whose backward is one stack.

    Indexing `x[:, t]` in the loop would make autograd allocate a full-size gradient per position:
    a backward pass quadratic in length.
    """
    if u.shape[1] == 0:
        return u, state
    if delta_bias is not None:
        delta = delta + delta_bias
    if delta_softplus:
        delta = functional.softplus(delta)
    delta_u = delta * u
    keeps = [None] * u.shape[1] if reset is None else (~reset).unbind(1)
    outputs = []
    steps = zip(delta.unbind(1), delta_u.unbind(1), B.unbind(1), C.unbind(1), keeps, strict=True)
    for delta_t, delta_u_t, B_t, C_t, keep_t in steps:
        if keep_t is not None:
            state = torch.where(keep_t[:, None, None], state, 0.0)
        decay = torch.exp(delta_t.unsqueeze(-1) * A)
        state = decay * state + delta_u_t.unsqueeze(-1) * B_t.unsqueeze(1)
        outputs.append(torch.bmm(state, C_t.unsqueeze(-1)).squeeze(-1))
    y = torch.stack(outputs, dim=1) + D * u
    if gate is not None:
        y = y * functional.silu(gate)
    return y, state


def _state_dtype(*inputs: Tensor | None) -> torch.dtype:
    """Return float64 if any input is, else float32: bfloat16 states drift within tens of steps."""
    double = any(x is not None and x.dtype == torch.float64 for x in inputs)
    return torch.float64 if double else torch.float32
