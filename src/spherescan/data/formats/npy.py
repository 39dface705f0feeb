"""Read `.npy` files: a float array of unlabelled sequences, or a 1-D integer array of tokens."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spherescan.data.formats.array_bytes import read_array
from spherescan.data.formats.opening import opened
from spherescan.data.rounding import Narrowing, Rounding
from spherescan.data.table import SeriesTable
from spherescan.errors import DataError


def read_npy_series(path: Path) -> SeriesTable:
    """Read a float array of shape (sequences, channels, length) or (sequences, length), unlabelled.

    Raises:
        DataError: The file is not valid, or the array has another type or shape.
    """
    with opened(path) as file:
        x = read_array(file.stream.read, file.size, file.source)
        series, rounding = split_sequences(x, None, file.source)
        return SeriesTable(series, None, None, None, file.source, rounding=rounding)


def npy_token_parts(path: Path, vocab_size: int | None = None) -> Iterator[NDArray[np.int64]]:
    """Read a 1-D integer array of tokens, as one part.

    Args:
        path: The file.
        vocab_size: Every token must be below it, when given.

    Raises:
        DataError: The file is not valid, the array has another type or shape, or a token is
            negative, above 2**63 - 1 or outside the vocabulary.
    """
    with opened(path) as file:
        array = read_array(file.stream.read, file.size, file.source)
        if array.dtype.kind not in "iu" or array.ndim != 1:
            raise DataError(
                f"{file.source}: is {array.dtype} of shape {array.shape}; wanted a 1-D array of "
                "integers; convert it with .ravel().astype('int64')"
            )
        # Above 2**63 - 1 an unsigned value wraps around to a negative one: one check finds both.
        tokens = array.astype(np.int64)
        bad = np.flatnonzero(tokens < 0)
        if bad.size:
            raise DataError(
                f"{file.source}: token {array[bad[0]]} at position {bad[0]}; wanted 0 to 2**63 - "
                "1; renumber the tokens"
            )
        if vocab_size is not None and (outside := tokens >= vocab_size).any():
            position = int(outside.argmax())
            raise DataError(
                f"{file.source}: token {tokens[position]} at position {position} is outside the "
                f"vocabulary of {vocab_size}; raise the vocabulary size or correct the file"
            )
        yield tokens


def split_sequences(
    x: NDArray[Any], lengths: NDArray[Any] | None, what: str
) -> tuple[tuple[NDArray[np.float32], ...], Rounding | None]:
    """Cut a padded array into sequences of shape (length, channels).

    Args:
        x: Floats of shape (sequences, channels, length), or (sequences, length) for one channel.
        lengths: How many positions of each sequence are data; the rest is padding at the end. None
            for all of them.
        what: The file, and the array in it, for messages.

    Returns:
        The sequences, and what became of float64; None where the file has no better than float32.

    Raises:
        DataError: Wrong type or shape, or a length out of range.
    """
    if x.dtype.kind != "f":
        raise DataError(f"{what}: is {x.dtype}; wanted floats; convert it with .astype('float32')")
    if x.ndim not in {2, 3}:
        raise DataError(
            f"{what}: has shape {x.shape}; wanted (sequences, channels, length) or (sequences, "
            "length); reshape it"
        )
    by_channel = x if x.ndim == 3 else x[:, None, :]
    ends = [x.shape[-1]] * len(x) if lengths is None else _checked_lengths(lengths, x, what)
    parts = (values[:, :end].T for values, end in zip(by_channel, ends, strict=True))
    if x.dtype.itemsize > np.dtype(np.float32).itemsize:
        narrowing = Narrowing()
        return tuple(map(narrowing.narrowed, parts)), narrowing.rounding()
    # A copy even where a view would do: it is writable, as torch wants it, and frees the padding.
    return tuple(np.array(values, dtype=np.float32, order="C") for values in parts), None


def _checked_lengths(lengths: NDArray[Any], x: NDArray[Any], what: str) -> list[int]:
    if lengths.dtype.kind not in "iu" or lengths.shape != (len(x),):
        raise DataError(
            f"{what}: 'lengths' is {lengths.dtype} of shape {lengths.shape}; wanted {len(x)} "
            "integers, one per sequence"
        )
    bad = np.flatnonzero((lengths < 1) | (lengths > x.shape[-1]))
    if bad.size:
        raise DataError(
            f"{what}: the length of sequence {bad[0]} is {lengths[bad[0]]}; wanted 1 to "
            f"{x.shape[-1]}, the last axis; correct 'lengths'"
        )
    result: list[int] = lengths.tolist()
    return result
