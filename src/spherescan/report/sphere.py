"""The sphere: prototypes and where sequences lie among them, to be turned.

Letters: n sequences, p prototypes, d dimensions.
"""

import math
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from spherescan.report.answers import ClassAnswers, NumberAnswers, plain, thinned
from spherescan.report.page import Section
from spherescan.report.palette import colour, mark

_MOST_POINTS = 2000
_MOST_CLASSES = 35  # as many as colours and marks tell apart
# Points of a circle of the globe.
_CIRCLE = 49


def class_sphere(answers: ClassAnswers) -> Section:
    """Draw the prototypes and the sequences, in a colour and mark for each class."""
    key, title = "sphere", "The prototype sphere"
    if len(answers.names) > _MOST_CLASSES:
        return Section(
            key,
            title,
            f"{len(answers.names)} classes are too many to tell apart by eye; "
            f"up to {_MOST_CLASSES} are drawn.",
        )
    view = components(answers.prototypes, answers.embeddings)
    axes = view.axes
    kept = thinned(len(answers.target), _MOST_POINTS)
    places = answers.embeddings[kept].double() @ axes
    target, predicted = answers.target[kept], answers.predicted[kept]
    cosines = answers.cosines[kept].gather(1, predicted[:, None])[:, 0]
    traces = [*_globe()]
    for index, name in enumerate(answers.names):
        of_class = target == index
        if not bool(of_class.any()):
            continue
        texts = [
            f"{row}: of {plain(name)}, taken for {plain(answers.names[guess])}, cosine {c:.3f}"
            for row, guess, c in zip(
                kept[of_class].tolist(),
                predicted[of_class].tolist(),
                cosines[of_class].tolist(),
                strict=True,
            )
        ]
        marker = {"size": 4, "color": colour(index), "symbol": mark(index), "opacity": 0.8}
        traces.append(_points(plain(name), places[of_class], texts, marker=marker))
    wrong = target != predicted
    if bool(wrong.any()):
        ring = {"size": 9, "color": "rgba(0,0,0,0)", "symbol": "circle-open", "line": {"width": 2}}
        trace = _points("taken for another", places[wrong], [], marker=ring)
        traces.append({**trace, "meta": {"ink": True}, "hoverinfo": "skip"})
    traces.append(_prototypes(answers.prototypes.double() @ axes, answers.names))
    shown = "" if len(kept) == len(answers.target) else f"{len(kept)} of them, evenly picked. "
    text = (
        f"{answers.source}, on the sphere of {answers.prototypes.shape[1]} dimensions, "
        f"seen along {_seen_along(view)}; what seems inside the globe lies on it too. "
        f"{shown}Named marks are prototypes, rings are {answers.items} taken for another class."
    )
    return Section(key, title, text, tuple(traces), _space(), turns=True)


def number_sphere(answers: NumberAnswers) -> Section:
    """Draw the pole and the sequences, coloured by their numbers."""
    axes = components(answers.pole[None], answers.embeddings).axes
    kept = thinned(len(answers.target), _MOST_POINTS)
    places = answers.embeddings[kept].double() @ axes
    values = answers.target[kept]
    texts = [
        f"{row}: {true:.4g}, predicted {guess:.4g}"
        for row, true, guess in zip(
            kept.tolist(), values.tolist(), answers.predicted[kept].tolist(), strict=True
        )
    ]
    marker = {
        "size": 4,
        "color": values.tolist(),
        "colorscale": "Cividis",
        "colorbar": {"title": {"text": "true number"}},
    }
    traces = [*_globe(), _points("sequences", places, texts, marker=marker)]
    traces.append(_prototypes(answers.pole[None].double() @ axes, ("pole",)))
    text = (
        f"{answers.source}, on the sphere of {len(answers.pole)} dimensions: a number is "
        "read from the angle to the pole. Seen along the pole and the principal components of the "
        "rest."
    )
    return Section("sphere", "The sphere", text, tuple(traces), _space(legend=False), turns=True)


def _seen_along(view: "View") -> str:
    n = view.of_prototypes
    first = "the first 3 principal components" if n == 3 else f"the {n} principal component"
    text = (
        f"{first}{'s' if n == 2 else ''} of the prototypes, with {view.share:.0%} of their spread"
    )
    others = int((view.axes.norm(dim=0) > 0).sum()) - n
    return f"{text}, and {others} of the rest of the series" if others else text


class View(NamedTuple):
    """Three orthonormal directions to look along; those that the space does not have are zeros.

    Attributes:
        axes: As columns.
        of_prototypes: How many are components of the prototypes; the rest are of the embeddings.
        share: Of the spread of the prototypes that they hold.
    """

    axes: Float[Tensor, "d three"]
    of_prototypes: int
    share: float


def components(prototypes: Float[Tensor, "p d"], embeddings: Float[Tensor, "n d"]) -> View:
    """Return directions to look along.

    They are principal components of the prototypes around their mean. Where these span less than
    three dimensions, those of what is left of the embeddings follow; where the space itself is
    smaller, zeros do. One prototype has no spread: it is its own direction.
    """
    prototypes, embeddings = prototypes.double(), embeddings.double()
    d = prototypes.shape[1]
    centred = prototypes - prototypes.mean(0) if len(prototypes) > 1 else prototypes
    axes, spread = _principal(centred, 3, size=_size(centred))
    of_prototypes, whole = axes.shape[1], float(centred.square().sum())
    if of_prototypes < 3 and len(embeddings):
        rest = embeddings - embeddings @ axes @ axes.T
        rest = rest - rest.mean(0)
        room = min(3, d) - of_prototypes
        more, _ = _principal(rest, room, size=_size(embeddings))
        # Rounding leaves a little of the first directions in the rest.
        more = torch.linalg.qr(more - axes @ (axes.T @ more)).Q if more.shape[1] else more
        axes = torch.cat([axes, more], 1)
    axes = functional.pad(axes, (0, 3 - axes.shape[1]))
    return View(axes, of_prototypes, float(spread.sum()) / whole if whole else 1.0)


def _size(rows: Float[Tensor, "n d"]) -> float:
    return float(torch.linalg.matrix_norm(rows)) if len(rows) else 0.0


def _principal(
    rows: Float[Tensor, "n d"], most: int, *, size: float
) -> tuple[Float[Tensor, "d m"], Float[Tensor, " m"]]:
    """Return the directions of largest spread that have any, as columns, and their squares.

    Args:
        rows: Centred.
        most: How many at most.
        size: Of what the rows came from; below a millionth of it there is only rounding.
    """
    _, sizes, directions = torch.linalg.svd(rows, full_matrices=False)
    n = max(0, min(most, int((sizes > 1e-6 * max(size, 1e-12)).sum())))
    found = directions[:n]
    # The sign of a component is arbitrary: its largest entry is made positive.
    largest = found.gather(1, found.abs().argmax(1, keepdim=True))
    return (found * largest.sign()).T, sizes[:n].square()


def _points(
    name: str, places: Float[Tensor, "n 3"], texts: list[str], *, marker: dict[str, Any]
) -> dict[str, Any]:
    x, y, z = (places[:, axis].tolist() for axis in range(3))
    return {
        "type": "scatter3d",
        "mode": "markers",
        "name": name,
        "x": x,
        "y": y,
        "z": z,
        "text": texts,
        "marker": marker,
        "hovertemplate": "%{text}<extra></extra>",
    }


def _prototypes(places: Float[Tensor, "p 3"], names: tuple[str, ...]) -> dict[str, Any]:
    trace = _points(
        "prototypes",
        places,
        [plain(name) for name in names[: len(places)]],
        marker={"size": 8, "symbol": "diamond"},
    )
    return {
        **trace,
        "mode": "markers+text",
        "textposition": "top center",
        "hovertemplate": "prototype of %{text}<extra></extra>",
        "meta": {"ink": True},
    }


def _globe() -> list[dict[str, Any]]:
    """Return three great circles, which show the size of the sphere and how it is turned."""
    turns = [2 * math.pi * i / (_CIRCLE - 1) for i in range(_CIRCLE)]
    circle, other, zero = (
        [math.cos(t) for t in turns],
        [math.sin(t) for t in turns],
        [0.0] * _CIRCLE,
    )
    return [
        {
            "type": "scatter3d",
            "mode": "lines",
            "x": x,
            "y": y,
            "z": z,
            "line": {"width": 1},
            "opacity": 0.35,
            "showlegend": False,
            "hoverinfo": "skip",
            "meta": {"ink": True},
        }
        for x, y, z in (
            (circle, other, zero), (circle, zero, other), (zero, circle, other),
        )
    ]  # fmt: skip


def _space(*, legend: bool = True) -> dict[str, Any]:
    axis = {"visible": False, "range": [-1.1, 1.1]}
    return {
        "margin": {"l": 0, "r": 0, "t": 0, "b": 0},
        "scene": {
            "xaxis": axis,
            "yaxis": axis,
            "zaxis": axis,
            "aspectmode": "cube",
            "dragmode": "orbit",
            "camera": {"eye": {"x": 0.95, "y": 0.95, "z": 0.55}},
        },
        "showlegend": legend,
        "legend": {"itemsizing": "constant"},
    }
