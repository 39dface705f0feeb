"""Random shapes and tensors for the properties."""

from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor


@dataclass(frozen=True, slots=True)
class ScanCase:
    """Arguments of one call of the selective scan."""

    arguments: dict[str, Tensor]
    options: dict[str, object]

    def call(self, scan, dtype=torch.float64, *, requires_grad=False):
        """Call `scan`; return the inputs that carry gradients, the output and the final state."""
        inputs = {
            name: value.to(dtype).requires_grad_(requires_grad)
            for name, value in self.arguments.items()
        }
        y, state = scan(**inputs, **self.options)
        return inputs, y, state


# Sizes that break vectorised code: nothing, one, and either side of a multiple of a vector width.
SIZES = st.sampled_from([1, 2, 3, 5, 8, 9, 17])


# No document but the first starts, few do, many do.
RESET_RATES = st.sampled_from([None, 0.02, 0.3])

# What the kernels treat apart: few channels whose states lie in lanes, a tail of
# channels, several groups of channels; one tile of states, several, every remainder; one position,
# a chunk, the ones around it, several.
KERNEL_BATCHES = st.sampled_from([1, 1, 2, 3, 5, 17])
KERNEL_LENGTHS = st.sampled_from([1, 2, 3, 15, 16, 17, 31, 33, 40])
KERNEL_CHANNELS = st.sampled_from([1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 48, 65, 130, 300])
KERNEL_STATES = st.sampled_from([1, 2, 3, 4, 7, 8, 15, 16, 24, 31, 64])
MOST_ELEMENTS = 150_000


def scan_case(
    batch: int,
    length: int,
    d_inner: int,
    d_state: int,
    *,
    seed: int = 0,
    softplus: bool = True,
    biased: bool = True,
    gated: bool = True,
    reset_rate: float | None = 0.02,
) -> ScanCase:
    """Return arguments of the selective scan."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    arguments = {
        "u": normal(batch, length, d_inner),
        "delta": normal(batch, length, d_inner),
        "A": -torch.exp(normal(d_inner, d_state)),
        "B": normal(batch, length, d_state),
        "C": normal(batch, length, d_state),
        "D": normal(d_inner),
        "state": normal(batch, d_inner, d_state),
    }
    if not softplus:
        arguments["delta"] = arguments["delta"].abs()
    if biased:
        arguments["delta_bias"] = normal(d_inner).abs()
    if gated:
        arguments["gate"] = normal(batch, length, d_inner)
    reset = _resets(batch, length, reset_rate, generator)
    return ScanCase(arguments, {"delta_softplus": softplus, "reset": reset})


def conv_case(
    batch: int,
    length: int,
    d_inner: int,
    width: int,
    *,
    seed: int = 0,
    biased: bool = True,
    activation: str | None = "silu",
    reset_rate: float | None = 0.02,
) -> ScanCase:
    """Return arguments of the causal convolution."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    arguments = {
        "x": normal(batch, length, d_inner),
        "weight": normal(d_inner, width),
        "state": normal(batch, d_inner, width - 1),
    }
    if biased:
        arguments["bias"] = normal(d_inner)
    reset = _resets(batch, length, reset_rate, generator)
    return ScanCase(arguments, {"activation": activation, "reset": reset})


def _resets(
    batch: int, length: int, rate: float | None, generator: torch.Generator
) -> Tensor | None:
    return None if rate is None else torch.rand(batch, length, generator=generator) < rate


SEEDS = st.integers(0, 2**31)


def _draw_scan(draw, *sizes: int) -> ScanCase:
    return scan_case(
        *sizes,
        seed=draw(SEEDS),
        softplus=draw(st.booleans()),
        biased=draw(st.booleans()),
        gated=draw(st.booleans()),
        reset_rate=draw(RESET_RATES),
    )


def _draw_conv(draw, *sizes: int) -> ScanCase:
    return conv_case(
        *sizes,
        seed=draw(SEEDS),
        biased=draw(st.booleans()),
        activation=draw(st.sampled_from(["silu", None])),
        reset_rate=draw(RESET_RATES),
    )


@st.composite
def scan_cases(draw) -> ScanCase:
    """Draw every shape and every combination of options of the selective scan."""
    return _draw_scan(
        draw, draw(st.integers(0, 3)), draw(st.integers(0, 12)), draw(SIZES), draw(SIZES)
    )


@st.composite
def kernel_scan_cases(draw) -> ScanCase:
    """Draw shapes around every size at which the native scan changes its way."""
    sizes = st.tuples(KERNEL_BATCHES, KERNEL_LENGTHS, KERNEL_CHANNELS, KERNEL_STATES)
    small = sizes.filter(lambda s: s[0] * s[1] * s[2] * s[3] <= MOST_ELEMENTS)
    return _draw_scan(draw, *draw(small))


@st.composite
def conv_cases(draw) -> ScanCase:
    """Draw every shape and every combination of options of the causal convolution."""
    return _draw_conv(
        draw,
        draw(st.integers(0, 3)),
        draw(st.integers(0, 12)),
        draw(SIZES),
        draw(st.integers(1, 6)),
    )


@st.composite
def kernel_conv_cases(draw) -> ScanCase:
    """Draw shapes around every size at which the native convolution changes its way."""
    return _draw_conv(
        draw,
        draw(st.integers(1, 3)),
        draw(st.sampled_from([1, 2, 3, 31, 32, 33, 70])),
        draw(KERNEL_CHANNELS),
        draw(st.sampled_from([1, 2, 3, 4, 5, 9])),
    )
