"""Numbers that were predicted against those that are true."""

from typing import Any

import torch

from spherescan.report.answers import NumberAnswers, thinned
from spherescan.report.page import Section, Table
from spherescan.report.palette import colour

_MOST_POINTS = 5000
_SHARES = (0.5, 0.8, 0.9, 0.95)


def predicted_and_true(answers: NumberAnswers) -> Section:
    """Draw predictions over true values, with the interval where there is one."""
    kept = thinned(len(answers.target), _MOST_POINTS)
    true, guess = answers.target[kept].double(), answers.predicted[kept].double()
    ends = [min(float(true.min()), float(guess.min())), max(float(true.max()), float(guess.max()))]
    line: dict[str, Any] = {"type": "scatter", "mode": "lines", "hoverinfo": "skip"}
    data = [
        {
            **line,
            "name": "predicted = true",
            "x": ends,
            "y": ends,
            "line": {"dash": "dot", "width": 1},
            "meta": {"ink": True},
        },
        {
            "type": "scatter",
            "mode": "markers",
            "name": "sequences",
            "x": true.tolist(),
            "y": guess.tolist(),
            "marker": {"color": colour(0), "size": 6, "opacity": 0.7},
            "hovertemplate": "true %{x:.4g}, predicted %{y:.4g}<extra></extra>",
        },
    ]
    text = f"{answers.source}: root mean squared error {answers.rmse:.4g}."
    half = answers.half_width
    if half is not None:
        for sign, name in ((-1, "interval at 90 %"), (1, "")):
            data.append(
                {
                    **line,
                    "name": name,
                    "x": ends,
                    "y": [end + sign * half for end in ends],
                    "line": {"color": colour(1), "dash": "dash", "width": 1},
                    "showlegend": bool(name),
                }
            )
        inside = float(((answers.predicted - answers.target).abs() <= half).double().mean())
        text += f" Intervals at 90 %, {2 * half:.4g} wide, hold {inside:.1%} of these values."
        text += answers.caution
    error = (answers.predicted - answers.target).abs().double()
    rows = [
        (f"{share:.0%} of the errors are at most", f"{torch.quantile(error, share).item():.4g}")
        for share in _SHARES
    ]
    rows.append(("the largest error", f"{error.max().item():.4g}"))
    rows.append(("mean error", f"{(answers.predicted - answers.target).double().mean():+.4g}"))
    layout = {
        "margin": {"l": 70, "r": 20, "t": 10, "b": 50},
        "xaxis": {"title": {"text": "true"}},
        "yaxis": {"title": {"text": "predicted"}},
        "legend": {"orientation": "h", "y": -0.2},
    }
    return Section(
        "numbers",
        "Predicted and true",
        text,
        tuple(data),
        layout,
        Table(("", "value"), tuple(rows)),
        fold=False,
    )
