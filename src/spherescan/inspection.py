"""What a file holds, and what this installation can do, as facts by name.

A pair is the least and the greatest of something.
"""

import os
import platform
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from spherescan import __version__
from spherescan.data import SERIES_READERS, locate, open_shards, read_series
from spherescan.errors import DataError
from spherescan.ops import native, reference, selective_scan
from spherescan.ops.form import ENVIRONMENT_VARIABLE, selected_form
from spherescan.ops.linear import bfloat16_cost, onednn_is_faster
from spherescan.runs import CheckpointInfo, RunStore, inspect_checkpoint

# Of the self-check: float32 against float64 over a few dozen steps.
_TOLERANCE = 1e-5


def inspect(name: str) -> dict[str, Any]:
    """Return what a checkpoint, the newest one of a run, a folder of shards or a data file holds.

    Raises:
        CheckpointError: A checkpoint that is damaged.
        DataError: Data that is damaged, or a file of a kind that is not known.
    """
    path = locate(name)
    if path.suffix == ".safetensors":
        return _inspect_checkpoint(path)
    if path.is_dir() and (path / "run.json").exists():
        store = RunStore.open(path)
        return _inspect_checkpoint(store.checkpoint_path(max(store.steps(), default=0)))
    if path.is_dir():
        return _inspect_tokens(path)
    if path.suffix.lower() in SERIES_READERS:
        return _inspect_series(path)
    if path.suffix == ".txt" and path.exists():
        raise DataError(f"{path}: plain integers say nothing of themselves; import them first")
    if not path.exists():
        raise DataError(f"{path}: no such file")
    known = ", ".join([".safetensors", "a folder of shards", *SERIES_READERS])
    raise DataError(f"{path}: unknown kind of file; known are {known}")


def diagnose() -> dict[str, Any]:
    """Return versions and how the ops will run, after computing something with them.

    The error of the scan is that of float32 against float64, relative to the largest value.
    """
    generator = torch.Generator().manual_seed(0)
    u, delta, B, C = (torch.randn(2, 64, 32, generator=generator) for _ in range(4))
    A, D = -torch.ones(32, 32), torch.ones(32)
    arguments = (u, delta.abs(), A, B, C, D)
    began = time.perf_counter()
    y, _ = selective_scan(*arguments)
    seconds = time.perf_counter() - began
    exact, _ = reference.selective_scan(
        *(x.double() for x in arguments), state=torch.zeros(2, 32, 32, dtype=torch.float64)
    )
    error = float((y - exact).abs().max() / exact.abs().max())
    return {
        "spherescan": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "ops": _form(),
        "simd": _simd(),
        "float32_products": _products(),
        "bfloat16_products": f"{bfloat16_cost():.1f} times the time of float32",
        "scan_ms": round(seconds * 1e3, 3),
        "scan_error": error,
        "self_check": "passed" if error < _TOLERANCE else "FAILED",
    }


def _form() -> str:
    form = selected_form()
    if form == "native":
        return f"native kernels, {native.threads()} threads"
    forced = os.environ.get(ENVIRONMENT_VARIABLE)
    reason = f"{ENVIRONMENT_VARIABLE}={forced}" if forced else native.unavailable()
    return f"{form} form ({reason})"


def _simd() -> str:
    if reason := native.unavailable():
        return f"none ({reason})"
    forced = os.environ.get(native.SIMD_VARIABLE)
    best = native.SIMD_LEVELS[native.best_simd()]
    why = f"{native.SIMD_VARIABLE}={forced}; this machine has {best}" if forced else "the best here"
    return f"{native.SIMD_LEVELS[native.simd()]} ({why})"


def _products() -> str:
    if onednn_is_faster():
        return "oneDNN (faster than MKL on this processor)"
    return "as torch chooses"


def _inspect_checkpoint(path: Path) -> dict[str, Any]:
    info = inspect_checkpoint(path)
    if "estimator" in info.state:
        return _estimator_facts(path, info)
    counters, task = (_object(info.state, name) for name in ("counters", "task"))
    weights = [t for t in info.tensors if t.name.startswith("model/")]
    return {
        "file": str(path),
        "kind": "checkpoint",
        "schema": info.schema,
        "made_by": info.created_by,
        "sha256": info.digest,
        "run": info.state.get("run_id"),
        "step": info.state.get("step"),
        "best_step": counters.get("best_step"),
        "best_score": counters.get("best_score"),
        "best_loss": counters.get("best_loss"),
        "task": task.get("kind"),
        "weights": sum(_count(t.shape) for t in weights),
        "tensors": len(info.tensors),
    }


def _estimator_facts(path: Path, info: CheckpointInfo) -> dict[str, Any]:
    """Return what a saved estimator is, whose file anyone may have written."""
    state = info.state
    kept = {name: value for name, value in state.items() if value not in (None, [], "")}
    shown = ("vocab_size", "channel_names", "n_features", "n_networks", "causal", "missing")
    labels = state.get("labels")
    return {
        "file": str(path),
        "kind": f"saved {state['estimator']}",
        "made_by": info.created_by,
        "sha256": info.digest,
        **({"classes": len(labels), "labels": labels} if isinstance(labels, list) else {}),
        **{name: kept[name] for name in shown if name in kept},
        "numbers": sum(_count(t.shape) for t in info.tensors),
        "tensors": len(info.tensors),
    }


def _object(state: dict[str, Any], name: str) -> dict[str, Any]:
    """Return a part of a state that any program may have written; empty when it is none."""
    part = state.get(name)
    return part if isinstance(part, dict) else {}


def _inspect_tokens(path: Path) -> dict[str, Any]:
    data = open_shards(path)
    return {
        "file": str(path),
        "kind": "token shards",
        "tokens": data.n_tokens,
        "documents": len(data.documents),
        "vocabulary": data.vocab_size,
        "shards": len(data.shards),
        "fingerprint": data.fingerprint,
    }


def _inspect_series(path: Path) -> dict[str, Any]:
    table = read_series(path)
    lengths = [len(values) for values in table.series]
    facts = {
        "file": str(path),
        "kind": "series",
        "sequences": len(table),
        "channels": table.n_channels,
        "length": (min(lengths), max(lengths)),
    }
    if table.labels is not None:
        counts = Counter(table.labels)
        facts["classes"] = {name: counts[name] for name in sorted(counts)}
    if table.targets is not None:
        facts["targets"] = (float(table.targets.min()), float(table.targets.max()))
    return facts


def _count(shape: tuple[int, ...]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total
