"""What a removed checkpoint takes is freed by a thread, for which the run does not wait."""

import os
import time
from contextlib import suppress
from pathlib import Path
from threading import Event, Thread

import pytest
import torch

from spherescan.runs import RunStore, container, folder, read_checkpoint

LARGE = folder.WORTH_A_THREAD
STATE = {"counters": {"best_step": None}}


def open_and_deleted(path: Path) -> list[Path]:
    found = []
    for file in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # the one that lists them is among them
            found.append(file.readlink())
    return [file for file in found if file.is_relative_to(path) and file.name.endswith("(deleted)")]


def no_more_threads(*_: object) -> None:
    raise RuntimeError("can't start new thread")


def test_without_another_thread_it_is_freed_here(tmp_path, monkeypatch):
    monkeypatch.setattr(folder, "WORTH_A_THREAD", 0)
    monkeypatch.setattr(container, "_WORTH_A_THREAD", 0)
    monkeypatch.setattr(Thread, "start", no_more_threads)
    store = RunStore.create(tmp_path / "run")
    for step in (1, 2):
        store.save(step, {"x": torch.arange(step * 3)}, STATE)
    store.prune(keep=1)
    assert store.steps() == [2]
    assert open_and_deleted(tmp_path) == []
    found = read_checkpoint(store.checkpoint_path(2))
    assert found.tensors["x"].tolist() == [0, 1, 2, 3, 4, 5]
    store.close()


@pytest.mark.parametrize("how", ["prune two", "close"])
def test_nothing_is_left_to_be_freed(tmp_path, monkeypatch, how):
    def slowly(file: int) -> None:
        time.sleep(0.1)
        os.close(file)

    store = RunStore.create(tmp_path / "run")
    for step in (1, 2, 3):
        store.save(step, {"x": torch.ones(3)}, STATE)
    monkeypatch.setattr(folder, "WORTH_A_THREAD", 0)
    monkeypatch.setattr(folder, "close_quietly", slowly)
    store.prune(keep=1 if how == "prune two" else 2)
    assert len(open_and_deleted(tmp_path)) == 1  # the one before it was waited for
    store.close()
    assert open_and_deleted(tmp_path) == []


@pytest.mark.parametrize("size", [0, LARGE - 1, LARGE])
def test_the_name_goes_at_once_and_nothing_stays_open(tmp_path, size):
    (tmp_path / "file").touch()
    os.truncate(tmp_path / "file", size)
    inside = folder.Folder(tmp_path)
    freeing = inside.remove_large("file")
    assert not (tmp_path / "file").exists()
    assert (freeing is not None) == (size >= LARGE)
    if freeing is not None:
        freeing.join()
    assert open_and_deleted(tmp_path) == []
    with pytest.raises(FileNotFoundError):
        inside.remove_large("file")


def test_what_cannot_be_opened_is_removed_too(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    assert folder.Folder(tmp_path).remove_large("link") is None
    assert not (tmp_path / "link").is_symlink()


def test_the_next_save_waits_for_the_room(tmp_path, monkeypatch):
    free = Event()

    def close_when_told(file: int) -> None:
        free.wait(60)
        os.close(file)

    store = RunStore.create(tmp_path / "run")
    for step in (1, 2):
        store.save(step, {"x": torch.ones(3)}, STATE)
    monkeypatch.setattr(folder, "WORTH_A_THREAD", 0)
    monkeypatch.setattr(folder, "close_quietly", close_when_told)
    store.prune(keep=1)
    assert store.steps() == [2]
    assert len(open_and_deleted(tmp_path)) == 1
    saving = Thread(target=store.save, args=(3, {"x": torch.ones(3)}, STATE))
    saving.start()
    saving.join(0.2)
    assert store.steps() == [2]
    free.set()
    saving.join()
    assert store.steps() == [2, 3]
    assert open_and_deleted(tmp_path) == []
    store.close()
