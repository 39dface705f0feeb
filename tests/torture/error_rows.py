"""T4 and T5: a disk that refuses costs no checkpoint, and the program says what happened."""

import errno
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

from spherescan.cli import main
from spherescan.errors import SpherescanError
from tests.torture import everything, small
from tests.torture.faults import Faults, Kind, Mode
from tests.torture.forking import in_child
from tests.torture.report import Report

SMALL_STEPS = 6
ERRORS = (errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EINTR)
STORAGE, RUN_DIRECTORY = 7, 4


def failing_operations(
    root: Path, faults: Faults, report: Report, *, count: int, seed: int
) -> None:
    """Let each operation fail with each error, once and from then on.

    The count is how many of these pairs are tried on a small run (all when it is larger), and a
    tenth of it on the large run by way of the command line.
    """
    rng = random.Random(seed)
    _fail_small(root, faults, rng, count, report)
    _fail_large(root, faults, rng, count // 10, report)


def _pairs(total: int) -> Iterator[tuple[Mode, int, bool, int]]:
    """Yield mode, error, whether it lasts, and the operation."""
    for at in range(1, total + 1):
        for error in ERRORS:
            yield Mode.FAIL, error, False, at
            if error != errno.EINTR:  # Python calls again until it is not interrupted
                yield Mode.FAIL, error, True, at
        yield Mode.SHORTEN, 0, False, at
        yield Mode.SHORTEN, 0, True, at


def _name(mode: Mode, error: int, at: int, *, onwards: bool) -> str:
    what = errno.errorcode[error] if mode is Mode.FAIL else "a short write"
    return f"{what} at operation {at}{' and from then on' if onwards else ''}"


def _sampled(total: int, rng: random.Random, count: int) -> list[tuple[Mode, int, bool, int]]:
    pairs = list(_pairs(total))
    return sorted(rng.sample(pairs, count), key=str) if count < len(pairs) else pairs


def _fail_small(root: Path, faults: Faults, rng: random.Random, count: int, report: Report) -> None:
    run, notes = faults.root / "run", root / "notes"

    def go() -> None:
        with notes.open("a", buffering=1) as file:
            small.go(run, SMALL_STEPS, note=lambda text: file.write(f"{text}\n"))

    def attempt(mode: Mode, error: int, at: int, *, onwards: bool) -> list[object]:
        faults.arm(mode, at=at, error=error, onwards=onwards)
        try:
            go()
            code = 0
        except SpherescanError as failure:
            code = failure.exit_code
        kind = faults.chosen_kind
        return [faults.counted, code, None if kind is None else kind.name]

    def prepare(*, again: bool) -> None:
        shutil.rmtree(run, ignore_errors=True)
        notes.write_text("")
        if again:
            small.go(run, 2)

    for scene, again in (("a new run", False), ("a resumed run", True)):
        prepare(again=again)
        total, *_ = in_child(lambda: attempt(Mode.COUNT, 0, 0, onwards=False)).expect_finished()
        report.facts[f"operations of {scene}"] = total
        for mode, error, onwards, at in _sampled(total, rng, count // 2):
            where = f"{scene}, {_name(mode, error, at, onwards=onwards)}"
            prepare(again=again)
            report.count += 1
            try:
                ended = in_child(lambda: attempt(mode, error, at, onwards=onwards))  # noqa: B023
            except AssertionError as failure:
                report.failures.append(f"{where}: {_shortened(str(failure))}")
                continue
            _, code, kind = ended.expect_finished()
            report.add(f"exit code {code}")
            begun = again or (run / "run.json").exists()
            report.expect(
                code in _codes(kind, begun=begun), f"{where}: exit code {code} from {kind}"
            )
            try:
                go()
                wrong = small.wrong(run, notes, SMALL_STEPS)
            except Exception as failure:  # noqa: BLE001 - whatever it is, it is the finding
                wrong = f"then {type(failure).__name__}: {failure}"
            report.expect(wrong is None, f"{where} ({kind}): {wrong}")


def _codes(kind: str | None, *, begun: bool) -> set[int]:
    """Return the exit codes that are right when an operation of a kind failed."""
    if not begun or kind in {Kind.OPEN.name, Kind.MKDIR.name}:
        return {0, RUN_DIRECTORY, STORAGE}
    return {0, STORAGE}


def _shortened(trace: str) -> str:
    """Return where in the program an exception was raised, and the exception."""
    lines = trace.strip().splitlines()
    places = [line.strip() for line in lines if "spherescan/" in line]
    return f"{lines[-1]} ({places[-1] if places else 'elsewhere'})"


def _fail_large(root: Path, faults: Faults, rng: random.Random, count: int, report: Report) -> None:
    data, run = everything.write_data(root), faults.root / "large"
    config = root / "large.toml"
    from spherescan.config import to_toml

    config.write_text(to_toml(everything.configuration(data, run)))

    def go() -> int:
        random.seed(0)
        if (run / "run.json").exists():
            return main(["resume", str(run), "--quiet"])
        return main(["train", str(config), "--quiet"])

    def attempt(mode: Mode, error: int, at: int, *, onwards: bool) -> list[object]:
        faults.arm(mode, at=at, error=error, onwards=onwards)
        code = go()
        kind = faults.chosen_kind
        return [faults.counted, code, None if kind is None else kind.name]

    total, code, _ = in_child(lambda: attempt(Mode.COUNT, 0, 0, onwards=False)).expect_finished()
    assert code == 0
    wanted = everything.result(run)
    report.facts["operations of the large run"] = total
    for mode, error, onwards, at in _sampled(total, rng, count):
        shutil.rmtree(run, ignore_errors=True)
        where = f"the large run, {_name(mode, error, at, onwards=onwards)}"
        report.count += 1
        ended = in_child(lambda: attempt(mode, error, at, onwards=onwards))  # noqa: B023
        _, code, kind = ended.expect_finished()
        report.add(f"large: exit code {code}")
        begun = (run / "run.json").exists()
        report.expect(code in _codes(kind, begun=begun), f"{where}: exit code {code} from {kind}")
        # A run that was stopped by three failed saves goes on here.
        again = in_child(go).expect_finished() if code else 0
        report.expect(again is None or again == 0, f"{where}: then exit code {again}")
        found = everything.result(run)
        # A best step that the disk did not take cannot be shown.
        different = [key for key in wanted if found[key] != wanted[key] and "best" not in key]
        report.expect(not different, f"{where} ({kind}, {code}): other {', '.join(different)}")
        report.expect(found["best tensors"], f"{where} ({kind}, {code}): no best can be loaded")
