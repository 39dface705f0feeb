"""NaN and infinities put into every place of a step: found before the update, never saved."""

import dataclasses
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from spherescan.errors import NonFiniteError
from spherescan.runs import read_checkpoint, read_metrics
from spherescan.train import Reporter, Trainer, resume
from tests.train.test_training import trainer_for, write_series

pytestmark = pytest.mark.unwatched

VALUES = [math.nan, math.inf, pytest.param(-math.inf, marks=pytest.mark.slow)]
AT, END = 7, 9  # the step before has neither a validation nor a checkpoint
LOCAL = {"local__loss": "goodness", "local__mode": "deep", "model__n_layers": 2}


@pytest.fixture
def trainer(tmp_path) -> Iterator[Callable[..., Trainer]]:
    """Make trainers with a local loss of its own kind, and close them."""
    made = []

    def make(**changes) -> Trainer:
        series = write_series(tmp_path / "train.ts")
        settings = LOCAL | {"data__train": series, "run__steps": END} | changes
        made.append(trainer_for(tmp_path, f"run-{len(made)}", **settings))
        return made[-1]

    yield make
    for each in made:
        each.close()


def state_of(trainer: Trainer) -> dict[str, Tensor]:
    """Return all weights, buffers and moments, themselves."""
    found = dict(trainer.model.state_dict())
    for name, parameter in trainer.model.named_parameters():
        for key, value in trainer.optimizer.state[parameter].items():
            found[f"{key} of {name}"] = value
    return {name: tensor for name, tensor in found.items() if tensor.is_floating_point()}


def copied(trainer: Trainer) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in state_of(trainer).items()}


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    pairs = zip(left.values(), right.values(), strict=True)
    return left.keys() == right.keys() and all(torch.equal(a, b) for a, b in pairs)


def put(tensor: Tensor, value: float) -> None:
    with torch.no_grad():
        tensor.view(-1)[tensor.numel() // 2] = value


def expect_finite_files(run: Path) -> None:
    paths = list(run.rglob("*.safetensors"))
    assert paths
    for path in paths:
        tensors = read_checkpoint(path).tensors
        assert all(bool(tensor.isfinite().all()) for tensor in tensors.values()), path


def events_of(trainer: Trainer, kind: str) -> list[dict[str, object]]:
    return [e for e in read_metrics(trainer.store.path / "events.jsonl") if e["kind"] == kind]


class Poison(Reporter):
    """Put a value into one place of the run, once: in the step AT, or right before it."""

    def __init__(self, trainer: Trainer, place: str, value: float) -> None:
        self.trainer, self.place, self.value = trainer, place, value
        self.before: dict[str, Tensor] = {}
        self.done = False
        self.weight = trainer.model.layers[0].mixer.out_proj.weight
        objective, rule = trainer.problem.objective, trainer.rule
        match place:
            case "loss" | "validation":
                poisoned = dataclasses.replace(objective, loss=self.poisoned(objective.loss))
                trainer.problem = dataclasses.replace(trainer.problem, objective=poisoned)
            case "local loss":
                local = dataclasses.replace(rule.local, compare=self.poisoned(rule.local.compare))
                trainer.rule = dataclasses.replace(rule, local=local)
            case "gradient":
                self.weight.register_hook(self.poisoned(lambda gradient: gradient))

    def poisoned(self, real: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """Return the function; at its time one element of what it returns is the value."""

        def call(*arguments: Tensor) -> Tensor:
            result = real(*arguments)
            if self.done or not self.is_time():
                return result
            self.done = True
            # Added, so that a loss is not finite while its gradient is.
            mask = torch.zeros_like(result)
            mask.view(-1)[0] = self.value
            return result + mask

        return call

    def is_time(self) -> bool:
        step, validates = self.trainer.counters.step, not self.trainer.model.training
        return step == AT if self.place == "validation" else step == AT - 1 and not validates

    def stepped(self, step, metrics, *, lr):
        if step != AT - 1 or self.done:
            return
        self.before = copied(self.trainer)
        if self.place in {"weight", "moment"}:
            self.done = True
            moments = self.trainer.optimizer.state[self.weight]
            put(self.weight if self.place == "weight" else moments["exp_avg"], self.value)


@pytest.mark.parametrize("policy", ["fail", "skip", "rollback"])
@pytest.mark.parametrize("place", ["loss", "local loss", "gradient", "weight", "moment"])
@pytest.mark.parametrize("value", VALUES)
def test_each_policy_does_what_it_says_wherever_it_is_found(trainer, policy, place, value):
    run = trainer(run__on_non_finite=policy, checkpoint__keep=9)
    poison = Poison(run, place, value)
    of_step = place not in {"weight", "moment"}
    if policy == "rollback" or (policy == "skip" and of_step):
        assert run.fit(reporter=poison) == "finished"
    else:
        with pytest.raises(NonFiniteError):
            run.fit(reporter=poison)
        assert of_step is False or same(copied(run), poison.before)
    assert poison.done
    first, *_ = events_of(run, "nonfinite")
    assert first["policy"] == policy
    if of_step:
        assert first["step"] == AT
        report = json.loads((run.store.path / f"nonfinite-step-{AT}.json").read_text())
        assert report["step"] == AT
    expect_finite_files(run.store.path)
    steps = [r["step"] for r in read_metrics(run.store.metrics_path) if r["kind"] == "train"]
    match policy:
        case "fail":
            assert run.store.steps()[-1] < AT
            assert steps[-1] >= AT
        case "skip" if of_step:
            assert (run.counters.skipped, run.counters.step) == (1, END)
        case "rollback":
            assert (run.guard.rollbacks, run.guard.lr_scale) == (1, 0.5)
            assert steps == list(range(1, END + 1))
            assert all(bool(tensor.isfinite().all()) for tensor in state_of(run).values())


class EachGradient(Reporter):
    """Put a value into the gradient of one parameter after the other, in every second step."""

    def __init__(self, trainer: Trainer, value: float) -> None:
        self.trainer, self.value = trainer, value
        self.names = [name for name, _ in trainer.model.named_parameters()]
        self.left = list(trainer.model.parameters())
        self.before: dict[str, Tensor] = {}
        self.calls = 0

    def stepped(self, step, metrics, *, lr):
        name = self.names[len(self.names) - len(self.left) - 1]
        if step % 2 == 0:
            self.hook.remove()
            assert self.calls > 0, name
            assert not metrics.updated, name
            assert same(copied(self.trainer), self.before), name
            return
        assert metrics.updated
        assert not same(copied(self.trainer), self.before), name
        if self.left:
            self.before, self.calls = copied(self.trainer), 0
            self.hook = self.left.pop(0).register_hook(self.poison)

    def poison(self, gradient: Tensor) -> Tensor:
        self.calls += 1
        gradient = gradient.clone()
        put(gradient, self.value)
        return gradient


@pytest.mark.parametrize("mode", ["deep", "surgery"])
@pytest.mark.parametrize("value", VALUES)
def test_no_gradient_that_is_not_finite_changes_anything(trainer, mode, value):
    run = trainer(
        run__on_non_finite="skip", local__mode=mode, prototypes__learnable="true",
        run__steps=100_000, optim__warmup_steps=0, validation__every=100_000,
        checkpoint__every=100_000,
    )  # fmt: skip
    each = EachGradient(run, value)
    n = len(each.left)
    run.fit(2 * n + 1, reporter=each)
    assert each.left == []
    assert run.counters.skipped == n > 20
    records = read_metrics(run.store.metrics_path)
    assert [r["step"] for r in records if r.get("nonfinite")] == list(range(2, 2 * n + 1, 2))
    assert [r["step"] for r in records if r["skipped"]] == list(range(2, 2 * n + 1, 2))
    expect_finite_files(run.store.path)


@pytest.mark.parametrize("value", VALUES)
def test_no_weight_or_moment_that_is_not_finite_is_ever_saved(trainer, value):
    run = trainer(
        prototypes__learnable="true", run__steps=100_000, validation__every=100_000,
        checkpoint__every=100_000,
    )  # fmt: skip
    run.fit(2)
    saved, kept = run.store.steps(), copied(run)
    assert {name.split(" of ")[0] for name in kept if " of " in name} == {
        "exp_avg", "exp_avg_sq", "step",
    }  # fmt: skip
    for name in kept:
        put(state_of(run)[name], value)
        # Found in the step, or at the latest by the save after it.
        with pytest.raises(NonFiniteError):
            run.fit(1)
        assert run.store.steps() == saved, name
        with torch.no_grad():
            for each, tensor in state_of(run).items():
                tensor.copy_(kept[each])
    run.fit(1)
    assert run.store.steps()[-1] == run.counters.step
    expect_finite_files(run.store.path)


@pytest.mark.parametrize(
    ("policy", "every"), [("fail", 1), ("fail", AT), ("skip", AT), ("rollback", AT)]
)
@pytest.mark.parametrize("value", VALUES)
def test_a_validation_that_is_not_finite_is_told_and_improves_nothing(
    trainer, policy, every, value
):
    """Whether it is the first one of the run, or a later one; what was best stays so."""
    run = trainer(run__on_non_finite=policy, validation__every=every)
    poison = Poison(run, "validation", value)
    assert run.fit(AT, reporter=poison) == "finished"
    assert poison.done
    assert run.counters.best_step != AT
    assert run.counters.lowest_loss is None or math.isfinite(run.counters.lowest_loss)
    assert run.counters.since_improvement >= 1
    (event,) = events_of(run, "nonfinite")
    assert (event["step"], event["reason"]) == (AT, f"validation loss {value}")
    (line,) = (r for r in read_metrics(run.store.metrics_path) if "n" in r and r["step"] == AT)
    assert (line["nonfinite"], line["best"]) == (True, False)
    run.close()
    again = resume(run.store.path)
    assert again.fit() == "finished"
    again.close()
    assert again.counters.best_step is not None
    expect_finite_files(run.store.path)
