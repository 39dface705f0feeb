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


@st.composite
def scan_cases(draw) -> ScanCase:
    """Draw every shape and every combination of options of the selective scan."""
    batch = draw(st.integers(0, 3))
    length = draw(st.integers(0, 12))
    d_inner = draw(SIZES)
    d_state = draw(SIZES)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))

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
    softplus = draw(st.booleans())
    if not softplus:
        arguments["delta"] = arguments["delta"].abs()
    if draw(st.booleans()):
        arguments["delta_bias"] = normal(d_inner).abs()
    if draw(st.booleans()):
        arguments["gate"] = normal(batch, length, d_inner)
    reset = torch.rand(batch, length, generator=generator) < 0.3
    return ScanCase(
        arguments,
        {"delta_softplus": softplus, "reset": reset if draw(st.booleans()) else None},
    )


@st.composite
def conv_cases(draw) -> ScanCase:
    """Draw every shape and every combination of options of the causal convolution."""
    batch = draw(st.integers(0, 3))
    length = draw(st.integers(0, 12))
    d_inner = draw(SIZES)
    width = draw(st.integers(1, 6))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    arguments = {
        "x": normal(batch, length, d_inner),
        "weight": normal(d_inner, width),
        "state": normal(batch, d_inner, width - 1),
    }
    if draw(st.booleans()):
        arguments["bias"] = normal(d_inner)
    reset = torch.rand(batch, length, generator=generator) < 0.3
    return ScanCase(
        arguments,
        {
            "activation": draw(st.sampled_from(["silu", None])),
            "reset": reset if draw(st.booleans()) else None,
        },
    )
