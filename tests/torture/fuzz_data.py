"""T8, the data: sequences, text, packed text and shards that strangers wrote.

What is accepted must be what a slow reader, written here from the description of the format, makes
of the same bytes.
"""

import gzip
import hashlib
import json
import random
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from spherescan.data import open_shards
from spherescan.data.formats import SERIES_READERS, TOKEN_READERS
from spherescan.data.shards import write_shards
from tests.data.test_formats_fuzz import VALID, reference_tokens
from tests.torture.fuzz import InvalidInputError, Target

SMALL_VOCABULARY = 300
BETWEEN = b"\n---\n"


def data_targets(root: Path, typed: Callable[..., Callable[[bytes], object]]) -> list[Target]:
    """Return a target for each kind of data; `typed` turns our errors into refusals."""
    series = [_series(root, suffix, typed) for suffix in SERIES_READERS]
    return [token_text(root, typed), packed_text(root, typed), shards(root, typed), *series]


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
