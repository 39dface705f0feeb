"""Token shards on disk: fixed-width binary files beside an index with their digests.

OUT/index.json        what is here, see `write_shards`
OUT/documents.bin     first token of each document, little-endian uint64
OUT/shard-00000.bin   tokens, little-endian uint16 or uint32
"""

import hashlib
import json
import os
import re
import shutil
from array import array
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from spherescan.data.formats.opening import chunks, opened
from spherescan.data.formats.quoting import source_name
from spherescan.data.shard_file import DTYPES, ShardFile
from spherescan.data.tokens import TokenData
from spherescan.errors import ConfigError, DataError, StorageError
from spherescan.strict_json import parse_json

INDEX = "index.json"
TOKENS_PER_SHARD = 1 << 26
MAX_VOCAB_SIZE = 1 << 32
_DOCUMENTS = "documents.bin"
_FORMAT = "spherescan-tokens"
_VERSION = 1
_MAX_INDEX_BYTES = 1 << 26
_MAX_INDEX_DEPTH = 4
_FILE = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}")
_KEYS = {
    "format",
    "version",
    "dtype",
    "vocab_size",
    "n_tokens",
    "n_documents",
    "documents_sha256",
    "shards",
}

# A text as parts of documents: each document is an iterable of arrays.
Documents = Iterable[Iterable[NDArray[Any]]]


def write_shards(
    documents: Iterable[NDArray[Any]],
    out: Path,
    *,
    vocab_size: int,
    tokens_per_shard: int = TOKENS_PER_SHARD,
) -> TokenData:
    """Write documents, each one array, as shards and open the result.

    The folder appears under its name only when everything in it is on the disk.

    Raises:
        ConfigError: A vocabulary size outside 1..2^32.
        DataError: No token at all, a token outside the vocabulary, or an `out` that exists already.
        StorageError: The disk refused; nothing is left behind.
    """
    whole = ([document] for document in documents)
    write_documents(whole, out, vocab_size=vocab_size, tokens_per_shard=tokens_per_shard)
    return open_shards(out)


def write_documents(
    documents: Documents,
    out: Path,
    *,
    vocab_size: int | None,
    tokens_per_shard: int = TOKENS_PER_SHARD,
) -> None:
    """Write documents that come part by part, as `write_shards` does.

    Args:
        documents: Empty ones are left out.
        out: Folder to make.
        vocab_size: Every token must be below it; the largest token and one when missing.
        tokens_per_shard: Size of a shard.

    Raises:
        ConfigError: A vocabulary size outside 1..2^32.
        DataError: No token at all, a token outside the vocabulary, or an `out` that exists already.
        StorageError: The disk refused; nothing is left behind.
    """
    if vocab_size is not None and not 1 <= vocab_size <= MAX_VOCAB_SIZE:
        raise ConfigError(f"the vocabulary size is {vocab_size}; it must lie in 1..2^32")
    if out.exists() or out.is_symlink():
        raise DataError(f"{out}: exists already; choose another name or remove it")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        partial = out.with_name(f".{out.name}.partial-{os.getpid()}")
        partial.mkdir()
        try:
            _write_folder(documents, partial, vocab_size, tokens_per_shard)
            _sync(partial)
            partial.rename(out)
        except BaseException:
            shutil.rmtree(partial)
            raise
        _sync(out.parent)
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        raise StorageError(f"{out}: cannot be written: {error.strerror or error}") from error


def open_shards(path: Path) -> TokenData:
    """Open the shards of a folder, after comparing sizes and digests with the index.

    Raises:
        DataError: An index or a file that is missing, damaged or not what the index says.
    """
    index_path = path / INDEX
    text, index = _read_index(index_path)
    shards = tuple(
        ShardFile(path / entry["file"], index["dtype"], entry["n_tokens"], entry["sha256"])
        for entry in index["shards"]
    )
    return TokenData(
        shards=shards,
        documents=_read_documents(path / _DOCUMENTS, index),
        vocab_size=index["vocab_size"],
        source=source_name(path),
        fingerprint=hashlib.sha256(text).hexdigest(),
    )


class _ShardWriter:
    """Files of `tokens_per_shard` tokens each, but the last; tokens are appended in any pieces."""

    def __init__(self, folder: Path, kind: str, tokens_per_shard: int) -> None:
        self._folder, self._dtype, self._room = folder, DTYPES[kind], tokens_per_shard
        self.shards: list[dict[str, Any]] = []
        self._file: BinaryIO | None = None
        self._digest = hashlib.sha256()
        self._n_tokens = 0

    def append(self, tokens: NDArray[Any]) -> None:
        rest = tokens.astype(self._dtype)
        while len(rest):
            if self._file is None:
                name = f"shard-{len(self.shards):05d}.bin"
                self._file = cast("BinaryIO", (self._folder / name).open("xb"))
            part, rest = np.split(rest, [self._room - self._n_tokens])
            self._file.write(part.data)
            self._digest.update(part.data)
            self._n_tokens += len(part)
            if self._n_tokens == self._room:
                self.finish()

    def finish(self) -> None:
        """Complete the file that is being written, if there is one."""
        if self._file is None:
            return
        with self._file as file:
            _sync_file(file)
        self.shards.append(
            {
                "file": Path(self._file.name).name,
                "n_tokens": self._n_tokens,
                "sha256": self._digest.hexdigest(),
            }
        )
        self._file, self._digest, self._n_tokens = None, hashlib.sha256(), 0

    def close(self) -> None:
        """Close the file that is being written, after an error."""
        if self._file is not None:
            self._file.close()


def _write_folder(
    documents: Documents, folder: Path, vocab_size: int | None, tokens_per_shard: int
) -> None:
    # Without a vocabulary no token is known to fit into two bytes before all have been read.
    kind = "uint16" if vocab_size is not None and vocab_size <= 1 << 16 else "uint32"
    writer = _ShardWriter(folder, kind, tokens_per_shard)
    try:
        starts, n_tokens, largest = _write_tokens(
            documents, writer, MAX_VOCAB_SIZE if vocab_size is None else vocab_size
        )
        writer.finish()
    finally:
        writer.close()
    if n_tokens == 0:
        raise DataError("every file is empty; nothing to import")
    data = np.frombuffer(starts, dtype=np.uint64).astype("<u8").tobytes()
    _write(folder / _DOCUMENTS, data)
    index = {
        "format": _FORMAT,
        "version": _VERSION,
        "dtype": kind,
        "vocab_size": largest + 1 if vocab_size is None else vocab_size,
        "n_tokens": n_tokens,
        "n_documents": len(starts),
        "documents_sha256": hashlib.sha256(data).hexdigest(),
        "shards": writer.shards,
    }
    _write(folder / INDEX, (json.dumps(index, indent=1) + "\n").encode())


def _write_tokens(
    documents: Documents, writer: _ShardWriter, vocab_size: int
) -> tuple["array[int]", int, int]:
    """Return the first token of each document, the number of tokens, and the largest."""
    starts, n_tokens, largest = array("Q"), 0, 0
    for document in documents:
        n_before = n_tokens
        for tokens in document:
            if len(tokens) == 0:
                continue
            lowest, highest = int(tokens.min()), int(tokens.max())
            if lowest < 0 or highest >= vocab_size:
                raise DataError(
                    f"document {len(starts)}: token {lowest if lowest < 0 else highest} is outside "
                    f"the vocabulary of {vocab_size}; raise the vocabulary size or correct it"
                )
            largest = max(largest, highest)
            if n_tokens == n_before:
                starts.append(n_tokens)
            writer.append(tokens)
            n_tokens += len(tokens)
    return starts, n_tokens, largest


def _write(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
        _sync_file(file)


def _sync_file(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read_documents(path: Path, index: dict[str, Any]) -> NDArray[np.uint64]:
    expected = index["n_documents"] * 8
    with opened(path) as file:
        if file.size != expected:
            raise DataError(
                f"{file.source}: has {file.size} bytes, the index says {expected}; import it again"
            )
        data = b"".join(chunks(file, 1 << 20))
        if hashlib.sha256(data).hexdigest() != index["documents_sha256"]:
            raise DataError(
                f"{file.source}: has another digest than the index says; import it again"
            )
        documents = np.frombuffer(data, dtype="<u8").astype(np.uint64)
        if documents[0] != 0 or (documents[1:] <= documents[:-1]).any():
            raise DataError(
                f"{file.source}: document starts do not increase from 0; import it again"
            )
        if documents[-1] >= index["n_tokens"]:
            raise DataError(f"{file.source}: a document starts after the text; import it again")
        return documents


def _read_index(path: Path) -> tuple[bytes, dict[str, Any]]:
    if not path.exists():
        raise DataError(f"{source_name(path)}: no such file; make shards with `spherescan import`")
    with opened(path) as file:
        if file.size > _MAX_INDEX_BYTES:
            raise DataError(
                f"{file.source}: is larger than {_MAX_INDEX_BYTES} bytes; not an index of shards"
            )
        text = b"".join(chunks(file, 1 << 20))
        try:
            index = parse_json(text, where="the index", max_depth=_MAX_INDEX_DEPTH)
        except ValueError as error:
            raise DataError(f"{file.source}: is damaged ({error}); import it again") from error
        problem = _index_problem(index)
        if problem:
            raise DataError(f"{file.source}: {problem}; import it again")
        checked = cast("dict[str, Any]", index)
        return text, checked


def _index_problem(index: Any) -> str | None:  # noqa: PLR0911  one return per kind of damage
    if not isinstance(index, dict) or index.get("format") != _FORMAT:
        return f"is not an index of {_FORMAT}"
    if index.get("version") != _VERSION:
        return f"has version {index.get('version')!r}, this program reads {_VERSION}"
    if index.keys() != _KEYS:
        return "has not exactly the keys of an index"
    if index.get("dtype") not in list(DTYPES):
        return f"has dtype {index.get('dtype')!r}, not one of {', '.join(DTYPES)}"
    counts = [index.get(key) for key in ("vocab_size", "n_tokens", "n_documents")]
    shards = index.get("shards")
    if not isinstance(shards, list) or not all(_is_shard(shard) for shard in shards):
        return "has a damaged list of shards"
    if len({shard["file"] for shard in shards}) != len(shards):
        return "names a shard twice"
    if not all(_is_count(count) for count in counts) or not isinstance(
        index.get("documents_sha256"), str
    ):
        return "has a missing or damaged count"
    if sum(shard["n_tokens"] for shard in shards) != index["n_tokens"]:
        return "has shards that do not add up to n_tokens"
    return None


def _is_shard(entry: Any) -> bool:
    return (
        isinstance(entry, dict)
        and entry.keys() == {"file", "n_tokens", "sha256"}
        and isinstance(entry.get("file"), str)
        and isinstance(entry.get("sha256"), str)
        and _FILE.fullmatch(entry["file"]) is not None
        and _is_count(entry.get("n_tokens"))
    )


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 < value < 1 << 53
