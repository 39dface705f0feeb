"""Prove a run: every byte of it, and that training from its checkpoints gives the same again."""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spherescan.config import CHANGEABLE, load_tree, parse_config, settings
from spherescan.errors import CheckpointError, ConfigError, RunDirectoryError, SpherescanError
from spherescan.runs import LogPosition, RunStore, expect_metrics, read_metrics
from spherescan.train.build import ResumeOptions, fork, resume


@dataclass(frozen=True, slots=True)
class Verified:
    """What `verify` found.

    Attributes:
        checkpoints: Steps whose checkpoint is whole.
        n_records: Lines of the metrics.
        replayed: First and last step of what was trained again, with the same bits.
        problems: What is wrong, one line each.
    """

    checkpoints: list[int]
    n_records: int
    replayed: list[tuple[int, int]]
    problems: list[str]


def verify(run_dir: Path, *, steps: int = 5) -> Verified:
    """Check a run without changing it.

    All checkpoints are read whole and compared with their digests, metrics and events line by
    line, the metrics with what each checkpoint recorded of them, and `config.toml` with the
    settings of the newest. Then, from each of the last
    two checkpoints, a copy of the run is trained again for some steps, and every line of its
    metrics compared with the one in the run; where it reaches the next checkpoint, all weights and
    moments too.

    Args:
        run_dir: Folder of the run.
        steps: Steps to train again from each.

    Raises:
        RunDirectoryError: There is no run.
        DataError: The data of the run has changed or is gone.
        ConfigError: A setting does not fit this version.
    """
    store = RunStore.open(run_dir)
    problems: list[str] = []
    whole: dict[int, dict[str, Any]] = {}
    for step in store.steps():
        try:
            whole[step] = store.inspect(step).state
        except CheckpointError as error:
            if step in store.steps():  # a run that goes on meanwhile may have removed it
                problems.append(str(error))
    records = _records(store.metrics_path, problems)
    _check_events(store.path / "events.jsonl", problems)
    _check_config(store.path / "config.toml", whole, problems)
    _check_positions(store.metrics_path, whole, problems)
    _check_steps(store.metrics_path, records, problems)
    replayed = []
    last = max((int(str(record["step"])) for record in records), default=0)
    followed = [step for step in whole if step < last]
    for step in followed[-2:] if steps else []:
        end = _replay(store, step, steps, whole, records, problems)
        if end > step:
            replayed.append((step, end))
    if not whole:
        problems.append(f"{run_dir}: holds no whole checkpoint")
    return Verified(list(whole), len(records), replayed, problems)


def _records(path: Path, problems: list[str]) -> list[dict[str, object]]:
    try:
        return read_metrics(path)
    except RunDirectoryError as error:
        problems.append(str(error))
        return []


def _check_events(path: Path, problems: list[str]) -> None:
    """Expect that they tell of the beginning, as those of every run do."""
    n_problems = len(problems)
    events = _records(path, problems)
    if len(problems) == n_problems and not any(event["kind"] == "start" for event in events):
        problems.append(f"{path}: does not have the start of the run; were lines lost?")


def _check_config(path: Path, whole: dict[int, dict[str, Any]], problems: list[str]) -> None:
    """Expect the settings of the newest checkpoint, but for those that a resume may change."""
    if not whole:
        return
    try:
        there = parse_config(load_tree(path), where=f"{path}: ").model_dump()
        here = parse_config(whole[max(whole)]["config"]).model_dump()
    except ConfigError as error:
        problems.append(str(error))
        return
    for key, _ in settings():
        section, _, name = key.partition(".")
        if key not in CHANGEABLE and there[section][name] != here[section][name]:
            problems.append(
                f"{path}: {key} is {there[section][name]!r}, and in the checkpoint "
                f"{here[section][name]!r}; was the file changed?"
            )


def _check_positions(path: Path, whole: dict[int, dict[str, Any]], problems: list[str]) -> None:
    """Expect the metrics to be those that each checkpoint was saved with, as a resume does."""
    for step, state in whole.items():
        try:
            expect_metrics(path, LogPosition(**state["metrics"]))
        except RunDirectoryError as error:
            problems.append(f"checkpoint of step {step}: {error}")
            return  # later ones have recorded the same and more


def _check_steps(path: Path, records: list[dict[str, object]], problems: list[str]) -> None:
    """Expect one training record for each step, in order."""
    steps = [record["step"] for record in records if record["kind"] == "train"]
    if steps and steps != list(range(int(str(steps[0])), int(str(steps[0])) + len(steps))):
        problems.append(f"{path}: has not one training record for each step")


def _replay(
    store: RunStore,
    step: int,
    steps: int,
    whole: dict[int, dict[str, Any]],
    records: list[dict[str, object]],
    problems: list[str],
) -> int:
    """Train a copy again; return the step that it reached with the same bits."""
    recorded = [r for r in records if isinstance(r["step"], int) and r["step"] > step]
    later = [int(str(r["step"])) for r in recorded]
    end = min(max(later, default=step), step + steps)
    if end == step:
        return step
    with tempfile.TemporaryDirectory(prefix="spherescan-verify-") as folder:
        copy = Path(folder) / "run"
        fork(store.path, copy, step=step)
        later_states = [whole[each] for each in whole if each > step]
        after = later_states[0] if later_states else whole[step]
        other = after["fingerprint"] != whole[step]["fingerprint"]
        changes = _changes(whole[step], after)
        trainer = resume(copy, changes, ResumeOptions(new_data=other))
        try:
            trainer.fit(end - step)
            end = trainer.counters.step
        except SpherescanError as error:
            problems.append(f"training again from step {step}: {error}")
            return step
        finally:
            trainer.close()
        again = [r for r in read_metrics(copy / "metrics.jsonl") if r["step"] != step]
        for before, now in zip(recorded, again, strict=False):
            if _content(before) != _content(now):
                problems.append(
                    f"{store.path}: step {before['step']}, trained again from step {step}, gives "
                    f"{_different(before, now)}"
                )
                return int(str(before["step"])) - 1
        if end in whole:
            problems += _compare(store, RunStore.open(copy), end)
    return end


def _changes(before: dict[str, Any], after: dict[str, Any]) -> dict[str, object]:
    """Return what a resume from one checkpoint changed, as the next one has it."""
    then, now = (parse_config(state["config"]) for state in (before, after))
    changes = {}
    for key in CHANGEABLE:
        section, _, name = key.partition(".")
        values = [getattr(getattr(config, section), name) for config in (then, now)]
        if values[0] != values[1]:
            changes[key] = values[1]
    return changes


def _content(record: dict[str, object]) -> dict[str, object]:
    return {key: value for key, value in record.items() if key not in {"run_id", "seq"}}


def _different(before: dict[str, object], now: dict[str, object]) -> str:
    keys = [key for key in _content(before) if before[key] != now.get(key)]
    return ", ".join(f"{key} {now.get(key)!r} instead of {before[key]!r}" for key in keys)


def _compare(store: RunStore, copy: RunStore, step: int) -> list[str]:
    """Compare all tensors of the checkpoints of a step in two runs."""
    there, here = store.load(step).tensors, copy.load(step).tensors
    names = [
        name
        for name in there
        if not name.startswith("generators/")
        and (name not in here or there[name].numpy().tobytes() != here[name].numpy().tobytes())
    ]
    if not names:
        return []
    return [f"{store.checkpoint_path(step)}: trained again, {names[0]} has other bits"]
