"""Local learning, backpropagation and their mixtures, in whole runs and one step at a time."""

import dataclasses
import math

import pytest
import torch

from spherescan.config import load_config
from spherescan.data import Batch
from spherescan.errors import CheckpointError, ConfigError, NonFiniteError, RunDirectoryError
from spherescan.inference import Predictor
from spherescan.runs import read_metrics
from spherescan.surgery import EqualWeights, GradNorm, sum_gradients
from spherescan.train import Reporter, hybrid_step, resume, start
from spherescan.train.local import LOCAL_LOSSES, HeadLoss, Passage
from spherescan.train.merge import Merger
from tests.tolerances import assert_close
from tests.train import test_training

TINY = test_training.TINY | {"model.n_layers": "3"}
HEADS = {"local.loss": "prototype"}
MODES = {
    "backprop": {},
    "recompute": {"run.recompute": "true"},
    "detached": HEADS | {"local.mode": "detached", "local.lr": "5e-3"},
    "grouped": HEADS | {"local.mode": "grouped", "local.group": "2", "run.recompute": "true"},
    "deep": HEADS | {"local.weight": "0.5", "surgery.backprop_every": "3", "run.recompute": "true"},
    "deep, cut": HEADS | {"local.stop_gradient_every": "2", "local.predict": "mean"},
    "cross-entropy": {"local.loss": "cross_entropy", "surgery.backprop_every": "2"},
    "goodness": {"local.loss": "goodness", "local.mode": "detached", "model.bidirectional": "true"},
    "symmetric": {
        "local.loss": "symmetric_goodness",
        "local.negatives": "shuffled_segments",
        "surgery.backprop_every": "2",
    },
    "time shift": {"local.loss": "goodness", "local.negatives": "time_shift"},
    "their negatives": {"local.loss": "goodness", "local.negatives": "rust_trainer"},
    "surgery": HEADS | {"local.mode": "surgery"},
    "gradvac": HEADS | {"local.mode": "surgery", "surgery.aggregator": "gradvac"},
    "gradnorm": HEADS
    | {"local.mode": "surgery", "surgery.weighting": "gradnorm", "run.recompute": "true"},
    "dropout": {"model.dropout": "0.3"},
    "dropout, local": HEADS
    | {
        "model.dropout": "0.3",
        "model.bidirectional": "true",
        "surgery.backprop_every": "2",
        "run.recompute": "true",
    },
    "surgery, cut": HEADS | {"local.mode": "surgery", "local.stop_gradient_every": "2"},
    "rust": {
        "local.loss": "rust_trainer",
        "local.mode": "surgery",
        "local.update": "sgd",
        "surgery.aggregator": "rust_gradnorm",
        "surgery.backprop_every": "2",
        "model.bidirectional": "true",
    },
}


def trainer_for(tmp_path, series, settings=None, name="run"):
    base = TINY | {"run.dir": str(tmp_path / name), "data.train": str(series)}
    return start(load_config(None, base | (settings or {})))


def step(trainer, batch=None, number=0, grad_clip=0.0):
    return hybrid_step(
        trainer.model,
        next(trainer.problem.stream) if batch is None else batch,
        trainer.problem.objective,
        trainer.optimizer,
        trainer.rule,
        trainer.mergers,
        step=number,
        lr=0.0,
        local_lr=0.0,
        grad_clip=grad_clip,
    )


def batch_in_float64(trainer):
    """Make the model one of float64, and return the next batch for it."""
    trainer.model.double()
    first = next(trainer.problem.stream)
    return Batch(first.inputs.double(), first.targets, first.mask)


def gradients(trainer, number=0):
    """Take a step of length zero in float64, and return what it made of the batch."""
    batch = batch_in_float64(trainer)
    step(trainer, batch, number)
    found = {n: p.grad for n, p in trainer.model.named_parameters() if p.grad is not None}
    trainer.close()
    return batch, {name: gradient.clone() for name, gradient in found.items()}


def losses(trainer, batch, *, cuts=()):
    """Return the loss after every block, written out without any of the trainer's machinery."""
    model, objective = trainer.model, trainer.problem.objective
    x, found = model.embedding(batch.inputs), []
    for index, block in enumerate(model.layers):
        if index in cuts:
            x = x.detach()
        x = x + block(x, mask=batch.mask)[1]
        last = index == len(model.layers) - 1
        z = (
            model.read_out(x, mask=batch.mask)
            if last
            else model.local_heads[str(index)](x, batch.mask)
        )
        found.append(objective.loss(z, model.head.prototypes, batch.targets).mean())
    return found


def expected_gradients(trainer, total):
    trainer.model.zero_grad()
    total.backward()
    return {n: p.grad for n, p in trainer.model.named_parameters() if p.grad is not None}


def assert_same_gradients(found, expected):
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert_close(found[name], gradient, what=name)


@pytest.mark.parametrize("recompute", ["false", "true"])
def test_deep_is_the_gradient_of_the_sum_of_all_losses(tmp_path, series, recompute):
    settings = HEADS | {"local.weight": "0.25", "run.recompute": recompute}
    trainer = trainer_for(tmp_path, series, settings)
    batch, found = gradients(trainer)
    *local, last = losses(trainer, batch)
    assert_same_gradients(found, expected_gradients(trainer, last + 0.25 * sum(local)))


def test_detached_gives_every_block_the_gradient_of_its_own_loss_alone(tmp_path, series):
    trainer = trainer_for(tmp_path, series, MODES["detached"])
    batch, found = gradients(trainer)
    every = losses(trainer, batch, cuts=(1, 2))
    assert_same_gradients(found, expected_gradients(trainer, sum(every)))
    # The cut is real: what the last loss alone gives ends at the last block.
    alone = expected_gradients(trainer, losses(trainer, batch, cuts=(1, 2))[-1])
    assert {name.split(".")[1] for name in alone if name.startswith("layers.")} == {"2"}


def test_groups_learn_by_the_loss_at_their_end(tmp_path, series):
    trainer = trainer_for(tmp_path, series, MODES["grouped"])
    assert set(trainer.model.local_heads) == {"1"}
    batch, found = gradients(trainer)
    trainer.model.local_heads["0"] = trainer.model.local_heads["1"]  # for the loss that is not used
    _, middle, last = losses(trainer, batch, cuts=(2,))
    del trainer.model.local_heads["0"]
    assert_same_gradients(found, expected_gradients(trainer, middle + last))


@pytest.mark.parametrize("loss", LOCAL_LOSSES)
def test_a_block_learns_from_what_it_computes_and_nothing_above(tmp_path, series, loss):
    """Every local loss: all parameters of each block, and the same whatever lies above them."""
    settings = {"local.loss": loss, "local.mode": "detached"}
    found = []
    for above in (1.0, 3.0):
        trainer = trainer_for(tmp_path, series, settings, f"run-{above}")
        with torch.no_grad():
            for parameter in trainer.model.layers[2].parameters():
                parameter.mul_(above)
        found.append(gradients(trainer)[1])
    names = {n for n, _ in trainer.model.named_parameters() if n.startswith("layers.")}
    if loss == "rust_trainer":
        names = {name for name in names if name.endswith(".D")}
        assert found[0].keys() == names
    assert {name for name in names if bool(found[0][name].any())} == names
    below = [name for name in names if not name.startswith("layers.2.")]
    assert all(torch.equal(found[0][name], found[1][name]) for name in below)


@pytest.mark.parametrize("settings", [{}, {"local.loss": "goodness"}])
def test_the_local_loss_of_a_step_has_no_loss_of_the_task(tmp_path, series, settings):
    """It means the same in a local step, where the last block learns by the loss of the task."""
    settings = HEADS | {"surgery.backprop_every": "2"} | settings
    trainer = trainer_for(tmp_path, series, settings)
    batch = next(trainer.problem.stream)
    local, joint = step(trainer, batch, 0), step(trainer, batch, 1)
    trainer.close()
    assert (local.loss, joint.loss is None) == (None, False)
    assert local.local_loss == pytest.approx(joint.local_loss, rel=1e-5)
    assert local.groups[-1].local_loss is not None


@pytest.mark.parametrize("mode", ["deep", "surgery"])
def test_a_cut_stops_backpropagation_in_front_of_a_group(tmp_path, series, mode):
    settings = HEADS | {"local.mode": mode, "local.stop_gradient_every": "2"}
    if mode == "surgery":
        settings["surgery.aggregator"] = "sum"
    trainer = trainer_for(tmp_path, series, settings)
    batch, found = gradients(trainer)
    every = losses(trainer, batch, cuts=(2,))
    assert_same_gradients(found, expected_gradients(trainer, sum(every)))


@pytest.mark.unwatched
@pytest.mark.parametrize("recompute", ["false", "true"])
@pytest.mark.parametrize(("aggregator", "factor"), [("sum", 1.0), ("mean", 0.5)])
def test_surgery_computes_both_gradients_apart(tmp_path, series, aggregator, factor, recompute):
    settings = HEADS | {"local.mode": "surgery", "surgery.aggregator": aggregator}
    trainer = trainer_for(tmp_path, series, settings | {"run.recompute": recompute})
    batch, found = gradients(trainer)
    # Every block has the gradient of its own loss, its input held, and that of the last.
    last = losses(trainer, batch)[-1]
    backprop = {n: g.clone() for n, g in expected_gradients(trainer, last).items()}
    local = losses(trainer, batch, cuts=(1, 2))[:-1]
    own = expected_gradients(trainer, sum(local))
    assert found.keys() == backprop.keys() | own.keys()
    for name, gradient in found.items():
        if name in own and name in backprop:
            assert_close(gradient, factor * (own[name] + backprop[name]), what=name)
        else:
            assert_close(gradient, own.get(name, backprop.get(name)), what=name)


@pytest.mark.unwatched
def test_what_is_dropped_follows_from_the_seed_of_the_run_and_the_step(tmp_path, series):
    found = []
    for seed, number in ((0, 4), (0, 4), (0, 5), (1, 4)):
        settings = MODES["dropout"] | {"data.shuffle": "false"}
        trainer = trainer_for(tmp_path, series, settings, f"run-{len(found)}")
        trainer.rule = dataclasses.replace(trainer.rule, seed=seed)
        found.append(gradients(trainer, number)[1])
    first, again, next_step, other_seed = found
    for name, gradient in first.items():
        assert torch.equal(again[name], gradient)
    for other in (next_step, other_seed):
        assert not torch.equal(other["layers.0.mixer.D"], first["layers.0.mixer.D"])


def test_surgery_reports_the_angle_of_the_two_gradients(tmp_path, series):
    settings = HEADS | {"local.mode": "surgery", "surgery.aggregator": "pcgrad"}
    trainer = trainer_for(tmp_path, series, settings)
    model, batch = trainer.model, batch_in_float64(trainer)
    metrics = step(trainer, batch)
    trainer.close()
    assert [group.blocks for group in metrics.groups] == [range(1), range(1, 2), range(2, 3)]
    *local, last = losses(trainer, batch)
    for index, loss in enumerate(local):
        shared = [*model.layers[index].parameters()]
        shared += [] if index else [*model.embedding.parameters()]
        g, b = (
            torch.cat([p.flatten() for p in torch.autograd.grad(one, shared, retain_graph=True)])
            for one in (loss, last)
        )
        group = metrics.groups[index]
        assert group.cosine == pytest.approx(float(torch.cosine_similarity(g, b, dim=0)), rel=1e-9)
        assert group.conflict is (group.cosine < 0)
        assert group.weights == (1.0, 1.0)
        assert group.local_loss == pytest.approx(loss.item(), rel=1e-9)
    assert metrics.groups[2].cosine is None
    assert metrics.groups[2].local_loss is None
    assert metrics.loss == pytest.approx(last.item(), rel=1e-9)


def test_records_tell_how_far_each_block_has_moved(tmp_path, series):
    trainer = trainer_for(tmp_path, series, HEADS)
    layers = trainer.model.layers
    before = [[p.detach().clone() for p in layer.parameters()] for layer in layers]
    trainer.fit(1)
    trainer.close()
    record = read_metrics(tmp_path / "run" / "metrics.jsonl")[0]
    assert len(record["groups"]) == len(layers)
    for group, layer, old in zip(record["groups"], layers, before, strict=True):
        moved = [p.detach() - was for p, was in zip(layer.parameters(), old, strict=True)]
        wanted = float(torch.cat([each.flatten() for each in moved]).norm())
        assert group["update_norm"] == pytest.approx(wanted, rel=1e-5)
        assert wanted > 0


@pytest.mark.unwatched
def test_backpropagation_joins_at_its_cadence_and_each_loss_has_its_key(tmp_path, series):
    settings = HEADS | {"surgery.backprop_every": "4", "local.lr": "1e-4"}
    trainer = trainer_for(tmp_path, series, settings)
    trainer.fit()
    trainer.close()
    records = read_metrics(tmp_path / "run" / "metrics.jsonl")
    train = [record for record in records if record["kind"] == "train"]
    joined = [record["step"] for record in train if record["loss"] is not None]
    assert joined == [4, 8, 12]
    assert (train[-1]["bp_updates"], train[-1]["ff_updates"]) == (3, 12)
    for record in train:
        assert record["ff_loss"] > 0
        assert len(record["groups"]) == 3
        assert record["accuracy"] is not None
        assert all(group["update_norm"] > 0 for group in record["groups"])
        last = record["groups"][-1]["ff_loss"]
        assert (last is None) is (record["loss"] is not None)
    # The local learning rate follows the same schedule.
    assert train[4]["lr"] < 1.01e-4 < train[3]["lr"]


# Each takes one loss, negative, aggregator or cut that has tests of its own; the way it is trained
# is that of a mode which is not slow.
SLOW = ("cross-entropy", "symmetric", "time shift", "their negatives", "gradvac", "surgery, cut")


@pytest.mark.unwatched
@pytest.mark.parametrize(
    "mode", [pytest.param(m, marks=[pytest.mark.slow] if m in SLOW else []) for m in MODES]
)
def test_every_mode_trains_and_resumes_bit_for_bit(tmp_path, series, mode):
    whole = trainer_for(tmp_path, series, MODES[mode], "whole")
    whole.fit()
    whole.close()
    part = trainer_for(tmp_path, series, MODES[mode], "part")
    part.fit(7)
    part.close()
    again = resume(tmp_path / "part")
    again.fit()
    again.close()
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name]), name
    first, second = (
        [
            {k: v for k, v in r.items() if k != "run_id"}
            for r in read_metrics(tmp_path / n / "metrics.jsonl")
        ]
        for n in ("whole", "part")
    )
    assert first == second
    train = [record for record in first if record["kind"] == "train"]
    for record in train:
        assert math.isfinite(record["ff_loss"] if record["loss"] is None else record["loss"])
    Predictor.load(tmp_path / "part").predict([[[0.0, 0.0]] * 4])


@pytest.mark.unwatched
@pytest.mark.parametrize("mode", ["deep", "detached", "surgery"])
def test_the_classes_are_learned(tmp_path, series, mode):
    settings = MODES[mode] | {"run.steps": "60", "optim.lr": "0.02", "validation.every": "60"}
    settings.pop("local.lr", None)
    settings.pop("surgery.backprop_every", None)
    trainer = trainer_for(tmp_path, series, settings)
    trainer.fit()
    score = trainer.evaluate(trainer.problem.validation()).score
    trainer.close()
    assert score == 1.0


@pytest.mark.unwatched
def test_goodness_learns_to_tell_real_from_negative(tmp_path, series):
    trainer = trainer_for(
        tmp_path, series, MODES["goodness"] | {"run.steps": "30", "optim.lr": "0.02"}
    )
    seen = []

    class Watching(Reporter):
        def stepped(self, step, metrics, *, lr):
            seen.append([group.local_loss for group in metrics.groups])

    trainer.fit(reporter=Watching())
    trainer.close()
    first, last = (torch.tensor(rows).mean(0) for rows in (seen[:5], seen[-5:]))
    assert bool((last < 0.8 * first).all()), (first, last)


class _Kept:
    """A saved tensor that tells how many values are held at a time."""

    held = peak = 0

    def __init__(self, tensor):
        self.tensor, self.size = tensor, tensor.numel()
        _Kept.held += self.size
        _Kept.peak = max(_Kept.peak, _Kept.held)

    def __del__(self):
        _Kept.held -= self.size


def most_kept(tmp_path, series, settings, layers):
    name = f"run-{layers}-{len(list(tmp_path.iterdir()))}"
    trainer = trainer_for(tmp_path, series, settings | {"model.n_layers": str(layers)}, name)
    _Kept.held = _Kept.peak = 0
    with torch.autograd.graph.saved_tensors_hooks(_Kept, lambda kept: kept.tensor):
        step(trainer)
    trainer.close()
    return _Kept.peak


def test_a_local_step_holds_the_activations_of_one_block(tmp_path, series):
    two, six = (most_kept(tmp_path, series, MODES["detached"], n) for n in (2, 6))
    assert six < 1.2 * two
    assert most_kept(tmp_path, series, {}, 6) > 3 * two


@pytest.mark.unwatched
def test_recomputing_holds_little_more_than_one_block(tmp_path, series):
    plain = most_kept(tmp_path, series, {}, 6)
    assert most_kept(tmp_path, series, {"run.recompute": "true"}, 6) < 0.35 * plain
    deep = most_kept(tmp_path, series, HEADS | {"run.recompute": "false"}, 6)
    assert most_kept(tmp_path, series, HEADS, 6) < 0.35 * deep  # the default of this mode
    assert min(deep, most_kept(tmp_path, series, MODES["surgery"], 6)) > plain


@pytest.mark.unwatched
def test_each_parameter_counts_its_own_updates(tmp_path, series):
    settings = MODES["rust"] | {"local.update": "adamw", "surgery.backprop_every": "4"}
    trainer = trainer_for(tmp_path, series, settings)
    trainer.fit(8)
    trainer.close()
    counts = {
        name: int(trainer.optimizer.state[p]["step"])
        for name, p in trainer.model.named_parameters()
    }
    assert {n for n, c in counts.items() if c == 8} == {n for n in counts if n.endswith(".D")}
    assert {c for n, c in counts.items() if not n.endswith(".D")} == {2}


@pytest.mark.unwatched
@pytest.mark.parametrize("mode", ["detached", "deep", "surgery", "goodness"])
def test_a_step_that_is_not_finite_changes_nothing(tmp_path, series, mode):
    trainer = trainer_for(tmp_path, series, MODES[mode])
    trainer.fit(3)
    with torch.no_grad():
        trainer.model.layers[1].mixer.D[0] = math.nan
    before = {n: p.clone() for n, p in trainer.model.named_parameters()}
    with pytest.raises(NonFiniteError, match="nothing was updated"):
        trainer.fit(1)
    for name, parameter in trainer.model.named_parameters():
        assert torch.equal(parameter.nan_to_num(7.0), before[name].nan_to_num(7.0))
    trainer.close()


def test_a_skipped_step_leaves_the_state_of_mergers_alone(tmp_path, series):
    settings = MODES["gradnorm"] | {"run.on_non_finite": "skip", "run.recompute": "false"}
    trainer = trainer_for(tmp_path, series, settings)
    trainer.fit(2)
    before = [merger.state_dict() for merger in trainer.mergers]
    moments = {n: p for n, p in trainer._tensors().items() if n.startswith("optim/")}
    moments = {name: tensor.clone() for name, tensor in moments.items()}
    with torch.no_grad():
        trainer.model.local_heads["1"].projection.weight[0, 0] = math.nan
    assert step(trainer).updated is False
    assert [merger.state_dict() for merger in trainer.mergers] == before
    assert all(torch.equal(value, trainer._tensors()[name]) for name, value in moments.items())
    trainer.close()


@pytest.mark.parametrize("mode", ["gradnorm", "gradvac"])
def test_gradients_too_long_for_float32_are_not_finite(tmp_path, series, mode):
    """Each element is finite, so that only the length tells; nothing may change by such a step."""
    trainer = trainer_for(tmp_path, series, MODES[mode] | {"run.recompute": "false"})
    trainer.fit(2)
    before = [merger.state_dict() for merger in trainer.mergers]
    trainer.rule = dataclasses.replace(trainer.rule, weight=1e30)
    assert step(trainer).updated is False
    gradient = trainer.model.layers[0].mixer.out_proj.weight.grad
    assert bool(gradient.isfinite().all())
    assert [merger.state_dict() for merger in trainer.mergers] == before
    trainer.close()


@pytest.mark.parametrize("scale", [1e-17, 1.0, 1e17])
def test_the_angle_of_gradients_of_any_length(scale):
    merger = Merger(sum_gradients, EqualWeights())
    first, second = torch.tensor([3.0, 4.0]) * scale, torch.tensor([-3.0, -4.0]) * scale
    assert merger([first], [second], (1.0, 1.0))[1].cosine == pytest.approx(-1.0)
    assert merger([first], [0 * first], (1.0, 1.0))[1].cosine == 0.0


def test_gradients_are_multiplied_by_the_weights_that_are_told():
    merger = Merger(sum_gradients, GradNorm(rate=0.5))
    first, second = torch.tensor([[3.0, 4.0]]), torch.tensor([[0.1, 0.0]])
    (merged, own), meeting = merger([first, None], [second, second], (1.0, 1.0))
    assert meeting.weights[0] < 0.8
    assert meeting.weights[1] > 1.2
    torch.testing.assert_close(merged, meeting.weights[0] * first + meeting.weights[1] * second)
    assert own is second  # by one loss alone


def test_any_function_of_the_rows_is_an_aggregator(tmp_path, series):
    trainer = trainer_for(tmp_path, series, MODES["surgery"])
    trainer.mergers = [
        Merger(lambda jacobian: 2 * jacobian[0], EqualWeights()) for _ in trainer.mergers
    ]
    batch, found = gradients(trainer)
    *local, _ = losses(trainer, batch, cuts=(1, 2))
    own = expected_gradients(trainer, sum(local))
    for name in own:
        if name.startswith("layers."):
            assert_close(found[name], 2 * own[name], what=name)


@pytest.mark.parametrize(
    ("wrong", "found"),
    [
        (lambda rows: rows[0, :1], r"torch.float32 of shape \(1,\)"),
        (lambda rows: rows, r"torch.float32 of shape \(2, 4\)"),
        (lambda rows: rows.sum(0).double(), r"torch.float64 of shape \(4,\)"),
        (lambda rows: rows.sum(0).tolist(), "an object of type list"),
        (lambda _rows: None, "an object of type NoneType"),
    ],
)
def test_an_aggregator_that_returns_something_else_is_named(wrong, found):
    first = torch.ones(2, 2)
    expected = rf"aggregator .*lambda.* returned {found}; expected torch.float32 of shape \(4,\)"
    with pytest.raises(ValueError, match=expected):
        Merger(wrong, EqualWeights())([first], [first], (1.0, 1.0))


def test_a_direction_that_remembers_where_it_came_from_is_clipped_as_any_other(tmp_path, series):
    factor = torch.ones((), requires_grad=True)

    def clipped(name, aggregate):
        trainer = trainer_for(tmp_path, series, MODES["surgery"], name=name)
        trainer.mergers = [Merger(aggregate, EqualWeights()) for _ in trainer.mergers]
        assert step(trainer, grad_clip=1e-3).clipped
        trainer.close()
        return [p.grad for p in trainer.model.parameters() if p.grad is not None]

    expected = clipped("plain", lambda rows: rows.mean(0))
    leaf = clipped("leaf", lambda rows: rows.mean(0).requires_grad_())
    learned = clipped("learned", lambda rows: factor * rows.mean(0))
    for found in (leaf, learned):
        assert all(map(torch.equal, found, expected))
        assert not any(gradient.requires_grad for gradient in found)


def test_surgery_without_mergers_is_refused(tmp_path, series):
    trainer = trainer_for(tmp_path, series, MODES["surgery"])
    n_groups = len(trainer.mergers)
    trainer.mergers = []
    with pytest.raises(ValueError, match=f"0 mergers were given; .* one for each of {n_groups}"):
        step(trainer)
    trainer.close()


@pytest.mark.parametrize("mode", ["detached", "deep", "surgery"])
def test_a_batch_without_a_target_is_no_error(tmp_path, mode):
    tokens = tmp_path / "tokens"
    tokens.mkdir()
    for i in range(40):  # documents of one token have nothing to predict
        (tokens / f"{i:02}.txt").write_text("1 2 3 4 5" if i < 4 else "7")
    settings = HEADS | {
        "local.mode": mode, "data.source": "tokens", "data.train": str(tokens),
        "data.extension": "txt", "data.vocab_size": "auto", "data.seq_len": "4",
        "data.batch_size": "1", "data.validation_fraction": "0.9", "data.shuffle": "false",
    }  # fmt: skip
    if mode == "surgery":
        settings["surgery.weighting"] = "gradnorm"
    trainer = start(load_config(None, TINY | settings | {"run.dir": str(tmp_path / "run")}))
    for stream in [trainer.problem.stream]:
        batch = next(stream)
        nothing = Batch(batch.inputs, torch.full_like(batch.targets, -1), batch.mask, batch.reset)
        metrics = step(trainer, nothing)
    assert metrics.updated
    assert metrics.local_loss == 0.0
    trainer.close()


def test_local_and_joint_gradients_agree_in_bfloat16_too(tmp_path, series):
    """With one group there is nothing to detach: both kinds of step have the same gradient."""
    settings = {"run.precision": "bf16", "model.n_layers": "1"}
    plain = trainer_for(tmp_path, series, settings, "plain")
    local = trainer_for(
        tmp_path, series,
        settings | {"local.loss": "goodness", "local.mode": "detached"}, "local",
    )  # fmt: skip
    local.rule = dataclasses.replace(
        local.rule, local=HeadLoss(local.problem.objective, "prototype")
    )
    found = []
    for trainer in (plain, local):
        step(trainer)
        found.append({n: p.grad for n, p in trainer.model.named_parameters()})
        trainer.close()
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


@pytest.mark.unwatched
@pytest.mark.parametrize(("base", "target", "group"), [(2, 6, 1), (4, 6, 2), (3, 5, 2)])
def test_mergers_grow_with_the_model(tmp_path, series, base, target, group):
    settings = MODES["gradnorm"] | {
        "model.n_layers": str(base), "local.group": str(group), "grow.layers": str(target),
        "grow.placement": "append", "grow.at_step": "3", "run.recompute": "false",
    }  # fmt: skip
    trainer = trainer_for(tmp_path, series, settings)
    trainer.fit(3)
    begun = [bool(merger.state_dict()["weighting"]["first"]) for merger in trainer.mergers]
    assert len(begun) == len(trainer.rule.groups(target))
    # One block each: the old groups go on, and the former last one had nothing to merge yet.
    assert begun == ([True, *[False] * 5] if group == 1 else [False] * len(begun))
    trainer.fit(2)
    trainer.close()


def test_an_embedding_below_a_frozen_group_still_learns(tmp_path, series):
    settings = MODES["detached"] | {"freeze.blocks": "first:1"}
    trainer = trainer_for(tmp_path, series, settings)
    before = trainer.model.embedding.linear.weight.detach().clone()
    trainer.fit(2)
    trainer.close()
    assert not torch.equal(trainer.model.embedding.linear.weight, before)


def test_padding_does_not_count_in_the_loss_of_rust_trainer(tmp_path, series):
    trainer = trainer_for(tmp_path, series, MODES["rust"])
    batch = next(b for b in trainer.problem.stream if not bool(b.mask.all()))
    found = []
    for filler in (0.0, 3.0):
        inputs = torch.where(batch.mask[:, :, None], batch.inputs, filler)
        with torch.no_grad():
            x = trainer.model.begin(inputs)
            x = torch.where(batch.mask[:, :, None], x, filler)
            passage = Passage(trainer.model, range(1), x, x, batch)
        found.append(trainer.rule.local.loss(passage).item())
    trainer.close()
    assert found[0] == pytest.approx(found[1], rel=1e-5)


GROWTH = {"grow.layers": "5", "grow.placement": "specific:1,4", "grow.at_step": "6"}


@pytest.mark.unwatched
@pytest.mark.parametrize(
    ("mode", "interrupted_at"),
    [("backprop", 5), ("dropout", 6), ("detached", 7), ("dropout, local", 7), ("gradnorm", 7)],
)
def test_a_run_that_grows_and_freezes_resumes_bit_for_bit(tmp_path, series, mode, interrupted_at):
    settings = MODES[mode] | GROWTH | {"freeze.blocks": "first:1", "freeze.until_step": "9"}
    whole = trainer_for(tmp_path, series, settings, "whole")
    whole.fit()
    whole.close()
    part = trainer_for(tmp_path, series, settings, "part")
    part.fit(interrupted_at)
    assert len(part.model.layers) == (3 if interrupted_at < 6 else 5)
    part.close()
    again = resume(tmp_path / "part")
    again.fit()
    again.close()
    assert len(again.model.layers) == 5
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name]), name
    assert Predictor.load(tmp_path / "part").description.n_layers == 5


@pytest.mark.unwatched
def test_growing_mid_run_changes_no_output_and_keeps_the_state_of_the_optimiser(tmp_path, series):
    trainer = trainer_for(tmp_path, series, HEADS | GROWTH)
    trainer.fit(5)
    old = dict(trainer.model.layers[0].named_parameters())
    x = torch.randn(2, 6, 2)
    compared_at = []
    model = trainer.model
    grow_step = trainer._change_depth

    def compared():
        before = model.embed(x)
        moments = {name: trainer.optimizer.state[p]["exp_avg"].clone() for name, p in old.items()}
        grow_step()
        assert len(model.layers) == 5
        assert_close(model.embed(x), before)
        for name, p in old.items():
            assert torch.equal(trainer.optimizer.state[p]["exp_avg"], moments[name])
        assert all(p not in trainer.optimizer.state for p in model.layers[1].parameters())
        compared_at.append(trainer.counters.step)

    trainer._change_depth = compared
    trainer.fit(1)
    trainer._change_depth = grow_step
    assert compared_at == [6]
    trainer.fit(2)
    for index in (1, 4):
        for name, p in model.layers[index].named_parameters():
            assert bool(trainer.optimizer.state[p]["exp_avg"].any()), name
    trainer.close()


def test_frozen_tensors_keep_their_bits_until_they_are_freed(tmp_path, series):
    settings = HEADS | {
        "freeze.blocks": "indices:0,1",
        "freeze.embedding": "true",
        "freeze.until_step": "8",
    }
    trainer = trainer_for(tmp_path, series, settings)
    before = {n: p.detach().clone() for n, p in trainer.model.named_parameters()}
    frozen = ("layers.0.", "layers.1.", "embedding.", "local_heads.")
    trainer.fit(8)
    for name, parameter in trainer.model.named_parameters():
        assert torch.equal(parameter, before[name]) is name.startswith(frozen), name
    trainer.fit(1)
    for name, parameter in trainer.model.named_parameters():
        assert not torch.equal(parameter, before[name]), name
    trainer.close()


@pytest.mark.unwatched
def test_a_run_starts_from_the_weights_of_another(tmp_path, series):
    first = trainer_for(tmp_path, series, {}, "first")
    first.fit()
    first.close()
    settings = HEADS | {"grow.base": str(tmp_path / "first"), "grow.layers": "4", "run.seed": "3"}
    second = trainer_for(tmp_path, series, settings, "second")
    best = Predictor.load(tmp_path / "first").model
    x = torch.randn(3, 5, 2)
    assert_close(second.model.embed(x), best.embed(x))
    second.fit()
    second.close()
    resume(tmp_path / "second").close()
    with pytest.raises(CheckpointError, match=r"is of another model: .*grow\.base needs the model"):
        trainer_for(tmp_path, series, settings | {"model.d_model": "16"}, "third")
    with pytest.raises(RunDirectoryError, match="no such run or checkpoint"):
        trainer_for(tmp_path, series, settings | {"grow.base": str(tmp_path / "none")}, "third")
    assert not (tmp_path / "third").exists()


@pytest.mark.unwatched
@pytest.mark.parametrize("before", ["cba", "xyz", "abcd"])
def test_a_base_whose_classes_have_other_names_or_another_order_is_refused(tmp_path, before):
    base = test_training.write_series(tmp_path / "base.ts", classes=before)
    trainer_for(tmp_path, base, {}, "base").close()
    data = test_training.write_series(tmp_path / "data.ts", classes="abc")
    settings = {"grow.base": str(tmp_path / "base")}
    there = ", ".join(map(repr, before))
    message = rf"base: learned another .* was \[{there}\], is \['a', 'b', 'c'\]; .* grow\.base out"
    with pytest.raises(CheckpointError, match=message):
        trainer_for(tmp_path, data, settings)


def test_channels_of_a_base_are_compared_where_they_have_names(tmp_path):
    for name, columns in (("ab", "a,b"), ("ba", "b,a")):
        rows = [f"{i},{'xy'[i % 2]},{i},{t}" for i in range(20) for t in range(3)]
        (tmp_path / f"{name}.csv").write_text("\n".join([f"case,label,{columns}", *rows]) + "\n")
    trainer_for(tmp_path, tmp_path / "ab.csv", {}, "named").close()
    settings = {"grow.base": str(tmp_path / "named")}
    with pytest.raises(CheckpointError, match=r"channel_names was \['a', 'b'\], is \['b', 'a'\]"):
        trainer_for(tmp_path, tmp_path / "ba.csv", settings, "other")
    unnamed = test_training.write_series(tmp_path / "unnamed.ts", classes="xy")
    trainer_for(tmp_path, unnamed, settings, "unnamed").close()


REFUSED = [
    ({"local.loss": "forward"}, r"local\.loss is \"forward\"; it should be .*prototype"),
    ({**HEADS, "local.mode": "both"}, r"local\.mode is \"both\"; it should be .*'surgery'"),
    (
        {**HEADS, "local.mode": "surgery", "surgery.aggregator": "pcgrd"},
        r"surgery\.aggregator is \"pcgrd\"; it should be .*'nash_mtl'",
    ),
    (
        {"local.loss": "goodness", "local.negatives": "reversed"},
        r"local\.negatives is \"reversed\"; it should be .*'time_shift'",
    ),
    (
        {**HEADS, "local.mode": "surgery", "surgery.weighting": "uniform"},
        r"surgery\.weighting is \"uniform\"; it should be .*'gradnorm'",
    ),
    ({"local.mode": "detached"}, r"local\.mode is .* only with a local\.loss"),
    ({"surgery.backprop_every": "4"}, r"surgery\.backprop_every is 4; .* only with a local\.loss"),
    ({**HEADS, "surgery.backprop_every": "0"}, r"surgery\.backprop_every is 0; it should be"),
    ({**HEADS, "surgery.aggregator": "pcgrad"}, r'only .* local\.mode = "surgery"'),
    ({**HEADS, "local.lr": "1e-4"}, r"local\.lr is 0\.0001; .* when some steps are local"),
    (MODES["detached"] | {"local.update": "sgd"}, r'only with local\.loss = "rust_trainer"'),
    ({**HEADS, "local.mode": "detached", "local.group": "2"}, r"local\.group is 2"),
    (
        {**HEADS, "local.group": "2", "local.stop_gradient_every": "3"},
        r"local\.stop_gradient_every is 3; it must be a multiple of local\.group, which is 2",
    ),
    ({"local.loss": "rust_trainer", "model.expand": "2"}, r"needs model\.expand = 1"),
    ({"local.loss": "cross_entropy", "data.task": "regression"}, "needs classes"),
    ({"local.loss": "goodness", "data.task": "regression"}, "needs one class per sequence"),
    ({"local.loss": "goodness", "data.source": "tokens"}, "needs one class per sequence"),
    ({**HEADS, "local.group": "3"}, r"local\.group is 3 and the model has 3 blocks"),
    ({**HEADS, "local.stop_gradient_every": "3"}, "nothing would be cut"),
    ({**HEADS, "local.predict": "mean", "grow.layers": "5"}, "some of them have not learned"),
    ({**HEADS, "local.predict": "mean", "freeze.blocks": "first:1"}, "have not learned"),
    (
        MODES["rust"] | {"surgery.weighting": "gradnorm"},
        r"compares losses with their first values",
    ),
    ({"freeze.blocks": "first:3"}, r"freeze\.blocks is 'first:3': all 3 blocks"),
    ({"freeze.blocks": "first:4"}, r"the model has blocks 0\.\.2"),
    ({"freeze.blocks": "indices:0,0"}, "names a block twice"),
    ({"freeze.blocks": "last:1"}, "give none, first:N or indices:I,J"),
    ({"freeze.until_step": "4"}, "only when something is frozen"),
    ({"freeze.prototypes": "true"}, r"only with prototypes\.learnable"),
    ({"grow.layers": "2"}, r"grow\.layers is 2 and the model has 3 already"),
    ({"grow.layers": "3"}, r"grow\.layers is 3 and the model has 3 already"),
    ({"grow.placement": "prepend"}, r"only with grow\.layers"),
    ({"grow.layers": "5", "grow.placement": "insert:4"}, r"N lies in 0\.\.3"),
    ({"grow.layers": "5", "grow.placement": "specific:1"}, "1 positions for 2 new blocks"),
    ({"grow.layers": "5", "grow.placement": "specific:1,1"}, "names a position twice"),
    ({"grow.layers": "5", "grow.placement": "specific:1,5"}, r"has blocks 0\.\.4"),
    (
        {"grow.layers": "5", "grow.placement": "middle"},
        "give append, prepend, insert:N or specific",
    ),
    ({"grow.layers": "5", "grow.at_step": "12"}, "the run ends at step 12"),
    (MODES["goodness"] | {"grow.layers": "4"}, "new ones add zero, .* they would never learn"),
    (
        MODES["goodness"] | {"local.mode": "grouped", "local.group": "2", "grow.layers": "6"},
        "new ones add zero",
    ),
    (
        MODES["goodness"]
        | {"local.mode": "surgery", "surgery.aggregator": "mgda", "grow.layers": "4"},
        'surgery.aggregator = "mgda" they would never learn',
    ),
    (
        HEADS | {"local.mode": "surgery", "local.stop_gradient_every": "1"},
        "no group would have two gradients",
    ),
    (HEADS | {"surgery.backprop_every": "13"}, r"13 and run\.steps is 12: .* never join"),
    (
        {
            "grow.layers": "5",
            "grow.at_step": "4",
            "freeze.blocks": "first:1",
            "freeze.until_step": "4",
        },
        r"freeze\.until_step is 4",
    ),
    (
        {"freeze.blocks": "first:1", "freeze.until_step": "12"},
        r"freeze\.until_step is 12; the run ends at step 12, .* or 0 for never",
    ),
    ({"model.form": "rust_trainer"}, r"needs model\.gate = false"),
    ({"prototypes.init": "rust_trainer"}, "belong together"),
]


@pytest.mark.parametrize(("settings", "message"), REFUSED)
def test_impossible_combinations_are_refused_before_data_is_read(settings, message):
    with pytest.raises(ConfigError, match=message):
        load_config(None, TINY | {"data.train": "there is no such file"} | settings)
