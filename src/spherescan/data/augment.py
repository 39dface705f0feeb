"""Training series changed in ways that leave their class alone.

Letters: b batch, l length, c channels, k knots.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor

# As much as the same thing differs when it is recorded twice. With and without, on training series:
# experiments/networks.py --variants whole "without augmentation".
SCALE = 0.1
JITTER = 0.05
SPEED = 0.2
CROP = 0.1
_KNOTS = 4


def augmented(
    x: Float[Tensor, "b l c"],
    mask: Bool[Tensor, "b l"],
    deviation: Float[Tensor, " c"],
    *,
    generator: Generator,
) -> Float[Tensor, "b l c"]:
    """Return series read at another speed, cropped, scaled, and with noise, each a little.

    Args:
        x: Series.
        mask: True on real positions, which come first, at least one in each series.
        deviation: Standard deviation of each channel over the training series.
        generator: Source of all changes.

    Returns:
        Series of the same lengths.
    """
    changed = warped(x, mask, generator=generator)
    draw = torch.randn(len(x), 1, x.shape[2], generator=generator, dtype=x.dtype)
    noise = torch.randn(x.shape, generator=generator, dtype=x.dtype)
    return changed * (SCALE * draw).exp() + JITTER * deviation * noise


def windows(
    x: Int[Tensor, "b l"], mask: Bool[Tensor, "b l"], *, longest: int, generator: Generator
) -> tuple[Int[Tensor, "b w"], Bool[Tensor, "b w"]]:
    """Return a part of each sequence of tokens, anywhere in it, and the whole of a short one.

    Args:
        x: Tokens.
        mask: True on real positions, which come first, at least one in each sequence.
        longest: Tokens of a part.
        generator: Source of where parts begin.
    """
    length = x.shape[1]
    if length <= longest:
        return x, mask
    room = (mask.sum(1, keepdim=True) - longest).clamp(min=0)
    begin = (torch.rand(len(x), 1, generator=generator) * (room + 1)).long().clamp(max=room)
    index = begin + torch.arange(longest)
    return x.gather(1, index), mask.gather(1, index)


def warped(
    x: Float[Tensor, "b l c"],
    mask: Bool[Tensor, "b l"],
    *,
    speed: float = SPEED,
    crop: float = CROP,
    generator: Generator,
) -> Float[Tensor, "b l c"]:
    """Return series whose time runs at a speed that changes, from a part of each.

    Position t of the result is the series at a + (b - a) w(t), between two positions linearly; w is
    the integral of a speed that is linear between a few knots, and a and b leave out a part of at
    most `crop`.

    Args:
        x: Series.
        mask: True on real positions, which come first, at least one in each series.
        speed: Standard deviation of the logarithm of the speed at a knot.
        crop: Largest part that is left out.
        generator: Source of speeds and parts.
    """
    batch, length, _ = x.shape
    last = mask.sum(1, keepdim=True).to(x.dtype) - 1
    knots = (speed * torch.randn(batch, 1, _KNOTS, generator=generator, dtype=x.dtype)).exp()
    # Each series has its own stretch of knots: position t of n lies at t / (n - 1) of it.
    share = torch.arange(length, dtype=x.dtype) / last.clamp(min=1)
    place = share.clamp(max=1) * (_KNOTS - 1)
    low = place.long().clamp(max=_KNOTS - 2)
    knots = knots[:, 0]
    near, far = knots.gather(1, low), knots.gather(1, low + 1)
    rate = torch.lerp(near, far, place - low)
    gone = torch.cumsum((rate[:, 1:] + rate[:, :-1]) / 2, 1)
    gone = torch.cat([gone.new_zeros(batch, 1), gone], 1)
    whole = gone.gather(1, last.long())
    left = crop * torch.rand(batch, 1, generator=generator, dtype=x.dtype)
    begin = left * torch.rand(batch, 1, generator=generator, dtype=x.dtype)
    time = last * (begin + (1 - left) * gone / torch.where(whole > 0, whole, 1.0))
    time = torch.minimum(time, last)
    before = time.long()
    after = torch.minimum(before + 1, last.long())
    index = [i[:, :, None].expand_as(x) for i in (before, after)]
    part = (time - before)[:, :, None]
    return torch.lerp(x.gather(1, index[0]), x.gather(1, index[1]), part)
