"""Choose settings for JapaneseVowels on its training split alone: five random 80/20 splits each.

python experiments/select_japanese_vowels.py
"""

import statistics
import tempfile
from pathlib import Path

import torch

from spherescan.config import load_config
from spherescan.train import start

BASE = {
    "data.train": "sample:JapaneseVowels_TRAIN.ts",
    "data.validation_fraction": "0.2",
    "model.expand": "1",
    "model.bidirectional": "true",
    "validation.every": "50",
    "checkpoint.every": "1000",
    "run.steps": "300",
}
CANDIDATES = [
    {"data.jitter": "0.1"},
    {"data.jitter": "0.3"},
    {"data.jitter": "0.5"},
    {"data.jitter": "0.3", "model.pooling": "mean,max"},
    {"data.jitter": "0.3", "model.pooling": "attention"},
    {"data.jitter": "0.5", "model.pooling": "mean,max"},
]


def main() -> None:
    """Print mean accuracy and loss on the held-out fifths, at the end and at the best step."""
    torch.set_num_threads(1)
    for candidate in CANDIDATES:
        losses, scores = [], []
        for seed in range(5):
            with tempfile.TemporaryDirectory() as folder:
                settings = {"run.dir": str(Path(folder) / "run"), "run.seed": str(seed)}
                trainer = start(load_config(None, BASE | candidate | settings))
                trainer.fit()
                result = trainer.evaluate(trainer.problem.validation())
                trainer.close()
            losses.append(result.loss)
            scores.append(result.score)
        print(
            f"{candidate}  accuracy {statistics.mean(scores):.4f}  "
            f"loss {statistics.mean(losses):.4f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
