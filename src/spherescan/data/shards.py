"""Token shards on disk: fixed-width binary files beside an index with their digests.

OUT/index.json        what is here, see `write_shards`
OUT/documents.bin     first token of each document, little-endian uint64
OUT/shard-00000.bin   tokens, little-endian uint16 or uint32
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from spherescan.data.formats import read_tokens
from spherescan.data.tokens import TokenData
from spherescan.errors import ConfigError, DataError, StorageError

INDEX = "index.json"
_FORMAT = "spherescan-tokens"
_VERSION = 1
_MAX_INDEX_BYTES = 1 << 26
_DTYPES: dict[str, np.dtype[np.unsignedinteger]] = {
    "uint16": np.dtype("<u2"),
    "uint32": np.dtype("<u4"),
}


def write_shards(
    documents: Iterable[NDArray[Any]],
    out: Path,
    *,
    vocab_size: int,
    tokens_per_shard: int = 1 << 26,
) -> TokenData:
    """Write documents as shards and open the result.

    The folder appears under its name only when everything is in it.

    Raises:
        ConfigError: A vocabulary size outside 1..2^32.
        DataError: No token at all, a token outside the vocabulary, or an `out` that exists already.
        StorageError: The disk refused; nothing is left behind.
    """
    if not 1 <= vocab_size <= 1 << 32:
        raise ConfigError(f"the vocabulary size is {vocab_size}; it must lie in 1..2^32")
    if out.exists() or out.is_symlink():
        raise DataError(f"{out}: exists already; choose another name or remove it")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        partial = out.with_name(f".{out.name}.partial-{os.getpid()}")
        partial.mkdir()
        try:
            _write_folder(documents, partial, vocab_size, tokens_per_shard)
            partial.rename(out)
        except BaseException:
            shutil.rmtree(partial)
            raise
    except OSError as error:
        raise StorageError(f"{out}: cannot be written: {error.strerror or error}") from error
    return open_shards(out)


def open_shards(path: Path) -> TokenData:
    """Map the shards of a folder, after comparing sizes and digests with the index.

    Raises:
        DataError: An index or a file that is missing, damaged or not what the index says.
    """
    index_path = path / INDEX
    index = _read_index(index_path)
    dtype = _DTYPES[index["dtype"]]
    shards = []
    for entry in index["shards"]:
        file = path / entry["file"]
        _expect_file(file, entry["n_tokens"] * dtype.itemsize, entry["sha256"])
        shards.append(np.memmap(file, dtype=dtype, mode="r"))
    documents_path = path / "documents.bin"
    _expect_file(documents_path, index["n_documents"] * 8, index["documents_sha256"])
    documents = np.memmap(documents_path, dtype="<u8", mode="r")
    if (
        documents[0] != 0
        or (np.diff(documents) == 0).any()
        or (documents[1:] < documents[:-1]).any()
    ):
        raise DataError(
            f"{documents_path}: document starts do not increase from 0; import it again"
        )
    return TokenData(
        shards=tuple(shards),
        documents=documents,
        vocab_size=index["vocab_size"],
        source=str(path),
        fingerprint=hashlib.sha256(index_path.read_bytes()).hexdigest(),
    )


def open_tokens(
    path: Path, *, vocab_size: int | Literal["auto"] | None, extension: str | None = None
) -> TokenData:
    """Open a folder of shards, or read integers from a file or a folder of files.

    Args:
        path: Folder with an index, a file that `read_tokens` knows, or a folder of such files.
        vocab_size: For integers: every token must be below it; "auto" takes the largest token and
            one. For shards it must agree, when given.
        extension: Ending of the files in a folder without an index, such as "txt". They are taken
            in the order of the bytes of their names, and each is a document.

    Raises:
        DataError: See `open_shards` and `read_tokens`; a folder without such files; or a vocabulary
            that is missing or differs.
    """
    if path.is_dir() and (extension is None or (path / INDEX).exists()):
        data = open_shards(path)
        if vocab_size not in {None, "auto", data.vocab_size}:
            raise DataError(
                f"{path}: has a vocabulary of {data.vocab_size}, not of {vocab_size}; "
                "leave data.vocab_size out"
            )
        return data
    files = _files_in(path, str(extension)) if path.is_dir() else [path]
    documents = [read_tokens(file) for file in files]
    if vocab_size is None:
        raise DataError(f"{path}: plain integers need data.vocab_size; shards carry their own")
    if vocab_size == "auto":
        vocab_size = max(int(tokens.max()) for tokens in documents) + 1
    digest = hashlib.sha256()
    for file, tokens in zip(files, documents, strict=True):
        expect_vocabulary(file, tokens, vocab_size)
        digest.update(np.int64(len(tokens)).tobytes() if len(files) > 1 else b"")
        digest.update(tokens.tobytes())
    starts = np.cumsum([0, *map(len, documents)])[:-1]
    return TokenData(
        shards=tuple(tokens.astype(np.uint64) for tokens in documents),
        documents=starts.astype(np.uint64),
        vocab_size=vocab_size,
        source=str(path),
        fingerprint=digest.hexdigest(),
    )


def _files_in(path: Path, extension: str) -> list[Path]:
    """Return the files of a folder with an ending, in the order of the bytes of their names."""
    ending = f".{extension.removeprefix('.')}"
    try:
        files = [file for file in path.iterdir() if file.name.endswith(ending) and file.is_file()]
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    if not files:
        raise DataError(
            f"{path}: holds no {INDEX} and no file that ends in {ending}; give a folder of shards, "
            "or set data.extension to the ending of its files"
        )
    return sorted(files, key=lambda file: os.fsencode(file.name))


def expect_vocabulary(path: Path, tokens: NDArray[np.int64], vocab_size: int) -> None:
    """Check every token of a file.

    Raises:
        DataError: One lies outside the vocabulary.
    """
    outside = (tokens < 0) | (tokens >= vocab_size)
    if outside.any():
        position = int(outside.argmax())
        raise DataError(
            f"{path}: token {tokens[position]} at position {position} is outside the vocabulary of "
            f"{vocab_size}; raise the vocabulary size or correct the file"
        )


def _write_folder(
    documents: Iterable[NDArray[Any]], folder: Path, vocab_size: int, tokens_per_shard: int
) -> None:
    kind = "uint16" if vocab_size <= 1 << 16 else "uint32"
    shards, starts = _write_tokens(documents, folder, _DTYPES[kind], vocab_size, tokens_per_shard)
    (folder / "documents.bin").write_bytes(np.array(starts, dtype="<u8").tobytes())
    index = {
        "format": _FORMAT,
        "version": _VERSION,
        "dtype": kind,
        "vocab_size": vocab_size,
        "n_tokens": sum(shard["n_tokens"] for shard in shards),
        "n_documents": len(starts),
        "documents_sha256": _sha256(folder / "documents.bin"),
        "shards": shards,
    }
    (folder / INDEX).write_text(json.dumps(index, indent=1) + "\n")


def _write_tokens(
    documents: Iterable[NDArray[Any]],
    folder: Path,
    dtype: np.dtype[np.unsignedinteger],
    vocab_size: int,
    tokens_per_shard: int,
) -> tuple[list[dict[str, Any]], list[int]]:
    shards: list[dict[str, Any]] = []
    starts: list[int] = []
    pending: list[NDArray[Any]] = []
    n_pending = n_total = 0

    def flush() -> None:
        nonlocal n_pending
        name = f"shard-{len(shards):05d}.bin"
        data = np.concatenate(pending).tobytes()
        (folder / name).write_bytes(data)
        digest = hashlib.sha256(data).hexdigest()
        shards.append({"file": name, "n_tokens": n_pending, "sha256": digest})
        pending.clear()
        n_pending = 0

    for document in documents:
        if len(document) == 0:
            continue
        if int(document.max()) >= vocab_size:
            raise DataError(
                f"document {len(starts)}: token {document.max()} exceeds {vocab_size - 1}"
            )
        starts.append(n_total)
        n_total += len(document)
        rest = document.astype(dtype)
        while len(rest):
            part, rest = np.split(rest, [tokens_per_shard - n_pending])
            pending.append(part)
            n_pending += len(part)
            if n_pending == tokens_per_shard:
                flush()
    if n_total == 0:
        raise DataError("every file is empty; nothing to import")
    if pending:
        flush()
    return shards, starts


def _read_index(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _MAX_INDEX_BYTES:
            raise DataError(
                f"{path}: is larger than {_MAX_INDEX_BYTES} bytes; not an index of shards"
            )
        index = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read: {error.strerror}; make shards with `spherescan import`"
        ) from error
    except ValueError as error:
        raise DataError(f"{path}: is damaged ({error}); import it again") from error
    problem = _index_problem(index)
    if problem:
        raise DataError(f"{path}: {problem}; import it again")
    checked: dict[str, Any] = index
    return checked


def _index_problem(index: Any) -> str | None:  # noqa: PLR0911  one return per kind of damage
    if not isinstance(index, dict) or index.get("format") != _FORMAT:
        return f"is not an index of {_FORMAT}"
    if index.get("version") != _VERSION:
        return f"has version {index.get('version')!r}, this program reads {_VERSION}"
    if index.get("dtype") not in _DTYPES:
        return f"has dtype {index.get('dtype')!r}, not one of {', '.join(_DTYPES)}"
    counts = [index.get(key) for key in ("vocab_size", "n_tokens", "n_documents")]
    shards = index.get("shards")
    if not isinstance(shards, list) or not all(_is_shard(shard) for shard in shards):
        return "has a damaged list of shards"
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
        and isinstance(entry.get("file"), str)
        and isinstance(entry.get("sha256"), str)
        and Path(entry["file"]).name == entry["file"]
        and _is_count(entry.get("n_tokens"))
    )


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 < value < 1 << 53


def _expect_file(path: Path, size: int, sha256: str) -> None:
    try:
        actual = path.stat().st_size
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}; import it again") from error
    if actual != size:
        raise DataError(f"{path}: has {actual} bytes, the index says {size}; import it again")
    if _sha256(path) != sha256:
        raise DataError(f"{path}: has another digest than the index says; import it again")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
