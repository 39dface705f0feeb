"""Where text is kept as shards once it has been imported: CACHE/tokens/DIGEST.

The digest is one of the content of the text, so an entry is never out of date; it may be removed at
any time, and is made again.
"""

import dataclasses
import hashlib
import os
import shutil
import stat
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from spherescan.data.formats import token_parts, token_suffix
from spherescan.data.formats.opening import chunks, opened
from spherescan.data.formats.quoting import source_name
from spherescan.data.shards import open_shards, write_documents
from spherescan.data.tokens import TokenData
from spherescan.errors import ConfigError, DataError, StorageError

# What the digest of an entry begins with: another one where the same text would give other shards.
_FORMAT = "spherescan-import/1"
# An import that was killed leaves a folder behind; nobody imports for that long.
_STALE_SECONDS = 7 * 24 * 3600


def cached_shards(files: Sequence[Path], *, vocab_size: int | None, source: str) -> TokenData:
    """Return the tokens of text files as shards, each file a document; imported when they are new.

    Args:
        files: In the order of the documents.
        vocab_size: Every token must be below it; the largest token and one when missing.
        source: Name of the text for messages.

    Raises:
        ConfigError: A cache folder that others can write, or that cannot be told.
        DataError: A file that is not valid, or changes while it is read.
        StorageError: The disk refused.
    """
    folder = cache_folder() / "tokens"
    _make_private(folder)
    before = [_look(file) for file in files]
    entry = folder / _digest(files, vocab_size)
    if entry.is_dir():
        try:
            return dataclasses.replace(open_shards(entry), source=source)
        except DataError as error:
            warnings.warn(f"{error}; imported again", stacklevel=2)
            _remove(entry)
    _remove_stale(folder)
    try:
        write_documents(_documents(files, before, vocab_size), entry, vocab_size=vocab_size)
    except (DataError, StorageError):
        # Another process that imports the same text may have been faster.
        if not entry.is_dir():
            raise
    return dataclasses.replace(open_shards(entry), source=source)


def _documents(
    files: Sequence[Path], before: Sequence[tuple[int, ...]], vocab_size: int | None
) -> Iterator[Iterator[NDArray[Any]]]:
    """Yield the tokens of each file; at the end, before an entry is made, look at all again."""
    for file in files:
        yield token_parts(file, vocab_size)
    for file, look in zip(files, before, strict=True):
        if _look(file) != look:
            raise DataError(
                f"{source_name(file)}: changed while it was imported; wanted a file that nobody "
                "writes; try again later"
            )


def cache_folder() -> Path:
    """Return $SPHERESCAN_CACHE, else $XDG_CACHE_HOME/spherescan, else ~/.cache/spherescan.

    Raises:
        ConfigError: There is no home folder either.
    """
    own, shared = os.environ.get("SPHERESCAN_CACHE"), os.environ.get("XDG_CACHE_HOME")
    if own:
        return Path(own)
    if shared:
        return Path(shared) / "spherescan"
    try:
        return Path.home() / ".cache" / "spherescan"
    except RuntimeError as error:
        raise ConfigError("there is no home folder; set SPHERESCAN_CACHE to a folder") from error


def _make_private(folder: Path) -> None:
    """Make the folder and the one above it where they are missing; check who can write there.

    Raises:
        ConfigError: Somebody else can: they could put other data under a name that we trust.
        StorageError: The disk refused.
    """
    for each in (folder.parent, folder):
        try:
            each.mkdir(mode=0o700, parents=True, exist_ok=True)
            status = each.stat()
        except OSError as error:
            raise StorageError(
                f"{each}: cannot be made: {error.strerror}; set SPHERESCAN_CACHE to a folder that "
                "can be written"
            ) from error
        problem = ""
        if status.st_uid != os.geteuid():
            problem = f"belongs to user {status.st_uid}, not to {os.geteuid()}"
        elif stat.S_IMODE(status.st_mode) & 0o022:
            problem = f"can be written by others (mode {stat.S_IMODE(status.st_mode):o})"
        if problem:
            raise ConfigError(
                f"{each}: {problem}; wanted a cache of our own; chmod 700 it, or set "
                "SPHERESCAN_CACHE to another folder"
            )


def _digest(files: Sequence[Path], vocab_size: int | None) -> str:
    digest = hashlib.sha256(f"{_FORMAT}\n{vocab_size}\n{len(files)}\n".encode())
    for path in files:
        content = hashlib.sha256()
        with opened(path) as file:
            for data in chunks(file, 1 << 20):
                content.update(data)
        digest.update(f"{token_suffix(path)}\n{content.hexdigest()}\n".encode())
    return digest.hexdigest()


def _look(path: Path) -> tuple[int, ...]:
    try:
        status = path.lstat()
    except OSError as error:
        raise DataError(
            f"{source_name(path)}: no such file ({error.strerror}); wanted a regular file; check "
            "the path"
        ) from error
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _remove(folder: Path) -> None:
    """Take a folder away under a name of its own first, so that nobody sees half of it."""
    doomed = folder.with_name(f".{folder.name.lstrip('.')}.removed-{os.getpid()}")
    try:
        folder.rename(doomed)
        shutil.rmtree(doomed)
    except FileNotFoundError:
        return  # another process was faster
    except OSError as error:
        raise StorageError(f"{folder}: cannot be removed: {error.strerror}") from error


def _remove_stale(folder: Path) -> None:
    """Remove what imports that were killed have left."""
    for path in folder.glob(".*"):
        with suppress(FileNotFoundError):  # another process has finished it, or removed it
            if time.time() - path.lstat().st_mtime > _STALE_SECONDS:
                shutil.rmtree(path, ignore_errors=True)
