"""The native selective scan: calls of its kernels, and those calls as operators of torch.

Values (u, delta, gate, B, C and their gradients) share one element type. Parameters and states are
float32 beside float32 and bfloat16 values, float64 beside float64 ones.

Letters: b batch, l length, d channels, n state.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from spherescan.ops import native
from spherescan.ops.operator import operator


class ScanInputs(NamedTuple):
    """What a scan reads, and how."""

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor
    delta_bias: Tensor | None
    gate: Tensor | None
    state: Tensor | None
    reset: Tensor | None
    delta_softplus: bool
    simd: int

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """Batch, length, channels, states."""
        b, length, d = self.u.shape
        return b, length, d, self.A.shape[1]


class ScanGradients(NamedTuple):
    """One gradient per tensor of `ScanInputs`; empty where there was none."""

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor
    delta_bias: Tensor
    gate: Tensor
    state: Tensor


def scan_forward(inputs: ScanInputs, *, keep: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Run the scan.

    Args:
        inputs: What it reads.
        keep: Whether to fill the checkpoints that the backward pass needs.

    Returns:
        The output, the state after the last position, and the checkpoints (empty if not kept).
    """
    inputs = _followed(inputs)
    b, length, d, n = inputs.sizes
    dtype = native.compute_dtype(inputs.u.dtype)
    y = torch.empty(b, length, d, dtype=inputs.u.dtype)
    final_state = torch.empty(b, d, n, dtype=dtype)
    checkpoints = torch.empty(_checkpoint_values(inputs) if keep else 0, dtype=dtype)
    call = _call(inputs)
    if keep:
        _give(call, checkpoints, dtype)
    call.y = native.rows("y", y, (b, length, d), y.dtype)
    call.final_state = final_state.data_ptr()
    native.call("spherescan_selective_scan", call)
    return y, final_state, checkpoints


def scan_backward(
    inputs: ScanInputs,
    checkpoints: Tensor,
    y_grad: Tensor,
    final_state_grad: Tensor | None,
    *,
    gate_grad: Tensor | None = None,
    B_grad: Tensor | None = None,
    C_grad: Tensor | None = None,
) -> ScanGradients:
    """Compute all gradients.

    Args:
        inputs: What the forward pass read.
        checkpoints: What it kept.
        y_grad: Gradient of the output.
        final_state_grad: Gradient of the final state; zero when missing.
        gate_grad: Where to write this gradient; new memory when missing.
        B_grad: The same.
        C_grad: The same.

    Raises:
        ValueError: An output that shares memory with an input.
    """
    inputs = _followed(inputs)
    b, length, d, n = inputs.sizes
    values, dtype = inputs.u.dtype, native.compute_dtype(inputs.u.dtype)
    y_grad = native.contiguous_rows(y_grad)
    if final_state_grad is not None:
        final_state_grad = final_state_grad.contiguous()
    given = {"gate_grad": gate_grad, "B_grad": B_grad, "C_grad": C_grad}
    reads: dict[str, Any] = {
        "checkpoints": checkpoints,
        "y_grad": y_grad,
        "final_state_grad": final_state_grad,
    }
    native.disjoint(
        {name: x for name, x in given.items() if x is not None},
        reads | {k: v for k, v in inputs._asdict().items() if isinstance(v, Tensor)},
    )

    rows, maps = (b, length, d), (b, length, n)
    nothing = torch.empty(0, dtype=dtype)
    if gate_grad is None:
        gate_grad = torch.empty(rows if inputs.gate is not None else 0, dtype=values)
    gradients = ScanGradients(
        u=torch.empty(rows, dtype=values),
        delta=torch.empty(rows, dtype=values),
        A=torch.empty(d, n, dtype=dtype),
        B=torch.empty(maps, dtype=values) if B_grad is None else B_grad,
        C=torch.empty(maps, dtype=values) if C_grad is None else C_grad,
        D=torch.empty(d, dtype=dtype),
        delta_bias=nothing if inputs.delta_bias is None else torch.empty(d, dtype=dtype),
        gate=gate_grad,
        state=nothing.clone() if inputs.state is None else torch.empty(b, d, n, dtype=dtype),
    )
    call = _call(inputs)
    _give(call, checkpoints, dtype)
    call.y_grad = native.rows("y_grad", y_grad, (b, length, d), values)
    call.final_state_grad = native.dense("final_state_grad", final_state_grad, (b, d, n), dtype)
    call.u_grad = native.rows("u_grad", gradients.u, (b, length, d), values)
    call.delta_grad = native.rows("delta_grad", gradients.delta, (b, length, d), values)
    if inputs.gate is not None:
        call.gate_grad = native.rows("gate_grad", gradients.gate, (b, length, d), values)
    call.B_grad = native.rows("B_grad", gradients.B, (b, length, n), values)
    call.C_grad = native.rows("C_grad", gradients.C, (b, length, n), values)
    call.A_grad = gradients.A.data_ptr()
    call.D_grad = gradients.D.data_ptr()
    if inputs.delta_bias is not None:
        call.delta_bias_grad = gradients.delta_bias.data_ptr()
    if inputs.state is not None:
        call.state_grad = gradients.state.data_ptr()
    native.call("spherescan_selective_scan_backward", call)
    return gradients


def _followed(inputs: ScanInputs) -> ScanInputs:
    """Copy what lies in memory in a way that the kernels cannot follow."""
    rows: dict[str, Any] = {
        name: native.contiguous_rows(getattr(inputs, name)) for name in ("u", "delta", "B", "C")
    }
    dense: dict[str, Any] = {
        name: None if tensor is None else tensor.contiguous()
        for name in ("A", "D", "delta_bias", "state", "reset")
        for tensor in (getattr(inputs, name),)
    }
    gate = None if inputs.gate is None else native.contiguous_rows(inputs.gate)
    return inputs._replace(gate=gate, **rows, **dense)


def _call(inputs: ScanInputs) -> native.Scan:
    """Check every tensor and fill in where it lies."""
    b, length, d, n = inputs.sizes
    values, dtype = inputs.u.dtype, native.compute_dtype(inputs.u.dtype)
    native.positive(batch=b, length=length, channels=d, states=n)
    call = native.Scan(
        batch=b,
        length=length,
        d_inner=d,
        d_state=n,
        type=native.type_code(values),
        threads=native.threads(),
        delta_softplus=inputs.delta_softplus,
        simd=native.usable_simd(inputs.simd),
    )
    for name, width in (("u", d), ("delta", d), ("gate", d), ("B", n), ("C", n)):
        setattr(call, name, native.rows(name, getattr(inputs, name), (b, length, width), values))
    for name, shape in (("A", (d, n)), ("D", (d,)), ("delta_bias", (d,)), ("state", (b, d, n))):
        setattr(call, name, native.dense(name, getattr(inputs, name), shape, dtype))
    if inputs.reset is not None:
        native.dense("reset", inputs.reset, (b, length), torch.bool)
        call.reset = native.Rows(inputs.reset.data_ptr(), length, 1)
    return call


def _give(call: native.Scan, checkpoints: Tensor, dtype: torch.dtype) -> None:
    values = checkpoints.numel()
    call.checkpoints = native.dense("checkpoints", checkpoints, (values,), dtype)
    call.checkpoint_values = values


def _checkpoint_values(inputs: ScanInputs) -> int:
    double = inputs.u.dtype == torch.float64
    return native.checkpoint_values(*inputs.sizes, double=double, simd=inputs.simd)


_READS = (
    "Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor D, Tensor? delta_bias, "
    "Tensor? gate, Tensor? state, Tensor? reset, bool delta_softplus, int simd"
)
_N_READS = len(ScanInputs._fields)
_N_GRADIENTS = len(ScanGradients._fields)


def _scan(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    return scan_forward(ScanInputs(*arguments[:_N_READS]), keep=arguments[_N_READS])


def _scan_shapes(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    inputs = ScanInputs(*arguments[:_N_READS])
    b, _, d, n = inputs.sizes
    dtype = native.compute_dtype(inputs.u.dtype)
    kept = _checkpoint_values(inputs) if arguments[_N_READS] else 0
    return (
        inputs.u.new_empty(inputs.u.shape),
        inputs.u.new_empty((b, d, n), dtype=dtype),
        inputs.u.new_empty((kept,), dtype=dtype),
    )


def _scan_backward(*arguments: Any) -> tuple[Tensor, ...]:
    reads, (checkpoints, y_grad, final_state_grad) = arguments[:_N_READS], arguments[_N_READS:]
    return scan_backward(ScanInputs(*reads), checkpoints, y_grad, final_state_grad)


def _backward_shapes(*arguments: Any) -> tuple[Tensor, ...]:
    inputs = ScanInputs(*arguments[:_N_READS])
    return tuple(
        inputs.u.new_empty(0) if x is None else x.new_empty(x.shape)
        for x in arguments[:_N_GRADIENTS]
    )


_backward_operator = operator(
    "selective_scan_backward",
    f"({_READS}, Tensor checkpoints, Tensor y_grad, Tensor? final_state_grad) -> "
    f"({', '.join(['Tensor'] * _N_GRADIENTS)})",
    _scan_backward,
    _backward_shapes,
)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    tensors = inputs[: _N_READS - 2]
    ctx.save_for_backward(*tensors, output[2])
    ctx.options = inputs[_N_READS - 2 : _N_READS]
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, y_grad: Tensor | None, state_grad: Tensor | None, _: Any) -> Any:
    *tensors, checkpoints = ctx.saved_tensors
    if y_grad is None:
        y_grad = torch.zeros_like(tensors[0])
    found = _backward_operator(*tensors, *ctx.options, checkpoints, y_grad, state_grad)
    gradients = [None if x is None else g for x, g in zip(tensors, found, strict=False)]
    return *gradients, None, None, None, None


# y, final state and checkpoints of a scan; the last argument says whether to keep checkpoints.
scan_operator = operator(
    "selective_scan",
    f"({_READS}, bool keep) -> (Tensor, Tensor, Tensor)",
    _scan,
    _scan_shapes,
    gradients=_gradients,
    remember=_remember,
)


class FixedScanStep:
    """One position after the other, between tensors that stay where they are.

    All but the state is checked here, once: most of a small step is that. Nobody but the caller may
    write to the tensors, and what is written there counts from the next call on.

    Args:
        u: Input of each position; the last axis of this, delta, B, C and the gate is contiguous.
        delta: Step sizes.
        A: Decay rates; this, D and the bias are contiguous.
        B: Input map.
        C: Output map.
        D: Skip weights.
        delta_bias: Added to the step sizes.
        gate: Multiplied onto the output through a SiLU.
        delta_softplus: Whether to pass the step sizes through a softplus.
        simd: The SIMD level.

    Attributes:
        y: Output of the last call.
    """

    def __init__(
        self,
        u: Float[Tensor, "b d"],
        delta: Float[Tensor, "b d"],
        A: Float[Tensor, "d n"],
        B: Float[Tensor, "b n"],
        C: Float[Tensor, "b n"],
        D: Float[Tensor, " d"],
        delta_bias: Float[Tensor, " d"] | None,
        gate: Float[Tensor, "b d"] | None,
        *,
        delta_softplus: bool,
        simd: int,
    ) -> None:
        b, d = u.shape
        n = A.shape[1]
        values, self._dtype = u.dtype, native.compute_dtype(u.dtype)
        native.positive(batch=b, channels=d, states=n)
        self.y = torch.empty(b, d, dtype=values)
        self._shape = (b, d, n)
        self._held = (u, delta, A, B, C, D, delta_bias, gate)

        def rows(name: str, x: Tensor | None, width: int) -> native.Rows:
            return native.rows(name, None if x is None else x.unsqueeze(1), (b, 1, width), values)

        self._call = native.ScanStep(
            batch=b,
            d_inner=d,
            d_state=n,
            type=native.type_code(values),
            threads=native.threads(),
            delta_softplus=delta_softplus,
            simd=native.usable_simd(simd),
            u=rows("u", u, d),
            delta=rows("delta", delta, d),
            gate=rows("gate", gate, d),
            B=rows("B", B, n),
            C=rows("C", C, n),
            y=rows("y", self.y, d),
            A=native.dense("A", A, (d, n), self._dtype),
            D=native.dense("D", D, (d,), self._dtype),
            delta_bias=native.dense("delta_bias", delta_bias, (d,), self._dtype),
        )

    def __call__(self, state: Float[Tensor, "b d n"]) -> Float[Tensor, "b d n"]:
        """Return the state after the position, in new memory."""
        new_state = torch.empty(self._shape, dtype=self._dtype)
        self._call.state = native.dense("state", state, self._shape, self._dtype)
        self._call.new_state = new_state.data_ptr()
        native.call("spherescan_selective_scan_step", self._call)
        return new_state


def scan_step(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    delta_bias: Tensor | None,
    gate: Tensor | None,
    state: Tensor,
    delta_softplus: bool,  # noqa: FBT001 - an operator of torch takes its arguments in order
    simd: int,
) -> tuple[Tensor, Tensor]:
    """Advance by one position; records no gradient.

    Returns:
        The output and the new state, in new memory.
    """
    step = FixedScanStep(
        native.contiguous_rows(u),
        native.contiguous_rows(delta),
        A.contiguous(),
        native.contiguous_rows(B),
        native.contiguous_rows(C),
        D.contiguous(),
        None if delta_bias is None else delta_bias.contiguous(),
        None if gate is None else native.contiguous_rows(gate),
        delta_softplus=delta_softplus,
        simd=simd,
    )
    new_state = step(state.contiguous())
    return step.y, new_state


def _step_shapes(*arguments: Any) -> tuple[Tensor, Tensor]:
    u, A = arguments[0], arguments[2]
    dtype = native.compute_dtype(u.dtype)
    return u.new_empty(u.shape), u.new_empty((*u.shape, A.shape[1]), dtype=dtype)


step_operator = operator(
    "selective_scan_step",
    "(Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor D, Tensor? delta_bias, "
    "Tensor? gate, Tensor state, bool delta_softplus, int simd) -> (Tensor, Tensor)",
    scan_step,
    _step_shapes,
)
