"""MiniRocket: how often 84 fixed kernels exceed thresholds taken from the data.

Letters: b batch, l length, c channels, k the 84 kernels, f features.
"""

import itertools
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor, nn

from spherescan.features.kernels import (
    PIECE_BYTES,
    TAPS,
    channel_sums,
    expect_ends,
    longest_dilation_exponent,
    pieces,
    random_channels,
    taps,
)
from spherescan.ops import native_fixed

# A kernel has the weight 2 at three of nine places and -1 at the others.
KERNELS = tuple(itertools.combinations(range(TAPS), 3))
_MAX_DILATIONS = 32
_GOLDEN = (5**0.5 + 1) / 2


class MiniRocket(nn.Module):
    """Proportions of positive values of dilated convolutions with two-valued kernels.

        f = mean over t of [ (w * x)(t) > bias ],   w in {-1, 2}^9 with three twos

    Each kernel is used at several dilations, and at each with several biases: quantiles of its
    own output on a training series. Every second pair of kernel and dilation looks only where the
    kernel lies wholly within the series, the others pad with zeros.

    Args:
        n_channels: Channels of a series.
        length: Length of the longest training series; it sets the dilations.
        n_features: About how many features; a multiple of 84 is made.
        generator: Source of the choice of channels.

    Raises:
        ValueError: Sizes below 1, or fewer than 84 features.

    Notes:
        Where the authors' program keeps series of one length, here positions beyond the end of a
        shorter series count for nothing, and where a kernel fits nowhere within a series all its
        positions are used, padded.

    References:
        Dempster, Schmidt, Webb, "MiniRocket: A Very Fast (Almost) Deterministic Transform for Time
        Series Classification", 2021, arXiv:2012.08791.

    Example:
        >>> import torch
        >>> generator = torch.Generator().manual_seed(0)
        >>> rocket = MiniRocket(1, 50, n_features=840, generator=generator)
        >>> x = torch.randn(4, 50, 1, generator=generator)
        >>> mask = torch.ones(4, 50, dtype=torch.bool)
        >>> rocket.fit(x, mask, generator=generator)
        >>> rocket(x, mask).shape
        torch.Size([4, 840])
    """

    def __init__(
        self, n_channels: int, length: int, *, n_features: int = 5040, generator: Generator
    ) -> None:
        super().__init__()
        if n_channels < 1 or length < 1:
            raise ValueError(f"got {n_channels} channels and length {length}; both must be >= 1")
        if n_features < len(KERNELS):
            raise ValueError(f"got {n_features} features; there are at least {len(KERNELS)}")
        self.dilations, self.counts = _dilations(length, n_features // len(KERNELS))
        rows = len(self.dilations) * len(KERNELS)
        channels, n_summed = random_channels(rows, n_channels, generator=generator)
        shape = (len(self.dilations), len(KERNELS))
        self.register_buffer("channels", channels.reshape(*shape, -1))
        self.register_buffer("n_summed", n_summed.reshape(shape))
        n_features = len(KERNELS) * sum(self.counts)
        self.register_buffer("biases", torch.zeros(n_features, dtype=torch.float32))
        self.channels: Tensor
        self.n_summed: Tensor
        self.biases: Tensor

    @property
    def n_features(self) -> int:
        """How many features there are."""
        return len(self.biases)

    def fit(
        self, x: Float[Tensor, "b l c"], mask: Bool[Tensor, "b l"], *, generator: Generator
    ) -> None:
        """Take the biases from training series, drawn at random.

        Args:
            x: Series; what is behind the end of one does not matter.
            mask: True on real positions, which come first, at least one in each series.
            generator: Source of the series.

        Raises:
            ValueError: A mask that does not say where series end.
        """
        expect_ends(x, mask)
        at_once = max(1, PIECE_BYTES // (4 * x.shape[1]))
        quantiles = torch.arange(1, 1 + self.n_features, dtype=torch.float64) * _GOLDEN % 1
        for biases, at, row in zip(
            self._each(self.biases), self._each(quantiles), range(len(self.counts)), strict=True
        ):
            drawn = torch.randint(len(x), (len(KERNELS),), generator=generator)
            # Each kernel on a series of its own; of long ones a few at a time.
            for some in torch.split(torch.arange(len(KERNELS)), at_once):
                examples, n_summed = drawn[some], self.n_summed[row, some]
                z = x[examples, :, self.channels[row, some, 0]]
                for s in range(1, self.channels.shape[2]):
                    more = n_summed > s
                    z[more] += x[examples[more], :, self.channels[row, some[more], s]]
                real = mask[examples]
                kernels = [KERNELS[k] for k in some.tolist()]
                out = _convolved(z.masked_fill(~real, 0)[None], self.dilations[row], kernels)[0]
                out.masked_fill_(~real, torch.inf)
                biases[some] = _quantiles(out, real.sum(1), at[some])

    def forward(self, x: Float[Tensor, "b l c"], mask: Bool[Tensor, "b l"]) -> Float[Tensor, "b f"]:
        """Return the features of each series, each between 0 and 1.

        Args:
            x: Series, finite.
            mask: True on real positions, which come first, at least one in each series.

        Raises:
            ValueError: A mask that does not say where series end.
        """
        expect_ends(x, mask)
        if native_fixed.has_kernel(x, self.biases):
            return self._by_kernel(x, mask)
        found = [
            self._features(part, real) for part, real in pieces(x, mask, n_outputs=len(KERNELS))
        ]
        return torch.cat(found) if found else x.new_zeros(0, self.n_features)

    def _by_kernel(self, x: Tensor, mask: Tensor) -> Tensor:
        features = x.new_empty(len(x), self.n_features)
        x, lengths, at = x.transpose(1, 2).contiguous(), mask.sum(1), 0
        for row, biases in enumerate(self._each(self.biases)):
            native_fixed.minirocket(
                x,
                lengths,
                self.channels[row],
                self.n_summed[row],
                biases,
                dilation=self.dilations[row],
                odd=row % 2 == 1,
                out=features[:, at : at + biases.numel()],
            )
            at += biases.numel()
        return features

    def _each(self, values: Float[Tensor, " f"]) -> list[Float[Tensor, "k q"]]:
        """Return values of all biases for each dilation, a view."""
        sizes = [count * len(KERNELS) for count in self.counts]
        return [part.view(len(KERNELS), -1) for part in torch.split(values, sizes)]

    def _features(self, x: Tensor, mask: Tensor) -> Tensor:
        features = []
        padded_of = torch.arange(len(KERNELS)) % 2
        for row, biases in enumerate(self._each(self.biases)):
            dilation = self.dilations[row]
            z = x  # of one channel: then all kernels see the same taps
            if x.shape[1] > 1:
                z = channel_sums(x, self.channels[row], self.n_summed[row])
            out = _convolved(z, dilation, KERNELS)
            inner = _inner(mask, (TAPS // 2) * dilation)
            # Every second kernel sees all positions; which half changes with the dilation.
            seen = torch.stack([mask, inner], 1)[:, (row % 2 + padded_of) % 2]
            total = seen.sum(2).float()
            out.masked_fill_(~seen, -torch.inf)
            above = [(out > b[:, None]).sum(2, dtype=torch.int32) / total for b in biases.T]
            features.append(torch.stack(above, 2).flatten(1))
        return torch.cat(features, 1)


def _convolved(
    z: Float[Tensor, "b k l"], dilation: int, kernels: Sequence[tuple[int, ...]]
) -> Float[Tensor, "b n l"]:
    """Return 3 times the sum of three taps less that of all, for each of n kernels.

    Args:
        z: What each kernel sees, or what all of them see.
        dilation: Distance between taps.
        kernels: Those three taps of each.
    """
    seen = taps(z, dilation)
    total = sum(seen[1:], start=seen[0])
    if z.shape[1] == 1:
        each, twos = torch.cat(seen, 1), torch.tensor(kernels)
        picked = each[:, twos[:, 0]] + each[:, twos[:, 1]] + each[:, twos[:, 2]]
    else:
        picked = torch.stack(
            [seen[i][:, k] + seen[j][:, k] + seen[m][:, k] for k, (i, j, m) in enumerate(kernels)],
            dim=1,
        )
    return 3 * picked - total


def _dilations(length: int, per_kernel: int) -> tuple[list[int], list[int]]:
    """Return the dilations, and how many biases each kernel has at each."""
    n_steps = min(per_kernel, _MAX_DILATIONS)
    steps = torch.linspace(0, longest_dilation_exponent(length), n_steps, dtype=torch.float64)
    found, times = torch.unique((2**steps).long(), return_counts=True)
    counts = (times * (per_kernel / n_steps)).long()
    for extra in range(per_kernel - int(counts.sum())):
        counts[extra % len(counts)] += 1
    return found.tolist(), counts.tolist()


def _quantiles(
    values: Float[Tensor, "k l"], lengths: Int[Tensor, " k"], at: Float[Tensor, "k q"]
) -> Float[Tensor, "k q"]:
    """Return quantiles of each row, between neighbours on a line.

    Args:
        values: Infinite behind the length of each.
        lengths: How many values there are.
        at: Which quantiles.
    """
    ordered = torch.from_numpy(np.sort(values.numpy()))  # many times as fast as torch
    place = at * (lengths[:, None] - 1)
    below, above = (ordered.gather(1, p.long()).double() for p in (place, place.ceil()))
    return below.lerp(above, place - place.floor()).to(values.dtype)


def _inner(mask: Bool[Tensor, "b l"], reach: int) -> Bool[Tensor, "b l"]:
    """Return where a kernel lies wholly within a series; everywhere where that is nowhere."""
    at = torch.arange(mask.shape[1], device=mask.device)
    inner = (at >= reach) & (at < mask.sum(1, keepdim=True) - reach)
    return torch.where(inner.any(1, keepdim=True), inner, mask)
