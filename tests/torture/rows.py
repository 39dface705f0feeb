"""The rows of the table of tests, and how often each tier tries."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from tests.torture.bomb_rows import bombs
from tests.torture.endurance_rows import soak, thread_counts
from tests.torture.error_rows import failing_operations, full_disk
from tests.torture.fuzz_rows import fuzz_checkpoints, fuzz_texts
from tests.torture.kill_rows import kills_at_operations, random_kills
from tests.torture.power_rows import power_loss
from tests.torture.race_rows import lock_races, readers, signals
from tests.torture.rot_rows import bit_rot

torch.set_num_threads(1)


@dataclass(frozen=True, slots=True)
class Row:
    """One row.

    Attributes:
        about: What is tried.
        counts: Attempts in the tiers ci, full and release.
        run: Takes a temporary folder, the faults that watch `box` in it, a report to fill in, a
            count and a seed.
        in_memory: Whether files that no kill can be noticed in are kept in memory.
    """

    about: str
    counts: tuple[int, int, int]
    run: Callable[..., None]
    in_memory: bool = True


ROWS = {
    "T1": Row("kills at random times", (8, 2_000, 20_000), random_kills, in_memory=False),
    "T2": Row("kills at every operation on the folder", (3, 200, 1_000), kills_at_operations),
    "T3": Row("states after a loss of power", (170, 12_000, 1_000_000), power_loss),
    "T4": Row("failing operations on the folder", (30, 5_000, 100_000), failing_operations),
    "T5": Row("disks that fill up", (7, 50, 500), full_disk),
    "T6": Row("flipped bits in data, and all other damage", (240, 20_000, 1_000_000), bit_rot),
    "T7": Row("fuzzed checkpoints", (2_000, 1_000_000, 100_000_000), fuzz_checkpoints),
    "T8": Row("fuzzed texts, of each kind", (1_000, 1_000_000, 100_000_000), fuzz_texts),
    "T11": Row("races for one run", (13, 500, 10_000), lock_races),
    "T12": Row("reads during saves", (330, 5_000, 100_000), readers),
    "T13": Row("steps in the same memory", (2_500, 100_000, 10_000_000), soak),
    "T14": Row("repeats at each thread count", (2, 5, 20), thread_counts),
    "T17": Row("signals at random times", (6, 200, 5_000), signals),
    "T21": Row("openings of each bomb", (1, 3, 20), bombs),
}
