"""Speed of the selective scan: the torch form against the plain loop that indexes `x[:, t]`.

    python benchmarks/scan.py [--batch 4] [--channels 128] [--state 16] [--repeats 7]

Forward and backward, both forms interleaved in one process; minimum and median of each, and the
ratio of the medians. What to see: the time per position of the torch form stays flat, that of the
plain loop grows.
"""

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable

import torch

from spherescan.ops import reference, selective_scan

LENGTHS = (32, 64, 128, 256, 512)


def seconds(scan: Callable[..., tuple[torch.Tensor, torch.Tensor]], case: dict) -> float:
    """Return the time of one forward and backward pass."""
    arguments = {name: value.detach().requires_grad_() for name, value in case.items()}
    began = time.perf_counter()
    y, state = scan(**arguments, delta_softplus=True)
    (y.sum() + state.sum()).backward()
    return time.perf_counter() - began


def main() -> None:
    """Print one line per length."""
    os.environ["SPHERESCAN_OPS"] = "torch"
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--channels", type=int, default=128)
    parser.add_argument("--state", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    b, d, n = options.batch, options.channels, options.state
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.machine()}, "
        f"{torch.backends.cpu.get_cpu_capability()}; batch {b}, {d} channels, {n} states, float32"
    )
    for length in LENGTHS:
        generator = torch.Generator().manual_seed(0)
        shapes = {"u": (b, length, d), "delta": (b, length, d), "B": (b, length, n)}
        shapes |= {"C": (b, length, n), "D": (d,), "state": (b, d, n)}
        case = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
        case["A"] = -torch.rand(d, n, generator=generator)
        forms = {"torch form": selective_scan, "plain loop": reference.selective_scan}
        times: dict[str, list[float]] = {name: [] for name in forms}
        for _ in range(options.repeats):
            for name, scan in forms.items():
                times[name].append(seconds(scan, case))
        medians = {name: statistics.median(values) for name, values in times.items()}
        shown = "  ".join(
            f"{name} {medians[name] / length * 1e6:.0f} us/position (min "
            f"{min(times[name]) / length * 1e6:.0f})"
            for name in forms
        )
        ratio = medians["plain loop"] / medians["torch form"]
        print(f"length {length}: {shown}  ratio {ratio:.2f}", flush=True)


if __name__ == "__main__":
    main()
