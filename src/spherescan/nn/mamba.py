"""The Mamba-1 mixer.

Letters: b batch, l length, m model width, d inner channels, n state, w = kernel width - 1.
"""

import math
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Generator, Tensor, nn
from torch.nn import functional

from spherescan.nn.init import depthwise_conv1d, linear_layer, uniform_
from spherescan.ops import (
    causal_conv1d,
    causal_conv1d_step,
    linear,
    mamba_inner,
    selective_scan,
    selective_scan_step,
)

# The range of step sizes at the start: with A from -1 to -16 states then forget within a token
# to about a thousand tokens.
_DELTA_MIN, _DELTA_MAX = 1e-3, 1e-1


class MambaState(NamedTuple):
    """What a mixer carries from one position to the next."""

    conv: Float[Tensor, "b d w"]
    ssm: Float[Tensor, "b d n"]


class Mamba(nn.Module):
    """Mix along a sequence with an input-dependent linear recurrence.

        u, g    = in_proj(x)
        u       = silu(conv1d(u))
        r, B, C = x_proj(u)
        y       = selective_scan(u, softplus(dt_proj(r)), -exp(A_log), B, C, D) silu(g)
        out     = out_proj(y)

    Parameter names are those of the published implementation. With `gate=False, expand=1` there is
    no input projection: together with `dt_rank=1` this is the reduced layer.

    Args:
        d_model: Width of input and output.
        d_state: State size n of each channel.
        d_conv: Kernel width of the convolution.
        expand: Inner channels per model channel.
        dt_rank: Rank of the step-size projection; ceil(d_model / 16) when missing.
        gate: Whether the output is gated by a second branch of the input projection.
        selective: Whether step sizes, B and C depend on the input. Without, they are parameters
            `dt_bias`, `B` and `C`, and the recurrence is linear and the same at every position.
        generator: Source of the initial weights; torch's global one when missing.

    Raises:
        ValueError: A size below 1.

    References:
        Gu and Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces", 2023,
        arXiv:2312.00752, section 3.4 and figure 3. Initialisation: section 3.6 and S4D-Real (Gu,
        Gupta, Goel, Re, "On the Parameterization and Initialization of Diagonal State Space
        Models", 2022, arXiv:2206.11893).
    """

    def __init__(
        self,
        d_model: int,
        *,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        dt_rank: int | None = None,
        gate: bool = True,
        selective: bool = True,
        generator: Generator | None = None,
    ) -> None:
        super().__init__()
        rank = math.ceil(d_model / 16) if dt_rank is None else dt_rank
        sizes = {
            "d_model": d_model,
            "d_state": d_state,
            "d_conv": d_conv,
            "expand": expand,
            "dt_rank": rank,
        }
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"{name} is {size}; it must be at least 1")
        self.d_model, self.d_state, self.dt_rank = d_model, d_state, rank
        self.d_inner = expand * d_model
        self.gated = gate
        d_in = self.d_inner * (2 if gate else 1)
        self.in_proj = (
            linear_layer(d_model, d_in, generator=generator)
            if gate or expand > 1
            else nn.Identity()
        )
        self.conv1d = depthwise_conv1d(self.d_inner, d_conv, generator=generator)
        self.selective = selective
        if selective:
            self.x_proj = linear_layer(self.d_inner, rank + 2 * d_state, generator=generator)
            self.dt_proj = linear_layer(rank, self.d_inner, bias=True, generator=generator)
            uniform_(self.dt_proj.weight, rank**-0.5, generator)
        delta_bias = _inverse_softplus(_initial_delta(self.d_inner, generator))
        if selective:
            with torch.no_grad():
                self.dt_proj.bias.copy_(delta_bias)
        else:
            self.dt_bias = nn.Parameter(delta_bias)
            # Of S4D: B of ones, C of normal numbers.
            self.B = nn.Parameter(torch.ones(d_state))
            self.C = nn.Parameter(torch.empty(d_state).normal_(generator=generator))
        n = torch.arange(1, d_state + 1, dtype=torch.get_default_dtype())
        self.A_log = nn.Parameter(torch.log(n).repeat(self.d_inner, 1))
        self.D = nn.Parameter(torch.ones(self.d_inner))
        self.out_proj = linear_layer(self.d_inner, d_model, generator=generator)

    def forward(
        self,
        x: Float[Tensor, "b l m"],
        state: MambaState | None = None,
        *,
        reset: Bool[Tensor, "b l"] | None = None,
    ) -> tuple[Float[Tensor, "b l m"], MambaState]:
        """Mix a sequence.

        Args:
            x: Input.
            state: What an earlier part of the same sequence left; nothing when missing.
            reset: True where a new document starts.

        Returns:
            The output, and the state after the last position.
        """
        if not self.selective:
            return self._time_invariant(x, state, reset)
        y, conv_state, ssm_state = mamba_inner(
            self._projected(x),
            self.conv1d.weight.squeeze(1),
            self.conv1d.bias,
            self.x_proj.weight,
            self.dt_proj.weight,
            self.dt_proj.bias,
            -torch.exp(self.A_log),
            self.D,
            conv_state=None if state is None else state.conv,
            ssm_state=None if state is None else state.ssm,
            reset=reset,
        )
        return linear(y, self.out_proj.weight), MambaState(conv_state, ssm_state)

    def step(
        self, x: Float[Tensor, "b m"], state: MambaState
    ) -> tuple[Float[Tensor, "b m"], MambaState]:
        """Mix one position; equal to `forward` on a sequence of length 1."""
        u, gate = self._branches(x)
        u, conv_state = causal_conv1d_step(
            u, self.conv1d.weight.squeeze(1), self.conv1d.bias, state=state.conv
        )
        y, ssm_state = selective_scan_step(
            u, **self._scan_parameters(u), gate=gate, state=state.ssm
        )
        return self.out_proj(y), MambaState(conv_state, ssm_state)

    def initial_state(self, batch: int) -> MambaState:
        """Return the state before the first position of `batch` sequences."""
        weight = self.out_proj.weight
        return MambaState(
            weight.new_zeros(batch, self.d_inner, self.conv1d.weight.shape[2] - 1),
            # In float32 at least, as the scan returns it.
            weight.new_zeros(
                batch,
                self.d_inner,
                self.d_state,
                dtype=torch.promote_types(weight.dtype, torch.float32),
            ),
        )

    def _projected(self, x: Tensor) -> Tensor:
        return x if isinstance(self.in_proj, nn.Identity) else linear(x, self.in_proj.weight)

    def _branches(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        projected = self.in_proj(x)
        if not self.gated:
            return projected, None
        u, gate = projected.chunk(2, dim=-1)
        return u, gate

    def _scan_parameters(self, u: Tensor) -> dict[str, Any]:
        if self.selective:
            sizes = [self.dt_rank, self.d_state, self.d_state]
            rank_delta, B, C = self.x_proj(u).split(sizes, dim=-1)
            delta = functional.linear(rank_delta, self.dt_proj.weight)
            delta_bias = self.dt_proj.bias
        else:
            shape = (*u.shape[:-1], self.d_state)
            delta, B, C = torch.zeros_like(u), self.B.expand(shape), self.C.expand(shape)
            delta_bias = self.dt_bias
        return {
            "delta": delta,
            "A": -torch.exp(self.A_log),
            "B": B,
            "C": C,
            "D": self.D,
            "delta_bias": delta_bias,
            "delta_softplus": True,
        }

    def _time_invariant(
        self, x: Tensor, state: MambaState | None, reset: Tensor | None
    ) -> tuple[Tensor, MambaState]:
        u, gate = self._branches(x)
        u, conv_state = causal_conv1d(
            u,
            self.conv1d.weight.squeeze(1),
            self.conv1d.bias,
            state=None if state is None else state.conv,
            reset=reset,
        )
        y, ssm_state = selective_scan(
            u,
            **self._scan_parameters(u),
            gate=gate,
            state=None if state is None else state.ssm,
            reset=reset,
        )
        return self.out_proj(y), MambaState(conv_state, ssm_state)


def _initial_delta(d_inner: int, generator: Generator | None) -> Float[Tensor, " d"]:
    log_min, log_max = math.log(_DELTA_MIN), math.log(_DELTA_MAX)
    return torch.exp(torch.empty(d_inner).uniform_(log_min, log_max, generator=generator))


def _inverse_softplus(y: Float[Tensor, " d"]) -> Float[Tensor, " d"]:
    return y + torch.log(-torch.expm1(-y))
