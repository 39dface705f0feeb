"""The regressor of series with its defaults on Tecator, beside peers: fat of meat by spectrum.

    pip install ".[experiments]"
    OMP_NUM_THREADS=1 python experiments/regression.py [--seeds 5] [--splits 20]

On the official split (172 of 215 spectra train) every model is fitted with each seed; peers choose
their settings by cross-validation on the training part. Then on random splits of the same sizes
the share of values within intervals is counted. Nothing is chosen by the test part.
"""

import argparse
import importlib.util
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from aeon.transformations.collection.convolution_based import MiniRocket
from sklearn.cross_decomposition import PLSRegression
from sklearn.dummy import DummyRegressor
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import GridSearchCV, KFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from spherescan.data import read_series
from spherescan.estimators import SequenceRegressor

COVERAGE = 0.9


def load(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Return spectra and percentages of fat of an official split."""
    spec = importlib.util.find_spec("sktime")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit('sktime is missing: pip install ".[experiments]"')
    folder = Path(spec.submodule_search_locations[0]) / "datasets" / "data" / "Tecator"
    table = read_series(folder / f"Tecator_{split}.ts")
    assert table.targets is not None
    return np.stack(table.series)[:, :, 0].astype(float), table.targets


def standard_normal_variate(spectra: np.ndarray) -> np.ndarray:
    """Centre and scale each spectrum, as chemists do."""
    return (spectra - spectra.mean(1, keepdims=True)) / spectra.std(1, keepdims=True)


def peers(seed: int) -> dict[str, Callable[[], Any]]:
    """Return what makes each model."""
    folds = KFold(5, shuffle=True, random_state=seed)
    return {
        "SequenceRegressor": lambda: SequenceRegressor(random_state=seed),
        "MiniRocket of aeon, ridge": lambda: make_pipeline(
            MiniRocket(random_state=seed),
            StandardScaler(with_mean=False),
            RidgeCV(np.logspace(-3, 3, 10)),
        ),
        "kernel ridge on standardised spectra": lambda: make_pipeline(
            FunctionTransformer(standard_normal_variate),
            GridSearchCV(
                KernelRidge(kernel="rbf"),
                {"alpha": np.logspace(-8, 0, 9), "gamma": np.logspace(-5, 0, 11)},
                cv=folds,
            ),
        ),
        "partial least squares": lambda: GridSearchCV(
            PLSRegression(scale=False), {"n_components": range(1, 31)}, cv=folds
        ),
        "mean": DummyRegressor,
    }


def rmse(model: Any, test: tuple[np.ndarray, np.ndarray]) -> float:
    """Return the root of the mean squared error."""
    return float(np.sqrt(np.mean((model.predict(test[0]).reshape(-1) - test[1]) ** 2)))


def covered(model: SequenceRegressor, test: tuple[np.ndarray, np.ndarray]) -> tuple[float, float]:
    """Return the share of values within intervals, and how wide these are."""
    low, high = model.predict_interval(test[0], coverage=COVERAGE).T
    return float(((low <= test[1]) & (test[1] <= high)).mean()), float((high - low).mean())


def main() -> None:
    """Print the errors of all, then how often intervals hold."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--splits", type=int, default=20)
    options = parser.parse_args()
    train, test = load("TRAIN"), load("TEST")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {options.seeds} seeds")
    print("| model | RMSE (range) | fit, s |\n|---|---|---|")
    shares = []
    for name in peers(0):
        errors, seconds = [], []
        for seed in range(options.seeds):
            model = peers(seed)[name]()
            began = time.process_time()
            model.fit(*train)
            seconds.append(time.process_time() - began)
            errors.append(rmse(model, test))
            if isinstance(model, SequenceRegressor):
                shares.append(covered(model, test)[0])
        print(
            f"| {name} | {statistics.mean(errors):.3f} ({min(errors):.3f}-{max(errors):.3f}) "
            f"| {statistics.median(seconds):.1f} |",
            flush=True,
        )
    shown = ", ".join(f"{100 * share:.1f}" for share in shares)
    print(f"intervals at {COVERAGE:.0%} on the official test part, by seed: {shown} %")
    spectra, fat = (np.concatenate(parts) for parts in zip(train, test, strict=True))
    found = []
    for seed in range(options.splits):
        order = np.random.default_rng(seed).permutation(len(fat))
        first, rest = order[: len(train[1])], order[len(train[1]) :]
        model = SequenceRegressor(random_state=seed).fit(spectra[first], fat[first])
        part = spectra[rest], fat[rest]
        found.append((*covered(model, part), rmse(model, part)))
    share, width, error = np.array(found).T
    print(
        f"on {options.splits} random splits: {100 * share.mean():.1f} % within "
        f"({100 * share.min():.1f}-{100 * share.max():.1f}), {width.mean():.2f} wide, "
        f"RMSE {error.mean():.3f} ({error.min():.3f}-{error.max():.3f})"
    )


if __name__ == "__main__":
    main()
