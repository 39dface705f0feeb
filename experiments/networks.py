"""What each part of the classifier's networks contributes, on training series alone.

    pip install ".[experiments]"
    OMP_NUM_THREADS=1 python experiments/networks.py [--seeds 2] [NAME ...]

Each training set is dealt into six parts; a network learns from four, and two networks answer for
each series, as in `SequenceClassifier(n_networks=6)`. No test series is read. A variant lacks one
part: without the SSM, blocks add nothing, so convolutions and pooling are left. Then the ridge
weighs networks against fixed features, as the classifier does: what it gets right of the same
series, each left out, alone and together. MNIST-1D is generated; its first 500 and 1000 training
series.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import mnist1d
import numpy as np
import torch
from series import NAMES, load
from torch import Generator, Tensor

from spherescan.estimators import SequenceClassifier
from spherescan.estimators import networks as classifier_networks
from spherescan.estimators.description import SeriesFeatures, weight_of
from spherescan.estimators.networks import Learned, Networks, NetworkSettings
from spherescan.estimators.sequences import fitted_features, padded, seeded
from spherescan.features import ridge, seen_from_below
from spherescan.nn import SequenceModel, separated_prototypes
from spherescan.train.in_memory import Plan, fit_series

SETS = (*NAMES, "MNIST-1D, 500", "MNIST-1D, 1000")
VARIANTS = (
    "whole", "without SSM", "time-invariant SSM", "without convolutions", "one way",
    "without augmentation", "mean pooling alone",
)  # fmt: skip


def training(name: str) -> tuple[list[np.ndarray], np.ndarray]:
    """Return the training series of a set."""
    if not name.startswith("MNIST-1D"):
        return load(name, "TRAIN")
    n = int(name.rpartition(" ")[2])
    data = mnist1d.load(varied_noise=False)
    return [np.asarray(x) for x in data.x_train[:n]], np.asarray(data.y_train)[:n]


def without_ssm(model: SequenceModel) -> SequenceModel:
    """Keep blocks from adding anything to the stream, and from learning to."""
    for name, parameter in model.layers.named_parameters():
        parameter.requires_grad_(False)
        if name.endswith("out_proj.weight"):
            parameter.zero_()
    return model


def variant(name: str, settings: NetworkSettings) -> tuple[NetworkSettings, Callable[..., object]]:
    """Return settings, and a training that takes the part away."""

    def train(model: SequenceModel, learned: object, plan: Plan, **more: object) -> SequenceModel:
        if name == "without SSM":
            with torch.no_grad():
                without_ssm(model)
        if name == "without augmentation":
            plan = replace(plan, augment=False)
        return fit_series(model, learned, plan, **more)

    if name == "time-invariant SSM":
        settings = replace(settings, selective=False)
    if name == "one way":
        settings = replace(settings, causal=True)
    return settings, train


def held_out(
    name: str, x: Tensor, mask: Tensor, target: Tensor, points: Tensor, seed: int
) -> Learned:
    """Train one variant."""
    settings, train = variant(name, NetworkSettings(6))
    before = (
        classifier_networks.fit_series, classifier_networks._N_CONVOLUTIONS,
        classifier_networks._POOLING,
    )  # fmt: skip
    classifier_networks.fit_series = train
    if name == "without convolutions":
        classifier_networks._N_CONVOLUTIONS = 0
    if name == "mean pooling alone":
        classifier_networks._POOLING = ("mean",)
    try:
        return Networks.fitted(
            x, mask, target, seen_from_below(points), settings,
            generator=Generator().manual_seed(seed),
        )  # fmt: skip
    finally:
        (
            classifier_networks.fit_series, classifier_networks._N_CONVOLUTIONS,
            classifier_networks._POOLING,
        ) = before  # fmt: skip


def right(cosines: Tensor, target: Tensor) -> float:
    """Return the accuracy in per cent."""
    return 100 * float((cosines.argmax(1) == target).double().mean())


def main() -> None:
    """Print a row for each set."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=list(SETS))
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--variants", nargs="*", default=list(VARIANTS))
    options = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {options.seeds} seeds")
    columns = [*options.variants, "fixed features", "both", "weight", "s per fit"]
    print("| set | " + " | ".join(columns) + " |")
    print("|---" * (len(columns) + 1) + "|")
    for name in options.names:
        series, y = training(name)
        target = torch.from_numpy(np.unique(y, return_inverse=True)[1])
        k = int(target.max()) + 1
        points = separated_prototypes(k, k - 1).points
        prototypes = seen_from_below(points)
        found: dict[str, list[float]] = {column: [] for column in columns}
        for seed in range(options.seeds):
            estimator = SequenceClassifier(random_state=seed)
            batch = padded(estimator, series, reset=True)
            for each in options.variants:
                began = time.process_time()
                learned = held_out(each, *batch, target, points, seed)
                if each == "whole":
                    found["s per fit"].append(time.process_time() - began)
                    whole = learned
                found[each].append(right(learned.left_out @ prototypes.T, target))
            if "whole" not in options.variants:
                continue
            fixed, rows = fitted_features(estimator, batch, generator=seeded(estimator))
            _, both = SeriesFeatures.joined((fixed, rows), whole, points[target])
            for column, values in (("fixed features", rows), ("both", both)):
                fitted = ridge(values, points[target])
                found[column].append(right(seen_from_below(fitted.left_out) @ prototypes.T, target))
            found["weight"].append(weight_of(rows, whole.left_out, points[target]))
        shown = [f"{statistics.mean(found[c]):.1f}" if found[c] else "" for c in columns]
        print(f"| {name} ({len(y)}) | " + " | ".join(shown) + " |", flush=True)


if __name__ == "__main__":
    main()
