"""A folder held open: every name is relative to it, whatever happens to the path meanwhile."""

import errno
import os
import stat
import weakref
from contextlib import suppress
from pathlib import Path
from threading import Thread

from spherescan.errors import ConfigError, RunDirectoryError, StorageError

# What a path itself is wrong about, as against what the system refuses. EEXIST is what making a
# folder says of a link that leads nowhere.
_WRONG_PATHS = {errno.ENAMETOOLONG, errno.ENOTDIR, errno.ELOOP, errno.EEXIST}

_PIECE = 8 << 20  # bytes of a file that is copied, in memory at once
WORTH_A_THREAD = 16 << 20  # bytes; work on fewer is done sooner than a thread begins


class Folder:
    """An open folder; closed with `close`, or when forgotten.

    Args:
        path: Its path; for messages only when `inside` is given.
        inside: The folder that it is in.

    Raises:
        ConfigError: The path leads through a file, a symbolic link at its end, or is too long.
        FileNotFoundError: It is not there.
        RunDirectoryError: It cannot be opened.
    """

    def __init__(self, path: Path, *, inside: "Folder | None" = None) -> None:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        self.path = path
        try:
            if inside is None:
                self.file = os.open(path, flags)
            else:
                self.file = os.open(path.name, flags, dir_fd=inside.file)
        except FileNotFoundError:
            raise
        except (OSError, ValueError) as error:  # a ValueError is a NUL in the path
            raise refusal(path, error) from error
        self.close = weakref.finalize(self, close_quietly, self.file)

    def names(self) -> list[str]:
        """Return what is in it, sorted."""
        return sorted(os.listdir(self.file))  # noqa: PTH208  a Path knows no open folder

    def make(self, name: str) -> "Folder":
        """Make a folder in it, for its owner alone, and open it."""
        os.mkdir(name, 0o700, dir_fd=self.file)
        return Folder(self.path / name, inside=self)

    def holds(self, name: str) -> bool:
        """Return whether something has the name, be it a link that leads nowhere."""
        try:
            os.stat(name, dir_fd=self.file, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    def same_file(self, name: str, other: "Folder", other_name: str) -> bool:
        """Return whether a name here and a name elsewhere are one file."""
        try:
            here = os.stat(name, dir_fd=self.file, follow_symlinks=False)
            there = os.stat(other_name, dir_fd=other.file, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return os.path.samestat(here, there)

    def rename(self, name: str, new: str) -> None:
        """Give a file another name in this folder."""
        os.rename(name, new, src_dir_fd=self.file, dst_dir_fd=self.file)

    def set_aside(self, name: str, pattern: str) -> str:
        """Give a file the first free name of a pattern with a number in it, durably.

        Returns:
            That name.

        Raises:
            StorageError: The disk refused.
        """
        number = 1
        while self.holds(new := pattern.format(number)):
            number += 1
        try:
            self.rename(name, new)
            self.sync()
        except OSError as error:
            raise StorageError(
                f"{self.path / name}: cannot be renamed: {error.strerror}"
            ) from error
        return new

    def link(self, name: str, new: str, *, source: "Folder") -> None:
        """Give a file of another folder a second name here."""
        os.link(name, new, src_dir_fd=source.file, dst_dir_fd=self.file, follow_symlinks=False)

    def copy(self, name: str, new: str, *, source: "Folder") -> None:
        """Write the bytes of a file of another folder here too, a piece at a time and durably.

        The new name must not exist; it does not afterwards when this fails.
        """
        with os.fdopen(source._open(name, os.O_RDONLY), "rb") as original:
            file = self._open(new, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
            try:
                try:
                    while piece := original.read(_PIECE):
                        write_all(file, memoryview(piece))
                    os.fsync(file)
                finally:
                    os.close(file)
            except BaseException:
                self.remove(new, missing_ok=True)
                raise

    def remove(self, name: str, *, missing_ok: bool = False) -> None:
        """Remove a name."""
        try:
            os.unlink(name, dir_fd=self.file)
        except FileNotFoundError:
            if not missing_ok:
                raise

    def remove_large(self, name: str) -> Thread | None:
        """Remove a name; return the thread that then frees what a large file took, if it is one.

        The name is gone on return. Freeing the pages of a gigabyte takes a fifth of a second, and
        the system does it when the last descriptor is closed: so one is held open until then.
        """
        try:
            held = self._open(name, os.O_RDONLY)
        except OSError:
            self.remove(name)
            return None
        freeing = Thread(target=close_quietly, args=(held,), name="freeing")
        try:
            large = os.fstat(held).st_size >= WORTH_A_THREAD
            self.remove(name)
        except BaseException:
            close_quietly(held)
            raise
        if large:
            with suppress(RuntimeError):  # no more threads: then here
                freeing.start()
                return freeing
        close_quietly(held)
        return None

    def read(self, name: str, *, limit: int) -> bytes:
        """Return the bytes of a regular file.

        Raises:
            ValueError: It is not a regular file, or longer than `limit`.
        """
        with os.fdopen(self._open(name, os.O_RDONLY), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise ValueError("it is not a regular file")
            data = file.read(limit + 1)
        if len(data) > limit:
            raise ValueError(f"it is longer than {limit} bytes")
        return data

    def write(self, name: str, data: bytes) -> None:
        """Put a file under a name, at once and durably; it takes the place of another."""
        temporary = f".tmp-{name}-{os.getpid()}-{os.urandom(8).hex()}"
        file = self._open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        try:
            try:
                write_all(file, memoryview(data))
                os.fsync(file)
            finally:
                os.close(file)
            self.rename(temporary, name)
        except BaseException:
            self.remove(temporary, missing_ok=True)
            raise
        self.sync()

    def sync(self) -> None:
        """Make its names durable."""
        os.fsync(self.file)

    def _open(self, name: str, flags: int) -> int:
        # NONBLOCK, because opening a FIFO waits for its other end.
        flags |= os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        return os.open(name, flags, 0o600, dir_fd=self.file)


def close_quietly(file: int) -> None:
    """Close a file of which everything that matters has been synced, or will be missed elsewhere.

    Some file systems tell only here that earlier writes failed; the descriptor is gone anyway.
    """
    with suppress(OSError):
        os.close(file)


def refusal(path: Path, error: OSError | ValueError) -> ConfigError | RunDirectoryError:
    """Turn what the system said about the folder of a run into an error of ours."""
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
    if isinstance(error, OSError) and error.errno not in _WRONG_PATHS:
        return RunDirectoryError(f"{path}: cannot be opened: {reason}")
    with suppress(OSError, ValueError):  # no name at all is no link either
        reason = "it is a symbolic link" if path.is_symlink() else reason
    way_out = "give the folder itself"
    if isinstance(error, NotADirectoryError) and path.is_file() and not path.is_symlink():
        way_out += "; what an estimator has saved is read in Python, by its load"
    return ConfigError(f"{path}: names no folder of a run: {reason}; {way_out}")


def write_all(file: int, view: memoryview) -> None:
    """Write all bytes, however few the system takes at a time."""
    while view:
        written = os.write(file, view)
        if written == 0:
            raise OSError(errno.EIO, "the system took no bytes")
        view = view[written:]
