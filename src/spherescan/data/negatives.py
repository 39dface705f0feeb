"""Sequences that are wrong on purpose, for losses that tell real ones from them.

Each works on what enters the first block, so that it serves tokens and series alike.

Letters: b batch, l length, m width.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor

# Few enough that a piece still looks real inside, many enough that their order matters.
_SEGMENTS = 4


def wrong_label(
    target: Int[Tensor, " b"], *, n_classes: int, generator: Generator
) -> Int[Tensor, " b"]:
    """Return for each sequence a class that is not its own, drawn evenly from the others.

    References:
        Hinton, "The Forward-Forward Algorithm", 2022, arXiv:2212.13345, section 3.3.
    """
    shift = torch.randint(1, n_classes, target.shape, generator=generator)
    return (target + shift) % n_classes


def shuffled_segments(
    x: Float[Tensor, "b l m"], mask: Bool[Tensor, "b l"], *, generator: Generator
) -> Float[Tensor, "b l m"]:
    """Cut each sequence into four pieces and put them together in another order.

    The pieces have lengths that differ by one at most; padding stays where it is. A sequence of
    one position has no other order and stays as it is.
    """
    index = torch.arange(x.shape[1]).repeat(x.shape[0], 1)
    for row, length in enumerate(mask.sum(1).tolist()):
        pieces = list(torch.arange(length).tensor_split(min(_SEGMENTS, length)))
        order = torch.randperm(len(pieces), generator=generator).tolist()
        if order == sorted(order):
            order = order[1:] + order[:1]
        index[row, :length] = torch.cat([pieces[i] for i in order])
    return x.gather(1, index[:, :, None].expand_as(x))


def time_shift(
    x: Float[Tensor, "b l m"], mask: Bool[Tensor, "b l"], *, generator: Generator
) -> Float[Tensor, "b l m"]:
    """Rotate each sequence in time by a random part of its length, a quarter at least.

    What was its end now comes before its beginning; padding stays where it is.
    """
    length = mask.sum(1)
    part = 0.25 + 0.5 * torch.rand(x.shape[0], generator=generator)
    shift = (part * length).long().clamp(min=1)
    position = torch.arange(x.shape[1]).expand(x.shape[:2])
    rotated = (position + shift[:, None]) % length[:, None].clamp(min=1)
    index = torch.where(mask, rotated, position)
    return x.gather(1, index[:, :, None].expand_as(x))


def rust_trainer_negative(
    x: Float[Tensor, "b l m"], mask: Bool[Tensor, "b l"], *, generator: Generator | None = None
) -> Float[Tensor, "b l m"]:
    """Return the negative of rust_trainer 0.1.4: one step late, every second sign turned.

        x[(t - 1) mod l, i] * (+1 if t + i is even else -1)

    Args:
        x: What enters a block.
        mask: True on real positions; l counts them, and padding stays where it is.
        generator: Not used: nothing is drawn.
    """
    del generator
    parity = torch.arange(x.shape[1])[:, None] + torch.arange(x.shape[2])
    position = torch.arange(x.shape[1]).expand(x.shape[:2])
    before = (position - 1) % mask.sum(1, keepdim=True).clamp(min=1)
    index = torch.where(mask, before, position)
    late = x.gather(1, index[:, :, None].expand_as(x))
    return late * (1 - 2 * (parity % 2)).to(x.dtype)
