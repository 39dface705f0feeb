"""Read `.ts` files, the format of the UCR/UEA archive and of aeon and sktime.

One sequence per line: channels separated by colons, values by commas, and as the last field the
class label or regression target, when the header says there is one:

    @problemName Steps
    @univariate false
    @classLabel true walk run
    @data
    0.1,0.2,0.3:9.7,9.8,9.6:walk
    0.5,0.9:9.1,8.8:run

Lengths may differ between sequences, not between the channels of one. Empty lines and lines that
begin with `#` (or `%`, in files that once were ARFF) are skipped. Missing values and time stamps
are refused. What the header declares about the data is checked against them, since other software
trusts it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from spherescan.data.formats.numbers import float64_values, moderate_values
from spherescan.data.formats.opening import read_text
from spherescan.data.formats.quoting import listed, quoted, source_name
from spherescan.data.formats.ts_header import COMMENT_MARKS, TsHeader, read_ts_header
from spherescan.data.rounding import Narrowing
from spherescan.data.table import SeriesTable
from spherescan.errors import DataError


@dataclass(frozen=True, slots=True)
class _Line:
    channels: list[str]
    length: int  # of the first channel
    outcome: str  # the label or target; empty where the header declares neither
    place: str


def read_ts(path: Path) -> SeriesTable:
    """Read a `.ts` file.

    Raises:
        DataError: The file is not valid; the message names line, channel and position, the last two
            counted from 0.
    """
    source = source_name(path)
    lines = read_text(path).split("\n")
    header = read_ts_header(lines, source)
    known = frozenset(header.class_names or ())
    narrowing = Narrowing()
    series: list[NDArray[np.float32]] = []
    labels: list[str] = []
    targets: list[float] = []
    for line in _checked_lines(lines, header, source):
        series.append(narrowing.narrowed(_values(line)))
        if header.has_targets:
            targets.append(_target(line))
        elif header.class_names is not None:
            labels.append(_label(line, known))
    return SeriesTable(
        series=tuple(series),
        labels=tuple(labels) if header.class_names is not None else None,
        targets=np.array(targets, dtype=np.float64) if header.has_targets else None,
        class_names=header.class_names,
        source=source,
        rounding=narrowing.rounding(),
    )


def _checked_lines(lines: list[str], header: TsHeader, source: str) -> Iterator[_Line]:
    first: _Line | None = None
    for index in range(header.n_lines, len(lines)):
        text = lines[index].strip(" \t\r")
        if not text or text.startswith(COMMENT_MARKS):
            continue
        line = _split(text, header, f"{source}: line {index + 1}")
        first = first or line
        _check(line, first, header)
        yield line


def _split(text: str, header: TsHeader, place: str) -> _Line:
    fields = text.split(":")
    outcome = ""
    if header.has_targets or header.class_names is not None:
        outcome = fields.pop().strip(" \t")
        if not fields:
            raise DataError(
                f"{place}: has no colon; wanted channels, a colon, and the label or target that "
                "the header declares; add it"
            )
    return _Line(fields, fields[0].count(",") + 1, outcome, place)


def _check(line: _Line, first: _Line, header: TsHeader) -> None:
    """Compare a line with the header, and with the first line where the header is silent."""
    n_channels = header.dimensions or (1 if header.univariate else len(first.channels))
    if header.univariate is False and n_channels == 1:
        raise DataError(
            f"{line.place}: has 1 channel; wanted 2 or more, by @univariate false; correct the "
            "header"
        )
    if len(line.channels) != n_channels:
        raise DataError(
            f"{line.place}: has {len(line.channels)} channels; wanted {n_channels}, by the header "
            "or the first sequence; correct @univariate, @dimensions or the line"
        )
    lengths = [channel.count(",") + 1 for channel in line.channels]
    odd = next((length for length in lengths if length != line.length), None)
    if odd is not None:
        raise DataError(
            f"{line.place}: channel {lengths.index(odd)} has {odd} values where channel 0 has "
            f"{line.length}; wanted one length in all channels of a sequence; correct the line"
        )
    length = header.series_length or (first.length if header.equal_length else line.length)
    if line.length != length:
        raise DataError(
            f"{line.place}: has {line.length} values per channel; wanted {length}, by "
            "@seriesLength or @equalLength and the first sequence; correct the header or the line"
        )


def _values(line: _Line) -> NDArray[np.float64]:
    def place(index: int) -> str:
        channel, position = divmod(index, line.length)
        return f"{line.place}, channel {channel}, position {position}"

    # All channels at once: one conversion is cheaper than many.
    flat = moderate_values(",".join(line.channels).split(","), place)
    return flat.reshape(len(line.channels), line.length).T


def _label(line: _Line, known: frozenset[str]) -> str:
    if line.outcome not in known:
        raise DataError(
            f"{line.place}: label {quoted(line.outcome)} is not declared; wanted one of "
            f"{listed(sorted(known))}; declare it in @classLabel or correct it"
        )
    return line.outcome


def _target(line: _Line) -> float:
    return float(float64_values([line.outcome], lambda _: f"{line.place}, target")[0])
