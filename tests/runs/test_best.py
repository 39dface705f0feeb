"""Where files cannot have two names, the best checkpoint is a copy, made a piece at a time."""

import errno
import os

import pytest
import torch

from spherescan.errors import StorageError
from spherescan.runs import RunStore, folder, read_checkpoint

LINK = os.link
STATE = {"counters": {"best_step": None}}


@pytest.fixture(params=[errno.EPERM, errno.EXDEV, errno.EOPNOTSUPP, errno.EMLINK])
def store(request, tmp_path, monkeypatch):
    """A run of two checkpoints where no file gets a second name; a piece is 100 bytes."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(os, "link", refuse)
    monkeypatch.setattr(folder, "_PIECE", 100)
    store = RunStore.create(tmp_path / "run")
    for step in (1, 2):
        store.save(step, {"x": torch.arange(500) * step}, STATE)
    yield store
    store.close()


def copies(monkeypatch) -> list[int]:
    """Return a list that receives the length of each piece that is written."""
    real, lengths = folder.write_all, []

    def write(file: int, view: memoryview) -> None:
        lengths.append(len(view))
        real(file, view)

    monkeypatch.setattr(folder, "write_all", write)
    return lengths


def test_it_has_the_bytes_of_the_checkpoint(store, monkeypatch):
    lengths = copies(monkeypatch)
    for step in (1, 2):
        store.show_best(step)
        best, original = store.path / "best.safetensors", store.checkpoint_path(step)
        assert best.read_bytes() == original.read_bytes()
        assert not best.samefile(original)
        assert read_checkpoint(best).state["step"] == step
    assert max(lengths) == 100
    assert len(lengths) > 40
    assert list(store.path.glob(".tmp*")) == []


def test_it_is_written_again_only_when_it_is_another(store, monkeypatch):
    store.show_best(2)
    lengths = copies(monkeypatch)
    store.show_best(2)
    assert lengths == []
    (store.path / "best.safetensors").unlink()
    store.show_best(2)
    assert sum(lengths) == store.checkpoint_path(2).stat().st_size
    store.rewind(1)
    store.save(2, {"x": torch.arange(500) * 7}, STATE)
    store.show_best(2)
    assert read_checkpoint(store.path / "best.safetensors").tensors["x"][1] == 7


def test_a_copy_that_fails_leaves_the_one_before(store, monkeypatch):
    store.show_best(1)
    real, calls = os.write, []

    def full(file: int, data: memoryview) -> int:
        calls.append(len(data))
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(file, data)

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(StorageError, match=r"best\.safetensors: was not written: No space left"):
        store.show_best(2)
    monkeypatch.undo()
    assert read_checkpoint(store.path / "best.safetensors").state["step"] == 1
    assert list(store.path.glob(".tmp*")) == []


def test_what_was_copied_once_is_copied_again_after_a_link(store, monkeypatch):
    store.show_best(1)
    with monkeypatch.context() as patch:
        patch.setattr(os, "link", LINK)
        store.show_best(2)
    assert (store.path / "best.safetensors").samefile(store.checkpoint_path(2))
    store.show_best(1)
    assert read_checkpoint(store.path / "best.safetensors").state["step"] == 1
