"""What an estimator shows of itself: a page, and a short form for notebooks.

Letters: n series, k classes, d dimensions of the sphere.
"""

import html
import platform
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import sklearn
import torch
from jaxtyping import Float
from sklearn.base import BaseEstimator
from torch import Tensor

from spherescan import __version__
from spherescan.calibration import (
    fit_half_width,
    lac_scores,
    prediction_sets,
    probabilities,
    set_threshold,
)
from spherescan.report import (
    ClassAnswers,
    NumberAnswers,
    Page,
    Section,
    Table,
    class_sphere,
    confusion,
    number_sphere,
    open_set,
    predicted_and_true,
    reliability,
    slowest_parts,
)

_COVERAGES = (0.8, 0.9, 0.95)
# Fewer series than this cannot tell a coverage, let alone two.
_FEWEST = 20
_STYLE = "border-collapse:collapse;font-size:90%;margin:.5em 0"


def page_of_classifier(
    estimator: BaseEstimator,
    answers: ClassAnswers,
    *,
    unknown: Float[Tensor, " m"] | None,
    left_out: ClassAnswers,
    seconds: Mapping[str, float],
) -> Page:
    """Return the page of a classifier.

    Args:
        estimator: Fitted.
        answers: About the series that are looked at.
        unknown: What `known_score` is of series of no class.
        left_out: Answers about each training series, left out, which sets are made by.
        seconds: What describing the series and answering took; nothing where neither was done.
    """
    of = "series given as unknown"
    sections = [
        confusion(answers),
        class_sphere(answers),
        reliability(answers),
        open_set(
            answers, unknown, unknown_source="" if unknown is None else f"{len(unknown)} {of}"
        ),
        _sets(answers, left_out),
        *_parts(seconds, len(answers.target)),
    ]
    return Page(
        title=f"{type(estimator).__name__}: {len(answers.names)} classes",
        subtitle=_subtitle(estimator, len(left_out.target), answers.source),
        headline={
            "accuracy": f"{answers.accuracy:.3f}",
            "series": str(len(answers.target)),
            "classes": str(len(answers.names)),
        },
        sections=sections,
        facts=_facts(estimator, {"classes": ", ".join(answers.names)}),
        commands={"An estimator with these settings": _code(estimator)},
    )


def page_of_regressor(
    estimator: BaseEstimator,
    answers: NumberAnswers,
    *,
    n_trained: int,
    seconds: Mapping[str, float],
) -> Page:
    """Return the page of a regressor; see `page_of_classifier`."""
    lower, upper = estimator.range_
    return Page(
        title=type(estimator).__name__,
        subtitle=_subtitle(estimator, n_trained, answers.source),
        headline={"rmse": f"{answers.rmse:.4g}", "series": str(len(answers.target))},
        sections=[
            predicted_and_true(answers),
            number_sphere(answers),
            *_parts(seconds, len(answers.target)),
        ],
        facts=_facts(estimator, {"predictions lie in": f"{lower:.4g}..{upper:.4g}"}),
        commands={"An estimator with these settings": _code(estimator)},
    )


def half_width_of(left_out: Float[Tensor, " n"], target: Float[Tensor, " n"]) -> float | None:
    """Return half the width of intervals at 90 %, where there are series enough to tell."""
    half = fit_half_width(left_out, target, coverage=0.9)
    return half if half < float("inf") else None


def short_form(facts: Mapping[str, str]) -> str:
    """Return a few facts as HTML for a notebook; nothing in them is read as tags."""
    rows = "".join(
        f'<tr><th style="text-align:left;padding-right:1em">{html.escape(name)}</th>'
        f"<td>{html.escape(value)}</td></tr>"
        for name, value in facts.items()
    )
    return f'<table style="{_STYLE}">{rows}</table>'


class Clock:
    """Takes the time of what is done between two looks at it."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def look(self, name: str) -> None:
        """Say what the time since the last look was spent on."""
        now = time.perf_counter()
        self.seconds[name] = now - self._last
        self._last = now


def _sets(answers: ClassAnswers, left_out: ClassAnswers) -> Section:
    """Tell how often sets of classes hold the true one, and how large they are."""
    key, title = "sets", "Prediction sets"
    n = len(left_out.target)
    if n < _FEWEST:
        return Section(key, title, f"{n} training series are too few to promise a coverage.")
    assert answers.scale is not None
    scores = lac_scores(probabilities(left_out.cosines, answers.scale))
    asked = lac_scores(probabilities(answers.cosines, answers.scale))
    rows = []
    for coverage in _COVERAGES:
        threshold = set_threshold(scores, left_out.target, coverage=coverage)
        sets = prediction_sets(asked, threshold, never_empty=False)
        held = sets.gather(1, answers.target[:, None]).double().mean()
        sizes = sets.sum(1)
        rows.append(
            (
                f"{coverage:.0%}",
                f"{held:.1%}",
                f"{sizes.double().mean():.2f}",
                str(int((sizes == 0).sum())),
                str(int((sizes > 1).sum())),
            )
        )
    heads = ("coverage asked for", "sets that hold the class", "mean size", "empty", "of several")
    return Section(
        key,
        title,
        "Sets of classes that hold the true one as often as asked, on the average over training "
        "and new series. An empty set says that no class fits; one of several, that they cannot "
        "be told apart."
        + (" Measured on the series that set their sizes." if answers is left_out else ""),
        table=Table(heads, tuple(rows)),
        fold=False,
    )


def _parts(seconds: Mapping[str, float], n: int) -> list[Section]:
    if not seconds:
        return []
    of = f"the answers to {n} series"
    return [slowest_parts(seconds, whole=sum(seconds.values()), of=of)]


def _subtitle(estimator: BaseEstimator, n_trained: int, source: str) -> str:
    channels = estimator.n_channels_
    of = f"{n_trained} series of {channels} channel{'' if channels == 1 else 's'}"
    if estimator.vocab_size is not None:
        of = f"{n_trained} sequences over {estimator.vocab_size} tokens"
    return f"Fitted to {of}; asked about {source}."


def _facts(estimator: BaseEstimator, more: Mapping[str, str]) -> dict[str, dict[str, str]]:
    settings = {name: repr(value) for name, value in estimator.get_params(deep=False).items()}
    return {
        "Settings": settings,
        "What it learned": {
            "channels": str(estimator.n_channels_),
            "series are described by": estimator._fitted.features.in_words,
            **more,
        },
        "Environment": {
            "spherescan": __version__,
            "torch": torch.__version__,
            "scikit-learn": sklearn.__version__,
            "Python": platform.python_version(),
            "system": f"{platform.system()} {platform.machine()}",
            "threads": str(torch.get_num_threads()),
        },
    }


def _code(estimator: BaseEstimator) -> str:
    defaults = type(estimator)().get_params(deep=False)
    changed = {k: v for k, v in estimator.get_params(deep=False).items() if v != defaults[k]}
    values = {k: v.item() if isinstance(v, np.generic) else v for k, v in changed.items()}
    written = {k: v for k, v in values.items() if isinstance(v, bool | int | float | str | None)}
    settings: Any = ", ".join(f"{name}={value!r}" for name, value in written.items())
    name, lost = type(estimator).__name__, sorted(values.keys() - written.keys())
    note = f"  # and {', '.join(lost)}, which has no text" if lost else ""
    return f"from spherescan.estimators import {name}\n\n{name}({settings}).fit(X, y){note}"
