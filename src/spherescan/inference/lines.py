"""Answers to samples that come line by line."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spherescan.inference.stream import Prediction, Stream

# Numbers that wait, at most, until an answer is wanted: many samples at once cost far less each.
_MOST_WAITING = 1 << 16


def answer_lines(
    stream: Stream, lines: Iterable[NDArray[Any]], *, every: int
) -> Iterator[Prediction | None]:
    """Yield a prediction after every so many lines and after the last of a sequence.

    Args:
        stream: What is asked; it has read all lines when the iteration is over.
        lines: One or more samples each; one without any ends the sequence.
        every: Lines from one answer to the next, at least 1.

    Yields:
        Predictions, and None where a sequence has ended.

    Raises:
        DataError: As `Stream.push` does.
    """
    waiting: list[NDArray[Any]] = []
    n_lines = n_waiting = 0

    def push() -> Prediction:
        nonlocal n_waiting
        prediction = stream.push(np.concatenate(waiting) if waiting else [])
        waiting.clear()
        n_waiting = 0
        return prediction

    for line in lines:
        if len(line):
            waiting.append(line)
            n_lines, n_waiting = n_lines + 1, n_waiting + line.size
            if n_lines % every == 0:
                yield push()
            elif n_waiting >= _MOST_WAITING:
                push()
            continue
        if n_lines % every:
            yield push()
        n_lines = 0
        if stream.n_steps:
            stream.reset()
            yield None
    if n_lines % every:
        yield push()
