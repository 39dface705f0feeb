"""What a run survives, and what it refuses, each as its user meets it."""

import json
import re
from pathlib import Path

import pytest
import torch

from spherescan.config import load_config
from spherescan.errors import (
    CheckpointError,
    ConfigError,
    NonFiniteError,
    RunDirectoryError,
    StorageError,
)
from spherescan.inference import Predictor
from spherescan.runs import inspect_checkpoint, read_checkpoint, read_metrics, write_checkpoint
from spherescan.train import ResumeOptions, Trainer, fork, resume, start, verify
from tests.train.test_training import TINY, contents, events_of, trainer_for

GOLDEN = Path(__file__).parent.parent / "golden"


def events(run: Path) -> list[dict[str, object]]:
    return read_metrics(run / "events.jsonl")


def nan_at(monkeypatch, *steps: int) -> list[int]:
    """Make the gradient norm of the given calls NaN; return the list of calls."""
    import spherescan.train.step as module

    real, calls = module._measure, []

    def measure(model, *arguments, **options):
        calls.append(len(calls))
        if len(calls) in steps:
            next(p for p in model.parameters() if p.grad is not None).grad[...] = float("nan")
        return real(model, *arguments, **options)

    monkeypatch.setattr(module, "_measure", measure)
    return calls


class TestSituations:
    def test_metrics_that_do_not_fit_are_kept_and_begun_anew_when_asked(self, run):
        path = run / "metrics.jsonl"
        path.write_bytes(path.read_bytes().replace(b"train", b"brain", 1))
        with pytest.raises(RunDirectoryError, match="have changed"):
            resume(run)
        trainer = resume(run, {"run.steps": 13}, ResumeOptions(repair_metrics=True))
        trainer.fit()
        trainer.close()
        assert b"brain" in (run / "metrics.damaged-1.jsonl").read_bytes()
        assert [r["step"] for r in read_metrics(path) if r["kind"] == "train"] == [13]

    def test_no_whole_checkpoint_is_a_refusal_and_not_a_new_start(self, run):
        for path in (run / "ckpt").iterdir():
            path.write_bytes(path.read_bytes()[:-1])
        with pytest.raises(CheckpointError, match=r"damaged, none whole.*not begun anew"):
            resume(run)
        assert all(path.name.startswith("bad-") for path in (run / "ckpt").iterdir())

    def test_a_damaged_event_log_ends_nothing(self, run):
        path = run / "events.jsonl"
        path.write_bytes(path.read_bytes()[:-20] + b"\0" * 19 + b"\n")
        resume(run).close()
        assert (run / "events.damaged-1.jsonl").exists()
        assert [event["kind"] for event in events(run)] == ["quarantine", "resume"]

    def test_a_start_that_was_cut_off_is_begun_again(self, tmp_path, series):
        trainer = trainer_for(tmp_path, data__train=series)
        trainer.close()
        (tmp_path / "run" / "run.json").unlink()
        with pytest.raises(RunDirectoryError, match="holds no run"):
            resume(tmp_path / "run")
        trainer_for(tmp_path, data__train=series).close()
        resume(tmp_path / "run").close()

    def test_checkpoints_without_their_run_json_are_left_alone(self, run, tmp_path, series):
        (run / "run.json").unlink()
        with pytest.raises(RunDirectoryError, match=r"no run\.json; restore"):
            trainer_for(tmp_path, data__train=series)
        assert len(list((run / "ckpt").iterdir())) >= 3

    def test_best_is_a_second_name_of_the_best_checkpoint(self, run):
        newest = read_checkpoint(run / "ckpt" / f"step-{12:012d}.safetensors")
        best = run / "ckpt" / f"step-{newest.state['counters']['best_step']:012d}.safetensors"
        assert (run / "best.safetensors").samefile(best)
        (run / "best.safetensors").unlink()
        resume(run).close()
        assert (run / "best.safetensors").samefile(best)

    @pytest.mark.unwatched
    def test_a_damaged_checkpoint_does_not_count_as_one_that_is_kept(self, run):
        middle = run / "ckpt" / f"step-{8:012d}.safetensors"
        middle.write_bytes(middle.read_bytes()[:-1])
        trainer = resume(run, {"run.steps": 13, "checkpoint.keep": 2})
        trainer.fit()
        trainer.close()
        assert {12, 13} <= set(trainer.store.steps())
        assert trainer.store.steps()[-1] == 13


def test_no_batch_of_other_data_is_left_out_for_one_of_the_data_before(run, series):
    newest = run / "ckpt" / f"step-{12:012d}.safetensors"
    checkpoint = read_checkpoint(newest)
    checkpoint.state["guard"]["left_out"].append([0, 0])
    newest.unlink()
    write_checkpoint(newest, checkpoint.tensors, checkpoint.state)
    series.write_text(series.read_text().replace("0.5", "0.6", 1))
    trainer = resume(run, {"run.steps": 13}, ResumeOptions(new_data=True))
    trainer.fit()
    trainer.close()
    assert trainer.problem.stream.state_dict() == {"epoch": 0, "position": 4}


class TestVerify:
    @pytest.mark.unwatched
    def test_a_sound_run(self, run):
        found = verify(run)
        assert found.problems == []
        assert {8, 12} <= set(found.checkpoints)
        assert found.replayed
        assert all(high > low for low, high in found.replayed)

    def test_damage_and_other_bits_are_named(self, run):
        newest = run / "ckpt" / f"step-{12:012d}.safetensors"
        newest.write_bytes(newest.read_bytes()[:-1])
        metrics = run / "metrics.jsonl"
        lines = metrics.read_text().splitlines()
        record = json.loads(lines[-2])
        record["loss"] += 1e-9
        lines[-2] = json.dumps(record, separators=(",", ":"))
        metrics.write_text("\n".join(lines) + "\n")
        problems = verify(run).problems
        assert any("truncated or damaged" in problem for problem in problems)
        assert any("trained again from step" in p and "loss" in p for p in problems)

    @pytest.mark.parametrize(
        ("damage", "reason"),
        [
            (lambda text: text.replace('"loss":', '"loss":1', 1), "no line ends at|have changed"),
            (lambda text: text.replace('"clipped":true', '"clipped":1234', 1), "have changed"),
            (lambda text: text.split("\n", 2)[2], "no line ends at|were committed"),
            (lambda _: "", "0 bytes, and .* were committed"),
        ],
        ids=["a longer number", "a number of the same length", "lines lost", "all lost"],
    )
    def test_metrics_that_no_resume_would_take_are_named(self, run, damage, reason):
        metrics = run / "metrics.jsonl"
        before = metrics.read_text()
        metrics.write_text(damage(before))
        assert metrics.read_text() != before
        problems = verify(run, steps=0).problems
        assert any(re.search(f"not the log that .*{reason}", problem) for problem in problems)
        with pytest.raises(RunDirectoryError):
            resume(run)

    @pytest.mark.unwatched
    @pytest.mark.parametrize(
        ("name", "damage", "reason"),
        [
            ("config.toml", lambda text: text[:40], "config.toml"),
            ("config.toml", lambda _: None, "config.toml: cannot be read"),
            (
                "config.toml",
                lambda text: text.replace("d_model = 8", "d_model = 80"),
                "model.d_model is 80, and in the checkpoint 8",
            ),
            ("events.jsonl", lambda _: "", "does not have the start of the run"),
        ],
        ids=["settings cut", "settings gone", "another setting", "events lost"],
    )
    def test_what_people_read_is_looked_at_too(self, run, name, damage, reason):
        path = run / name
        after = damage(path.read_text())
        path.unlink() if after is None else path.write_text(after)
        (problem,) = verify(run, steps=0).problems
        assert reason in problem

    @pytest.mark.unwatched
    def test_a_checkpoint_of_another_step_or_run_is_named(self, run, tmp_path):
        ckpt = run / "ckpt"
        newest = ckpt / f"step-{12:012d}.safetensors"
        (ckpt / f"step-{7:012d}.safetensors").write_bytes(newest.read_bytes())
        fork(run, tmp_path / "fork", step=12)
        forked = tmp_path / "fork" / "ckpt" / newest.name
        newest.write_bytes(forked.read_bytes())
        found = verify(run, steps=0)
        assert sorted(p.split(": ", 1)[1].split()[0] for p in found.problems) == ["belongs", "is"]
        assert not {7, 12} & set(found.checkpoints)

    @pytest.mark.unwatched
    def test_a_run_that_went_on_with_other_data_is_sound(self, run, series):
        other = series.with_name("other.ts")
        other.write_text(series.read_text().replace("0.5", "0.6", 1))
        changes = {"run.steps": 14, "data.train": str(other)}
        trainer = resume(run, changes, ResumeOptions(new_data=True))
        trainer.fit()
        trainer.close()
        found = verify(run)
        assert found.problems == []
        assert (12, 14) in found.replayed


class TestNonFinite:
    def test_fail_saves_nothing_and_says_where(self, tmp_path, series, monkeypatch):
        trainer = trainer_for(tmp_path, data__train=series)
        nan_at(monkeypatch, 6)
        with pytest.raises(NonFiniteError, match=r"step 6.*nonfinite-step-6\.json"):
            trainer.fit()
        trainer.close()
        report = json.loads((tmp_path / "run" / "nonfinite-step-6.json").read_text())
        assert "NaN" in report["grad_norms"].values()
        assert trainer.store.steps()[-1] < 6
        assert resume(tmp_path / "run").counters.step < 6

    def test_skip_goes_on_but_not_for_ever(self, tmp_path, series, monkeypatch):
        trainer = trainer_for(tmp_path, data__train=series, run__on_non_finite="skip")
        nan_at(monkeypatch, 2, 6)
        assert trainer.fit() == "finished"
        assert (trainer.counters.skipped, trainer.guard.in_a_row) == (2, 0)
        trainer.close()
        other = trainer_for(
            tmp_path, "other", data__train=series, run__on_non_finite="skip", run__steps=20
        )
        nan_at(monkeypatch, *range(3, 30))
        with pytest.raises(NonFiniteError, match="9 steps in a row"):
            other.fit()
        other.close()

    @pytest.mark.unwatched
    def test_rollback_leaves_the_batch_out_and_a_resume_decides_the_same(
        self, tmp_path, series, monkeypatch
    ):
        def trained(name: str, *, stop: int | None) -> Trainer:
            trainer = trainer_for(tmp_path, name, data__train=series, run__on_non_finite="rollback")
            nan_at(monkeypatch, 7)
            trainer.fit(stop)
            if stop is not None:
                trainer.close()
                trainer = resume(tmp_path / name)
                trainer.fit()
            trainer.close()
            monkeypatch.undo()
            return trainer

        whole = trained("whole", stop=None)
        assert (whole.guard.rollbacks, whole.guard.lr_scale) == (1, 0.5)
        assert len(whole.guard.left_out) == 1
        assert "rollback" in events_of(whole)
        steps = [
            r["step"]
            for r in read_metrics(tmp_path / "whole" / "metrics.jsonl")
            if r["kind"] == "train"
        ]
        assert steps == list(range(1, 13))
        trained("parts", stop=10)
        assert contents(tmp_path / "parts", 12) == contents(tmp_path / "whole", 12)

    def test_rollback_has_an_end(self, tmp_path, series, monkeypatch):
        trainer = trainer_for(tmp_path, data__train=series, run__on_non_finite="rollback")
        nan_at(monkeypatch, *range(6, 40))
        with pytest.raises(NonFiniteError, match="gone back 3 times"):
            trainer.fit()
        trainer.close()


class TestStorage:
    def failing(self, trainer: Trainer, monkeypatch, *steps: int) -> None:
        real = trainer.store.save

        def save(step, *arguments, **options):
            if step in steps:
                raise StorageError("no room")
            return real(step, *arguments, **options)

        monkeypatch.setattr(trainer.store, "save", save)

    def test_a_save_that_fails_is_tried_again_later(self, tmp_path, series, monkeypatch):
        trainer = trainer_for(tmp_path, data__train=series)
        self.failing(trainer, monkeypatch, 4, 5)
        assert trainer.fit() == "finished"
        trainer.close()
        assert events_of(trainer).count("save_failed") == 2
        # The best step is one that can be loaded.
        assert Predictor.load(tmp_path / "run").step in trainer.store.steps()

    def test_the_third_failure_in_a_row_ends_the_run(self, tmp_path, series, monkeypatch):
        trainer = trainer_for(tmp_path, data__train=series, checkpoint__every=2)
        self.failing(trainer, monkeypatch, *range(1, 13))
        with pytest.raises(StorageError, match="no room"):
            trainer.fit()
        trainer.close()
        assert events_of(trainer).count("save_failed") == 3
        assert trainer.store.steps() == [0]
        resume(tmp_path / "run").close()

    def test_a_read_back_is_made_when_asked_for(self, tmp_path, series, monkeypatch):
        seen = []

        def watch(path, **options):
            seen.append(path.name)
            return inspect_checkpoint(path, **options)

        monkeypatch.setattr("spherescan.runs.store.inspect_checkpoint", watch)
        trainer_for(tmp_path, data__train=series, checkpoint__verify="true").close()
        assert seen == [f"step-{0:012d}.safetensors"]


def test_new_blocks_that_get_no_gradient_are_found(tmp_path, series, monkeypatch):
    flags = {"grow.layers": "2", "grow.at_step": "2", "run.steps": "30", "data.train": str(series)}
    trainer = start(load_config(None, TINY | flags | {"run.dir": str(tmp_path / "alive")}))
    trainer.fit()
    trainer.close()
    assert trainer.guard.alive == [1]
    trainer = start(load_config(None, TINY | flags | {"run.dir": str(tmp_path / "dead")}))
    trainer.fit(2)
    for parameter in trainer.model.layers[1].parameters():
        parameter.register_hook(torch.zeros_like)
    with pytest.raises(ConfigError, match=r"new blocks \[1\] were given no gradient in the 10"):
        trainer.fit()
    trainer.close()
