"""The norm of the residual stream.

Letters: m model width.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from spherescan.ops import add_rms_norm

# Of the published implementation.
EPSILON = 1e-5


class ResidualNorm(nn.Module):
    """Add an update to the residual stream, and normalise the sum by its root mean square.

    Args:
        d_model: Width of the stream.
        for_projection: Whether a projection alone reads the norm: under autocast it is then made
            in the type that the projection would round it to.
    """

    def __init__(self, d_model: int, *, for_projection: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(d_model))
        self.for_projection = for_projection

    def forward(
        self, x: Float[Tensor, "*batch m"], update: Float[Tensor, "*batch m"] | None = None
    ) -> tuple[Float[Tensor, "*batch m"], Float[Tensor, "*batch m"]]:
        """Return the norm of the sum, and the sum.

        Args:
            x: Residual stream.
            update: What is added to it; nothing when missing.
        """
        short = (
            self.for_projection
            and x.dtype == torch.float32
            and x.device.type == "cpu"
            and torch.is_autocast_enabled("cpu")
        )
        dtype = torch.get_autocast_dtype("cpu") if short else None
        return add_rms_norm(x, update, self.weight, eps=EPSILON, dtype=dtype)
