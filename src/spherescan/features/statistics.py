"""Level, spread and extremes of each channel.

Letters: b batch, l length, c channels, f features.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

N_STATISTICS = 4  # of each channel
# A feature that is the same for all training series says nothing. Features are shares, roots of
# counts, and values in units of a channel's deviation; what differs by less than this is rounding
# of the data, such as the mean of series that were normalised one by one.
LEAST_DEVIATION = 1e-2
# The square root of the smallest normal number, and some room.
_LEAST_UNIT = 1e-140
# Of the largest absolute value of a channel; a second of a time since 1970 is far above.
_ROUNDING = 1e-12
# A channel that never moves has no spread to take the logarithm of.
_NO_SPREAD = 1e-6


def channel_statistics(
    x: Float[Tensor, "b l c"], mask: Bool[Tensor, "b l"]
) -> Float[Tensor, "b f"]:
    """Return mean, logarithm of the standard deviation, largest and smallest value.

    Args:
        x: Series.
        mask: True on real positions, at least one in each series.

    Returns:
        Four features for each channel.
    """
    real = mask[:, :, None]
    n = real.sum(1)
    mean = (x * real).sum(1) / n
    variance = ((x - mean[:, None]) ** 2 * real).sum(1) / n
    return torch.cat(
        [
            mean,
            _logarithm(variance),
            x.masked_fill(~real, -math.inf).amax(1),
            x.masked_fill(~real, math.inf).amin(1),
        ],
        1,
    )


def unit_of(values: Float[Tensor, "n c"]) -> Float[Tensor, " c"]:
    """Return the standard deviation of each channel in float64, by which it is divided.

    Nobody knows by how much a channel may move that never does, but for rounding: that of one is
    its size, and 1 where it always is 0.
    """
    wide = values.double()
    deviation = wide.std(0, correction=0)
    if not bool((deviation >= _LEAST_UNIT).all()):
        # Squares of values so small have lost their digits.
        apart = (wide - wide.mean(0)).abs()
        largest = apart.amax(0).clamp(min=torch.finfo(torch.float64).tiny)
        scaled = largest * (apart / largest).square().mean(0).sqrt()
        deviation = torch.where(deviation >= _LEAST_UNIT, deviation, scaled)
    # Of equal values too it is rarely 0: their mean is rounded.
    low, high = wide.aminmax(dim=0)
    size = torch.maximum(low.abs(), high.abs())
    least = torch.finfo(torch.float64).tiny
    unit = torch.where(high - low > (_ROUNDING * size).clamp(min=least), deviation, size)
    return torch.where(unit >= least, unit, 1.0)


@dataclass(frozen=True, slots=True, eq=False)
class RunningStatistics:
    """Hold what `channel_statistics` needs of a series so far.

    Attributes:
        n: Positions.
        mean: Of each channel.
        squares: Sums of squared differences from the mean.
        largest: Value of each channel.
        smallest: Value of each channel.

    References:
        Chan, Golub, LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing Sample
        Variances", 1979.

    Example:
        >>> x = torch.tensor([[0.0], [2.0], [4.0]], dtype=torch.float64)
        >>> whole = channel_statistics(x[None], torch.ones(1, 3) > 0)
        >>> parts = RunningStatistics.of_nothing(1).extended(x[:1]).extended(x[1:])
        >>> torch.allclose(parts.values(), whole)
        True
    """

    n: int
    mean: Float[Tensor, " c"]
    squares: Float[Tensor, " c"]
    largest: Float[Tensor, " c"]
    smallest: Float[Tensor, " c"]

    @classmethod
    def of_nothing(cls, n_channels: int) -> "RunningStatistics":
        """Begin a series."""
        zeros = torch.zeros(n_channels, dtype=torch.float64)
        return cls(0, zeros, zeros, zeros - math.inf, zeros + math.inf)

    def extended(self, x: Float[Tensor, "l c"]) -> "RunningStatistics":
        """Go on with a series."""
        if not len(x):
            return self
        n, mean = self.n + len(x), x.mean(0)
        apart = mean - self.mean
        return RunningStatistics(
            n,
            self.mean + apart * (len(x) / n),
            self.squares + (x - mean).square().sum(0) + apart.square() * (self.n * len(x) / n),
            torch.maximum(self.largest, x.amax(0)),
            torch.minimum(self.smallest, x.amin(0)),
        )

    def tensors(self) -> dict[str, Tensor]:
        """Return all but the number of positions, by name."""
        return {
            "mean": self.mean,
            "squares": self.squares,
            "largest": self.largest,
            "smallest": self.smallest,
        }

    def values(self) -> Float[Tensor, "1 f"]:
        """Return the statistics of at least one position."""
        spread = _logarithm(self.squares / self.n)
        return torch.cat([self.mean, spread, self.largest, self.smallest])[None]


def _logarithm(variance: Tensor) -> Tensor:
    return (variance.sqrt() + _NO_SPREAD).log()
