"""T8, the data: sequences, text, packed text and shards that strangers wrote.

What is accepted must be what a slow reader, written here from the description of the format, makes
of the same bytes.
"""

import gzip
import hashlib
import io
import json
import random
import re
import struct
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from spherescan.data import open_shards
from spherescan.data.formats import SERIES_READERS, TOKEN_READERS
from spherescan.data.formats.sample_lines import sample_lines, token_lines
from spherescan.data.shards import write_shards
from spherescan.errors import DataError
from tests.data.test_formats_fuzz import VALID, reference_tokens
from tests.torture.fuzz import InvalidInputError, Target

SMALL_VOCABULARY = 300
BETWEEN = b"\n---\n"


def data_targets(root: Path, typed: Callable[..., Callable[[bytes], object]]) -> list[Target]:
    """Return a target for each kind of data; `typed` turns our errors into refusals."""
    series = [_series(root, suffix, typed) for suffix in SERIES_READERS]
    lines = [samples_of_lines(typed), tokens_of_lines(typed)]
    return [token_text(root, typed), packed_text(root, typed), shards(root, typed), *lines, *series]


def token_text(root: Path, typed: Callable[..., Callable[[bytes], object]]) -> Target:
    """Return the target that reads integers as text."""
    path = root / "tokens.txt"

    def attempt(data: bytes) -> None:
        path.write_bytes(data)
        found = np.concatenate(list(TOKEN_READERS[".txt"](path, None))).tolist()
        assert found == reference_tokens(data), "not the tokens of the text"

    tokens = (b"\r\n", b"\t", b"0000000007", b"4294967296", b"\xd9\xa3", b"1_0", b"\xef\xbb\xbf")
    return Target("tokens_txt", tuple(VALID[".txt"]), typed(attempt), tokens=tokens)


def packed_text(root: Path, typed: Callable[..., Callable[[bytes], object]]) -> Target:
    """Return the target that reads integers packed by gzip."""
    path = root / "tokens.txt.gz"

    def attempt(data: bytes) -> None:
        path.write_bytes(data)
        found = np.concatenate(list(TOKEN_READERS[".txt.gz"](path, None))).tolist()
        assert found == reference_tokens(gzip.decompress(data)), "not the tokens of the text"

    return Target("tokens_gz", tuple(VALID[".txt.gz"]), typed(attempt), _packed)


def _packed(data: bytes, rng: random.Random) -> bytes:
    """Make the checksum and the length at the end right, for most."""
    if rng.random() < 0.3:
        return data
    unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        text = unpacker.decompress(data[10:], 1 << 20)
    except zlib.error:
        return data
    if not unpacker.eof:
        return data
    end = len(data) - len(unpacker.unused_data)
    return data[:end] + struct.pack("<II", zlib.crc32(text), len(text)) + data[end + 8 :]


def shards(root: Path, typed: Callable[..., Callable[[bytes], object]]) -> Target:
    """Return the target that opens shards: the index, the documents and one shard."""
    folder = root / "shards"
    documents = [np.array([1, 299, 3, 4], np.uint16), np.array([5], np.uint16)]
    if not folder.exists():
        write_shards(documents, folder, vocab_size=SMALL_VOCABULARY)
    names = ("index.json", "documents.bin", "shard-00000.bin")
    seed = BETWEEN.join((folder / name).read_bytes() for name in names)

    def attempt(data: bytes) -> None:
        parts = data.split(BETWEEN)
        if len(parts) != len(names):
            raise InvalidInputError("not three files")
        for name, part in zip(names, parts, strict=True):
            (folder / name).write_bytes(part)
        found = open_shards(folder)
        tokens = found.read(0, found.n_tokens).tolist()
        index = json.loads(parts[0])
        width, size = ("<u2", 2) if index["dtype"] == "uint16" else ("<u4", 4)
        assert tokens == np.frombuffer(parts[2], width).tolist(), "not the tokens of the shard"
        assert len(parts[2]) == size * index["n_tokens"]
        assert max(tokens) < index["vocab_size"]
        starts = np.frombuffer(parts[1], "<u8").tolist()
        assert starts == sorted(set(starts))
        assert found.spans() == list(zip(starts, [*starts[1:], len(tokens)], strict=True))

    words = ('"dtype"', '"uint32"', '"n_tokens"', '"../x"', '"shard-00000.bin"', '"vocab_size": 1')
    tokens = (*(word.encode() for word in words), BETWEEN, struct.pack("<Q", 1))
    return Target("shards", (seed,), typed(attempt), _indexed, tokens)


def _indexed(data: bytes, rng: random.Random) -> bytes:
    """Make counts and digests in the index those of the files, for most."""
    parts = data.split(BETWEEN)
    if len(parts) != 3 or rng.random() < 0.3:
        return data
    try:
        index = json.loads(parts[0])
        shard = index["shards"][0]
        index["documents_sha256"] = hashlib.sha256(parts[1]).hexdigest()
        shard["sha256"] = hashlib.sha256(parts[2]).hexdigest()
        if rng.random() < 0.8:
            index["n_documents"] = len(parts[1]) // 8
            index["n_tokens"] = shard["n_tokens"] = len(parts[2]) // (
                4 if index["dtype"] == "uint32" else 2
            )
        parts[0] = json.dumps(index, indent=1).encode() + b"\n"
    except (ValueError, TypeError, KeyError, IndexError, RecursionError):
        return data
    return BETWEEN.join(parts)


def samples_of_lines(typed: Callable[..., Callable[[bytes], object]]) -> Target:
    """Return the target that reads samples of two channels line by line."""

    def sample(fields: list[str]) -> list[list[float]] | None:
        if len(fields) not in {0, 2} or not all(map(_is_number, fields)):
            return None
        with np.errstate(over="ignore"):
            values = np.array([float(field) for field in fields], np.float64).astype(np.float32)
        return [values.tolist()] * (len(fields) > 0) if np.isfinite(values).all() else None

    def attempt(data: bytes) -> None:
        _agree(lambda: sample_lines(io.BytesIO(data).readline, 2), _lines_of(data, sample))

    seeds = (b"1 2\n-3.5e-1\t4\r\n\n5,6\n", b"1e38 0\n\n\n 7 , 8 ")
    tokens = (b"\r\n", b",", b"\t", b"1e39", b"1e-50", b"nan", b"\xd9\xa3", b"1_0", b"\xef\xbb\xbf")
    return Target("lines_samples", seeds, typed(attempt), tokens=tokens)


def tokens_of_lines(typed: Callable[..., Callable[[bytes], object]]) -> Target:
    """Return the target that reads tokens line by line."""

    def tokens_in(fields: list[str]) -> list[int] | None:
        bare = [field.strip(" \t") for field in fields]
        if not all(0 < len(f) <= 10 and all(c in "0123456789" for c in f) for f in bare):
            return None
        found = [int(field) for field in bare]
        return found if all(token < SMALL_VOCABULARY for token in found) else None

    def attempt(data: bytes) -> None:
        found = _lines_of(data, tokens_in)
        _agree(lambda: token_lines(io.BytesIO(data).readline, SMALL_VOCABULARY), found)

    tokens = (b"\r\n", b",", b"\t", b"0000000007", b"300", b"299", b"\xd9\xa3", b"-1")
    seeds = (b"1 2 3\n\n4,5\r\n", b"299\n 7\t8 \n")
    return Target("lines_tokens", seeds, typed(attempt), tokens=tokens)


def _agree(read: Callable[[], Iterable[np.ndarray]], expected: list[list[Any]] | None) -> None:
    """Compare what is read with what the slow reader found; it refuses as a whole."""
    try:
        found = [values.tolist() for values in read()]
    except DataError:
        assert expected is None, "refused what is in order"
        raise
    assert found == expected, "not the lines of the text"


def _lines_of(data: bytes, parse: Callable[[list[str]], list[Any] | None]) -> list[Any] | None:
    """Read lines byte by byte; None where anything is wrong, or nothing there."""
    *lines, rest = data.split(b"\n")
    found = []
    for line in [*lines, *([rest] if rest else [])]:
        text = "".join(map(chr, line[:-1] if line[-1:] == b"\r" else line)).strip(" \t")
        fields = text.split(",") if "," in text else [f for f in re.split("[ \t]", text) if f]
        parsed = parse(fields)
        if parsed is None:
            return None
        found.append(parsed)
    return found if any(found) else None


def _is_number(field: str) -> bool:
    """Walk through `[+-]digits[.digits][e[+-]digits]`."""
    rest = field.strip(" \t")
    rest = rest[1:] if rest[:1] in {"+", "-"} else rest
    parts = rest.replace("E", "e").split("e")
    mantissa = parts[0].split(".")
    if len(parts) == 2:
        mantissa.append(parts[1][1:] if parts[1][:1] in {"+", "-"} else parts[1])
    whole = len(parts) <= 2 and len(parts[0].split(".")) <= 2
    return whole and all(part and all(c in "0123456789" for c in part) for part in mantissa)


def _series(root: Path, suffix: str, typed: Callable[..., Callable[[bytes], object]]) -> Target:
    path = root / f"series{suffix}"

    def attempt(data: bytes) -> None:
        path.write_bytes(data)
        table = SERIES_READERS[suffix](path)
        assert len(table) >= 1
        n_channels = {values.shape[1] for values in table.series}
        assert len(n_channels) == 1, "series of different widths"
        assert all(len(values) >= 1 for values in table.series), "a series of no length"

    words = ("@classLabel", "@data", "case", "label", "?", "NaN", "1e999", ":", "(", "'shape'")
    tokens = tuple(word.encode() for word in words)
    return Target(f"series_{suffix[1:]}", tuple(VALID[suffix]), typed(attempt), tokens=tokens)
