"""What the fixed convolutions share: dilated taps of a ragged batch, and sums of channels.

Everything is computed element by element, so a series has the same features beside any others.

Letters: b batch, c channels, l length, k kernels or groups.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor

TAPS = 9
# Bytes of one tensor of convolution outputs, to stay in the cache; a single series is not cut.
PIECE_BYTES = 8 << 20


def expect_ends(x: Float[Tensor, "b l c"], mask: Tensor) -> None:
    """Check that a mask says where series end; not within a compiled graph, which knows no values.

    Raises:
        ValueError: It has another shape, a series without a real position, or one behind a
            position that is not real.
    """
    if mask.shape != x.shape[:2]:
        raise ValueError(f"mask has the shape {tuple(mask.shape)}; expected {tuple(x.shape[:2])}")
    if torch.compiler.is_compiling():
        return
    if not bool(mask.any(1).all()):
        raise ValueError("the mask leaves a series without a position; leave such series out")
    if bool((mask[:, 1:] & ~mask[:, :-1]).any()):
        raise ValueError("the mask has gaps; the real positions of a series come first")


def channel_sums(
    x: Float[Tensor, "b c l"], channels: Int[Tensor, "k s"], n_channels: Int[Tensor, " k"]
) -> Float[Tensor, "b k l"]:
    """Return for each kernel the sum of its first `n_channels` channels."""
    total = x[:, channels[:, 0]]
    for s in range(1, channels.shape[1]):
        more = n_channels > s
        total[:, more] += x[:, channels[more, s]]
    return total


def random_channels(
    n_kernels: int, n_channels: int, *, generator: Generator
) -> tuple[Int[Tensor, "k s"], Int[Tensor, " k"]]:
    """Draw a set of channels for each kernel: of up to 9, most often of few.

    The size is floor(2^u), u uniform in [0, log2(min(9, channels) + 1)).
    """
    most = min(TAPS, n_channels)
    exponents = torch.rand(n_kernels, generator=generator, dtype=torch.float64)
    sizes = (most + 1) ** exponents
    # Floyd's way to draw a set: no kernel needs a permutation of all channels.
    drawn = torch.empty(n_kernels, most, dtype=torch.long)
    for i, last in enumerate(range(n_channels - most, n_channels)):
        candidate = torch.randint(last + 1, (n_kernels,), generator=generator)
        taken = (drawn[:, :i] == candidate[:, None]).any(1)
        drawn[:, i] = torch.where(taken, last, candidate)
    places = torch.rand(n_kernels, most, generator=generator, dtype=torch.float32)
    return drawn.gather(1, places.argsort(dim=1)), sizes.long().clamp(1, most)


def taps(z: Float[Tensor, "b k l"], dilation: int) -> list[Float[Tensor, "b k l"]]:
    """Return what each of the 9 taps of a centred, zero-padded kernel sees."""
    reach = (TAPS // 2) * dilation
    padded = torch.nn.functional.pad(z, (reach, reach))
    length = z.shape[2]
    return [padded[:, :, j * dilation : j * dilation + length] for j in range(TAPS)]


def pieces(
    x: Float[Tensor, "b l c"], mask: Bool[Tensor, "b l"], *, n_outputs: int
) -> Iterator[tuple[Float[Tensor, "b c l"], Bool[Tensor, "b l"]]]:
    """Cut a batch into parts of which `n_outputs` channels stay small, zero where masked."""
    size = max(1, PIECE_BYTES // (4 * n_outputs * x.shape[1]))
    for start in range(0, len(x), size):
        part, real = x[start : start + size], mask[start : start + size]
        yield part.masked_fill(~real[:, :, None], 0).transpose(1, 2).contiguous(), real


def longest_dilation_exponent(length: int) -> float:
    """Return log2 of the dilation with which a kernel just fits into a series."""
    return float(torch.log2(torch.tensor(max(1.0, (length - 1) / (TAPS - 1)), dtype=torch.float64)))
