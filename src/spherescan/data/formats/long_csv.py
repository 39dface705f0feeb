"""Read `.csv` files in long form: one row per time step.

    case,label,acc_x,acc_y
    a,walk,0.1,9.7
    a,walk,0.2,9.8
    b,run,0.5,9.1

The first line names the columns. The first column, `case`, is the id of the sequence: consecutive
rows with one id form one sequence. A column `label` (text) or `target` (number), the same in all
rows of a case, is what to learn; it may be left out, or empty in all rows. Every other column is a
channel, in order. Separator is the comma, double quotes as in Excel; empty lines are skipped, other
empty cells refused.
"""

import csv
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from spherescan.data.formats.numbers import float64_values, moderate_values
from spherescan.data.formats.opening import read_text
from spherescan.data.formats.quoting import quoted, source_name
from spherescan.data.rounding import Narrowing
from spherescan.data.table import SeriesTable
from spherescan.errors import DataError

_SPECIAL = frozenset({"case", "label", "target"})
# What people call those columns elsewhere.
_MEANT = {"class": "label", "classes": "label", "labels": "label", "targets": "target"}


@dataclass(frozen=True, slots=True)
class _Columns:
    names: tuple[str, ...]
    channels: tuple[int, ...]
    outcome: int | None  # the column of the label or target


@dataclass(frozen=True, slots=True)
class _Case:
    lines: list[int]
    rows: list[list[str]]
    source: str


def read_long_csv(path: Path) -> SeriesTable:
    """Read a `.csv` file in the form above.

    Raises:
        DataError: The file is not valid; the message names the line and the column.
    """
    source = source_name(path)
    rows = _rows(read_text(path), source)
    columns = _columns(next(rows, None), source)
    narrowing = Narrowing()
    series: list[NDArray[np.float32]] = []
    outcomes: list[str] = []
    lines: list[int] = []
    case_names: list[str] = []
    name = "" if columns.outcome is None else columns.names[columns.outcome]
    for case in _cases(rows, columns, source):
        series.append(narrowing.narrowed(_values(case, columns)))
        case_names.append(case.rows[0][0])
        lines.append(case.lines[0])
        if columns.outcome is not None:
            outcomes.append(_constant(case, columns.outcome, name))
    _expect_all_or_none(outcomes, lines, source, name)
    known = any(outcomes)
    targets: NDArray[np.float64] | None = None
    if known and name == "target":
        targets = float64_values(
            outcomes, lambda index: f"{source}: line {lines[index]}, column 'target'"
        )
    return SeriesTable(
        series=tuple(series),
        labels=tuple(outcomes) if known and name == "label" else None,
        targets=targets,
        class_names=None,
        source=source,
        channel_names=tuple(columns.names[channel] for channel in columns.channels),
        case_names=tuple(case_names),
        rounding=narrowing.rounding(),
    )


def _rows(text: str, source: str) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        for row in reader:
            if row:
                yield reader.line_num, row
    except csv.Error as error:
        raise DataError(
            f"{source}: line {reader.line_num}: {error}; wanted comma-separated values, quotes "
            "closed and doubled inside; correct the line"
        ) from error


def _columns(row: tuple[int, list[str]] | None, source: str) -> _Columns:
    line, names = row or (1, [])
    place = f"{source}: line {line}"
    if len(names) == 1 and re.match(r"case[;\t|]", names[0]):
        raise DataError(
            f"{place}: {quoted(names[0])} has {names[0][4]!a} between columns; wanted commas "
            "there, and points in decimals; save it so, or replace them"
        )
    if not names or names[0] != "case":
        raise DataError(
            f"{place}: the first column is {quoted(names[0] if names else '')}; wanted 'case'; "
            "begin the file with a line such as case,label,x"
        )
    if "" in names or len(set(names)) != len(names):
        raise DataError(f"{place}: a column name is empty or repeated; wanted each once; rename it")
    for name in names:
        meant = name.strip().lower()
        meant = _MEANT.get(meant, meant)
        # As a channel it would hand the answer to the model.
        if meant in _SPECIAL and name != meant:
            raise DataError(f"{place}: column {quoted(name)}; wanted {meant!r}; rename it")
    outcomes = [index for index, name in enumerate(names) if name in {"label", "target"}]
    if len(outcomes) > 1:
        raise DataError(
            f"{place}: columns 'label' and 'target'; wanted at most one; remove the other"
        )
    channels = tuple(index for index in range(1, len(names)) if index not in outcomes)
    if not channels:
        raise DataError(
            f"{place}: no channel columns; wanted at least one; add a column of numbers"
        )
    return _Columns(tuple(names), channels, outcomes[0] if outcomes else None)


def _cases(
    rows: Iterator[tuple[int, list[str]]], columns: _Columns, source: str
) -> Iterator[_Case]:
    first_line: dict[str, int] = {}
    for name, group in groupby(_full_rows(rows, len(columns.names), source), lambda row: row[1][0]):
        lines, cells = zip(*group, strict=True)
        if name == "":
            raise DataError(f"{source}: line {lines[0]}: empty case; wanted an id; fill it in")
        if name in first_line:
            raise DataError(
                f"{source}: line {lines[0]}: case {quoted(name)} comes back after line "
                f"{first_line[name]}; wanted its rows together; move them there in their "
                "order, or rename the second"
            )
        first_line[name] = lines[0]
        yield _Case(list(lines), list(cells), source)


def _full_rows(
    rows: Iterator[tuple[int, list[str]]], width: int, source: str
) -> Iterator[tuple[int, list[str]]]:
    for line, row in rows:
        if len(row) != width:
            raise DataError(
                f"{source}: line {line}: has {len(row)} cells; wanted {width}, one per column; "
                "correct the row"
            )
        yield line, row


def _values(case: _Case, columns: _Columns) -> NDArray[np.float64]:
    width = len(columns.channels)

    def place(index: int) -> str:
        row, channel = divmod(index, width)
        name = columns.names[columns.channels[channel]]
        return f"{case.source}: line {case.lines[row]}, column {quoted(name)}"

    fields = [row[channel] for row in case.rows for channel in columns.channels]
    return moderate_values(fields, place).reshape(len(case.rows), width)


def _constant(case: _Case, column: int, name: str) -> str:
    values = [row[column] for row in case.rows]
    for line, value in zip(case.lines, values, strict=True):
        if value != values[0]:
            raise DataError(
                f"{case.source}: line {line}, column {name!r}: {quoted(value)} where the case "
                f"begins with {quoted(values[0])}; wanted one value per case; correct "
                "the row"
            )
    return values[0]


def _expect_all_or_none(outcomes: list[str], lines: list[int], source: str, name: str) -> None:
    """Check that the column of the label or target is filled in everywhere, or nowhere."""
    if "" in outcomes and any(outcomes):
        raise DataError(
            f"{source}: line {lines[outcomes.index('')]}, column {name!r}: is empty; wanted one "
            "non-empty value per case; fill it in, or leave it empty in all rows, for predict"
        )
