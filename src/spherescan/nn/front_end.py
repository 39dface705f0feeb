"""Convolutions of several widths in front of the blocks: shapes, before what comes of them.

Letters: b batch, l length, c channels in, m model width, w positions kept of before.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Generator, Tensor, nn
from torch.nn import functional

from spherescan.nn.init import allocated, linear_layer, uniform_

# Of InceptionTime, halved: the series people have are tens to hundreds of positions long.
WIDTHS = (5, 11, 23)
_BOTTLENECK = 32
_POOL = 3
_EPS = 1e-5


class ConvolutionState(NamedTuple):
    """What a causal layer keeps of the positions before: the last inputs of its convolutions."""

    inner: Float[Tensor, "b w e"]
    pool: Float[Tensor, "b p m"]


class MultiScaleConvolution(nn.Module):
    """Add to a sequence what convolutions of several widths find in it.

        h   = bottleneck(x)
        out = x + relu(norm(concat(conv_5(h), conv_11(h), conv_23(h), linear(max_3(x)))))

    The first layer, which may have another width, adds a projection of x instead of x.

    Args:
        d_in: Width of the input.
        d_model: Width of the output, a multiple of 4.
        causal: Whether a position sees only those before it, or as many on both sides.
        generator: Source of the initial weights.

    References:
        Ismail Fawaz et al., "InceptionTime: Finding AlexNet for Time Series Classification", 2020,
        arXiv:1909.04939, figure 2.

    Notes:
        The norm is over the channels of a position instead of over the batch: it is the same in
        training and after it, needs no statistics that a checkpoint or a stream would have to
        carry, and a step that is left out leaves no trace.
    """

    def __init__(
        self, d_in: int, d_model: int, *, causal: bool, generator: Generator | None = None
    ) -> None:
        super().__init__()
        n_branches = len(WIDTHS) + 1
        if d_model % n_branches:
            raise ValueError(
                f"d_model is {d_model}; with a convolutional front end it must be a multiple of "
                f"{n_branches}"
            )
        self.causal = causal
        inner, each = min(_BOTTLENECK, d_model), d_model // n_branches
        self.bottleneck = linear_layer(d_in, inner, generator=generator)
        self.convolutions = nn.ModuleList(
            _convolution(inner, each, width, generator) for width in WIDTHS
        )
        self.pooled = linear_layer(d_in, each, generator=generator)
        self.norm = nn.LayerNorm(d_model, eps=_EPS)
        self.shortcut = (
            nn.Identity() if d_in == d_model else linear_layer(d_in, d_model, generator=generator)
        )

    def forward(
        self, x: Float[Tensor, "b l e"], mask: Bool[Tensor, "b l"] | None = None
    ) -> Float[Tensor, "b l m"]:
        """Convolve sequences; before and after them there are zeros.

        Args:
            x: Input.
            mask: True on real positions, which come first; all of them when missing.
        """
        if mask is not None:
            x = x * mask[:, :, None].to(x.dtype)
        inner = self.bottleneck(x)
        before, after = self._around(max(WIDTHS))
        pool_before, pool_after = self._around(_POOL)
        y = self._combined(
            x,
            functional.pad(inner, (0, 0, before, after)),
            functional.pad(x, (0, 0, pool_before, pool_after)),
        )
        return y if mask is None else y * mask[:, :, None].to(y.dtype)

    def initial_state(self, batch: int) -> ConvolutionState:
        """Return the state before the first position of `batch` sequences."""
        weight = self.bottleneck.weight
        inner, d_in = weight.shape
        return ConvolutionState(
            weight.new_zeros(batch, max(WIDTHS) - 1, inner),
            weight.new_zeros(batch, _POOL - 1, d_in),
        )

    def extend(
        self, x: Float[Tensor, "b l e"], state: ConvolutionState
    ) -> tuple[Float[Tensor, "b l m"], ConvolutionState]:
        """Go on with sequences; equal to `forward` on all of them, if causal.

        Raises:
            ValueError: The layer is not causal.
        """
        if not self.causal:
            raise ValueError("convolutions that look ahead cannot go on as positions come")
        inner = torch.cat([state.inner, self.bottleneck(x)], 1)
        pool = torch.cat([state.pool, x], 1)
        y = self._combined(x, inner, pool)
        # Copies: a view would keep all of x in memory.
        return y, ConvolutionState(
            inner[:, 1 - max(WIDTHS) :].clone(), pool[:, 1 - _POOL :].clone()
        )

    def _around(self, width: int) -> tuple[int, int]:
        return (width - 1, 0) if self.causal else (width // 2, (width - 1) // 2)

    def _combined(self, x: Tensor, inner: Tensor, pool: Tensor) -> Tensor:
        """Return the output where the inputs come with as many positions around as they need."""
        longest = self._around(max(WIDTHS))
        channels_first = inner.transpose(1, 2)
        found = []
        for layer, width in zip(self.convolutions, WIDTHS, strict=True):
            own = self._around(width)
            first = longest[0] - own[0]
            length = x.shape[1] + width - 1
            found.append(layer(channels_first[:, :, first : first + length]))
        largest = functional.max_pool1d(pool.transpose(1, 2), _POOL, stride=1)
        branches = torch.cat([*found, self.pooled(largest.transpose(1, 2)).transpose(1, 2)], 1)
        y: Tensor = self.shortcut(x) + functional.relu(self.norm(branches.transpose(1, 2)))
        return y


def _convolution(n_in: int, n_out: int, width: int, generator: Generator | None) -> nn.Conv1d:
    layer = allocated(nn.Conv1d(n_in, n_out, width, bias=False, device="meta"))
    uniform_(layer.weight, 1 / math.sqrt(n_in * width), generator)
    return layer
