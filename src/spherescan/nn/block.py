"""One layer of the model: a normalised mixer on the residual stream, in one or both directions.

Letters: b batch, l length, m model width.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor, nn

from spherescan.nn.norm import ResidualNorm
from spherescan.nn.rust_trainer import ResidualSum

# (d_model, generator=...) -> a module like `Mamba`.
MixerFactory = Callable[..., nn.Module]


class Block(nn.Module):
    """Compute what a mixed, normalised view of the sequence adds to the residual stream.

        update = mixer(norm(x))                                              forward only
        update = mixer(norm(x)) + reverse(mixer_backward(reverse(norm(x))))  bidirectional

    The sum x + update is left to the next norm, which reads it anyway.

    Args:
        d_model: Width of the residual stream.
        mixer: Makes a mixer from `(d_model, generator=...)`.
        bidirectional: Whether a second mixer reads each sequence from its end.
        normed: Whether the mixer sees the norm of the residual stream, or the stream itself.
        generator: Source of the initial weights.
    """

    def __init__(
        self,
        d_model: int,
        *,
        mixer: MixerFactory,
        bidirectional: bool = False,
        normed: bool = True,
        generator: Generator | None = None,
    ) -> None:
        super().__init__()
        self.norm = ResidualNorm(d_model, for_projection=True) if normed else ResidualSum()
        self.mixer = mixer(d_model, generator=generator)
        self.mixer_backward = mixer(d_model, generator=generator) if bidirectional else None

    def forward(
        self,
        x: Float[Tensor, "b l m"],
        update: Float[Tensor, "b l m"] | None = None,
        *,
        mask: Bool[Tensor, "b l"] | None = None,
        reset: Bool[Tensor, "b l"] | None = None,
    ) -> tuple[Float[Tensor, "b l m"], Float[Tensor, "b l m"]]:
        """Apply the block.

        Args:
            x: Residual stream.
            update: What the block before this one adds to it; nothing when missing.
            mask: True on real positions, which come first; all of them when missing.
            reset: True where a new document starts.

        Returns:
            The residual stream with the update added, and the update of this block.
        """
        normed, x = self.norm(x, update)
        mixed = self._mix(normed, reset)
        if self.mixer_backward is None:
            return x, mixed
        return x, mixed + self._mix_backward(normed, mask, reset)

    def one_way(
        self,
        x: Float[Tensor, "b l m"],
        *,
        backward: bool,
        mask: Bool[Tensor, "b l"] | None = None,
        reset: Bool[Tensor, "b l"] | None = None,
    ) -> Float[Tensor, "b l m"]:
        """Return what one direction adds to the residual stream, forward or backward.

        Both together are the update of `forward`, whose arguments these are; apart, one can be
        computed again for its backward pass while nothing of the other is held.
        """
        normed = self.norm(x)[0]
        return self._mix_backward(normed, mask, reset) if backward else self._mix(normed, reset)

    def _mix(self, normed: Tensor, reset: Tensor | None) -> Tensor:
        mixed: Tensor = self.mixer(normed, reset=reset)[0]
        return mixed

    def _mix_backward(self, normed: Tensor, mask: Tensor | None, reset: Tensor | None) -> Tensor:
        assert self.mixer_backward is not None
        batch, length = normed.shape[:2]
        index = reversal(length, mask, batch=batch, device=normed.device)
        backward_reset = None if reset is None else reversed_resets(reset, index)
        mixed = self.mixer_backward(_take(normed, index), reset=backward_reset)[0]
        return _take(mixed, index)


def reversal(
    length: int, mask: Tensor | None, *, batch: int, device: Any = None
) -> Int[Tensor, "b l"]:
    """Return the index that reverses the real positions of each sequence and keeps the padding.

    The index is its own inverse.
    """
    position = torch.arange(length, device=device).expand(batch, length)
    if mask is None:
        return length - 1 - position
    n_real = mask.sum(1, keepdim=True)
    return torch.where(position < n_real, n_real - 1 - position, position)


def reversed_resets(reset: Bool[Tensor, "b l"], index: Int[Tensor, "b l"]) -> Bool[Tensor, "b l"]:
    """Return where documents start when read backwards: at the position before a forward start."""
    ends = torch.zeros_like(reset)
    ends[:, :-1] = reset[:, 1:]
    return ends.gather(1, index)


class _Reordered(torch.autograd.Function):
    """Rows in another order, by an index that is its own inverse; so its gradient is itself.

    That of `gather` adds up element by element, which takes longer. Transforms of functions
    (`torch.func`, forward mode) are not for it.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: Tensor) -> Tensor:
        ctx.save_for_backward(rows)
        return x.flatten(0, 1).index_select(0, rows).view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (rows,) = ctx.saved_tensors
        result: Tensor = _Reordered.apply(gradient, rows)  # type: ignore[no-untyped-call]
        return result, None


def _take(x: Float[Tensor, "b l m"], index: Int[Tensor, "b l"]) -> Float[Tensor, "b l m"]:
    """Reorder the positions of each sequence by an index that is its own inverse."""
    batch, length = index.shape
    starts = length * torch.arange(batch, device=index.device)
    result: Tensor = _Reordered.apply(x, (index + starts[:, None]).flatten())  # type: ignore[no-untyped-call]
    return result
