"""What is left of a run that goes back: to an older checkpoint, or after a crash while it did."""

import shutil
import time

import pytest

from spherescan.data.cache import _remove_stale
from spherescan.errors import RunDirectoryError
from spherescan.runs import MetricsLog, RunStore
from spherescan.runs.folder import Folder
from spherescan.train import ResumeOptions, fork, resume
from tests.torture import small
from tests.train.test_training import trainer_for


class Killed(BaseException):
    """Stands for the end of the process."""


def kill(*_, **__):
    raise Killed


def test_each_kept_checkpoint_keeps_the_best_that_it_names(tmp_path, monkeypatch):
    best = {2: 2, 4: 2, 6: 2, 8: 8, 10: 8}
    monkeypatch.setattr(small, "best_step", best.get)
    monkeypatch.setattr(small, "KEEP", 3)
    small.go(tmp_path / "run", 10)
    store = RunStore.open(tmp_path / "run")
    # 6, 8 and 10 are the newest three; 6 names 2, which 8 and 10 have no use for.
    assert store.steps() == [2, 6, 8, 10]
    for damaged in (10, 8):
        store.checkpoint_path(damaged).write_bytes(b"gone")
    store.lock()
    assert store.recover().state["step"] == 6
    assert store.load_best().state["step"] == 2
    store.close()


@pytest.mark.parametrize("at", ["file", "folder"])
def test_a_start_that_is_killed_while_it_tidies_up_leaves_what_the_next_one_tidies(
    tmp_path, monkeypatch, at
):
    store = RunStore.create(tmp_path / "run")
    store.event("start", step=0, config={})
    store.close()
    with monkeypatch.context() as patch:
        if at == "file":
            patch.setattr(Folder, "remove", kill)
        else:
            patch.setattr(shutil, "rmtree", kill)
        with pytest.raises(Killed):
            RunStore.create(tmp_path / "run")
    RunStore.create(tmp_path / "run").close()


@pytest.mark.unwatched
def test_a_rewind_that_is_killed_can_be_followed_by_a_plain_resume(run, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(MetricsLog, "cut_to", kill)
        with pytest.raises(Killed):
            resume(run, None, ResumeOptions(step=8, rewind=True))
    trainer = resume(run)
    assert trainer.counters.step == 8
    trainer.close()


@pytest.mark.unwatched
def test_a_rewind_that_is_refused_sets_nothing_aside(run):
    path = run / "metrics.jsonl"
    path.write_bytes(path.read_bytes().replace(b"train", b"brain", 1))
    before = sorted(p.name for p in (run / "ckpt").iterdir())
    with pytest.raises(RunDirectoryError, match="have changed"):
        resume(run, None, ResumeOptions(step=8, rewind=True))
    assert sorted(p.name for p in (run / "ckpt").iterdir()) == before


def test_going_back_to_before_any_validation_leaves_nothing_named_the_best(tmp_path, series):
    trainer = trainer_for(tmp_path, data__train=series, checkpoint__keep=9)
    trainer.fit()
    trainer.close()
    run = tmp_path / "run"
    assert (run / "best.safetensors").exists()
    trainer = resume(run, None, ResumeOptions(step=4, rewind=True))
    trainer.close()
    assert not (run / "best.safetensors").exists()
    assert trainer.counters.best_step is None


def test_what_another_process_tidies_up_meanwhile_is_no_error(tmp_path, monkeypatch):
    (tmp_path / ".a.partial").mkdir()

    def another() -> float:
        shutil.rmtree(tmp_path / ".a.partial")
        return 1e12

    monkeypatch.setattr(time, "time", another)
    _remove_stale(tmp_path)
    assert not any(tmp_path.iterdir())


def test_a_fork_without_its_best_looks_for_one_anew(run, tmp_path):
    store = RunStore.open(run)
    best = {step: store.load(step).state["counters"]["best_step"] for step in store.steps()}
    step, named = next((s, b) for s, b in best.items() if b not in {None, s})
    store.checkpoint_path(named).unlink()
    fork(run, tmp_path / "new", step=step)
    counters = RunStore.open(tmp_path / "new").load().state["counters"]
    assert [counters[f"best_{name}"] for name in ("step", "score", "loss")] == [None] * 3
