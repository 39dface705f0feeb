"""The causal depthwise convolution in front of the scan: its forms and its single step.

Letters: b batch, l length, d channels, k kernel width, w = k - 1.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from spherescan.ops import native, reference
from spherescan.ops.argument import expect, sizes
from spherescan.ops.form import form_for, only_operators, records_gradient
from spherescan.ops.native_conv import conv_operator, conv_step, step_operator


def causal_conv1d(
    x: Float[Tensor, "b l d"],
    weight: Float[Tensor, "d k"],
    bias: Float[Tensor, " d"] | None = None,
    *,
    activation: str | None = "silu",
    state: Float[Tensor, "b d w"] | None = None,
    reset: Bool[Tensor, "b l"] | None = None,
) -> tuple[Float[Tensor, "b l d"], Float[Tensor, "b d w"]]:
    """Convolve each channel with its own kernel over the past, then apply the activation.

        y_t = silu(bias + sum_j weight[:, j] x_{t - (k - 1) + j})

    Args:
        x: Input.
        weight: One kernel per channel; the last tap meets the present.
        bias: Added before the activation.
        activation: "silu", or None for the plain convolution.
        state: The k - 1 inputs before the first position, oldest first; zero when missing.
        reset: True where a new document starts: no tap reaches across it.

    Returns:
        The output, and the last k - 1 inputs (zero where a reset cut them off).

    Raises:
        TypeError: Whole or complex numbers, or no tensor.
        ValueError: A shape that does not fit, or an unknown activation.

    Example:
        >>> import torch
        >>> x = torch.tensor([1.0, 2.0, 3.0]).reshape(1, 3, 1)
        >>> y, state = causal_conv1d(x, torch.tensor([[10.0, 1.0]]), activation=None)
        >>> y.flatten().tolist(), state.flatten().tolist()
        ([1.0, 12.0, 23.0], [3.0])
    """
    batch, length, d_inner = sizes("x", x, "batch, length, channels")
    state = _checked_state(batch, d_inner, weight, bias, activation, state, like=x)
    expect("reset", reset, (batch, length), dtype=torch.bool)
    # Every form computes in the same type, float32 at least, under autocast too.
    dtype = _compute_dtype(x, weight, bias, state)
    weight, state_ = weight.to(dtype), state.to(dtype)
    bias = None if bias is None else bias.to(dtype)
    form = form_for(x, weight, bias)
    if form == "native":
        values = x if x.dtype == torch.bfloat16 and dtype == torch.float32 else x.to(dtype)
        silu = activation == "silu"
        y = conv_operator(values, weight, bias, state_, reset, silu, native.simd())
    else:
        conv = reference.causal_conv1d if form == "reference" else _torch_conv
        with torch.autocast(x.device.type, enabled=False):
            y, _ = conv(x.to(dtype), weight, bias, activation=activation, state=state_, reset=reset)
    return y.to(x.dtype), conv_tail(x, state, reset)


def causal_conv1d_step(
    x: Float[Tensor, "b d"],
    weight: Float[Tensor, "d k"],
    bias: Float[Tensor, " d"] | None = None,
    *,
    activation: str | None = "silu",
    state: Float[Tensor, "b d w"],
) -> tuple[Float[Tensor, "b d"], Float[Tensor, "b d w"]]:
    """Advance `causal_conv1d` by one position.

    Args:
        x: Input at this position.
        weight: One kernel per channel.
        bias: Added before the activation.
        activation: "silu" or None.
        state: The k - 1 inputs before this position. It is not changed.

    Returns:
        The output and the new state.

    Raises:
        TypeError: Whole or complex numbers, or no tensor.
        ValueError: A shape that does not fit, or an unknown activation.
    """
    batch, d_inner = sizes("x", x, "batch, channels")
    state = _checked_state(batch, d_inner, weight, bias, activation, state, like=x)
    dtype = _compute_dtype(x, weight, bias, state)
    weight, state_ = weight.to(dtype), state.to(dtype)
    bias = None if bias is None else bias.to(dtype)
    tensors = (x, weight, bias, state_)
    if form_for(x, weight, bias) == "native" and not records_gradient(*tensors):
        values = x if x.dtype == torch.bfloat16 and dtype == torch.float32 else x.to(dtype)
        # Eager calls go straight to the kernel: an operator costs as much as the step itself.
        step: Any = step_operator if only_operators() else conv_step
        y, new = step(values, weight, bias, state_, activation == "silu", native.simd())
    else:
        y, new = reference.causal_conv1d_step(
            x.to(dtype), weight, bias, activation=activation, state=state_
        )
    return y.to(x.dtype), new.to(torch.promote_types(x.dtype, state.dtype))


def conv_tail(
    x: Float[Tensor, "b l d"], state: Float[Tensor, "b d w"], reset: Bool[Tensor, "b l"] | None
) -> Float[Tensor, "b d w"]:
    """Return the last inputs, zero where a document began after them."""
    reach = state.shape[2]
    recent = x[:, max(0, x.shape[1] - reach) :].transpose(1, 2)
    tail = torch.cat([state, recent], dim=2)[:, :, recent.shape[2] :]
    if reset is None or reset.shape[1] == 0:
        return tail
    back = torch.arange(reach - 1, -1, -1, device=x.device)
    return tail.where((_age(reset)[:, -1:] >= back)[:, None, :], 0.0)


def _torch_conv(
    x: Float[Tensor, "b l d"],
    weight: Float[Tensor, "d k"],
    bias: Float[Tensor, " d"] | None,
    *,
    activation: str | None,
    state: Float[Tensor, "b d w"],
    reset: Bool[Tensor, "b l"] | None,
) -> tuple[Float[Tensor, "b l d"], Float[Tensor, "b d w"]]:
    width = weight.shape[1]
    length = x.shape[1]
    if length == 0:
        return x, state
    padded = torch.cat([state, x.transpose(1, 2)], dim=2)
    if reset is None:
        y = functional.conv1d(padded, weight.unsqueeze(1), bias, groups=weight.shape[0])
    else:
        age = _age(reset)
        # Tap j looks j positions back; a document younger than that has nothing there.
        taps = [
            padded[:, :, width - 1 - j : width - 1 - j + length]
            .where((age >= j)[:, None, :], 0.0)
            .mul(weight[:, width - 1 - j, None])
            for j in range(width)
        ]
        y = torch.stack(taps).sum(0)
        if bias is not None:
            y = y + bias[:, None]
    if activation == "silu":
        y = functional.silu(y)
    return y.transpose(1, 2), conv_tail(x, state, reset)


def _compute_dtype(*tensors: Tensor | None) -> torch.dtype:
    double = any(t is not None and t.dtype == torch.float64 for t in tensors)
    return torch.float64 if double else torch.float32


def _age(reset: Bool[Tensor, "b l"]) -> Tensor:
    """Return how many positions ago the document began; beyond any kernel when none began here."""
    length = reset.shape[1]
    position = torch.arange(length, device=reset.device)
    before_all = -(2**31)
    start = torch.where(reset, position, before_all).cummax(dim=1).values
    return position - start


def _checked_state(
    batch: int,
    d_inner: int,
    weight: Tensor,
    bias: Tensor | None,
    activation: str | None,
    state: Tensor | None,
    *,
    like: Tensor,
) -> Tensor:
    channels, width = sizes("weight", weight, "channels, taps")
    if channels != d_inner or width < 1:
        raise ValueError(
            f"weight has shape {tuple(weight.shape)}; expected ({d_inner}, at least 1)"
        )
    expect("bias", bias, (d_inner,))
    if activation not in {"silu", None}:
        raise ValueError(f"unknown activation {activation!r}; choose silu or None")
    shape = (batch, d_inner, width - 1)
    expect("state", state, shape)
    return like.new_zeros(shape) if state is None else state
