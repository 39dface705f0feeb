"""Batches of token windows.

Window i of a text of T tokens holds tokens i L to (i + 1) L: neighbours share one token, so every
transition is trained exactly once per epoch. The last window is shorter and padded.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from spherescan.data.batch import NO_TARGET, Batch
from spherescan.data.order import permuted, sample_order
from spherescan.errors import DataError


@dataclass(frozen=True, slots=True)
class TokenData:
    """A text of many documents, in one or several arrays that may be mapped files.

    Attributes:
        shards: Token ids; joined they are the text.
        documents: First token of each document, strictly increasing, the first one 0.
        vocab_size: Every id is below it.
        source: Name for messages.
        fingerprint: Digest of the content.
    """

    shards: tuple[NDArray[np.unsignedinteger], ...]
    documents: NDArray[np.uint64]
    vocab_size: int
    source: str
    fingerprint: str

    @property
    def n_tokens(self) -> int:
        """Tokens in all shards."""
        return sum(map(len, self.shards))

    def read(self, start: int, stop: int) -> NDArray[np.int64]:
        """Return tokens `start` to `stop` as int64; none when the range is empty.

        Raises:
            DataError: One of them lies outside the vocabulary.
        """
        parts = [np.empty(0, dtype=np.int64)]
        offset = 0
        for shard in self.shards:
            low, high = max(start - offset, 0), min(stop - offset, len(shard))
            if low < high:
                parts.append(np.asarray(shard[low:high], dtype=np.int64))
            offset += len(shard)
        tokens = np.concatenate(parts)
        outside = tokens >= self.vocab_size
        if outside.any():
            where = int(outside.argmax())
            raise DataError(
                f"{self.source}: token {tokens[where]} at position {start + where} is outside the "
                f"vocabulary of {self.vocab_size}; raise data.vocab_size or import the text again"
            )
        return tokens

    def starts(self, start: int, stop: int) -> NDArray[np.bool_]:
        """Return for tokens `start` to `stop` whether a document starts there."""
        low, high = np.searchsorted(self.documents, np.array([start, stop], dtype=np.uint64))
        flags = np.zeros(stop - start, dtype=np.bool_)
        flags[self.documents[low:high].astype(np.int64) - start] = True
        return flags

    def spans(self) -> list[tuple[int, int]]:
        """Return the first token of each document and the one after its last."""
        starts = self.documents.astype(np.int64).tolist()
        return list(zip(starts, [*starts[1:], self.n_tokens], strict=True))

    def n_windows(self, seq_len: int) -> int:
        """Return how many windows cover every transition."""
        return -(-(self.n_tokens - 1) // seq_len)


class TokenStream:
    """Endless shuffled batches of windows; sample g of the run is a function of the seed and g.

    Args:
        data: The text.
        windows: The range of windows to draw from.
        seq_len: Positions per window.
        batch_size: Windows per batch.
        seed: Seed of the order.
        shuffle: Whether each epoch has an order of its own.
    """

    def __init__(
        self,
        data: TokenData,
        windows: range,
        *,
        seq_len: int,
        batch_size: int,
        seed: int,
        shuffle: bool = True,
    ) -> None:
        self._data, self._windows = data, windows
        self._seq_len, self._batch_size, self._seed = seq_len, batch_size, seed
        self._shuffle, self._next_sample = shuffle, 0

    def __iter__(self) -> "TokenStream":
        return self

    def __next__(self) -> Batch:
        order = sample_order(
            self._next_sample,
            self._batch_size,
            n=len(self._windows),
            seed=self._seed,
            shuffle=self._shuffle,
        )
        batch = window_batch(self._data, [self._windows[i] for i in order], seq_len=self._seq_len)
        self._next_sample += self._batch_size
        return batch

    def state_dict(self) -> dict[str, int]:
        """Return the place of the next batch."""
        epoch, position = divmod(self._next_sample, len(self._windows))
        return {"epoch": epoch, "position": position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue at a place that `state_dict` returned."""
        self._next_sample = state["epoch"] * len(self._windows) + state["position"]


def token_batches(
    data: TokenData, windows: list[int], *, seq_len: int, batch_size: int
) -> Iterator[Batch]:
    """Yield the given windows once, in order."""
    for start in range(0, len(windows), batch_size):
        yield window_batch(data, windows[start : start + batch_size], seq_len=seq_len)


def window_batch(data: TokenData, windows: list[int], *, seq_len: int) -> Batch:
    """Read windows; a transition into the next document has no target."""
    inputs = np.zeros((len(windows), seq_len), dtype=np.int64)
    targets = np.full_like(inputs, NO_TARGET)
    mask = np.zeros(inputs.shape, dtype=np.bool_)
    reset = np.zeros_like(mask)
    for row, window in enumerate(windows):
        start = window * seq_len
        stop = min(start + seq_len + 1, data.n_tokens)
        tokens, starts = data.read(start, stop), data.starts(start, stop)
        n = stop - start - 1
        inputs[row, :n] = tokens[:-1]
        targets[row, :n] = np.where(starts[1:], NO_TARGET, tokens[1:])
        mask[row, :n] = True
        reset[row, :n] = starts[:-1]
    return Batch(*map(torch.from_numpy, (inputs, targets, mask, reset)))


def collate_tokens(sequences: Sequence[NDArray[Any]], *, vocab_size: int) -> Batch:
    """Pad sequences of token ids, each a document of its own, to the longest of them.

    Raises:
        DataError: A sequence that is empty, not one row of integers, or outside the vocabulary.
    """
    for row, tokens in enumerate(sequences):
        if tokens.ndim != 1 or tokens.dtype.kind not in "iu" or len(tokens) == 0:
            raise DataError(
                f"sequence {row} is {tokens.dtype} of shape {tokens.shape}; "
                "wanted one row of token ids"
            )
        if tokens.min() < 0 or tokens.max() >= vocab_size:
            raise DataError(
                f"sequence {row} holds tokens {tokens.min()}..{tokens.max()}; the vocabulary is "
                f"0..{vocab_size - 1}"
            )
    longest = max(map(len, sequences))
    inputs = np.zeros((len(sequences), longest), dtype=np.int64)
    mask = np.zeros(inputs.shape, dtype=np.bool_)
    for row, tokens in enumerate(sequences):
        inputs[row, : len(tokens)] = tokens
        mask[row, : len(tokens)] = True
    no_targets = np.full_like(inputs, NO_TARGET)
    return Batch(*map(torch.from_numpy, (inputs, no_targets, mask)))


def split_windows(data: TokenData, *, seq_len: int, fraction: float) -> tuple[range, range]:
    """Split the windows into training and validation: the end of the text is held out.

    Raises:
        DataError: The text is too short for one window each.
    """
    n_windows = data.n_windows(seq_len)
    n_validation = max(1, round(fraction * n_windows))
    if n_windows - n_validation < 1:
        raise DataError(
            f"{data.source}: {data.n_tokens} tokens make {max(n_windows, 0)} windows of {seq_len}; "
            "at least 2 are needed to hold one out; give more text, a smaller data.seq_len or "
            "data.validation"
        )
    return range(n_windows - n_validation), range(n_windows - n_validation, n_windows)


def fixed_sample(windows: range, count: int) -> list[int]:
    """Return `count` of the windows, spread over all of them, the same ones every time."""
    if count >= len(windows):
        return list(windows)
    chosen = permuted(np.arange(count), n=len(windows), seed=0, epoch=0)
    return [windows[i] for i in sorted(chosen)]
