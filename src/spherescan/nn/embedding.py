"""From real-valued series to the residual stream.

Letters: b batch, l length, c series channels, m model width.
"""

import torch
from jaxtyping import Bool, Float
from torch import Generator, Tensor, nn

from spherescan.nn.front_end import ConvolutionState, MultiScaleConvolution
from spherescan.nn.init import linear_layer


class SeriesEmbedding(nn.Module):
    """Standardise each channel, then project onto the model width.

        linear((x - mean) / std)

    The statistics belong to the training data and travel with the weights.

    With convolutions, `MultiScaleConvolution` layers take the place of the projection.

    Args:
        n_channels: Channels c of the series.
        d_model: Width of the output.
        n_convolutions: Layers of convolutions; 0 for the projection.
        causal: Whether the convolutions see only positions before their own.
        generator: Source of the initial weights.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        n_channels: int,
        d_model: int,
        *,
        n_convolutions: int = 0,
        causal: bool = True,
        generator: Generator | None = None,
    ) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(n_channels))
        self.register_buffer("std", torch.ones(n_channels))
        self.linear = (
            linear_layer(n_channels, d_model, bias=True, generator=generator)
            if n_convolutions == 0
            else None
        )
        self.convolutions = nn.ModuleList(
            MultiScaleConvolution(
                n_channels if index == 0 else d_model, d_model, causal=causal, generator=generator
            )
            for index in range(n_convolutions)
        )

    def set_statistics(self, mean: Float[Tensor, " c"], std: Float[Tensor, " c"]) -> None:
        """Set what is subtracted and divided by.

        Raises:
            ValueError: A standard deviation that is not positive.
        """
        if not bool((std > 0).all()):
            raise ValueError(f"std is {std.tolist()}; every channel needs a positive one")
        self.mean.copy_(mean)
        self.std.copy_(std)

    def standardised(self, x: Float[Tensor, "b l c"]) -> Float[Tensor, "b l c"]:
        """Return how many standard deviations values are from the mean of their channel.

        Raises:
            ValueError: Another number of channels, or another number of axes.
        """
        check_channels(x, len(self.mean))
        spreads: Tensor = (x - self.mean) / self.std
        return spreads

    def forward(
        self, x: Float[Tensor, "b l c"], mask: Bool[Tensor, "b l"] | None = None
    ) -> Float[Tensor, "b l m"]:
        """Embed each position.

        Args:
            x: Series.
            mask: True on real positions, which come first; all of them when missing. What is in
                the others is read as 0, so NaN there reaches neither outputs nor gradients.

        Raises:
            ValueError: Another number of channels.
        """
        if mask is not None:
            x = x.masked_fill(mask[:, :, None].logical_not(), 0)
        embedded = self.standardised(x)
        if self.linear is not None:
            embedded = self.linear(embedded)
        for layer in self.convolutions:
            embedded = layer(embedded, mask)
        return embedded

    def initial_state(self, batch: int) -> tuple[ConvolutionState, ...]:
        """Return the state before the first position of `batch` sequences."""
        return tuple(layer.initial_state(batch) for layer in self._layers())

    def extend(
        self, x: Float[Tensor, "b l c"], state: tuple[ConvolutionState, ...]
    ) -> tuple[Float[Tensor, "b l m"], tuple[ConvolutionState, ...]]:
        """Go on with sequences; equal to `forward` on all of them.

        Raises:
            ValueError: Convolutions that look ahead, or another number of channels.
        """
        embedded = self.standardised(x)
        if self.linear is not None:
            embedded = self.linear(embedded)
        after = []
        for layer, before in zip(self._layers(), state, strict=True):
            embedded, kept = layer.extend(embedded, before)
            after.append(kept)
        return embedded, tuple(after)

    def _layers(self) -> list[MultiScaleConvolution]:
        layers: list[MultiScaleConvolution] = []
        for layer in self.convolutions:
            assert isinstance(layer, MultiScaleConvolution)
            layers.append(layer)
        return layers


def check_channels(x: Float[Tensor, "b ..."], n_channels: int) -> None:
    """Refuse series of other channels, which arithmetic might broadcast.

    Raises:
        ValueError: Another number of channels, or another number of axes than (batch, length,
            channels).
    """
    if x.ndim != 3 or x.shape[2] != n_channels:
        raise ValueError(
            f"the series have shape {tuple(x.shape)}; this model reads (batch, length, "
            f"{n_channels}): {n_channels} channels at each position"
        )
