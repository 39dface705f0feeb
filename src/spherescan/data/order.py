"""The order of samples: a pure function of seed, epoch and position.

No generator runs along, so there is no state to save, and any batch of a run can be recomputed
alone, in any process.
"""

import functools
import hashlib
import struct
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_ROUNDS = 8
_BLOCK = 4096


def sample_order(
    start: int, count: int, *, n: int, seed: int, shuffle: bool = True
) -> NDArray[np.int64]:
    """Return which data samples are samples `start` to `start + count` of a run.

    Sample g of the run is sample permutation(seed, g // n)[g % n] of the data: every epoch shows
    each of the n samples once, in an order of its own.

    Args:
        start: First run sample.
        count: Number of run samples.
        n: Number of samples in the data, at least 1.
        seed: Seed of the run.
        shuffle: Whether to permute; otherwise every epoch is in the order of the data.

    Example:
        >>> sorted(sample_order(10, 5, n=5, seed=0).tolist())
        [0, 1, 2, 3, 4]
    """
    run = np.arange(start, start + count, dtype=np.int64)
    epochs, positions = np.divmod(run, n)
    if not shuffle:
        return positions
    order = np.empty(count, dtype=np.int64)
    for epoch in map(int, np.unique(epochs)):
        here = epochs == epoch
        order[here] = _permuted_in_turn(positions[here], n=n, seed=seed, epoch=epoch)
    return order


def sample_order_by_shard(
    start: int, count: int, *, sizes: Sequence[int], seed: int
) -> NDArray[np.int64]:
    """Return which data samples are samples `start` to `start + count` of a run, shard by shard.

    In epoch e the shards follow each other in the order permutation(seed/"shards", e), and the
    samples of shard s in the order permutation(seed/"shard"/s, e): neighbouring batches read the
    same one or two shards. Every epoch shows every sample once.

    Args:
        start: First run sample.
        count: Number of run samples.
        sizes: Samples of each shard; those of the first shard are the first samples of the data.
        seed: Seed of the run.

    Example:
        >>> sorted(sample_order_by_shard(5, 5, sizes=[2, 0, 3], seed=0).tolist())
        [0, 1, 2, 3, 4]
    """
    lengths = np.asarray(sizes, dtype=np.int64)
    firsts = np.cumsum(lengths) - lengths
    run = np.arange(start, start + count, dtype=np.int64)
    epochs, positions = np.divmod(run, lengths.sum())
    order = np.empty(count, dtype=np.int64)
    for epoch in map(int, np.unique(epochs)):
        shards = _permuted_in_turn(
            np.arange(len(lengths)), n=len(lengths), seed=derived_seed(seed, "shards"), epoch=epoch
        )
        ends = np.cumsum(lengths[shards])
        here = np.flatnonzero(epochs == epoch)
        places = np.searchsorted(ends, positions[here], side="right")
        for place in map(int, np.unique(places)):
            shard = int(shards[place])
            rows = here[places == place]
            within = positions[rows] - (ends[place] - lengths[shard])
            order[rows] = firsts[shard] + _permuted_in_turn(
                within,
                n=int(lengths[shard]),
                seed=derived_seed(seed, "shard", shard),
                epoch=epoch,
            )
    return order


def permuted(positions: NDArray[np.int64], *, n: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Map positions of 0..n-1 through a keyed permutation of 0..n-1.

    A balanced Feistel network permutes the smallest even power of two that holds n; a result
    outside 0..n-1 is sent through again until it falls inside (cycle walking), which is still a
    permutation. The power of two is below 4 n, so few passes are needed.

    References:
        Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002, section 3 (cycle walking).
    """
    half_bits = max(1, ((n - 1).bit_length() + 1) // 2)
    keys = _round_keys(seed, epoch)
    out = _feistel(positions.astype(np.uint64), half_bits, keys)
    outside = out >= n
    while outside.any():
        out[outside] = _feistel(out[outside], half_bits, keys)
        outside = out >= n
    return out.astype(np.int64)


def _permuted_in_turn(
    positions: NDArray[np.int64], *, n: int, seed: int, epoch: int
) -> NDArray[np.int64]:
    """Return what `permuted` does, for positions that follow each other, at the price of a few.

    A run asks for a few positions at a time and soon for the next ones: they are computed a block
    at a time, which costs little more than a few.
    """
    order = np.empty_like(positions)
    blocks = positions // _BLOCK
    for block in map(int, np.unique(blocks)):
        here = blocks == block
        order[here] = _block(block, n, seed, epoch)[positions[here] - block * _BLOCK]
    return order


@functools.lru_cache(maxsize=16)
def _block(block: int, n: int, seed: int, epoch: int) -> NDArray[np.int64]:
    positions = np.arange(block * _BLOCK, min((block + 1) * _BLOCK, n), dtype=np.int64)
    return permuted(positions, n=n, seed=seed, epoch=epoch)


def derived_seed(seed: int, *purpose: int | str) -> int:
    """Return a 63-bit seed for one purpose, independent of those for all others.

    Example:
        >>> derived_seed(1, "noise", 3) != derived_seed(1, "noise", 4)
        True
    """
    text = "/".join(["spherescan", str(seed), *map(str, purpose)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def _round_keys(seed: int, epoch: int) -> tuple[int, ...]:
    text = f"spherescan/order/1/{seed}/{epoch}"
    digest = hashlib.blake2b(text.encode(), digest_size=8 * _ROUNDS).digest()
    return struct.unpack(f"<{_ROUNDS}Q", digest)


def _feistel(
    values: NDArray[np.uint64], half_bits: int, keys: tuple[int, ...]
) -> NDArray[np.uint64]:
    low_mask = np.uint64((1 << half_bits) - 1)
    shift = np.uint64(half_bits)
    left, right = values >> shift, values & low_mask
    for key in keys:
        left, right = right, left ^ (_mix(right ^ np.uint64(key)) & low_mask)
    return (left << shift) | right


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Spread every input bit over the word (the finaliser of SplitMix64; Steele et al., 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
