"""Loss curves of the three precisions on the same run.

    python benchmarks/precision.py CONFIG [CONFIG ...] [--steps 600] [--window 50]

For each configuration and precision: the mean training loss of each window of steps, the best
validation score, seconds. What to see: the curves agree far within the noise of another seed, which
is shown beside them.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch

from spherescan.allocator import keep_freed_memory
from spherescan.config import load_config
from spherescan.runs import read_metrics
from spherescan.train import start


def curve(config: Path, folder: Path, *, precision: str, seed: int, steps: int) -> dict:
    """Train once; return losses by step, the best score and the seconds."""
    settings = {
        "run.dir": str(folder),
        "run.precision": precision,
        "run.seed": str(seed),
        "run.steps": str(steps),
        "run.threads": str(torch.get_num_threads()),
        "validation.every": str(max(1, steps // 4)),
    }
    trainer = start(load_config(config, settings))
    began = time.perf_counter()
    trainer.fit()
    seconds = time.perf_counter() - began
    trainer.close()
    records = read_metrics(folder / "metrics.jsonl")
    return {
        "losses": [r["loss"] for r in records if r["kind"] == "train"],
        "score": trainer.counters.best_score,
        "seconds": seconds,
    }


def main() -> None:
    """Print a table per configuration."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("configs", nargs="+", type=Path)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--window", type=int, default=50)
    options = parser.parse_args()
    keep_freed_memory()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    runs = [("fp32", 0), ("medium", 0), ("bf16", 0), ("fp32", 1)]
    for config in options.configs:
        with tempfile.TemporaryDirectory() as folder:
            found = {
                f"{precision}, seed {seed}": curve(
                    config,
                    Path(folder) / f"{precision}-{seed}",
                    precision=precision,
                    seed=seed,
                    steps=options.steps,
                )
                for precision, seed in runs
            }
        print(f"\n{config}\n\n| steps to | {' | '.join(found)} |\n|---|{'---|' * len(found)}")
        for end in range(options.window, options.steps + 1, options.window):
            means = [
                statistics.mean(run["losses"][end - options.window : end]) for run in found.values()
            ]
            print(f"| {end} | {' | '.join(f'{mean:.4f}' for mean in means)} |")
        for name in ("score", "seconds"):
            print(f"| {name} | {' | '.join(f'{run[name]:.4g}' for run in found.values())} |")


if __name__ == "__main__":
    main()
