"""Every row of the table, as often as the time of CI allows; `make torture` runs the full counts.

They run in processes of their own under `faults.c`, a few rows in each, with the same seed every
time: another one is SPHERESCAN_TORTURE_SEED, and SPHERESCAN_TORTURE_TIER says how often each row
tries.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.torture.rows import ROWS

ROOT = Path(__file__).parents[2]
# About as long as each other; a process takes five seconds to begin.
TOGETHER = ("T1 T14", "T2 T7 T12", "T3 T5", "T4 T8 T17", "T6 T11 T21", "T13")


def test_no_row_is_left_out():
    assert sorted(" ".join(TOGETHER).split()) == sorted(ROWS)


@pytest.mark.parametrize(
    "names", [pytest.param(n, marks=[pytest.mark.slow] if n == "T13" else []) for n in TOGETHER]
)
def test_rows(names, preload):
    tier = os.environ.get("SPHERESCAN_TORTURE_TIER", "ci")
    seed = os.environ.get("SPHERESCAN_TORTURE_SEED", "1")
    command = [sys.executable, "-m", "tests.torture", *names.split()]
    done = subprocess.run(
        [*command, "--tier", tier, "--seed", seed],
        env=preload,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
