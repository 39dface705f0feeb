"""T1 and T2: a killed run, however often, ends with the bits of one that was left alone."""

import random
import shutil
import signal
from pathlib import Path

from tests.torture import everything
from tests.torture.faults import Faults
from tests.torture.forking import in_child
from tests.torture.report import Report


def random_kills(root: Path, _: Faults, *, count: int, seed: int) -> Report:
    """Kill the run that uses everything at random times, and go on with it until it is done."""
    rng = random.Random(seed)
    report = Report()
    data = everything.write_data(root)
    in_child(lambda: everything.go(data, root / "warm")).expect_finished()  # files into memory
    undisturbed = in_child(lambda: everything.go(data, root / "alone"))
    wanted = everything.result(root / "alone")
    report.facts |= {
        "ended by": undisturbed.expect_finished(),
        "at step": wanted["step"],
        "seconds of a run": round(undisturbed.seconds, 2),
        "native kernels": everything.uses_native_kernels(),
    }
    if everything.left_out():
        report.facts["not yet in this version"] = ", ".join(everything.left_out())
    runs = 0
    while report.count < count:
        runs += 1
        kills = _until_done(root, data, rng, undisturbed.seconds, report)
        found = everything.result(root / "run")
        different = [key for key in wanted if found[key] != wanted[key]]
        if different:
            what = ", ".join(f"{key} {found[key]} for {wanted[key]}" for key in different)
            report.failures.append(f"run {runs}, seed {seed}, killed at {kills}: {what}")
            shutil.copytree(root / "run", root.parent / f"torture-failed-{seed}-{runs}")
        shutil.rmtree(root / "run")
    report.facts["runs finished"] = runs
    return report


def _until_done(
    root: Path, data: Path, rng: random.Random, seconds: float, report: Report
) -> list[float]:
    """Kill and go on; return when the kills were, in seconds from each beginning."""
    kills = []
    while True:
        after = rng.uniform(0, seconds)
        ended = in_child(lambda: everything.go(data, root / "run"), send=((after, signal.SIGKILL),))
        if ended.finished:
            return kills
        assert ended.signum == signal.SIGKILL, ended
        kills.append(round(after, 4))
        report.count += 1
        report.add(_where(root / "run"))


def _where(run: Path) -> str:
    """Tell in what a kill has fallen, from what is left."""
    if not (run / "run.json").exists():
        return "kills before it was a run"
    if any(run.rglob(".tmp-*")):
        return "kills with a file half written"
    return "kills elsewhere"
