"""Series of classes that were never seen, with the classifier's defaults and with linear softmax.

    OMP_NUM_THREADS=1 python experiments/unknown.py [--draws 5] [--causal]

JapaneseVowels, with its official split and split anew in each draw, and MNIST-1D (generated, 100
series of each class to train). A draw leaves 40 % of the classes out of training. The rival is a
logistic regression with a softmax on the same features, its penalty chosen by cross-validation of
the log loss on the training part; it is as sure as its largest probability. At 5 % the share of
known test series that are called unknown is measured, and of prediction sets at 90 % the share that
holds the true class; then the same of each half of the known test series after `calibrate` with the
other half.
"""

import argparse
import statistics

import mnist1d
import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold

from spherescan.calibration import auroc
from spherescan.data import locate, read_series
from spherescan.estimators import SequenceClassifier
from spherescan.estimators.sequences import described

SETS = ("JapaneseVowels", "JapaneseVowels, split anew", "MNIST-1D")
OF_EACH = 100
Data = tuple[list[np.ndarray], np.ndarray]


def load(name: str, seed: int) -> tuple[Data, Data]:
    """Return training and test series with their classes."""
    if name.startswith("JapaneseVowels"):
        files = [locate(f"sample:JapaneseVowels_{split}.ts") for split in ("TRAIN", "TEST")]
        train, test = (
            ([x.T for x in table.series], np.array(table.labels))
            for table in map(read_series, files)
        )
        if name == SETS[0]:
            return train, test
        every = train[0] + test[0], np.concatenate([train[1], test[1]])
        order = np.random.default_rng(seed).permutation(len(every[1]))
        return of(every, order[: len(train[1])]), of(every, order[len(train[1]) :])
    data = mnist1d.load(varied_noise=False)
    few = np.concatenate([(data.y_train == k).nonzero()[0][:OF_EACH] for k in range(10)])
    return of((list(data.x_train), data.y_train), few), (list(data.x_test), data.y_test)


def of(data: Data, keep: np.ndarray) -> Data:
    """Return some of the series, by index."""
    return [data[0][i] for i in keep], data[1][keep]


def run(train: Data, test: Data, seed: int, *, causal: bool) -> dict[str, float]:
    """Return the figures of one draw."""
    classes = np.unique(train[1])
    rng = np.random.default_rng(seed)
    known = rng.permutation(classes)[: len(classes) - round(0.4 * len(classes))]
    train = of(train, np.isin(train[1], known).nonzero()[0])
    is_known = np.isin(test[1], known)
    ours = SequenceClassifier(causal=causal, random_state=seed).fit(*train)
    features = ours._fitted.features
    rows = features.for_ridge(ours._fitted.described).numpy()
    new_rows = features.for_ridge(described(ours, features, test[0])).numpy()
    folds = StratifiedKFold(5, shuffle=True, random_state=seed)
    search = GridSearchCV(
        LogisticRegression(max_iter=2000),
        {"C": np.logspace(-1, 4, 6)},
        scoring="neg_log_loss",
        cv=folds,
    ).fit(rows, train[1])
    cosines, softmax = ours.decision_function(test[0]), search.predict_proba(new_rows)
    flags = torch.from_numpy(is_known)
    new = of(test, is_known.nonzero()[0])
    halves = np.array_split(rng.permutation(len(new[1])), 2)
    rejected, held = rates(ours, new)
    calibrated = [
        rates(ours.calibrate(*of(new, half)), of(new, other))
        for half, other in (halves, halves[::-1])
    ]
    right = {
        "cosines": ours.classes_[cosines.argmax(1)] == test[1],
        "softmax": search.classes_[softmax.argmax(1)] == test[1],
    }
    return {
        "AUROC, known score": auroc(*parted(ours.known_score(test[0]), flags)),
        "AUROC, largest cosine": auroc(*parted(cosines.max(1), flags)),
        "AUROC, largest softmax": auroc(*parted(softmax.max(1), flags)),
        "accuracy of known, cosines": right["cosines"][is_known].mean(),
        "accuracy of known, softmax": right["softmax"][is_known].mean(),
        "known called unknown, asked for 5 %": rejected,
        "sets that hold the class, asked for 90 %": held,
        "known called unknown, calibrated": np.mean([rate for rate, _ in calibrated]),
        "sets that hold the class, calibrated": np.mean([share for _, share in calibrated]),
    }


def rates(classifier: SequenceClassifier, known: Data) -> tuple[float, float]:
    """Return which share of known series is called unknown, and which share sets hold."""
    inside = classifier.predict_set(known[0], coverage=0.9)
    place = np.searchsorted(classifier.classes_, known[1])
    rejected = classifier.predict_open(known[0]) == "unknown"
    return float(rejected.mean()), float(inside[np.arange(len(place)), place].mean())


def parted(score: np.ndarray, is_known: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the scores of known and of unknown series."""
    scores = torch.from_numpy(score)
    return scores[is_known], scores[~is_known]


def main() -> None:
    """Print mean and range of each figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--causal", action="store_true", help="networks that read one way")
    options = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {options.draws} draws")
    for name in SETS:
        draws = [
            run(*load(name, seed), seed, causal=options.causal) for seed in range(options.draws)
        ]
        print(f"\n| {name}, % | mean | range |\n|---|---|---|")
        for figure in draws[0]:
            values = [100 * float(draw[figure]) for draw in draws]
            print(
                f"| {figure} | {statistics.mean(values):.1f} "
                f"| {min(values):.1f}-{max(values):.1f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
