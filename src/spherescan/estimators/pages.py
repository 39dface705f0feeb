"""What an estimator shows of itself: a page, and a short form for notebooks.

Letters: n series, k classes, d dimensions of the sphere.
"""

import html
import platform
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
from spherescan.estimators.fitted_classifier import Calibration
from spherescan.report import (
    ClassAnswers,
    NetworkCurve,
    NumberAnswers,
    Page,
    Section,
    Table,
    class_sphere,
    confusion,
    network_curves,
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
    judged: Calibration,
    seconds: Mapping[str, float],
) -> Page:
    """Return the page of a classifier.

    Args:
        estimator: Fitted.
        answers: About the series that are looked at.
        unknown: What `known_score` is of series of no class.
        judged: What sets are made by.
        seconds: What describing the series and answering took; where neither was done, the page
            has what the stages of the fit took.
    """
    of = "series given as unknown"
    sections = [
        confusion(answers),
        class_sphere(answers),
        reliability(answers),
        open_set(
            answers, unknown, unknown_source="" if unknown is None else f"{len(unknown)} {of}"
        ),
        _sets(answers, judged),
        *_learning(estimator, "classes"),
        *_parts(estimator, seconds, len(answers.target)),
    ]
    return Page(
        title=f"{type(estimator).__name__}: {len(answers.names)} classes",
        subtitle=_subtitle(estimator, len(estimator._fitted.target), answers.source),
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
            *_learning(estimator, "in which part of the sorted values each lies"),
            *_parts(estimator, seconds, len(answers.target)),
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


def _sets(answers: ClassAnswers, judged: Calibration) -> Section:
    """Tell how often sets of classes hold the true one, and how large they are."""
    key, title = "sets", "Prediction sets"
    n = len(judged.target)
    if n < _FEWEST:
        return Section(key, title, f"{n} series are too few to tell a coverage.")
    assert answers.scale is not None
    scores = lac_scores(probabilities(judged.cosines, answers.scale))
    asked = lac_scores(probabilities(answers.cosines, answers.scale))
    rows = []
    for coverage in _COVERAGES:
        threshold = set_threshold(scores, judged.target, coverage=coverage)
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
        f"Sets of classes that hold the true one as often as asked, on the average over {n} series "
        "that set their sizes and new ones. An empty set says that no class fits; one of several, "
        "that they cannot be told apart."
        + (
            " Measured on the series that set their sizes."
            if answers.cosines is judged.cosines
            else ""
        ),
        table=Table(heads, tuple(rows)),
        fold=False,
    )


def _learning(estimator: BaseEstimator, what: str) -> list[Section]:
    """Return the curves of networks that were trained, where they are known."""
    features = estimator._fitted.features
    if not any(curve.points for curve in features.curves):
        return []
    curves = {
        f"network {index}": NetworkCurve(curve.points, curve.in_the_end)
        for index, curve in enumerate(features.curves, 1)
    }
    text = f"Loss of training of networks, each of which learned {what} from other series."
    if features.networks is None:
        text += (
            f" All were dropped after {len(curves)}: on series that were left out, fixed features "
            "did better alone."
        )
    return [network_curves(curves, text=text)]


def _parts(estimator: BaseEstimator, seconds: Mapping[str, float], n: int) -> list[Section]:
    """Return where the time of the answers went; where none was measured, that of the fit."""
    of = f"the answers to {n} series"
    if not seconds:
        seconds, of = estimator._fitted.features.seconds, "the last call of fit"
    whole = sum(seconds.values())
    return [slowest_parts(seconds, whole=whole, of=of)] if whole else []


def _fit_times(seconds: Mapping[str, float]) -> dict[str, dict[str, str]]:
    """Return the seconds of a fit by stage, unless it was done elsewhere."""
    if not seconds:
        return {}
    shown = {name: f"{value:.2f}" for name, value in seconds.items()}
    return {"Seconds of the last call of fit": {**shown, "all": f"{sum(seconds.values()):.2f}"}}


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
        **_fit_times(estimator._fitted.features.seconds),
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
