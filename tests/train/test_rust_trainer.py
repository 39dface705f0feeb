"""The preset rust-trainer against an independent implementation in NumPy."""

import json
import sys

import numpy as np
import pytest
import torch

import spherescan
from spherescan.config import load_config, parse_config, rust_trainer
from spherescan.errors import ConfigError, DataError
from spherescan.inference import Predictor
from spherescan.runs import read_metrics
from spherescan.train import Reporter, resume, start
from tests.rust_trainer_reference import Layer, ReferenceTrainer, expand, new_positions

TINY = {
    "d-model": "6",
    "d-state": "3",
    "d-conv": "3",
    "batch-size": "3",
    "seq-len": "7",
    "steps": "50",
    "lr": "3e-3",
    "ff-lr": "2e-3",
}
SYNTHETIC = {"data.source": "synthetic", "data.vocab_size": "11"}


def trainer_for(tmp_path, flags=None, overrides=None):
    return start(
        rust_trainer.rust_trainer_config(
            None,
            TINY | {"out-dir": str(tmp_path / "run")} | (flags or {}),
            SYNTHETIC | (overrides or {}),
        )
    )


def as_theirs(model) -> tuple[np.ndarray, list[Layer], np.ndarray]:
    """Return our tensors in the layout of that program, as copies."""

    def array(tensor):
        return tensor.detach().numpy().copy()

    layers = []
    for block in model.layers:
        mixer = block.mixer
        rank, n = mixer.dt_rank, mixer.d_state
        x_proj = array(mixer.x_proj.weight)
        layers.append(
            Layer(
                A_log=array(mixer.A_log),
                D=array(mixer.D),
                x_proj=np.concatenate([x_proj[rank:], x_proj[:rank]]).T,
                dt_proj_w=array(mixer.dt_proj.weight).T,
                dt_proj_b=array(mixer.dt_proj.bias),
                conv_w=array(mixer.conv1d.weight)[:, 0],
                conv_b=array(mixer.conv1d.bias),
                out_proj=array(mixer.out_proj.weight).T,
            )
        )
        assert x_proj.shape == (rank + 2 * n, mixer.d_inner)
    return array(model.embedding.weight), layers, array(model.head.weight)


def assert_same_tensors(reference: ReferenceTrainer, model, *, where: str) -> None:
    embedding, layers, prototypes = as_theirs(model)
    ours = {"embedding": embedding, "prototypes": prototypes}
    for i, layer in enumerate(layers):
        ours |= {f"layers.{i}.{name}": value for name, value in vars(layer).items()}
    theirs = reference.parameters()
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        error = np.abs(ours[name] - expected).max() / max(np.abs(expected).max(), 1e-12)
        assert error <= 1e-6, f"{where}, {name}: {error:.1e}"


@pytest.mark.unwatched
@pytest.mark.parametrize("method", ["pcgrad", "gradnorm", "cagradstep"])
@pytest.mark.parametrize(
    ("flags", "frozen"),
    [
        ({"bp-cadence-steps": "3"}, {0, 1}),
        (
            {
                "bp-cadence-steps": "2",
                "target-layers": "2",
                "freeze": "none",
                "grad-clip-norm": "0.05",
                "lr-warmup-steps": "5",
                "freeze-embedding": "true",
                "cagrad-lambda": "1.7",
                "gradnorm-alpha": "0.6",
                "gradient-surgery-epsilon": "1e-4",
            },
            set(),
        ),
        (
            {
                "bp-cadence-steps": "1",
                "placement": "insert:1",
                "target-layers": "3",
                "freeze": "indices:2",
            },
            {2},
        ),
    ],
)
def test_fifty_steps_equal_the_reference(tmp_path, method, flags, frozen):
    trainer = trainer_for(tmp_path, flags | {"gradient-surgery-method": method})
    model = trainer.model.double()
    with torch.no_grad():  # as they begin, weights are too small for the hinge ever to be positive
        for name, parameter in model.named_parameters():
            parameter.mul_(1.0 if name.endswith("D") else 20.0)
    optim, local, surgery = trainer.config.optim, trainer.config.local, trainer.config.surgery
    embedding, layers, prototypes = as_theirs(model)
    placement = flags.get("placement", "specific:1,3,4,5")
    positions = new_positions(placement, n_base=2, n_target=len(layers)) if len(layers) > 2 else []
    base = [layer for index, layer in enumerate(layers) if index not in positions]
    reference = ReferenceTrainer(
        embedding, expand(base, positions) if positions else base, prototypes,
        method=method, lr=optim.lr, ff_lr=local.lr, cadence=surgery.backprop_every,
        epsilon=surgery.rust_epsilon, alpha=surgery.rust_alpha, lam=surgery.rust_lambda,
        weight_decay=optim.weight_decay, grad_clip=optim.grad_clip,
        warmup=int(flags.get("lr-warmup-steps", 0)), total=50, floor=0.1,
        frozen_layers=frozen, freeze_embedding=trainer.config.freeze.embedding,
    )  # fmt: skip
    position = trainer.problem.stream.state_dict()
    batches = [next(trainer.problem.stream) for _ in range(50)]
    trainer.problem.stream.load_state_dict(position)
    expected = []

    class Comparing(Reporter):
        def stepped(self, step, metrics, *, lr):
            batch = batches[step - 1]
            assert bool(batch.mask.all())
            expected.append(reference.step(batch.inputs.numpy(), batch.targets.numpy()))
            assert_same_tensors(reference, model, where=f"step {step}")

    trainer.fit(reporter=Comparing())
    trainer.close()

    records = read_metrics(tmp_path / "run" / "metrics.jsonl")
    records = [record for record in records if record["kind"] == "train"]
    assert len(records) == len(expected) == 50
    for record, wanted in zip(records, expected, strict=True):
        if wanted["loss"] is None:
            assert record["loss"] is None
        else:
            assert record["loss"] == pytest.approx(wanted["loss"], rel=1e-6)
            assert record["grad_norm"] == pytest.approx(wanted["grad_norm"], rel=1e-6)
        assert record["conflict_layers"] == wanted["conflicts"]
        found = [group["ff_loss"] for group in record["groups"]]
        for index, (ours, theirs) in enumerate(zip(found, wanted["ff_losses"], strict=True)):
            if index not in frozen:
                assert ours == pytest.approx(theirs, rel=1e-6, abs=1e-9)
    # The test would say little if surgery had nothing to do.
    assert sum(wanted["conflicts"] for wanted in expected) > 0
    assert any(max(wanted["ff_losses"]) > 0 for wanted in expected)


def test_every_weight_begins_as_there(tmp_path):
    """N(0, 0.02^2), A_log and D included; the blocks that expand the model are zero."""
    trainer = trainer_for(tmp_path, {"target-layers": "3", "placement": "append"})
    trainer.close()
    for name, parameter in trainer.model.named_parameters():
        values, n = parameter.detach(), parameter.numel()
        if name.startswith("layers.2."):
            assert not bool(values.any()), name
            continue
        assert abs(float(values.mean())) < 4 * 0.02 / n**0.5, name
        squared = float(values.square().mean())
        assert abs(squared / 0.02**2 - 1) < 4 * (2 / n) ** 0.5, name


def test_a_rollback_halves_what_the_local_gradient_adds(tmp_path, monkeypatch):
    trainer = trainer_for(tmp_path, {"bp-cadence-steps": "1"})
    trainer.guard.lr_scale = 0.5
    given, take = {}, sys.modules["spherescan.train.trainer"].hybrid_step

    def recorded(*args, **options):
        given.update(options)
        return take(*args, **options)

    monkeypatch.setattr(sys.modules["spherescan.train.trainer"], "hybrid_step", recorded)
    trainer.fit(3)
    trainer.close()
    assert given["lr"] * given["local_scale"] == pytest.approx(0.5 * trainer.config.local.lr)


@pytest.mark.unwatched
def test_one_layer_of_six_learns_as_in_that_program(tmp_path):
    """Expanded layers are zero; no gradient ever reaches them, except that of D, to no effect."""
    trainer = trainer_for(tmp_path, {"bp-cadence-steps": "2"})
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.fit()
    trainer.close()
    moved = {
        name
        for name, value in trainer.model.state_dict().items()
        if not torch.equal(value, before[name])
    }
    layers = {name.split(".")[1] for name in moved if name.startswith("layers.")}
    assert {name for name in moved if name.startswith("layers.2.")} == {
        f"layers.2.{name}" for name, _ in trainer.model.layers[2].named_parameters()
    }
    assert layers <= {"2", "3", "4", "5"}
    for dead in "345":
        assert {name for name in moved if f"layers.{dead}." in name} <= {f"layers.{dead}.mixer.D"}


def test_their_defaults_are_the_published_ones():
    config = rust_trainer.rust_trainer_config(None, {"token-file": "x.txt"})
    assert (config.run.steps, config.run.seed, config.surgery.backprop_every) == (5000, 42, 32)
    assert (config.model.n_layers, config.grow.layers) == (2, 6)
    assert config.new_positions() == (1, 3, 4, 5)
    assert config.frozen_blocks() == (0, 1)
    assert (config.optim.lr, config.local.lr) == (1e-4, 1e-4)
    assert config.surgery.aggregator == "rust_pcgrad"
    assert (config.data.vocab_size, config.run.on_non_finite) == ("auto", "skip")


THEIR_FILE = {
    "total_steps": 6,
    "seed": 3,
    "dataset": {"max_seq_len": 16, "batch_size": 4, "source": "synthetic"},
    "model": {"num_layers": 2, "d_model": 8, "d_state": 4, "d_conv": 4, "num_classes": 12},
    "ff": {"lr": 1e-3},
    "bp": {"cadence_steps": 2, "lr": 2e-3},
    "gradient_surgery": {"method": "gradnorm", "epsilon": 1e-7},
    "logging": {"log_dir": "logs", "run_id": "first", "log_every": 3},
}


@pytest.mark.parametrize("ending", ["json", "yaml"])
def test_their_configuration_file_loads(tmp_path, ending):
    path = tmp_path / f"theirs.{ending}"
    path.write_text(json.dumps(THEIR_FILE))  # JSON is YAML too
    config = rust_trainer.rust_trainer_config(path)
    assert (config.run.steps, config.run.seed, config.run.log_every) == (6, 3, 3)
    assert (config.data.seq_len, config.data.batch_size, config.data.vocab_size) == (16, 4, 12)
    assert (config.local.lr, config.optim.lr) == (1e-3, 2e-3)
    assert (config.surgery.aggregator, config.surgery.rust_epsilon) == ("rust_gradnorm", 1e-7)
    assert config.run.dir == "logs/first"
    assert config.grow.layers is None


def test_train_from_config_runs_theirs_and_ours_and_starts_from_a_checkpoint(tmp_path):
    theirs = tmp_path / "theirs.json"
    theirs.write_text(json.dumps(THEIR_FILE))
    first = spherescan.train_from_config(theirs, tmp_path / "a", 4, 7)
    assert first == tmp_path / "a" / "ckpt" / "step-000000000004.safetensors"

    ours = tmp_path / "ours.toml"
    config = rust_trainer.rust_trainer_config(theirs, {"target-layers": "3", "placement": "append"})
    values = config.model_dump(mode="json", exclude_none=True)
    ours.write_text("\n".join(f"{k} = {json.dumps(v)}" for k, v in flat(values)))
    second = spherescan.train_from_config(ours, tmp_path / "b", 1, 7, base_ckpt=first)
    grown, base = Predictor.load(tmp_path / "b", which="newest"), Predictor.load(tmp_path / "a")
    assert len(grown.model.layers) == 3
    # One step at most moved them; the weights came from the base, not from a generator.
    for name, value in base.model.layers[0].state_dict().items():
        assert (grown.model.layers[0].state_dict()[name] - value).abs().max() < 0.01
    assert second.exists()


def flat(values: dict) -> list[tuple[str, object]]:
    return [(f"{section}.{k}", v) for section, part in values.items() for k, v in part.items()]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"gradient-surgery-method": "cagrad"}, "unknown surgery method 'cagrad'; choose one of"),
        ({"packed-sequences": "no"}, "--packed-sequences is 'no'; it is true or false"),
        ({"prefetch-workers": "65"}, "data.prefetch_workers is 65"),
        ({"prefetch-buffer": "0"}, "data.prefetch_batches is 0"),
        ({"token-file": "a", "token-dir": "b"}, "--token-file and --token-dir exclude each other"),
        ({"base-layers": "many"}, "--base-layers is 'many'; it is a whole number"),
        ({"fail-on-non-finite": "maybe"}, "it is true or false"),
        ({"target-layers": "1", "freeze": "none"}, "grow.layers is 1 and the model has 2 already"),
        ({"placement": "specific:1,1,2,3"}, "names a position twice"),
        ({"placement": "specific:1,3,4,6"}, "has blocks 0..5"),
        ({"freeze": "first:6"}, "all 6 blocks"),
        ({"bp-cadence-steps": "0"}, "surgery.backprop_every is 0"),
        ({"vocab-size": "some"}, "data.vocab_size"),
        ({"prefetch-workers": "many"}, "--prefetch-workers is 'many'; it is a whole number"),
        ({"gradnorm-alpha": "zz"}, "--gradnorm-alpha is 'zz'; it is a number that is not negative"),
        ({"cagrad-lambda": "-1"}, "--cagrad-lambda is '-1'; it is a number that is not neg"),
        ({"resume": "maybe"}, "--resume is 'maybe'; it is true or false"),
    ],
)
def test_what_that_program_would_have_guessed_is_refused(flags, message):
    with pytest.raises(ConfigError, match=message):
        rust_trainer.rust_trainer_config(None, {"token-file": "x.txt", **flags})


def test_how_batches_are_made_is_what_that_program_was_told():
    config = rust_trainer.rust_trainer_config(
        None,
        {
            "token-file": "x.txt",
            "packed-sequences": "false",
            "prefetch-workers": "2",
            "prefetch-buffer": "5",
            "shuffle-shards": "false",
        },
    ).data
    assert config.packing == "documents"
    assert (config.prefetch_workers, config.prefetch_batches) == (2, 5)
    assert not config.shuffle
    usual = rust_trainer.rust_trainer_config(None, {"token-file": "x.txt"}).data
    assert (usual.packing, usual.prefetch_workers, usual.prefetch_batches) == ("stream", 0, 16)


def test_an_unknown_key_of_their_file_is_refused(tmp_path):
    path = tmp_path / "theirs.json"
    path.write_text(json.dumps(THEIR_FILE | {"bp": {"cadence": 3}}))
    with pytest.raises(ConfigError, match=r"unknown key 'bp.cadence'; did you mean 'bp.cadence_st"):
        rust_trainer.rust_trainer_config(path)


def test_a_folder_of_text_shards_is_read_in_the_order_of_names(tmp_path):
    folder = tmp_path / "shards"
    folder.mkdir()
    for name, text in (("b.txt", "3 4 5 6 7 8"), ("a.txt", "0 1 2 " * 20), ("c.tok", "99")):
        (folder / name).write_text(text)
    flags = {"token-dir": str(folder), "val-ratio": "0.2"}
    config = rust_trainer.rust_trainer_config(
        None,
        TINY | flags | {"steps": "2", "out-dir": str(tmp_path / "run"), "bp-cadence-steps": "1"},
    )
    trainer = start(config)
    assert trainer.problem.description.n_prototypes == 9
    assert trainer.problem.summary.startswith("66 tokens of 9 in 2 documents")
    trainer.close()
    missing = config.model_dump(mode="json", exclude_none=True)
    missing["data"]["extension"] = "bin"
    missing["run"]["dir"] = str(tmp_path / "other")
    with pytest.raises(DataError, match=r"no file that ends in \.bin"):
        start(parse_config(missing))


@pytest.mark.unwatched
def test_a_run_of_the_preset_resumes_bit_for_bit(tmp_path):
    flags = {"bp-cadence-steps": "4", "steps": "12"}
    whole = trainer_for(tmp_path / "whole", flags)
    whole.fit()
    whole.close()
    part = trainer_for(tmp_path / "part", flags)
    part.fit(5)
    part.close()
    again = resume(tmp_path / "part" / "run")
    again.fit()
    again.close()
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name]), name


def test_ours_is_not_taken_for_theirs(tmp_path):
    path = tmp_path / "ours.toml"
    path.write_text("[run]\nsteps = 3\n[model]\nd_model = 8\n")
    assert load_config(path).run.steps == 3
    assert not rust_trainer.is_theirs({"run": {}, "model": {}})
