"""Results as a table, as JSON, and as a plot."""

import importlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from spherescan.bench.suites import Result
from spherescan.errors import ConfigError


def to_table(result: Result) -> str:
    """Return a Markdown table with its title above and its notes below."""
    lines = [f"### {result.title}", "", _row(result.columns), _row(["---"] * len(result.columns))]
    lines += [_row([_shown(row.get(column)) for column in result.columns]) for row in result.rows]
    if result.notes:
        lines += ["", *(f"- {note}" for note in result.notes)]
    return "\n".join(lines) + "\n"


def to_json(environment: dict[str, str], results: Sequence[Result]) -> str:
    """Return everything as one JSON object."""
    return json.dumps(
        {"environment": environment, "results": [asdict(result) for result in results]}, indent=1
    )


def draw(results: Sequence[Result], path: Path) -> None:
    """Draw each table of training steps as bars of how many times ours it takes.

    Raises:
        ConfigError: matplotlib is not installed, or there is nothing to draw.
    """
    steps = [result for result in results if "times ours" in result.columns]
    if not steps:
        raise ConfigError("nothing to draw; the plot shows the suite step")
    try:
        pyplot = importlib.import_module("matplotlib.pyplot")
    except ImportError as error:
        raise ConfigError("the plot needs matplotlib: pip install 'spherescan[bench]'") from error
    figure, axes = pyplot.subplots(
        len(steps), 1, figsize=(8, 2.4 * len(steps)), squeeze=False, layout="constrained"
    )
    for axis, result in zip(axes[:, 0], steps, strict=True):
        names = [row["contender"] for row in result.rows]
        times = [row["times ours"] for row in result.rows]
        bars = axis.barh(names, times, color=[_colour(name) for name in names])
        axis.bar_label(bars, labels=[f"{value:.2f}" for value in times], padding=3, fontsize=8)
        axis.set_xscale("log")
        axis.set_xlim(min(times) / 1.3, max(times) * 2)
        axis.invert_yaxis()
        axis.set_title(result.title, fontsize=10)
        axis.tick_params(labelsize=8)
        axis.axvline(1.0, color="0.5", linewidth=0.8)
    axes[-1, 0].set_xlabel("time, relative to spherescan in float32 (less is faster)")
    figure.savefig(path)
    pyplot.close(figure)


def _colour(name: str) -> str:
    if name.startswith("spherescan"):
        return "#0072b2"
    return "#999999" if name.startswith("matrix") else "#d55e00"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    if not isinstance(value, float):
        return str(value)
    if value and abs(value) < 1e-3:
        return f"{value:.1e}"
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
