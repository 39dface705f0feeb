import gc
import os
import signal

import pytest

from spherescan.errors import LockedError, RunDirectoryError
from spherescan.runs import RunLock, RunStore, store


def test_one_holder_at_a_time(tmp_path):
    first = RunLock(tmp_path / "run.lock")
    with pytest.raises(LockedError, match="not yet known"):
        RunLock(tmp_path / "run.lock")
    first.sign()
    with pytest.raises(LockedError, match=f"process {os.getpid()}, since .* is writing"):
        RunLock(tmp_path / "run.lock")
    first.close()
    first.close()
    second = RunLock(tmp_path / "run.lock")
    second.sign()
    assert (tmp_path / "run.lock").read_text().startswith(f"{os.getpid()}, since ")
    second.close()


def test_a_forgotten_lock_is_let_go(tmp_path):
    RunLock(tmp_path / "run.lock")
    gc.collect()
    RunLock(tmp_path / "run.lock").close()


@pytest.mark.filterwarnings("ignore:.*fork")
def test_a_forked_child_does_not_keep_it(tmp_path):
    lock = RunLock(tmp_path / "run.lock")
    ready, tell_ready = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(tell_ready, b"x")
        signal.pause()
    try:
        os.read(ready, 1)
        lock.close()
        RunLock(tmp_path / "run.lock").close()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(ready)
        os.close(tell_ready)


def test_a_link_in_its_place_is_refused(tmp_path):
    (tmp_path / "run.lock").symlink_to(tmp_path / "other")
    with pytest.raises(RunDirectoryError, match="cannot be opened"):
        RunLock(tmp_path / "run.lock")
    assert not (tmp_path / "other").exists()


def test_the_lock_of_a_file_that_has_lost_its_name_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "run.lock"
    holder = RunLock(path)

    def give_up(_seconds):
        path.unlink()
        holder.close()

    monkeypatch.setattr("spherescan.runs.lock.time.sleep", give_up)
    with pytest.raises(LockedError, match="given up"):
        RunLock(path, wait=5)
    RunLock(path).close()


def test_nobody_begins_where_a_start_that_failed_is_being_removed(tmp_path, monkeypatch):
    path, remove = tmp_path / "run", store._remove_start
    failed = RunStore.create(path)

    def begun_meanwhile(run):
        with pytest.raises(LockedError):
            RunStore.create(path)
        remove(run)

    monkeypatch.setattr(store, "_remove_start", begun_meanwhile)
    failed.discard()
    assert not path.exists()
