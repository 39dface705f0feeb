"""Read one array in NumPy's .npy layout from an untrusted stream: its size before any allocation.

The header is matched against the one form that NumPy and its ports write, not evaluated.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spherescan.data.formats import opening
from spherescan.data.formats.quoting import quoted
from spherescan.errors import DataError

_MAGIC = b"\x93NUMPY"
_LENGTH_BYTES = {1: 2, 2: 4, 3: 4}
# As in NumPy: a header of plain arrays has about 128 bytes.
_MAX_HEADER_BYTES = 10_000
_MAX_RANK = 4
_HEADER = re.compile(
    r"\{ *+['\"]descr['\"] *+: *+['\"](?P<descr>[^'\"]{1,40}+)['\"] *+, *+"
    r"['\"]fortran_order['\"] *+: *+(?P<fortran>True|False) *+, *+"
    r"['\"]shape['\"] *+: *+\((?P<shape>[0-9, ]*+)\) *+,?+ *+\}[ \n]*+"
)
_SHAPE = re.compile(r" *+(?:[0-9]{1,18}+ *+, *+)*+(?:[0-9]{1,18}+ *+)?+")
_DTYPE = re.compile(r"[<>|=]?(?:f[248]|[iu][1248]|b1|[US][1-9][0-9]{0,5})")


@dataclass(frozen=True, slots=True)
class _Header:
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    fortran_order: bool

    @property
    def n_bytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


def read_array(read: Callable[[int], bytes], size: int, what: str) -> NDArray[Any]:
    """Read a numeric, boolean or text array; it may be read-only.

    Args:
        read: Returns as many bytes as asked for, or all that are left.
        size: How many bytes there are said to be, header and data.
        what: The file, and the array in it, for messages.

    Raises:
        DataError: Not an array, an unsupported type, too large, or another size than declared.
    """
    header, header_bytes = _read_header(read, what)
    if header.n_bytes > opening.MAX_BYTES:
        raise DataError(
            f"{what}: declares shape {header.shape} of {header.dtype}, {header.n_bytes} bytes; "
            f"wanted at most {opening.MAX_BYTES}; split it into several files"
        )
    if header_bytes + header.n_bytes != size:
        raise DataError(
            f"{what}: declares shape {header.shape} of {header.dtype}, {header.n_bytes} bytes, "
            f"but {size - header_bytes} follow the header; wanted them equal; the file is cut or "
            "damaged"
        )
    data = _take(read, header.n_bytes, what)
    # The last read also makes a zip member compare its checksum.
    if read(1):
        raise DataError(f"{what}: bytes after the array; wanted none; the file is damaged")
    flat: NDArray[Any] = np.frombuffer(data, dtype=header.dtype)
    # Fortran order is C order with the axes reversed.
    return (
        flat.reshape(header.shape[::-1]).T if header.fortran_order else flat.reshape(header.shape)
    )


def _take(read: Callable[[int], bytes], count: int, what: str) -> bytes:
    data = read(count)
    if len(data) != count:
        raise DataError(
            f"{what}: ends after {len(data)} of {count} bytes; the file is cut; copy it again"
        )
    return data


def _read_header(read: Callable[[int], bytes], what: str) -> tuple[_Header, int]:
    start = _take(read, 8, what)
    if start[:6] != _MAGIC:
        raise DataError(
            f"{what}: begins with {quoted(start[:6])}; wanted an array written by numpy.save; "
            "convert it"
        )
    if start[6] not in _LENGTH_BYTES or start[7]:
        raise DataError(
            f"{what}: .npy version {start[6]}.{start[7]}; wanted 1.0, 2.0 or 3.0; save it with "
            "NumPy"
        )
    prefix = _take(read, _LENGTH_BYTES[start[6]], what)
    length = int.from_bytes(prefix, "little")
    if length > _MAX_HEADER_BYTES:
        raise DataError(
            f"{what}: header of {length} bytes; wanted at most {_MAX_HEADER_BYTES}; save a plain "
            "array"
        )
    text = _take(read, length, what).decode("latin-1")
    return _parsed(text, what), len(start) + len(prefix) + length


def _parsed(text: str, what: str) -> _Header:
    match = _HEADER.fullmatch(text)
    if match is None or not _SHAPE.fullmatch(match["shape"]):
        raise DataError(
            f"{what}: header {quoted(text)} is damaged or describes a structured array; wanted a "
            "plain array of numbers or text; save it again with numpy.save"
        )
    descr = match["descr"]
    if "O" in descr:
        raise DataError(
            f"{what}: is an object array, which needs pickle to read and can run code; wanted "
            "numbers or text; save ragged data padded, with 'lengths'"
        )
    if not _DTYPE.fullmatch(descr):
        raise DataError(
            f"{what}: has type {quoted(descr)}; wanted float16-64, int8-64, uint8-64, bool or "
            "text; convert it with .astype"
        )
    shape = tuple(int(piece) for piece in match["shape"].split(",") if piece.strip())
    if len(shape) > _MAX_RANK:
        raise DataError(f"{what}: has {len(shape)} axes; wanted at most {_MAX_RANK}; reshape it")
    if 0 in shape:
        raise DataError(f"{what}: has shape {shape}; wanted no axis of length 0; check its writer")
    return _Header(np.dtype(descr), shape, match["fortran"] == "True")
