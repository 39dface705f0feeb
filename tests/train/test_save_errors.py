"""The table of errors in docs/runs.md, a test for each line: what a save does that is refused.

Runs by the command line, under a library between the program and the system (see under_faults).
"""

import dataclasses
import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from spherescan.cli import main
from tests.train.under_faults import EVERY, STEPS, Attempt, Result

ROOT = Path(__file__).parents[2]
ALL = list(range(1, STEPS + 1))
SAVES = list(range(0, STEPS + 1, EVERY))


@pytest.fixture(scope="module")
def attempt(preload, tmp_path_factory) -> Iterator[Callable[[Attempt], Result]]:
    command = [sys.executable, "-m", "tests.train.under_faults", tmp_path_factory.mktemp("disk")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, env=preload, cwd=ROOT, text=True, **pipes) as process:

        def ask(attempt: Attempt) -> Result:
            process.stdin.write(json.dumps(dataclasses.asdict(attempt)) + "\n")
            process.stdin.flush()
            return Result(**json.loads(process.stdout.readline()))

        yield ask


def expect_unharmed(result: Result, *, failed: list[int]) -> None:
    """Expect a run that reached its end in spite of saves that failed."""
    assert (result.code, result.err) == (0, "")
    assert result.happened > 0
    assert result.steps_of("save_failed") == failed
    assert result.steps_of("save") == [step for step in SAVES if step not in failed]
    assert result.trained == ALL
    assert result.steps == result.steps_of("save")[-2:]
    assert (result.left, result.then, result.same) == ([], 0, True)


def expect_stopped(result: Result, *, failed: list[int], kept: list[int], why: str) -> None:
    """Expect a run that ended at a save, lost nothing, and goes on when it is asked to."""
    assert result.code == 7
    assert result.err.startswith("spherescan: ")
    assert result.err.count("\n") == 1
    assert why in result.err
    assert result.steps_of("save_failed") == failed
    assert result.steps_of("stop") == failed[-1:]
    assert why in result.reasons_of("stop")
    assert result.trained == list(range(1, failed[-1] + 1))
    assert result.steps == kept
    assert (result.left, result.then, result.same) == ([], 0, True)


class TestErrors:
    @pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
    def test_a_full_disk_is_waited_for_and_ends_the_run_at_the_third_save(self, attempt, code):
        for kind in ("ALLOCATE", "WRITE", "FSYNC"):
            once = attempt(Attempt(kind=kind, error=code))
            expect_unharmed(once, failed=[4])
            assert os.strerror(code) in once.reasons_of("save_failed")
        lasting = attempt(Attempt(kind="WRITE", error=code, onwards=True))
        expect_stopped(lasting, failed=[4, 6, 8], kept=[0, 2], why=os.strerror(code))

    def test_too_little_room_is_seen_before_anything_is_written(self, attempt):
        # Only failures in a row are counted.
        often = attempt(Attempt(mode="REFUSE", kind="ROOM", saves=(1, 2, 4)))
        expect_unharmed(often, failed=[2, 4, 8])
        lasting = attempt(Attempt(mode="REFUSE", kind="ROOM", saves=(2, 3, 4), step=4))
        expect_stopped(lasting, failed=[4, 6, 8], kept=[0, 2], why="are free")
        assert lasting.synced == []

    def test_an_input_output_error_gets_one_new_file_and_the_second_ends_the_run(self, attempt):
        for kind in ("WRITE", "FSYNC"):
            once = attempt(Attempt(kind=kind, error=errno.EIO))
            expect_unharmed(once, failed=[])
            assert once.synced == [0, 1]
            lasting = attempt(Attempt(kind=kind, error=errno.EIO, onwards=True))
            expect_stopped(lasting, failed=[4], kept=[0, 2], why="Input/output error")
            assert lasting.synced == [0, 0]

    def test_a_folder_that_cannot_be_synced_ends_the_run_and_nothing_is_pruned(self, attempt):
        once = attempt(Attempt(kind="FSYNC", number=1, error=errno.EIO))
        expect_stopped(once, failed=[4], kept=[0, 2, 4], why="may not survive a loss of power")
        assert once.happened == 1
        assert once.synced == [1]
        assert 4 not in once.steps_of("save")

    @pytest.mark.parametrize("code", [errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT])
    def test_missing_rights_are_found_before_the_first_step(self, attempt, code):
        for kind, step, exit_code in (("MKDIR", None, 4), ("OPEN", None, 4), ("OPEN", 0, 7)):
            # Once only in a folder that is there already, or it could not be removed again.
            start = attempt(Attempt(kind=kind, step=step, error=code, onwards=step is None))
            assert (start.code, start.there, start.trained) == (exit_code, False, [])
            assert os.strerror(code) in start.err
            assert start.err.count("\n") == 1
        expect_unharmed(attempt(Attempt(kind="OPEN", error=code)), failed=[4])
        later = attempt(Attempt(kind="OPEN", error=code, onwards=True))
        expect_stopped(later, failed=[4, 6, 8], kept=[0, 2], why=os.strerror(code))

    def test_short_writes_and_interrupted_calls_are_made_again(self, attempt):
        expect_unharmed(attempt(Attempt(mode="SHORTEN", step=0, onwards=True)), failed=[])
        for kind in ("OPEN", "ALLOCATE", "WRITE", "FSYNC"):
            expect_unharmed(attempt(Attempt(kind=kind, error=errno.EINTR)), failed=[])

    @pytest.mark.parametrize("asked_by", ["PYTHON", "TORCH"])
    def test_too_little_memory_is_a_failed_save(self, attempt, asked_by):
        once = attempt(Attempt(mode="REFUSE", kind=asked_by, saves=(2,)))
        expect_unharmed(once, failed=[4])
        lasting = attempt(Attempt(mode="REFUSE", kind=asked_by, saves=(2, 3, 4)))
        expect_stopped(lasting, failed=[4, 6, 8], kept=[0, 2], why="too little memory")
        assert lasting.synced == []
        start = attempt(Attempt(mode="REFUSE", kind=asked_by, saves=(0,)))
        assert (start.code, start.there) == (7, False)


WRONG_PATHS = {
    "a name that is too long": "x" * 300,
    "a way through a file": "file/run",
    "a way through a loop": "loop/run",
    "a loop": "loop",
    "a link": "link",
}


@pytest.mark.parametrize("path", WRONG_PATHS.values(), ids=WRONG_PATHS)
def test_a_path_that_names_no_folder_is_a_usage_error(tmp_path, monkeypatch, capsys, path):
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    Path("folder").mkdir()
    Path("loop").symlink_to("loop")
    Path("link").symlink_to("folder")
    before = sorted(Path().rglob("*"))
    flags = ["--data.source=synthetic", "--data.seq-len=8", "--data.vocab-size=5"]
    for arguments in (["train", *flags, f"--run.dir={path}"], ["resume", path]):
        assert main(arguments) == 2
        out, err = capsys.readouterr()
        assert (out, err.count("\n")) == ("", 1)
        assert "names no folder of a run" in err or "cannot be looked for" in err
        assert sorted(Path().rglob("*")) == before


def test_a_start_that_fails_removes_the_folders_that_it_made(tmp_path, capsys):
    flags = ["--data.source=synthetic", "--data.seq-len=8", "--data.vocab-size=5"]
    assert main(["train", *flags, f"--run.dir={tmp_path}/new/newer/{'x' * 300}"]) == 2
    assert list(tmp_path.iterdir()) == []
