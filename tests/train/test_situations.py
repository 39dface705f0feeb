"""The table of situations in docs/runs.md, a test for each line: what a run is when it goes on.

Runs by the command line. What is refused is refused with one line, and nothing is changed by it.
"""

import errno
import fcntl
import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from spherescan.cli import main
from spherescan.config import CHANGEABLE, load_config, settings
from spherescan.data import write_shards
from spherescan.errors import CheckpointError, ConfigError
from spherescan.inference import Predictor
from spherescan.runs import read_checkpoint, read_metrics, write_checkpoint
from spherescan.runs.container import SCHEMA
from spherescan.train import Reporter, ResumeOptions, resume, start
from tests.signing import signed
from tests.test_cli import refused
from tests.train.test_training import TINY, contents, without_run_id, write_series

pytestmark = pytest.mark.unwatched

FLAGS = [f"--{key.replace('_', '-')}={value}" for key, value in TINY.items()]
GOLDEN = Path(__file__).parents[1] / "golden"
# Every verb that reads a run, with what it needs besides.
READERS = [["resume"], ["evaluate"], ["predict", "train.ts"], ["fork", "new"]]
SIGNALS = {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGHUP: 129, signal.SIGUSR1: 0}


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_series(tmp_path / "train.ts")


@pytest.fixture
def run(here, capsys) -> Path:
    """A finished run with checkpoints of steps 8 and 12, among others."""
    command = ["train", "--quiet", "--data.train=train.ts", "--run.dir=run", *FLAGS]
    assert main([*command, "--checkpoint.keep=4"]) == 0
    capsys.readouterr()
    return Path("run")


def path_of(run: Path, step: int) -> Path:
    return run / "ckpt" / f"step-{step:012d}.safetensors"


def events(run: Path, kind: str) -> list[dict[str, object]]:
    return [event for event in read_metrics(run / "events.jsonl") if event["kind"] == kind]


def files(*folders: str) -> dict[Path, bytes]:
    paths = [path for folder in folders for path in Path(folder).rglob("*") if path.is_file()]
    return {path: path.read_bytes() for path in paths}


def changed_state(path: Path, change) -> None:
    """Write a checkpoint again with another state, as whoever knows the format could."""
    checkpoint = read_checkpoint(path)
    change(checkpoint.state)
    path.unlink()
    write_checkpoint(path, checkpoint.tensors, checkpoint.state)


def test_a_newer_schema_is_refused_with_the_version_that_reads_it(run, capsys):
    newest = path_of(run, 12)
    data = newest.read_bytes()
    was, new = (f'"spherescan.schema":"{schema}"'.encode() for schema in (SCHEMA, SCHEMA + 1))
    assert data.count(was) == 1
    data = data[:-32].replace(was, new)
    newest.write_bytes(signed(data))
    said = (newest.name, f"has schema {SCHEMA + 1}", "upgrade spherescan to a version that reads")
    for verb, *more in READERS:
        choice = ["--checkpoint=newest"] if verb in {"evaluate", "predict"} else []
        refused(capsys, [verb, "run", *more, *choice], 4, *said)
    refused(capsys, ["inspect", str(newest)], 4, *said)
    # Nobody takes an older one in its place, and it is not taken for a damaged one.
    assert main(["verify", "run"]) == 4
    assert f"has schema {SCHEMA + 1}" in capsys.readouterr().out
    assert newest.exists()
    assert not Path("new").exists()


def test_an_older_schema_is_read_and_goes_on(tmp_path):
    assert {path.name for path in GOLDEN.iterdir()} == {
        f"schema-{schema}" for schema in range(1, SCHEMA + 1)
    }
    for golden in sorted(GOLDEN.iterdir()):
        run = tmp_path / golden.name
        shutil.copytree(golden, run)
        before = read_checkpoint(path_of(golden, 6))
        assert before.schema == int(golden.name.removeprefix("schema-"))
        trainer = resume(run, {"run.steps": 7})
        for name, tensor in before.below("model/").items():
            assert torch.equal(trainer.model.state_dict()[name], tensor), name
        trainer.fit()
        trainer.close()
        assert Predictor.load(run, which="newest").step == 7
        assert read_checkpoint(path_of(run, 7)).schema == SCHEMA


INNER = {"counters", "guard", "data", "metrics"}


def fields(value: dict[str, object], *above: str) -> Iterator[tuple[str, ...]]:
    """Yield the path to each field whose type the state of a run fixes."""
    for name, item in value.items():
        yield (*above, name)
        if name in INNER:
            yield from fields(item, name)


def test_every_field_of_the_state_is_needed_and_no_other_is_taken(run, capsys):
    newest = path_of(run, 12)
    good, whole = newest.read_bytes(), read_checkpoint(newest).state
    paths = list(fields(whole))
    assert len(paths) == 36
    for path in paths:
        *above, name = path

        def without(state, above=above, name=name):
            del (state[above[0]] if above else state)[name]

        def of_another_type(state, above=above, name=name):
            (state[above[0]] if above else state)[name] = [[1.5]]

        def with_one_more(state, name=name):
            (state[name] if name in INNER else state)["unheard_of"] = 1

        changes = {without: ".".join(path), of_another_type: ".".join(path)}
        if path in {("run_id",), ("step",)}:  # compared before the fields are looked at
            changes = dict.fromkeys(changes, "belongs to run|is of step")
        if name in {*INNER, "run_id"}:
            changes[with_one_more] = "unheard_of"
        for change, wanted in changes.items():
            changed_state(newest, change)
            with pytest.raises(CheckpointError, match=rf"{newest.name}: .*({wanted})"):
                resume(run)
            newest.write_bytes(good)
    changed_state(newest, lambda state: state.pop("guard"))
    refused(capsys, ["resume", "run"], 4, newest.name, "guard", "restore the file from a copy")
    newest.write_bytes(good)
    assert main(["resume", "--quiet", "run", "--run.steps=13"]) == 0


def test_another_model_is_refused_field_by_field(run, capsys):
    def smaller(state):
        state["config"]["model"] |= {"d_model": 6, "d_state": 3}

    for key in ("model.d_model", "model.n_layers", "prototypes.dim", "grow.layers"):
        with pytest.raises(ConfigError, match=f"{key} defines the run"):
            resume(run, {key: 6})
    changed_state(path_of(run, 12), smaller)
    other = "d_model was 8, is 6, d_state was 4, is 3"
    refused(capsys, ["resume", "run"], 4, path_of(run, 12).name, "another model", other)


def test_growth_is_an_event_and_no_other_model(here):
    grown = ["--grow.layers=3", "--grow.placement=prepend", "--grow.at-step=6"]
    command = ["train", "--quiet", "--data.train=train.ts", *FLAGS, *grown]
    assert main([*command, "--run.dir=run"]) == 0
    assert [(e["step"], e["blocks"]) for e in events(Path("run"), "grow")] == [(6, [0, 1])]
    assert main(["fork", "run", "new"]) == 0
    assert main(["resume", "--quiet", "new", "--run.steps=13"]) == 0
    assert Predictor.load(Path("new"), which="newest").description.n_layers == 3


def test_other_data_is_refused_unless_it_is_meant(run, capsys):
    before, path = contents(run, 12), Path("train.ts")
    path.write_text(path.read_text().replace("0.5", "0.6", 1))
    refused(capsys, ["resume", "run", "--run.steps=13"], 3, "train.ts", "data has changed")
    trainer = resume(run, {"run.steps": 13}, ResumeOptions(new_data=True))
    assert trainer.problem.stream.state_dict() == {"epoch": 0, "position": 0}
    kept = {f"model/{name}": value for name, value in trainer.model.state_dict().items()}
    assert {name: value.numpy().tobytes() for name, value in kept.items()} == {
        name: value for name, value in before.items() if name.startswith("model/")
    }
    trainer.fit()
    trainer.close()
    (event,) = (e for e in events(run, "change") if e["key"] == "data")
    prints = [read_checkpoint(path_of(run, step)).state["fingerprint"] for step in (12, 13)]
    assert [event["step"], event["before"], event["after"]] == [12, *prints]
    assert prints[0] != prints[1]


@pytest.mark.parametrize("own_validation", [False, True])
def test_what_was_best_on_other_data_no_longer_counts(here, own_validation):
    """Unless validation data has a file of its own, which is the same: then scores compare."""
    write_series(Path("val.ts"), n=9)
    flags = ["--data.validation=val.ts"] if own_validation else []
    command = ["train", "--quiet", "--data.train=train.ts", "--run.dir=run", *FLAGS, *flags]
    assert main([*command, "--run.steps=10", "--validation.patience=1"]) == 0
    run, newest = Path("run"), path_of(Path("run"), 10)
    best = {"best_step": 5, "best_score": 2.0, "best_loss": 0.0}  # better than can be
    best |= {"lowest_loss": 0.0, "highest_score": 2.0, "since_improvement": 0}
    changed_state(newest, lambda state: state["counters"].update(best))
    path = Path("train.ts")
    path.write_text(path.read_text().replace("0.5", "0.6", 1))
    changes = {"run.steps": 20, "checkpoint.keep": 9}
    trainer = resume(run, changes, ResumeOptions(new_data=True))
    assert (trainer.counters.best_step, trainer.counters.best_score) == (
        (5, 2.0) if own_validation else (None, None)
    )
    assert (run / "best.safetensors").exists() == own_validation
    stopped = trainer.fit()
    trainer.close()
    assert stopped == ("patience" if own_validation else "finished")
    validated = [r["step"] for r in read_metrics(run / "metrics.jsonl") if r["kind"] == "val"]
    assert validated == ([5, 10, 15] if own_validation else [5, 10, 15, 20])
    assert (trainer.counters.best_step == 5) == own_validation
    assert Predictor.load(run).step == trainer.counters.best_step


def test_other_data_with_other_classes_is_refused(run, capsys):
    write_series(Path("train.ts"), classes="xyz")
    command = ["resume", "run", "--run.steps=13", "--new-data"]
    refused(capsys, command, 3, "another task", "class_names", "'x', 'y', 'z'")


def write_text(folder: Path) -> None:
    """Write three documents of tokens below 9, as text and as shards of 64 tokens."""
    rng = np.random.default_rng(0)
    documents = [rng.integers(0, 9, n) for n in (50, 70, 90)]
    (folder / "text").mkdir()
    for name, document in zip("abc", documents, strict=True):
        (folder / "text" / f"{name}.txt").write_text(" ".join(map(str, document)))
    write_shards(documents, folder / "shards", vocab_size=9, tokens_per_shard=64)


def edit(path: Path) -> None:
    """Replace a byte; the first token of a text by another one."""
    data = bytearray(path.read_bytes())
    if path.suffix == ".txt":
        data[0] = ord("1") if data[0] == ord("0") else data[0] - 1
    else:
        data[len(data) // 2] ^= 1
    path.write_bytes(data)


def swap(one: Path, other: Path) -> None:
    between = one.rename(one.with_name("between"))
    other.rename(one)
    between.rename(other)


SHARD = "shards/shard-00001.bin"
CHANGES = {
    "text renamed in its place": (lambda: Path("text/b.txt").rename("text/bb.txt"), 0),
    "a file beside the text": (lambda: Path("text/notes.md").touch(), 0),
    "text renamed to another place": (lambda: Path("text/a.txt").rename("text/d.txt"), 3),
    "two texts swapped": (lambda: swap(Path("text/a.txt"), Path("text/b.txt")), 3),
    "a byte of text edited": (lambda: edit(Path("text/b.txt")), 3),
    "text added": (lambda: Path("text/d.txt").write_text("1 2 3"), 3),
    "text dropped": (lambda: Path("text/b.txt").unlink(), 3),
    "a file beside the shards": (lambda: Path("shards/notes.md").touch(), 0),
    "a shard renamed": (lambda: Path(SHARD).rename("shards/shard-00009.bin"), 3),
    "two shards swapped": (lambda: swap(Path(SHARD), Path("shards/shard-00000.bin")), 3),
    "a byte of a shard edited": (lambda: edit(Path(SHARD)), 3),
    "a byte of the index edited": (lambda: edit(Path("shards/index.json")), 3),
    "a byte of the starts of shards edited": (lambda: edit(Path("shards/documents.bin")), 3),
    "a shard dropped": (lambda: Path(SHARD).unlink(), 3),
    "shards with more": (
        lambda: (
            shutil.rmtree("shards"),
            write_shards([np.arange(9)] * 30, Path("shards"), vocab_size=9),
        ),
        3,
    ),
}


@pytest.fixture(scope="module")
def text_runs(tmp_path_factory) -> Path:
    """The data, and a run on each form of it."""
    folder = tmp_path_factory.mktemp("texts")
    write_text(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for kind, more in (
            ("text", ["--data.extension=txt", "--data.vocab-size=9"]),
            ("shards", []),
        ):
            data = ["--data.source=tokens", f"--data.train={kind}", "--data.seq-len=8", *more]
            command = ["train", "--quiet", f"--run.dir=run-on-{kind}", *data, *FLAGS]
            assert main([*command, "--run.steps=4"]) == 0
    return folder


@pytest.mark.parametrize(("change", "code"), CHANGES.values(), ids=CHANGES)
def test_no_change_of_the_data_goes_unnoticed(
    text_runs, tmp_path, monkeypatch, capsys, request, change, code
):
    shutil.copytree(text_runs, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    kind = "text" if "text" in request.node.callspec.id else "shards"
    change()
    arguments = ["resume", f"run-on-{kind}", "--run.steps=6"]
    if code:
        refused(capsys, arguments, code, kind)
    else:
        assert main([*arguments, "--quiet"]) == 0
        assert not events(Path(f"run-on-{kind}"), "change")[1:]


def test_another_world_size_is_refused(run, capsys, monkeypatch):
    before = sorted(run.rglob("*"))
    monkeypatch.setenv("WORLD_SIZE", "2")
    for arguments in (
        ["resume", "run", "--run.steps=13"],
        ["train", "--data.train=train.ts", "--run.dir=other", *FLAGS],
    ):
        assert main(arguments) == 2
        assert "WORLD_SIZE is 2; a run is trained by 1 process" in capsys.readouterr().err
    assert sorted(run.rglob("*")) == before
    assert not Path("other").exists()
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert main(["resume", "run", "--run.steps=13", "--quiet"]) == 0


def test_workers_and_their_depth_change_no_bit(here):
    rng = np.random.default_rng(0)
    write_shards([rng.integers(0, 9, n) for n in (50, 70, 90)], Path("text"), vocab_size=9)
    data = ["--data.source=tokens", "--data.train=text", "--data.seq-len=8"]
    command = ["train", "--quiet", *data, *FLAGS]
    assert main([*command, "--run.dir=whole"]) == 0
    workers = [("data.prefetch_workers", 0, 2), ("data.prefetch_batches", 16, 3)]
    settings_ = TINY | {"data.source": "tokens", "data.train": "text", "data.seq_len": "8"}
    first = start(load_config(None, settings_ | {"run.dir": "parts"}))
    first.fit(5)
    first.close()
    flags = [f"--{key.replace('_', '-')}={new}" for key, _, new in workers]
    assert main(["resume", "--quiet", "parts", "--require-bitwise", *flags]) == 0
    assert contents(Path("parts"), 12) == contents(Path("whole"), 12)
    assert without_run_id(Path("parts")) == without_run_id(Path("whole"))
    changes = [(e["key"], e["before"], e["after"]) for e in events(Path("parts"), "change")]
    assert changes == workers
    assert [(e["bitwise"], e["differences"]) for e in events(Path("parts"), "resume")] == [
        (True, {})
    ]


@pytest.mark.parametrize("what", ["torch", "threads", "cpu", "ops"])
def test_another_environment_is_an_event_or_refused(run, capsys, monkeypatch, what):
    before = read_checkpoint(path_of(run, 12)).state["environment"][what]
    flags = []
    match what:
        case "torch":
            monkeypatch.setattr(torch, "__version__", "0.0.1")
        case "threads":
            flags = ["--run.threads=3"]
        case "cpu":
            monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "ABACUS")
        case "ops":
            monkeypatch.setenv("SPHERESCAN_OPS", "reference")
    now = {"torch": "0.0.1", "threads": 3, "cpu": "ABACUS", "ops": "reference"}[what]
    arguments = ["resume", "--quiet", "run", "--run.steps=13", *flags]
    said = (f"{what} was {before!r}, is {now!r}", "last bits may differ")
    try:
        refused(capsys, [*arguments, "--require-bitwise"], 2, *said)
        assert main(arguments) == 0
    finally:
        torch.set_num_threads(1)
    last = events(run, "resume")[-1]
    assert last["bitwise"] is False
    assert last["differences"][what] == [before, now]
    # Other kernels bring other vectors; nothing else differs.
    assert last["differences"].keys() - {what} <= ({"simd", "products"} if what == "ops" else set())
    assert read_metrics(run / "metrics.jsonl")[-1]["step"] == 13


def test_newer_checkpoints_are_not_lost_by_going_back(run, capsys):
    end = contents(run, 12)
    newer = [step for step in range(9, 13) if path_of(run, step).exists()]
    refused(capsys, ["resume", "run", "--step=8"], 2, "newer checkpoints", "--rewind", "fork")
    refused(capsys, ["resume", "run", "--step=3", "--rewind"], 4, "no checkpoint of step 3")
    refused(capsys, ["resume", "run", "--rewind"], 2, "--rewind needs --step")
    assert main(["resume", "--quiet", "run", "--step=8", "--rewind"]) == 0
    (event,) = events(run, "rewind")
    assert (event["step"], event["left"]) == (8, newer)
    for step in newer:
        assert (run / "ckpt" / f"aside-{path_of(run, step).name}-1").exists()
    assert contents(run, 12) == end
    train = [r["step"] for r in read_metrics(run / "metrics.jsonl") if r["kind"] == "train"]
    assert train == list(range(1, 13))


def test_a_fork_is_a_run_of_its_own_with_the_same_end(run, capsys):
    before = files("run")
    assert main(["fork", "run", "new", "--step=8"]) == 0
    assert main(["resume", "--quiet", "new"]) == 0
    assert contents(Path("new"), 12) == contents(run, 12)
    assert files("run") == before
    mine, other = (json.loads(Path(p, "run.json").read_text()) for p in ("new", "run"))
    assert mine["parent"]["run_id"] == other["run_id"] != mine["run_id"]
    assert mine["parent"]["digest"] == read_checkpoint(path_of(run, 8)).digest
    capsys.readouterr()
    refused(capsys, ["fork", "run", "new"], 4, "new", "holds a run already")


def test_a_resume_takes_its_settings_from_the_checkpoint(run, capsys):
    (run / "config.toml").write_text("[model]\nd_model = 3\n[optim]\nlr = 7.0\n")
    assert main(["resume", "--quiet", "run", "--run.steps=13"]) == 0
    saved = [read_checkpoint(path_of(run, step)).state["config"] for step in (12, 13)]
    saved[0]["run"]["steps"] = 13
    assert saved[0] == saved[1]
    fixed = [name for name, _ in settings() if name not in CHANGEABLE]
    assert len(fixed) > 50
    for name in fixed:
        flag = f"--{name.replace('_', '-')}"
        refused(capsys, ["resume", "run", f"{flag}=1"], 2, f"{flag} is set by spherescan train")
        with pytest.raises(ConfigError, match=rf"{name} defines the run and cannot change"):
            resume(run, {name: "other"})
    assert len(events(run, "change")) == 1


def test_what_may_change_is_an_event_each(run):
    shutil.copy("train.ts", "moved.ts")
    changes = {
        "data.train": ("train.ts", "moved.ts"),
        "data.prefetch_workers": (0, 1),
        "data.prefetch_batches": (16, 4),
        "run.steps": (12, 14),
        "run.threads": (None, 1),
        "run.log_every": (20, 1),
        "run.on_non_finite": ("fail", "skip"),
        "validation.patience": (0, 3),
        "checkpoint.every": (4, 1),
        "checkpoint.keep": (4, 2),
        "checkpoint.verify": (False, True),
    }
    assert changes.keys() | {"data.validation"} == set(CHANGEABLE)
    flags = [
        f"--{key.replace('_', '-')}={str(new).lower() if new is True else new}"
        for key, (_, new) in changes.items()
    ]
    assert main(["resume", "--quiet", "run", *flags]) == 0
    found = {e["key"]: (e["before"], e["after"]) for e in events(run, "change")}
    assert found == changes
    config = read_checkpoint(path_of(run, 14)).state["config"]
    for key, (_, new) in changes.items():
        section, _, name = key.partition(".")
        assert config[section][name] == new, key
    # From now on they are the settings of the run.
    assert main(["resume", "--quiet", "run", "--run.steps=15"]) == 0
    assert [e["key"] for e in events(run, "change")][len(changes) :] == ["run.steps"]


def test_a_file_system_without_locks_is_refused_unless_it_is_meant(run, capsys, monkeypatch):
    def no_locks(file, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    refused(capsys, ["resume", "run"], 4, "cannot be locked", "No locks available", "--no-lock")
    assert main(["resume", "--quiet", "run", "--no-lock", "--run.steps=13"]) == 0
    assert path_of(run, 13).exists()


def test_a_run_that_is_being_written_is_refused_or_waited_for(run, capsys):
    trainer = resume(run)
    refused(capsys, ["resume", "run"], 5, f"process {os.getpid()}, since", "--lock-wait")
    began = time.monotonic()
    refused(capsys, ["resume", "run", "--lock-wait=0.3"], 5, "is writing this run")
    assert time.monotonic() - began >= 0.3
    timer = threading.Timer(0.3, trainer.close)
    timer.start()
    assert main(["resume", "--quiet", "run", "--lock-wait=60", "--run.steps=13"]) == 0
    timer.join()


@pytest.mark.parametrize(("signum", "code"), SIGNALS.items())
def test_a_signal_saves_and_leaves_with_its_number(here, monkeypatch, signum, code):
    class Sender(Reporter):
        def stepped(self, step, metrics, *, lr):
            if step == 3:
                os.kill(os.getpid(), signum)

    monkeypatch.setattr("spherescan.cli._reporter", lambda *_: Sender())
    command = ["train", "--quiet", "--data.train=train.ts", "--run.dir=run", *FLAGS]
    assert main(command) == code
    assert 3 in [event["step"] for event in events(Path("run"), "save")]
    (event,) = events(Path("run"), "signal")
    assert (event["step"], event["signal"]) == (3, signum.name)
    last = read_metrics(Path("run/metrics.jsonl"))[-1]["step"]
    assert last == (12 if signum == signal.SIGUSR1 else 3)


def test_a_save_that_would_take_longer_than_is_left_is_not_begun(here, monkeypatch):
    class Sender(Reporter):
        def stepped(self, step, metrics, *, lr):
            if step == 6:
                os.kill(os.getpid(), signal.SIGTERM)

    command = ["train", "--quiet", "--data.train=train.ts", "--run.dir=run", *FLAGS]
    with monkeypatch.context() as patch:
        patch.setattr("spherescan.cli._reporter", lambda *_: Sender())
        assert main([*command, "--grace-seconds=0"]) == 143
    assert not path_of(Path("run"), 6).exists()
    (event,) = events(Path("run"), "save_failed")
    assert event["step"] == 6
    assert "were left" in event["reason"]
    assert main(["resume", "--quiet", "run"]) == 0
