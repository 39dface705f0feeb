"""The metrics of a run: append-only JSON lines that a checkpoint can cut back to exactly.

A line is in the file whole or not at all. A checkpoint stores the `LogPosition` that was synced
just before it, so a resumed run cuts the log there and writes the same bytes again.
"""

import errno
import math
import os
import stat
import time
import zlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from spherescan.errors import RunDirectoryError, StorageError
from spherescan.runs.folder import Folder, close_quietly
from spherescan.strict_json import json_text, parse_json

# Far beyond any record; it bounds what a file without line ends can make the reader hold.
MAX_LINE_BYTES = 1 << 20
MAX_DEPTH = 8
MAX_SEQ = 2**53
MAX_PENDING_BYTES = 1 << 20
# What making room mends.
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class LogPosition:
    """A place between two lines: bytes and lines before it, their CRC-32, and the next `seq`."""

    offset: int
    lines: int
    crc32: int
    next_seq: int


class MetricsLog:
    """The one writer of a `metrics.jsonl`; it creates the file or continues it.

    A log that ends in the middle of a line, as after a crash, opens but takes no record until
    `cut_to` has removed that part.

    Args:
        path: the file; a symbolic link or anything but a regular file is refused.
        run_id: written into each line; a file whose last line has another is refused.
        folder: the folder of the file, when it is open already.
        patience: seconds for which lines are kept in memory (at most `MAX_PENDING_BYTES` of them)
            while the disk is full, and written when there is room again.

    Raises:
        RunDirectoryError: The file cannot be opened or belongs to another run.
        StorageError: The system refused to make a new file durable.
    """

    def __init__(
        self, path: Path, *, run_id: str, folder: Folder | None = None, patience: float = 0.0
    ) -> None:
        self._path = path
        self._run_id = run_id
        self._file = _open_regular(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, folder)
        self._patience = patience
        # Lines that a full disk did not take yet, and since when it has been full.
        self._pending: list[bytes] = []
        self._full_since: float | None = None
        # Why nothing may be appended now; None when the log is whole.
        self._refusal: str | None = None
        # What the disk said when a line that was begun could not be removed again.
        self._torn: OSError | None = None
        self._position = LogPosition(0, 0, 0, 0)
        try:
            self._continue()
        except BaseException:
            self.close()
            raise

    def append(self, record: Mapping[str, object]) -> None:
        """Write one record as one line, with `run_id` and `seq` before its own keys.

        A float that is not finite becomes "NaN", "Infinity" or "-Infinity", and the record gets
        `"nonfinite": true`.

        Args:
            record: strict JSON but for such floats; `run_id`, `seq` and `nonfinite` are not its
                to set.

        Raises:
            ValueError: The record cannot be written as JSON; the log is as it was.
            StorageError: The system refused, or the disk has been full for longer than the
                patience; the log ends with the last full line.
            RunDirectoryError: The log is closed, or it ends in an incomplete line.
        """
        self._require_whole()
        seq = self._position.next_seq + len(self._pending)
        self._pending.append(_encode(record, self._run_id, seq))
        try:
            self._write_pending()
        except OSError as error:
            if not self._may_wait(error):
                self._pending.clear()
                raise self._storage_error(error.strerror) from error

    def sync(self) -> LogPosition:
        """Make everything appended so far durable, and return where it ends.

        Raises:
            StorageError: The system refused; what is durable is unknown.
            RunDirectoryError: The log is closed, or it ends in an incomplete line.
        """
        self._require_whole()
        try:
            self._write_pending()
            os.fsync(self._file)
        except OSError as error:
            raise self._storage_error(error.strerror) from error
        return self._position

    def cut_to(self, position: LogPosition) -> None:
        """Remove what follows a position that `sync` returned, and continue from there.

        Raises:
            RunDirectoryError: The part to keep is not what it was; nothing was changed.
            StorageError: The system refused.
        """
        self.expect(position)
        try:
            os.ftruncate(self._file, position.offset)
            os.fsync(self._file)
        except OSError as error:
            raise self._storage_error(error.strerror) from error
        self._position = position
        self._pending.clear()
        self._refusal = self._torn = None

    def expect(self, position: LogPosition) -> None:
        """Check that the part before a position that `sync` returned is what it was then.

        Raises:
            RunDirectoryError: It is not.
            StorageError: The system refused to read it.
        """
        try:
            _expect_prefix(self._path, self._file, position)
        except RunDirectoryError:
            raise
        except OSError as error:
            raise self._storage_error(error.strerror) from error

    def cut_torn_line(self) -> None:
        """Remove the incomplete line that a crash left at the end, if there is one.

        Raises:
            RunDirectoryError: What is wrong with the last line is not that it is incomplete.
            StorageError: The system refused.
        """
        if self._refusal is None:
            return
        try:
            size = os.fstat(self._file).st_size
            tail = os.pread(self._file, MAX_LINE_BYTES + 1, max(0, size - MAX_LINE_BYTES - 1))
            if tail.endswith(b"\n"):
                self._require_whole()
            os.ftruncate(self._file, size - len(tail) + tail.rfind(b"\n") + 1)
            os.fsync(self._file)
        except RunDirectoryError:
            raise
        except OSError as error:
            raise self._storage_error(error.strerror) from error
        self._refusal = None
        self._position = LogPosition(0, 0, 0, 0)
        self._continue()
        self._require_whole()

    def close(self) -> None:
        """Close the file, without a sync; closing twice is harmless."""
        if self._file >= 0:
            if self._refusal is None and self._torn is None:
                with suppress(OSError):  # `sync` is there for those who must know
                    self._write_pending()
            file, self._file = self._file, -1
            self._refusal = "it is closed"
            close_quietly(file)

    def _continue(self) -> None:
        try:
            size = os.fstat(self._file).st_size
            if size == 0:
                _sync_directory(self._path.parent)
                return
            lines, crc32, _ = _scan(self._file, size)
            tail = os.pread(self._file, MAX_LINE_BYTES + 1, max(0, size - MAX_LINE_BYTES - 1))
        except OSError as error:
            raise self._storage_error(error.strerror) from error
        begin = tail.rfind(b"\n", 0, -1) + 1
        try:
            record = _parse(tail[begin:], after=-1)
        except ValueError as error:
            self._refusal = f"{error} at its end"
            return
        if record["run_id"] != self._run_id:
            raise RunDirectoryError(
                f"{self._path} is the log of run {record['run_id']!r}, not of {self._run_id!r}; "
                f"use another run directory"
            )
        self._position = LogPosition(size, lines, crc32, record["seq"] + 1)

    def _write_pending(self) -> None:
        """Write all lines that wait, as one piece."""
        if not self._pending:
            return
        data = b"".join(self._pending)
        try:
            written = os.write(self._file, data)
        except OSError:
            self._drop_torn_line()
            raise
        if written != len(data):
            self._drop_torn_line()
            raise OSError(errno.ENOSPC, f"it took {written} of {len(data)} bytes")
        position = self._position
        self._position = LogPosition(
            position.offset + len(data),
            position.lines + len(self._pending),
            zlib.crc32(data, position.crc32),
            position.next_seq + len(self._pending),
        )
        self._pending.clear()
        self._full_since = None

    def _may_wait(self, error: OSError) -> bool:
        if error.errno not in _FULL or self._torn is not None:
            return False
        now = time.monotonic()
        if self._full_since is None:
            self._full_since = now
        small = sum(map(len, self._pending)) <= MAX_PENDING_BYTES
        return small and now - self._full_since < self._patience

    def _require_whole(self) -> None:
        if self._torn is not None:
            self._drop_torn_line()
        if self._torn is not None:
            raise self._storage_error(self._torn.strerror) from self._torn
        if self._refusal is not None:
            raise RunDirectoryError(
                f"{self._path} takes no record: {self._refusal}; resume from a checkpoint, which "
                f"cuts the log back to its last committed line"
            )

    def _drop_torn_line(self) -> None:
        try:
            os.ftruncate(self._file, self._position.offset)
        except OSError as error:
            self._torn = error
        else:
            self._torn = None

    def _storage_error(self, reason: str | None) -> StorageError:
        return StorageError(
            f"{self._path} was not written ({reason}); make room or check the disk and try again"
        )


def expect_metrics(path: Path, position: LogPosition) -> None:
    """Check that a log begins as it did when `MetricsLog.sync` returned a position.

    Raises:
        RunDirectoryError: It does not, or the file cannot be read.
    """
    try:
        with os.fdopen(_open_regular(path, os.O_RDONLY), "rb") as file:
            _expect_prefix(path, file.fileno(), position)
    except RunDirectoryError:
        raise
    except OSError as error:
        raise RunDirectoryError(f"{path} cannot be read ({error.strerror})") from error


def read_metrics(path: Path, *, growing: bool = False) -> list[dict[str, Any]]:
    """Read every record of a log, and refuse a log with anything wrong in it.

    Args:
        path: The file.
        growing: Whether a last line without its end is left out: of a log that is being written,
            or was when the machine stopped.

    Returns:
        The records in order, each with its `run_id` and strictly increasing `seq`.

    Raises:
        RunDirectoryError: The file cannot be read, a line is incomplete or not strict JSON, or
            `seq` does not increase; the message names the file and the line.
    """
    try:
        with os.fdopen(_open_regular(path, os.O_RDONLY), "rb") as file:
            return _read_records(path, file, growing=growing)
    except RunDirectoryError:
        raise
    except OSError as error:
        raise RunDirectoryError(f"{path} cannot be read ({error.strerror})") from error


def _read_records(path: Path, file: BinaryIO, *, growing: bool) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = []
    previous = -1
    for number, line in enumerate(iter(lambda: file.readline(MAX_LINE_BYTES + 1), b""), 1):
        if growing and not line.endswith(b"\n") and len(line) <= MAX_LINE_BYTES:
            break
        try:
            record = _parse(line, after=previous)
        except ValueError as error:
            raise RunDirectoryError(
                f"{path}, line {number}: {error}; resume the run, which cuts the log back to its "
                f"last checkpoint, or restore the file"
            ) from None
        previous = record["seq"]
        records.append(record)
    return records


def _encode(record: Mapping[str, object], run_id: str, seq: int) -> bytes:
    taken = sorted(record.keys() & {"run_id", "seq", "nonfinite"})
    if taken:
        raise ValueError(f"a record may not set {', '.join(taken)}: the log does; rename the key")
    values = {key: spell_nonfinite(value) for key, value in record.items()}
    line = {"run_id": run_id, "seq": seq, **values}
    if values != record:
        line["nonfinite"] = True
    text = json_text(line, where="record", max_depth=MAX_DEPTH).encode() + b"\n"
    if len(text) > MAX_LINE_BYTES:
        raise ValueError(f"a record of {len(text)} bytes is longer than {MAX_LINE_BYTES}")
    return text


def spell_nonfinite(value: object) -> object:
    """Return the value with every float that JSON has no word for as text."""
    match value:
        case float() if not math.isfinite(value):
            return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
        case list():
            return [spell_nonfinite(item) for item in value]
        case dict():
            return {key: spell_nonfinite(item) for key, item in value.items()}
        case _:
            return value


def _parse(line: bytes, *, after: int) -> dict[str, Any]:
    if not line.endswith(b"\n"):
        raise ValueError("the line is incomplete")
    record = parse_json(line[:-1], where="the line", max_depth=MAX_DEPTH)
    if not isinstance(record, dict):
        raise ValueError("the line is not a JSON object")  # noqa: TRY004 - the file is at fault
    # type(), because True is an int too.
    if type(record.get("seq")) is not int or not isinstance(record.get("run_id"), str):
        raise ValueError("the line has no run_id or no integer seq")
    if record["seq"] > MAX_SEQ:
        raise ValueError(f"seq {record['seq']} is more lines than any log has")
    if record["seq"] <= after:
        raise ValueError(f"seq {record['seq']} does not follow {after}")
    return record


def _open_regular(path: Path, flags: int, folder: Folder | None = None) -> int:
    # NONBLOCK, because opening a FIFO waits for its other end.
    flags |= os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    try:
        if folder is None:
            file = os.open(path, flags, 0o600)
        else:
            file = os.open(path.name, flags, 0o600, dir_fd=folder.file)
    except OSError as error:
        reason = "a symbolic link" if path.is_symlink() else error.strerror
        raise RunDirectoryError(f"{path} cannot be opened ({reason}); check the path") from error
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise RunDirectoryError(f"{path} is not a regular file; use another run directory")
    return file


def _expect_prefix(path: Path, file: int, position: LogPosition) -> None:
    size = os.fstat(file).st_size
    if size < position.offset:
        raise _mismatch(path, f"it has {size} bytes, and {position.offset} were committed")
    lines, crc32, last = _scan(file, position.offset)
    if last not in {b"", b"\n"}:
        raise _mismatch(path, f"no line ends at byte {position.offset}")
    if (lines, crc32) != (position.lines, position.crc32):
        raise _mismatch(path, f"its first {position.offset} bytes have changed")


def _mismatch(path: Path, reason: str) -> RunDirectoryError:
    return RunDirectoryError(
        f"{path} is not the log that the checkpoint was saved with: {reason}; restore the file, or "
        "set it aside with spherescan resume --repair-metrics"
    )


def _scan(file: int, size: int) -> tuple[int, int, bytes]:
    """Count the lines in the first `size` bytes; return that, their CRC-32 and the last byte."""
    lines, crc32, last = 0, 0, b""
    for begin in range(0, size, _CHUNK_BYTES):
        chunk = os.pread(file, min(_CHUNK_BYTES, size - begin), begin)
        lines += chunk.count(b"\n")
        crc32 = zlib.crc32(chunk, crc32)
        last = chunk[-1:]
    return lines, crc32, last


def _sync_directory(path: Path) -> None:
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
