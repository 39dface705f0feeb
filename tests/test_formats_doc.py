"""docs/formats.md against real files.

Everything is read with what the document says and nothing else; the program only writes. Tables,
sentences and code of the document are themselves what the files are compared with.
"""

import gzip
import json
import math
import os
import random
import re
import signal
import struct
import tomllib
import zlib
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from hashlib import sha256
from itertools import accumulate, groupby, pairwise
from pathlib import Path
from types import NoneType
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from spherescan.data import import_text, open_tokens, shards, write_shards
from spherescan.data.order import derived_seed, sample_order, sample_order_by_shard
from spherescan.data.rows import fixed_sample
from spherescan.data.series import stratified_split
from spherescan.runs import container, header, metrics, read_checkpoint, store
from spherescan.train import Reporter, ResumeOptions, Signals, fork, resume
from tests.train.test_recovery import nan_at
from tests.train.test_training import trainer_for, write_series

pytestmark = pytest.mark.unwatched

TEXT = (Path(__file__).parent.parent / "docs" / "formats.md").read_text()
GOLDEN = Path(__file__).parent / "golden"
TYPES = {
    "int": int, "float": float, "text": str, "bool": bool, "list": list, "object": dict,
    "null": NoneType,
}  # fmt: skip
PLACEHOLDERS = {"STEP": "[0-9]{12}", "N": "[0-9]+", "PID": "[0-9]+", "HEX": "[0-9a-f]{16}"}
STAMP = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00"
NOT_FINITE = {"NaN", "Infinity", "-Infinity"}


# What the document says.


def section(heading: str) -> str:
    return re.split(r"^#+ ", TEXT.split(f"# {heading}\n")[1], flags=re.MULTILINE)[0]


def table(heading: str, column: str) -> list[list[str]]:
    lines = section(heading).splitlines()
    for is_table, part in groupby(lines, key=lambda line: line.startswith("|")):
        rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in part]
        if is_table and rows[0][0].strip("`") == column:
            return rows[2:]
    raise AssertionError(f"no table of {column} below {heading}")


def spans(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


def listed(text: str) -> dict[str, str]:
    """Fields in a sentence, as `name` type."""
    return dict(re.findall(rf"`([\w.]+)` ({'|'.join(TYPES)}|any)\b", text))


def described(heading: str, column: str) -> dict[str, str]:
    """Fields in a table and their types."""
    return {name: row[1] for row in table(heading, column) for name in spans(row[0])}


def row_of(heading: str, column: str, name: str) -> str:
    return next(row[1] for row in table(heading, column) if name in spans(row[0]))


def pattern(text: str, **names: str) -> re.Pattern[str]:
    known = PLACEHOLDERS | {name: re.escape(value) for name, value in names.items()}
    parts = re.split(rf"\b({'|'.join(known)})\b", text)
    return re.compile("".join(known.get(part, re.escape(part)) for part in parts))


def fits(value: object, kind: str) -> bool:
    return kind == "any" or type(value) in {TYPES[word] for word in kind.split(" or ")}


# What the files hold.


class Checkpoint(NamedTuple):
    head: bytes
    entries: dict[str, dict[str, Any]]
    data: bytes

    @property
    def metadata(self) -> dict[str, str]:
        return self.entries["__metadata__"]

    @property
    def state(self) -> dict[str, Any]:
        return json.loads(self.metadata["spherescan.state"])

    @property
    def tensors(self) -> dict[str, dict[str, Any]]:
        return {name: entry for name, entry in self.entries.items() if name != "__metadata__"}

    def bytes_of(self, name: str) -> bytes:
        return self.data[slice(*self.entries[name]["data_offsets"])]


def checkpoint(path: Path) -> Checkpoint:
    content = path.read_bytes()
    end = 8 + struct.unpack("<Q", content[:8])[0]
    return Checkpoint(content[:end], json.loads(content[8:end]), content[end:])


def digest_in(found: Checkpoint) -> bytes:
    size = int(re.search(r"piece of (\d+) bytes", table("Checkpoints", "bytes")[-1][1])[1])
    digest = sha256(found.head)
    for name in list(found.tensors)[:-1]:
        rest = found.bytes_of(name)
        while rest:
            digest.update(sha256(rest[:size]).digest())
            rest = rest[size:]
    return digest.digest()


def checkpoints(run: Path) -> list[Path]:
    return sorted((run / "ckpt").glob("step-*"))


def newest(run: Path) -> Checkpoint:
    return checkpoint(checkpoints(run)[-1])


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def compact(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode("ascii")


def nodes(value: dict[str, Any], path: str = "") -> Iterator[tuple[str, object]]:
    for key, item in value.items():
        name = f"{path}{key}"
        yield name, item
        if isinstance(item, dict):
            yield from nodes(item, f"{name}.")
        for part in item if isinstance(item, list) else []:
            yield from nodes(part, f"{name}[].") if isinstance(part, dict) else ()


def text_of(path: Path) -> list[list[int]]:
    """The documents in a folder of shards, after comparing every digest and size."""
    index = json.loads((path / "index.json").read_bytes())
    width = {"uint16": "H", "uint32": "I"}[index["dtype"]]
    tokens: list[int] = []
    for entry in index["shards"]:
        content = (path / entry["file"]).read_bytes()
        assert sha256(content).hexdigest() == entry["sha256"]
        tokens += struct.unpack(f"<{entry['n_tokens']}{width}", content)
    content = (path / "documents.bin").read_bytes()
    assert sha256(content).hexdigest() == index["documents_sha256"]
    starts = struct.unpack(f"<{index['n_documents']}Q", content)
    assert len(tokens) == index["n_tokens"]
    assert max(tokens) < index["vocab_size"]
    return [tokens[a:b] for a, b in pairwise([*starts, len(tokens)])]


# Runs that meet everything there is a record of.


class Stopping(Reporter):
    """Ask the run to stop after its next step, with no time left to save."""

    def __init__(self, signals: Signals) -> None:
        self._signals = signals

    def stepped(self, step, metrics, *, lr) -> None:
        self._signals.ask(signal.SIGTERM)


@dataclass(frozen=True)
class World:
    root: Path
    renamed: list[tuple[str, str]]

    @property
    def runs(self) -> list[Path]:
        return sorted(path.parent for path in self.root.glob("*/run.json"))

    @property
    def checkpoints(self) -> list[Checkpoint]:
        return [checkpoint(path) for run in self.runs for path in checkpoints(run)]

    def events(self, run: Path) -> list[dict[str, Any]]:
        """All events, those too that were in a log before it was damaged."""
        former = self.root / f"{run.name}.events"
        return (records(former) if former.exists() else []) + records(run / "events.jsonl")


DOCUMENTS = [np.arange(i % 7) * 3 % 50 for i in range(24)]
SERIES = {
    "model__n_layers": 2, "model__bidirectional": "true", "model__pooling": "mean,attention",
    "local__loss": "prototype",
}  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    root, renamed = tmp_path_factory.mktemp("formats"), []
    rename = os.rename

    def noting(source, target, **folders) -> None:
        renamed.append((Path(source).name, Path(target).name))
        rename(source, target, **folders)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "rename", noting)
        patch.setenv("SPHERESCAN_CACHE", str(root / "cache"))
        write_classes(root)
        write_numbers(root)
        write_tokens(root)
    return World(root, renamed)


def write_classes(root: Path) -> None:
    """Local learning that grows, comes to grief, is interrupted, damaged and taken back."""
    data = write_series(root / "classes.ts")
    trainer = trainer_for(
        root, "classes", data__train=data, local__mode="surgery", surgery__aggregator="gradvac",
        surgery__weighting="gradnorm", surgery__backprop_every=2, grow__layers=3, grow__at_step=2,
        run__on_non_finite="rollback", prototypes__learnable="true", checkpoint__keep=6, **SERIES,
    )  # fmt: skip
    signals = Signals()
    signals.ask(signal.SIGUSR1)
    with pytest.MonkeyPatch.context() as patch:
        nan_at(patch, 6)
        trainer.fit(signals=signals)
    trainer.close()
    damaged = root / "classes" / "ckpt" / f"step-{12:012d}.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    for changes, options in (
        ({"run.steps": 13}, ResumeOptions()),
        ({}, ResumeOptions(step=8, rewind=True)),
    ):
        trainer = resume(root / "classes", changes, options)
        trainer.fit()
        trainer.close()
    trainer = trainer_for(
        root, "convolved", data__train=data, model__n_convolutions=2, model__selective="false"
    )
    trainer.fit(2)
    trainer.close()
    fork(root / "classes", root / "forked", step=8)
    fork(GOLDEN / "schema-1", root / "older")
    trainer_for(
        root, "based", data__train=data, data__validation=write_series(root / "more.ts", n=9),
        grow__base=root / "classes", grow__layers=4, prototypes__learnable="true",
        **SERIES | {"model__n_layers": 3},
    ).close()  # fmt: skip


def write_numbers(root: Path) -> None:
    """A regression whose second step is left out, then stopped, its logs damaged."""
    rows = [f"{i},{i % 5}.5,{i * 7 % 5}.25,{t}" for i in range(20) for t in range(3 + i % 2)]
    data = root / "numbers.csv"
    data.write_text("\n".join(["case,target,a,b", *rows]) + "\n")
    run = root / "numbers"
    trainer = trainer_for(
        root, "numbers", data__train=data, data__task="regression", run__on_non_finite="skip"
    )
    with pytest.MonkeyPatch.context() as patch:
        nan_at(patch, 2)
        trainer.fit(6)
    signals = Signals(grace_seconds=0.0)
    trainer.fit(reporter=Stopping(signals), signals=signals)
    trainer.close()
    for name in ("metrics", "events"):
        log = run / f"{name}.jsonl"
        (root / f"numbers.{name}").write_bytes(log.read_bytes())
        log.write_bytes(log.read_bytes().replace(b"train", b"brain", 1)[:-9] + b"\0\n")
    trainer = resume(run, options=ResumeOptions(repair_metrics=True))
    trainer.fit()
    trainer.close()


def write_tokens(root: Path) -> None:
    write_shards(DOCUMENTS, root / "shards", vocab_size=50, tokens_per_shard=32)
    write_shards(DOCUMENTS, root / "wide", vocab_size=1 << 17)
    data = {
        "data__source": "tokens", "data__train": root / "shards", "data__seq_len": 4,
        "prototypes__init": "random",
    }  # fmt: skip
    rust = {
        "model__form": "rust_trainer", "model__expand": 1, "model__gate": "false",
        "model__dt_rank": 1,
    }  # fmt: skip
    local = {"local__loss": "rust_trainer", "surgery__backprop_every": 2}
    for name, settings in (("tokens", data | rust), ("unread", data | local)):
        trainer = trainer_for(root, name, **settings)
        trainer.fit()
        trainer.close()
    trainer_for(root, "made-up", data__source="synthetic", data__vocab_size=8).close()
    texts = root / "texts"
    texts.mkdir()
    for name in ("b.txt", "a.txt"):
        (texts / name).write_text(f"{ord(name[0])} 2 3\n")
    (root / "one.txt.gz").write_bytes(gzip.compress(b"7 8 9", mtime=0))
    np.save(root / "one.npy", np.arange(5))
    open_tokens(root / "one.npy", vocab_size="auto")
    (entry,) = (root / "cache" / "tokens").iterdir()
    (entry / "documents.bin").write_bytes(b"")
    with pytest.warns(UserWarning, match="imported again"):
        open_tokens(root / "one.npy", vocab_size="auto")
    open_tokens(texts, vocab_size=100, extension="txt")
    open_tokens(root / "one.txt.gz", vocab_size=70_000)


class TestTheRun:
    def test_every_file_is_in_the_table_and_all_in_the_table_are_there(self, world):
        names = [name for row in table("A run", "file") for name in spans(row[0])]
        seen = set()
        for run in world.runs:
            for path in run.rglob("*"):
                name = str(path.relative_to(run))
                fitting = [each for each in names if pattern(each).fullmatch(name)]
                if path.is_file():
                    assert len(fitting) == 1, name
                    assert path.stat().st_mode & 0o777 == 0o600
                seen |= {*fitting}
        assert seen == {*names}

    def test_every_rename_is_one_of_the_described(self, world):
        temporary = next(name for name in spans(section("A run")) if name.startswith(".tmp-"))
        partial, removed = (
            next(name for name in spans(section("Shards")) if end in name)
            for end in ("partial", "removed")
        )
        kept = [name for row in table("A run", "file") for name in spans(row[0])]
        aside = [
            name.removeprefix("ckpt/") for name in kept if re.search("bad|aside|damaged", name)
        ]
        seen = set()
        for source, target in world.renamed:
            forms = [
                *(t for t in (temporary, partial) if pattern(t, NAME=target).fullmatch(source)),
                *(t for t in (removed,) if pattern(t, DIGEST=source).fullmatch(target)),
                *(t for t in aside if pattern(t).fullmatch(target)),
            ]
            assert len(forms) == 1, (source, target)
            seen |= {*forms}
        assert seen == {temporary, partial, removed, *aside}

    def test_run_json(self, world):
        fields = listed(row_of("A run", "file", "run.json"))
        line = next(line for line in section("A run").splitlines() if line.startswith("`parent`"))
        forms = {tuple(re.findall(r'"(\w+)":', span)) for span in spans(line) if "{" in span}
        parents = {}
        for run in world.runs:
            content = (run / "run.json").read_bytes()
            record = json.loads(content)
            assert content == json.dumps(record).encode() + b"\n"
            assert list(record) == [name for name in fields if name in record]
            assert fields.keys() - record.keys() <= {"parent"}
            assert all(fits(value, fields[name]) for name, value in record.items())
            assert record["format"] == 1
            assert pattern("HEX").fullmatch(record["run_id"])
            assert re.fullmatch(STAMP, record["created"])
            assert newest(run).state["run_id"] == record["run_id"]
            parents[run.name] = record.get("parent")
        assert {tuple(parent) for parent in parents.values() if parent} == forms
        start = next(e for e in records(world.root / "forked" / "events.jsonl") if "parent" in e)
        assert start["parent"] == parents["forked"]
        kinds = dict(re.findall(r'"(\w+)": (text|int)', line))
        assert all(fits(value, kinds[name]) for name, value in parents["forked"].items())
        assert parents["forked"]["digest"] == newest(world.root / "forked").state["parent"]

    def test_the_lock_and_the_settings(self, world):
        form = spans(row_of("A run", "file", "run.lock"))[0]
        for run in world.runs:
            signature = pattern(form).pattern.replace("TIME", STAMP)
            assert re.fullmatch(f"{signature}\n", (run / "run.lock").read_text())
        for name in ("numbers", "tokens", "based", "forked"):
            settings = newest(world.root / name).state["config"]
            kept = {
                section: {key: value for key, value in values.items() if value is not None}
                for section, values in settings.items()
            }
            assert tomllib.loads((world.root / name / "config.toml").read_text()) == kept
        began = tomllib.loads((world.root / "classes" / "config.toml").read_text())
        (later,) = (world.root / "classes" / "ckpt").glob("aside-step-*13.*")
        steps = [began["run"]["steps"], checkpoint(later).state["config"]["run"]["steps"]]
        assert steps == [12, 13]

    def test_the_best_is_a_second_name(self, world):
        for name in ("classes", "numbers", "tokens"):
            best = newest(world.root / name).state["counters"]["best_step"]
            path = world.root / name / "ckpt" / f"step-{best:012d}.safetensors"
            assert (world.root / name / "best.safetensors").samefile(path)

    def test_the_report_of_a_step_that_was_not_finite(self, world):
        names = spans(row_of("A run", "file", "nonfinite-step-N.json"))
        for run, step in (("classes", 6), ("numbers", 2)):
            content = (world.root / run / f"nonfinite-step-{step}.json").read_bytes()
            report = json.loads(content)
            assert content == compact(report) + b"\n"
            trained = newest(world.root / run).tensors
            assert {f"optim/step/{name}" for name in report["grad_norms"]} <= trained.keys()
            values = report["grad_norms"].values()
            assert all(isinstance(value, float) or value in NOT_FINITE for value in values)
            assert "NaN" in values
            fields = [*nodes(report | {"grad_norms": {}})]
            assert [path.rpartition(".")[2] for path, _ in fields] == names
            kinds = listed(row_of("A run", "file", "nonfinite-step-N.json"))
            assert all(fits(report[name], kind) for name, kind in kinds.items())
            assert report["step"] == step

    def test_the_limits(self):
        text = " ".join(section("A run").split())
        assert (
            f"a header of more than {header.MAX_HEADER_BYTES} bytes or {header.MAX_HEADER_DEPTH} "
            f"levels of brackets, a state of more than {container.MAX_STATE_DEPTH} levels, lines "
            f"of metrics or events of more than {metrics.MAX_LINE_BYTES} bytes (without their "
            f"ends) or {metrics.MAX_DEPTH} levels, a `run.json` of more than "
            f"{store._MAX_RECORD_BYTES} bytes or 4 levels, and an `index.json` of more than "
            f"{shards._MAX_INDEX_BYTES} bytes or {shards._MAX_INDEX_DEPTH} levels."
        ) in text
        for depth in (4, 5):
            nested = "[" * (depth - 1) + "]" * (depth - 1)
            record = f'{{"format": 1, "run_id": "a", "more": {nested}}}'.encode()
            with nullcontext() if depth == 4 else pytest.raises(ValueError, match="deeper than 4"):
                assert store._parse_record(record) == "a"
        assert f"at most {header.MAX_TENSORS} tensors of at most {header.MAX_RANK} axes" in section(
            "Checkpoints"
        )
        assert f"files of {shards.TOKENS_PER_SHARD} tokens" in section("Shards")


class TestCheckpoints:
    def test_a_length_a_header_tensors_without_gaps_and_a_digest_of_all_before_it(self, world):
        keys = (*spans(section("Checkpoints").split("Then every tensor")[1])[:3],)
        for run in world.runs:
            saves = [event for event in world.events(run) if event["kind"] == "save"]
            saved = {event["step"]: event["digest"] for event in saves}
            for path in checkpoints(run):
                content = path.read_bytes()
                found = checkpoint(path)
                text = compact(found.entries)
                assert found.head[8:] == text + b" " * (-len(text) % 8)
                *others, (last, commit) = found.tensors.items()
                assert [last] == spans(table("Checkpoints", "bytes")[-1][1])
                assert {(*entry,) for entry in found.tensors.values()} == {keys}
                assert (commit["dtype"], commit["shape"]) == ("U8", [32])
                assert found.bytes_of(last) == digest_in(found) == content[-32:]
                sizes = [
                    {"F32": 4, "U8": 1}[entry["dtype"]] * math.prod(entry["shape"])
                    for entry in found.tensors.values()
                ]
                offsets = [entry["data_offsets"] for entry in found.tensors.values()]
                assert offsets == [[*pair] for pair in pairwise(accumulate(sizes, initial=0))]
                assert offsets[-1][1] == len(found.data)
                order = [(entry["dtype"] != "F32", name.encode()) for name, entry in others]
                assert order == sorted(order)
                assert saved[found.state["step"]] == found.bytes_of(last).hex()
                assert pattern("step-STEP.safetensors").fullmatch(path.name)
                assert int(path.name[5:17]) == found.state["step"]

    def test_the_metadata(self, world):
        text = section("Checkpoints").split("First comes")[1].split("Then every tensor")[0]
        first, *names = spans(text)
        schema = re.search(r"`spherescan.schema`, the schema, \"(\d+)\"", text)
        for found in world.checkpoints:
            assert next(iter(found.entries)) == first
            assert list(found.metadata) == names
            assert found.metadata["format"] == "pt"
            assert found.metadata["spherescan.schema"] == schema[1]
            assert re.fullmatch(
                r"spherescan [\d.]+, torch [\w.+]+", found.metadata["spherescan.created_by"]
            )
            assert compact(found.state).decode() == found.metadata["spherescan.state"]

    def test_every_tensor_has_the_shape_in_the_table_and_all_in_the_table_are_there(self, world):
        shapes = {name: row[1] for row in table("Checkpoints", "tensor") for name in spans(row[0])}
        assert len(shapes) == sum(len(spans(row[0])) for row in table("Checkpoints", "tensor"))
        seen = set()
        for found in world.checkpoints:
            letters = letters_of(found.state["model"])
            for name, entry in found.tensors.items():
                if not name.startswith("model/"):
                    continue
                known = re.sub(r"\.\d+\.", ".I.", name).replace("mixer_backward", "mixer")
                shape = shapes[known].replace("\\", "")
                assert entry["dtype"] == "F32"
                local = letters | letters_of_layer(name, letters)
                assert entry["shape"] == [*eval(f"({shape},)", {"min": min}, local)], name
                seen.add(known)
            backward = any("mixer_backward" in name for name in found.tensors)
            assert backward is found.state["model"]["bidirectional"]
        assert seen == shapes.keys()

    def test_the_state_of_the_optimiser_and_the_generators(self, world):
        named = spans(section("Checkpoints"))
        of_optimiser = [name for name in named if name.startswith("optim/")]
        of_process, seen = {name for name in named if name.startswith("generators/")}, set()
        for found in world.checkpoints:
            shapes = {name: entry["shape"] for name, entry in found.tensors.items()}
            learned = found.state["model"]["learnable_prototypes"]
            trained = {
                name.removeprefix("model/"): shape
                for name, shape in shapes.items()
                if re.match(r"model/(?!embedding\.(mean|std)$)", name)
                and (learned or name != "model/head.weight")
            }
            expected = {f"model/{name}" for name in trained} | {"~commit.sha256"}
            for form in of_optimiser:
                for name, shape in trained.items():
                    expected.add(form.replace("NAME", name))
                    assert shapes[form.replace("NAME", name)] == ([] if "step" in form else shape)
            generators = {f"generators/{name}" for name in found.state["generators"]}
            buffers = {"model/embedding.mean", "model/embedding.std", "model/head.weight"}
            assert shapes.keys() - buffers == (expected | generators) - buffers
            seen |= generators
            if generators:
                version, numbers, gauss = json.loads(found.bytes_of("generators/python"))
                assert (version, len(numbers)) == (3, 625)
                random.Random().setstate((version, tuple(numbers), gauss))
                kind, numbers, *floats = json.loads(found.bytes_of("generators/numpy"))
                assert (kind, len(numbers), [*map(type, floats)]) == ("MT19937", 624, [float] * 3)
        assert seen == of_process

    def test_counts_of_the_bias_correction(self, world):
        for name, updates in (("tokens", 12), ("numbers", 11)):
            found = newest(world.root / name)
            counts = {
                struct.unpack("<f", found.bytes_of(tensor))[0]
                for tensor in found.tensors
                if tensor.startswith("optim/step/")
            }
            assert counts == {updates}
            assert found.state["counters"]["bp_updates"] == updates

    def test_the_state_has_the_described_fields_of_their_types(self, world):
        fields = described("State", "field")
        settings = {
            row[0].strip("`").removeprefix("config."): spans(row[2])
            for row in table("State", "field")
            if row[0].startswith("`config.")
        }
        seen = set()
        for found in world.checkpoints:
            state = found.state
            config = {name: [*values] for name, values in state["config"].items()}
            assert config == settings
            for path, value in nodes(state | {"config": {key: {} for key in config}}):
                assert path in fields, path
                assert fits(value, fields[path]), path
                seen.add(path)
            assert state["counters"]["step"] == state["step"]
        assert seen == fields.keys()

    def test_the_place_in_the_metrics(self, world):
        for run in world.runs:
            log = (run / "metrics.jsonl").read_bytes()
            repaired = any(run.glob("metrics.damaged-*"))  # the log before was that of the others
            for path in checkpoints(run)[-1:] if repaired else checkpoints(run):
                before = checkpoint(path).state["metrics"]
                part = log[: before["offset"]]
                assert len(part) == before["offset"]
                assert part.count(b"\n") == before["lines"] == before["next_seq"]
                assert zlib.crc32(part) == before["crc32"]

    def test_the_parent_is_the_checkpoint_before(self, world):
        paths = checkpoints(world.root / "tokens")
        for before, after in pairwise(paths):
            assert checkpoint(after).state["parent"] == before.read_bytes()[-32:].hex()
        first = checkpoint(checkpoints(world.root / "based")[0])
        assert first.state["parent"] is None

    def test_an_older_schema_is_read_with_the_described_values(self):
        text = " ".join(section("State").split("A file of schema 1")[1].split())
        added = json.loads(re.search(r"`(\{.*\})`", text)[1])
        equal, to = re.search(r"`counters\.(\w+)` equal to `counters\.(\w+)`", text).groups()
        fields = described("State", "field")
        paths = sorted((GOLDEN / "schema-1" / "ckpt").iterdir())
        for path in paths:
            found = checkpoint(path)
            assert found.metadata["spherescan.schema"] == "1"
            state = found.state
            missing = {name for name in fields if "." not in name} - state.keys()
            assert missing == added.keys()
            counters = state["counters"] | {equal: state["counters"][to]}
            assert read_checkpoint(path).state == state | added | {"counters": counters}
        older = [*paths, *(GOLDEN / "schema-2" / "ckpt").iterdir()]
        assert (
            "Files of schemas 1 and 2 end with the SHA-256 of all bytes before the last 32" in text
        )
        for path in older:
            content = path.read_bytes()
            assert sha256(content[:-32]).digest() == content[-32:]
            assert read_checkpoint(path).digest == content[-32:].hex()
        assert f"A schema above {container.SCHEMA} is refused" in text


def letters_of(model: dict[str, Any]) -> dict[str, int]:
    d, h = model["d_model"], model["n_pool_heads"]
    width = sum(h * d if kind == "attention" else d for kind in model["pooling"])
    return {
        "V": model["vocab_size"],
        "c": model["n_channels"],
        "d": d,
        "D": model["expand"] * d,
        "n": model["d_state"],
        "k": model["d_conv"],
        "r": model["dt_rank"] or -(-d // 16),
        "g": 2 if model["gate"] else 1,
        "h": h,
        "K": model["n_prototypes"],
        "p": model["prototype_dim"],
        "q": model["n_local_outputs"] or model["prototype_dim"],
        "w": width or d,
    }


def letters_of_layer(name: str, letters: dict[str, int]) -> dict[str, int]:
    """Return the letters that differ from one layer of convolutions to the next."""
    found = re.search(r"embedding\.convolutions\.(\d+)(?:\.convolutions\.(\d))?", name)
    if found is None:
        return {}
    width = (5, 11, 23)[int(found[2] or 0)]
    return {"e": letters["c"] if found[1] == "0" else letters["d"], "j": width}


class TestLogs:
    def test_a_line_is_compact_and_its_seq_one_more_than_the_one_before(self, world):
        for run in world.runs:
            run_id = json.loads((run / "run.json").read_bytes())["run_id"]
            for name in ("metrics.jsonl", "events.jsonl"):
                content = (run / name).read_bytes()
                lines = records(run / name)
                assert content == b"".join(compact(line) + b"\n" for line in lines)
                assert [line["seq"] for line in lines] == [*range(len(lines))]
                assert {line["run_id"] for line in lines} <= {run_id}

    def test_metrics_have_the_described_keys_of_their_types(self, world):
        first = listed(section("Metrics"))
        assert list(first) == ["run_id", "seq", "kind", "step"]
        seen: dict[str, set[str]] = {}
        logs = [run / "metrics.jsonl" for run in world.runs]
        for record in map(dict, [r for log in logs for r in records(log)]):
            kind = record["kind"]
            fields = described("Metrics", kind)
            assert list(record)[: len(first)] == list(first)
            assert all(fits(record.pop(name), first[name]) for name in [*first])
            assert record.pop("nonfinite", None) is None
            for path, value in nodes(record):
                assert fits(value, fields[path]), path
                seen.setdefault(kind, set()).add(path)
        assert seen == {kind: {*described("Metrics", kind)} for kind in ("train", "val")}

    def test_a_line_with_a_float_that_is_not_finite_says_so_at_its_end(self, world):
        lines = records(world.root / "numbers.metrics")
        (line,) = [line for line in lines if NOT_FINITE & {*map(str, line.values())}]
        assert line["skipped"] is True
        (end,) = (span for span in spans(section("Metrics")) if "nonfinite" in span)
        assert compact(line).endswith(f",{end}}}".encode())
        named = set(re.findall(r'"(NaN|-?Infinity)"', section("Metrics")))
        assert named == NOT_FINITE
        kinds = described("Metrics", "train")
        spelled = {name for name, value in line.items() if value in list(NOT_FINITE)}
        assert {kinds[name] for name in spelled} == {"float"}

    def test_events_have_the_described_keys_of_their_types(self, world):
        first = listed(section("Events").split("|")[0])
        assert list(first) == ["run_id", "seq", "time", "kind"]
        keys = {row[0].strip("`"): listed(row[1]) for row in table("Events", "kind")}
        seen: dict[str, set[str]] = {}
        for event in (event for run in world.runs for event in world.events(run)):
            wanted = keys[event["kind"]]
            assert list(event) == [*first, *(name for name in wanted if name in event)]
            kinds = first | wanted
            assert all(fits(value, kinds[name]) for name, value in event.items())
            assert re.fullmatch(STAMP.replace(r"\+", r"\.\d{3}\+"), event["time"])
            seen.setdefault(event["kind"], set()).update(event.keys() - first.keys())
        assert seen == {kind: {*wanted} for kind, wanted in keys.items()}

    def test_events_leave_out_what_has_no_meaning_for_them(self, world):
        events = [event for run in world.runs for event in world.events(run)]
        moved = {
            (e["file"].split("-")[0], "step" in e) for e in events if e["kind"] == "quarantine"
        }
        assert moved == {("bad", True), ("metrics.damaged", False), ("events.damaged", False)}
        starts = {(*event,)[4:] for event in events if event["kind"] == "start"}
        assert starts == {("environment", "data"), ("parent",)}

    def test_the_environment_of_an_event_is_that_of_the_state(self, world):
        run = world.root / "tokens"
        start = next(e for e in records(run / "events.jsonl") if e["kind"] == "start")
        assert start["environment"] == newest(run).state["environment"]


class TestData:
    @pytest.mark.parametrize("name", ["shards", "wide"])
    def test_shards_give_back_the_tokens(self, world, name):
        kept = [document.tolist() for document in DOCUMENTS if len(document)]
        assert len(kept) < len(DOCUMENTS)
        assert text_of(world.root / name) == kept

    def test_the_index(self, world):
        text = row_of("Shards", "file", "index.json")
        whole, each = text.split("of each file")
        fields, shard_fields = listed(whole), listed(each)
        named = {name for row in table("Shards", "file") for name in spans(row[0])}
        dtypes = {}
        for name in ("shards", "wide"):
            content = (world.root / name / "index.json").read_bytes()
            index = json.loads(content)
            assert content == (json.dumps(index, indent=1) + "\n").encode()
            assert {key: type(value) for key, value in index.items()} == {
                key: TYPES[kind] for key, kind in fields.items()
            }
            assert [index["format"], str(index["version"])] == [
                *re.search(r'`format` text, "([^"]+)"; `version` int, (\d+)', text).groups()
            ]
            for position, entry in enumerate(index["shards"]):
                assert {key: type(value) for key, value in entry.items()} == {
                    key: TYPES[kind] for key, kind in shard_fields.items()
                }
                assert entry["file"] == f"shard-{position:05d}.bin"
                last = position == len(index["shards"]) - 1
                assert last or entry["n_tokens"] == 32
            files = {path.name for path in (world.root / name).iterdir()}
            assert files == {"index.json", "documents.bin", *(s["file"] for s in index["shards"])}
            assert (files == named | {"shard-00002.bin"}) is (name == "shards")
            dtypes[index["vocab_size"]] = index["dtype"]
        assert dtypes == {50: "uint16", 1 << 17: "uint32"}
        assert all(f'"{dtype}"' in text for dtype in dtypes.values())

    def test_an_import_keeps_the_bytes_of_each_file_as_a_document(self, tmp_path):
        (tmp_path / "in").mkdir()
        (tmp_path / "in" / "b").write_bytes(b"\xff\x00")
        (tmp_path / "in" / "a").write_bytes(b"a")
        import_text(tmp_path / "in", tmp_path / "out", encoding="bytes")
        assert text_of(tmp_path / "out") == [[97], [255, 0]]

    def test_imported_text_is_named_by_its_content(self, world):
        paragraph = section("Shards").split("DIGEST is that of")[1].split("Of series")[0]
        head, none, *endings = spans(paragraph)
        assert endings == [".npy", ".txt", ".txt.gz"]
        texts = world.root / "texts"
        expected = {}
        for vocabulary, files in (
            ("100", [texts / "a.txt", texts / "b.txt"]),
            ("70000", [world.root / "one.txt.gz"]),
            (none, [world.root / "one.npy"]),
        ):
            lines = [head, vocabulary, str(len(files))]
            for file in files:
                ending = max((e for e in endings if file.name.endswith(e)), key=len)
                lines += [ending, sha256(file.read_bytes()).hexdigest()]
            name = sha256("".join(f"{line}\n" for line in lines).encode()).hexdigest()
            expected[name] = vocabulary
        tokens = world.root / "cache" / "tokens"
        assert {path.name for path in tokens.iterdir()} == expected.keys()
        documents = {v: text_of(tokens / name) for name, v in expected.items()}
        assert documents == {
            "100": [[97, 2, 3], [98, 2, 3]],
            "70000": [[7, 8, 9]],
            none: [[0, 1, 2, 3, 4]],
        }

    def test_the_fingerprints(self, world):
        found = {run.name: newest(run).state["fingerprint"] for run in world.runs}
        index = (world.root / "shards" / "index.json").read_bytes()
        assert found["tokens"] == sha256(index).hexdigest()
        made_up = next(span for span in spans(section("Shards")) if span.startswith("synthetic"))
        assert found["made-up"] == made_up.replace("N", "8")
        classes, more = (of_classes(world.root / f"{name}.ts") for name in ("classes", "more"))
        assert found["classes"] == classes
        assert found["based"] == f"{classes}/{more}"
        assert found["numbers"] == of_numbers(world.root / "numbers.csv")


def digest_of(
    names: tuple[object, ...], targets: list[float], series: list[list[list[float]]]
) -> str:
    digest = sha256(repr(names).encode())
    digest.update(struct.pack(f"<{len(targets)}d", *targets))
    for values in series:
        flat = [value for position in values for value in position]
        digest.update(repr((len(values), len(values[0]))).encode())
        digest.update(struct.pack(f"<{len(flat)}f", *flat))
    return digest.hexdigest()


def of_classes(path: Path) -> str:
    head, body = path.read_text().split("@data\n")
    declared = tuple(re.search(r"@classLabel true (.*)", head)[1].split())
    rows = [line.split(":") for line in body.splitlines()]
    series = [
        [
            [float(v) for v in position]
            for position in zip(*(c.split(",") for c in row[:-1]), strict=True)
        ]
        for row in rows
    ]
    labels = tuple(row[-1] for row in rows)
    return digest_of((labels, declared, None, len(rows)), [], series)


def of_numbers(path: Path) -> str:
    names, *rows = (line.split(",") for line in path.read_text().splitlines())
    cases = [[*group] for _, group in groupby(rows, key=lambda row: row[0])]
    targets = [float(case[0][1]) for case in cases]
    series = [[[float(v) for v in row[2:]] for row in case] for case in cases]
    return digest_of((None, None, tuple(names[2:]), len(cases)), targets, series)


ORDER: dict[str, Any] = {}
exec(re.search(r"```python\n(.*?)```", section("Order"), re.DOTALL)[1], ORDER)
# As they stand in the table and in the text behind it.
SHUFFLED, SHARD, ROW, HELD_OUT, SCORED = re.findall(
    r"P\((?:[^()]|\([^()]*\))*\)", section("Order").split("```")[2]
)


def value(formula: str, **letters: int) -> int:
    return eval(formula, ORDER | letters)


class TestOrder:
    """The code and the formulas of the document against the program."""

    @given(n=st.integers(1, 90), seed=st.integers(0, 2**53), epoch=st.integers(0, 2**40))
    def test_the_samples_of_an_epoch(self, n, seed, epoch):
        expected = [value(SHUFFLED, N=n, seed=seed, e=epoch, p=p) for p in range(n)]
        assert sample_order(epoch * n, n, n=n, seed=seed).tolist() == expected
        assert sorted(expected) == [*range(n)]
        unshuffled = row_of("Order", "setting", "data.shuffle = false")
        plain = sample_order(epoch * n, n, n=n, seed=seed, shuffle=False).tolist()
        assert plain == [value(unshuffled, p=p) for p in range(n)]

    @given(
        sizes=st.lists(st.integers(0, 9), min_size=1, max_size=6).filter(any),
        seed=st.integers(0, 2**53),
        epoch=st.integers(0, 2**20),
    )
    def test_the_samples_of_an_epoch_by_shard(self, sizes, seed, epoch):
        first = [*accumulate(sizes, initial=0)]
        expected = []
        for i in range(len(sizes)):
            s = value(SHARD, S=len(sizes), seed=seed, e=epoch, i=i)
            place = {"M": sizes[s], "s": s, "seed": seed, "e": epoch}
            expected += [first[s] + value(ROW, j=j, **place) for j in range(sizes[s])]
        n = sum(sizes)
        order = sample_order_by_shard(epoch * n, n, sizes=sizes, seed=seed)
        assert order.tolist() == expected

    @given(st.integers(0, 2**53), st.lists(st.integers(0, 99) | st.just("a"), max_size=3))
    def test_derived_seeds(self, seed, purpose):
        assert derived_seed(seed, *purpose) == ORDER["D"](seed, *purpose)

    @given(
        counts=st.lists(st.integers(1, 12), min_size=1, max_size=4),
        fraction=st.sampled_from([0.1, 0.25, 0.5, 0.9]),
        seed=st.integers(0, 2**53),
    )
    def test_what_is_held_out(self, counts, fraction, seed):
        targets = [c for c, m in enumerate(counts) for _ in range(m)]
        random.Random(seed).shuffle(targets)
        expected = []
        for c, m in enumerate(counts):
            members = [i for i, target in enumerate(targets) if target == c]
            held = min(m - 1, math.floor(fraction * m + 0.5))
            expected += [members[value(HELD_OUT, m=m, seed=seed, c=c, i=i)] for i in range(held)]
        assume(expected)
        array = np.array(targets, dtype=np.int64)
        _, found = stratified_split(array, fraction=fraction, seed=seed)
        assert found.tolist() == sorted(expected)

    @given(n=st.integers(1, 60), count=st.integers(1, 60), first=st.integers(0, 9))
    def test_which_held_out_rows_are_scored(self, n, count, first):
        rows = range(first, first + n)
        chosen = {rows[value(SCORED, U=n, i=i)] for i in range(count)} if count < n else {*rows}
        assert fixed_sample(rows, count) == sorted(chosen)

    def test_the_state_has_the_place_of_the_next_sample(self, world):
        # Of 20 cases 2 are held out, and 2 of the 17 windows of 66 tokens.
        for name, n in (("numbers", 18), ("tokens", 15)):
            for path in checkpoints(world.root / name):
                state = checkpoint(path).state
                epoch, position = divmod(4 * state["step"], n)
                assert state["data"] == {"epoch": epoch, "position": position}
            for record in records(world.root / name / "metrics.jsonl"):
                if record["kind"] == "train":
                    place = divmod(4 * record["step"], n)
                    assert (record["epoch"], record["position"]) == place

    def test_a_batch_that_is_left_out_is_passed_over(self, world):
        for path in checkpoints(world.root / "classes"):
            state = checkpoint(path).state
            left_out = state["guard"]["left_out"]
            epoch, position = divmod(4 * (state["step"] + len(left_out)), 21)
            assert state["data"] == {"epoch": epoch, "position": position}
        assert left_out == [[0, 20]]
