"""What every op means: one plain loop over time per op.

Slow and exact. Every fast form is tested against these, outputs, final states and all gradients.

Letters: b batch, l length, d channels, n state, k kernel width, m model width.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional


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
    """Advance the selective scan by one position, in the type of the state.

    delta' = softplus(delta + delta_bias)
    h      = exp(delta' A) h + (delta' u) B
    y      = (<h, C> + D u) silu(gate)
    """
    u, delta, A, B, C, D = (x.to(state.dtype) for x in (u, delta, A, B, C, D))
    if delta_bias is not None:
        delta = delta + delta_bias
    if delta_softplus:
        delta = functional.softplus(delta)
    decay = torch.exp(delta[:, :, None] * A)
    state = decay * state + (delta * u)[:, :, None] * B[:, None, :]
    y = (state * C[:, None, :]).sum(-1) + D * u
    if gate is not None:
        y = y * functional.silu(gate)
    return y, state


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
    state: Float[Tensor, "b d n"],
    reset: Bool[Tensor, "b l"] | None = None,
) -> tuple[Float[Tensor, "b l d"], Float[Tensor, "b d n"]]:
    """Run `selective_scan_step` over time; a reset clears the state before its position."""
    y = torch.empty_like(u[:, :0], dtype=state.dtype)
    for t in range(u.shape[1]):
        if reset is not None:
            state = torch.where(reset[:, t, None, None], torch.zeros_like(state), state)
        y_t, state = selective_scan_step(
            u[:, t],
            delta[:, t],
            A,
            B[:, t],
            C[:, t],
            D,
            delta_bias=delta_bias,
            delta_softplus=delta_softplus,
            gate=None if gate is None else gate[:, t],
            state=state,
        )
        y = torch.cat([y, y_t[:, None]], dim=1)
    return y, state


def causal_conv1d_step(
    x: Float[Tensor, "b d"],
    weight: Float[Tensor, "d k"],
    bias: Float[Tensor, " d"] | None = None,
    *,
    activation: str | None = "silu",
    state: Float[Tensor, "b d w"],
) -> tuple[Float[Tensor, "b d"], Float[Tensor, "b d w"]]:
    """Advance the causal depthwise convolution by one position; the state is the last k - 1 inputs.

    y = silu(bias + sum_j weight[:, j] window[:, j]),   window = the last k - 1 inputs, then x
    """
    window = torch.cat([state, x[:, :, None]], dim=2)
    y = (window * weight).sum(-1)
    if bias is not None:
        y = y + bias
    if activation == "silu":
        y = functional.silu(y)
    return y, window[:, :, 1:]


def causal_conv1d(
    x: Float[Tensor, "b l d"],
    weight: Float[Tensor, "d k"],
    bias: Float[Tensor, " d"] | None = None,
    *,
    activation: str | None = "silu",
    state: Float[Tensor, "b d w"],
    reset: Bool[Tensor, "b l"] | None = None,
) -> tuple[Float[Tensor, "b l d"], Float[Tensor, "b d w"]]:
    """Run `causal_conv1d_step` over time; a reset clears the window before its position."""
    y = torch.empty_like(x[:, :0])
    for t in range(x.shape[1]):
        if reset is not None:
            state = torch.where(reset[:, t, None, None], torch.zeros_like(state), state)
        y_t, state = causal_conv1d_step(x[:, t], weight, bias, activation=activation, state=state)
        y = torch.cat([y, y_t[:, None]], dim=1)
    return y, state


def add_rms_norm(
    x: Float[Tensor, "*batch m"],
    update: Float[Tensor, "*batch m"] | None,
    weight: Float[Tensor, " m"],
    *,
    eps: float = 1e-5,
) -> tuple[Float[Tensor, "*batch m"], Float[Tensor, "*batch m"]]:
    """Return total / sqrt(mean(total^2) + eps) weight, and total = x + update."""
    total = x if update is None else (x + update).to(x.dtype)
    return total * torch.rsqrt(total.square().mean(-1, keepdim=True) + eps) * weight, total
