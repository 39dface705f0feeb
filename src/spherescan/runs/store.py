"""A run on disk.

RUN/run.json                       who it is
RUN/metrics.jsonl                  one line per step and validation
RUN/ckpt/step-000000000200.safetensors
"""

import datetime as dt
import json
import os
import re
import secrets
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from spherescan.errors import CheckpointError, RunDirectoryError, StorageError
from spherescan.runs.container import Checkpoint, read_checkpoint, write_checkpoint

_CHECKPOINT = re.compile(r"step-(\d{12})\.safetensors")


class RunStore:
    """The folder of one run; made by `create`, found again by `open`."""

    def __init__(self, path: Path, run_id: str) -> None:
        self.path = path
        self.run_id = run_id

    @classmethod
    def create(cls, path: Path) -> "RunStore":
        """Make the folder of a new run.

        Raises:
            RunDirectoryError: The folder holds something already, or cannot be made.
        """
        try:
            _expect_empty(path)
            (path / "ckpt").mkdir(parents=True)
            store = cls(path, secrets.token_hex(8))
            created = dt.datetime.now(tz=dt.UTC).isoformat(timespec="seconds")
            text = json.dumps({"format": 1, "run_id": store.run_id, "created": created}) + "\n"
            with (path / "run.json").open("x", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
        except RunDirectoryError:
            raise
        except (OSError, ValueError) as error:  # a ValueError is a NUL in the path
            raise RunDirectoryError(f"{path}: cannot be made: {error}") from error
        return store

    def discard(self) -> None:
        """Remove a run that could not begin."""
        for path in (self.path / "ckpt").iterdir():
            path.unlink()
        (self.path / "ckpt").rmdir()
        for name in ("run.json", "run.lock", "config.toml", "metrics.jsonl"):
            (self.path / name).unlink(missing_ok=True)
        self.path.rmdir()

    @classmethod
    def open(cls, path: Path) -> "RunStore":
        """Find the run in a folder.

        Raises:
            RunDirectoryError: There is none.
        """
        try:
            record = json.loads((path / "run.json").read_text(encoding="utf-8"))
            run_id = record["run_id"]
        except (FileNotFoundError, NotADirectoryError):
            raise RunDirectoryError(f"{path}: holds no run; give the folder of a run") from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunDirectoryError(f"{path / 'run.json'}: cannot be read: {error}") from error
        if not isinstance(run_id, str):
            raise RunDirectoryError(f"{path / 'run.json'}: run_id is {run_id!r}; wanted text")
        return cls(path, run_id)

    @property
    def metrics_path(self) -> Path:
        """Where the metrics are."""
        return self.path / "metrics.jsonl"

    @property
    def lock_path(self) -> Path:
        """Where the lock is."""
        return self.path / "run.lock"

    def checkpoint_path(self, step: int) -> Path:
        """Where the checkpoint of a step is or would be."""
        return self.path / "ckpt" / f"step-{step:012d}.safetensors"

    def steps(self) -> list[int]:
        """Return the steps that have a checkpoint, ascending."""
        names = (_CHECKPOINT.fullmatch(path.name) for path in (self.path / "ckpt").glob("step-*"))
        return sorted(int(match[1]) for match in names if match)

    def save(self, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, object]) -> Path:
        """Commit a checkpoint; see `write_checkpoint`."""
        path = self.checkpoint_path(step)
        write_checkpoint(path, tensors, {**state, "run_id": self.run_id, "step": step})
        return path

    def load(self, step: int | None = None) -> Checkpoint:
        """Read and verify a checkpoint of this run.

        Args:
            step: Which one; the newest when missing.

        Raises:
            CheckpointError: None there, damaged, or of another run.
        """
        steps = self.steps()
        if not steps:
            raise CheckpointError(
                f"{self.path}: holds no checkpoint: the run did not begin; "
                "remove it and start again"
            )
        if step is None:
            step = steps[-1]
        elif step not in steps:
            raise CheckpointError(f"{self.path}: has no checkpoint of step {step}, only of {steps}")
        path = self.checkpoint_path(step)
        try:
            checkpoint = read_checkpoint(path)
        except CheckpointError as error:
            older = [s for s in steps if s < step]
            way_out = f"; remove it to go on from step {older[-1]}" if older else ""
            raise CheckpointError(f"{error}{way_out}") from error
        owner = checkpoint.state.get("run_id")
        if owner != self.run_id:
            raise CheckpointError(f"{path}: belongs to run {owner}, this is run {self.run_id}")
        return checkpoint

    def load_best(self) -> Checkpoint:
        """Read and verify the checkpoint of the best validation; the newest without one.

        Raises:
            CheckpointError: See `load`.
        """
        newest = self.load()
        best = newest.state["counters"]["best_step"]
        return newest if best in {None, newest.state["step"]} else self.load(best)

    def prune(self, *, keep: int, best_step: int | None) -> None:
        """Remove all checkpoints but the newest `keep` and the best.

        Raises:
            StorageError: One cannot be removed.
        """
        for step in self.steps()[:-keep]:
            if step != best_step:
                try:
                    self.checkpoint_path(step).unlink()
                except OSError as error:
                    raise StorageError(
                        f"{self.checkpoint_path(step)}: cannot be removed: {error.strerror}"
                    ) from error


def _expect_empty(path: Path) -> None:
    if not path.exists() or not any(path.iterdir()):
        return
    way_out = "choose another run.dir"
    if (path / "run.json").exists():
        raise RunDirectoryError(
            f"{path}: holds a run already; {way_out}, or go on with `spherescan resume {path}`"
        )
    raise RunDirectoryError(f"{path}: holds other files already; {way_out}")
