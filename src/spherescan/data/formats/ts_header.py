"""The header of a .ts file: what it promises about the data that follow."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from spherescan.data.formats.quoting import listed, quoted
from spherescan.errors import DataError

COMMENT_MARKS = ("#", "%")

_WORD = re.compile(r"[^ \t\r]++")
_COUNT = re.compile(r"[0-9]{1,9}")
_KEYS = (
    "@problemname",
    "@timestamps",
    "@missing",
    "@univariate",
    "@dimensions",
    "@equallength",
    "@serieslength",
    "@classlabel",
    "@targetlabel",
    "@data",
)
# The spelling that the aeon package writes.
_ALIASES = {"@dimension": "@dimensions"}


@dataclass(frozen=True, slots=True)
class TsHeader:
    """Hold what a header declares; None where it is silent.

    Args:
        class_names: The declared classes, when the last field of a line is a class label.
        has_targets: Whether the last field of a line is a regression target.
        univariate: Whether there is exactly one channel.
        dimensions: The number of channels.
        equal_length: Whether all sequences have one length.
        series_length: That length.
        n_lines: The lines up to and including `@data`.
    """

    class_names: tuple[str, ...] | None
    has_targets: bool
    univariate: bool | None
    dimensions: int | None
    equal_length: bool | None
    series_length: int | None
    n_lines: int


@dataclass(frozen=True, slots=True)
class _Entry:
    key: str
    words: tuple[str, ...]
    place: str


def read_ts_header(lines: Sequence[str], source: str) -> TsHeader:
    """Read the header at the beginning of the lines of a .ts file.

    Raises:
        DataError: A key is unknown, repeated or badly valued, the header contradicts itself,
            declares time stamps, or does not end.
    """
    entries: dict[str, _Entry] = {}
    for number, line in enumerate(lines, start=1):
        words = _WORD.findall(line)
        if not words or words[0].startswith(COMMENT_MARKS):
            continue
        place = f"{source}: line {number}"
        key = _known_key(words[0], place)
        if key == "@data":
            if len(words) > 1:
                raise DataError(
                    f"{place}: {quoted(words[1])} after @data; wanted @data alone; move it to the "
                    "next line"
                )
            return _interpreted(entries, number)
        # @problemName may be repeated: nothing depends on it.
        if key in entries and key != "@problemname":
            raise DataError(
                f"{place}: {key} is given a second time; wanted it once; remove one of the two"
            )
        entries[key] = _Entry(key, tuple(words[1:]), place)
    raise DataError(
        f"{source}: the header has no @data line; wanted one before the sequences; add it"
    )


def _known_key(word: str, place: str) -> str:
    key = _ALIASES.get(word.lower(), word.lower())
    if not key.startswith("@"):
        raise DataError(
            f"{place}: {quoted(word)} in the header; wanted a line that begins with @ or #; put "
            "sequences after a line @data"
        )
    if key not in _KEYS:
        raise DataError(
            f"{place}: unknown header key {quoted(word)}; wanted one of {', '.join(_KEYS)}; "
            "remove the line or begin it with #"
        )
    return key


def _interpreted(entries: dict[str, _Entry], n_lines: int) -> TsHeader:
    stamps = entries.get("@timestamps")
    if _flag(stamps):
        assert stamps is not None
        raise DataError(
            f"{stamps.place}: @timeStamps true; time stamps are unsupported; write the values "
            "alone and @timeStamps false"
        )
    _flag(entries.get("@missing"))  # only well-formed: the values themselves say what is missing
    header = TsHeader(
        class_names=_classes(entries.get("@classlabel")),
        has_targets=_flag(entries.get("@targetlabel")) or False,
        univariate=_flag(entries.get("@univariate")),
        dimensions=_count(entries.get("@dimensions")),
        equal_length=_flag(entries.get("@equallength")),
        series_length=_count(entries.get("@serieslength")),
        n_lines=n_lines,
    )
    if header.class_names is not None and header.has_targets:
        raise DataError(
            f"{entries['@targetlabel'].place}: both @classLabel true and @targetlabel true; "
            "wanted at most one; set the other to false"
        )
    if None not in (header.univariate, header.dimensions) and (
        header.univariate != (header.dimensions == 1)
    ):
        raise DataError(
            f"{entries['@dimensions'].place}: @dimensions {header.dimensions} contradicts "
            f"@univariate {str(header.univariate).lower()}; correct or remove one of them"
        )
    return header


def _flag(entry: _Entry | None) -> bool | None:
    if entry is None:
        return None
    if len(entry.words) != 1:
        raise DataError(
            f"{entry.place}: {entry.key} has {len(entry.words)} values; wanted true or false; "
            "write one"
        )
    return _truth(entry)


def _truth(entry: _Entry) -> bool:
    word = entry.words[0].lower()
    if word not in {"true", "false"}:
        raise DataError(
            f"{entry.place}: {entry.key} is {quoted(entry.words[0])}; wanted true or false"
        )
    return word == "true"


def _count(entry: _Entry | None) -> int | None:
    if entry is None:
        return None
    text = " ".join(entry.words)
    if not _COUNT.fullmatch(text) or int(text) == 0:
        raise DataError(
            f"{entry.place}: {entry.key} is {quoted(text)}; wanted a positive number; correct or "
            "remove it"
        )
    return int(text)


def _classes(entry: _Entry | None) -> tuple[str, ...] | None:
    if entry is None:
        return None
    names = entry.words[1:]
    has_labels = bool(entry.words) and _truth(entry)
    if not entry.words or has_labels != bool(names):
        raise DataError(
            f"{entry.place}: @classLabel with value {quoted(' '.join(entry.words))}; wanted "
            "false, or true and the class names; correct the line"
        )
    if len(set(names)) != len(names):
        raise DataError(
            f"{entry.place}: @classLabel repeats a class among {listed(names)}; name each once"
        )
    return names if has_labels else None
