"""A model that grows from two blocks to six while it trains, against the same one that does not.

    python experiments/growth.py [--seeds 5]

MNIST-1D, backpropagation, the settings of local_learning.py at width 16, where two blocks are too
few. After a quarter of the steps four blocks are inserted so that the old ones end up as 0 and 2
(specific:1,3,4,5), and the first two are frozen (first:2), one of which is new. Printed are the
accuracy of the last step, on the 1000 test samples and on 20 000 more of the same recipe, and the
gradient norm of each block there; then means, and differences from what never grew. The layout is
the default of rust_trainer, whose own inserted blocks never learn: the last lines show the same
growth with its blocks of zeros.
"""

import argparse
import tempfile
from pathlib import Path

import torch
from local_learning import spread, trainer_for, wide_score

from spherescan.train.lessons import norm_of

STEPS = 1000
SMALL = {"model__d_model": "16", "model__n_pool_heads": "2"}
GROWN = {
    "grow__layers": "6",
    "grow__placement": "specific:1,3,4,5",
    "grow__at_step": str(STEPS // 4),
    "freeze__blocks": "first:2",
}
CASES: dict[str, dict[str, str]] = {
    "two blocks": {},
    "grown to six": GROWN,
    "grown to six, blocks of zeros": GROWN | {"grow__init": "rust_trainer"},
}


def main() -> None:
    """Print one line per run and the means."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        scores = scores_of(options.seeds, folder=Path(folder))
    base = scores["two blocks"]
    for case, pairs in scores.items():
        for place, samples in enumerate(("1000 samples", "20 000 samples")):
            values = [100 * pair[place] for pair in pairs]
            alone = [100 * pair[place] for pair in base]
            apart = [value - other for value, other in zip(values, alone, strict=True)]
            print(
                f"{case}, {samples}: {spread(values)}, difference {spread(apart)}, "
                f"better on {sum(value > 0 for value in apart)} of {len(apart)} seeds"
            )


def scores_of(seeds: int, *, folder: Path) -> dict[str, list[tuple[float, float]]]:
    """Train every case with every seed, and test it on 1000 and on 20 000 samples."""
    scores: dict[str, list[tuple[float, float]]] = {case: [] for case in CASES}
    for seed in range(seeds):
        for case, settings in CASES.items():
            trainer = trainer_for(
                "MNIST-1D",
                "backprop",
                depth=2,
                seed=seed,
                steps=STEPS,
                folder=folder,
                **SMALL,
                **settings,
            )
            trainer.fit()
            score = trainer.evaluate(trainer.problem.validation()).score
            trainer.close()
            wide = wide_score(trainer.store.path)
            norms = [
                f"{norm_of(p.grad for p in layer.parameters()):.1e}"
                for layer in trainer.model.layers
            ]
            scores[case].append((score, wide))
            print(
                f"{case}, seed {seed}: {score:.4f}, {wide:.4f}, gradient norms {' '.join(norms)}",
                flush=True,
            )
    return scores


if __name__ == "__main__":
    main()
