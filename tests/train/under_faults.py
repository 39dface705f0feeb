"""A run by the command line where a disk, or the memory, refuses at one place.

    python -m tests.train.under_faults FOLDER

under `tests/torture/faults.c` reads attempts from stdin, one JSON object a line, and answers each
with a result. An attempt is a child that has everything imported already; after it another child
goes on with the run, with nothing in its way.
"""

import contextlib
import io
import itertools
import json
import os
import re
import shutil
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from spherescan.cli import main
from spherescan.runs import inspect_checkpoint, read_metrics
from tests.torture.faults import Faults, Kind, Mode, Op, read_trace
from tests.torture.forking import in_child
from tests.train.test_training import TINY, contents, without_run_id, write_series

STEPS, EVERY, KEEP = 10, 2, 2
SETTINGS = TINY | {
    "run.steps": str(STEPS),
    "run.threads": "1",
    "checkpoint.every": str(EVERY),
    "checkpoint.keep": str(KEEP),
    "validation.every": "100",
}
RECORDED = {"WRITE": "write", "ALLOCATE": "allocate", "FSYNC": "fsync", "OPEN": "create"}


@dataclass(frozen=True)
class Attempt:
    """What is in the way of a run.

    Attributes:
        mode: FAIL or SHORTEN as the library calls them, or REFUSE what each save asks for once.
        kind: The operation; or ROOM on the disk, or memory as PYTHON or TORCH asks for it.
        step: It is one on the checkpoint of this step; None for one on the folder of the run.
        number: Which one of these, from 0.
        error: The errno.
        onwards: Whether all later ones fail too.
        saves: Which saves are refused, from 0.
    """

    mode: str = "FAIL"
    kind: str = "WRITE"
    step: int | None = 4
    number: int = 0
    error: int = 0
    onwards: bool = False
    saves: tuple[int, ...] = ()


@dataclass(frozen=True)
class Result:
    """What became of it.

    Attributes:
        code: Exit code.
        err: What was said on stderr.
        happened: How often something was refused.
        there: Whether there is a folder of the run, or one above it that was made for it.
        events: Kind, step and reason of each.
        steps: Steps of the whole checkpoints.
        left: Names of temporary files.
        trained: Steps in the metrics.
        synced: How often each temporary file was synced that was made for the step, in turn.
        then: Exit code of the run that goes on.
        same: Whether it ends as one that nothing was in the way of.
    """

    code: int
    err: str
    happened: int
    there: bool
    events: list[tuple[str, int | None, str | None]] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    trained: list[int] = field(default_factory=list)
    synced: list[int] = field(default_factory=list)
    then: int | None = None
    same: bool | None = None

    def steps_of(self, kind: str) -> list[int | None]:
        """Return the steps of the events of a kind."""
        return [step for each, step, _ in self.events if each == kind]

    def reasons_of(self, kind: str) -> str:
        """Return what the events of a kind say."""
        return " ".join(str(reason) for each, _, reason in self.events if each == kind)


class Disk:
    """Where attempts are made; there is the run already that nothing was in the way of."""

    def __init__(self, root: Path) -> None:
        self.trace, self.series = root / "trace", write_series(root / "train.ts")
        self.run, self.alone = root / "new" / "run", root / "alone"
        self.checkpoints = self.run / "ckpt"
        in_child(lambda: self.begin(Faults(self.checkpoints))).expect_finished()
        self.ops = read_trace(self.trace, self.checkpoints)
        shutil.move(self.run, self.alone)
        self.run.parent.rmdir()

    def begin(self, faults: Faults) -> list[object]:
        """Begin the run, in a child, and write down what it does to the watched folder."""
        flags = [f"--{key.replace('_', '-')}={value}" for key, value in SETTINGS.items()]
        where = [f"--data.train={self.series}", f"--run.dir={self.run}"]
        with faults.recording(self.trace):
            code, err = _said(["train", "--quiet", *where, *flags])
        return [code, err, faults.happened]

    def attempt(self, attempt: Attempt) -> Result:
        """Let one run meet what is in its way."""
        shutil.rmtree(self.run.parent, ignore_errors=True)
        code, err, happened = in_child(lambda: self._hindered(attempt)).expect_finished()
        if not (self.run / "run.json").exists():
            return Result(code, err, happened, self.run.parent.exists())
        records = read_metrics(self.run / "metrics.jsonl")
        found = [read_metrics(self.run / "events.jsonl"), self._whole(), self._temporary()]
        then = in_child(lambda: _said(["resume", "--quiet", str(self.run)])).expect_finished()
        return Result(
            code,
            err,
            happened,
            there=True,
            events=[(e["kind"], e.get("step"), e.get("reason")) for e in found[0]],
            steps=found[1],
            left=found[2],
            trained=[r["step"] for r in records if r["kind"] == "train"],
            synced=self._synced(attempt.step),
            then=then[0],
            same=contents(self.run, STEPS) == contents(self.alone, STEPS)
            and without_run_id(self.run) == without_run_id(self.alone),
        )

    def _hindered(self, attempt: Attempt) -> list[object]:
        if attempt.mode == "REFUSE":
            refused = _refuse(attempt)
            code, err, _ = self.begin(Faults(self.checkpoints))
            return [code, err, len(refused)]
        of_run = attempt.step is None
        faults = Faults(self.run if of_run else self.checkpoints)
        kind = Kind[attempt.kind]
        faults.arm(
            Mode[attempt.mode],
            at=attempt.number + 1 if of_run else self._place(attempt),
            error=attempt.error,
            onwards=attempt.onwards,
            kinds=frozenset({kind}),
        )
        return self.begin(faults)

    def _place(self, attempt: Attempt) -> int:
        """Return which operation of its kind it is, counted from the beginning of the run."""
        places, current, count = [], None, 0
        for op in self.ops:
            current = _step_of(op) if op.kind == "create" else current
            if op.kind == RECORDED[attempt.kind]:
                count += 1
                if current == attempt.step:
                    places.append(count)
        # The folder itself is opened before everything in it.
        return places[attempt.number] + (attempt.kind == "OPEN")

    def _whole(self) -> list[int]:
        paths = sorted(self.checkpoints.glob("step-*.safetensors"))
        return [inspect_checkpoint(path).state["step"] for path in paths]

    def _temporary(self) -> list[str]:
        return sorted(path.name for path in self.run.rglob(".tmp-*"))

    def _synced(self, step: int | None) -> list[int]:
        ops = read_trace(self.trace, self.checkpoints)
        made = [op.path for op in ops if op.kind == "create" and _step_of(op) == step]
        return [sum(op.kind == "fsync" and op.path == path for op in ops) for path in made]


def _refuse(attempt: Attempt) -> list[int]:
    """Let what each save asks for once be refused, in this process; return what was, in turn."""
    calls, refused = itertools.count(), []

    def is_refused() -> bool:
        number = next(calls)
        if number in attempt.saves:
            refused.append(number)
        return number in attempt.saves

    free, rng, dumps = os.fstatvfs, torch.get_rng_state, json.dumps

    def nothing_free(file: int) -> os.statvfs_result:
        status = free(file)
        return os.statvfs_result((*status[:4], 0, *status[5:])) if is_refused() else status

    def no_memory_for_torch() -> torch.Tensor:
        return torch.empty(1 << 60) if is_refused() else rng()

    def no_memory_for_python(value: object, **options: object) -> str:
        if isinstance(value, dict) and "fingerprint" in value and is_refused():
            raise MemoryError
        return dumps(value, **options)

    match attempt.kind:
        case "ROOM":
            os.fstatvfs = nothing_free
        case "TORCH":
            torch.get_rng_state = no_memory_for_torch
        case "PYTHON":
            json.dumps = no_memory_for_python
    return refused


def _step_of(op: Op) -> int | None:
    found = re.search(r"step-([0-9]+)", op.path)
    return int(found[1]) if found else None


def _said(arguments: list[str]) -> tuple[int, str]:
    """Run the command line, and return its exit code and what it says on stderr."""
    with contextlib.redirect_stderr(io.StringIO()) as err:
        code = main(arguments)
    return code, err.getvalue()


if __name__ == "__main__":
    torch.set_num_threads(1)
    disk = Disk(Path(sys.argv[1]))
    for line in sys.stdin:
        result = disk.attempt(Attempt(**json.loads(line)))
        sys.stdout.write(json.dumps(asdict(result)) + "\n")
        sys.stdout.flush()
