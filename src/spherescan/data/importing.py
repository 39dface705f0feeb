"""From the files of a user to token shards."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from spherescan.data.formats import read_tokens
from spherescan.data.formats.opening import chunks, opened
from spherescan.data.shards import expect_vocabulary, write_shards
from spherescan.data.tokens import TokenData
from spherescan.errors import ConfigError, DataError

Encoding = Literal["bytes", "integers"]


class Imported(NamedTuple):
    """What `import_text` made, and what it left out.

    Attributes:
        data: The shards, opened.
        n_empty: Files without a byte.
        n_links: Symbolic links below the folder; what they point to may lie outside it.
    """

    data: TokenData
    n_empty: int
    n_links: int


def import_text(
    source: Path,
    out: Path,
    *,
    encoding: Encoding,
    vocab_size: int | None = None,
    extensions: tuple[str, ...] = (),
    excluded: tuple[str, ...] = (),
    tokens_per_shard: int = 1 << 26,
) -> Imported:
    """Turn a file, or all files below a folder, into shards; each file is one document.

    Files are taken in the order of the bytes of their paths.

    Args:
        source: File or folder.
        out: Folder to make.
        encoding: "bytes" makes every byte a token of 256; "integers" reads integers as text.
        vocab_size: Every token must be below it; for integers, and needed there.
        extensions: Endings of the files to take from a folder, all when empty.
        excluded: Names of folders to leave out with all below them.
        tokens_per_shard: Size of a shard.

    Raises:
        ConfigError: A vocabulary size that is missing or has no meaning.
        DataError: Nothing to import, a file that cannot be read, a token outside the vocabulary,
            or an `out` that exists already.
        StorageError: The disk refused; nothing is left behind.
    """
    if encoding == "bytes" and vocab_size is not None:
        raise ConfigError("bytes have a vocabulary of 256; leave the vocabulary size out")
    if encoding == "integers" and vocab_size is None:
        raise ConfigError("integers need a vocabulary size; pass --vocab-size")
    size = 256 if vocab_size is None else vocab_size
    files, n_empty, n_links = [source], 0, 0
    if source.is_dir():
        if out.resolve().is_relative_to(source.resolve()):
            raise DataError(f"{out}: lies inside {source}; it would be imported the next time")
        files = list(_files(source, extensions, excluded))
        modes = [path.lstat() for path in files]
        n_links = sum(stat.S_ISLNK(mode.st_mode) for mode in modes)
        n_empty = sum(stat.S_ISREG(mode.st_mode) and mode.st_size == 0 for mode in modes)
        files = [
            path
            for path, mode in zip(files, modes, strict=True)
            if not stat.S_ISLNK(mode.st_mode)
            and not (stat.S_ISREG(mode.st_mode) and mode.st_size == 0)
        ]
    if not files:
        wanted = f" ending in {', '.join(extensions)}" if extensions else ""
        raise DataError(f"{source}: holds no file{wanted} with anything in it; nothing to import")
    documents = (_encode(path, encoding, size) for path in files)
    data = write_shards(documents, out, vocab_size=size, tokens_per_shard=tokens_per_shard)
    return Imported(data, n_empty, n_links)


def _files(source: Path, extensions: tuple[str, ...], excluded: tuple[str, ...]) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        raise DataError(f"{error.filename}: cannot be listed: {error.strerror}") from error

    found = []
    for folder, subfolders, names in os.walk(source, onerror=refuse):
        subfolders[:] = [name for name in subfolders if name not in excluded]
        found += [Path(folder) / name for name in names]
    for path in sorted(found, key=lambda path: os.fsencode(path.relative_to(source))):
        if not extensions or path.name.endswith(extensions):
            yield path


def _encode(path: Path, encoding: Encoding, vocab_size: int) -> NDArray[Any]:
    if encoding == "bytes":
        with opened(path) as file:
            return np.frombuffer(b"".join(chunks(file, file.size)), dtype=np.uint8)
    tokens = read_tokens(path)
    expect_vocabulary(path, tokens, vocab_size)
    return tokens
