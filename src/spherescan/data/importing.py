"""From the files of a user to token shards: into a folder of theirs, or into the cache."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from spherescan.data.cache import cached_shards
from spherescan.data.formats import TOKEN_READERS, token_parts
from spherescan.data.formats.opening import chunks, opened
from spherescan.data.shards import INDEX, TOKENS_PER_SHARD, open_shards, write_documents
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
    tokens_per_shard: int = TOKENS_PER_SHARD,
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
    documents = (
        _byte_parts(path) if encoding == "bytes" else token_parts(path, size) for path in files
    )
    write_documents(documents, out, vocab_size=size, tokens_per_shard=tokens_per_shard)
    return Imported(open_shards(out), n_empty, n_links)


def open_tokens(
    path: Path, *, vocab_size: int | Literal["auto"] | None, extension: str | None = None
) -> TokenData:
    """Open a folder of shards, or a file or folder of integers by way of the cache.

    Args:
        path: Folder with an index, a file that `read_tokens` knows, or a folder of such files.
        vocab_size: For integers: every token must be below it; "auto" takes the largest token and
            one. For shards it must agree, when given.
        extension: Ending of the files in a folder without an index, such as "txt". They are taken
            in the order of the bytes of their names, and each is a document.

    Raises:
        ConfigError: A cache that others can write.
        DataError: See `open_shards` and `token_parts`; a folder without such files; or a vocabulary
            that is missing or differs.
        StorageError: The disk refused to keep the imported text.
    """
    is_folder = path.is_dir()
    has_index = is_folder and (path / INDEX).exists()
    if is_folder and (extension is None or has_index):
        if not has_index:
            _refuse_files_without_index(path)
        data = open_shards(path)
        if vocab_size not in {None, "auto", data.vocab_size}:
            raise DataError(
                f"{path}: has a vocabulary of {data.vocab_size}; wanted {vocab_size}, that of the "
                "model or data.vocab_size; give shards with it, or train without data.vocab_size"
            )
        return data
    files = _files_in(path, str(extension)) if is_folder else [path]
    if not path.exists():
        raise DataError(f"{path}: no such file or folder; check the path")
    if vocab_size is None:
        raise DataError(f"{path}: plain integers need data.vocab_size; shards carry their own")
    return cached_shards(
        files, vocab_size=None if vocab_size == "auto" else vocab_size, source=str(path)
    )


def _refuse_files_without_index(path: Path) -> None:
    """Tell a folder of files that could be tokens from one of shards.

    Raises:
        DataError: It has such files.
    """
    ending = next((end for end in TOKEN_READERS for _ in path.glob(f"*{end}")), None)
    if ending is not None:
        raise DataError(
            f"{path}: holds files that end in {ending} and no {INDEX}; of integers make shards "
            "with `spherescan import --encoding integers --vocab-size N`, of text with "
            f"`spherescan import`, or train with --data.extension {ending} --data.vocab-size N"
        )


def _files_in(path: Path, extension: str) -> list[Path]:
    """Return the files of a folder with an ending, in the order of the bytes of their names."""
    ending = f".{extension.removeprefix('.')}"
    try:
        files = [file for file in path.iterdir() if file.name.endswith(ending)]
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    if not files:
        raise DataError(
            f"{path}: holds no {INDEX} and no file that ends in {ending}; give a folder of shards, "
            "or set data.extension to the ending of its files"
        )
    return sorted(files, key=lambda file: os.fsencode(file.name))


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


def _byte_parts(path: Path) -> Iterator[NDArray[Any]]:
    with opened(path) as file:
        for data in chunks(file, 1 << 20):
            yield np.frombuffer(data, dtype=np.uint8)
