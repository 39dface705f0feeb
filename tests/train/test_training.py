import dataclasses
import json
import math
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from spherescan.config import load_config
from spherescan.data import TokenData, open_shards, read_series, write_shards
from spherescan.data.rows import Windows, row_batches
from spherescan.data.series import series_batches
from spherescan.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    NonFiniteError,
    RunDirectoryError,
)
from spherescan.inference import Predictor
from spherescan.runs import read_checkpoint, read_metrics
from spherescan.train import (
    Evaluation,
    Reporter,
    Signals,
    Trainer,
    build,
    learning_rate,
    resume,
    start,
    stop_on_signals,
)
from spherescan.train.optim import decays
from tests.tolerances import assert_close


def events_of(trainer) -> list[str]:
    """Return the kinds of a run's events."""
    return [event["kind"] for event in read_metrics(trainer.store.path / "events.jsonl")]


TINY = {
    "model.d_model": "8",
    "model.n_layers": "1",
    "model.d_state": "4",
    "model.expand": "1",
    "data.batch_size": "4",
    "optim.warmup_steps": "2",
    "validation.every": "5",
    "checkpoint.every": "4",
    "run.steps": "12",
}


def write_series(path: Path, *, n: int = 24, n_channels: int = 2, classes: str = "abc") -> Path:
    """Write series whose class is the phase of a wave."""
    rng = np.random.default_rng(0)
    lines = ["@problemName waves", f"@classLabel true {' '.join(classes)}", "@data"]
    for i in range(n):
        t = np.arange(rng.integers(5, 9))
        phase = (i % len(classes)) * 2 * np.pi / len(classes)
        values = [np.sin(t + phase + c) + 0.1 * rng.normal(size=len(t)) for c in range(n_channels)]
        channels = [",".join(f"{v:.4f}" for v in channel) for channel in values]
        lines.append(":".join([*channels, classes[i % len(classes)]]))
    path.write_text("\n".join(lines) + "\n")
    return path


def trainer_for(tmp_path, name="run", **changes) -> Trainer:
    settings = TINY | {"run.dir": str(tmp_path / name)}
    settings |= {key.replace("__", "."): str(value) for key, value in changes.items()}
    return start(load_config(None, settings))


def contents(run: Path, step: int) -> dict[str, bytes]:
    checkpoint = read_checkpoint(run / "ckpt" / f"step-{step:012d}.safetensors")
    # The checks of types in these tests draw from Python's generator themselves.
    kept = {n: t for n, t in checkpoint.tensors.items() if n != "generators/python"}
    return {name: tensor.numpy().tobytes() for name, tensor in kept.items()}


def without_run_id(run: Path) -> list[dict]:
    return [
        {k: v for k, v in r.items() if k != "run_id"} for r in read_metrics(run / "metrics.jsonl")
    ]


@pytest.mark.unwatched
def test_the_loss_falls_and_the_classes_are_learned(tmp_path, series):
    trainer = trainer_for(tmp_path, data__train=series, run__steps=60, optim__lr=0.02)
    before = trainer.evaluate(trainer.problem.validation())
    assert trainer.fit() == "finished"
    after = trainer.evaluate(trainer.problem.validation())
    assert after.loss < 0.5 * before.loss
    assert after.score == 1.0


@pytest.mark.unwatched
@pytest.mark.parametrize("loss", ["softmax", "squared_cosine"])
@pytest.mark.parametrize("learnable", [True, False])
def test_both_losses_train_with_fixed_and_learnable_prototypes(tmp_path, series, loss, learnable):
    trainer = trainer_for(
        tmp_path, data__train=series, prototypes__loss=loss,
        prototypes__learnable=str(learnable).lower(),
    )  # fmt: skip
    before = trainer.model.head.prototypes.detach().clone()
    trainer.fit()
    after = trainer.model.head.prototypes
    assert torch.equal(before, after) is not learnable
    assert_close(after.norm(dim=1), torch.ones(3))
    record = read_metrics(tmp_path / "run" / "metrics.jsonl")[0]
    assert (record["grad_norm_prototypes"] > 0) is learnable


def test_one_record_per_step_with_all_fields(tmp_path, series):
    trainer_for(tmp_path, data__train=series).fit()
    records = read_metrics(tmp_path / "run" / "metrics.jsonl")
    train = [r for r in records if r["kind"] == "train"]
    assert [r["step"] for r in train] == list(range(1, 13))
    assert [r["seq"] for r in records] == list(range(len(records)))
    assert set(train[0]) == {
        "run_id", "seq", "kind", "step", "loss", "ff_loss", "accuracy", "lr", "grad_norm",
        "grad_norm_embedding", "grad_norm_prototypes", "grad_norm_top", "clipped", "skipped",
        "bp_updates", "ff_updates", "skipped_updates", "conflict_layers", "groups", "epoch",
        "position",
    }  # fmt: skip
    assert train[-1]["bp_updates"] == 12
    validations = [r for r in records if r["kind"] == "val"]
    assert [r["step"] for r in validations] == [5, 10, 12]
    assert set(validations[0]) == {
        "run_id", "seq", "kind", "step", "loss", "accuracy", "n", "best",
    }  # fmt: skip


@pytest.mark.unwatched
@pytest.mark.parametrize("interrupted_at", [1, 4, 5, 7, 11])
@pytest.mark.parametrize("source", ["series", "tokens"])
def test_a_resumed_run_ends_with_the_bits_of_an_uninterrupted_one(
    tmp_path, series, source, interrupted_at
):
    if source == "series":
        data = {"data__train": series, "data__jitter": 0.2}
    else:
        data = {"data__source": "synthetic", "data__vocab_size": 9, "data__seq_len": 8}
    trainer_for(tmp_path, "whole", **data).fit()
    first = trainer_for(tmp_path, "parts", **data)
    first.fit(interrupted_at)
    first.close()
    second = resume(tmp_path / "parts")
    assert second.counters.step == interrupted_at
    second.fit()
    assert contents(tmp_path / "parts", 12) == contents(tmp_path / "whole", 12)
    assert without_run_id(tmp_path / "parts") == without_run_id(tmp_path / "whole")


@pytest.mark.unwatched
def test_steps_after_the_last_checkpoint_are_repeated_bit_for_bit(tmp_path, series):
    trainer_for(tmp_path, "whole", data__train=series).fit()
    crashed = trainer_for(tmp_path, "parts", data__train=series)
    crashed.fit(6)
    (tmp_path / "parts" / "ckpt" / "step-000000000006.safetensors").unlink()
    crashed.close()
    with (tmp_path / "parts" / "metrics.jsonl").open("a") as file:
        file.write('{"torn')
    again = resume(tmp_path / "parts")
    assert again.counters.step == 5
    again.fit()
    assert contents(tmp_path / "parts", 12) == contents(tmp_path / "whole", 12)
    assert without_run_id(tmp_path / "parts") == without_run_id(tmp_path / "whole")


def test_the_newest_and_the_best_checkpoints_are_kept(tmp_path, series):
    trainer = trainer_for(tmp_path, data__train=series, checkpoint__every=1, checkpoint__keep=2)
    trainer.fit()
    kept = trainer.store.steps()
    assert kept[-2:] == [11, 12]
    named = {trainer.store.load(step).state["counters"]["best_step"] for step in (11, 12)}
    assert trainer.counters.best_step in named
    assert set(kept) == {11, 12} | named


def test_a_run_without_improvement_stops_early_and_stays_stopped(tmp_path, series):
    # A learning rate of almost nothing: the loss moves, but rounding makes it improve rarely.
    trainer = trainer_for(
        tmp_path, data__train=series, validation__every=1, validation__patience=2,
        optim__lr=0.5, optim__warmup_steps=0, run__steps=200,
    )  # fmt: skip
    assert trainer.fit() == "patience"
    step, best = trainer.counters.step, trainer.counters.best_step
    assert step == best + 2 < 200
    trainer.close()
    again = resume(tmp_path / "run")
    assert again.fit() == "patience"
    assert again.counters.step == step


def scripted(monkeypatch, results: list[tuple[float, float]]) -> None:
    """Make validations return the given losses and scores."""
    script = iter(results)

    def evaluate(self, batches):
        loss, score = next(script)
        return Evaluation(loss=loss, score=score, score_name="accuracy", n=4)

    monkeypatch.setattr(Trainer, "evaluate", evaluate)


@pytest.mark.parametrize(
    ("results", "best", "stopped"),
    [
        # Accuracy decides, the latest of equals; NaN never.
        ([(0.9, 0.5), (0.8, 0.7), (0.9, 0.7), (0.7, 0.6), (math.nan, 0.9)], 3, "finished"),
        # Neither score nor loss improved twice in a row.
        ([(0.9, 0.5), (0.9, 0.5), (0.95, 0.5), (0.1, 0.9)], 3, "patience"),
        # A lower loss alone keeps the run alive.
        ([(0.9, 0.5), (0.9, 0.5), (0.8, 0.4), (0.85, 0.5), (0.8, 0.4)], 4, "patience"),
    ],
)
def test_the_best_step_and_patience(tmp_path, series, monkeypatch, results, best, stopped):
    trainer = trainer_for(
        tmp_path, data__train=series, validation__every=1, validation__patience=2,
        run__steps=len(results) + (stopped == "patience"), checkpoint__keep=2,
        checkpoint__every=1,
    )  # fmt: skip
    scripted(monkeypatch, results)
    assert trainer.fit() == stopped
    assert trainer.counters.best_step == best
    assert best in trainer.store.steps()
    assert Predictor.load(tmp_path / "run").step == best
    assert Predictor.load(tmp_path / "run", which="newest").step == trainer.counters.step


def test_of_other_tasks_the_loss_decides(tmp_path, monkeypatch):
    trainer = trainer_for(
        tmp_path, data__source="synthetic", data__vocab_size=9, data__seq_len=8,
        validation__every=1, run__steps=3,
    )  # fmt: skip
    scripted(monkeypatch, [(0.9, 0.5), (0.7, 0.4), (0.8, 0.9)])
    trainer.fit()
    assert trainer.counters.best_step == 2


def test_training_is_adamw_on_the_schedule(tmp_path, series):
    """Repeat the first steps with torch's own parts, written down once more."""
    settings = TINY | {
        "data.train": str(series), "optim.beta1": "0.8", "optim.beta2": "0.95",
        "optim.weight_decay": "0.3", "optim.lr": "0.05", "optim.grad_clip": "0.7",
        "prototypes.scale": "5.0", "prototypes.margin": "0.2", "model.n_layers": "2",
        "run.dir": str(tmp_path / "run"),
    }  # fmt: skip
    config = load_config(None, settings)
    trainer = start(config)
    trainer.fit(4)
    problem, model = build(config)
    matrices, others = [], []
    for name, p in model.named_parameters():
        (matrices if p.ndim > 1 and not name.endswith("A_log") else others).append(p)
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.3}, {"params": others, "weight_decay": 0.0}],
        lr=0.05, betas=(0.8, 0.95),
    )  # fmt: skip
    records = [r for r in read_metrics(tmp_path / "run" / "metrics.jsonl") if r["kind"] == "train"]
    for step, record in enumerate(records):
        batch = next(problem.stream)
        cosines = model(batch.inputs, mask=batch.mask)
        wanted = torch.nn.functional.one_hot(batch.targets, 3)
        loss = torch.nn.functional.cross_entropy(5.0 * (cosines - 0.2 * wanted), batch.targets)
        optimizer.zero_grad()
        loss.backward()
        top = [p.grad for p in model.layers[1].parameters()]
        assert record["loss"] == pytest.approx(loss.item(), rel=1e-5)
        assert record["grad_norm_top"] == pytest.approx(
            torch.nn.utils.get_total_norm(top).item(), rel=1e-4
        )
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.7)
        assert record["grad_norm"] == pytest.approx(norm.item(), rel=1e-4)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(
                step, lr=0.05, warmup_steps=2, total_steps=12, min_scale=0.1
            )
        assert record["lr"] == group["lr"]
        optimizer.step()
    for name, value in trainer.model.state_dict().items():
        torch.testing.assert_close(value, model.state_dict()[name], rtol=1e-3, atol=1e-5)


def test_the_objective_of_a_packed_row_is_that_of_its_documents(tmp_path):
    data = TokenData(
        (np.array([1, 2, 3, 4, 1, 5, 0, 2], np.uint16),), np.array([0, 5], np.uint64), 6, "x", ""
    )
    config = load_config(
        None, TINY | {"data.source": "synthetic", "data.vocab_size": "6", "data.seq_len": "8"}
    )
    problem, model = build(config)
    packed = problem.objective(model, Windows(data, seq_len=8).batch(np.array([0])))
    apart = []
    for start_, stop in data.spans():
        tokens = torch.from_numpy(data.read(start_, stop))[None]
        z = model.embed(tokens[:, :-1])
        apart.append(problem.objective.loss(z, model.head.prototypes, tokens[:, 1:])[0])
    assert_close(packed.loss, torch.cat(apart))


def test_documents_of_one_token_are_no_text_and_cost_nothing_beside_others(tmp_path):
    tokens = np.array([1, 2, 3, 1, 2, 3, 0, 0], np.uint16)
    starts = np.array([0, 6, 7], np.uint64)
    write_shards(np.split(tokens, starts[1:].astype(int)), tmp_path / "text", vocab_size=4)
    trainer = trainer_for(
        tmp_path, data__source="tokens", data__train=tmp_path / "text", data__seq_len=1,
        data__batch_size=1, data__validation=tmp_path / "text",
    )  # fmt: skip
    assert trainer.fit() == "finished"
    write_shards([np.array([1]), np.array([2])], tmp_path / "points", vocab_size=4)
    with pytest.raises(DataError, match="every document is one token"):
        trainer_for(
            tmp_path, "no", data__source="tokens", data__train=tmp_path / "points",
            data__validation=tmp_path / "text",
        )  # fmt: skip
    batches = row_batches(Windows(open_shards(tmp_path / "points"), seq_len=1), [0], batch_size=1)
    with pytest.raises(DataError, match="nothing to score"):
        trainer.evaluate(batches)


def test_a_score_of_numbers_is_their_root_mean_squared_error(tmp_path):
    rng = np.random.default_rng(0)
    offset = 1e9  # float32 could not tell these targets apart
    y = offset + rng.normal(size=30)
    np.savez(tmp_path / "train.npz", x=rng.normal(size=(30, 1, 5)).astype(np.float32), y=y)
    trainer = trainer_for(tmp_path, data__train=tmp_path / "train.npz", data__task="regression")
    trainer.fit(3)
    table = read_series(tmp_path / "train.npz")
    trainer.model.train()
    result = trainer.evaluate(series_batches(table.series, table.targets, batch_size=7))
    assert trainer.model.training
    predicted = Predictor.load(tmp_path / "run", which="newest").predict(table.series)
    assert result.score == pytest.approx(np.sqrt(np.mean((predicted - y) ** 2)), rel=1e-4)


def test_a_progress_bar_and_lines_hear_of_every_validation(tmp_path, series):
    heard = []

    class Listener(Reporter):
        def stepped(self, step, metrics, *, lr):
            heard.append(("step", step))

        def validated(self, step, result, *, best):
            heard.append(("validation", step))

    trainer_for(tmp_path, data__train=series).fit(reporter=Listener())
    assert [step for kind, step in heard if kind == "step"] == list(range(1, 13))
    assert [step for kind, step in heard if kind == "validation"] == [5, 10, 12]


def test_a_wrong_form_of_the_ops_is_found_before_anything_is_made(tmp_path, series, monkeypatch):
    monkeypatch.setenv("SPHERESCAN_OPS", "fastest")
    with pytest.raises(ConfigError, match="fastest"):
        trainer_for(tmp_path, data__train=series)
    assert not (tmp_path / "run").exists()


def test_a_model_that_does_not_fit_into_memory(tmp_path, series):
    with pytest.raises(ConfigError, match="cannot be built"):
        trainer_for(tmp_path, data__train=series, model__d_model=10**9)


def test_a_run_that_was_asked_to_stop_saves_and_goes_on(tmp_path, series):
    trainer = trainer_for(tmp_path, data__train=series)
    signals = Signals()
    reporter = Reporter()
    reporter.stepped = lambda step, *_, **__: signals.ask(signal.SIGTERM) if step == 3 else None
    assert trainer.fit(reporter=reporter, signals=signals) == "signal"
    assert trainer.store.steps()[-1] == 3


@pytest.mark.unwatched
def test_more_steps_may_be_asked_for_but_nothing_that_defines_the_run(tmp_path, series):
    first = trainer_for(tmp_path, data__train=series)
    first.fit()
    first.close()
    longer = resume(tmp_path / "run", {"run.steps": 14})
    longer.fit()
    assert longer.counters.step == 14
    longer.close()
    with pytest.raises(ConfigError, match=r"optim\.lr defines the run"):
        resume(tmp_path / "run", {"optim.lr": 1})


def poison(trainer: Trainer, step: int) -> None:
    """Make one batch contain a value that overflows."""
    stream = trainer.problem.stream
    original = type(stream).__next__

    class Poisoned(type(stream)):
        def __next__(self):
            batch = original(self)
            if trainer.counters.step + 1 == step:
                inputs = batch.inputs.clone()
                inputs[0, 0, 0] = float("inf")
                batch = dataclasses.replace(batch, inputs=inputs)
            return batch

    stream.__class__ = Poisoned


def test_a_step_that_is_not_finite_changes_nothing_and_fails(tmp_path, series):
    trainer = trainer_for(tmp_path, data__train=series, checkpoint__every=100)
    trainer.fit(2)
    before = {name: t.clone() for name, t in trainer.model.state_dict().items()}
    poison(trainer, 3)
    with pytest.raises(NonFiniteError, match="step 3"):
        trainer.fit()
    assert all(torch.equal(before[name], t) for name, t in trainer.model.state_dict().items())
    assert trainer.store.steps() == [0, 2]


def test_a_step_that_is_not_finite_can_be_left_out(tmp_path, series):
    trainer = trainer_for(tmp_path, data__train=series, run__on_non_finite="skip")
    poison(trainer, 3)
    trainer.fit()
    assert trainer.counters.skipped == 1
    assert trainer.counters.bp_updates == 11
    records = read_metrics(tmp_path / "run" / "metrics.jsonl")
    skipped = [r for r in records if r.get("skipped")]
    assert [r["step"] for r in skipped] == [3]
    assert skipped[0]["nonfinite"] is True


def test_weights_that_are_not_finite_are_never_saved(tmp_path, series):
    trainer = trainer_for(tmp_path, data__train=series)
    trainer.fit(1)
    with torch.no_grad():
        trainer.model.norm_f.weight[0] = math.nan
    with pytest.raises(NonFiniteError, match=r"norm_f\.weight is not finite at step 1"):
        trainer.save()
    assert trainer.store.steps() == [0, 1]


def test_gradients_are_clipped_over_all_trained_parameters(tmp_path, series):
    records = {}
    for clip in (0, 1e-3):
        name = f"clip-{clip}"
        trainer_for(tmp_path, name, data__train=series, optim__grad_clip=clip).fit(1)
        records[clip] = read_metrics(tmp_path / name / "metrics.jsonl")[0]
    assert records[0]["grad_norm"] == records[1e-3]["grad_norm"] > 1e-3
    assert records[0]["clipped"] is False
    assert records[1e-3]["clipped"] is True


def test_decay_touches_matrices_only(tmp_path, series):
    trainer = trainer_for(tmp_path, data__train=series, prototypes__learnable="true")
    names = {name for name, p in trainer.model.named_parameters() if decays(name, p)}
    prefix = "layers.0.mixer."
    assert names == {
        "embedding.linear.weight", "projection.weight",
        *(f"{prefix}{n}.weight" for n in ("in_proj", "conv1d", "x_proj", "dt_proj", "out_proj")),
    }  # fmt: skip
    decayed = {id(p) for p in trainer.optimizer.param_groups[0]["params"]}
    assert decayed == {id(p) for name, p in trainer.model.named_parameters() if name in names}
    assert trainer.optimizer.param_groups[0]["weight_decay"] > 0
    assert trainer.optimizer.param_groups[1]["weight_decay"] == 0


def test_the_schedule_warms_up_and_falls_to_its_floor():
    rates = [
        learning_rate(s, lr=2.0, warmup_steps=4, total_steps=20, min_scale=0.1) for s in range(25)
    ]
    assert rates[:4] == [0.5, 1.0, 1.5, 2.0]
    assert max(rates) == 2.0
    assert rates[4:20] == sorted(rates[4:20], reverse=True)
    assert rates[19:] == pytest.approx([0.2] * 6)
    assert learning_rate(0, lr=2.0, warmup_steps=40, total_steps=20, min_scale=0.1) == 0.2


@pytest.mark.unwatched
def test_a_regression_learns_its_numbers(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(120, 1, 6)).astype(np.float32)
    y = 10 + 3 * x[:, 0].mean(1).astype(np.float64)
    np.savez(tmp_path / "train.npz", x=x, y=y)
    trainer = trainer_for(
        tmp_path, data__train=tmp_path / "train.npz", data__task="regression",
        run__steps=200, optim__lr=0.02, validation__every=50,
    )  # fmt: skip
    trainer.fit()
    result = trainer.evaluate(trainer.problem.validation())
    assert result.score_name == "rmse"
    assert result.score < 0.35 * y.std()
    predictor = Predictor.load(tmp_path / "run", which="newest")
    predicted = predictor.predict(list(x.transpose(0, 2, 1)))
    assert np.sqrt(((predicted - y) ** 2).mean()) < 0.35 * y.std()
    assert y.min() <= predicted.min()
    assert predicted.max() <= y.max()


@pytest.mark.unwatched
def test_counting_tokens_are_learned(tmp_path):
    trainer = trainer_for(
        tmp_path, data__source="synthetic", data__vocab_size=12, data__seq_len=16,
        model__d_model=16, run__steps=60, optim__lr=0.02,
    )  # fmt: skip
    trainer.fit()
    assert trainer.evaluate(trainer.problem.validation()).score > 0.95
    predictor = Predictor.load(tmp_path / "run")
    assert predictor.predict([np.array([3, 4, 5]), np.array([10, 11])]).tolist() == [6, 0]


def test_validation_data_of_its_own_leaves_all_of_the_rest_for_training(tmp_path, series):
    other = write_series(tmp_path / "other.ts", n=6)
    problem, _ = build(
        load_config(None, TINY | {"data.train": str(series), "data.validation": str(other)})
    )
    assert "24 series for training, 6 for validation" in problem.summary
    assert sum(len(batch.targets) for batch in problem.validation()) == 6


def test_statistics_come_from_the_training_part_alone(tmp_path, series):
    text = series.read_text().splitlines()
    one = load_config(None, TINY | {"data.train": str(series)})
    mean = build(one)[1].embedding.mean
    # Blow up the held-out sequences: the statistics must not notice.
    held_out = {
        tuple(first) for b in build(one)[0].validation() for first in b.inputs[:, 0].tolist()
    }
    blown = []
    for line in text:
        first = (
            tuple(np.float32(c.split(",")[0]).item() for c in line.split(":")[:2])
            if ":" in line
            else ()
        )
        blown.append(line.replace("0.", "9.") if first in held_out else line)
    assert blown != text
    series.write_text("\n".join(blown))
    assert torch.equal(build(one)[1].embedding.mean, mean)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({}, ConfigError, "no training data"),
        ({"data.train": "missing.ts"}, DataError, "missing.ts"),
        ({"data.train": "{series}", "data.task": "regression"}, DataError, "no numeric targets"),
        ({"data.train": "{series}", "data.validation": "{wide}"}, DataError, "has 3 channels"),
        ({"data.train": "{series}", "data.validation": "{other}"}, DataError, "unknown class 'd'"),
        ({"data.train": "{series}", "prototypes.dim": "1"}, ConfigError, "dim"),
        ({"data.source": "synthetic", "data.seq_len": "65535"}, DataError, "make 1 windows"),
        (
            {"data.source": "tokens", "data.train": "{text}", "data.vocab_size": "3",
             "data.validation": "{one}"},
            DataError, "fewer than two tokens",
        ),
    ],
)  # fmt: skip
def test_a_start_that_fails_writes_nothing(tmp_path, series, settings, error, message):
    (tmp_path / "text.txt").write_text("0 1 2 0 1 2")
    (tmp_path / "one.txt").write_text("0")
    paths = {
        "series": series,
        "wide": write_series(tmp_path / "wide.ts", n_channels=3),
        "other": write_series(tmp_path / "other.ts", classes="abd"),
        "text": tmp_path / "text.txt",
        "one": tmp_path / "one.txt",
    }
    filled = {key: value.format(**paths) for key, value in settings.items()}
    before = sorted(tmp_path.rglob("*"))
    config = load_config(None, TINY | {"run.dir": str(tmp_path / "run")} | filled)
    with pytest.raises(error, match=message):
        start(config)
    assert sorted(tmp_path.rglob("*")) == before


def test_constant_targets_teach_nothing(tmp_path):
    np.savez(tmp_path / "x.npz", x=np.ones((4, 1, 3), np.float32), y=np.ones(4))
    with pytest.raises(DataError, match=r"every target is 1\.0"):
        trainer_for(tmp_path, data__train=tmp_path / "x.npz", data__task="regression")


def test_a_folder_that_holds_something_is_left_alone(tmp_path, series):
    trainer_for(tmp_path, data__train=series).close()
    with pytest.raises(RunDirectoryError, match=r"holds a run already.*spherescan resume"):
        trainer_for(tmp_path, data__train=series)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").touch()
    with pytest.raises(RunDirectoryError, match="holds other files already"):
        trainer_for(tmp_path, "other", data__train=series)
    with pytest.raises(ConfigError, match="names no folder of a run: Not a directory"):
        trainer_for(tmp_path, "train.ts/x", data__train=series)
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="symbolic link"):
        trainer_for(tmp_path, "link", data__train=series)
    with pytest.raises(ConfigError, match="too long"):
        trainer_for(tmp_path, "x" * 300, data__train=series)
    with pytest.raises(ConfigError, match=r"run\.dir is missing"):
        start(load_config(None, TINY | {"data.train": str(series)}))


def test_changed_data_is_not_resumed_on(tmp_path, series):
    trainer = trainer_for(tmp_path, data__train=series)
    trainer.fit(2)
    trainer.close()
    series.write_text(series.read_text().replace("0.5", "0.6"))
    with pytest.raises(DataError, match="data has changed"):
        resume(tmp_path / "run")


def test_data_that_moved_is_resumed_on_when_it_is_the_same(tmp_path, series):
    trainer = trainer_for(tmp_path, data__train=series)
    trainer.fit(2)
    trainer.close()
    moved = series.rename(tmp_path / "moved.ts")
    with pytest.raises(DataError, match="no such file"):
        resume(tmp_path / "run")
    assert resume(tmp_path / "run", {"data.train": str(moved)}).counters.step == 2


def test_changed_validation_data_is_not_resumed_on(tmp_path, series):
    other = write_series(tmp_path / "other.ts", n=6)
    trainer = trainer_for(tmp_path, data__train=series, data__validation=other)
    trainer.fit(2)
    trainer.close()
    write_series(other, n=9)
    with pytest.raises(DataError, match="data has changed"):
        resume(tmp_path / "run")


def test_a_checkpoint_of_another_run_is_refused(tmp_path, series):
    trainers = [trainer_for(tmp_path, name, data__train=series) for name in ("a", "b")]
    for trainer in trainers:
        trainer.fit(2)
        trainer.close()
    newer = tmp_path / "a" / "ckpt" / "step-000000000009.safetensors"
    source = trainers[1].store.checkpoint_path(2)
    newer.write_bytes(source.read_bytes())
    for use in (resume, Predictor.load):
        with pytest.raises(CheckpointError, match="belongs to run"):
            use(tmp_path / "a")


def test_a_truncated_checkpoint_is_set_aside_and_the_older_one_used(tmp_path, series):
    trainer = trainer_for(tmp_path, data__train=series, validation__every=100)
    trainer.fit(6)
    trainer.close()
    newest = trainer.store.checkpoint_path(6)
    newest.write_bytes(newest.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="sets it aside and goes on from step 4"):
        trainer.store.load()
    again = resume(tmp_path / "run")
    assert again.counters.step == 4
    assert newest.with_name(f"bad-{newest.name}-1").exists()
    assert "quarantine" in events_of(again)
    again.close()


def test_a_checkpoint_whose_tensors_do_not_fit_is_refused(tmp_path, series):
    trainer = trainer_for(tmp_path, data__train=series)
    trainer.fit(2)
    checkpoint = trainer.store.load()
    del checkpoint.tensors["model/norm_f.weight"]
    with pytest.raises(CheckpointError, match=r"another model: model/norm_f\.weight"):
        trainer.restore(checkpoint)


def test_a_run_that_is_not_there(tmp_path):
    with pytest.raises(RunDirectoryError, match="holds no run"):
        resume(tmp_path)
    (tmp_path / "run.json").write_text("[]")
    with pytest.raises(RunDirectoryError, match="cannot be read"):
        resume(tmp_path)
    (tmp_path / "run.json").write_text('{"run_id": 3}')
    with pytest.raises(RunDirectoryError, match="not of format 1"):
        resume(tmp_path)
    (tmp_path / "run.json").write_text('{"format": 1, "run_id": "../x"}')
    with pytest.raises(RunDirectoryError, match="no run_id of letters"):
        resume(tmp_path)
    (tmp_path / "run.json").write_text('{"format": 1, "run_id": "x"}')
    with pytest.raises(RunDirectoryError, match="holds no run"):
        resume(tmp_path)
    (tmp_path / "ckpt").mkdir()
    with pytest.raises(CheckpointError, match="no checkpoint can be used"):
        resume(tmp_path)


def test_the_configuration_in_the_folder_makes_the_same_run(tmp_path, series):
    trainer = trainer_for(tmp_path, data__train=series)
    again = load_config(tmp_path / "run" / "config.toml")
    assert again == trainer.config
    saved = json.loads(json.dumps(trainer.config.model_dump(mode="json")))
    assert saved["run"]["steps"] == 12


def test_threads_are_set_when_asked_for(tmp_path, series):
    trainer_for(tmp_path, data__train=series, run__threads=2).close()
    assert torch.get_num_threads() == 2
    torch.set_num_threads(1)


def test_the_first_signal_is_recorded_and_the_second_interrupts():
    before = signal.getsignal(signal.SIGINT)
    with stop_on_signals() as flag:
        assert flag.exit_code == 0
        os.kill(os.getpid(), signal.SIGTERM)
        assert flag.exit_code == 143
        os.kill(os.getpid(), signal.SIGINT)
        assert flag.exit_code == 130
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


@pytest.fixture
def _matmul_precision():
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.unwatched
@pytest.mark.usefixtures("_matmul_precision")
def test_every_precision_trains_near_float32(tmp_path, series):
    losses = {}
    for precision in ("fp32", "medium", "bf16"):
        trainer = trainer_for(tmp_path, precision, data__train=series, run__precision=precision)
        trainer.fit()
        trainer.close()
        expected = "medium" if precision == "medium" else "highest"
        assert torch.get_float32_matmul_precision() == expected
        checkpoint = read_checkpoint(tmp_path / precision / "ckpt" / f"step-{12:012d}.safetensors")
        dtypes = {t.dtype for n, t in checkpoint.tensors.items() if "generators/" not in n}
        assert dtypes == {torch.float32}
        records = read_metrics(tmp_path / precision / "metrics.jsonl")
        losses[precision] = [r["loss"] for r in records if r["kind"] == "train"]
    assert losses["bf16"] != losses["fp32"], "nothing was computed in bfloat16"
    for other in ("medium", "bf16"):
        assert losses[other] == pytest.approx(losses["fp32"], rel=0.03)


@pytest.mark.usefixtures("_matmul_precision")
def test_a_run_in_bfloat16_resumes_with_the_same_bits(tmp_path, series):
    whole = trainer_for(tmp_path, "whole", data__train=series, run__precision="bf16")
    whole.fit()
    whole.close()
    part = trainer_for(tmp_path, "part", data__train=series, run__precision="bf16")
    part.fit(5)
    part.close()
    rest = resume(tmp_path / "part")
    rest.fit()
    rest.close()
    assert contents(tmp_path / "part", 12) == contents(tmp_path / "whole", 12)
