"""From real-valued series to the residual stream.

Letters: b batch, l length, c series channels, m model width.
"""

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

from spherescan.nn.init import linear_layer


class SeriesEmbedding(nn.Module):
    """Standardise each channel, then project onto the model width.

        linear((x - mean) / std)

    The statistics belong to the training data and travel with the weights.

    Args:
        n_channels: Channels c of the series.
        d_model: Width of the output.
        generator: Source of the initial weights.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, n_channels: int, d_model: int, *, generator: Generator | None = None
    ) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(n_channels))
        self.register_buffer("std", torch.ones(n_channels))
        self.linear = linear_layer(n_channels, d_model, bias=True, generator=generator)

    def set_statistics(self, mean: Float[Tensor, " c"], std: Float[Tensor, " c"]) -> None:
        """Set what is subtracted and divided by.

        Raises:
            ValueError: A standard deviation that is not positive.
        """
        if not bool((std > 0).all()):
            raise ValueError(f"std is {std.tolist()}; every channel needs a positive one")
        self.mean.copy_(mean)
        self.std.copy_(std)

    def forward(self, x: Float[Tensor, "b l c"]) -> Float[Tensor, "b l m"]:
        """Embed each position."""
        embedded: Tensor = self.linear((x - self.mean) / self.std)
        return embedded
