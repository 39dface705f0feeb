"""The compiled kernels: how they are found, which of them run, and how a tensor gets to them.

A kernel reads raw memory, so nothing reaches it unchecked: `rows` and `dense` compare type, device,
shape and strides before they hand out an address.
"""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import POINTER, Structure, c_double, c_int32, c_int64, c_void_p
from functools import cache
from pathlib import Path
from typing import Any

import torch  # loads OpenMP before the kernels do, so that both share one pool of threads
from torch import Tensor

from spherescan.errors import ConfigError
from spherescan.ops.constant import constant_in_graphs

LIBRARY_VARIABLE = "SPHERESCAN_LIBRARY"
SIMD_VARIABLE = "SPHERESCAN_SIMD"

# As SpherescanType of kernels/abi.h.
_TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float64: 2}
_OUT_OF_MEMORY = 1
SIMD_LEVELS = ("baseline", "256", "512")


class Rows(Structure):
    """A (batch, length, width) tensor; all zero when it is missing."""

    _fields_ = (("data", c_void_p), ("batch_stride", c_int64), ("row_stride", c_int64))


class Scan(Structure):
    """SpherescanScan of kernels/abi.h."""

    _fields_ = (
        *((name, c_int64) for name in ("batch", "length", "d_inner", "d_state")),
        *((name, c_int32) for name in ("type", "threads", "delta_softplus", "simd")),
        *((name, Rows) for name in ("u", "delta", "gate", "B", "C")),
        *((name, c_void_p) for name in ("A", "D", "delta_bias", "state")),
        ("reset", Rows),
        ("checkpoints", c_void_p),
        ("checkpoint_values", c_int64),
        ("y", Rows),
        ("final_state", c_void_p),
        ("y_grad", Rows),
        ("final_state_grad", c_void_p),
        *((name, Rows) for name in ("u_grad", "delta_grad", "gate_grad", "B_grad", "C_grad")),
        *((name, c_void_p) for name in ("A_grad", "D_grad", "delta_bias_grad", "state_grad")),
    )


class ScanStep(Structure):
    """SpherescanScanStep of kernels/abi.h."""

    _fields_ = (
        *((name, c_int64) for name in ("batch", "d_inner", "d_state")),
        *((name, c_int32) for name in ("type", "threads", "delta_softplus", "simd")),
        *((name, Rows) for name in ("u", "delta", "gate", "B", "C", "y")),
        *((name, c_void_p) for name in ("A", "D", "delta_bias", "state", "new_state")),
    )


class Conv(Structure):
    """SpherescanConv of kernels/abi.h."""

    _fields_ = (
        *((name, c_int64) for name in ("batch", "length", "d_inner", "width")),
        *((name, c_int32) for name in ("type", "threads", "silu", "simd")),
        ("x", Rows),
        *((name, c_void_p) for name in ("weight", "bias", "state")),
        *((name, Rows) for name in ("reset", "y", "y_grad", "x_grad")),
        *((name, c_void_p) for name in ("weight_grad", "bias_grad", "state_grad")),
    )


class ConvStep(Structure):
    """SpherescanConvStep of kernels/abi.h."""

    _fields_ = (
        *((name, c_int64) for name in ("batch", "d_inner", "width")),
        *((name, c_int32) for name in ("type", "threads", "silu", "simd")),
        ("x", Rows),
        ("y", Rows),
        *((name, c_void_p) for name in ("weight", "bias", "state", "new_state")),
    )


class Norm(Structure):
    """SpherescanNorm of kernels/abi.h."""

    _fields_ = (
        ("rows", c_int64),
        ("width", c_int64),
        *(
            (name, c_int32)
            for name in ("type", "update_type", "normed_type", "threads", "simd", "padding")
        ),
        ("epsilon", c_double),
        *(
            (name, c_void_p)
            for name in (
                *("x", "update", "weight", "total", "normed", "scale"),
                *("normed_grad", "total_grad", "x_grad", "update_grad", "weight_grad"),
            )
        ),
    )


class Fixed(Structure):
    """SpherescanFixed of kernels/abi.h."""

    _fields_ = (
        *(
            (name, c_int64)
            for name in ("batch", "channels", "length", "kernels", "most_picked", "dilation")
        ),
        ("count", c_int64),
        *((name, c_int32) for name in ("odd", "threads", "simd", "padding")),
        *((name, c_void_p) for name in ("x", "lengths", "picked", "n_picked", "parameters")),
        ("out", Rows),
    )


_STRUCTURES = (Scan, ScanStep, Conv, ConvStep, Norm, Fixed)
_FUNCTIONS = {
    "spherescan_selective_scan": Scan,
    "spherescan_selective_scan_backward": Scan,
    "spherescan_selective_scan_step": ScanStep,
    "spherescan_causal_conv1d": Conv,
    "spherescan_causal_conv1d_backward": Conv,
    "spherescan_causal_conv1d_step": ConvStep,
    "spherescan_rms_norm": Norm,
    "spherescan_rms_norm_backward": Norm,
    "spherescan_minirocket": Fixed,
    "spherescan_hydra": Fixed,
}


class _Process:
    """What this process was forced to; None leaves the choice to the environment.

    The threads of OpenMP do not survive a fork, and waiting for them would never end: a forked
    child computes on one thread, in torch too.
    """

    simd: int | None = None
    forked = False


def _after_fork() -> None:
    _Process.forked = True
    torch.set_num_threads(1)


os.register_at_fork(after_in_child=_after_fork)


def unavailable() -> str | None:
    """Return why the kernels cannot run here; None when they can."""
    return _load()[1]


def threads() -> int:
    """Return how many threads the kernels use: torch's count, or one in a forked child."""
    alone = _Process.forked or not _library().spherescan_has_threads()
    return 1 if alone else torch.get_num_threads()


# A compiled graph keeps the level it was traced with.
@constant_in_graphs
def simd() -> int:
    """Return the SIMD level in use, an index of `SIMD_LEVELS`.

    Raises:
        ConfigError: `SPHERESCAN_SIMD` names a level that does not exist or that this machine lacks.
    """
    return _simd_of_environment() if _Process.simd is None else _Process.simd


def simd_for(channels: int, states: int, dtype: torch.dtype) -> int:
    """Return the SIMD level for a scan: 512 bits that are half empty lose to 256.

    Lanes hold channels, or where these are few, states of one channel.
    """
    level = simd()
    lanes = 4 if dtype == torch.float64 else 8
    return min(level, 1) if max(channels, states) <= lanes else level


def usable_simd(level: int) -> int:
    """Return the level itself, or the best of this machine for a graph from a better one.

    Raises:
        ValueError: There is no such level.
    """
    if not 0 <= level < len(SIMD_LEVELS):
        raise ValueError(f"SIMD level {level}; expected 0 to {len(SIMD_LEVELS) - 1}")
    return min(level, best_simd())


@cache
def best_simd() -> int:
    """Return the highest SIMD level of this machine."""
    return int(_library().spherescan_best_simd())


@cache
def processor_is_amd() -> bool:
    """Return whether AMD made the processor."""
    return bool(_library().spherescan_processor_is_amd())


@contextmanager
def forced_simd(level: int) -> Iterator[None]:
    """Use one SIMD level within the block."""
    before, _Process.simd = _Process.simd, level
    try:
        yield
    finally:
        _Process.simd = before


def checkpoint_values(
    batch: int, length: int, d_inner: int, d_state: int, *, double: bool, simd: int
) -> int:
    """Return how many values the checkpoints of a scan take: one state per chunk, in whole vectors.

    The kernel refuses to run when it needs more than it is given.
    """
    width = (2 if double else 4) << usable_simd(simd)
    vectors = -(-d_state // width)
    if d_inner < width and d_inner * vectors <= d_state:  # states lie in lanes
        vectors *= d_inner
    else:
        vectors = d_state * -(-d_inner // width)
    return batch * -(-length // chunk()) * vectors * width


@cache
def chunk() -> int:
    """Return how many positions lie between two checkpoints of the state."""
    return int(_library().spherescan_chunk())


def supports(*tensors: Tensor | None) -> bool:
    """Return whether the kernels can compute with these: on the CPU, of a known type, not empty."""
    return all(t is None or (t.is_cpu and t.dtype in _TYPES and t.numel() > 0) for t in tensors)


def call(name: str, arguments: Structure) -> None:
    """Run a kernel; the interpreter lock is released meanwhile.

    Raises:
        MemoryError: There was no memory for its scratch space.
        ValueError: The checkpoints are too small for the shape.
    """
    status = getattr(_library(), name)(ctypes.byref(arguments))
    if status == _OUT_OF_MEMORY:
        raise MemoryError(f"{name}: no memory for the kernel's scratch space")
    if status != 0:
        raise ValueError(f"{name}: the checkpoints are too small for this shape")


def type_code(dtype: torch.dtype) -> int:
    """Return the code of an element type.

    Raises:
        TypeError: A type that the kernels do not know.
    """
    if dtype not in _TYPES:
        raise TypeError(f"the kernels know float32, bfloat16 and float64, not {dtype}")
    return _TYPES[dtype]


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the type that parameters and states have beside values of `dtype`."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def rows(name: str, tensor: Tensor | None, shape: tuple[int, ...], dtype: torch.dtype) -> Rows:
    """Return a (batch, length, width) tensor as the kernels take it.

    Raises:
        TypeError: The wrong type or device.
        ValueError: The wrong shape, or strides that the kernels cannot follow.
    """
    if tensor is None:
        return Rows()
    _check(name, tensor, shape, dtype)
    batch, row, column = tensor.stride()
    if column != 1 and shape[2] > 1:
        raise ValueError(f"{name} has strides {tensor.stride()}; its last axis must be contiguous")
    return Rows(tensor.data_ptr(), batch, row)


def dense(
    name: str, tensor: Tensor | None, shape: tuple[int, ...], dtype: torch.dtype
) -> int | None:
    """Return the address of a contiguous tensor.

    Raises:
        TypeError: The wrong type or device.
        ValueError: The wrong shape, or not contiguous.
    """
    if tensor is None:
        return None
    _check(name, tensor, shape, dtype)
    if not tensor.is_contiguous():
        raise ValueError(f"{name} has strides {tensor.stride()}; it must be contiguous")
    return tensor.data_ptr()


def positive(**sizes: int) -> None:
    """Check that nothing is empty: the kernels divide by sizes.

    Raises:
        ValueError: A size below 1.
    """
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} is {size}; the kernels need at least 1")


def disjoint(outputs: dict[str, Tensor], inputs: dict[str, Tensor | None]) -> None:
    """Check that nothing is written twice, or where something is read.

    Outputs may be rows side by side in one tensor.

    Raises:
        ValueError: Two of them share memory.
    """
    if len({output.data_ptr() for output in outputs.values()}) < len(outputs):
        raise ValueError(f"two of {', '.join(outputs)} share memory; give each its own")
    read = {name: _extent(tensor) for name, tensor in inputs.items() if tensor is not None}
    for name, output in outputs.items():
        if any(s == 0 and n > 1 for n, s in zip(output.shape, output.stride(), strict=True)):
            raise ValueError(f"{name} has strides {output.stride()}; it must not overlap itself")
        first, last = _extent(output)
        for other, (begin, end) in read.items():
            if first < end and begin < last:
                raise ValueError(f"{name} and {other} share memory; give the output its own")


def contiguous_rows(tensor: Tensor) -> Tensor:
    """Return the tensor, copied when its last axis is not contiguous."""
    follows = tensor.stride(-1) == 1 or tensor.shape[-1] == 1
    return tensor if follows else tensor.contiguous()


def apply(function: int, values: Tensor) -> Tensor:
    """Apply a function of kernels/exp.h to every element.

    exp2 (0), sigmoid (1), softplus (2), and softplus (3) and its slope (4) from one division.

    Raises:
        TypeError: Neither float32 nor float64.
    """
    if values.dtype not in {torch.float32, torch.float64}:
        raise TypeError(f"values has dtype {values.dtype}; expected float32 or float64")
    out = torch.empty_like(values)
    _library().spherescan_apply(
        c_int32(simd()),
        c_int32(function),
        c_int32(type_code(values.dtype)),
        c_void_p(dense("values", values, tuple(values.shape), values.dtype)),
        c_void_p(out.data_ptr()),
        c_int64(values.numel()),
    )
    return out


def multiply_add(rounds: int) -> int:
    """Do nothing but multiply-adds of vectors, on the calling thread; return how many."""
    factors, sums = torch.full((2, 16), 0.5), torch.empty(12, 16)
    _library().spherescan_multiply_add(
        c_int32(simd()), c_void_p(factors.data_ptr()), c_void_p(sums.data_ptr()), c_int64(rounds)
    )
    return 12 * rounds


def _check(name: str, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    if not tensor.is_cpu or tensor.layout != torch.strided:
        raise TypeError(f"{name} is {tensor.layout} on {tensor.device}; expected a CPU tensor")
    if tensor.dtype != dtype:
        raise TypeError(f"{name} has dtype {tensor.dtype}; expected {dtype}")
    if tensor.shape != shape:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}; expected {shape}")


def _extent(tensor: Tensor) -> tuple[int, int]:
    """Return the first address of a tensor and that behind its last element."""
    first = tensor.data_ptr()
    if tensor.is_contiguous():
        return first, first + tensor.nbytes
    reach = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    return first, first + (reach + 1) * tensor.element_size()


def _simd_of_environment() -> int:
    name = os.environ.get(SIMD_VARIABLE, "")
    best = best_simd()
    if not name:
        return best
    if name not in SIMD_LEVELS[: best + 1]:
        known = ", ".join(SIMD_LEVELS[: best + 1])
        raise ConfigError(
            f"{SIMD_VARIABLE}={name!r} is not a SIMD level of this machine; use {known}, "
            "or unset it"
        )
    return SIMD_LEVELS.index(name)


def _library() -> ctypes.CDLL:
    library, reason = _load()
    if library is None:
        raise ConfigError(f"the native kernels are not available: {reason}")
    return library


@cache
def _load() -> tuple[ctypes.CDLL | None, str | None]:
    """Return the library, or why there is none."""
    forced = os.environ.get(LIBRARY_VARIABLE)
    candidates = [Path(forced)] if forced else _installed()
    for path in candidates:
        if path.is_file():
            return _open(path)
    return None, f"no library at {forced}" if forced else "this installation was made without them"


def _installed() -> list[Path]:
    package = __import__("spherescan.ops", fromlist=["__path__"])
    return [Path(folder) / "_kernels.so" for folder in package.__path__]


def _open(path: Path) -> tuple[ctypes.CDLL | None, str | None]:
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        return None, f"{path}: {error}"
    if not hasattr(library, "spherescan_sizes"):
        return None, f"{path} is not a library of spherescan"
    if not hasattr(library, "spherescan_minirocket"):
        return None, f"{path} belongs to an older version of spherescan; install again"
    sizes = (c_int64 * len(_STRUCTURES))()
    library.spherescan_sizes(sizes)
    if list(sizes) != [ctypes.sizeof(structure) for structure in _STRUCTURES]:
        return None, f"{path} belongs to another version of spherescan; install again"
    for name, structure in _FUNCTIONS.items():
        function: Any = getattr(library, name)
        function.argtypes = [POINTER(structure)]
        function.restype = c_int32
    library.spherescan_apply.restype = None
    library.spherescan_multiply_add.restype = None
    return library, None
