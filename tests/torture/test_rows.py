"""Every row of the table, as often as the time of CI allows; `make torture` runs the full counts.

Each runs in a process of its own under `faults.c`, with the same seed every time: another one is
SPHERESCAN_TORTURE_SEED, and SPHERESCAN_TORTURE_TIER says how often each row tries.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.torture.rows import ROWS

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", ROWS)
def test_row(name, preload):
    tier = os.environ.get("SPHERESCAN_TORTURE_TIER", "ci")
    seed = os.environ.get("SPHERESCAN_TORTURE_SEED", "1")
    command = [sys.executable, "-m", "tests.torture", name, "--tier", tier, "--seed", seed]
    done = subprocess.run(
        command, env=preload, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
