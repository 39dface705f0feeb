"""The order of a run that is killed again and again: from its settings to its batches.

`test_order_of_a_run` holds rows in memory to a slow reference. Here the same reference judges a
whole life: shards on the disk, settings of a configuration, worker processes that make batches
ahead, and processes that die after their last save, each followed by another with other workers.
SPHERESCAN_EXAMPLES says how many runs are tried.
"""

import dataclasses
import json
import os
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spherescan.config import parse_config
from spherescan.data import write_shards
from spherescan.errors import DataError
from spherescan.train.problem import Problem, open_problem
from tests.data.test_order_of_a_run import Case, cases, row_of

pytestmark = pytest.mark.unwatched

EXAMPLES = int(os.environ.get("SPHERESCAN_EXAMPLES", "150"))
# A process takes longer to start than a whole run without one.
EXAMPLES_WITH_WORKERS = max(1, EXAMPLES // 10)
EPOCHS = 2

Row = list[list[tuple[int, bool]]]


@dataclass(frozen=True)
class Life:
    """One process of a run.

    Attributes:
        saved: Batches it takes before it saves.
        lost: Batches it takes after that, before it is killed.
        workers: Processes that make its batches.
        ahead: How many they make ahead.
    """

    saved: int
    lost: int
    workers: int
    ahead: int


def lives(workers: st.SearchStrategy[int], *, most: int) -> st.SearchStrategy[list[Life]]:
    """Draw the processes of a run; the last one is not killed."""
    life = st.builds(Life, st.integers(0, 9), st.integers(0, 4), workers, st.integers(1, 20))
    return st.lists(life, min_size=1, max_size=most)


@st.composite
def cases_on_disk(draw) -> Case:
    """Draw a text and its settings; shards have one length, but the last."""
    case = draw(cases("stream") | cases("documents"))
    total = sum(case.documents)
    whole = draw(st.integers(max(1, total // 6), total))
    n_whole, rest = divmod(total, whole)
    return dataclasses.replace(case, shards=[whole] * n_whole + [rest] * (rest > 0))


@contextmanager
def opened(case: Case, folder: Path, life: Life) -> Iterator[Problem]:
    """Open the data as a process of the run does, from its configuration."""
    data = {
        "source": "tokens",
        "train": str(folder),
        "seq_len": case.seq_len,
        "batch_size": case.batch_size,
        "packing": case.packing,
        "tail": case.tail,
        "shuffle": case.order != "text",
        "shuffle_shards": case.order == "by_shard",
        "prefetch_workers": life.workers,
        "prefetch_batches": life.ahead,
    }
    data |= {"validation_fraction": 0.3} if case.held_out else {"validation": str(folder)}
    problem, _ = open_problem(parse_config({"data": data, "run": {"seed": case.seed}}))
    try:
        yield problem
    finally:
        problem.stream.close()


def taken(problem: Problem, count: int, case: Case) -> list[Row]:
    """Take batches, and return their rows."""
    batches = [next(problem.stream) for _ in range(count)]
    return [row_of(batch, row, case) for batch in batches for row in range(case.batch_size)]


def scored(rows: list[Row]) -> Counter[int]:
    """Return how often each transition is trained, by its first token."""
    return Counter(
        token for row in rows for piece in row for token, has_target in piece if has_target
    )


def has_something_to_learn(case: Case) -> bool:
    return len(case.rows()) >= 1 + case.held_out and max(case.documents) > 1


def expect_counts(case: Case, problem: Problem) -> None:
    """Check what is said of an epoch over the whole text, and what is held out of it."""
    every = set(range(sum(case.documents) - 1)) - {start - 1 for start in case.starts()}
    trained = scored(case.rows())
    assert set(trained) <= every
    assert case.tail == "drop" or set(trained) == every
    counts = problem.counts
    assert counts["tokens"] == sum(case.documents)
    assert counts["transitions"] == len(trained)
    assert counts["dropped_transitions"] == len(every) - len(trained)
    assert counts["boundaries"] == len(case.documents) - 1
    assert counts["one_token_documents"] == case.documents.count(1)
    assert counts["training"] == len(case.chosen())
    if case.held_out:
        held_out = [
            row_of(batch, row, case)
            for batch in problem.validation()
            for row in range(len(batch.inputs))
        ]
        assert len(held_out) == counts["validation"]
        assert not scored(held_out) & scored(case.chosen())


def expect_each_once(case: Case, rows: list[Row]) -> None:
    """Check the rows of one epoch without the reference: by the lengths of the documents alone."""
    counted = scored(rows)
    assert set(counted.values()) <= {1}
    if case.packing == "stream":
        end = min(len(rows) * case.seq_len, sum(case.documents) - 1)
        assert set(counted) == set(range(end)) - {start - 1 for start in case.starts()}
    elif not case.held_out:
        assert len(counted) == sum(case.documents) - len(case.documents)


def check(case: Case, run: list[Life]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "text"
        n_tokens = sum(case.documents)
        tokens = np.split(np.arange(n_tokens), case.starts()[1:])
        write_shards(tokens, folder, vocab_size=n_tokens, tokens_per_shard=case.shards[0])
        if not has_something_to_learn(case):
            with pytest.raises(DataError), opened(case, folder, run[0]):
                pass
            return
        with opened(case, folder, run[0]) as problem:
            expect_counts(case, problem)
        follow(case, folder, run)


def follow(case: Case, folder: Path, run: list[Life]) -> None:
    """Live all lives of a run, and compare each batch with that of the reference at its place."""
    n, size = len(case.chosen()), case.batch_size
    n_batches = EPOCHS * n // size + 1
    last = (n_batches + max(life.lost for life in run)) * size
    reference = [row for epoch in range(last // n + 1) for row in case.epoch(epoch)]
    seen: list[Row] = []
    state = json.dumps({"epoch": 0, "position": 0})
    for number, life in enumerate(run, start=1):
        left = n_batches - len(seen) // size
        with opened(case, folder, life) as problem:
            problem.stream.load_state_dict(json.loads(state))
            seen += taken(problem, left if number == len(run) else min(life.saved, left), case)
            state = json.dumps(problem.stream.state_dict())
            lost = taken(problem, life.lost, case)
        epoch, position = divmod(len(seen), n)
        assert json.loads(state) == {"epoch": epoch, "position": position}
        assert lost == reference[len(seen) : len(seen) + len(lost)]
    assert len(seen) == n_batches * size
    for epoch in range(EPOCHS):
        expect_each_once(case, seen[epoch * n : (epoch + 1) * n])
    assert seen == reference[: len(seen)]


@settings(max_examples=EXAMPLES)
@given(case=cases_on_disk(), run=lives(st.just(0), most=5))
def test_killed_anywhere_a_run_trains_every_transition_once_in_the_reference_order(case, run):
    check(case, run)


@settings(max_examples=EXAMPLES_WITH_WORKERS)
@given(case=cases_on_disk(), run=lives(st.integers(0, 3), most=3))
def test_workers_and_how_far_ahead_they_are_change_nothing_in_any_life(case, run):
    check(case, run)
