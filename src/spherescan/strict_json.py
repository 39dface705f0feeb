"""Strict JSON: what is written reads back equal, and nothing else is read.

Every check raises `ValueError` with the reason alone; whoever knows the file's name adds it.
"""

import json
import math
from typing import TypeVar

import numpy as np
from pydantic import TypeAdapter, ValidationError

# Unsigned 64-bit counters and seeds are common; anything longer is not a number we ever save.
MIN_INTEGER, MAX_INTEGER = -(2**63), 2**64 - 1
# Bytes looked at together, so that a long text costs no multiple of itself.
_PIECE = 1 << 18

T = TypeVar("T")


def json_text(value: object, *, where: str, max_depth: int) -> str:
    """Write a value as JSON that reads back as an equal value.

    Args:
        value: None, bool, int, float, str, list or dict with str keys, nested in any way. A tuple
            is refused, because it would come back as a list.
        where: what messages call the value.
        max_depth: how many brackets may be open at once.

    Raises:
        ValueError: Some part is not strict JSON; the message names the part.
    """
    check_json(value, where, max_depth)
    return json.dumps(value, allow_nan=False, separators=(",", ":"))


def parse_json(text: bytes, *, where: str, max_depth: int) -> object:
    """Read JSON and accept only what `json_text` could have written.

    Args:
        text: UTF-8.
        where: what messages call the value.
        max_depth: how many brackets may be open at once.

    Raises:
        ValueError: Not JSON, a key given twice, a number out of range or not finite, or too deep.
    """
    value = load_json(text, where, max_depth)
    check_json(value, where, max_depth)
    return value


def load_json(text: bytes, where: str, max_depth: int) -> object:
    """Read JSON without `check_json`: for a caller that checks what it takes out.

    Raises:
        ValueError: Not JSON, a key given twice, or too deep.
    """
    # Before parsing, because the parser recurses: its depth must not be the file's choice.
    if _depth(text) > max_depth:
        raise ValueError(f"{where} is nested deeper than {max_depth}")
    try:
        value: object = json.loads(
            text.decode(), object_pairs_hook=_without_duplicates, parse_constant=_refuse_constant
        )
    except ValueError as error:
        raise ValueError(f"{where} is not strict JSON: {error}") from None
    return value


def typed(kind: type[T], value: object, *, where: str) -> T:
    """Make a value of JSON into a dataclass that its annotations describe.

    Args:
        kind: The dataclass. A field that has a default may be missing; an array fills a tuple.
        value: What `parse_json` returned.
        where: What messages call the value.

    Raises:
        ValueError: A field is missing, unknown or of another type; the message names it.
    """
    try:
        made: T = TypeAdapter(kind).validate_json(json.dumps(value), strict=True, extra="forbid")
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        name = ".".join(map(str, problem["loc"])) or "the whole"
        raise ValueError(f"{where}: {name[:200]}: {problem['msg']}") from None
    return made


def _depth(text: bytes) -> int:
    """Count the brackets open at once outside strings, flat: no nesting can overflow a stack."""
    unescaped = text.replace(b"\\\\", b"").replace(b'\\"', b"")
    codes = np.frombuffer(unescaped, dtype=np.uint8)
    deepest = depth = quotes = 0
    for begin in range(0, len(codes), _PIECE):
        piece = codes[begin : begin + _PIECE]
        quotes_before = quotes + np.cumsum(piece == ord('"'), dtype=np.int32)
        outside = quotes_before % 2 == 0
        # Square and curly brackets differ by one bit.
        curly = piece | 0x20
        opened = (outside & (curly == ord("{"))).astype(np.int8)
        closed = (outside & (curly == ord("}"))).astype(np.int8)
        depths = depth + np.cumsum(opened - closed, dtype=np.int32)
        deepest = max(deepest, int(depths.max()))
        quotes, depth = int(quotes_before[-1]) % 2, int(depths[-1])
    return deepest


def _without_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("an object gives a key twice")
    return value


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is not a JSON number")


def check_json(value: object, where: str, room: int) -> None:
    """Refuse anything that JSON would not give back equal; `room` is how deep it may still nest.

    Raises:
        ValueError: The message names the part.
    """
    match value:
        case None | bool():
            return
        case str():
            _check_text(value, where)
        case int():
            if not MIN_INTEGER <= value <= MAX_INTEGER:
                raise ValueError(f"{where} is an integer of more than 64 bits")
        case float():
            if not math.isfinite(value):
                raise ValueError(f"{where} is {value}, which JSON cannot hold")
        case list() | dict():
            if room == 0:
                raise ValueError(f"{where[:80]}... is nested too deep")
            _check_items(value, where, room - 1)
        case _:
            raise ValueError(
                f"{where} is a {type(value).__name__}; JSON holds None, bool, int, float, str, "
                f"list and dict"
            )


def _check_items(value: list[object] | dict[object, object], where: str, room: int) -> None:
    if isinstance(value, list):
        for index, item in enumerate(value):
            check_json(item, f"{where}[{index}]", room)
        return
    for key, item in value.items():
        if not isinstance(key, str):
            raise ValueError(f"{where} has the key {key!r}; keys must be str")  # noqa: TRY004
        _check_text(key, f"a key of {where}")
        check_json(item, f"{where}[{key[:40]!r}]", room)


def _check_text(value: str, where: str) -> None:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{where} is not valid Unicode text") from None
