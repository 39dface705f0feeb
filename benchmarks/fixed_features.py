"""What describing series by fixed convolutions costs: kernels, torch form, MiniRocket of aeon.

    pip install ".[experiments]"
    OMP_NUM_THREADS=1 python benchmarks/fixed_features.py [--repeats 5]

Random walks, described in turns by all: `FixedFeatures` with its defaults, which are MiniRocket on
the series and on its differences, 5040 features each, Hydra and statistics; and aeon's MiniRocket
with 9996 features of the series. Seconds to fit and describe the series, medians on one thread.
aeon compiles before it is measured.
"""

import argparse
import os
from collections.abc import Callable

import numpy as np
import torch
from aeon.transformations.collection.convolution_based import MiniRocket

from spherescan.bench.measure import interleave
from spherescan.features import FixedFeatures

SHAPES = ((270, 20, 12), (200, 427, 1), (100, 1460, 1), (100, 427, 12))  # series, length, channels


def ours(form: str, x: torch.Tensor) -> Callable[[], object]:
    """Return what fits and describes by one form of the ops."""
    _, length, channels = x.shape
    mask = torch.ones(x.shape[:2], dtype=torch.bool)

    def run() -> None:
        generator = torch.Generator().manual_seed(0)
        os.environ["SPHERESCAN_OPS"] = form
        FixedFeatures(channels, length, generator=generator).fit(x, mask, generator=generator)

    return run


def main() -> None:
    """Print a row for each shape."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for channels in (1, 2):
        MiniRocket().fit_transform(np.random.default_rng(0).normal(size=(2, channels, 50)))
    print("| series, length, channels | kernels s | torch form s | aeon s | torch / kernels |")
    print("|---|---|---|---|---|")
    for shape in SHAPES:
        x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).cumsum(1)
        arrays = np.ascontiguousarray(x.numpy().transpose(0, 2, 1))
        times = interleave(
            {
                "native": ours("native", x),
                "torch": ours("torch", x),
                "aeon": lambda arrays=arrays: MiniRocket(random_state=0).fit_transform(arrays),
            },
            repeats=options.repeats,
            seconds=120,
        )
        native, plain, aeon = (times[name].median for name in ("native", "torch", "aeon"))
        sizes = ", ".join(map(str, shape))
        ratio = plain / native
        print(f"| {sizes} | {native:.3f} | {plain:.2f} | {aeon:.3f} | {ratio:.1f} |", flush=True)


if __name__ == "__main__":
    main()
