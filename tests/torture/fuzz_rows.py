"""T7 and T8: what a stranger wrote is read as it was meant, or refused in our own words."""

import argparse
import hashlib
import io
import os
import random
import resource
import shutil
import struct
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path
from unittest.mock import patch

from spherescan import cli
from spherescan.config import load_config, to_toml
from spherescan.errors import SpherescanError
from spherescan.runs import (
    MetricsLog,
    RunStore,
    inspect_checkpoint,
    read_checkpoint,
    read_metrics,
    write_checkpoint,
)
from spherescan.runs.events import EventLog
from spherescan.runs.folder import Folder
from spherescan.train import resume
from tests.signing import signed
from tests.torture import everything, small
from tests.torture.faults import Faults
from tests.torture.forking import in_child
from tests.torture.fuzz import Found, InvalidInputError, Target, corpus, fuzz
from tests.torture.fuzz_data import data_targets
from tests.torture.report import Report

BATCH = 20_000
LARGEST = 4096  # of the corpus
MEMORY_BYTES = 4 << 30  # address space, of which torch alone takes one


def fuzz_checkpoints(root: Path, _: Faults, report: Report, *, count: int, seed: int) -> None:
    """Fuzz the reader of checkpoints, and a resume from one that a stranger made."""
    _fuzz_all([checkpoints(root), resumes(root)], report, count, seed)


def fuzz_texts(root: Path, _: Faults, report: Report, *, count: int, seed: int) -> None:
    """Fuzz the readers of all that a run and its data are made of, and the command line."""
    _fuzz_all(texts(root), report, count, seed)


def texts(root: Path) -> list[Target]:
    """Return all targets but those of checkpoints."""
    own = [metrics(root), events(root), records(root), toml(root), json_files(root), argv(root)]
    return [*own, *data_targets(root, _typed)]


def _fuzz_all(targets: list[Target], report: Report, count: int, seed: int) -> None:
    for target in targets:
        began = time.monotonic()
        wanted = max(1, int(count * target.share))
        tried = read = 0
        behaviours: set[str] = set()
        while tried < wanted:
            n = min(BATCH, wanted - tried)
            # A batch in a child: what one leaves in memory is gone with it.
            work = partial(_batch, target, n, seed + tried)
            found = in_child(work, limit=3600, threads=False).expect_finished()
            tried, read = tried + n, read + found["read"]
            behaviours |= set(found["behaviours"])
            for kind, (data, message) in found["faults"].items():
                failure = f"{target.name}, seed {seed + tried - n}: {kind}"
                if not any(failure.split(": ", 1)[1] in known for known in report.failures):
                    report.failures.append(f"{failure}: {message[:200]} from {data[:600]}")
        seconds = time.monotonic() - began
        report.count += tried
        report.facts[target.name] = (
            f"{tried} inputs and {len(corpus(target.name))} of the corpus, {read} accepted, "
            f"{len(behaviours)} behaviours, {tried / seconds:.0f} a second"
        )


def _batch(target: Target, count: int, seed: int) -> dict[str, object]:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    found: Found = fuzz(target, count=count, seed=seed)
    return {
        "read": found.read,
        "behaviours": list(found.behaviours),
        "faults": {kind: [repr(data), text] for kind, (data, text) in found.faults.items()},
    }


def save_corpus(root: Path, folder: Path, *, count: int, seed: int, most: int = 30) -> None:
    """Write the smallest input of each behaviour found into a folder, for each target."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    # Paths in an input are those of a folder that is gone; a resume would find nothing else wrong.
    for target in (checkpoints(root), *texts(root)):
        found = fuzz(target, count=max(1, int(count * target.share)), seed=seed)
        faults = [data for data, _ in found.faults.values()]
        kept = [*faults, *sorted(found.behaviours.values(), key=len)[:most]]
        (folder / target.name).mkdir(parents=True, exist_ok=True)
        for data in kept:
            if len(data) <= LARGEST:
                (folder / target.name / hashlib.sha256(data).hexdigest()[:12]).write_bytes(data)


def _typed(attempt: Callable[[bytes], object]) -> Callable[[bytes], object]:
    """Turn the errors that a user may see into refusals; all others are faults."""

    def attempted(data: bytes) -> object:
        try:
            return attempt(data)
        except SpherescanError as error:
            raise InvalidInputError(f"{type(error).__name__}: {error}") from None

    return attempted


def _forged(data: bytes, rng: random.Random) -> bytes:
    """Make the length and the digest of a checkpoint right, as whoever means harm would."""
    if rng.random() < 0.2 or len(data) < 40:
        return data
    text = data[8 : data.find(b"}}", 8) + 2] if rng.random() < 0.2 else data[8:-32]
    length = int.from_bytes(data[:8], "little")
    if rng.random() < 0.5 and 0 < length < len(data) - 40:
        body = data[:8] + data[8:-32]
    else:
        end = text.rfind(b"}") + 1
        body = struct.pack("<Q", end) + text
    return signed(body)


def checkpoints(root: Path) -> Target:
    """Return the target that reads whole checkpoints, and writes again what it has read."""
    path, again = root / "checkpoint", root / "again"

    def attempt(data: bytes) -> None:
        path.write_bytes(data)
        found = read_checkpoint(path)
        assert inspect_checkpoint(path).digest == found.digest
        write_checkpoint(again, found.tensors, found.state)
        same = read_checkpoint(again)
        again.unlink()
        assert small.bits_of(same.tensors) == small.bits_of(found.tensors), "other bits"
        assert same.state == found.state or found.schema < same.schema, "another state"

    seeds = []
    for step in (0, 3):
        write_checkpoint(again, small.tensors_of(step), {"step": step, "a": [1, {"b": None}]})
        seeds.append(again.read_bytes())
        again.unlink()
    import torch

    tiny = {"a": torch.zeros(0), "b/c": torch.ones(2, 0, 3), "d": torch.tensor([True, False])}
    write_checkpoint(again, tiny, {})
    seeds.append(again.read_bytes())
    again.unlink()
    words = ("__metadata__", "dtype", "shape", "data_offsets", "F32", "BOOL", "~commit.sha256")
    tokens = tuple(f'"{word}"'.encode() for word in words)
    return Target("checkpoint", tuple(seeds), _typed(attempt), _forged, tokens)


def resumes(root: Path) -> Target:
    """Return the target that goes on from a checkpoint whose state a stranger wrote."""
    data = everything.write_data(root) if not (root / "train").exists() else root
    run = root / "stranger"
    if not run.exists():
        changes = {"freeze__until_step": "12", "run__steps": "13"}
        in_child(lambda: everything.go(data, run, changes=changes)).expect_finished()
    store = RunStore.open(run)
    newest = store.checkpoint_path(store.steps()[-1])
    good = read_checkpoint(newest)
    from spherescan.strict_json import json_text

    kept = root / "kept"
    shutil.copytree(run, kept, dirs_exist_ok=True)

    def attempt(text: bytes) -> None:
        from spherescan.strict_json import parse_json

        try:
            state = parse_json(text, where="state", max_depth=64)
        except ValueError as error:
            raise InvalidInputError(str(error)) from None
        if not isinstance(state, dict):
            raise InvalidInputError("not an object")
        shutil.rmtree(run)
        shutil.copytree(kept, run)
        newest.unlink()
        write_checkpoint(newest, good.tensors, state)
        resume(run).close()

    seed = json_text(good.state, where="state", max_depth=64).encode()
    return Target("resume", (seed,), _typed(attempt), share=0.005)


def metrics(root: Path) -> Target:
    """Return the target that reads metrics, and goes on with them."""
    path = root / "metrics.jsonl"

    def attempt(data: bytes) -> None:
        path.write_bytes(data)
        try:
            log = MetricsLog(path, run_id="r")
            try:
                log.cut_torn_line()
                log.append({"kind": "train", "loss": float("nan")})
            finally:
                log.close()
        except SpherescanError:
            path.write_bytes(data)
        found = read_metrics(path)
        assert all(isinstance(record["run_id"], str) for record in found)

    return Target("metrics", (_lines(root),), _typed(attempt), tokens=LOG_TOKENS)


def events(root: Path) -> Target:
    """Return the target that goes on with the events of a run, however damaged they are."""
    (root / "events").mkdir(exist_ok=True)
    folder = Folder(root / "events")

    def attempt(data: bytes) -> None:
        for path in (root / "events").iterdir():
            path.unlink()
        path = root / "events" / "events.jsonl"
        path.write_bytes(data)
        log = EventLog(path, run_id="r", folder=folder)
        log.write("start", text="x")
        log.close()
        assert path.read_bytes().endswith(b'"kind":"start","text":"x"}\n')

    return Target("events", (_lines(root),), _typed(attempt), tokens=LOG_TOKENS)


LOG_TOKENS = (b'{"run_id":"r","seq":', b'"seq"', b'"run_id"', b'"nonfinite":true', b"}\n{")


def _lines(root: Path) -> bytes:
    path = root / "lines.jsonl"
    path.unlink(missing_ok=True)
    log = MetricsLog(path, run_id="r")
    for step in range(4):
        log.append(
            {"kind": "train", "step": step, "loss": 1 / (step + 1), "more": [1, {"a": None}]}
        )
    log.close()
    return path.read_bytes()


def records(root: Path) -> Target:
    """Return the target that finds a run by its run.json, with any run id."""
    run = root / "recorded"
    if not run.exists():
        small.go(run, 0)
    good = (run / "run.json").read_bytes()

    def attempt(data: bytes) -> None:
        (run / "run.json").write_bytes(data)
        run_id = RunStore.open(run).run_id
        assert 1 <= len(run_id) <= 64
        assert run_id.isascii()
        assert not set(run_id) - set(_RUN_ID_CHARACTERS), run_id

    tokens = (b'"run_id"', b'"format"', b'"created"', b'"con"', b'"."', b'".."', b'"a/b"', b'"-a"')
    return Target("run_json", (good,), _typed(attempt), tokens=tokens)


_RUN_ID_CHARACTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-"


def _configuration(path: Path) -> Callable[[bytes], object]:
    def attempt(data: bytes) -> None:
        path.write_bytes(data)
        config = load_config(path)
        text = to_toml(config)
        printed = path.with_name("printed.toml")
        printed.write_text(text)
        assert load_config(printed) == config, "printed and read again it is another one"

    return _typed(attempt)


def toml(root: Path) -> Target:
    """Return the target that reads configurations in TOML."""
    seed = to_toml(everything.configuration(root, root / "run"))
    short = '[data]\nsource = "tokens"\nbatch_size = 4\n[optim]\nlr = 1e-3\n'
    words = ("[data]", "[run]", 'x = """', "= 1e400", "= nan", "= 1979-05-27", "a.b = 1", "= 0x1_0")
    tokens = tuple(word.encode() for word in words)
    attempt = _configuration(root / "config.toml")
    return Target("toml", (short.encode(), seed.encode()), attempt, tokens=tokens, share=1.0)


def json_files(root: Path) -> Target:
    """Return the target that reads configurations in JSON."""
    seed = everything.configuration(root, root / "run").model_dump_json().encode()
    short = b'{"data": {"source": "tokens"}, "model": {"d_model": 8}, "optim": {"lr": 0.001}}'
    return Target("json", (short, seed), _configuration(root / "config.json"))


VERBS = ("train", "resume", "fork", "verify", "evaluate", "predict", "inspect")


def argv(root: Path) -> Target:
    """Return the target that takes command lines: one argument a line."""
    nowhere = root / "nowhere"
    nowhere.mkdir(exist_ok=True)
    make_parser = cli._parser
    parsers: dict[bool, argparse.ArgumentParser] = {}

    def parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
        """Return the parser; making one takes longer than all that it does."""
        preset = any(argument.startswith("--preset") for argument in arguments)
        if preset not in parsers:
            parsers[preset] = make_parser(arguments)
        return parsers[preset]

    def attempt(data: bytes) -> None:
        arguments = data.decode(errors="surrogateescape").split("\n")
        if arguments[0] not in VERBS:
            arguments.insert(0, "train")
        if arguments[0] == "train":  # it must not begin to
            arguments.insert(1, "--print-config")
        before = os.getcwd()  # noqa: PTH109
        os.chdir(nowhere)
        out, err = io.StringIO(), io.StringIO()
        try:
            with redirect_stdout(out), redirect_stderr(err), patch.object(cli, "_parser", parser):
                code = cli.main(arguments)
        except SystemExit as leaving:
            code = leaving.code
            assert not code, f"SystemExit({code})"
        finally:
            os.chdir(before)
        assert code in {0, 2, 3, 4}, f"exit code {code}: {err.getvalue()}"
        if code:
            assert err.getvalue().count("\n") == 1, "not one line"
            raise InvalidInputError(err.getvalue())
        assert not any(nowhere.iterdir()), "something was made"

    seeds = (
        b"train\n--data.source\ntokens\n--run.steps\n10",
        b"train\nx.toml\n--preset\nrust_trainer\n--quiet",
        b"resume\nruns/a\n--step\n3\n--rewind",
        b"evaluate\nruns/a\n--checkpoint\nbest",
        b"inspect\nx.safetensors\n--json",
        b"verify\nruns/a\n--steps\n0",
        b"fork\nruns/a\nruns/b",
    )
    tokens = (b"\n--", b"--data.train\nx", b"--help", b"--run.", b"=", b"--step=1", b"true", b"-1")
    return Target("argv", seeds, _typed(attempt), tokens=tokens)
