"""How a text is cut into rows of a batch, and the order in which a run takes them.

Letters: r rows, l positions of a row (`seq_len`).
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from spherescan.data.batch import NO_TARGET, Batch
from spherescan.data.order import permuted, sample_order, sample_order_by_shard
from spherescan.data.tokens import TokenData
from spherescan.errors import DataError

Indices = NDArray[np.int64]


class Windows:
    """Windows over the joined text.

    Window i of a text of T tokens holds tokens i L to (i + 1) L: neighbours share one token, so
    every transition is trained exactly once per epoch. The state is cleared at the first token of a
    document, and the last token of a document has no target. The last window may be shorter.

    Args:
        text: The tokens.
        seq_len: Positions L of a window.
        tail: Whether a shorter last window is padded or dropped.
    """

    def __init__(
        self, text: TokenData, *, seq_len: int, tail: Literal["pad", "drop"] = "pad"
    ) -> None:
        self.text, self.seq_len, self.noun = text, seq_len, "windows"
        n_transitions = text.n_tokens - 1
        self._n = n_transitions // seq_len
        if tail == "pad" and n_transitions % seq_len:
            self._n += 1

    def __len__(self) -> int:
        return self._n

    def first_token(self, row: int) -> int:
        """Return where a row begins in the text; it increases from row to row."""
        return row * self.seq_len

    def counts(self) -> dict[str, int]:
        """Return what an epoch over all rows trains, and what it leaves out."""
        covered = min(self._n * self.seq_len, self.text.n_tokens - 1)
        starts = self.text.documents[1:]
        boundaries = int(np.searchsorted(starts, np.uint64(covered), side="right"))
        return _counts(self.text, transitions=covered - boundaries)

    def batch(self, rows: Indices) -> Batch:
        """Read some of the windows.

        Raises:
            DataError: See `TokenData.read_ranges`.
        """
        starts = rows * self.seq_len
        stops = np.minimum(starts + self.seq_len + 1, self.text.n_tokens)
        there = np.arange(self.seq_len + 1) < (stops - starts)[:, None]
        tokens = np.zeros(there.shape, dtype=np.int64)
        tokens[there] = self.text.read_ranges(starts, stops)
        begins = self._document_starts(starts, stops)
        mask = there[:, 1:]
        arrays = (
            np.where(mask, tokens[:, :-1], 0),
            np.where(mask & ~begins[:, 1:], tokens[:, 1:], NO_TARGET),
            mask.copy(),
            begins[:, :-1] & mask,
        )
        return Batch(*map(torch.from_numpy, arrays))

    def _document_starts(self, starts: Indices, stops: Indices) -> NDArray[np.bool_]:
        """Return for each token of the windows whether a document starts there."""
        flags = np.zeros((len(starts), self.seq_len + 1), dtype=np.bool_)
        documents = self.text.documents
        # In their own type: anything else would copy them all.
        first, last = np.searchsorted(documents, np.stack([starts, stops]).astype(documents.dtype))
        rows, within = _ragged(last - first)
        flags[rows, documents[first[rows] + within].astype(np.int64) - starts[rows]] = True
        return flags


class PackedDocuments:
    """Whole documents side by side in a row, each with a state of its own.

    A document of n tokens has n - 1 transitions and takes as many positions: its last token is only
    a target. One with more than L transitions gives rows of L of them for as long as it can, each
    but the first beginning with the token that the one before ended in; so every transition is
    trained exactly once per epoch. What is left of it, and shorter documents, are pieces: they fill
    rows in the order of the text, and a piece that does not fit begins the next row. The state is
    cleared where a piece begins; a row is padded at its end. Rows are in the order of their first
    tokens.

    Args:
        text: The tokens.
        seq_len: Positions L of a row.
    """

    def __init__(self, text: TokenData, *, seq_len: int) -> None:
        self.text, self.seq_len, self.noun = text, seq_len, "packed rows"
        # First token of each document, and the end of the text.
        self._edges = np.append(text.documents.astype(np.int64), text.n_tokens)
        transitions = np.diff(self._edges) - 1
        # How many rows the documents before this one fill alone.
        self._full_before = np.concatenate([[0], np.cumsum(transitions // seq_len)])
        # Documents that leave a piece, and which of those begins each shared row.
        pieces = np.flatnonzero(transitions % seq_len)
        first_piece = _next_fit(transitions[pieces] % seq_len, seq_len)
        firsts = pieces[first_piece]
        # Shared row p comes after the full rows of all documents up to its first one.
        shared = np.arange(len(firsts)) + self._full_before[firsts + 1]
        self._n = len(firsts) + int(self._full_before[-1])
        # One more of each, for the look-ups of rows that are not shared.
        self._shared = np.append(shared, self._n)
        self._first_piece = np.append(first_piece, [len(pieces)] * 2)
        self._pieces = np.append(pieces, 0)

    def __len__(self) -> int:
        return self._n

    def first_token(self, row: int) -> int:
        """Return where a row begins in the text; it increases from row to row."""
        _, starts, _ = self._runs(np.array([row]))
        return int(starts[0])

    def counts(self) -> dict[str, int]:
        """Return what an epoch over all rows trains, and what it leaves out."""
        return _counts(self.text, transitions=self.text.n_tokens - len(self.text.documents))

    def batch(self, rows: Indices) -> Batch:
        """Read some of the rows.

        Raises:
            DataError: See `TokenData.read_ranges`.
        """
        row, starts, lengths = self._runs(rows)
        tokens = self.text.read_ranges(starts, starts + lengths + 1)
        run, within = _ragged(lengths)
        # A run has one token more than transitions.
        source = (np.cumsum(lengths + 1) - (lengths + 1))[run] + within
        begins = np.cumsum(lengths) - lengths
        new_row = np.concatenate([[True], row[1:] != row[:-1]])
        column = begins - np.maximum.accumulate(np.where(new_row, begins, 0))
        place = row[run], column[run] + within
        inputs = np.zeros((len(rows), self.seq_len), dtype=np.int64)
        targets = np.full_like(inputs, NO_TARGET)
        mask, reset = (np.zeros(inputs.shape, dtype=np.bool_) for _ in range(2))
        inputs[place] = tokens[source]
        targets[place] = tokens[source + 1]
        mask[place] = True
        reset[row, column] = True
        return Batch(*map(torch.from_numpy, (inputs, targets, mask, reset)))

    def _runs(self, rows: Indices) -> tuple[Indices, Indices, Indices]:
        """Return what is in some rows: index into `rows`, first token, number of transitions."""
        shared = np.searchsorted(self._shared, rows)
        is_shared = self._shared[shared] == rows
        # A row that is not shared is a full one: as many of those come before it.
        full = np.where(is_shared, 0, rows - shared)
        document = np.searchsorted(self._full_before, full, side="right") - 1
        piece = self._first_piece[shared]
        row, within = _ragged(np.where(is_shared, self._first_piece[shared + 1] - piece, 1))
        chosen = self._pieces[np.where(is_shared[row], piece[row] + within, -1)]
        document = np.where(is_shared[row], chosen, document[row])
        n_full = self._full_before[document + 1] - self._full_before[document]
        skipped = np.where(is_shared[row], n_full, full[row] - self._full_before[document])
        starts = self._edges[document] + skipped * self.seq_len
        left = self._edges[document + 1] - 1 - starts
        return row, starts, np.minimum(left, self.seq_len)


Rows = Windows | PackedDocuments


class TokenSource:
    """Rows of a text in the order of a run.

    Args:
        rows: All rows of the text.
        chosen: Those to take.
        seed: Seed of the order.
        order: Each epoch's own over all rows ("shuffled"), its own over shards and over the rows
            that begin in each ("by_shard"), or that of the text.
    """

    def __init__(
        self,
        rows: Rows,
        chosen: range,
        *,
        seed: int,
        order: Literal["shuffled", "by_shard", "text"] = "shuffled",
    ) -> None:
        self.rows, self.chosen = rows, chosen
        self._seed, self._order = seed, order
        self._sizes = rows_by_shard(rows, chosen) if order == "by_shard" else []

    def __len__(self) -> int:
        return len(self.chosen)

    def batch(self, start: int, count: int) -> Batch:
        """Return samples `start` to `start + count` of the run."""
        if self._order == "by_shard":
            order = sample_order_by_shard(start, count, sizes=self._sizes, seed=self._seed)
        else:
            shuffle = self._order == "shuffled"
            order = sample_order(start, count, n=len(self), seed=self._seed, shuffle=shuffle)
        return self.rows.batch(order + self.chosen.start)


def rows_by_shard(rows: Rows, chosen: range) -> list[int]:
    """Return how many of the chosen rows begin in each shard."""
    edges = [
        bisect_left(chosen, offset, key=rows.first_token) for offset in rows.text.offsets[1:-1]
    ]
    sizes: list[int] = np.diff([0, *edges, len(chosen)]).tolist()
    return sizes


def row_batches(rows: Rows, chosen: Sequence[int], *, batch_size: int) -> Iterator[Batch]:
    """Yield the given rows once, in order."""
    for start in range(0, len(chosen), batch_size):
        yield rows.batch(np.array(chosen[start : start + batch_size], dtype=np.int64))


def split_rows(rows: Rows, *, fraction: float) -> tuple[range, range]:
    """Split the rows into training and validation: the end of the text is held out.

    Raises:
        DataError: The text is too short for one row each.
    """
    n_rows = len(rows)
    n_validation = max(1, round(fraction * n_rows))
    if n_rows - n_validation < 1:
        raise DataError(
            f"{rows.text.source}: {rows.text.n_tokens} tokens make {n_rows} "
            f"{rows.noun} of {rows.seq_len}; at least 2 are needed to hold one out; give more "
            "text, a smaller data.seq_len or data.validation"
        )
    return range(n_rows - n_validation), range(n_rows - n_validation, n_rows)


def fixed_sample(rows: range, count: int) -> list[int]:
    """Return `count` of the rows, spread over all of them, the same ones every time."""
    if count >= len(rows):
        return list(rows)
    chosen = permuted(np.arange(count), n=len(rows), seed=0, epoch=0)
    return [rows[i] for i in sorted(chosen)]


def _counts(text: TokenData, *, transitions: int) -> dict[str, int]:
    n_documents = len(text.documents)
    lengths = np.diff(text.documents, append=np.uint64(text.n_tokens))
    return {
        "tokens": text.n_tokens,
        "documents": n_documents,
        "transitions": transitions,
        "dropped_transitions": text.n_tokens - n_documents - transitions,
        "boundaries": n_documents - 1,
        "one_token_documents": int((lengths == 1).sum()),
    }


def _next_fit(sizes: Indices, room: int) -> Indices:
    """Return which piece begins each row when they fill rows in order."""
    ends = np.cumsum(sizes)
    # The first piece that does not fit beside this one and those between.
    following = np.searchsorted(ends, ends - sizes + room, side="right")
    firsts, piece = [], 0
    while piece < len(sizes):
        firsts.append(piece)
        piece = int(following[piece])
    return np.array(firsts, dtype=np.int64)


def _ragged(lengths: Indices) -> tuple[Indices, Indices]:
    """Return for each element of rows of these lengths its row and its place there."""
    rows = np.repeat(np.arange(len(lengths)), lengths)
    return rows, np.arange(len(rows)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
