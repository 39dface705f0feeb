"""Labels of sequences of tokens: the language of messages, and which of two events came first.

    pip install ".[experiments]"
    OMP_NUM_THREADS=1 python experiments/tokens.py [--seeds 3] [--per-class ...] [--order ...]

The messages are those of the translations that come with Django, at least 15 letters long, in 27
languages of Latin script; tokens are bytes. A quarter of the messages, in all languages, is for
testing: another quarter for every seed. The order is made here: 60 random tokens of 20, with two
more of which one comes first, anywhere; 2000 sequences test. Beside `SequenceClassifier` without
and with networks: characters' n-grams (1 to 4) by tf-idf with a ridge classifier and a linear
support vector machine, of scikit-learn.
"""

import argparse
import importlib.util
import re
import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import RidgeClassifierCV
from sklearn.pipeline import make_pipeline
from sklearn.svm import LinearSVC

from spherescan.estimators import SequenceClassifier

LANGUAGES = (
    "af", "ca", "cs", "da", "de", "es", "et", "eu", "fi", "fr", "ga", "hr", "hu", "id", "it", "lt",
    "lv", "nb", "nl", "pl", "pt", "ro", "sk", "sl", "sq", "sv", "tr",
)  # fmt: skip
SHORTEST = 15
CATALOG = "LC_MESSAGES/django.po"
Case = tuple[list, np.ndarray, list, np.ndarray]


def messages(language: str) -> dict[str, str]:
    """Return the translation of each English message."""
    spec = importlib.util.find_spec("django")
    if spec is None or spec.origin is None:
        raise SystemExit('Django is not installed: pip install ".[experiments]"')
    root = Path(spec.origin).parent
    found = {}
    catalogs = [*root.glob(f"contrib/*/locale/{language}/{CATALOG}")]
    for catalog in [*sorted(catalogs), root / "conf" / "locale" / language / CATALOG]:
        for entry in catalog.read_text(encoding="utf-8").split("\n\n"):
            pair = re.search(r"^msgid (.*?)^msgstr (.*)", entry, re.DOTALL | re.MULTILINE)
            if pair is None:  # with a plural: several translations
                continue
            english, text = (
                "".join(re.findall(r'^"(.*)"$', part, re.MULTILINE)) for part in pair.groups()
            )
            if english and len(text) >= SHORTEST and text != english:
                found[english] = text
    return found


def languages(per_class: int, seed: int) -> Case:
    """Return training and test messages: none is tested whose translation was seen."""
    rng = np.random.default_rng(seed)
    all_messages = {language: messages(language) for language in LANGUAGES}
    english = sorted(set().union(*all_messages.values()))
    rng.shuffle(english)
    held_out = set(english[: len(english) // 4])
    train, test = [], []
    for language, found in all_messages.items():
        known = [text for key, text in sorted(found.items()) if key not in held_out]
        rng.shuffle(known)
        train += [(text, language) for text in known[:per_class]]
        test += [(text, language) for key, text in sorted(found.items()) if key in held_out]
    (x, y), (x_test, y_test) = (zip(*part, strict=True) for part in (train, test))
    return list(x), np.array(y), list(x_test), np.array(y_test)


def order(n: int, seed: int) -> Case:
    """Return sequences whose class is which of two tokens comes first."""

    def some(n: int, seed: list[int]) -> tuple[list[np.ndarray], np.ndarray]:
        rng = np.random.default_rng(seed)
        x, y = rng.integers(2, 20, (n, 60)), np.arange(n) % 2
        for row, label in zip(x, y, strict=True):
            places = np.sort(rng.choice(60, 2, replace=False))
            row[places] = label, 1 - label
        return list(x), y

    return *some(n, [seed, 0]), *some(2000, [seed, 1])


def ours(n_networks: int, vocab_size: int, seed: int) -> SequenceClassifier:
    """Return a classifier with so many networks."""
    return SequenceClassifier(vocab_size=vocab_size, n_networks=n_networks, random_state=seed)


def texts(x: Iterable) -> list[str]:
    """Return sequences as texts: scikit-learn counts characters."""
    return [each if isinstance(each, str) else "".join(map(chr, 97 + each)) for each in x]


def peer(classifier: object) -> object:
    """Return a classifier of n-grams of characters."""
    vectorizer = TfidfVectorizer(
        analyzer="char", lowercase=False, ngram_range=(1, 4), min_df=2, sublinear_tf=True
    )
    return make_pipeline(vectorizer, classifier)


def table(name: str, case: Callable[[int], Case], vocab_size: int, seeds: int) -> None:
    """Print accuracy and seconds of a fit: mean and standard deviation over seeds."""
    scores: dict[str, list[tuple[float, float]]] = {}
    sizes = set()
    for seed in range(seeds):
        x, y, x_test, y_test = case(seed)
        sizes.add((len(x), len(x_test)))
        models = {
            "n-grams": (ours(0, vocab_size, seed), list),
            "n-grams and networks": (ours(6, vocab_size, seed), list),
            "tf-idf, ridge": (peer(RidgeClassifierCV(np.logspace(-3, 3, 13))), texts),
            "tf-idf, linear SVM": (peer(LinearSVC(random_state=seed)), texts),
        }
        for label, (model, prepared) in models.items():
            began = time.perf_counter()
            model.fit(prepared(x), y)
            seconds = time.perf_counter() - began
            accuracy = 100 * float((model.predict(prepared(x_test)) == y_test).mean())
            scores.setdefault(label, []).append((accuracy, seconds))
    cells = []
    for found in scores.values():
        accuracies, seconds = zip(*found, strict=True)
        deviation = statistics.stdev(accuracies) if seeds > 1 else 0.0
        mean = statistics.mean(accuracies)
        cells.append(f"{mean:.1f} +- {deviation:.1f} ({statistics.mean(seconds):.1f})")
    size = ", ".join(f"{n} + {m}" for n, m in sorted(sizes))
    print(f"| {name} ({size}) | {' | '.join(cells)} |", flush=True)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--per-class", type=int, nargs="*", default=[10, 40])
    parser.add_argument("--order", type=int, nargs="*", default=[500, 2000])
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| accuracy in % (seconds of a fit) | n-grams | n-grams and networks "
          "| tf-idf, ridge | tf-idf, linear SVM |")  # fmt: skip
    print("|---|---|---|---|---|")
    for n in options.per_class:
        table(f"language, {n} each", lambda seed, n=n: languages(n, seed), 256, options.seeds)
    for n in options.order:
        table(f"order, {n}", lambda seed, n=n: order(n, seed), 20, options.seeds)


if __name__ == "__main__":
    main()
