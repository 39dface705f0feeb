"""One reader per file format. A new format is one file here and one line in a dict below.

Readers are strict: what they cannot read exactly as it was meant they refuse with a DataError that
names the file and the place. Lines and columns of text count from 1; sequences, channels and
positions, which are indices of arrays, from 0.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spherescan.data.formats.long_csv import read_long_csv
from spherescan.data.formats.npy import npy_token_parts, read_npy_series
from spherescan.data.formats.npz import read_npz
from spherescan.data.formats.quoting import quoted, source_name
from spherescan.data.formats.token_text import gzipped_token_text_parts, token_text_parts
from spherescan.data.formats.ts import read_ts
from spherescan.data.table import SeriesTable
from spherescan.errors import DataError

__all__ = ["SERIES_READERS", "TOKEN_READERS", "read_series", "read_tokens", "token_parts"]

SERIES_READERS: dict[str, Callable[[Path], SeriesTable]] = {
    ".csv": read_long_csv,
    ".npy": read_npy_series,
    ".npz": read_npz,
    ".ts": read_ts,
}

# Part by part, so that a text may be larger than memory; the second argument is the vocabulary.
TOKEN_READERS: dict[str, Callable[[Path, int | None], Iterator[NDArray[np.int64]]]] = {
    ".npy": npy_token_parts,
    ".txt": token_text_parts,
    ".txt.gz": gzipped_token_text_parts,
}


def read_series(path: Path) -> SeriesTable:
    """Read sequences with the reader for the suffix of the file.

    Raises:
        DataError: The suffix is unknown, or the file is not valid.
    """
    return SERIES_READERS[_suffix(path, SERIES_READERS, "sequences")](path)


def token_parts(path: Path, vocab_size: int | None = None) -> Iterator[NDArray[np.int64]]:
    """Read tokens, each at least 0, part by part with the reader for the suffix of the file.

    Args:
        path: The file.
        vocab_size: Every token must be below it, when given.

    Raises:
        DataError: The suffix is unknown, the file is not valid, or a token is outside the
            vocabulary; the message names the place.
    """
    yield from TOKEN_READERS[token_suffix(path)](path, vocab_size)


def read_tokens(path: Path, vocab_size: int | None = None) -> NDArray[np.int64]:
    """Read all tokens of a file as `token_parts` does."""
    return np.concatenate(list(token_parts(path, vocab_size)))


def token_suffix(path: Path) -> str:
    """Return the key of `TOKEN_READERS` that a file name ends in.

    Raises:
        DataError: None of them.
    """
    return _suffix(path, TOKEN_READERS, "tokens")


def _suffix(path: Path, readers: Mapping[str, Callable[..., Any]], content: str) -> str:
    name = path.name.lower()
    for suffix in readers:
        if name.endswith(suffix) and name != suffix:
            return suffix
    if path.is_dir():
        raise DataError(
            f"{source_name(path)}: is a folder; wanted a file of {content}, one of "
            f"{', '.join(sorted(readers))}; name a file in it, or join its files into one"
        )
    raise DataError(
        f"{source_name(path)}: no reader of {content} for files that end in "
        f"{quoted(path.suffix)}; wanted one of {', '.join(sorted(readers))}; rename or "
        "convert the file"
    )
