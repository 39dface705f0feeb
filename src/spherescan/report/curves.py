"""How a run went: losses, scores, and where gradients met."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from spherescan.report.page import Section, Table
from spherescan.report.palette import colour, dash

Record = Mapping[str, Any]

# Points of a curve: more than a screen is wide are not seen.
_MOST_POINTS = 400
# Of a table over a run: the beginning, the middle, the end.
_PARTS = ((0.0, 0.15), (0.15, 0.5), (0.5, 1.0))
# Events that a curve may jump at.
_TURNS = ("resume", "grow", "rollback", "rewind", "change")


@dataclass(frozen=True, slots=True)
class NetworkCurve:
    """How one of several small networks learned.

    Attributes:
        points: Steps, and the mean loss since the one before.
        held_out: Loss and accuracy, in the end, on what was kept apart; None where nothing was.
    """

    points: Sequence[tuple[int, float]]
    held_out: tuple[float, float] | None = None


def learning_curves(
    records: Sequence[Record], events: Iterable[Record], *, score: str
) -> list[Section]:
    """Draw the losses of training, backpropagation's and the blocks' own, and validation.

    Args:
        records: Of the metrics, in order.
        events: Of the run, in order.
        score: Name of the score of a validation, as in the records.
    """
    train = [record for record in records if record["kind"] == "train"]
    validation = [record for record in records if record["kind"] == "val"]
    if not train:
        return [Section("learning", "Learning curves", "This run has taken no step yet.")]
    width = max(1, math.ceil(len(train) / _MOST_POINTS))
    events = list(events)
    losses_of = _losses_of(train)
    traces = [
        _line(name, *_means(train, read, width), index=index)
        for index, (name, read) in enumerate(losses_of)
    ]
    if validation:
        steps = [record["step"] for record in validation]
        losses = [_finite(record["loss"]) for record in validation]
        traces.append(_points("validation", steps, losses, ink=True))
    sections = [
        Section(
            "learning",
            "Learning curves",
            _about_curves(train, width, [name for name, _ in losses_of], events),
            data=tuple(traces),
            layout=_steps_layout("loss", _loss_axis(traces), events=events),
            table=_losses(train, losses_of),
        )
    ]
    if validation:
        sections.append(_scores(validation, score, events))
    return sections


def network_curves(curves: Mapping[str, NetworkCurve], *, text: str) -> Section:
    """Draw how small networks learned, one line each.

    Args:
        curves: By name, in order.
        text: What they are, in a sentence.
    """
    traces = [
        _line(name, *_network_points(curve), index=index)
        for index, (name, curve) in enumerate(curves.items())
    ]
    held = {name: curve for name, curve in curves.items() if curve.held_out is not None}
    heads = ["loss of", "steps", *_heads("them")]
    if held:
        heads += ["held out", "accuracy there"]
        text += (
            " Diamonds, at the end of each line: the loss, on the series that early stopping "
            "looked at, of the weights that were kept."
        )
        ends = [curve.points[-1][0] if curve.points else 0 for curve in held.values()]
        losses = [_finite(curve.held_out[0]) for curve in held.values() if curve.held_out]
        traces.append(_points("held out", ends, losses, ink=True))
    return Section(
        "learning",
        "Learning curves",
        text,
        data=tuple(traces),
        layout=_steps_layout("loss", _loss_axis(traces), events=()),
        table=Table(
            tuple(heads), tuple(_network_row(n, c, wide=bool(held)) for n, c in curves.items())
        ),
    )


def _network_points(curve: NetworkCurve) -> tuple[list[int], list[float | None]]:
    return [step for step, _ in curve.points], [_finite(loss) for _, loss in curve.points]


def _network_row(name: str, curve: NetworkCurve, *, wide: bool) -> tuple[str, ...]:
    points = curve.points
    cells = [name, str(points[-1][0]) if points else "-"]
    for low, high in _PARTS:
        part = points[round(low * len(points)) : round(high * len(points))]
        cells.append(_shown(statistics.mean(loss for _, loss in part)) if part else "-")
    if wide:
        loss, share = curve.held_out or (None, None)
        cells += ["-" if value is None else _shown(value) for value in (loss, share)]
    return tuple(cells)


def _heads(what: str = "the run") -> tuple[str, ...]:
    return tuple(f"{low:.0%}-{high:.0%} of {what}" for low, high in _PARTS)


def conflicts(records: Sequence[Record]) -> Section:
    """Draw the cosine between local and backpropagated gradients of every block over time."""
    key, title = "conflict", "Gradient conflict per block"
    train = [record for record in records if record["kind"] == "train"]
    names = _group_names(train)
    lines = [
        (index, name, each)
        for index, name in enumerate(names)
        if any((each := _of_group(index, "cosine"))(record) is not None for record in train)
    ]
    if not lines:
        return Section(
            key,
            title,
            "No two gradients met in this run: they do where blocks have losses of their own and "
            "local.mode is surgery.",
        )
    width = max(1, math.ceil(len(train) / _MOST_POINTS))
    traces = [
        _line(name, *_means(train, cosine, width), index=place)
        for place, (_, name, cosine) in enumerate(lines)
    ]
    text = _per_point(
        width,
        "Cosine of a block's own gradient with the one that backpropagation sends it. Below 0 a "
        "step along one undoes part of the other, which is what surgery mends.",
    )
    layout = _steps_layout("cosine", {}, events=())
    layout["yaxis"]["range"] = [-1.05, 1.05]
    rows = tuple(_conflict_row(name, cosine, train) for _, name, cosine in lines)
    table = Table(("block", *(f"cosine / conflicts, {head}" for head in _heads())), rows)
    return Section(key, title, text, data=tuple(traces), layout=layout, table=table, fold=False)


def _conflict_row(name: str, cosine: "_Reader", train: Sequence[Record]) -> tuple[str, ...]:
    cells = [name]
    for low, high in _PARTS:
        part = train[round(low * len(train)) : round(high * len(train))]
        found = [value for record in part if (value := cosine(record)) is not None]
        share = sum(value < 0 for value in found) / max(1, len(found))
        cells.append(f"{statistics.mean(found):+.3f} / {share:.0%}" if found else "-")
    return tuple(cells)


def _scores(validation: Sequence[Record], score: str, events: Iterable[Record]) -> Section:
    steps = [record["step"] for record in validation]
    values = [_finite(record[score]) for record in validation]
    best = [record for record in validation if record.get("best")]
    traces = [_points(score, steps, values, mode="lines+markers")]
    if best:
        last = best[-1]
        traces.append(
            _points("best, kept", [last["step"]], [_finite(last[score])], index=1, size=13)
        )
    layout = _steps_layout(score, {}, events=events)
    if score == "accuracy":
        lowest = min((value for value in values if value is not None), default=0.0)
        layout["yaxis"]["range"] = [max(-0.02, lowest - 0.05), 1.02]
    n = validation[-1].get("n")
    about = f"On {n} held-out items" if n is not None else "On held-out data"
    return Section(
        "validation",
        "Validation",
        f"{about}; the run keeps the checkpoint of the best validation.",
        data=tuple(traces),
        layout=layout,
        table=Table(
            ("step", "loss", score),
            tuple(
                (str(record["step"]), _shown(record["loss"]), _shown(record[score]))
                for record in validation[:: max(1, math.ceil(len(validation) / 50))]
            ),
        ),
    )


def _about_curves(
    train: Sequence[Record], width: int, names: Sequence[str], events: Iterable[Record]
) -> str:
    text = f"Loss over {_count(len(train), 'recorded step')}"
    if names[0] != "training":
        text += " of the blocks by themselves"
    elif len(names) > 1:
        text += ", of backpropagation (training) and of the blocks by themselves"
    if any(event["kind"] == "grow" for event in events):
        text += "; blocks are numbered as they lie at a step, so growth may give one another number"
    return _per_point(width, f"{text}.")


def _per_point(width: int, text: str) -> str:
    return text if width == 1 else f"{text} Each point is the mean over {width} steps."


def _losses_of(train: Sequence[Record]) -> list[tuple[str, "_Reader"]]:
    """Return what reads the losses that there are: of backpropagation, and of blocks."""
    loss, local = _number("loss"), _local_losses(train)
    there = any(loss(record) is not None for record in train)
    return [("training", loss), *local] if there or not local else local


def _losses(train: Sequence[Record], losses_of: Iterable[tuple[str, "_Reader"]]) -> Table:
    heads = ("loss", *_heads())
    rows = []
    for name, read in losses_of:
        cells = [name]
        for low, high in _PARTS:
            part = train[round(low * len(train)) : round(high * len(train))]
            found = [value for record in part if (value := read(record)) is not None]
            cells.append(_shown(statistics.mean(found)) if found else "-")
        rows.append(tuple(cells))
    return Table(heads, tuple(rows))


class _Reader:
    """Reads one number of a record; none where it has none, or one that is not finite."""

    def __init__(self, name: str, group: int | None = None) -> None:
        self.name, self.group = name, group

    def __call__(self, record: Record) -> float | None:
        return _finite(self._found(record))

    def measured(self, record: Record) -> bool:
        """Return whether there is one, finite or not: not every step has all gradients."""
        return self._found(record) is not None

    def _found(self, record: Record) -> object:
        if self.group is None:
            return record.get(self.name)
        groups = record.get("groups") or []
        return groups[self.group].get(self.name) if self.group < len(groups) else None


def _number(name: str) -> _Reader:
    return _Reader(name)


def _of_group(index: int, name: str) -> _Reader:
    return _Reader(name, index)


def _local_losses(train: Sequence[Record]) -> list[tuple[str, _Reader]]:
    found = []
    for index, name in enumerate(_group_names(train)):
        read = _of_group(index, "ff_loss")
        if any(read(record) is not None for record in train):
            found.append((f"{name}, its own", read))
    return found


def _group_names(train: Sequence[Record]) -> list[str]:
    """Name the groups of blocks of the last step; a model that grows has most then."""
    if not train:
        return []
    names = []
    for group in train[-1].get("groups") or []:
        blocks = group["blocks"]
        if len(blocks) == 1:
            names.append(f"block {blocks[0]}")
        else:
            names.append(f"blocks {', '.join(map(str, blocks))}")
    return names


def _means(
    train: Sequence[Record], read: _Reader, width: int
) -> tuple[list[int], list[float | None]]:
    """Return the last step and the mean of each `width` records, a gap where none is finite.

    Steps at which nothing was measured are left out, so that lines go on across them.
    """
    steps, means = [], []
    for start in range(0, len(train), width):
        part = train[start : start + width]
        if not any(read.measured(record) for record in part):
            continue
        values = [value for record in part if (value := read(record)) is not None]
        steps.append(int(part[-1]["step"]))
        means.append(statistics.mean(values) if values else None)
    return steps, means


def _finite(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None  # missing, or a number that is none, which records spell
    return float(value) if math.isfinite(value) else None


def _shown(value: object) -> str:
    number = _finite(value)
    return str(value) if number is None else f"{number:.4g}"


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}{'' if n == 1 else 's'}"


def _line(name: str, x: list[int], y: list[float | None], *, index: int) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "lines" if len(x) > 1 else "markers",
        "name": name,
        "x": x,
        "y": y,
        "line": {"color": colour(index), "dash": dash(index), "width": 2},
    }


def _points(
    name: str,
    x: list[int],
    y: list[float | None],
    *,
    index: int = 0,
    mode: str = "markers",
    size: int = 8,
    ink: bool = False,
) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": mode,
        "name": name,
        "x": x,
        "y": y,
        "line": {"color": colour(index)},
        "marker": {"color": colour(index), "size": size, "symbol": "diamond" if ink else "circle"},
        "meta": {"ink": ink},
    }


def _loss_axis(traces: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return a logarithmic axis where all is positive, with labels that do not touch."""
    values = [value for trace in traces for value in trace["y"] if value is not None]
    if not values or min(values) <= 0:
        return {}
    decades = math.log10(max(values) / min(values))
    # Every digit, 1, 2 and 5, or powers of ten alone.
    return {"type": "log", "dtick": "D1" if decades < 1 else "D2" if decades < 3 else 1}


def _steps_layout(
    title: str, axis: Mapping[str, Any], *, events: Iterable[Record]
) -> dict[str, Any]:
    turns = [event for event in events if event["kind"] in _TURNS and "step" in event]
    return {
        "margin": {"l": 70, "r": 20, "t": 30, "b": 50},
        "xaxis": {"title": {"text": "step"}, "rangemode": "tozero"},
        "yaxis": {"title": {"text": title}, **axis},
        "legend": {"orientation": "h", "y": -0.2},
        "hovermode": "x unified",
        "showlegend": True,
        "shapes": [
            {
                "type": "line",
                "xref": "x",
                "yref": "paper",
                "x0": event["step"],
                "x1": event["step"],
                "y0": 0,
                "y1": 1,
                "line": {"color": "#8C8C8C", "dash": "dot", "width": 1},
                "label": {"text": event["kind"], "textposition": "end"},
            }
            for event in turns
        ],
    }
