"""Open a data file: a regular file, named directly, not empty; and text that is text."""

import errno
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import BinaryIO

from spherescan.data.formats.quoting import source_name
from spherescan.errors import DataError

# The largest file, and the largest array a file may declare: the design's cap per shard.
MAX_BYTES = 8 << 30

_BYTE_ORDER_MARKS = (b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")


@dataclass(frozen=True, slots=True)
class OpenedFile:
    """Hold an open file, its size in bytes, and its name for messages."""

    stream: BinaryIO
    size: int
    source: str


@contextmanager
def opened(path: Path) -> Iterator[OpenedFile]:
    """Open a regular file for reading; an I/O error in the body becomes a DataError too.

    Raises:
        DataError: The file is missing, empty, too large, unreadable, or not a regular file.
            Symbolic links are refused: what they point to can change between two readings.
    """
    source = source_name(path)
    try:
        with ExitStack() as stack:
            descriptor = open_regular(path)
            stack.callback(os.close, descriptor)
            size = _checked_size(descriptor, source)
            stream = stack.enter_context(os.fdopen(descriptor, "rb", closefd=False))
            yield OpenedFile(stream, size, source)
    except OSError as error:
        raise DataError(
            f"{source}: cannot be read ({error.strerror or error}); wanted a readable regular "
            "file; check the path and its permissions"
        ) from error


def read_text(path: Path) -> str:
    """Return the text of a UTF-8 (or ASCII) file, line ends as they are.

    Raises:
        DataError: As for `opened`, or the bytes are not UTF-8, hold a NUL, or begin with a byte
            order mark; the message names byte offset and line.
    """
    with opened(path) as file:
        data = b"".join(chunks(file, file.size))
        refuse_byte_order_mark(data, file.source)
        nul = data.find(b"\0")
        if nul >= 0:
            raise DataError(
                f"{file.source}: NUL byte at offset {nul}, line {_line(data, nul)}; wanted text; "
                "is it a binary or UTF-16 file?"
            )
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise DataError(
                f"{file.source}: byte 0x{data[error.start]:02x} at offset {error.start}, line "
                f"{_line(data, error.start)} is not UTF-8; wanted ASCII or UTF-8; convert the "
                "file with iconv"
            ) from error


def chunks(file: OpenedFile, longest: int) -> Iterator[bytes]:
    """Yield the bytes of the file in pieces of at most `longest`.

    Raises:
        DataError: After the last piece, when the size is not that at opening: something writes.
    """
    left = file.size
    while data := file.stream.read(min(left, longest)):
        left -= len(data)
        yield data
    if left or file.stream.read(1):
        raise DataError(
            f"{file.source}: is no longer of {file.size} bytes, as when it was opened; wanted a "
            "file that nobody writes; read it again later"
        )


def refuse_byte_order_mark(data: bytes, source: str) -> None:
    """Raise DataError where the data begin with a byte order mark of UTF-8 or UTF-16."""
    if data.startswith(_BYTE_ORDER_MARKS):
        raise DataError(
            f"{source}: byte order mark (BOM) at offset 0, line 1; wanted ASCII or UTF-8 without "
            "one; save the file as plain UTF-8"
        )


def open_regular(path: Path) -> int:
    """Open a regular file, never through a link in its last part, and return the descriptor.

    Raises:
        DataError: It is missing, a link, a directory, a FIFO or a device.
        OSError: It cannot be opened for another reason.
    """
    source = source_name(path)
    try:
        # O_NONBLOCK: opening a FIFO must not wait for a writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise DataError(f"{source}: no such file; wanted a regular file; check the path") from error
    except ValueError as error:
        raise DataError(f"{source}: not a file name ({error}); check the path") from error
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise DataError(
            f"{source}: is a symbolic link; wanted a regular file; name the file it points to"
        ) from error
    mode = os.fstat(descriptor).st_mode
    if not S_ISREG(mode):
        os.close(descriptor)
        kind = "a directory" if S_ISDIR(mode) else "a FIFO or device"
        raise DataError(f"{source}: is {kind}; wanted a regular file; name a file")
    return descriptor


def _checked_size(descriptor: int, source: str) -> int:
    size = os.fstat(descriptor).st_size
    if size == 0:
        raise DataError(f"{source}: is empty; wanted data; was it written completely?")
    if size > MAX_BYTES:
        raise DataError(
            f"{source}: has {size} bytes; wanted at most {MAX_BYTES}; split it into several files"
        )
    return size


def _line(data: bytes, offset: int) -> int:
    return data.count(b"\n", 0, offset) + 1
