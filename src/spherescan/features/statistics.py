"""Level, spread and extremes of each channel.

Letters: b batch, l length, c channels, f features.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

# A channel that never moves has no spread to take the logarithm of.
_LEAST_DEVIATION = 1e-6


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
    infinity = float("inf")
    return torch.cat(
        [
            mean,
            (variance.sqrt() + _LEAST_DEVIATION).log(),
            x.masked_fill(~real, -infinity).amax(1),
            x.masked_fill(~real, infinity).amin(1),
        ],
        1,
    )
