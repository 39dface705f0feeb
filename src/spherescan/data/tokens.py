"""Text as token ids: many documents one after the other, in memory or in files."""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from spherescan.data.batch import NO_TARGET, Batch
from spherescan.data.shard_file import ShardFile
from spherescan.errors import DataError


@dataclass(frozen=True, slots=True)
class TokenData:
    """A text of many documents, in one or several arrays or files.

    Attributes:
        shards: Token ids; joined they are the text.
        documents: First token of each document, strictly increasing, the first one 0.
        vocab_size: Every id is below it.
        source: Name for messages.
        fingerprint: Digest of the content.
        offsets: First token of each shard, and the number of tokens in all of them.
    """

    shards: tuple[NDArray[np.unsignedinteger] | ShardFile, ...]
    documents: NDArray[np.uint64]
    vocab_size: int
    source: str
    fingerprint: str
    offsets: tuple[int, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "offsets", tuple(accumulate(map(len, self.shards), initial=0)))

    @property
    def n_tokens(self) -> int:
        """Tokens in all shards."""
        return self.offsets[-1]

    def read(self, start: int, stop: int) -> NDArray[np.int64]:
        """Return tokens `start` to `stop`; none when the range is empty.

        Raises:
            DataError: One of them lies outside the vocabulary, or a file has changed.
        """
        return self.read_ranges(np.array([start]), np.array([stop]))

    def read_ranges(self, starts: NDArray[np.int64], stops: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the tokens of several ranges, one after the other.

        Raises:
            DataError: One of them lies outside the vocabulary, or a file has changed.
        """
        tokens = np.empty(int((stops - starts).sum()), dtype=np.int64)
        at = 0
        # Ranges that touch are read as one.
        breaks = np.flatnonzero(starts[1:] != stops[:-1]) + 1
        joined = zip(
            starts[np.concatenate([[0], breaks])].tolist(),
            stops[np.concatenate([breaks, [len(stops)]]) - 1].tolist(),
            strict=True,
        )
        for start, stop in joined:
            for part in self._parts(start, stop):
                tokens[at : at + len(part)] = part
                at += len(part)
        if tokens.size and int(tokens.max()) >= self.vocab_size:
            self._refuse(tokens, starts, stops)
        return tokens

    def spans(self) -> list[tuple[int, int]]:
        """Return the first token of each document and the one after its last."""
        starts = self.documents.astype(np.int64).tolist()
        return list(zip(starts, [*starts[1:], self.n_tokens], strict=True))

    def _parts(self, start: int, stop: int) -> Iterator[NDArray[np.unsignedinteger]]:
        while start < stop:
            shard = bisect_right(self.offsets, start) - 1
            offset = self.offsets[shard]
            end = min(stop, self.offsets[shard + 1])
            yield self.shards[shard][start - offset : end - offset]
            start = end

    def _refuse(
        self, tokens: NDArray[np.int64], starts: NDArray[np.int64], stops: NDArray[np.int64]
    ) -> None:
        first = int((tokens >= self.vocab_size).argmax())
        ends = np.cumsum(stops - starts)
        part = int(np.searchsorted(ends, first, side="right"))
        position = int(stops[part]) - (int(ends[part]) - first)
        raise DataError(
            f"{self.source}: token {tokens[first]} at position {position} is outside the "
            f"vocabulary of {self.vocab_size}; raise data.vocab_size or import the text again"
        )


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
