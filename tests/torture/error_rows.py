"""T4 and T5: a disk that refuses costs no checkpoint, and the program says what happened."""

import ctypes
import errno
import os
import random
import resource
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from spherescan.errors import SpherescanError, StorageError
from spherescan.runs import RunStore
from spherescan.train import Reporter
from tests.torture import everything, small
from tests.torture.faults import Faults, Kind, Mode
from tests.torture.forking import in_child
from tests.torture.report import Report

SMALL_STEPS = 6
ERRORS = (errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EINTR)
STORAGE, RUN_DIRECTORY = 7, 4
CLONE_NEWNS, CLONE_NEWUSER = 0x00020000, 0x10000000


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
                code in _codes(kind, begun=begun, signing=onwards and again),
                f"{where}: exit code {code} from {kind}",
            )
            try:
                go()
                wrong = small.wrong(run, notes, SMALL_STEPS)
            except Exception as failure:  # noqa: BLE001 - whatever it is, it is the finding
                wrong = f"then {type(failure).__name__}: {failure}"
            report.expect(wrong is None, f"{where} ({kind}): {wrong}")


def _codes(kind: str | None, *, begun: bool, signing: bool = False) -> set[int]:
    """Return the exit codes that are right when an operation of a kind failed.

    Args:
        kind: The operation.
        begun: Whether there is a run.
        signing: Whether it may have been the note of who holds the lock, which does not matter,
            and all operations after it failed too, of which the first is an open.
    """
    openings = {Kind.OPEN.name, Kind.MKDIR.name}
    if signing:
        openings |= {Kind.TRUNCATE.name, Kind.WRITE.name}
    if not begun or kind in openings:
        return {0, RUN_DIRECTORY, STORAGE}
    return {0, STORAGE}


def _shortened(trace: str) -> str:
    """Return where in the program an exception was raised, and the exception."""
    lines = trace.strip().splitlines()
    places = [line.strip() for line in lines if "spherescan/" in line]
    return f"{lines[-1]} ({places[-1] if places else 'elsewhere'})"


def _fail_large(root: Path, faults: Faults, rng: random.Random, count: int, report: Report) -> None:
    data, run = everything.write_data(root), faults.root / "large"

    def go() -> int:
        return everything.by_command(data, run)

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
        # A best step that the disk did not take cannot be shown.
        wrong = everything.compare(run, wanted, best=False)
        report.expect(wrong is None, f"{where} ({kind}, {code}): {wrong}")


def full_disk(root: Path, faults: Faults, report: Report, *, count: int, seed: int) -> None:
    """Run out of room: by a limit on the size of files, and on disks of many sizes."""
    rng = random.Random(seed)
    data = everything.write_data(root)
    in_child(lambda: everything.by_command(data, root / "alone")).expect_finished()
    wanted = everything.result(root / "alone")
    size = max(path.stat().st_size for path in (root / "alone").rglob("*"))
    for _ in range(count // 2):
        limit = rng.randrange(1, 2 * size)
        _run_out(root / "limited", data, wanted, report, f"a limit of {limit} bytes", limit)
        shutil.rmtree(root / "limited", ignore_errors=True)
    for number in range(count - count // 2):
        if number % 3 == 0:
            room = rng.randrange(64 << 10, 8 << 20)
            work = partial(_on_small_disk, root, data, room)
            where = f"a disk of {room} bytes"
        else:
            step, left = rng.randrange(1, 24), rng.choice([0, 1, 100, 4096, 60_000, 1 << 20])
            work = partial(_on_filled_disk, root, data, step, left)
            where = f"a disk filled at step {step} but for {left} bytes"
        failure = in_child(work).expect_finished()
        if failure == "not permitted":
            report.add("disks that could not be mounted")
            continue
        report.count += 1
        report.expect(failure is None, f"{where}, seed {seed}: {failure}")


def _run_out(
    run: Path,
    data: Path,
    wanted: dict[str, object],
    report: Report,
    where: str,
    limit: int,
) -> None:
    def limited() -> int:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        return everything.by_command(data, run)

    code = in_child(limited).expect_finished()
    report.count += 1
    report.add(f"exit code {code}")
    begun = (run / "run.json").exists()
    allowed = {0, STORAGE} if begun else {STORAGE, RUN_DIRECTORY}
    report.expect(code in allowed, f"{where}: exit code {code}")
    report.expect(begun or not run.exists(), f"{where}: something was left of a run not begun")
    if begun:
        report.expect(RunStore.open(run).load(), f"{where}: no checkpoint")
    again = in_child(lambda: everything.by_command(data, run)).expect_finished()
    report.expect(again == 0, f"{where}: with room again, exit code {again}")
    wrong = everything.compare(run, wanted, best=False)
    report.expect(wrong is None, f"{where}: {wrong}")


def _on_small_disk(root: Path, data: Path, room: int) -> str | None:
    """Begin a run where there is no room for it."""
    disk = root / "disk"
    if not _mount(disk, room):
        return "not permitted"
    code = everything.by_command(data, disk / "run")
    if code not in {STORAGE, RUN_DIRECTORY}:
        return f"exit code {code}"
    return None if not (disk / "run").exists() else "something was left of a run not begun"


def _on_filled_disk(root: Path, data: Path, step: int, left: int) -> str | None:
    """Let the disk fill up during a run, and go on when there is room again."""
    disk = root / "disk"
    if not _mount(disk, 20 << 20):
        return "not permitted"
    filler = disk / "filler"

    class Fill(Reporter):
        def stepped(self, done: int, *_: object, **__: object) -> None:
            if done == step:
                status = os.statvfs(disk)
                size = max(0, status.f_bavail * status.f_frsize - left)
                with filler.open("wb") as file:
                    os.posix_fallocate(file.fileno(), 0, max(1, size))

    run = disk / "run"
    try:
        everything.go(data, run, told=lambda _: Fill())
    except StorageError:
        pass
    except SpherescanError as error:
        return f"{type(error).__name__}: {error}"
    RunStore.open(run).load()
    filler.unlink()
    everything.go(data, run)
    return everything.compare(run, everything.result(root / "alone"), best=False)


def _mount(disk: Path, size: int) -> bool:
    """Give this process a disk of its own; return whether the system permits it."""
    disk.mkdir(exist_ok=True)
    libc = ctypes.CDLL(None, use_errno=True)
    user, group = os.getuid(), os.getgid()
    if libc.unshare(CLONE_NEWUSER | CLONE_NEWNS):
        return False
    try:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {user} 1")
        Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    except OSError:
        return False
    return not libc.mount(b"tmpfs", os.fsencode(disk), b"tmpfs", 0, f"size={size}".encode())
