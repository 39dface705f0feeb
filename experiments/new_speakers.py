"""Speakers that come later: six to begin with, then three more, one by one, of five utterances.

    OMP_NUM_THREADS=1 python experiments/new_speakers.py [--draws 20]

JapaneseVowels, official split. A draw chooses which speakers come later, in which order, and their
utterances. `add_classes` makes no gradient step; after each the cosines with the classes of
before are compared bit for bit. The last column is a classifier fitted to the same series at once.
"""

import argparse
import statistics

import numpy as np
import torch

from spherescan.data import locate, read_series
from spherescan.estimators import SequenceClassifier

N_BASE, N_EXAMPLES = 6, 5
Data = tuple[list[np.ndarray], np.ndarray]


def load(split: str) -> Data:
    """Return utterances and speakers."""
    table = read_series(locate(f"sample:JapaneseVowels_{split}.ts"))
    return [values.T for values in table.series], np.array(table.labels)


def of(data: Data, keep: np.ndarray) -> Data:
    """Return some of the utterances, by index."""
    return [data[0][i] for i in keep], data[1][keep]


def run(train: Data, test: Data, seed: int) -> dict[str, float]:
    """Return the accuracies of one draw."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(np.unique(train[1]))
    base, later = order[:N_BASE], order[N_BASE:]
    first = np.isin(train[1], base).nonzero()[0]
    known = np.isin(test[1], base).nonzero()[0]
    new = (~np.isin(test[1], base)).nonzero()[0]
    classifier = SequenceClassifier(random_state=seed).fit(*of(train, first))
    found = {"base": classifier.score(*of(test, known))}
    used = [first]
    for speaker in later:
        before = classifier.decision_function(test[0])
        examples = rng.permutation((train[1] == speaker).nonzero()[0])[:N_EXAMPLES]
        classifier.add_classes(*of(train, examples))
        used.append(examples)
        after = classifier.decision_function(test[0])
        assert np.array_equal(after[:, : before.shape[1]], before)
    at_once = SequenceClassifier(random_state=seed).fit(*of(train, np.concatenate(used)))
    return found | {
        "all nine": classifier.score(*test),
        "of the base": classifier.score(*test) / found["base"],
        "base speakers": classifier.score(*of(test, known)),
        "new speakers": classifier.score(*of(test, new)),
        "fitted at once": at_once.score(*test),
    }


def main() -> None:
    """Print mean and range of each figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=20)
    options = parser.parse_args()
    train, test = load("TRAIN"), load("TEST")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {options.draws} draws")
    draws = [run(train, test, seed) for seed in range(options.draws)]
    print("| accuracy, % | mean | range |\n|---|---|---|")
    for name in draws[0]:
        values = [100 * draw[name] for draw in draws]
        print(f"| {name} | {statistics.mean(values):.1f} | {min(values):.1f}-{max(values):.1f} |")


if __name__ == "__main__":
    main()
