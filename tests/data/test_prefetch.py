"""Workers make the same batches sooner, end with their stream, and never die unnoticed."""

import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import torch

from spherescan.data import (
    Batch,
    BatchStream,
    PackedDocuments,
    SeriesSource,
    TokenSource,
    Windows,
    open_shards,
    write_shards,
)
from spherescan.data.prefetch import _Outbox
from spherescan.errors import DataError


class Counting:
    """Batches that say where they are from; from `fails_at` on there is an error, or none ever."""

    def __init__(self, *, fails_at: int | None = None, error: Exception | None = None) -> None:
        self.fails_at, self.error = fails_at, error

    def __len__(self) -> int:
        return 1000

    def batch(self, start: int, count: int) -> Batch:
        if self.fails_at is not None and start >= self.fails_at:
            if self.error is None:
                time.sleep(3600)
            else:
                raise self.error
        inputs = torch.arange(start, start + count)[:, None]
        return Batch(inputs, inputs, torch.ones_like(inputs, dtype=torch.bool))


def series_source():
    rng = np.random.default_rng(0)
    series = [rng.normal(size=(n, 2)).astype(np.float32) for n in (3, 1, 7, 4, 4)]
    return SeriesSource(series, rng.normal(size=5), seed=4, jitter=0.2)


def shard_source(folder, *, packed):
    rng = np.random.default_rng(1)
    documents = [rng.integers(0, 99, n) for n in rng.integers(1, 30, 20)]
    if not folder.exists():
        write_shards(documents, folder, vocab_size=99, tokens_per_shard=50)
    text = open_shards(folder)
    rows = PackedDocuments(text, seq_len=8) if packed else Windows(text, seq_len=8)
    return TokenSource(rows, range(len(rows)), seed=3, order="by_shard")


def assert_equal(actual: Batch, expected: Batch) -> None:
    for name in ("inputs", "targets", "mask", "reset"):
        a, b = getattr(actual, name), getattr(expected, name)
        assert (a is None) == (b is None)
        if a is not None:
            assert a.dtype == b.dtype
            assert torch.equal(a, b)


@pytest.fixture
def stream():
    """Make streams and end their workers."""
    made = []

    def make(source, **options):
        made.append(BatchStream(source, **options))
        return made[-1]

    yield make
    for each in made:
        each.close()


def workers_of(stream: BatchStream) -> list[BaseProcess]:
    assert stream._prefetch is not None
    return stream._prefetch._processes


@pytest.mark.parametrize(("workers", "ahead"), [(1, 1), (2, 3), (3, 16)])
@pytest.mark.parametrize("kind", ["series", "windows", "packed"])
def test_workers_and_depth_change_no_batch(kind, workers, ahead, stream, tmp_path):
    def source():
        if kind == "series":
            return series_source()
        return shard_source(tmp_path / "text", packed=kind == "packed")

    plain = BatchStream(source(), batch_size=3)
    made = stream(source(), batch_size=3, workers=workers, ahead=ahead)
    for _ in range(9):
        assert_equal(next(made), next(plain))
        assert made.state_dict() == plain.state_dict()
    # Back, with batches on their way, and on with another number of workers.
    state = made.state_dict()
    next(made)
    again = stream(source(), batch_size=3, workers=workers % 3 + 1)
    for each in (made, again):
        each.load_state_dict(state)
    for _ in range(4):
        expected = next(plain)
        assert_equal(next(made), expected)
        assert_equal(next(again), expected)


def test_batches_larger_than_a_pipe_arrive_whole(stream):
    source = Counting()
    made = stream(source, batch_size=100_000, workers=2, ahead=4)
    for batch in range(4):
        assert_equal(next(made), source.batch(batch * 100_000, 100_000))


def test_an_error_is_raised_where_it_belongs(stream):
    source = Counting(fails_at=6, error=DataError("shard 3 has changed"))
    made = stream(source, batch_size=2, workers=2)
    for expected in ([0, 1], [2, 3], [4, 5]):
        assert next(made).inputs[:, 0].tolist() == expected
    for _ in range(2):  # again and again: nothing was skipped
        with pytest.raises(DataError, match=r"^shard 3 has changed$"):
            next(made)
        assert made.state_dict() == {"epoch": 0, "position": 6}
    made = stream(Counting(fails_at=4, error=KeyError("x")), batch_size=2, workers=3)
    next(made), next(made)
    with pytest.raises(DataError, match="over the batch at sample 4: KeyError: 'x'"):
        next(made)


def test_a_worker_that_dies_is_noticed_soon_and_no_batch_is_lost(stream):
    made = stream(Counting(fails_at=40), batch_size=2, workers=3, ahead=3)
    for _ in range(5):
        next(made)
    victim = workers_of(made)[1]
    os.kill(victim.pid, signal.SIGKILL)
    start = time.monotonic()
    with pytest.raises(DataError, match=r"data worker 1 of 3 died \(exit code -9\)"):
        list(made)  # worker 0 makes no batch from sample 40 on, and is waited for
    assert time.monotonic() - start < 5
    at = made.state_dict()["position"]
    made.source.fails_at = None  # of the workers that start now
    assert next(made).inputs[:, 0].tolist() == [at, at + 1]


def test_a_death_while_a_batch_is_awaited_is_noticed_too(stream):
    made = stream(Counting(fails_at=2), batch_size=2, workers=1)
    next(made)
    killer = subprocess.Popen(["sh", "-c", f"sleep 0.3; kill -9 {workers_of(made)[0].pid}"])
    start = time.monotonic()
    with pytest.raises(DataError, match="data worker 0 of 1 died"):
        next(made)
    assert time.monotonic() - start < 5
    assert killer.wait() == 0


@pytest.mark.slow
def test_fifty_deaths_lose_nothing(stream):
    rng = np.random.default_rng(5)
    made = stream(Counting(), batch_size=2, workers=2, ahead=4)
    seen, deaths = [], 0
    while deaths < 50:
        try:
            for _ in range(rng.integers(1, 6)):
                seen += next(made).inputs[:, 0].tolist()
            os.kill(workers_of(made)[rng.integers(2)].pid, signal.SIGKILL)
            start = time.monotonic()
            while True:
                seen += next(made).inputs[:, 0].tolist()
        except DataError:
            deaths += 1
            assert time.monotonic() - start < 5
    assert seen == list(range(len(seen)))


@pytest.mark.parametrize("how", ["close", "load", "forget"])
def test_no_worker_outlives_its_stream(how):
    made = BatchStream(Counting(fails_at=4), batch_size=2, workers=2)
    next(made), next(made)
    pids = [process.pid for process in workers_of(made)]
    assert all(alive(pid) for pid in pids)
    if how == "close":
        made.close()
    elif how == "load":
        made.load_state_dict({"epoch": 0, "position": 0})
    else:
        del made
        gc.collect()
    assert not any(alive(pid) for pid in pids)


def test_workers_leave_signals_to_the_run(stream):
    made = stream(Counting(), batch_size=2, workers=2, ahead=2)
    next(made)
    for process in workers_of(made):
        for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(process.pid, each)
    for _ in range(9):
        next(made)


PROGRAM = """
import sys, time
from spherescan.data import BatchStream
from tests.data.test_prefetch import Counting, workers_of
stream = BatchStream(Counting(fails_at=4), batch_size=2, workers=2)
next(stream)
print(*[process.pid for process in workers_of(stream)], flush=True)
{end}
"""


@pytest.mark.parametrize("end", ["", "raise KeyboardInterrupt", "time.sleep(3600)"])
def test_no_worker_outlives_its_parent(end):
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(end=end)],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    pids = list(map(int, process.stdout.readline().split()))
    assert len(pids) == 2
    if "sleep" in end:
        process.kill()
    process.stdout.close()
    process.wait(timeout=20)
    deadline = time.monotonic() + 5
    while any(alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(alive(pid) for pid in pids)


@pytest.mark.parametrize(
    "messages", [[(b"x" * 99,), (b"",)], [(b"x" * 4, b"x" * 4), (b"xx",), (b"x",)], [(b"x",)] * 4]
)
def test_what_waits_is_bounded_by_number_and_by_bytes(messages):
    outbox = _Outbox(most=3, most_bytes=10)
    threads = [Thread(target=outbox.put, args=(each,), daemon=True) for each in messages]
    for thread in threads:
        thread.start()
        thread.join(timeout=0.2)
    # All but the last had room; the first of them even when it alone is more than allowed.
    assert [thread.is_alive() for thread in threads] == [False] * (len(messages) - 1) + [True]


def alive(pid: int) -> bool:
    for child in multiprocessing.active_children():  # takes the exit status of those that ended
        if child.pid == pid:
            return child.is_alive()
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
