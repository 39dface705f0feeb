"""Poolings of a sequence that still grows: what each keeps of the positions so far.

However long the sequence is, that is a few numbers per channel. Sums are kept in float64: a million
float32 values that are added one by one lose digits that `Pooling` of all of them keeps.

Letters: b batch, l length, m model width, h heads, p pooled width.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from spherescan.nn.pooling import AttentionPool, Pooling


class RunningLast(NamedTuple):
    """The last position."""

    value: Float[Tensor, "b m"]


class RunningMean(NamedTuple):
    """The sum over all positions, and how many they are."""

    total: Float[Tensor, "b m"]
    length: Float[Tensor, " b"]


class RunningMax(NamedTuple):
    """The largest value of each channel."""

    value: Float[Tensor, "b m"]


class RunningAttention(NamedTuple):
    """The sums in a softmax over all positions, both divided by exp(top).

        weight_h = sum_t exp(s_ht - top_h),   total_h = sum_t exp(s_ht - top_h) x_t

    A score above all before moves the top and shrinks the two sums, so nothing overflows and no
    score has to be kept.

    References:
        Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018, arXiv:1805.02867,
        algorithm 3; the sum of x_t beside that of the weights is added here.
    """

    top: Float[Tensor, "b h"]
    weight: Float[Tensor, "b h"]
    total: Float[Tensor, "b h m"]


Running = RunningLast | RunningMean | RunningMax | RunningAttention
# What is kept for each kind of a `Pooling`; without one the last position is read out.
RunningPool = dict[str, Running]


def start_pool(
    pool: Pooling | None, *, batch: int, d_model: int, dtype: torch.dtype
) -> RunningPool:
    """Return what is kept before the first position."""
    kinds = ("last",) if pool is None else pool.kinds
    attention = None if pool is None else pool.attention
    zeros = torch.zeros(batch, d_model, dtype=dtype)
    return {kind: _start(kind, zeros, attention) for kind in kinds}


def extend_pool(
    pool: Pooling | None, running: RunningPool, x: Float[Tensor, "b l m"]
) -> RunningPool:
    """Add positions, at least one."""
    attention = None if pool is None else pool.attention
    return {kind: _extend(kept, x, attention) for kind, kept in running.items()}


def extend_pool_by_one(
    pool: Pooling | None, running: RunningPool, x: Float[Tensor, "b m"]
) -> RunningPool:
    """Add one position: what `extend_pool` does, bit for bit, without sums over a single one."""
    attention = None if pool is None else pool.attention
    return {kind: _extend_by_one(kept, x, attention) for kind, kept in running.items()}


def pooled(running: RunningPool, dtype: torch.dtype) -> Float[Tensor, "b p"]:
    """Return what `Pooling` makes of all positions so far, at least one."""
    return torch.cat([_value(kept).to(dtype) for kept in running.values()], dim=1)


def _start(kind: str, zeros: Float[Tensor, "b m"], attention: AttentionPool | None) -> Running:
    batch, d_model = zeros.shape
    match kind:
        case "last":
            return RunningLast(zeros)
        case "mean":
            return RunningMean(zeros.double(), zeros.new_zeros(batch, dtype=torch.float64))
        case "max":
            return RunningMax(zeros - torch.inf)
        case "attention":
            assert attention is not None
            weight = torch.zeros(batch, attention.query.out_features, dtype=torch.float64)
            total = weight.new_zeros(*weight.shape, d_model)
            return RunningAttention(weight - torch.inf, weight, total)
    raise ValueError(f"the pooling {kind!r} cannot go on as positions come")


def _extend(kept: Running, x: Tensor, attention: AttentionPool | None) -> Running:
    match kept:
        case RunningLast():
            # A view would keep all of x in memory.
            return RunningLast(x[:, -1].clone())
        case RunningMean(total, length):
            return RunningMean(total + x.sum(1, dtype=torch.float64), length + x.shape[1])
        case RunningMax(value):
            return RunningMax(torch.maximum(value, x.amax(1)))
        case RunningAttention():
            assert attention is not None
            scores = attention.query(x)
            top = torch.maximum(kept.top, scores.amax(1))
            weights = torch.exp(scores - top[:, None])
            total = torch.bmm(weights.transpose(1, 2), x.double())
            return _attend(kept, RunningAttention(top, weights.sum(1), total))


def _extend_by_one(
    kept: Running, x: Float[Tensor, "b m"], attention: AttentionPool | None
) -> Running:
    match kept:
        case RunningLast():
            return RunningLast(x.clone())
        case RunningMean(total, length):
            return RunningMean(total + x.double(), length + 1)
        case RunningMax(value):
            return RunningMax(torch.maximum(value, x))
        case RunningAttention():
            assert attention is not None
            scores = functional.linear(x, attention.query.weight).double()
            top = torch.maximum(kept.top, scores)
            weight = torch.exp(scores - top)
            total = weight[:, :, None] * x.double()[:, None]
            return _attend(kept, RunningAttention(top, weight, total))


def _attend(kept: RunningAttention, added: RunningAttention) -> RunningAttention:
    """Add the sums over new positions, whose top is that of all positions so far."""
    shrink = torch.exp(kept.top - added.top)
    return RunningAttention(
        added.top,
        kept.weight * shrink + added.weight,
        kept.total * shrink[:, :, None] + added.total,
    )


def _value(kept: Running) -> Tensor:
    match kept:
        case RunningLast(value) | RunningMax(value):
            return value
        case RunningMean(total, length):
            return total / length[:, None]
        case RunningAttention(_, weight, total):
            return (total / weight[:, :, None]).flatten(1)
