"""Two objectives in a plane on which averaging gradients gets stuck: who reaches the optimum?

The toy of Liu et al., "Conflict-Averse Gradient Descent for Multi-task Learning", 2021,
arXiv:2110.14048, figure 1: three starts, Adam with learning rate 1e-3, 100 000 steps. Prints the
end points, draws the paths to experiments/cagrad_toy.svg and fails if CAGrad misses the optimum of
the mean.

python experiments/cagrad_toy.py
"""

import argparse
import math
import sys
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection

from spherescan.surgery import Aggregator, make_aggregator

STARTS = [(-8.5, 7.5), (-8.5, -5.0), (9.0, 9.0)]
OPTIMUM = (0.0, -8.3552)  # of the mean; the Pareto set is about x1 in -7..7 at this height
NEAR = 0.05
C = 0.5
METHODS = {
    "mean": "Mean gradient",
    "rust_pcgrad": "One-sided projection (rust_pcgrad)",
    "pcgrad": "PCGrad",
    "mgda": "MGDA",
    "imtl_g": "IMTL-G",
    "cagrad": f"CAGrad, c = {C}",
}
FLOOR = 5e-6  # under the logarithm
Path2D = list[tuple[float, float]]


def gradients(x1: float, x2: float) -> list[list[float]]:
    """Differentiate both objectives, each c1 f + c2 s; see `objectives`."""
    sech = 1 / math.cosh(x2) ** 2
    first = 0.5 * (-x1 - 7) + math.tanh(x2)
    second = 0.5 * (-x1 + 3) - math.tanh(x2) + 2
    upper, lower = max(math.tanh(0.5 * x2), 0.0), max(-math.tanh(0.5 * x2), 0.0)
    slope = 0.5 / math.cosh(0.5 * x2) ** 2
    rows = []
    for inner, sign, pole in ((first, 1.0, 7.0), (second, -1.0, -7.0)):
        inverse = 1 / inner if abs(inner) > FLOOR else 0.0
        f = math.log(max(abs(inner), FLOOR)) + 6
        s = ((x1 - pole) ** 2 + 0.1 * (x2 + 8) ** 2) / 10 - 20
        along_1 = -0.5 * inverse * upper + 0.2 * (x1 - pole) * lower
        along_2 = sign * sech * inverse * upper + 0.02 * (x2 + 8) * lower
        along_2 += slope * (f if x2 > 0 else -s)
        rows.append([along_1, along_2])
    return rows


def objectives(x1: np.ndarray, x2: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Evaluate both objectives, as in the authors' code."""
    f1 = np.log(np.maximum(np.abs(0.5 * (-x1 - 7) - np.tanh(-x2)), FLOOR)) + 6
    f2 = np.log(np.maximum(np.abs(0.5 * (-x1 + 3) + np.tanh(-x2) + 2), FLOOR)) + 6
    s1 = ((-x1 + 7) ** 2 + 0.1 * (-x2 - 8) ** 2) / 10 - 20
    s2 = ((-x1 - 7) ** 2 + 0.1 * (-x2 - 8) ** 2) / 10 - 20
    c1, c2 = np.maximum(np.tanh(0.5 * x2), 0), np.maximum(np.tanh(-0.5 * x2), 0)
    return f1 * c1 + s1 * c2, f2 * c1 + s2 * c2


def descend(aggregate: Aggregator, start: tuple[float, float], *, steps: int) -> Path2D:
    """Follow Adam (0.9, 0.999, 1e-8) from a start; the path has about 200 of the points."""
    x, first, second = list(start), [0.0, 0.0], [0.0, 0.0]
    path = [start]
    for step in range(1, steps + 1):
        jacobian = torch.tensor(gradients(*x), dtype=torch.float64)
        for i, slope in enumerate(aggregate(jacobian).tolist()):
            first[i] += 0.1 * (slope - first[i])
            second[i] += 0.001 * (slope * slope - second[i])
            mean, square = first[i] / (1 - 0.9**step), second[i] / (1 - 0.999**step)
            x[i] -= 1e-3 * mean / (math.sqrt(square) + 1e-8)
        if step % max(steps // 200, 1) == 0 or step == steps:
            path.append((x[0], x[1]))
    return path


def method(name: str) -> Aggregator:
    """Look a method up; CAGrad is divided by 1 + c, as in the authors' code."""
    if name != "cagrad":
        return make_aggregator(name)
    aggregate = make_aggregator(name, c=C)
    return lambda jacobian: aggregate(jacobian) / (1 + C)


def draw(paths: dict[str, list[Path2D]], target: Path) -> None:
    """Draw each method's paths over the contours of the mean objective."""
    mpl.rcParams.update({"svg.hashsalt": "cagrad_toy", "svg.fonttype": "none", "font.size": 9})
    grid = np.meshgrid(np.linspace(-10, 10, 200), np.linspace(-10, 10, 200))
    mean = sum(objectives(*grid)) / 2
    figure, axes = plt.subplots(2, 3, figsize=(9, 6.2), sharex=True, sharey=True)
    for panel, (name, own) in zip(axes.flat, paths.items(), strict=True):
        contours = panel.contour(*grid, mean, levels=14, cmap="viridis", linewidths=0.7)
        contours.set_rasterized(True)  # as lines they would be most of the file
        panel.plot([-7, 7], [OPTIMUM[1]] * 2, color="0.45", linewidth=3, solid_capstyle="butt")
        draw_paths(panel, own)
        panel.plot(*OPTIMUM, marker="*", markersize=11, color="black", linestyle="none")
        panel.set(title=METHODS[name], xlim=(-10, 10), ylim=(-10, 10), aspect="equal")
    for panel in axes[1]:
        panel.set_xlabel("$x_1$")
    for panel in axes[:, 0]:
        panel.set_ylabel("$x_2$")
    figure.text(
        0.5,
        0.01,
        "Paths run from yellow (start, circle) to red (end, cross). Grey: Pareto set. "
        "Star: optimum of the mean objective.",
        ha="center",
    )
    figure.tight_layout(rect=(0, 0.03, 1, 1))
    figure.savefig(target, dpi=85, metadata={"Date": None})
    plt.close(figure)


def draw_paths(panel: Axes, paths: list[Path2D]) -> None:
    """Colour each path by time."""
    for path in paths:
        stretch = max(len(path) // 20, 1)
        pieces = [path[i : i + stretch + 1] for i in range(0, len(path) - 1, stretch)]
        lines = LineCollection(
            pieces, cmap="autumn_r", array=np.arange(len(pieces)), linewidths=2, capstyle="round"
        )
        panel.add_collection(lines)
        panel.plot(*path[0], "o", markersize=5, color="black", markerfacecolor="white")
        panel.plot(*path[-1], "x", markersize=7, markeredgewidth=2, color="black")


def main() -> None:
    """Run every method from every start."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=100_000, help="steps from each start")
    steps = parser.parse_args().steps
    torch.set_num_threads(1)
    paths = {}
    for name in METHODS:
        paths[name] = [descend(method(name), start, steps=steps) for start in STARTS]
        ends = "  ".join(f"({own[-1][0]:8.4f}, {own[-1][1]:8.4f})" for own in paths[name])
        print(f"{name:12} {ends}", flush=True)
    draw(paths, Path(__file__).with_suffix(".svg"))
    far = [own[-1] for own in paths["cagrad"] if math.dist(own[-1], OPTIMUM) > NEAR]
    if far:
        sys.exit(f"cagrad ended at {far}, more than {NEAR} from {OPTIMUM}")


if __name__ == "__main__":
    main()
