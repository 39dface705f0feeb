"""Which classes are taken for which, how sure to be, and when to say unknown."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from spherescan.calibration import (
    ReliabilityTable,
    auroc,
    expected_calibration_error,
    fit_scale,
    laplace_smoothing,
    largest_score,
    open_set_curve,
    probabilities,
    reliability_table,
)
from spherescan.report.answers import ClassAnswers, Known, plain, thinned, without_own
from spherescan.report.page import Section, Table
from spherescan.report.palette import colour, dash

# A matrix of more classes than this is a texture; pairs are listed instead.
_MOST_CLASSES = 40
_MOST_PAIRS = 25
# Of a diagram, where a bin still has a few samples.
_BINS = 10
_FEWEST_TO_FIT = 40
_REJECTIONS = (0.01, 0.02, 0.05, 0.10, 0.20)
_MOST_POINTS = 500


def confusion(answers: ClassAnswers) -> Section:
    """Draw how often each class is given to each."""
    k = len(answers.names)
    taken = answers.target * k + answers.predicted
    right = int((answers.target == answers.predicted).sum())
    text = f"Of {answers.source}, {right} are given their class."
    if k > _MOST_CLASSES:
        return Section(
            "confusion",
            "Most frequent confusions",
            f"{text} {k} classes are too many for a matrix; these are taken for each other most.",
            table=_pairs(taken[answers.target != answers.predicted], answers.names),
            fold=False,
        )
    counts = torch.bincount(taken, minlength=k * k).view(k, k)
    of_class = counts.sum(1)
    shares = counts / of_class.clamp(min=1)[:, None]
    labels = [plain(name) for name in answers.names]
    ticks = list(range(k))
    filled = counts.nonzero()
    # Cividis is dark below and light above.
    inks = ["#000" if share > 0.55 else "#fff" for share in shares[counts > 0].tolist()]
    data: tuple[dict[str, Any], ...] = (
        {
            "type": "heatmap",
            "z": shares.tolist(),
            "x": ticks,
            "y": ticks,
            "customdata": counts.tolist(),
            "zmin": 0,
            "zmax": 1,
            "colorscale": "Cividis",
            "xgap": 1,
            "ygap": 1,
            "colorbar": {
                "title": {"text": "share of the class", "side": "right"},
                "tickformat": ".0%",
            },
            "hovertemplate": "of class %{y}, taken for %{x}: %{customdata}<extra></extra>",
        },
        {
            "type": "scatter",
            "mode": "text",
            "x": filled[:, 1].tolist(),
            "y": filled[:, 0].tolist(),
            "text": [str(count) for count in counts[counts > 0].tolist()],
            "textfont": {"color": inks},
            "hoverinfo": "skip",
            "showlegend": False,
        },
    )
    axis = {
        "tickmode": "array",
        "tickvals": ticks,
        "ticktext": labels,
        "showgrid": False,
        "zeroline": False,
    }
    layout = {
        "margin": {"l": 90, "r": 20, "t": 10, "b": 70},
        "xaxis": {**axis, "title": {"text": "taken for"}, "constrain": "domain"},
        "yaxis": {
            **axis,
            "title": {"text": "of class"},
            "autorange": "reversed",
            "scaleanchor": "x",
        },
    }
    return Section(
        "confusion",
        "Confusion matrix",
        f"{text} A row is a class; its colours are shares of it, its numbers {answers.items}.",
        data=data,
        layout=layout,
        table=_by_class(counts, answers.names),
    )


def reliability(answers: ClassAnswers) -> Section:
    """Draw whether a probability of p is right in p of the cases."""
    key, title = "reliability", "Reliability"
    n = len(answers.target)
    if answers.scale is None and n < _FEWEST_TO_FIT:
        return Section(
            key,
            title,
            f"The loss of this run has no probabilities, and {n} {answers.items} are too few to "
            f"fit a temperature; give {_FEWEST_TO_FIT}.",
        )
    # A temperature is fitted on one half of each class and looked at on the other.
    asked = _one_half(answers.target) if n >= _FEWEST_TO_FIT else torch.ones(n, dtype=torch.bool)
    forms = []
    if answers.scale is not None:
        forms.append(("as it answers", answers.scale))
    if n >= _FEWEST_TO_FIT:
        others = answers.cosines[~asked]
        smoothing = laplace_smoothing(*others.shape)
        fitted = fit_scale(others, answers.target[~asked], smoothing=smoothing)
        forms.append(("temperature fitted on the other half", fitted))
    data: list[dict[str, Any]] = [
        {
            "type": "scatter",
            "mode": "lines",
            "x": [0, 1],
            "y": [0, 1],
            "name": "as sure as right",
            "line": {"dash": "dot", "width": 1},
            "meta": {"ink": True},
            "hoverinfo": "skip",
        }
    ]
    rows: list[tuple[str, ...]] = []
    errors = []
    for index, (name, scale) in enumerate(forms):
        shares = probabilities(answers.cosines[asked], scale)
        target = answers.target[asked]
        error = expected_calibration_error(shares, target, n_bins=_BINS)
        errors.append(f"{name} {error:.3f}")
        table = reliability_table(shares, target, n_bins=_BINS)
        data.append(_reliability_line(table, f"{name}, error {error:.3f}", index))
        rows += _reliability_rows(table, name)
    text = (
        f"Of the answers with a probability around p, a share of p should be right. "
        f"{int(asked.sum())} {answers.items}. Expected calibration error: {'; '.join(errors)}."
        f"{answers.caution}"
    )
    layout = {
        "margin": {"l": 70, "r": 20, "t": 10, "b": 50},
        "xaxis": {"title": {"text": "probability of the answer"}, "range": [0, 1.02]},
        "yaxis": {"title": {"text": "share that is right"}, "range": [0, 1.05]},
        "legend": {"orientation": "h", "y": -0.2},
    }
    heads = ("probability of the answer", "scale", "items", "mean probability", "right")
    return Section(key, title, text, tuple(data), layout, Table(heads, tuple(rows)))


def open_set(
    answers: ClassAnswers, unknown: Float[Tensor, " m"] | None = None, *, unknown_source: str = ""
) -> Section:
    """Draw how many unknown sequences get in against how many known ones are kept.

    Args:
        answers: About known classes.
        unknown: Scores, as `Known` has them, of sequences of no class. When missing, the known ones
            stand in for them, each as if its own class had not been there.
        unknown_source: What they are, in words.
    """
    scored = _by_cosine(answers) if answers.known is None else answers.known
    known, right = scored.score, answers.predicted == answers.target
    strange = scored.without_own if unknown is None else unknown
    curve = open_set_curve(known, right, strange)
    kept = thinned(len(curve.threshold), _MOST_POINTS)
    area = auroc(known, strange)
    text = (
        f"A sequence is called unknown when its {scored.what} is below a threshold; each "
        f"point is one. Known against unknown: AUROC {area:.3f}. "
    )
    text += (
        "No unknown sequences were given, so each known one stands in for one: as it would score "
        "if its own class had not been there. The model has seen that class all the same, so "
        "truly unknown sequences may be harder; give some as unknown."
        if unknown is None
        else f"Unknown are {unknown_source}."
    )
    marks = _operating_points(known, right, strange)
    data = (
        {
            "type": "scatter",
            "mode": "lines",
            "name": "every threshold",
            "x": curve.false_positive_rate[kept].tolist(),
            "y": curve.correct_rate[kept].tolist(),
            "line": {"color": colour(0), "width": 2},
        },
        {
            "type": "scatter",
            "mode": "markers+text",
            "name": "known called unknown",
            "x": [mark["in"] for mark in marks],
            "y": [mark["correct"] for mark in marks],
            "text": _labels_apart(marks),
            "textposition": "bottom right",
            "marker": {"color": colour(1), "size": 9, "symbol": "diamond"},
        },
    )
    layout = {
        "margin": {"l": 70, "r": 20, "t": 10, "b": 50},
        "xaxis": {"title": {"text": "unknown taken as known"}, "range": [-0.02, 1.02]},
        "yaxis": {"title": {"text": "known, kept and right"}, "range": [0, 1.05]},
        "legend": {"orientation": "h", "y": -0.2},
    }
    table = Table(
        ("known called unknown", "threshold", "unknown found", "of the known kept, right"),
        tuple(
            (
                f"{mark['rejected']:.1%}",
                f"{mark['threshold']:.4f}",
                f"{1 - mark['in']:.1%}",
                f"{mark['right']:.1%}",
            )
            for mark in marks
        ),
    )
    return Section("open-set", "Known or unknown", text, data, layout, table, fold=False)


def _labels_apart(marks: Sequence[Mapping[str, float]]) -> list[str]:
    """Return what marks are called; nothing where the label before it would be written over."""
    labels: list[str] = []
    last: Mapping[str, float] | None = None
    for mark in marks:
        near = last is not None and all(abs(mark[k] - last[k]) < 0.06 for k in ("in", "correct"))
        labels.append("" if near else f"{mark['asked']:.0%}")
        last = last if near else mark
    return labels


def _by_cosine(answers: ClassAnswers) -> Known:
    return Known(
        largest_score(answers.cosines),
        largest_score(without_own(answers.cosines, answers.target)),
        "largest cosine",
    )


def _operating_points(
    known: Float[Tensor, " n"], right: Bool[Tensor, " n"], strange: Float[Tensor, " m"]
) -> list[dict[str, float]]:
    """Return what happens where so many of these known sequences are called unknown."""
    points = []
    for rejection in _REJECTIONS:
        threshold = float(torch.quantile(known.double(), rejection, interpolation="lower"))
        kept = known >= threshold
        points.append(
            {
                "asked": rejection,
                "threshold": threshold,
                "rejected": float((~kept).double().mean()),
                "in": float((strange >= threshold).double().mean()),
                "correct": float((kept & right).double().mean()),
                "right": float(right[kept].double().mean()),
            }
        )
    return points


def _one_half(target: Int[Tensor, " n"]) -> Bool[Tensor, " n"]:
    """Pick every second item of each class, in a drawn order; the odd ones in turn."""
    n = len(target)
    drawn = torch.randperm(n, generator=torch.Generator().manual_seed(0))
    order = drawn[torch.argsort(target[drawn], stable=True)]
    asked = torch.zeros(n, dtype=torch.bool)
    asked[order[1::2]] = True
    return asked


def _reliability_line(table: ReliabilityTable, name: str, index: int) -> dict[str, Any]:
    full = table.count > 0
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": name,
        "x": table.confidence[full].tolist(),
        "y": table.accuracy[full].tolist(),
        "customdata": table.count[full].tolist(),
        "line": {"color": colour(index), "dash": dash(index)},
        "marker": {"size": (6 + 3 * table.count[full].double().log10()).tolist()},
        "hovertemplate": "sure %{x:.3f}, right %{y:.3f}, %{customdata} items<extra></extra>",
    }


def _reliability_rows(table: ReliabilityTable, name: str) -> list[tuple[str, ...]]:
    return [
        (
            f"{table.edges[i]:.1f}-{table.edges[i + 1]:.1f}",
            name,
            str(int(table.count[i])),
            f"{table.confidence[i]:.3f}",
            f"{table.accuracy[i]:.3f}",
        )
        for i in range(len(table.count))
        if table.count[i]
    ]


def _by_class(counts: Tensor, names: tuple[str, ...]) -> Table:
    rows = []
    for i, name in enumerate(names):
        right, of_class, taken = (
            int(x) for x in (counts[i, i], counts[i].sum(), counts[:, i].sum())
        )
        rows.append(
            (
                name,
                str(of_class),
                f"{right / of_class:.1%}" if of_class else "-",
                f"{right / taken:.1%}" if taken else "-",
                _most_taken_for(counts, i, names),
            )
        )
    heads = ("class", "items", "found (recall)", "of those it is given, right", "most taken for")
    return Table(heads, tuple(rows))


def _most_taken_for(counts: Tensor, i: int, names: tuple[str, ...]) -> str:
    others = counts[i].clone()
    others[i] = 0
    return f"{names[int(others.argmax())]} ({int(others.max())})" if int(others.max()) else "-"


def _pairs(taken: Int[Tensor, " n"], names: tuple[str, ...]) -> Table:
    """List what is taken for what most often, of indices of pairs."""
    k = len(names)
    pairs, counts = torch.unique(taken, return_counts=True)
    order = counts.argsort(descending=True, stable=True)[:_MOST_PAIRS]
    rows = tuple(
        (names[pair // k], names[pair % k], str(count))
        for pair, count in zip(pairs[order].tolist(), counts[order].tolist(), strict=True)
    )
    return Table(("of class", "taken for", "items"), rows)
