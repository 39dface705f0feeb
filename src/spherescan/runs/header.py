"""Strict JSON, and the header of a checkpoint: the subset of safetensors we write and accept.

Every check raises `ValueError` with the reason alone; whoever knows the file's name adds it.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

MAX_HEADER_BYTES = 16 << 20
MAX_TENSORS = 65_536
MAX_RANK = 8
MAX_HEADER_DEPTH = 8
# Unsigned 64-bit counters and seeds are common; anything longer is not a number we ever save.
MIN_INTEGER, MAX_INTEGER = -(2**63), 2**64 - 1
METADATA = "__metadata__"
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_NAME = re.compile(r"[A-Za-z0-9._~/-]{1,256}")


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """What the header says of one tensor."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def n_bytes(self) -> int:
        """The bytes of its data, as an exact product."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class Header:
    """A header whose tensors lie one after the other, in this order, and fill the file."""

    tensors: tuple[TensorInfo, ...]
    metadata: dict[str, str]


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
    _check_json(value, where, max_depth)
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
    value = _load(text, where, max_depth)
    _check_json(value, where, max_depth)
    return value


def check_tensor(info: TensorInfo) -> None:
    """Refuse a name, dtype or shape that no checkpoint may hold.

    Raises:
        ValueError: The message names the tensor and the rule.
    """
    if not _NAME.fullmatch(info.name) or info.name == METADATA:
        raise ValueError(
            f"tensor name {info.name[:80]!r} is not 1 to 256 of A-Z a-z 0-9 . _ ~ / - "
            f"other than {METADATA}"
        )
    if info.dtype not in _DTYPE_NAMES:
        raise ValueError(f"{info.name}: {info.dtype} is not one of {', '.join(DTYPES)}")
    if len(info.shape) > MAX_RANK:
        raise ValueError(f"{info.name}: {len(info.shape)} axes are more than {MAX_RANK}")
    # Zeros count as ones: strides multiply the other axes even where there is no element.
    if math.prod(max(size, 1) for size in info.shape) * info.dtype.itemsize >= 2**63:
        raise ValueError(f"{info.name}: its shape {list(info.shape)} overflows 63 bits")


def encode_header(tensors: Sequence[TensorInfo], metadata: Mapping[str, str]) -> bytes:
    """Build the length field and the header of a file that holds these tensors in this order.

    Raises:
        ValueError: A tensor is not allowed, or there is too much of anything.
    """
    if len(tensors) > MAX_TENSORS:
        raise ValueError(f"{len(tensors)} tensors are more than {MAX_TENSORS}")
    entries: dict[str, object] = {METADATA: dict(metadata)}
    begin = 0
    for info in tensors:
        check_tensor(info)
        end = begin + info.n_bytes
        entries[info.name] = {
            "dtype": _DTYPE_NAMES[info.dtype],
            "shape": list(info.shape),
            "data_offsets": [begin, end],
        }
        begin = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    # Padded to eight bytes, so that a reader that maps the file finds every tensor aligned.
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER_BYTES:
        raise ValueError(f"names and state take {len(text)} bytes, more than {MAX_HEADER_BYTES}")
    return len(text).to_bytes(8, "little") + text


def parse_header(text: bytes, *, n_data_bytes: int) -> Header:
    """Read a header, without its length field, and check it against the size of the file.

    Args:
        text: the bytes of the header.
        n_data_bytes: how many bytes follow it.

    Raises:
        ValueError: The header is not one that `encode_header` could have written, or it describes
            more or less than what follows.
    """
    entries = _load(text, "header", MAX_HEADER_DEPTH)
    if not isinstance(entries, dict):
        raise ValueError("header is not a JSON object")  # noqa: TRY004 - the file is at fault
    metadata = entries.pop(METADATA, {})
    # Before the walks below, so that a header of nothing but names costs no more than its parsing.
    if len(entries) > MAX_TENSORS:
        raise ValueError(f"{len(entries)} tensors are more than {MAX_TENSORS}")
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise ValueError(f"{METADATA} is not a map from text to text")
    _check_json(metadata, METADATA, MAX_HEADER_DEPTH)
    tensors = []
    begin = 0
    for name, entry in entries.items():
        info = _parse_tensor(name, entry, begin)
        tensors.append(info)
        begin += info.n_bytes
    if begin != n_data_bytes:
        raise ValueError(f"its tensors take {begin} bytes, and {n_data_bytes} are there")
    return Header(tuple(tensors), metadata)


def _parse_tensor(name: str, entry: object, begin: int) -> TensorInfo:
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"tensor {name[:80]!r} has not exactly dtype, shape and data_offsets")
    if entry["dtype"] not in list(DTYPES):
        raise ValueError(f"tensor {name[:80]!r} has a dtype other than {', '.join(DTYPES)}")
    shape, offsets = (_naturals(entry[key]) for key in ("shape", "data_offsets"))
    if shape is None or offsets is None:
        raise ValueError(f"tensor {name[:80]!r} has a shape or offsets that are not lengths")
    info = TensorInfo(name, DTYPES[entry["dtype"]], shape)
    check_tensor(info)
    if offsets != (begin, begin + info.n_bytes):
        raise ValueError(f"tensor {name!r} is not at bytes {begin} to {begin + info.n_bytes}")
    return info


def _naturals(value: object) -> tuple[int, ...] | None:
    if not isinstance(value, list):
        return None
    # type(), because True is an int too.
    return tuple(value) if all(type(item) is int and item >= 0 for item in value) else None


def _load(text: bytes, where: str, max_depth: int) -> object:
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


def _depth(text: bytes) -> int:
    """Count the brackets open at once outside strings, flat: no nesting can overflow a stack."""
    unescaped = text.replace(b"\\\\", b"").replace(b'\\"', b"")
    codes = np.frombuffer(unescaped, dtype=np.uint8)
    outside = np.cumsum(codes == ord('"'), dtype=np.uint8) % 2 == 0
    # Square and curly brackets differ by one bit.
    curly = codes | 0x20
    opened = (outside & (curly == ord("{"))).astype(np.int8)
    closed = (outside & (curly == ord("}"))).astype(np.int8)
    return int(np.cumsum(opened - closed, dtype=np.int32).max(initial=0))


def _without_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("an object gives a key twice")
    return value


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is not a JSON number")


def _check_json(value: object, where: str, room: int) -> None:
    """Refuse anything that JSON would not give back equal; `room` is how deep it may still nest."""
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
            _check_json(item, f"{where}[{index}]", room)
        return
    for key, item in value.items():
        if not isinstance(key, str):
            raise ValueError(f"{where} has the key {key!r}; keys must be str")  # noqa: TRY004
        _check_text(key, f"a key of {where}")
        _check_json(item, f"{where}[{key[:40]!r}]", room)


def _check_text(value: str, where: str) -> None:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{where} is not valid Unicode text") from None
