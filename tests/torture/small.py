"""A run without a model: what a trainer does with its folder, in a thousandth of the time.

Every step appends lines to the metrics, every second step is saved, the better ones are shown as
the best, old ones are pruned. All of it is a function of the step, so that what was recovered can
be compared with what it must be, bit for bit.
"""

import dataclasses
import hashlib
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from spherescan.runs import LogPosition, MetricsLog, RunStore, read_checkpoint

EVERY, KEEP = 2, 2


def tensors_of(step: int) -> dict[str, Tensor]:
    """Return tensors of about 3 KB that tell the step."""
    generator = torch.Generator().manual_seed(step)
    return {
        "model/weight": torch.randn(16, 32, generator=generator),
        "model/mask": torch.rand(40, generator=generator) < 0.5,
        "optim/step": torch.tensor([float(step)], dtype=torch.float64),
    }


def bits_of(tensors: dict[str, Tensor]) -> str:
    """Return one digest of all names, types, shapes and bits."""
    sha = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        sha.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


def is_best(step: int) -> bool:
    """Return whether the checkpoint of a step is the best so far."""
    return step % 6 == 2


def best_step(step: int) -> int | None:
    """Return the best step of the first so many."""
    found = [s for s in range(0, step + 1, EVERY) if is_best(s)]
    return found[-1] if found else None


def go(path: Path, until: int, *, note: Callable[[str], object] = lambda _: None) -> None:
    """Begin a run or go on with it, up to a step.

    Args:
        path: Its folder.
        until: The last step.
        note: Told `saved STEP` when a save and all that follows it has returned, `resumed STEP`.
    """
    if (path / "run.json").exists():
        store, log, step = recover(path)
        note(f"resumed {step}")
    else:
        store = RunStore.create(path)
        log = MetricsLog(store.metrics_path, run_id=store.run_id, folder=store.folder)
        step = 0
        _save(store, log, step, note)
        store.announce("a = 1\n")
        note(f"saved {step}")
    while step < until:
        step += 1
        _append(log, step)
        if step % EVERY == 0:
            _save(store, log, step, note)
            note(f"saved {step}")
    log.close()
    store.close()


def recover(path: Path) -> tuple[RunStore, MetricsLog, int]:
    """Open a run as a resume does: the newest whole checkpoint, the metrics cut to it."""
    store = RunStore.open(path)
    store.lock()
    try:
        checkpoint = store.recover()
        log = MetricsLog(store.metrics_path, run_id=store.run_id, folder=store.folder)
        log.cut_to(LogPosition(**checkpoint.state["metrics"]))
        store.show_best(checkpoint.state["counters"]["best_step"])
    except BaseException:
        store.close()
        raise
    return store, log, checkpoint.state["step"]


def _save(store: RunStore, log: MetricsLog, step: int, note: Callable[[str], object]) -> None:
    position = dataclasses.asdict(log.sync())
    best = best_step(step)
    counters = dict.fromkeys(("bp_updates", "ff_updates", "skipped", "since_improvement"), 0)
    scores = dict.fromkeys(("best_score", "best_loss", "lowest_loss", "highest_score"), None)
    state = {
        "config": {},
        "model": {},
        "mergers": [],
        "task": {},
        "counters": {"step": step, "best_step": best, **counters, **scores},
        "guard": {"in_a_row": 0, "rollbacks": 0, "lr_scale": 1.0, "left_out": [], "alive": []},
        "environment": None,
        "generators": [],
        "seconds": 0.0,
        "parent": None,
        "data": {"epoch": 0, "position": step},
        "fingerprint": "none",
        "metrics": position,
    }
    store.save(step, tensors_of(step), state)
    note(f"committed {step}")
    store.show_best(best)
    store.prune(keep=KEEP)


@cache
def lines_until(run_id: str, step: int) -> bytes:
    """Return what the metrics of a run must be when it is at a step."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "metrics.jsonl"
        log = MetricsLog(path, run_id=run_id)
        for done in range(1, step + 1):
            _append(log, done)
        log.close()
        return path.read_bytes()


def _append(log: MetricsLog, step: int) -> None:
    log.append({"kind": "train", "step": step, "loss": 1 / step, "text": "x" * (step * 37 % 90)})
    if step % EVERY == 0:
        log.append({"kind": "val", "step": step, "loss": 2 / step})


def wrong(run: Path, notes: Path, steps: int) -> str | None:
    """Compare a finished run with what it must be, and with what its saves have promised."""
    saved = 0
    for what, step in (line.split() for line in notes.read_text().splitlines()):
        if what == "saved":
            saved = int(step)
        elif int(step) < saved:
            return f"step {saved} was saved, and {step} came back"
    store, log, step = recover(run)
    checkpoint = store.load()
    log.close()
    store.close()
    best = read_checkpoint(run / "best.safetensors").state["step"]
    wanted = {
        "step": (step, steps),
        "bits": (bits_of(checkpoint.tensors), bits_of(tensors_of(step))),
        "metrics": ((run / "metrics.jsonl").read_bytes(), lines_until(store.run_id, step)),
        "best": (best, best_step(step)),
        "best kept": (best_step(step) in store.steps(), True),
        "left over": ([path.name for path in run.rglob(".tmp-*")], []),
    }
    others = [name for name, (found, right) in wanted.items() if found != right]
    return f"{others[0]}: {wanted[others[0]][0]!r}" if others else None
