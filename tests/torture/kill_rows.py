"""T1 and T2: a killed run, however often, ends with the bits of one that was left alone."""

import random
import shutil
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

from tests.torture import everything, small
from tests.torture.faults import Faults, Mode
from tests.torture.forking import Ended, in_child
from tests.torture.report import Report


def random_kills(root: Path, _: Faults, report: Report, *, count: int, seed: int) -> None:
    """Kill the run that uses everything at random times, and go on with it until it is done."""
    rng = random.Random(seed)
    data = everything.write_data(root)
    everything.share_workers()
    times = {}
    for workers in (0, 0, 2, 2):  # the first ones bring files into memory
        name = root / f"alone-{workers}"
        shutil.rmtree(name, ignore_errors=True)
        undisturbed = in_child(lambda: everything.go(data, name, workers=workers))  # noqa: B023
        report.facts["ended by"] = undisturbed.expect_finished()
        times[workers] = min(times.get(workers, 60.0), undisturbed.seconds)
    wanted = everything.result(root / "alone-2")
    report.facts |= {
        "at step": wanted["step"],
        "in epoch": wanted["epochs"],
        "seconds of a run": {workers: round(seconds, 2) for workers, seconds in times.items()},
        "native kernels": everything.uses_native_kernels(),
    }
    wrong = everything.compare(root / "alone-0", wanted)
    report.expect(wrong is None, f"without workers it is another run: {wrong}")
    runs = 0
    while report.count < count:
        runs += 1
        kills = _until_done(root, data, rng, times, report)
        wrong = everything.compare(root / "run", wanted)
        if wrong:
            report.failures.append(f"run {runs}, seed {seed}, killed at {kills}: {wrong}")
            shutil.copytree(root / "run", root.parent / f"torture-failed-{seed}-{runs}")
        shutil.rmtree(root / "run")
    report.facts["runs finished"] = runs


def _until_done(
    root: Path, data: Path, rng: random.Random, times: dict[int, float], report: Report
) -> list[str]:
    """Kill and go on; return when the kills were, in seconds from each beginning."""
    kills = []
    while True:
        workers = rng.choice([0, 0, 2])
        # Not to the very end, so that a run is killed several times before it is done.
        after = rng.uniform(0, 0.7 * times[workers])
        work = partial(everything.go, data, root / "run", workers=workers)
        everything.share_workers()
        try:
            ended = in_child(work, send=((after, signal.SIGKILL),))
        except AssertionError:
            if workers and everything.share_workers(patience=10.0):
                continue
            raise
        if ended.finished:
            return kills
        assert ended.signum == signal.SIGKILL, ended
        kills.append(f"{after:.4f} with {workers} workers")
        report.add(f"kills with {workers} workers")
        report.count += 1
        report.add(_where(root / "run"))


def _where(run: Path) -> str:
    """Tell in what a kill has fallen, from what is left."""
    if not (run / "run.json").exists():
        return "kills before it was a run"
    if any(run.rglob(".tmp-*")):
        return "kills with a file half written"
    return "kills elsewhere"


def kills_at_operations(
    root: Path, faults: Faults, report: Report, *, count: int, seed: int
) -> None:
    """Kill at each operation on the folder, of small runs all and of the large one a sample.

    The count is that of the sample. From 100 on, the small ones are killed after each operation
    too, and not only before it.
    """
    rng = random.Random(seed)
    modes = (Mode.KILL_BEFORE, Mode.KILL_AFTER) if count >= 100 else (Mode.KILL_BEFORE,)
    for name, prepare in SCENES.items():
        _kill_small(root, faults, name, prepare, modes, report)
    _kill_large(root, faults, rng, count, report)


SMALL_STEPS = 8


def _nothing(_: Path) -> None:
    """Begin with no run: first saves, later ones, the best, pruning."""


def _what_crashes_leave(run: Path) -> None:
    """Begin with a run that has something of everything that recovery has to deal with."""
    small.go(run, 4)
    with (run / "metrics.jsonl").open("ab") as file:
        file.write(b'{"run_id": "torn')
    with (run / "events.jsonl").open("ab") as file:
        file.write(b'{"run_id": "torn')
    (run / "ckpt" / ".tmp-step-000000000006.safetensors-1-00").write_bytes(b"half")
    (run / ".tmp-best.safetensors-1-00").write_bytes(b"half")
    damaged = run / "ckpt" / "step-000000000004.safetensors"
    data = bytearray(damaged.read_bytes())
    data[-100] ^= 1
    damaged.write_bytes(data)


SCENES = {"a new run": _nothing, "a recovery": _what_crashes_leave}


def _kill_small(
    root: Path,
    faults: Faults,
    name: str,
    prepare: Callable[[Path], None],
    modes: tuple[Mode, ...],
    report: Report,
) -> None:
    run, notes, prepared = faults.root / "run", root / "notes", root / name
    prepare(prepared)

    def attempt(mode: Mode, at: int) -> Ended:
        shutil.rmtree(run, ignore_errors=True)
        notes.write_text("")
        if prepared.exists():
            shutil.copytree(prepared, run)
        return in_child(lambda: _go_small(run, notes, faults, mode, at))

    total = attempt(Mode.COUNT, 0).expect_finished()
    report.facts[f"operations of {name}"] = total
    for mode in modes:
        for at in range(1, total + 1):
            where = f"{name}, {mode.name} operation {at}"
            ended = attempt(mode, at)
            report.expect(ended.signum == signal.SIGKILL, f"{where}: was not killed")
            _go_small(run, notes, faults, Mode.OFF, 0)
            failure = small.wrong(run, notes, SMALL_STEPS)
            report.expect(failure is None, f"{where}: {failure}")
            report.count += 1


def _go_small(run: Path, notes: Path, faults: Faults, mode: Mode, at: int) -> int:
    with notes.open("a", buffering=1) as file:
        faults.arm(mode, at=at)
        small.go(run, SMALL_STEPS, note=lambda text: file.write(f"{text}\n"))
    return faults.counted


def _kill_large(root: Path, faults: Faults, rng: random.Random, count: int, report: Report) -> None:
    data = everything.write_data(root)
    run = faults.root / "large"

    def go(mode: Mode, at: int = 0) -> int:
        faults.arm(mode, at=at)
        everything.go(data, run)
        return faults.counted

    total = in_child(lambda: go(Mode.COUNT)).expect_finished()
    wanted = everything.result(run)
    report.facts["operations of the large run"] = total
    for at in sorted(rng.sample(range(1, total + 1), min(count, total))):
        shutil.rmtree(run)
        mode = rng.choice([Mode.KILL_BEFORE, Mode.KILL_AFTER])
        where = f"the large run, {mode.name} operation {at}"
        ended = in_child(lambda: go(mode, at))  # noqa: B023 - called at once
        report.expect(ended.signum == signal.SIGKILL, f"{where}: was not killed")
        in_child(lambda: go(Mode.OFF)).expect_finished()
        wrong = everything.compare(run, wanted)
        report.expect(wrong is None, f"{where}: {wrong}")
        report.count += 1
