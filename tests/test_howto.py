"""The commands on the how-to pages, each page in a folder of its own."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

PAGES = sorted((Path(__file__).parents[1] / "docs" / "howto").glob("*.md"))
COMMANDS = {
    page.stem: "".join(
        re.findall(r"^```sh\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)
    )
    for page in PAGES
}


def files(folder: Path) -> None:
    """Put there what the pages speak of."""
    rng = np.random.default_rng(0)
    for name, n in (("motor.csv", 40), ("new.csv", 10)):
        rows = ["case,label,vibration,temperature"]
        for case in range(n):
            worn = case % 2
            for t in range(20):
                wave = np.sin(t / 2) + worn * np.sin(3 * t) + 0.1 * rng.standard_normal()
                rows.append(f"{case},{['well', 'worn'][worn]},{wave:.3f},20.1")
        (folder / name).write_text("\n".join(rows) + "\n")
    shutil.copytree(PAGES[0].parent, folder / "notes")


@pytest.mark.parametrize("page", [name for name, commands in COMMANDS.items() if commands])
def test_the_commands_of_a_page_run_as_they_stand(page, tmp_path):
    files(tmp_path)
    scripts = Path(sys.executable).parent
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", COMMANDS[page]],
        cwd=tmp_path,
        env=os.environ | {"PATH": f"{scripts}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    ends = {
        "sensors": "report.html",
        "tokens": "3\t4\t",
        "resume": "step 1040",
        "deploy": "threads",
    }
    assert ends[page] in done.stdout.splitlines()[-1] + done.stdout, done.stdout


def test_every_page_with_commands_is_looked_at():
    assert {name for name, commands in COMMANDS.items() if commands} == {
        "deploy", "resume", "sensors", "tokens",
    }  # fmt: skip
