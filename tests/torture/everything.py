"""A tiny run that uses everything at once, and what must be equal when it was interrupted.

Hybrid steps with local losses and backpropagation in every second one, merged by an aggregator and
weighed by a weighting that both have state; growth in the middle, frozen blocks that thaw later,
dropout; validation with a best step and early stopping; tokens in shuffled shards, packed, for
more than three epochs, prefetched by two workers; the native kernels.
"""

import hashlib
import json
import multiprocessing
import time
from collections.abc import Callable
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import numpy as np

from spherescan.cli import main
from spherescan.config import RunConfig, load_config, to_toml
from spherescan.data import write_shards
from spherescan.errors import CheckpointError
from spherescan.ops import native
from spherescan.runs import RunStore, read_checkpoint, read_metrics
from spherescan.train import Reporter, Trainer, resume, start
from tests.torture.small import bits_of

STEPS = 40
SETTINGS = {
    "data.source": "tokens",
    "data.batch_size": "4",
    "data.seq_len": "16",
    "data.packing": "documents",
    "data.shuffle_shards": "true",
    "data.prefetch_workers": "2",
    "model.d_model": "8",
    "model.n_layers": "2",
    "model.d_state": "4",
    "model.expand": "1",
    "model.dropout": "0.1",
    "prototypes.scale": "4.0",
    "optim.warmup_steps": "3",
    "optim.lr": "0.03",
    "local.loss": "prototype",
    "local.mode": "surgery",
    "surgery.backprop_every": "2",
    "surgery.aggregator": "gradvac",
    "surgery.weighting": "gradnorm",
    "grow.layers": "3",
    "grow.placement": "insert:1",
    "grow.at_step": "11",
    "freeze.blocks": "first:1",
    "freeze.embedding": "true",
    "freeze.until_step": "19",
    "validation.every": "4",
    "validation.batches": "2",
    "validation.patience": "5",
    "checkpoint.every": "5",
    "checkpoint.keep": "2",
    "run.steps": str(STEPS),
    "run.threads": "1",
}


def write_data(folder: Path) -> Path:
    """Write some 500 tokens to learn in documents of many lengths, and others to validate on.

    The validation tokens follow no rule, so that validation soon stops improving.
    """
    rng = np.random.default_rng(0)
    for name, rule, n in (("train", [1, 1, 1, 2, 5], 16), ("validation", [*range(12)], 8)):
        walks = [rng.choice(rule, size=length) for length in rng.integers(3, 60, size=n)]
        documents = [(np.cumsum(walk) % 12).astype(np.uint16) for walk in walks]
        write_shards(documents, folder / name, vocab_size=12, tokens_per_shard=128)
    return folder


def configuration(data: Path, run: Path, **changes: str) -> RunConfig:
    """Return the configuration; a change is named like `run__steps`."""
    settings = SETTINGS | {
        "data.train": str(data / "train"),
        "data.validation": str(data / "validation"),
        "run.dir": str(run),
    }
    settings |= {key.replace("__", "."): value for key, value in changes.items()}
    return load_config(None, settings)


def small_configuration(data: Path, run: Path, steps: int, seed: int) -> RunConfig:
    """Return the configuration of a run whose steps are as quick as can be."""
    settings = {
        "data.source": "tokens",
        "data.train": str(data / "train"),
        "data.batch_size": "1",
        "data.seq_len": "4",
        "model.d_model": "4",
        "model.n_layers": "1",
        "model.d_state": "2",
        "model.expand": "1",
        "validation.every": "500",
        "validation.batches": "1",
        "checkpoint.every": "500",
        "run.steps": str(steps),
        "run.seed": str(seed),
        "run.threads": "1",
        "run.dir": str(run),
    }
    return load_config(None, settings)


def share_workers(*, patience: float = 0.0) -> bool:
    """Start what starts data workers, once for this process and all that are forked from it.

    Python would look in each child whether it is still alive, and can tell its parent only. It
    ends when a child is killed while it asks for a worker, and is then started again by this.

    Args:
        patience: Seconds to wait for its end: it refuses to work some time before.

    Returns:
        Whether it had to be started.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["spherescan.data"])
    before = forkserver._forkserver._forkserver_pid
    until = time.monotonic() + patience
    while True:
        forkserver.ensure_running()
        if forkserver._forkserver._forkserver_pid != before or time.monotonic() >= until:
            break
        time.sleep(0.02)
    forkserver._forkserver.ensure_running = lambda: None
    return forkserver._forkserver._forkserver_pid != before


def go(
    data: Path,
    run: Path,
    *,
    workers: int = 0,
    told: Callable[[Trainer], Reporter] = lambda _: Reporter(),
    changes: dict[str, str] | None = None,
) -> str:
    """Begin the run, or go on with it, to its end; return why it ended.

    Args:
        data: Folder with the data.
        run: Folder of the run.
        workers: Processes that make batches ahead; see `share_workers`.
        told: Makes the reporter.
        changes: Other settings of a new run, named like `run__steps`.
    """
    if (run / "run.json").exists():
        trainer = resume(run, {"data.prefetch_workers": workers})
    else:
        more = {"data__prefetch_workers": str(workers), **(changes or {})}
        trainer = start(configuration(data, run, **more))
    try:
        return trainer.fit(reporter=told(trainer))
    finally:
        trainer.close()


def by_command(data: Path, run: Path, *, loud: bool = False) -> int:
    """Begin the run, or go on with it, by the command line; return the exit code.

    There are no data workers.
    """
    flags = [] if loud else ["--quiet"]
    if (run / "run.json").exists():
        return main(["resume", str(run), *flags])
    text = to_toml(configuration(data, run, data__prefetch_workers="0"))
    config = data / "everything.toml"
    if not config.exists() or config.read_text() != text:
        config.write_text(text)
    return main(["train", str(config), *flags])


def result(run: Path) -> dict[str, object]:
    """Return digests of all that must be the same bits as in a run that was not interrupted."""
    newest = sorted((run / "ckpt").glob("step-*.safetensors"))
    checkpoint = read_checkpoint(newest[-1])
    own = checkpoint.state["run_id"]
    state = _comparable(checkpoint.state, own, run)
    metrics = (run / "metrics.jsonl").read_text().replace(own, "RUN")
    records = read_metrics(run / "metrics.jsonl")
    return {
        "step": checkpoint.state["step"],
        "epochs": checkpoint.state["data"]["epoch"],
        "model": bits_of(checkpoint.below("model/")),
        "optimizer": bits_of(checkpoint.below("optim/")),
        "all": bits_of(checkpoint.tensors),
        "state": _sha(json.dumps(state)),
        "state but for best": _sha(json.dumps(_without_best(state))),
        "metrics": _sha(metrics),
        "metrics but for best": _sha(json.dumps([{**r, "best": 0, "run_id": 0} for r in records])),
        "train lines": sum(record["kind"] == "train" for record in records),
        "lines": len(records),
        "best": checkpoint.state["counters"]["best_step"],
        "best tensors": _best(run),
        "left over": sorted(path.name for path in run.rglob(".tmp-*")),
    }


def _best(run: Path) -> str | None:
    """Return the bits of what an evaluation would take; None when there is nothing to take."""
    try:
        best = RunStore.open(run).load_best()
    except CheckpointError:
        return None
    shown = run / "best.safetensors"
    assert not shown.exists() or read_checkpoint(shown).digest == best.digest, "another is shown"
    return bits_of(best.tensors)


def _comparable(state: dict[str, Any], run_id: str, run: Path) -> dict[str, Any]:
    """Return a copy of the state without what differs between two runs of the same bits."""
    text = json.dumps(state, sort_keys=True).replace(run_id, "RUN").replace(str(run), "RUN")
    state = json.loads(text)
    # The CRC covers the random run_id in each line, and the parent's digest covers the times.
    state["metrics"].pop("crc32")
    for key in ("seconds", "parent"):
        state.pop(key)
    # As many as there happened to be; nothing may depend on it.
    state["config"]["data"].pop("prefetch_workers")
    return state


def _without_best(state: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of the state without which step was the best, and the length of its record."""
    counters = {k: v for k, v in state["counters"].items() if not k.startswith("best_")}
    metrics = {k: v for k, v in state["metrics"].items() if k != "offset"}
    return {**state, "counters": counters, "metrics": metrics}


def _sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def compare(run: Path, wanted: dict[str, object], *, best: bool = True) -> str | None:
    """Say what of a finished run is not as wanted.

    Args:
        run: Its folder.
        wanted: The result of a run that was left alone.
        best: Whether the best must be the same one too. It is another when the disk did not take
            the save of the best step.
    """
    found = result(run)
    skipped = set() if best else {"best", "best tensors", "state", "metrics"}
    others = [
        f"{key} is {found[key]}, not {wanted[key]}"
        for key in wanted
        if found[key] != wanted[key] and key not in skipped
    ]
    if found["best tensors"] is None:
        others.append("no best can be loaded")
    return "; ".join(others) or None


def uses_native_kernels() -> bool:
    """Return whether the compiled kernels are in use."""
    return native.unavailable() is None
