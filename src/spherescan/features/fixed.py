"""All fixed features of a series side by side, scaled so that a ridge treats them fairly.

Letters: b batch, l length, c channels, f features.
"""

import math
from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float
from torch import Generator, Tensor, nn

from spherescan.features.hydra import IN_GROUP, Hydra
from spherescan.features.kernels import TAPS, longest_dilation_exponent
from spherescan.features.minirocket import MiniRocket
from spherescan.features.statistics import (
    LEAST_DEVIATION,
    N_STATISTICS,
    channel_statistics,
    unit_of,
)

_LONGEST = 1 << 40  # of a series; a longer one has no room in a memory


class FixedFeatures(nn.Module):
    """Describe series by convolutions that are never trained.

    Channels are standardised by the training series. Then come MiniRocket on the series and on its
    differences, Hydra, and level, spread and extremes of each channel. Within each of these four
    groups every feature is standardised and divided by the root of the group's size, so that a
    group weighs the same however many features it has.

    Args:
        n_channels: Channels of a series.
        length: Length of the longest training series.
        n_features: About how many features each MiniRocket makes.
        n_groups: Groups of Hydra at each dilation.
        generator: Source of kernels and channels.

    Raises:
        ValueError: Sizes that `MiniRocket` or `Hydra` refuse.

    Example:
        >>> import torch
        >>> generator = torch.Generator().manual_seed(0)
        >>> features = FixedFeatures(1, 40, n_features=84, n_groups=2, generator=generator)
        >>> x, mask = torch.randn(5, 40, 1, generator=generator), torch.ones(5, 40) > 0
        >>> features.fit(x, mask, generator=generator).shape
        torch.Size([5, 268])
    """

    vocab_size = None

    def __init__(
        self,
        n_channels: int,
        length: int,
        *,
        n_features: int = 5040,
        n_groups: int = 64,
        generator: Generator,
    ) -> None:
        super().__init__()
        self.length = length
        self.rocket = MiniRocket(n_channels, length, n_features=n_features, generator=generator)
        self.rocket_of_differences = MiniRocket(
            n_channels, max(1, length - 1), n_features=n_features, generator=generator
        )
        self.hydra = Hydra(n_channels, length, n_groups=n_groups, generator=generator)
        self.sizes = (
            self.rocket.n_features,
            self.rocket_of_differences.n_features,
            self.hydra.n_features,
            N_STATISTICS * n_channels,
        )
        self.register_buffer("channel_mean", torch.zeros(n_channels, dtype=torch.float64))
        self.register_buffer("channel_std", torch.ones(n_channels, dtype=torch.float64))
        self.register_buffer("mean", torch.zeros(sum(self.sizes), dtype=torch.float32))
        self.register_buffer("scale", torch.ones(sum(self.sizes), dtype=torch.float32))
        self.channel_mean: Tensor
        self.channel_std: Tensor
        self.mean: Tensor
        self.scale: Tensor

    @classmethod
    def of_state(cls, state: Mapping[str, Tensor], length: int) -> "FixedFeatures":
        """Make them again from their `state_dict`, which may come from anyone.

        Args:
            state: What was saved.
            length: As they were made with.

        Raises:
            ValueError: Sizes that do not fit each other, a channel that is not there, or a value
                that is not finite.
            KeyError: A tensor is missing.
            RuntimeError: A tensor has another shape than these sizes give it.
        """
        if not 1 <= length <= _LONGEST:
            raise ValueError(f"the length {length} is outside 1..{_LONGEST}")
        axes = {"channel_mean": 1, "rocket.biases": 1, "hydra.weights": 5}
        for name, n_axes in axes.items():
            if state[name].ndim != n_axes or not state[name].numel():
                raise ValueError(f"{name} has the shape {tuple(state[name].shape)}")
        shape = state["hydra.weights"].shape
        n_dilations = 1 + int(longest_dilation_exponent(length))
        # Before anything is made: it takes memory by what these say.
        if shape[:2] != (n_dilations, 2) or shape[3:] != (IN_GROUP, TAPS):
            raise ValueError(f"hydra.weights has the shape {tuple(shape)} for the length {length}")
        n_channels = len(state["channel_mean"])
        made = cls(
            n_channels,
            length,
            n_features=len(state["rocket.biases"]),
            n_groups=2 * state["hydra.weights"].shape[2],
            generator=Generator().manual_seed(0),
        )
        made.load_state_dict(dict(state))
        for name, tensor in made.named_buffers():
            kind = name.rpartition(".")[2]
            low, high = {
                "channels": (0, n_channels - 1),
                "n_summed": (1, min(TAPS, n_channels)),
            }.get(kind, (-math.inf, math.inf))
            if kind == "channel_std":
                low = float(torch.finfo(torch.float64).tiny)
            if not bool(((tensor >= low) & (tensor <= high) & tensor.isfinite()).all()):
                raise ValueError(f"{name} holds a value that it cannot have")
        return made

    @property
    def n_channels(self) -> int:
        """Channels of a series."""
        return len(self.channel_mean)

    @property
    def n_features(self) -> int:
        """How many features there are."""
        return len(self.mean)

    def fit(
        self, x: Float[Tensor, "b l c"], mask: Bool[Tensor, "b l"], *, generator: Generator
    ) -> Float[Tensor, "b f"]:
        """Take statistics and biases from training series; return their features.

        Args:
            x: Finite values; what is behind the end of a series does not matter.
            mask: True on real positions, which come first, at least one in each series.
            generator: Source of the series that MiniRocket's biases come from.
        """
        values = x[mask].double()
        self.channel_mean.copy_(values.mean(0))
        self.channel_std.copy_(unit_of(values))
        series, differences = self._views(x, mask)
        self.rocket.fit(*series, generator=generator)
        self.rocket_of_differences.fit(*differences, generator=generator)
        raw = self._raw(series, differences)
        deviation = raw.double().std(0, correction=0).float()
        size = torch.tensor(self.sizes).repeat_interleave(torch.tensor(self.sizes))
        self.mean.copy_(raw.double().mean(0))
        self.scale.copy_(
            torch.where(deviation > LEAST_DEVIATION, 1 / (deviation * size.float().sqrt()), 0.0)
        )
        return (raw - self.mean) * self.scale

    def forward(self, x: Float[Tensor, "b l c"], mask: Bool[Tensor, "b l"]) -> Float[Tensor, "b f"]:
        """Return the features of series; arguments as of `fit`."""
        return (self._raw(*self._views(x, mask)) - self.mean) * self.scale

    def standardised(self, x: Float[Tensor, "*n c"]) -> Float[Tensor, "*n c"]:
        """Take the mean of training away, in units of the deviation.

        In float64: a time in seconds since 1970 has no fractions in float32.
        """
        return (x.double() - self.channel_mean) / self.channel_std

    def _views(
        self, x: Tensor, mask: Tensor
    ) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Return the standardised series and their differences, each with its mask.

        A single position has the difference 0, so that every series has features.
        """
        series = self.standardised(x).float().masked_fill(~mask[:, :, None], 0)
        if x.shape[1] == 1:
            return (series, mask), (torch.zeros_like(series), mask)
        both = mask[:, 1:].clone()
        both[:, 0] = True
        difference = torch.diff(series, dim=1) * mask[:, 1:, None]
        return (series, mask), (difference, both)

    def _raw(
        self, series: tuple[Tensor, Tensor], differences: tuple[Tensor, Tensor]
    ) -> Float[Tensor, "b f"]:
        return torch.cat(
            [
                self.rocket(*series),
                self.rocket_of_differences(*differences),
                self.hydra(*series),
                channel_statistics(*series),
            ],
            1,
        )
