"""Read `.npz` files, as `numpy.savez` or `numpy.savez_compressed` writes them.

    numpy.savez("train.npz", x=x, lengths=lengths, y=y)

`x`: floats of shape (sequences, channels, length), or (sequences, length) for one channel.

`lengths`: optional integers; sequence i is `x[i, ..., :lengths[i]]`, the rest is padding.

`y`: optional; texts or integers are class labels, floats are regression targets.
"""

import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spherescan.data.formats.array_bytes import read_array
from spherescan.data.formats.npy import split_sequences
from spherescan.data.formats.opening import OpenedFile, opened
from spherescan.data.formats.quoting import listed, quoted
from spherescan.data.table import SeriesTable
from spherescan.errors import DataError

_KEYS = ("x", "lengths", "y")
# Real data deflate by 2 to 10, constant data by up to 1000; small members may do as they like.
_MAX_RATIO = 200
_RATIO_FREE_BYTES = 64 << 20
# What zipfile and zlib raise for a damaged archive.
_DAMAGED = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    NotImplementedError,
    OverflowError,
    RuntimeError,
    ValueError,
)


def read_npz(path: Path) -> SeriesTable:
    """Read a `.npz` file with the arrays described above.

    Raises:
        DataError: The file is not valid, has other arrays, or would unpack to far more than its
            size.
    """
    with opened(path) as file:
        arrays = _arrays(file)
        if "x" not in arrays:
            raise DataError(
                f"{file.source}: has no array 'x'; wanted {listed(_KEYS)}, the last two optional; "
                "save it as numpy.savez(file, x=...)"
            )
        x = arrays["x"]
        series, rounding = split_sequences(x, arrays.get("lengths"), f"{file.source}: 'x'")
        labels, targets = _outcomes(arrays.get("y"), len(x), f"{file.source}: 'y'")
        return SeriesTable(series, labels, targets, None, file.source, rounding=rounding)


def _arrays(file: OpenedFile) -> dict[str, NDArray[Any]]:
    arrays: dict[str, NDArray[Any]] = {}
    try:
        with zipfile.ZipFile(file.stream) as archive:
            for member in archive.infolist():
                name = _checked_name(member, arrays, file.source)
                what = f"{file.source}: {name!r}"
                _check_member(member, file.size, what)
                with archive.open(member) as stream:
                    arrays[name] = read_array(stream.read, member.file_size, what)
    except DataError:
        raise
    except _DAMAGED as error:
        raise DataError(
            f"{file.source}: not a readable .npz archive ({quoted(str(error))}); wanted what "
            "numpy.savez writes; copy or save it again"
        ) from error
    return arrays


def _checked_name(member: zipfile.ZipInfo, arrays: dict[str, NDArray[Any]], source: str) -> str:
    name = member.filename.removesuffix(".npy")
    if name not in _KEYS or name == member.filename:
        raise DataError(
            f"{source}: holds {quoted(member.filename)}; wanted only arrays {listed(_KEYS)}; save "
            "it again without the others"
        )
    if name in arrays:
        raise DataError(f"{source}: holds {name!r} twice; wanted it once; save the file again")
    return name


def _check_member(member: zipfile.ZipInfo, archive_bytes: int, what: str) -> None:
    if (
        member.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}
        or member.flag_bits & 1
    ):
        raise DataError(
            f"{what}: compressed by method {member.compress_type} or encrypted; wanted stored or "
            "deflated; save it with numpy.savez_compressed"
        )
    # The archive's size bounds the packed size, which the archive itself could overstate.
    packed = min(member.compress_size, archive_bytes)
    if member.file_size > _RATIO_FREE_BYTES and member.file_size > _MAX_RATIO * packed:
        raise DataError(
            f"{what}: unpacks from {packed} to {member.file_size} bytes; wanted a ratio of at most "
            f"{_MAX_RATIO}, as of real data; save it with numpy.savez, uncompressed"
        )


def _outcomes(
    y: NDArray[Any] | None, count: int, what: str
) -> tuple[tuple[str, ...] | None, NDArray[np.float64] | None]:
    if y is None:
        return None, None
    if y.shape != (count,):
        raise DataError(
            f"{what}: has shape {y.shape}; wanted ({count},), one per sequence; reshape it"
        )
    if y.dtype.kind == "f":
        return None, y.astype(np.float64)
    if y.dtype.kind in "iu":
        return tuple(str(label) for label in y.tolist()), None
    if y.dtype.kind == "U":
        return _texts(y, what), None
    raise DataError(
        f"{what}: is {y.dtype}; wanted texts, integers or floats; convert it with .astype"
    )


def _texts(y: NDArray[Any], what: str) -> tuple[str, ...]:
    # NumPy notices only when it makes a str, and fails then.
    points = np.ascontiguousarray(y).view(np.dtype(np.uint32).newbyteorder(y.dtype.byteorder))
    if ((points > 0x10FFFF) | ((points >= 0xD800) & (points <= 0xDFFF))).any():
        raise DataError(f"{what}: a label is not valid Unicode; the file is damaged; save it again")
    return tuple(str(label) for label in y.tolist())
