"""The order of a run, against a slow reference that is written here from the documentation alone.

T10 of the test plan: for random shard sizes, lengths, batch sizes, seeds, workers and kill points
every transition is trained exactly once per epoch, in the reference order.
"""

import hashlib
import struct
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spherescan.data import BatchStream, PackedDocuments, TokenData, TokenSource, Windows
from spherescan.data.rows import rows_by_shard, split_rows

pytestmark = pytest.mark.unwatched

WORD = 2**64 - 1


def mixed(x: int) -> int:
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & WORD
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & WORD
    return x ^ (x >> 31)


def permutation(n: int, seed: int, epoch: int) -> list[int]:
    """Section "Order" of docs/data.md: eight Feistel rounds on 2 h bits, and cycle walking."""
    h = max(1, ((n - 1).bit_length() + 1) // 2)
    text = f"spherescan/order/1/{seed}/{epoch}".encode()
    keys = struct.unpack("<8Q", hashlib.blake2b(text, digest_size=64).digest())

    def once(x: int) -> int:
        left, right = x >> h, x & (2**h - 1)
        for key in keys:
            left, right = right, left ^ (mixed(right ^ key) & (2**h - 1))
        return left << h | right

    out = []
    for x in range(n):
        y = once(x)
        while y >= n:
            y = once(y)
        out.append(y)
    return out


def derived(*purpose: object) -> int:
    text = "/".join(["spherescan", *map(str, purpose)]).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


@dataclass(frozen=True)
class Case:
    documents: list[int]  # lengths
    shards: list[int]  # lengths
    seq_len: int
    batch_size: int
    seed: int
    order: str
    packing: str
    tail: str
    held_out: bool

    def text(self) -> TokenData:
        """Tokens are their own positions, so a transition says where it is from."""
        tokens = np.arange(sum(self.documents), dtype=np.uint32)
        shards = np.split(tokens, np.cumsum(self.shards)[:-1])
        starts = np.cumsum([0, *self.documents[:-1]]).astype(np.uint64)
        return TokenData(tuple(shards), starts, max(1, len(tokens)), "text", "")

    def source(self) -> TokenSource | None:
        text = self.text()
        rows = (
            PackedDocuments(text, seq_len=self.seq_len)
            if self.packing == "documents"
            else Windows(text, seq_len=self.seq_len, tail=self.tail)
        )
        if len(rows) < 1 + self.held_out:
            return None
        chosen = split_rows(rows, fraction=0.3)[0] if self.held_out else range(len(rows))
        return TokenSource(rows, chosen, seed=self.seed, order=self.order)

    # The reference: a row is a list of pieces, a piece a list of (position, has a target).

    def starts(self) -> list[int]:
        return [sum(self.documents[:i]) for i in range(len(self.documents))]

    def rows(self) -> list[list[list[tuple[int, bool]]]]:
        starts, n_tokens = self.starts(), sum(self.documents)
        if self.packing == "stream":
            rows = []
            for begin in range(0, n_tokens - 1, self.seq_len):
                positions = range(begin, min(begin + self.seq_len, n_tokens - 1))
                if len(positions) < self.seq_len and self.tail == "drop":
                    continue
                pieces: list[list[tuple[int, bool]]] = [[]]
                for t in positions:
                    if t in starts and t != begin:
                        pieces.append([])
                    pieces[-1].append((t, t + 1 not in starts))
                rows.append(pieces)
            return rows
        full, shared, room = [], [], 0
        for start, length in zip(starts, self.documents, strict=True):
            transitions = list(range(start, start + length - 1))
            while len(transitions) >= self.seq_len:
                full.append([[(t, True) for t in transitions[: self.seq_len]]])
                transitions = transitions[self.seq_len :]
            if transitions:
                if len(transitions) > room:
                    shared.append([])
                    room = self.seq_len
                shared[-1].append([(t, True) for t in transitions])
                room -= len(transitions)
        return sorted(full + shared, key=lambda row: row[0][0][0])

    def chosen(self) -> list[list[list[tuple[int, bool]]]]:
        rows = self.rows()
        return rows[: len(rows) - max(1, round(0.3 * len(rows)))] if self.held_out else rows

    def epoch(self, epoch: int) -> list[list[list[tuple[int, bool]]]]:
        rows = self.chosen()
        if self.order == "text":
            return rows
        if self.order == "shuffled":
            return [rows[i] for i in permutation(len(rows), self.seed, epoch)]
        ends = [sum(self.shards[: s + 1]) for s in range(len(self.shards))]
        by_shard: list[list[list[list[tuple[int, bool]]]]] = [[] for _ in ends]
        for row in rows:
            by_shard[next(s for s, end in enumerate(ends) if row[0][0][0] < end)].append(row)
        out = []
        for s in permutation(len(ends), derived(self.seed, "shards"), epoch):
            if by_shard[s]:
                order = permutation(len(by_shard[s]), derived(self.seed, "shard", s), epoch)
                out += [by_shard[s][i] for i in order]
        return out


def parts(draw, total: int, most: int) -> list[int]:
    """Cut a length into pieces."""
    cuts = draw(st.lists(st.integers(1, max(1, total - 1)), max_size=most, unique=True))
    return [b - a for a, b in pairwise([0, *sorted(cut for cut in cuts if cut < total), total])]


@st.composite
def cases(draw, packing: str) -> Case:
    documents = draw(st.lists(st.integers(1, 14), min_size=1, max_size=8))
    return Case(
        documents=documents,
        shards=parts(draw, sum(documents), 4),
        seq_len=draw(st.integers(1, 9)),
        batch_size=draw(st.integers(1, 5)),
        seed=draw(st.integers(0, 2**40)),
        order=draw(st.sampled_from(["shuffled", "by_shard", "text"])),
        packing=packing,
        tail=draw(st.sampled_from(["pad", "drop"])) if packing == "stream" else "pad",
        held_out=draw(st.booleans()),
    )


def row_of(batch, row: int, case: Case) -> list[list[tuple[int, bool]]]:
    """Read a row back into pieces, and check what a row must be."""
    inputs, targets, mask, reset = (
        getattr(batch, name)[row].tolist() for name in ("inputs", "targets", "mask", "reset")
    )
    n = sum(mask)
    assert mask == [True] * n + [False] * (case.seq_len - n)
    assert not any(reset[n:])
    assert inputs[n:] == [0] * (case.seq_len - n)
    assert targets[n:] == [-1] * (case.seq_len - n)
    assert all(
        target in {-1, token + 1} for token, target in zip(inputs[:n], targets, strict=False)
    )
    begins = [i for i in range(n) if reset[i] or i == 0]
    documents = case.starts()
    expected = [i in begins for i in range(n)]
    if case.packing == "stream":  # a window inside a document begins without a reset
        expected[0] = inputs[0] in documents
    assert reset[:n] == expected
    return [[(inputs[i], targets[i] >= 0) for i in range(a, b)] for a, b in pairwise([*begins, n])]


def check(case: Case, workers: int, kill: int) -> None:
    source = case.source()
    if source is None:
        assert len(case.rows()) < 1 + case.held_out
        return
    n = len(source)
    n_batches = -(-2 * n // case.batch_size) + 1
    # Two epochs and a bit, from workers that each make their own share, in any order.
    batches = {}
    for worker in reversed(range(workers)):
        for g in range(worker, n_batches, workers):
            batches[g] = source.batch(g * case.batch_size, case.batch_size)
    seen = [
        row_of(batches[g], row, case) for g in range(n_batches) for row in range(case.batch_size)
    ]
    assert seen[:n] == case.epoch(0)
    assert seen[n : 2 * n] == case.epoch(1)
    # Every transition of the chosen rows once per epoch, those of the text when all are chosen.
    trained = sorted(t for row in seen[:n] for piece in row for t, scored in piece if scored)
    assert len(trained) == len(set(trained))
    if not case.held_out:
        counts = source.rows.counts()
        assert counts["transitions"] == len(trained)
        every = [t for t in range(sum(case.documents) - 1) if t + 1 not in case.starts()]
        assert counts["dropped_transitions"] == len(every) - len(trained)
        assert trained == every[: len(trained)]
        assert case.tail == "drop" or trained == every
    # Killed somewhere: another process goes on from the state.
    stream = BatchStream(source, batch_size=case.batch_size)
    for _ in range(kill % n_batches):
        next(stream)
    again = BatchStream(case.source(), batch_size=case.batch_size)
    again.load_state_dict(stream.state_dict())
    for g in range(kill % n_batches, n_batches):
        batch = next(again)
        assert [row_of(batch, row, case) for row in range(case.batch_size)] == seen[
            g * case.batch_size : (g + 1) * case.batch_size
        ]


@pytest.mark.parametrize("packing", ["stream", "documents"])
@settings(max_examples=500)
@given(data=st.data(), workers=st.integers(1, 4), kill=st.integers(0, 40))
def test_every_transition_once_per_epoch_in_the_reference_order(packing, data, workers, kill):
    check(data.draw(cases(packing)), workers, kill)


@pytest.mark.slow
@pytest.mark.parametrize("packing", ["stream", "documents"])
@settings(max_examples=1500)
@given(data=st.data(), workers=st.integers(1, 4), kill=st.integers(0, 40))
def test_three_thousand_runs_follow_the_reference(packing, data, workers, kill):
    check(data.draw(cases(packing)), workers, kill)


@settings(max_examples=60)
@given(case=cases("stream") | cases("documents"))
def test_a_run_by_shard_stays_in_a_shard_until_it_is_through(case):
    source = case.source()
    if source is None:
        return
    sizes = rows_by_shard(source.rows, source.chosen)
    assert sum(sizes) == len(source)
    by_shard = TokenSource(source.rows, source.chosen, seed=case.seed, order="by_shard")
    ends = np.cumsum(case.shards)
    batch = by_shard.batch(0, len(source))
    shards = [int(np.searchsorted(ends, int(row[0]), side="right")) for row in batch.inputs]
    changes = sum(a != b for a, b in pairwise(shards))
    assert changes == len(set(shards)) - 1
