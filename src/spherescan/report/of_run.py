"""The page of a run: what it was, how it went, and what its model answers.

Letters: n sequences, k classes, d dimensions.
"""

import platform
import re
import shlex
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from spherescan import __version__
from spherescan.calibration import largest_score
from spherescan.config import RunConfig, parse_config, to_flags, to_toml
from spherescan.data import Batch, locate, read_series
from spherescan.data.series import expect_channels
from spherescan.errors import ConfigError, RunDirectoryError
from spherescan.inference import Predictor, Which
from spherescan.inference.decision import decide
from spherescan.nn import SequenceModel
from spherescan.report.answers import ClassAnswers, NumberAnswers
from spherescan.report.curves import conflicts, learning_curves
from spherescan.report.decisions import confusion, open_set, reliability
from spherescan.report.numbers import predicted_and_true
from spherescan.report.page import Page, Section
from spherescan.report.parts import slowest_parts
from spherescan.report.sphere import class_sphere, number_sphere
from spherescan.runs import RunStore, read_metrics
from spherescan.train import build, evaluation_batches, expect_same_data, objective_of

# Positions of token data that are looked at one by one: each has a cosine with every token.
_MOST_TOKENS = 4096
_REPEATS = 7
# What the time of a prediction is told of.
_PART = re.compile(r"embedding|norm_f|pool|projection|layers\.\d+\.(norm|mixer|mixer_backward)")


def page_of_run(
    run_dir: Path, *, data: str | None = None, unknown: str | None = None, which: Which = "best"
) -> Page:
    """Gather what a report says about a run.

    Args:
        run_dir: Folder of the run.
        data: Labelled data to answer about; the validation set of the run when missing.
        unknown: Series of no class of the run.
        which: The checkpoint, as of `Predictor.load`.

    Raises:
        RunDirectoryError: There is no run, or its metrics are damaged.
        CheckpointError: There is no such checkpoint, or it is damaged.
        DataError: Data that is missing, damaged, or of another kind.
        ConfigError: Unknown series for a model that does not know series by class.
    """
    predictor = Predictor.load(run_dir, which=which)
    config = parse_config(predictor.config)
    task = predictor.task
    if unknown is not None and (task.kind != "classification"):
        raise ConfigError(
            f"--unknown is for classifications; this run is a {task.kind.replace('_', ' ')} model"
        )
    store = RunStore.open(run_dir)
    records = read_metrics(store.metrics_path, growing=True)
    events = _events(store)
    batches, source = _asked(predictor, config, data)
    sections, headline = _answered(predictor, config, batches, source, unknown)
    score = "rmse" if task.kind == "regression" else "accuracy"
    sections += _history(store, records, events, score)
    sections.append(_parts(predictor, batches[0]))
    headline |= {
        "weights": f"{sum(p.numel() for p in predictor.model.parameters()):,}",
        "step": f"{predictor.step} of {config.run.steps}",
    }
    command = ["spherescan", "train", *to_flags(config)]
    report = ["spherescan", "report", str(run_dir), *([data] if data is not None else [])]
    report += ["--unknown", unknown] if unknown is not None else []
    report += ["--checkpoint", str(which)] if which != "best" else []
    return Page(
        title=f"Run {run_dir.resolve().name}",
        subtitle=_trained_on(events, config),
        headline=headline,
        sections=sections,
        facts={
            "Model and task": _model_facts(predictor),
            "Run": _run_facts(store, events, predictor),
            "Environment of the training": _environment(events) or {"it": "is not recorded"},
            "Environment of this page": _here(),
        },
        commands={
            _again(events): shlex.join(command),
            "This page again": shlex.join(report),
        },
        configuration=to_toml(config),
    )


def _history(
    store: RunStore,
    records: Sequence[Mapping[str, Any]],
    events: Sequence[Mapping[str, Any]],
    score: str,
) -> list[Section]:
    """Return the sections about how the run went.

    Raises:
        RunDirectoryError: A record that no run writes.
    """
    needed = {"train": ("step", "loss"), "val": ("step", "loss", score)}
    for record in records:
        for name in ("kind", *needed.get(record.get("kind", ""), ())):
            if name not in record:
                raise RunDirectoryError(
                    f"{store.metrics_path} holds a record that no run writes: {record.get('seq')} "
                    f"has no {name!r}; restore the file"
                )
    return [*learning_curves(records, events, score=score), conflicts(records)]


def _again(events: Sequence[Mapping[str, Any]]) -> str:
    """Say what the command makes: not the same where the run was changed on its way."""
    changed = sorted({str(event.get("key")) for event in events if event["kind"] == "change"})
    if any("parent" in event for event in events):
        return "A run with these settings from the beginning (this one is a fork)"
    if changed:
        return (
            "A run with the last settings from the beginning (in this one changed on its way: "
            f"{', '.join(changed)})"
        )
    return "The same run again (with another --run.dir)"


@dataclass(frozen=True, slots=True, eq=False)
class _Seen:
    """Points of all scored items, or of the first of many, and their targets."""

    z: Float[Tensor, "n d"]
    target: Tensor
    cut: bool


def _asked(predictor: Predictor, config: RunConfig, data: str | None) -> tuple[list[Batch], str]:
    """Return the batches to answer about, and what they are in words."""
    if data is None:
        problem, _ = build(config, place=False)
        expect_same_data(problem, config, predictor.fingerprint)
        held_out = predictor.moderate(problem.validation())
        return list(held_out), "the run's own data, held out"
    description = predictor.description
    batches = evaluation_batches(
        locate(data),
        predictor.task,
        config,
        n_channels=description.n_channels,
        vocab_size=description.vocab_size,
    )
    return list(predictor.moderate(batches)), data


def _answered(
    predictor: Predictor,
    config: RunConfig,
    batches: Sequence[Batch],
    source: str,
    unknown: str | None,
) -> tuple[list[Section], dict[str, str]]:
    """Return the sections about what the model answers, and the numbers that matter."""
    objective = objective_of(predictor.task, config)
    seen = _seen(predictor.model, batches, objective.scored)
    head, task = predictor.model.head, predictor.task
    with torch.inference_mode():
        loss = objective.score(seen.z, head, seen.target).loss.double().mean().item()
        cosines = head(seen.z).float()
    if not bool(cosines.isfinite().all()):
        text = f"What these weights say of {source} is not finite, so nothing of it is drawn."
        return [Section("answers", "Answers", text)], {"answers": "not finite"}
    n = len(seen.target)
    items = "tokens" if task.kind == "next_token" else "series"
    source = f"{'the first ' if seen.cut else ''}{n} {items} of {source}"
    z, prototypes = functional.normalize(seen.z, dim=1), head.prototypes.detach()
    if task.kind == "regression":
        numbers = torch.from_numpy(decide(task, cosines))
        found = NumberAnswers(source, numbers, seen.target.double(), z, prototypes[0])
        headline = {"rmse": f"{found.rmse:.4g}", "sequences": str(n), "loss": f"{loss:.4g}"}
        return [predicted_and_true(found), number_sphere(found)], headline
    scale = config.prototypes.scale if config.prototypes.loss == "softmax" else None
    names = task.class_names or tuple(str(token) for token in range(len(prototypes)))
    answers = ClassAnswers(
        source, names, cosines, seen.target, z, prototypes, scale=scale, items=items
    )
    headline = {"accuracy": f"{answers.accuracy:.3f}", items: str(n), "loss": f"{loss:.4g}"}
    sections = [confusion(answers), class_sphere(answers), reliability(answers)]
    if task.kind == "classification":
        strange, of = _unknown(predictor, unknown)
        sections.append(open_set(answers, strange, unknown_source=of))
    return sections, headline


def _seen(
    model: SequenceModel, batches: Sequence[Batch], scored: Callable[[Tensor, Tensor], Any]
) -> _Seen:
    """Return where every scored item lies; of tokens, the first few thousand."""
    points, targets, n = [], [], 0
    with torch.inference_mode():
        for batch in batches:
            z = model.embed(batch.inputs, mask=batch.mask, reset=batch.reset)
            z, target = scored(z.float(), batch.targets)
            points.append(z)
            targets.append(target)
            n += len(target)
            if batch.targets.dim() == 2 and n >= _MOST_TOKENS:
                every, most = len(points) == len(batches) and n == _MOST_TOKENS, _MOST_TOKENS
                return _Seen(torch.cat(points)[:most], torch.cat(targets)[:most], cut=not every)
    return _Seen(torch.cat(points), torch.cat(targets), cut=False)


def _unknown(predictor: Predictor, name: str | None) -> tuple[Tensor | None, str]:
    """Return the largest cosines of series of no class, and what they are in words."""
    if name is None:
        return None, ""
    table = read_series(locate(name))
    expect_channels(table, predictor.description.n_channels or 0, predictor.task.channel_names)
    return largest_score(predictor.cosines(table.series)), f"{len(table)} series of {name}"


def _parts(predictor: Predictor, batch: Batch) -> Section:
    """Time the parts of the model on one batch."""
    model = predictor.model
    parts = {name: module for name, module in model.named_modules() if _PART.fullmatch(name)}
    with torch.inference_mode():
        rounds = [_timed(model, parts, batch) for _ in range(_REPEATS + 1)]
    seconds = {name: statistics.median(part[name] for _, part in rounds[1:]) for name in parts}
    whole = statistics.median(total for total, _ in rounds[1:])
    rows, length = batch.mask.shape
    of = f"the answers to one batch of {rows} sequences of up to {length} positions"
    named = {_part_name(name): value for name, value in seconds.items()}
    return slowest_parts(named, whole=whole, of=of)


def _timed(
    model: nn.Module, parts: Mapping[str, nn.Module], batch: Batch
) -> tuple[float, dict[str, float]]:
    """Return the seconds of one forward pass, and of each part of it."""
    began, spent = {}, dict.fromkeys(parts, 0.0)

    def begin(name: str) -> Callable[..., None]:
        def hook(*_: object) -> None:
            began[name] = time.perf_counter()

        return hook

    def end(name: str) -> Callable[..., None]:
        def hook(*_: object) -> None:
            spent[name] += time.perf_counter() - began[name]

        return hook

    handles = [
        handle
        for name, module in parts.items()
        for handle in (
            module.register_forward_pre_hook(begin(name)),
            module.register_forward_hook(end(name)),
        )
    ]
    try:
        start = time.perf_counter()
        model(batch.inputs, mask=batch.mask, reset=batch.reset)
        return time.perf_counter() - start, spent
    finally:
        for handle in handles:
            handle.remove()


def _part_name(name: str) -> str:
    """Name a part in words."""
    if not name.startswith("layers."):
        return {"norm_f": "last norm", "pool": "pooling"}.get(name, name)
    _, block, part = name.split(".")
    return f"block {block}, {part.replace('mixer_backward', 'mixer, backwards')}"


def _trained_on(events: Sequence[Mapping[str, Any]], config: RunConfig) -> str:
    summary = next((event["data"] for event in events if "data" in event), None)
    local = config.local
    learns = "by backpropagation"
    if local.loss != "none":
        learns = f"with local losses ({local.loss}, mode {local.mode})"
    text = f"A state-space model trained {learns} on {config.data.train}"
    return f"{text}: {summary}." if summary else f"{text}."


def _model_facts(predictor: Predictor) -> dict[str, str]:
    description, task = predictor.description, predictor.task
    shown = {
        name.replace("_", " "): str(value)
        for name, value in description.to_json().items()
        if value not in (None, [], False)
    }
    names = [" ".join(name.split()) for name in task.class_names]
    classes = {"classes": ", ".join(names)} if names else {}
    return {"task": task.kind.replace("_", " "), **classes, **shown}


def _run_facts(
    store: RunStore, events: Sequence[Mapping[str, Any]], predictor: Predictor
) -> dict[str, str]:
    kinds = [event["kind"] for event in events]
    steps, seconds = _pace(events)
    facts = {
        "run": store.run_id,
        "weights shown": f"those of step {predictor.step}",
        "fingerprint of the data": predictor.fingerprint,
        "resumed": f"{kinds.count('resume')} times",
    }
    if seconds > 0:
        facts["training"] = f"{steps} steps in {seconds:.1f} s, with validation and saving"
    if stops := [event for event in events if event["kind"] == "stop"]:
        facts["ended"] = f"at step {stops[-1].get('step')}: {stops[-1].get('reason')}"
    return facts


def _pace(events: Sequence[Mapping[str, Any]]) -> tuple[int, float]:
    """Return steps and seconds of the pieces of a run that came to an end."""
    steps, seconds = 0, 0.0
    begun: tuple[int, datetime] | None = None
    for event in events:
        when = datetime.fromisoformat(event["time"])
        if event["kind"] in {"start", "resume"}:
            begun = (int(event.get("step", 0)), when)
        elif event["kind"] == "stop" and begun is not None:
            steps += event.get("step", begun[0]) - begun[0]
            seconds += (when - begun[1]).total_seconds()
            begun = None
    return steps, seconds


def _environment(events: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    known: dict[str, Any] = {}
    for event in events:
        known |= event.get("environment", {})
        for name, (_, now) in event.get("differences", {}).items():
            known[name] = now
    return {name: str(value) for name, value in known.items()}


def _here() -> dict[str, str]:
    return {
        "spherescan": __version__,
        "torch": torch.__version__,
        "Python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "threads": str(torch.get_num_threads()),
    }


def _events(store: RunStore) -> list[dict[str, Any]]:
    """Return what happened to a run; nothing where the log is damaged: it decides nothing."""
    try:
        events = read_metrics(store.metrics_path.with_name("events.jsonl"), growing=True)
    except RunDirectoryError:
        return []
    return events if all(map(_is_event, events)) else []


def _is_event(event: Mapping[str, Any]) -> bool:
    try:
        when = datetime.fromisoformat(event["time"])
    except (KeyError, TypeError, ValueError):
        return False
    return (
        when.tzinfo is not None
        and isinstance(event.get("kind"), str)
        and type(event.get("step", 0)) is int
        and isinstance(event.get("environment", {}), dict)
        and isinstance(event.get("differences", {}), dict)
        and all(isinstance(d, list) and len(d) == 2 for d in event.get("differences", {}).values())
    )
