"""T3: after a loss of power every acknowledged save is there, and nothing torn is believed."""

import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

from spherescan.errors import SpherescanError
from spherescan.runs import RunStore, read_checkpoint
from tests.torture import small
from tests.torture.faults import Faults, Op, read_trace
from tests.torture.forking import in_child
from tests.torture.powerloss import Crash, Disk, crashes, materialise, without_sync
from tests.torture.report import Report

STEPS = 10


def power_loss(root: Path, faults: Faults, report: Report, *, count: int, seed: int) -> None:
    """Record runs, and recover from the states that a loss of power may leave of them."""
    traces = {name: _recorded(root, faults, work) for name, work in SEQUENCES.items()}
    for number, (name, trace) in enumerate(traces.items()):
        wanted = (count - report.count) // (len(traces) - number)
        per_point = 4
        while True:
            states = list(crashes(trace, seed=seed, per_point=per_point))
            if len(states) >= wanted or per_point > 4096:
                break
            per_point *= 2
        for state in states:
            report.count += 1
            failure = _lost(state, root)
            if failure:
                report.failures.append(f"{name}, seed {seed}, per point {per_point}: {failure}")
        report.facts[f"{name}: operations"] = len(trace)
    _negative_controls(traces["save"], root, seed, report, courtesy=count >= 1000)


def _recorded(
    root: Path, faults: Faults, work: Callable[[Path, Callable[[str], None]], None]
) -> list[Op]:
    box, trace = faults.root, root / "trace"
    _empty(box)

    def recorded() -> None:
        with faults.recording(trace):
            work(box / "run", faults.note)

    in_child(recorded).expect_finished()
    ops = read_trace(trace, box)
    _expect_complete(ops, box)
    return ops


def _saves(run: Path, note: Callable[[str], None]) -> None:
    small.go(run, STEPS, note=note)


def _saves_and_resumes(run: Path, note: Callable[[str], None]) -> None:
    small.go(run, 4, note=note)
    # What a kill leaves: lines after the last save, and a file half written.
    with (run / "metrics.jsonl").open("ab") as file:
        file.write(b'{"run_id": "torn')
    (run / "ckpt" / ".tmp-step-000000000006.safetensors-1-00").write_bytes(b"half")
    small.go(run, 8, note=note)


SEQUENCES = {"save": _saves, "resume": _saves_and_resumes}


def _expect_complete(ops: list[Op], box: Path) -> None:
    """Compare the model with the real folder: an operation not seen would make it worthless."""
    disk = Disk()
    for op in ops:
        disk.apply(op)
    real = {
        str(path.relative_to(box)): path.read_bytes() if path.is_file() else None
        for path in sorted(box.rglob("*"))
    }
    assert disk.tree() == real, "the trace does not tell all that happened"


def _lost(state: Crash, root: Path) -> str | None:
    """Recover from a state; say what is wrong."""
    box = root / "after"
    _empty(box)
    materialise(state.tree, box)
    where = f"after operation {state.after} of {state.notes[-1:]}"
    acknowledged = [int(note.split()[1]) for note in state.notes if note.startswith("saved")]
    try:
        store, log, step = small.recover(box / "run")
    except SpherescanError as error:
        if acknowledged:
            return f"{where}: step {acknowledged[-1]} was acknowledged, and then: {error}"
        return _cannot_begin(box / "run", where)
    log.close()
    store.close()
    if acknowledged and step < acknowledged[-1]:
        return f"{where}: step {acknowledged[-1]} was acknowledged, and {step} came back"
    checkpoint = read_checkpoint(store.checkpoint_path(step))
    if small.bits_of(checkpoint.tensors) != small.bits_of(small.tensors_of(step)):
        return f"{where}: step {step} came back with other bits"
    if (box / "run" / "metrics.jsonl").read_bytes() != small.lines_until(store.run_id, step):
        return f"{where}: the metrics of step {step} are not what they were"
    best = box / "run" / "best.safetensors"
    if best.exists():
        read_checkpoint(best)
    left = [path.name for path in (box / "run").rglob(".tmp-*")]
    return f"{where}: {left} were left" if left else None


def _cannot_begin(run: Path, where: str) -> str | None:
    """Where nothing was acknowledged, the same command must work again, or say why not."""
    if (run / "run.json").exists():
        return f"{where}: there is a run.json, and the run cannot be resumed"
    try:
        RunStore.create(run).close()
    except SpherescanError as error:
        return f"{where}: the run had not begun, and it cannot begin again: {error}"
    return None


def _negative_controls(
    trace: list[Op], root: Path, seed: int, report: Report, *, courtesy: bool
) -> None:
    """Leave out each kind of fsync in turn; unless it is known to be a courtesy, that must show.

    That nothing is lost without a courtesy takes all states to see: the short tier leaves it.
    """
    names = {_purpose(op) for op in trace if op.kind == "fsync"}
    for name in sorted(names if courtesy else names - COURTESY):
        weaker = without_sync(trace, lambda op, name=name: _purpose(op) == name)
        found = next(_failures(crashes(weaker, seed=seed, per_point=64), root), None)
        report.facts[f"without fsync of {name}"] = "caught" if found else "no loss"
        if name not in COURTESY:
            report.expect(found, f"the fsync of {name} was left out, and nothing was lost")


# No promise rests on these.
COURTESY = {"run/config.toml", "run/events.jsonl"}


def _purpose(op: Op) -> str:
    """Return what an fsync is of, without what differs from save to save."""
    path = re.sub(r"\.tmp-(.*)-\d+-[0-9a-f]{16}$", r"\1", op.path)
    return re.sub(r"step-\d+", "step-N", path) or "the folder above"


def _failures(states: Iterable[Crash], root: Path) -> Iterable[str]:
    return filter(None, (_lost(state, root) for state in states))


def _empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
