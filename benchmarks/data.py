"""How fast text becomes shards, and shards become batches.

    OMP_NUM_THREADS=1 python benchmarks/data.py [--megabytes 100] [--folder FOLDER]

Prints MB/s of importing integer text, plain and packed by gzip, and tokens/s of batches of 32 rows.
Each is the best of three: other work on the machine only ever makes it slower.
"""

import argparse
import gzip
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from spherescan.data import (
    BatchStream,
    PackedDocuments,
    TokenSource,
    Windows,
    import_text,
    open_shards,
)

VOCAB_SIZE = 32_000


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=100)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        text = write_text(folder / "text.txt", options.megabytes * 10**6)
        size = text.stat().st_size / 1e6
        print(f"text: {size:.1f} MB of tokens below {VOCAB_SIZE}")
        show("import", size / best_of(3, lambda i: imported(text, folder / f"out-{i}")), "MB/s")
        packed = folder / "text.txt.gz"
        packed.write_bytes(gzip.compress(text.read_bytes(), compresslevel=1))
        seconds = best_of(1, lambda i: imported(packed, folder / f"packed-{i}"))
        show("import, gzip", size / seconds, "MB/s of text")
        show("open and verify", 1e3 * best_of(3, lambda _: open_shards(folder / "out-0")), "ms")
        measure_streams(folder / "out-0")


def measure_streams(folder: Path) -> None:
    """Time batches from shards."""
    text = open_shards(folder)
    for rows in (Windows(text, seq_len=1024), PackedDocuments(text, seq_len=1024)):
        for order in ("shuffled", "by_shard", "text"):
            source = TokenSource(rows, range(len(rows)), seed=0, order=order)
            show(f"{rows.noun} of 1024, {order}", speed(BatchStream(source, batch_size=32)))
    rows = Windows(text, seq_len=64)
    source = TokenSource(rows, range(len(rows)), seed=0)
    show("windows of 64, shuffled", speed(BatchStream(source, batch_size=32)))
    rows = Windows(text, seq_len=1024)
    source = TokenSource(rows, range(len(rows)), seed=0)
    for workers in (1, 2):
        stream = BatchStream(source, batch_size=32, workers=workers)
        show(f"windows of 1024, shuffled, {workers} workers", speed(stream))
        stream.close()


def write_text(path: Path, size: int) -> Path:
    """Write tokens of all lengths in lines of a thousand."""
    tokens = np.random.default_rng(0).integers(0, VOCAB_SIZE, max(1, size // 5))
    with path.open("w", encoding="ascii") as file:
        for start in range(0, len(tokens), 1000):
            if file.tell() >= size:
                break
            file.write(" ".join(map(str, tokens[start : start + 1000].tolist())) + "\n")
        else:
            raise SystemExit("--megabytes is too large for this text")
    return path


def imported(text: Path, out: Path) -> None:
    """Import a text into a new folder."""
    import_text(text, out, encoding="integers", vocab_size=VOCAB_SIZE)


def speed(stream: BatchStream, *, n_batches: int = 300) -> float:
    """Return the tokens per second of a stream."""
    n_tokens = next(stream).inputs.numel()

    def run(_: int) -> None:
        for _ in range(n_batches):
            next(stream)

    return n_batches * n_tokens / best_of(3, run)


def best_of(times: int, work: Callable[[int], object]) -> float:
    """Return the shortest time in seconds."""
    seconds = []
    for i in range(times):
        start = time.perf_counter()
        work(i)
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def show(what: str, value: float, unit: str = "tokens/s") -> None:
    """Print one line."""
    text = f"{value / 1e6:.1f} M" if value >= 1e6 else f"{value:.0f}"
    print(f"{what:36} {text:>8} {unit}", flush=True)


if __name__ == "__main__":
    main()
