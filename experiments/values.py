"""What state-space models add to the regressor of series, and what reading one way costs.

    OMP_NUM_THREADS=1 python experiments/values.py [--seeds 3] [--tasks ...] [--cases ...]

Tasks: the place of the stroke and the noise level of MNIST-1D with a noise of its own in each
sample (4000 train, 1000 test), and the time between two pulses in noise (2000 and 1000). Each
case is fitted with each seed; errors are on the test part, which chooses nothing.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import mnist1d
import numpy as np
import torch

from spherescan.estimators import SequenceRegressor

CASES: dict[str, dict[str, Any]] = {
    "fixed features": {"n_networks": 0},
    "and networks (default)": {},
    "networks that read one way": {"causal": True},
}
Split = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def pulses(n: int, *, seed: int, length: int = 120) -> tuple[np.ndarray, np.ndarray]:
    """Return series with two pulses of any place and height in noise, and the time between them."""
    rng = np.random.default_rng(seed)
    gap = rng.uniform(10, 80, size=n)
    first = rng.uniform(5, length - 10 - gap)
    t = np.arange(length)
    series = 0.3 * rng.standard_normal((n, length))
    for place in (first, first + gap):
        height = rng.uniform(1, 2, size=(n, 1))
        series += height * np.exp(-(((t - place[:, None]) / 2) ** 2))
    return series, gap


def stroke(what: str) -> Callable[[], Split]:
    """Return what loads MNIST-1D with another target than the digit."""

    def load() -> Split:
        data = mnist1d.load(varied_noise=True)
        x_train, x_test = np.asarray(data.x_train), np.asarray(data.x_test)
        return (
            x_train,
            np.asarray(getattr(data, f"{what}_train")),
            x_test,
            np.asarray(getattr(data, f"{what}_test")),
        )

    return load


TASKS: dict[str, Callable[[], Split]] = {
    "pulses": lambda: (*pulses(2000, seed=0), *pulses(1000, seed=1)),
    "place of the stroke": stroke("position"),
    "noise level": stroke("noise"),
}


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tasks", nargs="*", default=list(TASKS))
    parser.add_argument("--cases", nargs="*", default=list(CASES))
    options = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {options.seeds} seeds")
    print("| task | case | RMSE (range) | R^2 | within 90 % intervals, % | fit, s |")
    print("|---|---|---|---|---|---|")
    for task in options.tasks:
        x_train, y_train, x_test, y_test = TASKS[task]()
        for case in options.cases:
            errors, scores, shares, seconds = [], [], [], []
            for seed in range(options.seeds):
                model = SequenceRegressor(**CASES[case], random_state=seed)
                began = time.process_time()
                model.fit(x_train, y_train)
                seconds.append(time.process_time() - began)
                predicted = model.predict(x_test)
                errors.append(float(np.sqrt(np.mean((predicted - y_test) ** 2))))
                scores.append(float(model.score(x_test, y_test)))
                low, high = model.predict_interval(x_test).T
                shares.append(100 * float(((low <= y_test) & (y_test <= high)).mean()))
            print(
                f"| {task} | {case} | {statistics.mean(errors):.4g} "
                f"({min(errors):.4g}-{max(errors):.4g}) | {statistics.mean(scores):.4f} "
                f"| {statistics.mean(shares):.1f} | {statistics.median(seconds):.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
