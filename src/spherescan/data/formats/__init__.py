"""One reader per file format. A new format is one file here and one line in a dict below.

Readers are strict: what they cannot read exactly as it was meant they refuse with a DataError that
names the file and the place. Lines and columns of text count from 1; sequences, channels and
positions, which are indices of arrays, from 0.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from spherescan.data.formats.long_csv import read_long_csv
from spherescan.data.formats.npy import read_npy_series, read_npy_tokens
from spherescan.data.formats.npz import read_npz
from spherescan.data.formats.quoting import quoted, source_name
from spherescan.data.formats.token_text import read_token_text
from spherescan.data.formats.ts import read_ts
from spherescan.data.table import SeriesTable
from spherescan.errors import DataError

__all__ = ["SERIES_READERS", "TOKEN_READERS", "read_series", "read_tokens"]

SERIES_READERS: dict[str, Callable[[Path], SeriesTable]] = {
    ".csv": read_long_csv,
    ".npy": read_npy_series,
    ".npz": read_npz,
    ".ts": read_ts,
}

TOKEN_READERS: dict[str, Callable[[Path], NDArray[np.int64]]] = {
    ".npy": read_npy_tokens,
    ".txt": read_token_text,
}

_Content = TypeVar("_Content")


def read_series(path: Path) -> SeriesTable:
    """Read sequences with the reader for the suffix of the file.

    Raises:
        DataError: The suffix is unknown, or the file is not valid.
    """
    return _reader(path, SERIES_READERS, "sequences")(path)


def read_tokens(path: Path) -> NDArray[np.int64]:
    """Read tokens, each at least 0, with the reader for the suffix of the file.

    Raises:
        DataError: The suffix is unknown, or the file is not valid.
    """
    return _reader(path, TOKEN_READERS, "tokens")(path)


def _reader(
    path: Path, readers: Mapping[str, Callable[[Path], _Content]], content: str
) -> Callable[[Path], _Content]:
    suffix = path.suffix.lower()
    if suffix not in readers:
        raise DataError(
            f"{source_name(path)}: no reader of {content} for files that end in "
            f"{quoted(path.suffix)}; wanted one of {', '.join(sorted(readers))}; rename or "
            "convert the file"
        )
    return readers[suffix]
