"""The parts of the layout of rust_trainer 0.1.4 that no other model of ours has.

No norm in front of a mixer, a final LayerNorm without weights, no projection, and every parameter,
A_log and D included, drawn from N(0, 0.02^2). Kept to reproduce that program; docs/learning.md says
what it costs.

Letters: m model width.
"""

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn
from torch.nn import functional

_STD = 0.02
_EPS = 1e-5


class ResidualSum(nn.Module):
    """Add an update to the residual stream and show the mixer the sum itself."""

    def forward(
        self, x: Float[Tensor, "*batch m"], update: Float[Tensor, "*batch m"] | None = None
    ) -> tuple[Float[Tensor, "*batch m"], Float[Tensor, "*batch m"]]:
        """Return the sum twice: as what is normalised elsewhere, and as the stream."""
        x = x if update is None else x + update
        return x, x


class ResidualLayerNorm(nn.Module):
    """Add an update to the residual stream, and normalise the sum without a learned scale."""

    def forward(
        self, x: Float[Tensor, "*batch m"], update: Float[Tensor, "*batch m"] | None = None
    ) -> tuple[Float[Tensor, "*batch m"], Float[Tensor, "*batch m"]]:
        """Return the LayerNorm of the sum, and the sum."""
        x = x if update is None else x + update
        return functional.layer_norm(x, x.shape[-1:], eps=_EPS), x


def draw_all_normal(module: nn.Module, *, generator: Generator | None = None) -> None:
    """Draw every parameter again from N(0, 0.02^2)."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=_STD, generator=generator)
