"""T11, T12 and T17: other processes and signals, at any moment."""

import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

from spherescan.errors import CheckpointError, LockedError, RunDirectoryError, SpherescanError
from spherescan.runs import Checkpoint, RunStore, read_checkpoint, read_metrics
from tests.torture import everything, small
from tests.torture.faults import Faults
from tests.torture.forking import Ended, in_child
from tests.torture.report import Report

FREE_WITHIN_SECONDS = 1.0
WON, LOCKED, TAKEN, BROKEN = b"W", b"L", b"T", b"B"


def lock_races(root: Path, _: Faults, report: Report, *, count: int, seed: int) -> None:
    """Let 2 to 8 processes reach for one run at once: for one that is there, and for a new one."""
    rng = random.Random(seed)
    small.go(root / "there", 2)
    for number in range(count):
        new = number % 2 == 0
        run = root / "new" if new else root / "there"
        shutil.rmtree(root / "new", ignore_errors=True)
        failure = _race(run, rng, report, new=new)
        report.count += 1
        report.expect(failure is None, f"race {number}, seed {seed}: {failure}")
    small.go(root / "there", 4)


def _race(run: Path, rng: random.Random, report: Report, *, new: bool) -> str | None:
    n = rng.randint(2, 8)
    orphan = rng.random() < 0.3
    start, starting = os.pipe()
    contenders = {}
    for _ in range(n):
        delay = rng.choice([0.0, rng.uniform(0, 0.004)])
        child, result = _contender(run, start, starting, delay, new=new, orphan=orphan)
        contenders[child] = result
    os.close(start)
    os.close(starting)  # they are off
    ends = {child: os.read(result, 1) for child, result in contenders.items()}
    winners = [child for child, end in ends.items() if end == WON]
    losers = [end for end in ends.values() if end != WON]
    wrong = None
    if len(winners) != 1:
        wrong = f"{len(winners)} of {n} processes won: {sorted(ends.values())}"
    elif any(end == BROKEN or (end == TAKEN and not new) for end in losers):
        wrong = f"not all of {n} losers were told that it is locked: {sorted(losers)}"
    report.add("refused as locked", losers.count(LOCKED))
    report.add("refused as a run already", losers.count(TAKEN))
    killed = rng.random() < 0.5
    for child in contenders:
        os.kill(child, signal.SIGKILL if killed or child not in winners else signal.SIGTERM)
    dead = time.monotonic()
    for child, result in contenders.items():
        os.waitpid(child, 0)
        os.close(result)
    return wrong or _is_free(run, dead)


def _is_free(run: Path, dead: float) -> str | None:
    """Take the lock after its holder died; say what is wrong."""
    while True:
        try:
            if (run / "run.json").exists():
                small.go(run, 2)
            else:
                RunStore.create(run).close()
        except LockedError as error:
            if time.monotonic() > dead + FREE_WITHIN_SECONDS:
                return f"not free {FREE_WITHIN_SECONDS} s after the death of its holder: {error}"
            time.sleep(0.002)
        except SpherescanError as error:
            return f"cannot be used after the death of its holder: {error}"
        else:
            return None


def _contender(
    run: Path, start: int, starting: int, delay: float, *, new: bool, orphan: bool
) -> tuple[int, int]:
    """Fork a process that tells by one byte how it went, and then holds on until it is killed."""
    reading, result = os.pipe()
    child = os.fork()
    if child:
        os.close(result)
        return child, reading
    try:
        signal.alarm(30)
        os.close(reading)
        os.close(starting)
        os.read(start, 1)  # until the parent closes the other end
        time.sleep(delay)
        end = BROKEN
        try:
            if new:
                store = RunStore.create(run)
            else:
                store = RunStore.open(run)
                store.lock()
            end = WON
        except LockedError:
            end = LOCKED
        except RunDirectoryError:
            end = TAKEN
        if end == WON and orphan and os.fork() == 0:
            time.sleep(3)  # an orphan that outlives the holder must not keep the lock
            os._exit(0)
        os.write(result, end)
        time.sleep(30)
    finally:
        os._exit(1)
    raise AssertionError


def readers(root: Path, faults: Faults, report: Report, *, count: int, seed: int) -> None:
    """Read a run all the time while another process saves, shows the best and prunes."""
    rng = random.Random(seed)
    stop, current = root / "stop", root / "run-0"
    small.go(current, 2)

    def write() -> int:
        number, step = 0, 2
        while not stop.exists():
            step += small.EVERY
            small.go(root / f"run-{number}", step)
            if step > 60:
                number, step = number + 1, 0
        return number

    writer = os.fork()
    if writer == 0:
        try:
            signal.alarm(600)
            (root / "last").write_text(str(write()))
        finally:
            os._exit(0)
    try:
        while report.count < count and os.waitpid(writer, os.WNOHANG) == (0, 0):
            report.count += 1
            number = int(current.name.removeprefix("run-"))
            if (root / f"run-{number + 1}" / "run.json").exists():
                current = root / f"run-{number + 1}"
            failure = _read(current, rng, report)
            report.expect(failure is None, f"read {report.count}, seed {seed}: {failure}")
    finally:
        stop.touch()
        os.waitpid(writer, 0)
    report.facts["runs written meanwhile"] = (root / "last").read_text()


def _read(run: Path, rng: random.Random, report: Report) -> str | None:
    """Read something of a run that another process is writing; say what is wrong."""
    what = rng.choice(["newest", "best", "any", "shown", "metrics"])
    report.add(what)
    passing = None
    try:
        if what == "metrics":
            read_metrics(run / "metrics.jsonl")
            return None
        checkpoint = _checkpoint_of(run, what, rng)
    except CheckpointError as error:
        if "does not exist" in str(error) or "has no checkpoint" in str(error):
            passing = "pruned between list and open"
        failure = str(error)
    except RunDirectoryError as error:
        if "the line is incomplete" in str(error):
            passing = "last line of the metrics not yet whole"
        failure = str(error)
    else:
        step = checkpoint.state["step"]
        same = small.bits_of(checkpoint.tensors) == small.bits_of(small.tensors_of(step))
        return None if same else f"{what}: step {step} has other bits"
    if passing:
        report.add(passing)
        return None
    return f"{what}: {failure}"


def _checkpoint_of(run: Path, what: str, rng: random.Random) -> Checkpoint:
    if what == "shown":
        return read_checkpoint(run / "best.safetensors")
    store = RunStore.open(run)
    if what == "best":
        return store.load_best()
    return store.load(rng.choice(store.steps()) if what == "any" else None)


def signals(root: Path, _: Faults, report: Report, *, count: int, seed: int) -> None:
    """Send signals to the run that uses everything at random times, and go on with it."""
    rng = random.Random(seed)
    data = everything.write_data(root)
    everything_alone = [
        in_child(lambda name=name: everything.by_command(data, root / name)) for name in "abc"
    ]
    seconds = min(ended.seconds for ended in everything_alone)
    wanted = everything.result(root / "a")
    while report.count < count:
        shutil.rmtree(root / "run", ignore_errors=True)
        told = []
        while True:
            kind = rng.choice(sorted(KINDS))
            after = rng.uniform(0, seconds)
            told.append(f"{kind} at {after:.4f}")
            before = _n_lines(root / "run")
            ended = KINDS[kind](data, root / "run", after, rng)
            report.count += 1
            failure = _wrong_end(kind, ended, root / "run", before, report)
            report.expect(failure is None, f"{', '.join(told)}, seed {seed}: {failure}")
            if ended.value == 0 and not ended.code:
                break
        wrong = everything.compare(root / "run", wanted)
        report.expect(wrong is None, f"{', '.join(told)}, seed {seed}: {wrong}")


def _one(signum: int) -> Callable[..., Ended]:
    def send(data: Path, run: Path, after: float, _: random.Random) -> Ended:
        return in_child(lambda: everything.by_command(data, run), send=((after, signum),))

    return send


def _two_interrupts(data: Path, run: Path, after: float, rng: random.Random) -> Ended:
    twice = ((after, signal.SIGINT), (after + rng.uniform(0, 0.03), signal.SIGINT))
    return in_child(lambda: everything.by_command(data, run), send=twice)


def _reader_goes(data: Path, run: Path, after: float, _: random.Random) -> Ended:
    """Let the reader of the standard output go away."""
    reading, writing = os.pipe()
    reader = os.fork()
    if reader == 0:
        os.close(writing)
        time.sleep(after)
        os._exit(0)
    os.close(reading)

    def work() -> int:
        os.dup2(writing, 1)
        os.close(writing)
        return everything.by_command(data, run, loud=True)

    ended = in_child(work, quiet=False)
    os.close(writing)
    os.waitpid(reader, 0)
    return ended


KINDS = {
    "SIGTERM": _one(signal.SIGTERM),
    "SIGINT": _one(signal.SIGINT),
    "SIGHUP": _one(signal.SIGHUP),
    "SIGUSR1": _one(signal.SIGUSR1),
    "two SIGINT": _two_interrupts,
    "SIGPIPE": _reader_goes,
}
CODES = {
    "SIGTERM": {0, 143},
    "SIGINT": {0, 130},
    "SIGHUP": {0, 129},
    "SIGUSR1": {0},
    "SIGPIPE": {0},
}


def _wrong_end(kind: str, ended: Ended, run: Path, before: int, report: Report) -> str | None:
    """Say what is wrong with how a run ended after a signal."""
    if ended.signum:
        report.add("ended by the signal itself, while starting or leaving")
        # With steps done the handlers are there, until the run has come to its end.
        done = _n_lines(run) - before
        if done > 2 and not _has_stopped(run):
            return f"killed by {signal.Signals(ended.signum).name} after {done} lines"
        return None
    code = ended.code or ended.value
    report.add(f"exit code {code}")
    codes = CODES.get(kind, {0, 130})
    if code not in codes:
        return f"exit code {code}, not one of {sorted(codes)}"
    if kind == "two SIGINT" or not (run / "run.json").exists() or not _has_stopped(run):
        return None
    store = RunStore.open(run)
    last = [record["step"] for record in read_metrics(store.metrics_path)][-1:] or [0]
    saved = store.steps()[-1]
    return None if saved == last[0] else f"step {last[0]} was done, and {saved} saved"


def _has_stopped(run: Path) -> bool:
    """Return whether the last thing that happened to a run is that it came to an end."""
    return read_metrics(run / "events.jsonl")[-1]["kind"] == "stop"


def _n_lines(run: Path) -> int:
    path = run / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0
