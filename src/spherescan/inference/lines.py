"""Answers to samples that come line by line."""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spherescan.errors import DataError
from spherescan.inference.stream import Prediction, Stream

# Numbers that wait, at most, until an answer is wanted: many samples at once cost far less each.
_MOST_WAITING = 1 << 16


class _Waiting:
    """Lines that have been read and not pushed."""

    def __init__(self, stream: Stream) -> None:
        self._stream, self._chunks, self._size = stream, list[NDArray[Any]](), 0

    def add(self, line: NDArray[Any]) -> bool:
        """Take a line; return whether there are too many."""
        self._chunks.append(line)
        self._size += line.size
        return self._size >= _MOST_WAITING

    def push(self) -> Prediction:
        """Push them all; of those in which one is wrong, the ones before it."""
        chunks, self._chunks, self._size = self._chunks, [], 0
        try:
            return self._stream.push(np.concatenate(chunks) if chunks else [])
        except DataError:
            if len(chunks) < 2:
                raise
            return [self._stream.push(chunk) for chunk in chunks][-1]

    def rescue(self) -> None:
        """Push what can be pushed."""
        if self._chunks:
            with suppress(DataError):
                self.push()


def answer_lines(
    stream: Stream, lines: Iterable[NDArray[Any]], *, every: int
) -> Iterator[Prediction | None]:
    """Yield a prediction after every so many lines and after the last of a sequence.

    Args:
        stream: What is asked; it has read all lines when the iteration is over, or those before
            what ended it.
        lines: One or more samples each; one without any ends the sequence.
        every: Lines from one answer to the next, at least 1.

    Yields:
        Predictions, and None where a sequence has ended.

    Raises:
        DataError: As `Stream.push` does.
    """
    waiting = _Waiting(stream)
    try:
        yield from _answers(stream, waiting, lines, every=every)
    except BaseException:
        waiting.rescue()
        raise


def _answers(
    stream: Stream, waiting: _Waiting, lines: Iterable[NDArray[Any]], *, every: int
) -> Iterator[Prediction | None]:
    n_lines = 0
    for line in lines:
        if len(line):
            n_lines += 1
            many = waiting.add(line)
            if n_lines % every == 0:
                yield waiting.push()
            elif many:
                waiting.push()
            continue
        if n_lines % every:
            yield waiting.push()
        n_lines = 0
        if stream.n_steps:
            stream.reset()
            yield None
    if n_lines % every:
        yield waiting.push()
