"""A file with the state of a stream, which is replaced at once or not at all."""

import os
import stat
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from torch import Tensor

from spherescan.errors import CheckpointError, StorageError
from spherescan.paths import user_path
from spherescan.runs.container import read_checkpoint, write_checkpoint
from spherescan.runs.folder import Folder

# What such a file says of itself.
_KIND = {"kind": "stream"}


def write_stream_state(path: str | Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a state, in the place of an older one.

    Raises:
        CheckpointError: The path names no file, or one that is no state of a stream.
        StorageError: The disk refused; an older file is still there.
    """
    path = user_path(path, error=CheckpointError)
    path = path.parent.resolve() / path.name  # links lead to folders, but not to files
    expect_replaceable(path)
    temporary = path.with_name(f".tmp-{path.name}-{os.getpid()}-{os.urandom(8).hex()}")
    write_checkpoint(temporary, tensors, _KIND)
    try:
        folder = Folder(path.parent)
        try:
            folder.rename(temporary.name, path.name)
            folder.sync()
        finally:
            folder.close()
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise StorageError(f"{path} was not written: {error.strerror or error}") from error


def restore_stream_state(path: str | Path, load: Callable[[dict[str, Tensor]], None]) -> None:
    """Load what `write_stream_state` wrote.

    Raises:
        CheckpointError: The file is missing, damaged, of another kind, or refused by `load`.
    """
    path = user_path(path, error=CheckpointError)
    saved = read_checkpoint(path)
    if saved.state != _KIND:
        raise CheckpointError(f"{path} is no state of a stream")
    try:
        load(saved.tensors)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from None


def expect_replaceable(path: Path) -> None:
    """Check a path that a stream is to be saved under.

    Raises:
        CheckpointError: It names no file, or something that is no state of a stream.
    """
    if not path.name:
        raise CheckpointError(f"{path}: names no file")
    try:
        mode = path.lstat().st_mode
    except OSError:
        return
    if stat.S_ISLNK(mode):
        raise CheckpointError(f"{path} is a symbolic link; give the file itself")
    try:
        held = stat.S_ISREG(mode) and read_checkpoint(path).state == _KIND
    except CheckpointError:
        held = False
    if not held:
        raise CheckpointError(
            f"{path} holds something that is no state of a stream; not overwritten: choose another "
            "name"
        )
