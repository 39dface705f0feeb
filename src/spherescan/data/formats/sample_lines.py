"""Read samples or tokens line by line, as they come, from a pipe or a terminal.

A line of numbers is one sample, a line of token ids one or more tokens, and an empty line ends the
sequence. What stands on a line is separated by commas if there is one, else by blanks.
"""

import re
from collections.abc import Callable, Iterator
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from spherescan.data.formats.numbers import moderate_values
from spherescan.data.formats.opening import refuse_byte_order_mark
from spherescan.data.formats.quoting import quoted
from spherescan.errors import DataError

# A sample of tens of thousands of channels; what has longer lines is no text of samples.
MAX_LINE_BYTES = 1 << 20

_SOURCE = "standard input"
_BLANKS = " \t"
_TOKEN = re.compile(r"[0-9]{1,10}")

Line = TypeVar("Line")
# At most so many bytes -> a line with its end, or what there is of one; nothing at the end.
ReadLine = Callable[[int], bytes]


def sample_lines(
    read_line: ReadLine, n_channels: int, *, may_be_none: bool = False
) -> Iterator[NDArray[np.float32]]:
    """Yield each line as an array of shape (1, channels); an empty one as (0, channels).

    Numbers are those of `float64_values`.

    Args:
        read_line: `readline` of a binary file.
        n_channels: How many numbers make a sample.
        may_be_none: Whether there may be no sample at all.

    Raises:
        DataError: A line that is something else, is too long or cannot be read, or no sample where
            there must be one; the message names the line, counted from 1.
    """

    def parsed(fields: list[str], place: str) -> NDArray[np.float32]:
        if fields and len(fields) != n_channels:
            raise DataError(
                f"{place}: holds {len(fields)}; wanted as many numbers as the training data has "
                f"channels, {n_channels}; separate them by blanks or commas"
            )
        numbers = moderate_values(fields, lambda index: f"{place}, number {index + 1}")
        return numbers.astype(np.float32).reshape(-1, n_channels)

    return _lines(read_line, parsed, may_be_none=may_be_none)


def token_lines(
    read_line: ReadLine, vocab_size: int, *, may_be_none: bool = False
) -> Iterator[NDArray[np.int64]]:
    """Yield the tokens of each line; of an empty one none.

    Args:
        read_line: `readline` of a binary file.
        vocab_size: Every token must be below it.
        may_be_none: Whether there may be no token at all.

    Raises:
        DataError: As for `sample_lines`, or a token outside the vocabulary.
    """

    def parsed(fields: list[str], place: str) -> NDArray[np.int64]:
        for index, field in enumerate(fields):
            if _TOKEN.fullmatch(field.strip(_BLANKS)) is None:
                raise DataError(
                    f"{place}, token {index + 1}: {quoted(field)}; wanted an integer of 1 to 10 "
                    "ASCII digits; tokenize the text first or correct it"
                )
        tokens = np.array(list(map(int, fields)), dtype=np.int64)
        bad = np.flatnonzero(tokens >= vocab_size)
        if bad.size:
            raise DataError(
                f"{place}, token {bad[0] + 1}: {tokens[bad[0]]} is outside the vocabulary of "
                f"{vocab_size}"
            )
        return tokens

    return _lines(read_line, parsed, may_be_none=may_be_none)


def _lines(
    read_line: ReadLine, parsed: Callable[[list[str], str], Line], *, may_be_none: bool
) -> Iterator[Line]:
    number = n_filled = 0
    while line := _next_line(read_line, number + 1):
        number += 1
        if number == 1:
            refuse_byte_order_mark(line, _SOURCE)
        # One character per byte; what is not ASCII is no number, and the message shows it.
        text = line.decode("latin-1").removesuffix("\n").removesuffix("\r").strip(_BLANKS)
        n_filled += bool(text)
        yield parsed(_fields(text), f"{_SOURCE}: line {number}")
    if not n_filled and not may_be_none:
        raise DataError(f"{_SOURCE}: ended without a sample; write one per line")


def _next_line(read_line: ReadLine, number: int) -> bytes:
    try:
        line = read_line(MAX_LINE_BYTES + 1)
    except OSError as error:
        reason = error.strerror or error
        raise DataError(f"{_SOURCE}: line {number}: cannot be read ({reason})") from error
    if len(line) > MAX_LINE_BYTES:
        raise DataError(
            f"{_SOURCE}: line {number} is longer than {MAX_LINE_BYTES} bytes; wanted one sample "
            "per line"
        )
    return line


def _fields(text: str) -> list[str]:
    return text.split(",") if "," in text else re.findall(r"[^ \t]+", text)
