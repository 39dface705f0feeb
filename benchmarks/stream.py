"""What a stream costs: time per sample, and memory over a million of them.

    OMP_NUM_THREADS=1 python benchmarks/stream.py [--samples 1000000]

The model is that of examples/japanese_vowels.toml with model.bidirectional = false, its weights
before training. Samples are pushed one by one, each with an answer, on one thread; each push is
timed alone. Memory is what the process holds after the first 1000 samples and at the end. Then as
many samples in chunks.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch

from spherescan.config import load_config
from spherescan.inference import Predictor, Stream
from spherescan.train import build

DEMO = Path(__file__).parent.parent / "examples" / "japanese_vowels.toml"
WARM_UP = 1000
CHUNKS = (8, 64, 512)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=1_000_000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    stream = demo_stream()
    samples = np.random.default_rng(0).normal(size=(4096, 12)).astype(np.float32)
    for sample in samples[:WARM_UP]:
        stream.push(sample)
    # Written to before the measurement, so that it takes its memory now.
    seconds = np.ones(options.samples)
    before = resident_bytes()
    for index in range(options.samples):
        sample = samples[index % len(samples)]
        began = time.perf_counter()
        stream.push(sample)
        seconds[index] = time.perf_counter() - began
    after = resident_bytes()
    low, median, high = 1e6 * np.quantile(seconds, [0.01, 0.5, 0.99])
    print(f"samples pushed one by one: {options.samples}")
    print(f"microseconds each: median {median:.0f}, 1 % below {low:.0f}, 1 % above {high:.0f}")
    print(
        f"memory: {before / 2**20:.1f} MiB before, {after / 2**20:.1f} MiB after, "
        f"{(after - before) / 2**20:+.1f} MiB"
    )
    state = sum(t.numel() * t.element_size() for t in stream.state_dict().values())
    print(f"state: {state} bytes")
    for size in CHUNKS:
        print(f"in chunks of {size}: {in_chunks(stream, samples[:size]):.1f} microseconds a sample")


def demo_stream() -> Stream:
    """Return a stream of the demo's model, made causal."""
    config = load_config(DEMO, {"model.bidirectional": "false"})
    problem, model = build(config)
    return Predictor(
        problem.description,
        model,
        problem.objective.task,
        step=0,
        config=config.model_dump(mode="json"),
        fingerprint=problem.fingerprint,
    ).stream()


def in_chunks(stream: Stream, chunk: np.ndarray) -> float:
    """Return the median time of a chunk, in microseconds per sample."""
    seconds = []
    for _ in range(max(30, 8192 // len(chunk))):
        began = time.perf_counter()
        stream.push(chunk)
        seconds.append(time.perf_counter() - began)
    return 1e6 * float(np.median(seconds)) / len(chunk)


def resident_bytes() -> int:
    """Return the memory that this process holds."""
    text = Path("/proc/self/status").read_text(encoding="ascii")
    return int(text.partition("VmRSS:")[2].split()[0]) * 1024


if __name__ == "__main__":
    main()
