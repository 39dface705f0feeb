"""A run on disk.

RUN/run.json              who it is; the last thing that a new run gets
RUN/run.lock              held by the process that writes the run
RUN/config.toml           the configuration, for people
RUN/metrics.jsonl         one line per step and validation
RUN/events.jsonl          what happened to it
RUN/ckpt/step-000000000200.safetensors
RUN/ckpt/bad-...          damaged checkpoints; RUN/ckpt/aside-... those that a rewind left
RUN/best.safetensors      the best checkpoint, under a second name; nothing here reads it
"""

import dataclasses
import datetime as dt
import errno
import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import Any

from torch import Tensor

from spherescan.errors import (
    CheckpointError,
    DamagedError,
    RunDirectoryError,
    SpherescanError,
    StorageError,
)
from spherescan.runs.container import (
    Checkpoint,
    CheckpointInfo,
    inspect_checkpoint,
    read_checkpoint,
    write_checkpoint,
)
from spherescan.runs.events import EventLog
from spherescan.runs.folder import Folder, refusal
from spherescan.runs.lock import RunLock
from spherescan.runs.metrics import MAX_DEPTH, LogPosition, MetricsLog, spell_nonfinite
from spherescan.runs.state import expect_state
from spherescan.strict_json import json_text, parse_json

BEST = "best.safetensors"
_FORMAT = 1
_CHECKPOINT = re.compile(r"step-([0-9]{12})\.safetensors")
_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_MAX_RECORD_BYTES = 1 << 16
# All that a start leaves behind when it is cut off before run.json.
_UNFINISHED = {"run.lock", "config.toml", "metrics.jsonl", "events.jsonl", "ckpt", BEST}
_NO_LINKS = {errno.EPERM, errno.EXDEV, errno.EOPNOTSUPP, errno.EMLINK}


class RunStore:
    """The folder of one run, held open; made by `create`, found again by `open`.

    Reading needs no lock. Whatever writes needs the one that `create` and `lock` take.
    """

    def __init__(self, run: Folder, checkpoints: Folder, run_id: str) -> None:
        self.path, self.run_id = run.path, run_id
        self._run, self._checkpoints = run, checkpoints
        self._lock: RunLock | None = None
        self._events: EventLog | None = None
        # The best step that each checkpoint names which this process has written or read whole.
        self._verified: dict[int, int | None] = {}
        # What frees the room of the checkpoint that was removed last.
        self._freeing: Thread | None = None
        # The checkpoint that best.safetensors is a copy of, where it could not be a second name.
        self._copied_best: int | None = None
        # Folders that were not there before `create`, the run's own first.
        self._made: list[Path] = []

    @classmethod
    def create(cls, path: Path, *, required_lock: bool = True) -> "RunStore":
        """Make the folder of a new run and take its lock; `announce` makes it a run.

        What an earlier start left that did not get so far is removed.

        Raises:
            ConfigError: The path names no folder.
            LockedError: Another process is beginning a run there.
            RunDirectoryError: The folder holds something already, or cannot be made.
        """
        made: list[Path] = []
        try:
            return cls._create(path, made, required_lock=required_lock)
        except BaseException:
            _remove_empty(made)
            raise

    @classmethod
    def _create(cls, path: Path, made: list[Path], *, required_lock: bool) -> "RunStore":
        """Do what `create` says; `made` receives the folders that were not there before."""
        try:
            whole = path.absolute()
            existing = next(p for p in (*whole.parents, whole) if p.is_dir())
            if not path.exists():
                made += [whole, *(p for p in whole.parents if p.is_relative_to(existing))]
                made.remove(existing)
            path.mkdir(parents=True, exist_ok=True, mode=0o700)
            run = Folder(path)
            _sync_up(whole, existing)
        except SpherescanError:
            raise
        except (OSError, ValueError) as error:  # a ValueError is a NUL in the path
            if isinstance(error, FileExistsError) and not path.is_symlink():
                raise RunDirectoryError(f"{path}: is a file; choose another run.dir") from None
            raise refusal(path, error) from error
        try:
            _expect_unused(run)
            lock = RunLock(path / "run.lock", folder=run, required=required_lock)
            _expect_unused(run)  # another process may have finished its start meanwhile
            lock.sign()
            if run.holds("ckpt"):
                _remove_unfinished(run)
            try:
                store = cls(run, run.make("ckpt"), secrets.token_hex(8))
            except OSError:
                _remove_start(run)
                lock.close()
                raise
        except OSError as error:
            if isinstance(error, SpherescanError):
                raise
            raise RunDirectoryError(f"{path}: cannot be made: {error.strerror}") from error
        store._made = made
        store._begin_writing(lock)
        return store

    @classmethod
    def open(cls, path: Path) -> "RunStore":
        """Find the run in a folder.

        Raises:
            ConfigError: The path names no folder.
            RunDirectoryError: There is no run.
        """
        try:
            run = Folder(path)
            run_id = _parse_record(run.read("run.json", limit=_MAX_RECORD_BYTES))
            checkpoints = Folder(path / "ckpt", inside=run)
        except FileNotFoundError:
            raise RunDirectoryError(f"{path}: holds no run; give the folder of a run") from None
        except SpherescanError:
            raise
        except (OSError, ValueError) as error:
            raise RunDirectoryError(f"{path / 'run.json'}: cannot be read: {error}") from error
        return cls(run, checkpoints, run_id)

    def lock(self, *, wait: float = 0.0, required: bool = True) -> None:
        """Become the writer of this run.

        Args:
            wait: Seconds to wait for another process.
            required: Whether to refuse a file system without locks.

        Raises:
            LockedError: Another process is writing it.
            RunDirectoryError: The lock or the events cannot be opened.
        """
        lock = RunLock(self.path / "run.lock", folder=self._run, wait=wait, required=required)
        lock.sign()
        self._begin_writing(lock)

    def _begin_writing(self, lock: RunLock) -> None:
        self._lock = lock
        try:
            path = self.path / "events.jsonl"
            self._events = EventLog(path, run_id=self.run_id, folder=self._run)
        except BaseException:
            lock.close()
            raise

    def announce(self, config: str, *, parent: Mapping[str, object] | None = None) -> None:
        """Make it a run: from here on it can be resumed.

        Args:
            config: The configuration as text.
            parent: Where its first weights come from.

        Raises:
            StorageError: The disk refused.
        """
        created = dt.datetime.now(tz=dt.UTC).isoformat(timespec="seconds")
        record: dict[str, object] = {"format": _FORMAT, "run_id": self.run_id, "created": created}
        if parent is not None:
            record["parent"] = dict(parent)
        try:
            self._run.write("config.toml", config.encode())
            self._run.write("run.json", json.dumps(record).encode() + b"\n")
        except OSError as error:
            raise StorageError(f"{self.path}: cannot be written: {error.strerror}") from error

    def close(self) -> None:
        """Let go of the run; closing twice is harmless."""
        self._wait_for_room()
        if self._events is not None:
            self._events.close()
            self._events = None
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def discard(self) -> None:
        """Remove a run that could not begin, and let go of it.

        What the disk does not let go of stays: either still a run, or what the next start removes.
        """
        # Before the lock is let go: afterwards another process may be beginning its run here.
        _remove_start(self._run)
        self.close()
        _remove_empty(self._made or [self.path])

    @property
    def metrics_path(self) -> Path:
        """Where the metrics are."""
        return self.path / "metrics.jsonl"

    @property
    def folder(self) -> Folder:
        """The folder, held open."""
        return self._run

    def event(self, kind: Any, **facts: object) -> None:
        """Record what happened; see `EventLog.write`."""
        if self._events is not None:
            self._events.write(kind, **facts)

    def dump(self, name: str, report: Mapping[str, object]) -> str:
        """Write a report into the folder of the run; return its name.

        It helps to understand an error, so nothing that happens here hides that error.
        """
        text = json_text(spell_nonfinite(dict(report)), where="report", max_depth=MAX_DEPTH)
        try:
            self._run.write(name, text.encode() + b"\n")
        except OSError as error:
            return f"{name} (not written: {error.strerror})"
        return name

    def checkpoint_path(self, step: int) -> Path:
        """Where the checkpoint of a step is or would be."""
        return self._checkpoints.path / _name(step)

    def steps(self) -> list[int]:
        """Return the steps that have a checkpoint, ascending."""
        names = (_CHECKPOINT.fullmatch(name) for name in self._checkpoints.names())
        return [int(match[1]) for match in names if match]

    def save(
        self,
        step: int,
        tensors: Mapping[str, Tensor],
        state: Mapping[str, object],
        *,
        verify: bool = False,
    ) -> str:
        """Commit a checkpoint; see `write_checkpoint`.

        Args:
            step: Steps done.
            tensors: All tensors.
            state: All else.
            verify: Whether to read the file back.

        Returns:
            Its digest.

        Raises:
            StorageError: The disk refused; all checkpoints before it are as they were.
            CheckpointError: What was read back is not what was written.
        """
        began = time.monotonic()
        self._wait_for_room()
        path = self.checkpoint_path(step)
        whole = {**state, "run_id": self.run_id, "step": step}
        digest = write_checkpoint(path, tensors, whole, folder=self._checkpoints)
        if step == self._copied_best:  # after a rollback: the same step, other bytes
            self._copied_best = None
        if verify:
            inspect_checkpoint(path, folder=self._checkpoints)
        self._verified[step] = _best_step(whole)
        seconds = round(time.monotonic() - began, 4)
        self.event("save", step=step, digest=digest, seconds=seconds)
        return digest

    def load(self, step: int | None = None) -> Checkpoint:
        """Read and verify a checkpoint of this run, and change nothing.

        Args:
            step: Which one; the newest when missing.

        Raises:
            CheckpointError: None there, damaged, or of another run.
        """
        steps = self.steps()
        if not steps:
            raise CheckpointError(f"{self.path}: holds no checkpoint; restore one from a copy")
        if step is not None and step not in steps:
            raise CheckpointError(f"{self.path}: has no checkpoint of step {step}, only of {steps}")
        step = steps[-1] if step is None else step
        try:
            return self._read(step)
        except DamagedError as error:
            older = [s for s in steps if s < step]
            way_out = (
                f"; `spherescan resume` sets it aside and goes on from step {older[-1]}, or give "
                f"--checkpoint {older[-1]}"
            )
            raise DamagedError(f"{error}{way_out if older else ''}") from error

    def inspect(self, step: int) -> CheckpointInfo:
        """Verify a checkpoint of this run as `load` does, in the memory of its header alone.

        Raises:
            CheckpointError: See `load`.
        """
        info = inspect_checkpoint(self.checkpoint_path(step), folder=self._checkpoints)
        self._expect_ours(step, info.state)
        return info

    def load_best(self) -> Checkpoint:
        """Read and verify the checkpoint of the best validation; the newest without one.

        Raises:
            CheckpointError: See `load`.
        """
        newest = self.load()
        best = newest.state["counters"]["best_step"]
        return newest if best in {None, newest.state["step"]} else self.load(best)

    def recover(self, step: int | None = None) -> Checkpoint:
        """Find where to go on: the newest checkpoint whose every byte is right.

        Damaged ones are set aside under another name, and what a crash left is removed. Needs the
        lock.

        Args:
            step: A checkpoint to go back to instead; the newer ones must have been set aside.

        Raises:
            CheckpointError: No checkpoint can be used, or one of a newer version or another run is
                in the way.
            StorageError: The disk refused.
        """
        self._remove_temporary()
        while steps := self.steps():
            newest = steps[-1] if step is None else step
            try:
                checkpoint = self._read(newest)
            except DamagedError as error:
                if step is not None:
                    raise
                self._quarantine(newest, str(error))
            else:
                self._verified[newest] = _best_step(checkpoint.state)
                return checkpoint
        bad = [name for name in self._checkpoints.names() if name.startswith("bad-")]
        raise CheckpointError(
            f"{self.path}: no checkpoint can be used ({len(bad)} damaged, none whole); restore one "
            "from a copy; the run is not begun anew by itself"
        )

    def rewind(self, step: int) -> None:
        """Set all checkpoints newer than a step aside, if there are any. Needs the lock.

        Raises:
            StorageError: The disk refused.
        """
        newer = [s for s in self.steps() if s > step]
        for each in reversed(newer):
            self._set_aside(each, "aside")
        if newer:
            self.event("rewind", step=step, left=newer)

    def repair_metrics(self, checkpoint: Checkpoint) -> None:
        """Set a metrics log aside that is not the one the checkpoint was saved with.

        The checkpoint is told to begin a new one. A log that fits stays.

        Raises:
            StorageError: The disk refused.
        """
        position = LogPosition(**checkpoint.state["metrics"])
        try:
            log = MetricsLog(self.metrics_path, run_id=self.run_id, folder=self._run)
            try:
                log.expect(position)
            finally:
                log.close()
        except RunDirectoryError as error:
            new = self._run.set_aside("metrics.jsonl", "metrics.damaged-{}.jsonl")
            self.event("quarantine", file=new, reason=str(error))
            checkpoint.state["metrics"] = dataclasses.asdict(LogPosition(0, 0, 0, 0))

    def show_best(self, step: int | None) -> None:
        """Give the checkpoint of a step the name best.safetensors too, for people.

        Args:
            step: The best step; when there is none, nothing has that name afterwards.

        Raises:
            StorageError: The disk refused.
        """
        if step is None:
            self._forget_best()
            return
        if self._run.same_file(BEST, self._checkpoints, _name(step)):
            return
        if not self._checkpoints.holds(_name(step)):
            return
        temporary = f".tmp-{BEST}-{os.getpid()}-{secrets.token_hex(8)}"
        try:
            try:
                self._run.link(_name(step), temporary, source=self._checkpoints)
                self._run.rename(temporary, BEST)
                self._run.sync()
                self._copied_best = None
            except OSError as error:
                self._run.remove(temporary, missing_ok=True)
                if error.errno not in _NO_LINKS:
                    raise
                self._copy_best(step)
        except OSError as error:
            if isinstance(error, SpherescanError):
                raise
            raise StorageError(f"{self.path / BEST}: was not written: {error.strerror}") from error

    def _forget_best(self) -> None:
        if not self._run.holds(BEST):
            return
        try:
            self._run.remove(BEST)
            self._run.sync()
        except OSError as error:
            raise StorageError(f"{self.path / BEST}: is not removed: {error.strerror}") from error

    def _copy_best(self, step: int) -> None:
        """Where files cannot have two names: write the bytes of the checkpoint a second time."""
        if self._copied_best == step and self._run.holds(BEST):
            return
        temporary = f".tmp-{BEST}-{os.getpid()}-{secrets.token_hex(8)}"
        self._run.copy(_name(step), temporary, source=self._checkpoints)
        self._run.rename(temporary, BEST)
        self._run.sync()
        self._copied_best = step

    def prune(self, *, keep: int) -> None:
        """Remove all checkpoints but the newest `keep` whole ones and the best that each names.

        A run that falls back to an older checkpoint has that one's best step again. Needs the lock.

        Raises:
            StorageError: The disk refused.
        """
        kept, best_steps = 0, set[int | None]()
        for step in reversed(self.steps()):
            if kept < keep:
                if self._is_whole(step):
                    kept += 1
                    best_steps.add(self._verified[step])
            elif step not in best_steps:
                self._wait_for_room()
                try:
                    self._freeing = self._checkpoints.remove_large(_name(step))
                except OSError as error:
                    raise StorageError(
                        f"{self.checkpoint_path(step)}: cannot be removed: {error.strerror}"
                    ) from error
                self._verified.pop(step, None)

    def _wait_for_room(self) -> None:
        """Wait until what was removed last has left the disk."""
        if self._freeing is not None:
            self._freeing.join()
            self._freeing = None

    def _is_whole(self, step: int) -> bool:
        """Verify a checkpoint once; set it aside when it is damaged."""
        if step not in self._verified:
            try:
                self._verified[step] = _best_step(self.inspect(step).state)
            except DamagedError as error:
                self._quarantine(step, str(error))
                return False
            except CheckpointError:  # of another run, say; a resume tells
                return False
        return True

    def _read(self, step: int) -> Checkpoint:
        checkpoint = read_checkpoint(self.checkpoint_path(step), folder=self._checkpoints)
        self._expect_ours(step, checkpoint.state)
        return checkpoint

    def _expect_ours(self, step: int, state: dict[str, Any]) -> None:
        path, owner = self.checkpoint_path(step), state.get("run_id")
        if owner != self.run_id:
            raise CheckpointError(f"{path}: belongs to run {owner}, this is run {self.run_id}")
        if state.get("step") != step:
            raise CheckpointError(f"{path}: is of step {state.get('step')}; give it its name back")
        try:
            expect_state(state)
        except ValueError as error:
            raise CheckpointError(f"{path}: {error}; restore the file from a copy") from None

    def _quarantine(self, step: int, reason: str) -> None:
        new = self._set_aside(step, "bad")
        self.event("quarantine", step=step, file=new, reason=reason)

    def _set_aside(self, step: int, why: str) -> str:
        new = self._checkpoints.set_aside(_name(step), f"{why}-{_name(step)}-{{}}")
        self._verified.pop(step, None)
        return new

    def _remove_temporary(self) -> None:
        """Remove what writers before us left; we hold the lock, so none of them lives."""
        try:
            for folder in (self._run, self._checkpoints):
                for name in folder.names():
                    if name.startswith(".tmp-"):
                        folder.remove(name)
        except OSError as error:
            raise StorageError(f"{self.path}: cannot be cleaned: {error.strerror}") from error


def _best_step(state: Mapping[str, Any]) -> int | None:
    best: int | None = state["counters"]["best_step"]
    return best


def _name(step: int) -> str:
    return f"step-{step:012d}.safetensors"


def _parse_record(data: bytes) -> str:
    """Return the run_id in a run.json."""
    record = parse_json(data, where="it", max_depth=4)
    if not isinstance(record, dict) or record.get("format") != _FORMAT:
        raise ValueError(f"it is not of format {_FORMAT}, which this version reads")
    run_id = record.get("run_id")
    if not isinstance(run_id, str) or not _RUN_ID.fullmatch(run_id):
        raise ValueError("it has no run_id of letters and digits")
    return run_id


def _sync_up(path: Path, top: Path) -> None:
    """Make the names of a folder and of those above it durable, from the last one up."""
    for folder in (*path.relative_to(top).parents,):
        Folder(top / folder).sync()


def _expect_unused(run: Folder) -> None:
    """Refuse a folder with anything in it but what an unfinished start leaves."""
    names = set(run.names())
    way_out = "choose another run.dir"
    if "run.json" in names:
        raise RunDirectoryError(
            f"{run.path}: holds a run already; {way_out}, or go on with "
            f"`spherescan resume {run.path}`"
        )
    if any(name not in _UNFINISHED and not name.startswith(".tmp-") for name in names):
        raise RunDirectoryError(f"{run.path}: holds other files already; {way_out}")
    if "ckpt" in names:
        first = re.compile(r"\.tmp-.*|step-0{12}\.safetensors")
        inside = Folder(run.path / "ckpt", inside=run)
        if not all(first.fullmatch(name) for name in inside.names()):
            raise RunDirectoryError(
                f"{run.path}: holds checkpoints of a run but no run.json; restore that file, or "
                f"{way_out}"
            )


def _remove_start(run: Folder) -> None:
    """Remove what a start of ours has written, as far as the disk lets go of it."""
    with suppress(OSError):
        run.remove("run.json", missing_ok=True)
        run.sync()
        _remove_unfinished(run)
        run.remove("run.lock", missing_ok=True)


def _remove_empty(folders: list[Path]) -> None:
    """Remove those of the folders that are there and empty, each after those in it."""
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()


def _remove_unfinished(run: Folder) -> None:
    """Remove what a start left; `ckpt`, by which it is known as ours, at the very end."""
    for name in run.names():
        if name in _UNFINISHED - {"run.lock", "ckpt"} or name.startswith(".tmp-"):
            run.remove(name)
    if run.holds("ckpt"):
        shutil.rmtree("ckpt", dir_fd=run.file)
