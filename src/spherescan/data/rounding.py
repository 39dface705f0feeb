"""What is left of the differences within a channel when its values become float32.

Letters: l length, c channels.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Differences so much smaller than the values are what is left of computing with float64, and the
# channel is constant.
_ROUNDING = 1e-10
WHERE = ("within a sequence", "over all sequences")


@dataclass(frozen=True, slots=True)
class Rounding:
    """What rounding to float32 changes in each channel, and how much there is to change.

    Both are standard deviations: around the mean of each sequence, or around the mean of all
    sequences where rounding changes a larger part of that.

    Attributes:
        magnitude: Root mean square of the values.
        deviation: Standard deviation of the values.
        lost: Standard deviation of what rounding takes from them; zero for a constant channel.
        where: Which of `WHERE` the two are.
    """

    magnitude: NDArray[np.float64]
    deviation: NDArray[np.float64]
    lost: NDArray[np.float64]
    where: NDArray[np.int64]


class Narrowing:
    """Turn sequences into float32, one by one, and keep account of what is lost."""

    def __init__(self) -> None:
        self._lengths: list[int] = []
        # Of each sequence, for the values of its channels and then for what rounding takes.
        self._means: list[NDArray[np.float64]] = []
        self._squares: list[NDArray[np.float64]] = []

    def narrowed(self, wide: NDArray[np.float64]) -> NDArray[np.float32]:
        """Return values of shape (length, channels) as C-contiguous float32.

        A value that is not finite, or too large, is left for `SeriesTable` to refuse.
        """
        with np.errstate(over="ignore", invalid="ignore"):
            narrow = np.array(wide, dtype=np.float32, order="C")
            both = np.concatenate([wide, wide - narrow], axis=1)
            mean = both.sum(axis=0) / len(both)
            both -= mean
            self._lengths.append(len(both))
            self._means.append(mean)
            self._squares.append(np.einsum("lc,lc->c", both, both))
        return narrow

    def rounding(self) -> Rounding | None:
        """Return what has been lost so far; None without any sequence."""
        if not self._lengths:
            return None
        n_positions = sum(self._lengths)
        share, means = np.array(self._lengths) / n_positions, np.array(self._means)
        with np.errstate(over="ignore", invalid="ignore"):
            mean, within = share @ means, np.sum(self._squares, axis=0) / n_positions
            total = within + share @ (means - mean) ** 2
            magnitude = np.sqrt(total + mean**2)
            values, lost = np.split(np.sqrt([within, total]), 2, axis=1)
            magnitude, _ = np.split(magnitude, 2)
            lost = np.where(values > _ROUNDING * magnitude, lost, 0.0)
        where = np.argmax(lost / np.where(lost > 0, values, 1.0), axis=0)
        channel = np.arange(len(magnitude))
        return Rounding(magnitude, values[where, channel], lost[where, channel], where)
