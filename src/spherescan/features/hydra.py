"""Hydra: competing random convolutions, counted.

Letters: b batch, l length, c channels, g groups, f features.
"""

import torch
from jaxtyping import Bool, Float
from torch import Generator, Tensor, nn

from spherescan.features.kernels import (
    TAPS,
    channel_sums,
    expect_ends,
    longest_dilation_exponent,
    pieces,
    random_channels,
    taps,
)
from spherescan.ops import native_fixed

IN_GROUP = 8


class Hydra(nn.Module):
    """Count in each group of eight random kernels which one responds most, and which least.

    At each position the kernel with the largest response of its group receives that response, and
    the one with the smallest is counted once; a feature is the square root of such a sum. Half of
    the groups look at the series, half at its differences.

    Args:
        n_channels: Channels of a series.
        length: Length of the longest training series; it sets the dilations.
        n_groups: Groups at each dilation; an even number.
        generator: Source of the kernels.

    Raises:
        ValueError: Sizes below 1, or an odd number of groups.

    Notes:
        A response below 0 counts as 0. The choice of channels is that of `MiniRocket`. Positions
        beyond the end of a series shorter than others count for nothing.

    References:
        Dempster, Schmidt, Webb, "Hydra: Competing Convolutional Kernels for Fast and Accurate Time
        Series Classification", 2023, arXiv:2203.13652.

    Example:
        >>> import torch
        >>> generator = torch.Generator().manual_seed(0)
        >>> hydra = Hydra(2, 50, n_groups=4, generator=generator)
        >>> x = torch.randn(3, 50, 2, generator=generator)
        >>> mask = torch.ones(3, 50, dtype=torch.bool)
        >>> hydra(x, mask).shape  # 3 dilations x 4 groups x 8 kernels x 2
        torch.Size([3, 192])
    """

    def __init__(
        self, n_channels: int, length: int, *, n_groups: int = 64, generator: Generator
    ) -> None:
        super().__init__()
        if n_channels < 1 or length < 1 or n_groups < 1:
            raise ValueError(
                f"got {n_channels} channels, length {length}, {n_groups} groups; all must be >= 1"
            )
        if n_groups % 2:
            raise ValueError(f"got {n_groups} groups; half of them see differences: make it even")
        self.dilations = [2**e for e in range(1 + int(longest_dilation_exponent(length)))]
        shape = (len(self.dilations), 2, n_groups // 2)
        n = len(self.dilations) * n_groups
        weights = torch.randn(n, IN_GROUP, TAPS, generator=generator, dtype=torch.float32)
        weights -= weights.mean(2, keepdim=True)
        weights /= weights.abs().sum(2, keepdim=True)
        channels, n_summed = random_channels(n, n_channels, generator=generator)
        self.register_buffer("weights", weights.reshape(*shape, IN_GROUP, TAPS))
        self.register_buffer("channels", channels.reshape(*shape, -1))
        self.register_buffer("n_summed", n_summed.reshape(shape))
        self.weights: Tensor
        self.channels: Tensor
        self.n_summed: Tensor

    @property
    def n_features(self) -> int:
        """How many features there are."""
        return 2 * self.weights.shape[:4].numel()

    def forward(self, x: Float[Tensor, "b l c"], mask: Bool[Tensor, "b l"]) -> Float[Tensor, "b f"]:
        """Return the features of each series, none of them negative.

        Args:
            x: Series, finite.
            mask: True on real positions, which come first, at least one in each series.

        Raises:
            ValueError: A mask that does not say where series end.
        """
        expect_ends(x, mask)
        if native_fixed.has_kernel(x, self.weights):
            return self._by_kernel(x, mask)
        n_outputs = self.weights.shape[2] * IN_GROUP
        found = [self._features(part, real) for part, real in pieces(x, mask, n_outputs=n_outputs)]
        return torch.cat(found) if found else x.new_zeros(0, self.n_features)

    def _by_kernel(self, x: Tensor, mask: Tensor) -> Tensor:
        features = x.new_zeros(
            len(x), *self.weights.shape[:2], 2 * self.weights.shape[2] * IN_GROUP
        )
        x, lengths = x.transpose(1, 2).contiguous(), mask.sum(1)
        views = ((x, lengths), (torch.diff(x, dim=2), (lengths - 1).clamp(min=0)))
        for view, (series, real) in enumerate(views):
            for row, dilation in enumerate(self.dilations if series.numel() else ()):
                native_fixed.hydra(
                    series,
                    real,
                    self.channels[row, view],
                    self.n_summed[row, view],
                    self.weights[row, view],
                    dilation=dilation,
                    out=features[:, row, view],
                )
        return features.flatten(1).sqrt_()

    def _features(self, x: Tensor, mask: Tensor) -> Tensor:
        difference = torch.diff(x, dim=2)
        both = mask[:, 1:]
        views = ((x, mask), (difference * both[:, None], both))
        features = []
        for row, dilation in enumerate(self.dilations):
            for view, (series, real) in enumerate(views):
                out = self._outputs(series, row, view, dilation)
                features.append(_counted(out, real).flatten(1))
        return torch.cat(features, 1).sqrt()

    def _outputs(self, x: Tensor, row: int, view: int, dilation: int) -> Float[Tensor, "b g 8 l"]:
        z = channel_sums(x, self.channels[row, view], self.n_summed[row, view])
        weights = self.weights[row, view]
        out = torch.zeros(len(z), *weights.shape[:2], z.shape[2], dtype=torch.float32)
        for tap, seen in enumerate(taps(z, dilation)):
            out += weights[None, :, :, tap, None] * seen[:, :, None]
        return out


def _counted(out: Float[Tensor, "b g 8 l"], mask: Bool[Tensor, "b l"]) -> Float[Tensor, "b g 8 2"]:
    """Sum the largest responses, and count the smallest, of each kernel over real positions."""
    largest, smallest = out[:, :, 0], out[:, :, 0]
    for kernel in range(1, IN_GROUP):  # max and min with indices take several times as long
        largest = torch.maximum(largest, out[:, :, kernel])
        smallest = torch.minimum(smallest, out[:, :, kernel])
    response = largest.clamp(min=0)
    # Of equal ones the first kernel counts.
    no_largest, no_smallest = (mask[:, None].expand(largest.shape).clone() for _ in range(2))
    found = []
    for kernel in range(IN_GROUP):
        strongest = (out[:, :, kernel] == largest) & no_largest
        weakest = (out[:, :, kernel] == smallest) & no_smallest
        no_largest ^= strongest
        no_smallest ^= weakest
        count = weakest.sum(2, dtype=torch.int32)
        found.append(torch.stack([(response * strongest).sum(2), count.to(response.dtype)], 2))
    return torch.stack(found, 2)
