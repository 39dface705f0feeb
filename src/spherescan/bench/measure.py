"""Times of contenders that take turns, and the peak memory of a process."""

import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from spherescan.ops import native

# A contender whose first run takes longer than this is not repeated.
_LONGEST_REPEATED = 20.0
# Another process that computes at the same time makes every figure meaningless.
_BUSY_LOAD = 0.3


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of one run of a contender."""

    median: float
    minimum: float
    repeats: int


def interleave(
    contenders: Mapping[str, Callable[[], object]], *, repeats: int = 7, seconds: float = 30.0
) -> dict[str, Timing]:
    """Run all contenders in turns, so that whatever disturbs the machine disturbs all of them.

    Args:
        contenders: What to run, by name; each once to warm up first.
        repeats: Rounds at most.
        seconds: No round begins after so many, once there were three.
    """
    times: dict[str, list[float]] = {name: [_seconds(run)] for name, run in contenders.items()}
    repeated = [name for name, first in times.items() if first[0] <= _LONGEST_REPEATED]
    for name in repeated:
        times[name] = []
    began = time.perf_counter()
    for done in range(repeats):
        if done >= 3 and time.perf_counter() - began > seconds:
            break
        for name in repeated:
            times[name].append(_seconds(contenders[name]))
    return {
        name: Timing(statistics.median(found), min(found), len(found))
        for name, found in times.items()
    }


def _seconds(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def peak_memory(code: str) -> float | None:
    """Return the peak memory in GB of a fresh process that runs `code`; None when it fails."""
    # Not ru_maxrss: a new process inherits that of the one that started it.
    report = "\nprint(open('/proc/self/status').read().partition('VmHWM:')[2].split()[0])"
    done = subprocess.run(
        [sys.executable, "-c", code + report], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        return None
    kilobytes = int(done.stdout.split()[-1])
    return kilobytes * 1024 / 1e9


def busy() -> str | None:
    """Return what else keeps this machine busy; None when it is quiet."""
    before = _busy_ticks()
    time.sleep(1.0)
    after = _busy_ticks()
    load = (after - before) / os.sysconf("SC_CLK_TCK")
    return f"other processes use {load:.1f} cores" if load > _BUSY_LOAD else None


def _busy_ticks() -> int:
    first = Path("/proc/stat").read_text(encoding="ascii").splitlines()[0]
    user, nice, system, *_ = (int(value) for value in first.split()[1:])
    return user + nice + system


def environment(*, malloc: str) -> dict[str, str]:
    """Return what the figures depend on."""
    return {
        "machine": _cpu_name(),
        "cores": str(os.cpu_count()),
        "threads": str(torch.get_num_threads()),
        "simd": "none" if native.unavailable() else native.SIMD_LEVELS[native.simd()],
        "torch": torch.__version__,
        "python": platform.python_version(),
        "malloc": malloc,
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }


def _cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
