"""T13 and T14: many steps in the same memory, and the same bits each time."""

import mmap
import os
import random
import shutil
import statistics
import threading
from functools import partial
from pathlib import Path

import torch

from spherescan.ops import causal_conv1d, native, selective_scan
from spherescan.train import Reporter, start
from tests.torture import everything
from tests.torture.faults import Faults
from tests.torture.forking import in_child
from tests.torture.report import Report

KIB = 1024
# What the allocator and Python's caches may still move after a fifth of the run.
SETTLING_KIB = 1024


class Watch(Reporter):
    """Look at the process while it trains, and forget a page in each fourth step if told to."""

    def __init__(self, every: int, *, leak: bool) -> None:
        self._every, self._leak = every, leak
        self._lost: list[mmap.mmap] = []
        self.seen: list[tuple[int, int, int, int]] = []

    def stepped(self, step: int, *_: object, **__: object) -> None:
        if self._leak and step % 4 == 0:
            # Straight from the system: the heap may have as much to spare as a short run loses.
            self._lost.append(mmap.mmap(-1, mmap.PAGESIZE))
            self._lost[-1][0] = 1
        if step % self._every == 0:
            resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf(
                "SC_PAGE_SIZE"
            )
            files = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
            self.seen.append((step, resident, files, threading.active_count()))


def soak(root: Path, _: Faults, report: Report, *, count: int, seed: int) -> None:
    """Train so many steps with saves, validations and epochs, and look at memory and files."""
    data = everything.write_data(root)

    def run(name: str, steps: int, *, leak: bool) -> list[object]:
        watch = Watch(max(1, steps // 200), leak=leak)
        config = everything.small_configuration(data, root / name, steps, seed)
        trainer = start(config)
        trainer.fit(reporter=watch)
        trainer.close()
        return [list(seen) for seen in watch.seen]

    seen = in_child(lambda: run("run", count, leak=False), limit=24 * 3600).expect_finished()
    slope = _kib_per_1000_steps(seen)
    allowed = max(4.0, SETTLING_KIB / (count / 1000))
    report.count = count
    report.facts["KiB per 1000 steps"] = round(slope, 2)
    report.facts["allowed"] = round(allowed, 2)
    report.facts["MiB resident"] = f"{seen[len(seen) // 5][1] >> 20} to {seen[-1][1] >> 20}"
    report.expect(slope <= allowed, f"memory grew by {slope:.1f} KiB per 1000 steps")
    for name, column in (("files", 2), ("threads", 3)):
        values = {row[column] for row in seen[len(seen) // 5 :]}
        report.facts[name] = sorted(values)
        report.expect(len(values) == 1, f"the number of open {name} changed: {sorted(values)}")
    leaking = in_child(lambda: run("leak", max(2000, count // 20), leak=True), limit=3600)
    slope = _kib_per_1000_steps(leaking.expect_finished())
    report.facts["with a leak of 1 KiB a step"] = round(slope, 1)
    report.expect(slope > 800, f"a leak of 1000 KiB per 1000 steps was measured as {slope:.1f}")


def _kib_per_1000_steps(seen: list[list[int]]) -> float:
    """Return the median slope over the last 80 %, which one jump does not move."""
    rows = seen[len(seen) // 5 :]
    half = len(rows) // 2
    slopes = [
        (later[1] - sooner[1]) / KIB / (later[0] - sooner[0]) * 1000
        for sooner, later in zip(rows[:half], rows[-half:], strict=True)
    ]
    return statistics.median(slopes)


def thread_counts(root: Path, _: Faults, report: Report, *, count: int, seed: int) -> None:
    """Train and run the kernels on 1, 2, 3, 4 and 8 threads, so many times each."""
    data = everything.write_data(root)
    all_threads = (1, 2, 3, 4, 8) if count >= 5 else (1, 2, 8)
    for d_model in (8, 24, 48) if count >= 5 else (8, 24):
        of_threads = {}
        for threads in all_threads:
            work = partial(_trained, data, root / "run", threads, d_model, seed)
            bits = [in_child(work).expect_finished() for _ in range(count)]
            report.count += count
            of_threads[threads] = bits[0]
            where = f"width {d_model}, {threads} threads"
            report.expect(len(set(bits)) == 1, f"{where}, seed {seed}: {len(set(bits))} results")
        n = len(set(of_threads.values()))
        report.facts[f"results of width {d_model} over thread counts"] = n
    if not native.unavailable():
        rng = random.Random(seed)
        for _ in range(count):
            shape = (rng.randint(1, 5), rng.randint(1, 300), rng.randint(1, 70))
            found = {
                threads: in_child(partial(_kernels, shape, threads)).expect_finished()
                for threads in all_threads
            }
            report.count += len(found)
            n = len(set(found.values()))
            report.expect(n == 1, f"kernels of {shape}, seed {seed}: {n} results")


def _trained(data: Path, run: Path, threads: int, d_model: int, seed: int) -> str:
    shutil.rmtree(run, ignore_errors=True)
    changes = {
        "model__d_model": str(d_model),
        "freeze__until_step": "13",
        "run__threads": str(threads),
        "run__steps": "14",
        "run__seed": str(seed % 1000),
    }
    everything.go(data, run, changes=changes)
    return str(everything.result(run)["model"])


def _kernels(shape: tuple[int, int, int], threads: int) -> str:
    """Return a digest of what the compiled kernels make of some values, and of the gradients."""
    torch.set_num_threads(threads)
    generator = torch.Generator().manual_seed(0)
    b, length, d = shape
    n = 4

    def some(*sizes: int) -> torch.Tensor:
        return torch.randn(*sizes, generator=generator).requires_grad_()

    inputs = {
        "u": some(b, length, d),
        "delta": some(b, length, d),
        "A": (-torch.rand(d, n, generator=generator)).requires_grad_(),
        "B": some(b, length, n),
        "C": some(b, length, n),
        "D": some(d),
    }
    weight, bias = some(d, 4), some(d)
    x, _ = causal_conv1d(inputs["u"], weight, bias)
    y, _ = selective_scan(**{**inputs, "u": x}, delta_softplus=True)
    y.square().sum().backward()
    tensors = {"y": y.detach(), "x": x.detach(), "weight": weight.grad, "bias": bias.grad}
    tensors |= {name: tensor.grad for name, tensor in inputs.items()}
    return everything.bits_of(tensors)
