"""From a sequence of features to one vector.

Letters: b batch, l length, m model width, h heads, p pooled width.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Generator, Tensor, nn

from spherescan.nn.init import linear_layer
from spherescan.ops.argument import expect_shape
from spherescan.ops.mask import check_none_is_empty


def last_pool(x: Float[Tensor, "b l m"], mask: Bool[Tensor, "b l"]) -> Float[Tensor, "b m"]:
    """Take the last real position."""
    last = mask.sum(1) - 1
    return x[torch.arange(x.shape[0], device=x.device), last]


def mean_pool(x: Float[Tensor, "b l m"], mask: Bool[Tensor, "b l"]) -> Float[Tensor, "b m"]:
    """Average over the real positions."""
    kept = mask[:, :, None]
    return torch.where(kept, x, 0).sum(1) / kept.to(x.dtype).sum(1)


def max_pool(x: Float[Tensor, "b l m"], mask: Bool[Tensor, "b l"]) -> Float[Tensor, "b m"]:
    """Take the largest value of each channel over the real positions."""
    return x.masked_fill(~mask[:, :, None], float("-inf")).amax(1)


POOLINGS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "last": last_pool,
    "mean": mean_pool,
    "max": max_pool,
}

POOLING_NAMES = (*POOLINGS, "attention")


class AttentionPool(nn.Module):
    """Average over positions with learned weights, one set for each head.

        a_h = softmax over positions of <query_h, x_t>,   out = concat_h sum_t a_ht x_t

    Queries start at zero: every head begins as the mean.

    Args:
        d_model: Width of the features.
        n_heads: Number of weighted averages.
        generator: Source of the initial weights.
    """

    def __init__(self, d_model: int, *, n_heads: int, generator: Generator | None = None) -> None:
        super().__init__()
        self.query = linear_layer(d_model, n_heads, generator=generator)
        nn.init.zeros_(self.query.weight)

    def forward(self, x: Float[Tensor, "b l m"], mask: Bool[Tensor, "b l"]) -> Float[Tensor, "b p"]:
        """Return one weighted average per head, concatenated."""
        # A weight of 0 is not enough: 0 times NaN is NaN.
        x = torch.where(mask[:, :, None], x, 0)
        scores = self.query(x).masked_fill(~mask[:, :, None], float("-inf"))
        return torch.einsum("blh,blm->bhm", scores.softmax(dim=1), x).flatten(1)


class Pooling(nn.Module):
    """Concatenate one or several poolings of a sequence.

    Args:
        d_model: Width of the features.
        kinds: Names out of last, mean, max, attention.
        n_heads: Heads of the attention pooling.
        generator: Source of the initial weights.

    Raises:
        ValueError: No kind, an unknown one or one given twice.
    """

    def __init__(
        self,
        d_model: int,
        kinds: Sequence[str],
        *,
        n_heads: int = 4,
        generator: Generator | None = None,
    ) -> None:
        super().__init__()
        if not kinds or len(set(kinds)) < len(kinds):
            raise ValueError(f"pooling is {list(kinds)}; give at least one name, each once")
        for kind in kinds:
            if kind not in POOLING_NAMES:
                raise ValueError(
                    f"unknown pooling {kind!r}; choose from {', '.join(POOLING_NAMES)}"
                )
        self.kinds = tuple(kinds)
        self.attention = (
            AttentionPool(d_model, n_heads=n_heads, generator=generator)
            if "attention" in kinds
            else None
        )
        self.dim = sum(d_model * (n_heads if kind == "attention" else 1) for kind in kinds)

    def forward(
        self, x: Float[Tensor, "b l m"], mask: Bool[Tensor, "b l"] | None = None
    ) -> Float[Tensor, "b p"]:
        """Pool the real positions of each sequence.

        Raises:
            ValueError: A mask of another shape. A sequence without a real position; unchecked
                while torch compiles, traces or transforms the model.
        """
        given = mask is not None
        if mask is None:
            mask = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
        expect_shape("mask", mask, x.shape[:2])
        if given or x.shape[1] == 0:
            check_none_is_empty(mask)
        return torch.cat([self._pool(kind, x, mask) for kind in self.kinds], dim=1)

    def _pool(self, kind: str, x: Tensor, mask: Tensor) -> Tensor:
        if kind == "attention":
            assert self.attention is not None
            pooled: Tensor = self.attention(x, mask)
            return pooled
        return POOLINGS[kind](x, mask)
