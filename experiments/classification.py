"""Backprop training on four labelled sets: before, after, and on the official test split.

    python experiments/classification.py [--seeds 5] [NAME ...]

JapaneseVowels ships with the package, the others with aeon (a development dependency). Settings are
those of examples/japanese_vowels.toml for all of them. The weights tested are those of the best
validation on a tenth of the training split that was held out from training.
"""

import argparse
import importlib.util
import statistics
import tempfile
import time
from pathlib import Path

import torch

from spherescan.config import load_config
from spherescan.data import locate
from spherescan.inference import Predictor
from spherescan.train import evaluate, evaluation_batches, start

NAMES = ("JapaneseVowels", "BasicMotions", "GunPoint", "ItalyPowerDemand")
SETTINGS = Path(__file__).parent.parent / "examples" / "japanese_vowels.toml"


def file_of(name: str, split: str) -> str:
    """Return where a split of a data set is."""
    if name == "JapaneseVowels":
        return f"sample:{name}_{split}.ts"
    spec = importlib.util.find_spec("aeon")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("aeon is missing: pip install aeon")
    folder = Path(spec.submodule_search_locations[0]) / "datasets" / "data" / name
    return str(folder / f"{name}_{split}.ts")


def run(name: str, seed: int) -> dict[str, float]:
    """Train once; return loss and accuracy on the test split before and after, and the seconds."""
    with tempfile.TemporaryDirectory() as folder:
        overrides = {
            "data.train": file_of(name, "TRAIN"),
            "run.dir": f"{folder}/run",
            "run.seed": str(seed),
        }
        config = load_config(SETTINGS, overrides)
        trainer = start(config)
        objective = trainer.problem.objective
        test = list(
            evaluation_batches(
                locate(file_of(name, "TEST")),
                objective.task,
                config,
                n_channels=trainer.problem.description.n_channels,
                vocab_size=None,
            )
        )
        before = trainer.evaluate(test)
        began = time.perf_counter()
        trainer.fit()
        seconds = time.perf_counter() - began
        trainer.close()
        after = evaluate(Predictor.load(f"{folder}/run").model, test, objective)
        last = trainer.evaluate(test)
    return {
        "loss before": before.loss,
        "accuracy before": before.score,
        "loss after": after.loss,
        "accuracy after": after.score,
        "accuracy at the last step": last.score,
        "seconds": seconds,
    }


def main() -> None:
    """Print one line per run and one mean per data set."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=NAMES)
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    for name in options.names:
        results = []
        for seed in range(options.seeds):
            results.append(run(name, seed))
            shown = "  ".join(f"{key} {value:.4f}" for key, value in results[-1].items())
            print(f"{name} seed {seed}: {shown}", flush=True)
        for key in results[0]:
            values = [result[key] for result in results]
            print(
                f"{name} {key}: mean {statistics.mean(values):.4f}, "
                f"{min(values):.4f} to {max(values):.4f}"
            )


if __name__ == "__main__":
    main()
