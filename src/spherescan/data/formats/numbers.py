"""Decimal numbers in text, without what Python takes beyond them: 1_000, inf, other scripts."""

import re
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from spherescan.data.formats.quoting import quoted
from spherescan.errors import DataError

_NUMBER = re.compile(r"[ \t]*+[+-]?[0-9]++(?:\.[0-9]++)?+(?:[eE][+-]?[0-9]++)?+[ \t]*+")
_MISSING = frozenset({"", "?", "nan", "na", "null", "none"})


def float64_values(fields: Sequence[str], place: Callable[[int], str]) -> NDArray[np.float64]:
    """Return the numbers that the fields spell.

    A number is `[+-]digits[.digits][e[+-]digits]` in ASCII, with spaces or tabs around it.

    Args:
        fields: The texts.
        place: Where the field of an index is, for the message: file, line, and so on.

    Raises:
        DataError: A field is missing, is not a number, or is too large for the type.
    """
    if not all(map(_NUMBER.fullmatch, fields)):
        index = next(i for i, field in enumerate(fields) if _NUMBER.fullmatch(field) is None)
        raise DataError(f"{place(index)}: {_complaint(fields[index])}")
    values = np.fromiter(map(float, fields), dtype=np.float64, count=len(fields))
    _refuse_overflow(values, fields, place)
    return values


def moderate_values(fields: Sequence[str], place: Callable[[int], str]) -> NDArray[np.float64]:
    """Return the numbers that the fields spell, none of them too large for float32.

    Otherwise like `float64_values`.
    """
    wide = float64_values(fields, place)
    with np.errstate(over="ignore"):
        _refuse_overflow(wide.astype(np.float32), fields, place)
    return wide


def _refuse_overflow(
    values: NDArray[np.floating], fields: Sequence[str], place: Callable[[int], str]
) -> None:
    finite = np.isfinite(values)
    if not finite.all():
        index = int(np.argmin(finite))
        raise DataError(
            f"{place(index)}: {quoted(fields[index])} is too large for {values.dtype}; wanted at "
            f"most {np.finfo(values.dtype).max:.1e} in magnitude; rescale the data"
        )


def _complaint(field: str) -> str:
    bare = field.strip(" \t")
    if bare.lower() in _MISSING:
        return f"missing value {quoted(bare)}; wanted a number; fill it in or remove the sequence"
    if bare.startswith("("):
        return f"{quoted(bare)} has a time stamp; wanted a plain number; write the values alone"
    return (
        f"{quoted(bare)} is not a number; wanted digits as in -12, 0.5 or 1e-3; correct the value"
    )
