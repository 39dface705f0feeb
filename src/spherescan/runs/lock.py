"""One writer per run."""

import fcntl
import os
import weakref
from pathlib import Path

from spherescan.errors import LockedError, RunDirectoryError

_held: weakref.WeakSet["RunLock"] = weakref.WeakSet()


class RunLock:
    """Hold a run until closed or forgotten; the system lets go when the process ends.

    The lock is advisory (flock) on a file that is never removed: removing it would let two
    processes hold locks on two files of one name.

    Args:
        path: The lock file; made when it is not there.

    Raises:
        LockedError: Another process holds it.
        RunDirectoryError: The file cannot be opened, or the file system has no locks.
    """

    def __init__(self, path: Path) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            file = os.open(path, flags, 0o600)
        except OSError as error:
            raise RunDirectoryError(f"{path}: cannot be opened: {error.strerror}") from error
        self._close = weakref.finalize(self, os.close, file)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(file, 20, 0).decode(errors="replace").strip()
            self.close()
            raise LockedError(
                f"{path.parent}: process {holder or '(not yet known)'} is writing this run; "
                "wait for it or stop it"
            ) from None
        except OSError as error:
            self.close()
            raise RunDirectoryError(f"{path}: cannot be locked: {error.strerror}") from error
        self._file = file
        _held.add(self)

    def sign(self) -> None:
        """Write the process into the file, for the message that another one gets."""
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, f"{os.getpid()}\n".encode(), 0)

    def close(self) -> None:
        """Let go."""
        self._close()


def _close_all() -> None:
    for lock in list(_held):
        lock.close()


# A forked child shares the lock and would keep it after the death of its parent.
os.register_at_fork(after_in_child=_close_all)
