"""What saving costs: of a large run beside the same bytes written plainly, and in the demo.

    python benchmarks/checkpoint.py [--rounds 11] [--folder FOLDER]

The large run has about 100 million parameters, so with AdamW's moments 1.2 GB. Its saves and plain
writes of as many bytes, each with an fsync, take turns, a pause before each. A save is all that a
run waits for, the removal of an older checkpoint included: its name goes at once, its room within
the pause. Nothing is removed within the time of a plain write. Ratios are given both ways, of each
round and of medians.
Memory is the peak of the process during the saves against what it held before.
The demo is examples/japanese_vowels.toml with a checkpoint every 200 steps: the time within those
saves against that of the whole training.
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

from spherescan.config import RunConfig, load_config, parse_config
from spherescan.train import Trainer, start

DEMO = Path(__file__).parent.parent / "examples" / "japanese_vowels.toml"
PIECE = 8 << 20
PAUSE = 0.3  # seconds; what a save removed is freed within 0.2


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--folder", type=Path, help="on the disk to be measured")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        large(Path(name), options.rounds)
        demo(Path(name))


def large_run(folder: Path) -> RunConfig:
    """Return a token model of 100 million parameters on synthetic tokens."""
    return parse_config(
        {
            "data": {"source": "synthetic", "batch_size": 1, "seq_len": 32},
            "model": {"d_model": 1024, "n_layers": 14},
            "prototypes": {"init": "random"},  # best ones of 8192 take minutes to find
            "validation": {"every": 10**6, "batches": 1},
            "checkpoint": {"every": 10**6, "keep": 2},
            "run": {"dir": str(folder), "steps": 10**6, "threads": 2},
        }
    )


def large(folder: Path, rounds: int) -> None:
    """Time saves of a large run."""
    trainer = start(large_run(folder / "large"))
    trainer.fit(1)
    parameters = sum(p.numel() for p in trainer.model.parameters())
    newest = max((folder / "large" / "ckpt").glob("step-*"))
    data = newest.read_bytes()
    saves, plain, peak = [], [], 0
    for turn in range(rounds + 1):
        time.sleep(PAUSE)
        plain.append(seconds_to_write(folder / "plain", data))
        time.sleep(PAUSE)
        trainer.counters.step += 1
        before, began = start_peak(), time.perf_counter()
        trainer.save()
        saves.append(time.perf_counter() - began)
        peak = max(peak, status("VmHWM") - before)
        if turn == 0:  # warming up
            saves.clear()
            plain.clear()
    trainer.close()
    print(f"parameters: {parameters / 1e6:.1f} M, file: {len(data) / 1e9:.2f} GB, {rounds} rounds")
    print(f"written plainly: {statistics.median(plain):.2f} s ({listed(plain)})")
    each = [ours / theirs for ours, theirs in zip(saves, plain, strict=True)]
    of_medians = statistics.median(saves) / statistics.median(plain)
    print(f"save: {statistics.median(saves):.2f} s ({listed(saves)})")
    print(
        f"save / written plainly: {of_medians:.2f} of medians, {statistics.median(each):.2f} each"
    )
    print(f"peak memory of a save: {peak / 2**20:.0f} MiB more than before")


def listed(values: list[float]) -> str:
    """Return numbers as text."""
    return " ".join(f"{value:.2f}" for value in values)


def seconds_to_write(path: Path, data: bytes) -> float:
    """Write a new file in pieces and wait until it is on the disk; return how long that takes."""
    view, began = memoryview(data), time.perf_counter()
    with path.open("wb", buffering=0) as file:
        for at in range(0, len(data), PIECE):
            rest = view[at : at + PIECE]
            while rest:
                rest = rest[file.write(rest) :]
        os.fsync(file.fileno())
    seconds = time.perf_counter() - began
    path.unlink()
    return seconds


def start_peak() -> int:
    """Let the peak of this process begin anew; return the bytes that it holds."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return status("VmRSS")


def status(name: str) -> int:
    """Return a figure of this process in bytes."""
    text = Path("/proc/self/status").read_text(encoding="ascii")
    return int(text.partition(f"{name}:")[2].split()[0]) * 1024


def demo(folder: Path) -> None:
    """Time the saves of the demo."""
    flags = {"run.dir": str(folder / "demo"), "checkpoint.every": "200", "run.steps": "600"}
    trainer = start(load_config(DEMO, flags))
    within, saves = timed(trainer), trainer.counters
    began = time.perf_counter()
    trainer.fit()
    whole = time.perf_counter() - began
    trainer.close()
    regular = [seconds for step, seconds in within if step % 200 == 0]
    print(f"demo: {saves.step} steps in {whole:.1f} s, {len(within)} saves, {len(regular)} regular")
    print(f"demo, within regular saves: {100 * sum(regular) / whole:.2f} % of the time")
    print(f"demo, within all saves: {100 * sum(s for _, s in within) / whole:.2f} % of the time")


def timed(trainer: Trainer) -> list[tuple[int, float]]:
    """Return a list that each save of a trainer will join, as its step and its seconds."""
    within: list[tuple[int, float]] = []
    save = trainer.save

    def timed_save() -> None:
        began = time.perf_counter()
        save()
        within.append((trainer.counters.step, time.perf_counter() - began))

    trainer.save = timed_save  # type: ignore[method-assign]
    return within


if __name__ == "__main__":
    main()
