import errno
import json
import os
import struct
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from spherescan.errors import CheckpointError, StorageError
from spherescan.runs import container
from spherescan.runs.container import (
    COMMIT,
    SCHEMA,
    inspect_checkpoint,
    read_checkpoint,
    write_checkpoint,
)
from spherescan.runs.header import DTYPES, parse_header
from spherescan.strict_json import parse_json
from tests.signing import signed

STATE = {"step": 7, "loss": 0.1, "config": "a\n\u00e9", "order": [1, [2, None]], "seed": 2**64 - 1}
METADATA = {
    "format": "pt",
    "spherescan.schema": str(SCHEMA),
    "spherescan.created_by": "a test",
    "spherescan.state": "{}",
}
COMMIT_ENTRY = {"dtype": "U8", "shape": [32]}


def assert_same(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal as bits, so that NaN payloads and signed zeros count."""
    assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape)
    bits = [torch.clone(t, memory_format=torch.contiguous_format) for t in (actual, expected)]
    bits = [t.flatten().view(torch.uint8) for t in bits]
    assert torch.equal(*bits)


def small_tensors() -> dict[str, torch.Tensor]:
    return {"b.weight": torch.arange(6.0).reshape(2, 3), "a/mask": torch.tensor([True, False])}


def forged(text: str | bytes, data: bytes = b"") -> bytes:
    """A file with any header and a digest that is right: what an attacker would make."""
    text = text if isinstance(text, bytes) else text.encode()
    body = struct.pack("<Q", len(text)) + text + data
    return signed(body)


def header_text(entries: dict[str, object], n_data: int, metadata: object = METADATA) -> str:
    commit = {**COMMIT_ENTRY, "data_offsets": [n_data, n_data + 32]}
    return json.dumps({"__metadata__": metadata, **entries, COMMIT: commit})


def n_open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def refusals(path) -> str:
    """The one message with which both entry points refuse the file."""
    messages = []
    for entry in (read_checkpoint, inspect_checkpoint):
        with pytest.raises(CheckpointError) as caught:
            entry(path)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
    assert str(path) in messages[0]
    assert "\n" not in messages[0]
    return messages[0]


class TestRoundTrip:
    @pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
    @pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (5,), (2, 3, 4), (1,) * 8], ids=str)
    def test_every_dtype_and_rank_comes_back_bit_for_bit(self, tmp_path, dtype, shape, generator):
        numbers = torch.randint(0, 2, shape, generator=generator)
        expected = {"x": numbers.to(dtype), "odd": torch.ones(3, dtype=torch.int8)}
        digest = write_checkpoint(tmp_path / "c", expected, STATE)
        checkpoint = read_checkpoint(tmp_path / "c")
        assert checkpoint.tensors.keys() == expected.keys()
        for name, tensor in expected.items():
            assert_same(checkpoint.tensors[name], tensor)
        assert checkpoint.state == STATE
        assert (checkpoint.digest, checkpoint.schema) == (digest, SCHEMA)
        assert torch.__version__ in checkpoint.created_by

    @pytest.mark.parametrize(
        "tensor",
        [
            torch.arange(12.0).reshape(3, 4).T,
            torch.arange(12, dtype=torch.int16)[::3],
            torch.ones(1, 2, dtype=torch.bfloat16).expand(3, 2),
            torch.tensor([1 + 2j]).conj().imag,
            torch.nn.Parameter(torch.ones(2, 2)),
            torch.tensor([float("nan"), -0.0, float("inf")], dtype=torch.float16),
        ],
        ids=["transposed", "strided", "expanded", "negated-view", "parameter", "special-values"],
    )
    def test_the_layout_in_memory_does_not_matter(self, tmp_path, tensor):
        write_checkpoint(tmp_path / "c", {"x": tensor}, {})
        assert_same(read_checkpoint(tmp_path / "c").tensors["x"], tensor.detach().resolve_neg())

    def test_a_tensor_larger_than_a_piece_comes_back(self, tmp_path, monkeypatch):
        monkeypatch.setattr(container, "PIECE_BYTES", 24)
        tensors = {"x": torch.arange(101), "mask": torch.arange(101) % 3 == 0}
        digest = write_checkpoint(tmp_path / "c", tensors, {})
        assert_same(read_checkpoint(tmp_path / "c").tensors["x"], tensors["x"])
        assert inspect_checkpoint(tmp_path / "c").digest == digest

    def test_nothing_at_all_is_a_checkpoint_too(self, tmp_path):
        write_checkpoint(tmp_path / "c", {}, {})
        checkpoint = read_checkpoint(tmp_path / "c")
        assert (checkpoint.tensors, checkpoint.state) == ({}, {})

    def test_any_safetensors_reader_can_read_it(self, tmp_path):
        expected = {"f64": torch.ones(1, dtype=torch.float64)} | small_tensors()
        expected["half"] = torch.full((3,), 0.5, dtype=torch.bfloat16)
        digest = write_checkpoint(tmp_path / "c", expected, STATE)
        loaded = load_file(tmp_path / "c")
        assert bytes(loaded.pop(COMMIT).tolist()).hex() == digest
        assert loaded.keys() == expected.keys()
        for name, tensor in expected.items():
            assert_same(loaded[name], tensor)
        with safe_open(tmp_path / "c", "pt") as file:
            metadata = file.metadata()
        assert metadata["format"] == "pt"
        assert metadata["spherescan.schema"] == str(SCHEMA)
        assert json.loads(metadata["spherescan.state"]) == STATE

    def test_the_last_bytes_are_the_digest_of_all_before(self, tmp_path):
        large = {"large": torch.arange(5 << 20), "columns": torch.arange(1 << 20).reshape(4, -1).T}
        empty = {"empty": torch.zeros(0, 3)}
        digest = write_checkpoint(tmp_path / "c", small_tensors() | large | empty, STATE)
        raw = (tmp_path / "c").read_bytes()
        assert signed(raw[:-32]) == raw
        assert raw[-32:] == bytes.fromhex(digest)
        assert inspect_checkpoint(tmp_path / "c").digest == digest

    def test_the_order_of_the_tensors_given_does_not_matter(self, tmp_path):
        tensors = small_tensors() | {"z": torch.ones(1), "a": torch.zeros(1)}
        backwards = dict(reversed(tensors.items()))
        digests = {
            write_checkpoint(tmp_path / str(i), t, {}) for i, t in enumerate([tensors, backwards])
        }
        assert len(digests) == 1

    def test_inspecting_tells_the_same_without_the_values(self, tmp_path):
        write_checkpoint(tmp_path / "c", small_tensors(), STATE)
        read, info = read_checkpoint(tmp_path / "c"), inspect_checkpoint(tmp_path / "c")
        assert {t.name: (t.dtype, t.shape) for t in info.tensors} == {
            name: (t.dtype, tuple(t.shape)) for name, t in read.tensors.items()
        }
        assert (info.state, info.schema, info.digest) == (read.state, read.schema, read.digest)
        assert info.created_by == read.created_by


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text(max_size=8)
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip
NAMES = st.from_regex(r"[A-Za-z0-9._~/-]{1,9}", fullmatch=True)
SHAPES = st.lists(st.integers(0, 3), max_size=4)


@st.composite
def tensors_of_bytes(draw):
    dtype, shape = draw(st.sampled_from(list(DTYPES.values()))), draw(SHAPES)
    empty = torch.empty(shape, dtype=dtype)
    top = 1 if dtype is torch.bool else 255
    n_bytes = empty.numel() * dtype.itemsize
    data = draw(st.lists(st.integers(0, top), min_size=n_bytes, max_size=n_bytes))
    tensor = torch.tensor(data, dtype=torch.uint8).view(dtype).reshape(shape)
    return torch.stack([tensor, tensor], -1)[..., 1] if draw(st.booleans()) else tensor


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("container") / "c"


class TestProperties:
    @pytest.mark.unwatched
    @given(
        tensors=st.dictionaries(NAMES, tensors_of_bytes(), max_size=4),
        state=st.dictionaries(st.text(max_size=4), JSON, max_size=4),
    )
    def test_whatever_is_written_is_read(self, place, tensors, state):
        place.unlink(missing_ok=True)
        digest = write_checkpoint(place, tensors, state)
        checkpoint = read_checkpoint(place)
        assert checkpoint.tensors.keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert_same(checkpoint.tensors[name], tensor)
        assert json.dumps(checkpoint.state) == json.dumps(state)
        assert checkpoint.digest == digest

    @given(st.data())
    def test_a_forged_header_is_read_or_refused_and_nothing_else(self, place, data):
        text = header_text({"x": {"dtype": "BOOL", "shape": [2], "data_offsets": [0, 2]}}, 2)
        at = data.draw(st.integers(0, len(text)))
        to = data.draw(st.integers(at, min(len(text), at + 4)))
        alphabet = '{}[]":,\\ 0123456789eE.-tfnNaIU8BO_~x'
        text = text[:at] + data.draw(st.text(alphabet, max_size=4)) + text[to:]
        place.write_bytes(forged(text, b"\1\0"))
        with suppress(CheckpointError):
            read_checkpoint(place)


class TestDamage:
    @pytest.fixture
    def path(self, tmp_path):
        write_checkpoint(tmp_path / "c", small_tensors(), STATE)
        assert (tmp_path / "c").stat().st_size < 2048
        return tmp_path / "c"

    @pytest.mark.unwatched
    def test_every_truncation_is_refused(self, path):
        n_header = 8 + int.from_bytes(path.read_bytes()[:8], "little")
        for size in reversed(range(path.stat().st_size)):
            os.truncate(path, size)
            reason = "ends before" if size < n_header else "tensors take"
            message = refusals(path)
            assert ("fewer than any" if size < 48 else reason) in message
            assert "truncated or damaged" in message

    @pytest.mark.unwatched
    def test_every_flipped_bit_is_refused(self, path):
        raw = path.read_bytes()
        for i, byte in enumerate(raw):
            for bit in range(8):
                with path.open("r+b") as file:
                    file.seek(i)
                    file.write(bytes([byte ^ 1 << bit]))
                with pytest.raises(CheckpointError):
                    read_checkpoint(path)
            with path.open("r+b") as file:
                file.seek(i)
                file.write(bytes([byte]))
        assert path.read_bytes() == raw
        read_checkpoint(path)

    @pytest.mark.parametrize("tail", [b"\0", b" ", b"x" * 32, b"\0" * 4096])
    def test_appended_bytes_are_refused(self, path, tail):
        with path.open("ab") as file:
            file.write(tail)
        assert "truncated or damaged" in refusals(path)

    def test_halves_of_two_checkpoints_are_refused(self, path, tmp_path):
        other = {name: tensor.to(tensor.dtype).logical_not().to(tensor.dtype)
                 for name, tensor in small_tensors().items()}  # fmt: skip
        write_checkpoint(tmp_path / "d", other, STATE)
        one, two = path.read_bytes(), (tmp_path / "d").read_bytes()
        assert len(one) == len(two)
        half = len(one) - 48
        for glued in (one[:half] + two[half:], two[:half] + one[half:]):
            path.write_bytes(glued)
            assert "SHA-256" in refusals(path)

    def test_a_file_that_shrinks_while_it_is_read_is_refused(self, path, monkeypatch):
        opened = container._Reader.__init__

        def then_shrink(self, *args):
            opened(self, *args)
            os.truncate(path, path.stat().st_size - 33)

        monkeypatch.setattr(container._Reader, "__init__", then_shrink)
        with pytest.raises(CheckpointError, match="shorter"):
            read_checkpoint(path)

    def test_memory_that_is_not_there_is_said(self, path, monkeypatch):
        def refuse(*args, **kwargs):
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

        monkeypatch.setattr(torch, "empty", refuse)
        with pytest.raises(CheckpointError, match="needs 24 bytes"):
            read_checkpoint(path)


class TestOtherFiles:
    def test_another_safetensors_file_is_named_as_such(self, tmp_path):
        save_file({"a": torch.zeros(9)}, tmp_path / "c")
        assert "not a spherescan checkpoint" in refusals(tmp_path / "c")

    @pytest.mark.parametrize(
        "raw", [b"PK\3\4" + b"x" * 99, b"\x40" + b"\0" * 99, b"\1" + b"\0" * 99]
    )
    def test_what_is_no_safetensors_file_is_named_as_such(self, tmp_path, raw):
        (tmp_path / "c").write_bytes(raw)
        assert "not a safetensors file" in refusals(tmp_path / "c")

    def test_what_is_no_regular_file_is_refused_at_once(self, tmp_path):
        write_checkpoint(tmp_path / "real", {}, {})
        (tmp_path / "link").symlink_to("real")
        (tmp_path / "directory").mkdir()
        os.mkfifo(tmp_path / "fifo")
        for name, reason in [
            ("link", "symbolic link"), ("directory", "directory"), ("fifo", "not a regular"),
            ("none", "does not exist"), ("real/c", "cannot be read"),
        ]:  # fmt: skip
            assert reason in refusals(tmp_path / name)
        for name in ("link", "directory", "fifo"):
            with pytest.raises(CheckpointError, match="not overwritten"):
                write_checkpoint(tmp_path / name, {}, {})
        assert sorted(p.name for p in tmp_path.iterdir()) == ["directory", "fifo", "link", "real"]


def entry(dtype="U8", shape=(2,), offsets=(0, 2), **more):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets), **more}


DEEP = "[" * 100_000 + "]" * 100_000
BOMBS = {
    "4-GB-shape": (header_text({"x": entry("F32", [2**30], [0, 2**32])}, 2**32), "tensors take"),
    "product-overflow": (header_text({"x": entry(shape=[2**32, 2**32, 0])}, 2), "overflows"),
    "100-000-tensors": (
        header_text({f"t{i}": entry(shape=[0], offsets=[0, 0]) for i in range(100_000)}, 0),
        "100001 tensors",
    ),
    "deep": ('{"a":' + DEEP + "}", "deeper than 8"),
    "deep-open": ('{"a":' * 100_000, "deeper than 8"),
    "duplicate-key": (header_text({}, 0)[:-1] + ',"__metadata__":{}}', "a key twice"),
    "NaN": ('{"a":NaN}', "NaN is not"),
    "huge-float": ('{"a":1e999}', "exactly dtype"),
    "huge-integer": ('{"a":' + "9" * 5000 + "}", "not strict JSON"),
    "not-UTF-8": (b'{"\xff":1}', "not strict JSON"),
    "surrogate-name": (r'{"\ud800":1}', "exactly dtype"),
    "surrogate-metadata": (header_text({}, 2, {"a": "\ud800"}), "Unicode"),
    "no-JSON": ('{"a":1}}', "not strict JSON"),
    "metadata-list": (header_text({}, 0, []), "map from text"),
    "metadata-number": (header_text({}, 0, {"a": 1}), "map from text"),
    "name": (header_text({"a b": entry()}, 2), "tensor name"),
    "long-name": (header_text({"a" * 257: entry()}, 2), "tensor name"),
    "entry-list": (header_text({"x": []}, 2), "exactly dtype"),
    "entry-more": (header_text({"x": entry(more=1)}, 2), "exactly dtype"),
    "dtype": (header_text({"x": entry("F8_E4M3")}, 2), "dtype"),
    "dtype-list": (header_text({"x": entry(["U8"])}, 2), "dtype"),
    "rank": (header_text({"x": entry(shape=[1] * 9, offsets=[0, 1])}, 1), "9 axes"),
    "shape-number": (header_text({"x": {**entry(), "shape": 2}}, 2), "not lengths"),
    "shape-negative": (header_text({"x": entry(shape=[-1, -2])}, 2), "not lengths"),
    "shape-bool": (header_text({"x": entry(shape=[2, True])}, 2), "not lengths"),
    "shape-float": (header_text({"x": entry(shape=[2.0])}, 2), "not lengths"),
    "offsets-gap": (header_text({"x": entry(offsets=[1, 3])}, 3), "not at bytes"),
    "offsets-overlap": (header_text({"x": entry(), "y": entry(offsets=[1, 3])}, 3), "not at bytes"),
    "offsets-three": (header_text({"x": entry(offsets=[0, 2, 2])}, 2), "not at bytes"),
    "commit-not-last": (
        json.dumps({COMMIT: entry("U8", [32], [0, 32]), "x": entry(offsets=[32, 34])}),
        "last tensor is not",
    ),
    "commit-shape": (json.dumps({COMMIT: entry("U8", [34], [0, 34])}), "last tensor is not"),
    "commit-dtype": (json.dumps({COMMIT: entry("I8", [34], [0, 34])}), "last tensor is not"),
    "bool-byte": (header_text({"x": entry("BOOL")}, 2), "other than 0 and 1"),
}  # fmt: skip


# Seconds of this thread. The slowest refusal takes 3 under coverage on a quiet machine, and twice
# that on a busy one; a parser that is quadratic in 100,000 tensors takes many minutes.
PATIENCE = 30


class TestForgedHeaders:
    """Files whose digest is right, so that only the parser stands in the way."""

    @pytest.mark.parametrize(
        "name",
        [
            pytest.param(name, marks=[pytest.mark.unwatched] if name == "100-000-tensors" else [])
            for name in BOMBS
        ],
    )
    def test_it_is_refused_fast_and_says_why(self, tmp_path, name):
        text, reason = BOMBS[name]
        (tmp_path / "c").write_bytes(forged(text, b"\1\2"))
        start = time.thread_time()
        assert reason in refusals(tmp_path / "c")
        assert time.thread_time() - start < PATIENCE

    def test_the_forger_of_these_tests_can_make_a_valid_file(self, tmp_path):
        (tmp_path / "c").write_bytes(forged(header_text({"x": entry()}, 2), b"\1\2"))
        assert read_checkpoint(tmp_path / "c").tensors["x"].tolist() == [1, 2]

    def test_a_list_is_no_header(self, tmp_path):
        (tmp_path / "c").write_bytes(forged("[" + " " * 40 + "]"))
        assert "not a safetensors file" in refusals(tmp_path / "c")
        with pytest.raises(ValueError, match="not a JSON object"):
            parse_header(b"[]", n_data_bytes=0)

    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            ({"spherescan.schema": str(SCHEMA + 1)}, "schema 4.*upgrade"),
            ({"spherescan.schema": "0"}, "not a number"),
            ({"spherescan.schema": "1 "}, "not a number"),
            ({"spherescan.schema": None}, "no spherescan.schema"),
            ({"spherescan.state": None}, "no spherescan.state"),
            ({"spherescan.created_by": None}, "no spherescan.created_by"),
            ({"spherescan.state": "[]"}, "state is not a JSON object"),
            ({"spherescan.state": "{"}, "not strict JSON"),
            ({"spherescan.state": '{"a":' * 65 + "1" + "}" * 65}, "deeper than 64"),
            ({"spherescan.state": '{"a":1,"a":1}'}, "a key twice"),
            ({"spherescan.state": '{"a":Infinity}'}, "Infinity"),
            ({"spherescan.state": '{"a":1e999}'}, "is inf"),
            ({"spherescan.state": '{"a":-9223372036854775809}'}, "64 bits"),
            ({"spherescan.state": DEEP}, "deeper than 64"),
        ],
    )
    def test_metadata_is_checked_after_the_digest(self, tmp_path, change, reason):
        metadata = {k: v for k, v in {**METADATA, **change}.items() if v is not None}
        (tmp_path / "c").write_bytes(forged(header_text({}, 0, metadata)))
        with pytest.raises(CheckpointError, match=reason):
            read_checkpoint(tmp_path / "c")
        assert "upgrade" not in refusals_of_damaged(tmp_path / "c")

    def test_64_levels_of_state_are_read(self, tmp_path):
        state = json.loads('{"a":' * 64 + "1" + "}" * 64)
        write_checkpoint(tmp_path / "c", {}, state)
        assert read_checkpoint(tmp_path / "c").state == state

    @pytest.mark.parametrize(
        "text", [r'"[[[\"[[["', r'["\\","[[["]', r'"\\"', r'["[\\\"["]', '[["]]]]"], []]']
    )
    def test_brackets_in_strings_are_not_depth(self, text):
        assert parse_json(text.encode(), where="x", max_depth=2) == json.loads(text)


def refusals_of_damaged(path) -> str:
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    return refusals(path)


def listing(path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in path.iterdir()}


class TestRefusedBeforeOpening:
    @pytest.mark.parametrize(
        ("tensors", "state", "reason"),
        [
            ({"a b": torch.ones(1)}, {}, "tensor name"),
            ({"": torch.ones(1)}, {}, "tensor name"),
            ({"a" * 257: torch.ones(1)}, {}, "tensor name"),
            ({"__metadata__": torch.ones(1)}, {}, "tensor name"),
            ({COMMIT: torch.ones(1)}, {}, "commit record"),
            ({"x": torch.ones(1, dtype=torch.complex64)}, {}, "complex64"),
            ({"x": torch.ones(1, dtype=torch.float8_e4m3fn)}, {}, "float8"),
            ({"x": torch.ones(2).to_sparse()}, {}, "sparse"),
            ({"x": torch.ones(2, device="meta")}, {}, "meta"),
            ({"x": torch.ones([1] * 9)}, {}, "9 axes"),
            ({"x": torch.tensor([2], dtype=torch.uint8).view(torch.bool)}, {}, "bool"),
            ({f"t{i}": torch.ones(0) for i in range(65_536)}, {}, "65537 tensors"),
            ({}, {"a": float("nan")}, "state.*'a'.*nan"),
            ({}, {"a": [0, -float("inf")]}, r"\[1\] is -inf"),
            ({}, {"a": {1: 2}}, "keys must be str"),
            ({}, {"a": (1, 2)}, "tuple"),
            ({}, {"a": b"x"}, "bytes"),
            ({}, {"a": torch.ones(1)}, "Tensor"),
            ({}, {"a": 2**64}, "64 bits"),
            ({}, {"a": "\ud800"}, "Unicode"),
            ({}, {"a": {"\ud800": 1}}, "Unicode"),
            ({}, json.loads('{"a":' * 65 + "1" + "}" * 65), "too deep"),
            ({}, {"a": "x" * (16 << 20)}, "names and state"),
        ],
    )
    def test_what_would_not_come_back_is_refused(
        self, tmp_path, monkeypatch, tensors, state, reason
    ):
        monkeypatch.setattr(os, "open", lambda *_, **__: pytest.fail("it opened a file"))
        with pytest.raises(CheckpointError, match=reason) as caught:
            write_checkpoint(tmp_path / "c", tensors, state)
        assert "\n" not in str(caught.value)
        assert listing(tmp_path) == {}

    @pytest.mark.parametrize("name", [".", "a\0b"])
    def test_the_path_must_name_a_file(self, name):
        with pytest.raises(CheckpointError, match="names no file"):
            write_checkpoint(container.Path(name), {}, {})


class TestCommit:
    def test_the_same_checkpoint_again_is_done_already(self, tmp_path):
        digests = [write_checkpoint(tmp_path / "c", small_tensors(), STATE) for _ in range(2)]
        assert digests[0] == digests[1]
        assert [p.name for p in tmp_path.iterdir()] == ["c"]

    @pytest.mark.parametrize("before", ["checkpoint", "damaged"])
    def test_another_file_is_never_overwritten(self, tmp_path, before):
        write_checkpoint(tmp_path / "c", small_tensors(), STATE)
        if before == "damaged":
            refusals_of_damaged(tmp_path / "c")
        kept = listing(tmp_path)
        way_out = "move it or delete it" if before == "checkpoint" else "move it aside"
        with pytest.raises(CheckpointError, match=f"not overwritten: {way_out}$"):
            write_checkpoint(tmp_path / "c", small_tensors(), STATE | {"step": 8})
        assert listing(tmp_path) == kept

    def test_the_file_is_private_and_named_only_when_it_is_whole(self, tmp_path, monkeypatch):
        calls, real = [], {name: getattr(os, name) for name in ("write", "fsync", "rename")}

        def record(name):
            def call(*args, **kwargs):
                calls.append((name, [p.name for p in tmp_path.iterdir()]))
                return real[name](*args, **kwargs)

            return call

        for name in real:
            monkeypatch.setattr(os, name, record(name))
        write_checkpoint(tmp_path / "c", {"x": torch.ones(3)}, {})
        assert [name for name, _ in calls] == ["write"] * 3 + ["fsync", "rename", "fsync"]
        for _, names in calls[:-1]:
            assert len(names) == 1
            assert names[0].startswith(f".tmp-c-{os.getpid()}-")
        assert calls[-1][1] == ["c"]
        assert (tmp_path / "c").stat().st_mode & 0o777 == 0o600

    def test_short_writes_are_continued(self, tmp_path, monkeypatch):
        real = os.write
        monkeypatch.setattr(os, "write", lambda file, view: real(file, view[:7]))
        write_checkpoint(tmp_path / "c", small_tensors(), STATE)
        assert read_checkpoint(tmp_path / "c").state == STATE

    @pytest.mark.parametrize("name", ["write", "fsync", "rename", "close", "stat"])
    @pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
    def test_a_refused_operation_changes_nothing(self, tmp_path, monkeypatch, name, code):
        write_checkpoint(tmp_path / "a", small_tensors(), STATE)
        kept = listing(tmp_path)
        real = getattr(os, name)

        def refuse(*args, **kwargs):
            if name == "close":
                real(*args)
            raise OSError(code, os.strerror(code))

        with monkeypatch.context() as patch:
            patch.setattr(os, name, refuse)
            with pytest.raises(StorageError, match=os.strerror(code)) as caught:
                write_checkpoint(tmp_path / "b", small_tensors(), {})
        assert str(tmp_path / "b") in str(caught.value)
        assert "\n" not in str(caught.value)
        assert listing(tmp_path) == kept

    def test_a_write_refused_among_pieces_leaves_no_thread_and_no_file(self, tmp_path, monkeypatch):
        monkeypatch.setattr(container, "PIECE_BYTES", 1 << 20)
        tensors = {name: torch.zeros(3 << 20, dtype=torch.uint8) for name in "ab"}
        tensors["columns"] = torch.zeros(1 << 18).reshape(2, -1).T
        real, written = os.write, []

        def refuse(file, view):
            written.append(len(view))
            if len(written) == 6:
                raise OSError(errno.ENOSPC, "no room")
            return real(file, view)

        threads, files = threading.active_count(), n_open_files()
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", refuse)
            with pytest.raises(StorageError, match="no room"):
                write_checkpoint(tmp_path / "c", tensors, {})
        assert listing(tmp_path) == {}
        assert threading.active_count() == threads
        assert n_open_files() == files
        write_checkpoint(tmp_path / "c", tensors, {})
        assert_same(read_checkpoint(tmp_path / "c").tensors["columns"], tensors["columns"])

    def test_a_system_that_takes_no_bytes_is_refused(self, tmp_path, monkeypatch):
        monkeypatch.setattr(os, "write", lambda *_: 0)
        with pytest.raises(StorageError, match="took no bytes"):
            write_checkpoint(tmp_path / "c", small_tensors(), STATE)
        assert listing(tmp_path) == {}

    def test_a_missing_directory_is_said(self, tmp_path):
        with pytest.raises(StorageError, match="No such file"):
            write_checkpoint(tmp_path / "none" / "c", {}, {})

    def test_an_interrupt_leaves_no_temporary_file(self, tmp_path, monkeypatch):
        def interrupt(file):
            raise KeyboardInterrupt

        monkeypatch.setattr(os, "fsync", interrupt)
        with pytest.raises(KeyboardInterrupt):
            write_checkpoint(tmp_path / "c", {}, {})
        assert listing(tmp_path) == {}

    def test_a_directory_that_cannot_be_synced_is_not_acknowledged(self, tmp_path, monkeypatch):
        real, synced = os.fsync, []

        def refuse_second(file):
            synced.append(file)
            if len(synced) == 2:
                raise OSError(errno.EIO, "Input/output error")
            real(file)

        monkeypatch.setattr(os, "fsync", refuse_second)
        with pytest.raises(StorageError, match="may not survive") as caught:
            write_checkpoint(tmp_path / "c", small_tensors(), STATE)
        assert "was not written" not in str(caught.value)
        assert read_checkpoint(tmp_path / "c").state == STATE
        write_checkpoint(tmp_path / "c", small_tensors(), STATE)
        assert len(synced) == 4

    def test_a_real_limit_of_the_system_leaves_the_last_checkpoint(self, tmp_path):
        write_checkpoint(tmp_path / "a", {"x": torch.ones(4096)}, STATE)
        kept = listing(tmp_path)
        program = (
            "import pathlib, resource, sys, torch\n"
            "from spherescan.errors import StorageError\n"
            "from spherescan.runs.container import write_checkpoint\n"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))\n"
            "try:\n"
            "    write_checkpoint(pathlib.Path(sys.argv[1]), {'x': torch.ones(4096)}, {})\n"
            "except StorageError as error:\n"
            "    print(error)\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", program, tmp_path / "b"],
            capture_output=True,
            text=True,
            check=True,
        )
        assert "File too large" in done.stdout
        assert listing(tmp_path) == kept
