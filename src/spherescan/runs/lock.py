"""One writer per run."""

import datetime as dt
import errno
import fcntl
import os
import time
import weakref
from contextlib import suppress
from pathlib import Path

from spherescan.errors import LockedError, RunDirectoryError
from spherescan.runs.folder import Folder, close_quietly

_held: weakref.WeakSet["RunLock"] = weakref.WeakSet()
_POLL_SECONDS = 0.05
_NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS}


class RunLock:
    """Hold a run until closed or forgotten; the system lets go when the process ends.

    The lock is advisory (flock) on a file that only a start that failed removes, while it holds
    it; whoever then gets the lock of a file that has lost its name is refused, because two
    processes could hold locks on two files of one name.

    Args:
        path: The lock file; made when it is not there.
        folder: The folder of the file, when it is open already.
        wait: Seconds to wait for another process to let go.
        required: Whether to refuse a file system that has no locks.

    Raises:
        LockedError: Another process holds it.
        RunDirectoryError: The file cannot be opened, or the file system has no locks.
    """

    def __init__(
        self,
        path: Path,
        *,
        folder: Folder | None = None,
        wait: float = 0.0,
        required: bool = True,
    ) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        try:
            if folder is None:
                file = os.open(path, flags, 0o600)
            else:
                file = os.open(path.name, flags, 0o600, dir_fd=folder.file)
        except OSError as error:
            raise RunDirectoryError(f"{path}: cannot be opened: {error.strerror}") from error
        self._close = weakref.finalize(self, close_quietly, file)
        self._file = file
        try:
            self._acquire(path, folder, wait)
        except OSError as error:
            if not required and error.errno in _NO_LOCKS:
                return
            self.close()
            if isinstance(error, LockedError):
                raise
            raise RunDirectoryError(
                f"{path}: cannot be locked: {error.strerror}; use a local file system, or pass "
                "--no-lock and see to it yourself that one process at a time writes the run"
            ) from error
        _held.add(self)

    def _acquire(self, path: Path, folder: Folder | None, wait: float) -> None:
        until = time.monotonic() + wait
        while True:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= until:
                    text = os.pread(self._file, 80, 0).decode("ascii", errors="replace").strip()
                    holder = "".join(c for c in text if c.isprintable())
                    raise LockedError(
                        f"{path.parent}: process {holder or '(not yet known)'} is writing this "
                        "run; wait for it (--lock-wait SECONDS) or stop it"
                    ) from None
                time.sleep(_POLL_SECONDS)
            else:
                self._expect_named(path, folder)
                return

    def _expect_named(self, path: Path, folder: Folder | None) -> None:
        try:
            if folder is None:
                named = path.stat(follow_symlinks=False)
            else:
                named = os.stat(path.name, dir_fd=folder.file, follow_symlinks=False)
        except FileNotFoundError:
            named = None
        if named is None or not os.path.samestat(named, os.fstat(self._file)):
            raise LockedError(
                f"{path.parent}: another process has just given up its start there; try again"
            )

    def sign(self) -> None:
        """Write process and time into the file, for the message that another one gets."""
        now = dt.datetime.now(tz=dt.UTC).isoformat(timespec="seconds")
        with suppress(OSError):  # the lock is held all the same
            os.ftruncate(self._file, 0)
            os.pwrite(self._file, f"{os.getpid()}, since {now},\n".encode(), 0)

    def close(self) -> None:
        """Let go."""
        self._close()


def _close_all() -> None:
    for lock in list(_held):
        lock.close()


# A forked child shares the lock and would keep it after the death of its parent.
os.register_at_fork(after_in_child=_close_all)
