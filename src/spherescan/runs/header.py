"""The header of a checkpoint: the subset of safetensors we write and accept.

Every check raises `ValueError` with the reason alone; whoever knows the file's name adds it.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from spherescan.strict_json import check_json, load_json

MAX_HEADER_BYTES = 16 << 20
MAX_TENSORS = 65_536
MAX_RANK = 8
MAX_HEADER_DEPTH = 8
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
    entries = load_json(text, "header", MAX_HEADER_DEPTH)
    if not isinstance(entries, dict):
        raise ValueError("header is not a JSON object")  # noqa: TRY004 - the file is at fault
    metadata = entries.pop(METADATA, {})
    # Before the walks below, so that a header of nothing but names costs no more than its parsing.
    if len(entries) > MAX_TENSORS:
        raise ValueError(f"{len(entries)} tensors are more than {MAX_TENSORS}")
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise ValueError(f"{METADATA} is not a map from text to text")
    check_json(metadata, METADATA, MAX_HEADER_DEPTH)
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
