"""Read tokens from text: ASCII `[0-9]{1,10}` separated by ASCII blanks, nothing else.

Python's int also takes 1_000 and digits of other scripts, and NumPy's parser clamps what
overflows; so every byte is looked at here, many at a time.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from spherescan.data.formats.gzipped import unpacked
from spherescan.data.formats.opening import OpenedFile, chunks, opened, refuse_byte_order_mark
from spherescan.data.formats.quoting import quoted
from spherescan.errors import DataError

_MOST_DIGITS = 10
_PIECE = re.compile(rb"[^ \t\r\n]*+")
# The arrays of a chunk take about twenty times its size and should stay in the cache.
_CHUNK_BYTES = 1 << 18


def token_text_parts(path: Path, vocab_size: int | None = None) -> Iterator[NDArray[np.int64]]:
    """Read tokens from a text file, part by part; no part is empty.

    Args:
        path: The file.
        vocab_size: Every token must be below it, when given.

    Raises:
        DataError: There is something else in the file, or no token; the message names line and
            column, both counted from 1, and the piece.
    """
    yield from _parts(path, vocab_size, chunks)


def gzipped_token_text_parts(
    path: Path, vocab_size: int | None = None
) -> Iterator[NDArray[np.int64]]:
    """Read tokens from a text file that gzip has packed, part by part.

    Raises:
        DataError: As for `token_text_parts`, and as for `unpacked`.
    """
    yield from _parts(path, vocab_size, unpacked)


@dataclass(slots=True)
class _Place:
    """Line and column, both from 1, of the next byte to look at."""

    line: int = 1
    column: int = 1

    def move_over(self, text: bytes) -> None:
        if b"\n" in text:
            self.line += text.count(b"\n")
            self.column = len(text) - text.rfind(b"\n")
        else:
            self.column += len(text)


@dataclass(frozen=True, slots=True)
class _Runs:
    """The runs of digits in a chunk that a byte after them, or the end of the text, has ended.

    Attributes:
        tokens: What they spell; of a run that is too long, its last ten digits.
        begins: Where they begin.
        lengths: How many digits they have.
        used: Where the run begins that the next chunk may continue; else the end of the chunk.
    """

    tokens: NDArray[np.int64]
    begins: NDArray[np.int64]
    lengths: NDArray[np.int64]
    used: int


def _parts(
    path: Path, vocab_size: int | None, pieces: Callable[[OpenedFile, int], Iterator[bytes]]
) -> Iterator[NDArray[np.int64]]:
    with opened(path) as file:
        place, rest, n_tokens, at_start = _Place(), b"", 0, True
        for read in chain(pieces(file, _CHUNK_BYTES), [b""]):  # the last one ends the last token
            chunk = rest + read
            if at_start:
                refuse_byte_order_mark(chunk, file.source)
                at_start = len(chunk) < 3
            runs = _runs(chunk, last=not read)
            bad = _first_bad(chunk, runs, vocab_size)
            if bad is not None:
                place.move_over(chunk[:bad])
                piece = _PIECE.match(chunk, bad)
                assert piece is not None  # it also matches nothing
                position = n_tokens + int(np.searchsorted(runs.begins, bad))
                raise DataError(
                    f"{file.source}: line {place.line}, column {place.column}: "
                    f"{_complaint(piece[0], position, vocab_size)}"
                )
            n_tokens += len(runs.tokens)
            if len(runs.tokens):
                yield runs.tokens
            place.move_over(chunk[: runs.used])
            rest = chunk[runs.used :]
        if n_tokens == 0:
            raise DataError(
                f"{file.source}: holds no tokens, only blanks; wanted integers; check the file"
            )


def _runs(chunk: bytes, *, last: bool) -> _Runs:
    digits = np.frombuffer(chunk, dtype=np.uint8) - np.uint8(ord("0"))
    is_digit = np.zeros(len(chunk) + 2, dtype=np.bool_)
    np.less(digits, 10, out=is_digit[1:-1])
    edges = np.flatnonzero(is_digit[1:] != is_digit[:-1])
    begins, ends, used = edges[::2], edges[1::2], len(chunk)
    if not last and len(ends) and ends[-1] == len(chunk):
        used = int(begins[-1])
        begins, ends = begins[:-1], ends[:-1]
    lengths = ends - begins
    tokens = np.zeros(len(ends), dtype=np.int64)
    for place in range(min(int(lengths.max(initial=0)), _MOST_DIGITS)):
        # Of a shorter number this is some byte before it, times zero.
        tokens += digits[ends - 1 - place] * ((lengths > place) * np.int64(10**place))
    return _Runs(tokens, begins, lengths, used)


def _first_bad(chunk: bytes, runs: _Runs, vocab_size: int | None) -> int | None:
    """Return where the first piece begins that is no token of the vocabulary."""
    codes = np.frombuffer(chunk, dtype=np.uint8)
    wrong = codes - np.uint8(ord("0")) > 9
    for blank in b" \n\r\t":
        wrong &= codes != blank
    candidates = [int(wrong.argmax())] if wrong.any() else []
    bad = runs.lengths > _MOST_DIGITS
    if vocab_size is not None:
        bad |= runs.tokens >= vocab_size
    if bad.any():
        candidates.append(int(runs.begins[bad.argmax()]))
    if len(chunk) - runs.used > _MOST_DIGITS:
        candidates.append(runs.used)
    if not candidates:
        return None
    first = min(candidates)
    return 1 + max(chunk.rfind(blank, 0, first) for blank in (b" ", b"\n", b"\r", b"\t"))


def _complaint(piece: bytes, position: int, vocab_size: int | None) -> str:
    if vocab_size is not None and piece.isdigit() and len(piece) <= _MOST_DIGITS:
        return (
            f"token {int(piece)} at position {position} is outside the vocabulary of {vocab_size}; "
            "raise the vocabulary size or correct the file"
        )
    return (
        f"{quoted(piece)}; wanted an integer of 1 to {_MOST_DIGITS} ASCII digits between blanks; "
        "tokenize the text first or correct it"
    )
