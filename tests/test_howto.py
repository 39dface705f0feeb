"""The commands on the how-to pages, each page in a folder of its own, and README's Python."""

import doctest
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.unwatched

PAGES = sorted((Path(__file__).parents[1] / "docs" / "howto").glob("*.md"))
COMMANDS = {
    page.stem: "".join(
        re.findall(r"^```sh\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)
    )
    for page in PAGES
}


# What the commands of a page print when they have done what the page says.
PRINT = {
    "sensors": ["\nruns/motor/report.html"],
    "tokens": ["\nruns/notes/report.html", "\n3\t4\t"],
    "resume": ["step 500 of 500", "step 540 of 540"],
    "deploy": ["threads"],
    "stream": ["\n50\twell\t", "\n60\twell\t", "\n60\tworn\t"],
}

# The last file that the Python of a page makes for its commands.
MADE = {"sensors": "new.csv", "stream": "now.txt"}


def made_by_the_page(page: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the Python of a page until its files are there."""
    monkeypatch.chdir(folder)
    names: dict[str, object] = {}
    text = (PAGES[0].parent / f"{page}.md").read_text()
    for example in doctest.DocTestParser().get_examples(text):
        exec(compile(example.source, page, "single"), names)
        if (folder / MADE[page]).exists():
            return


@pytest.mark.parametrize("page", [name for name, commands in COMMANDS.items() if commands])
def test_the_commands_of_a_page_run_as_they_stand(page, tmp_path, monkeypatch):
    if page in MADE:
        made_by_the_page(page, tmp_path, monkeypatch)
    shutil.copytree(PAGES[0].parent, tmp_path / "notes")
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
    for wanted in PRINT[page]:
        assert wanted in done.stdout, done.stdout


def test_the_python_of_the_readme_prints_a_score(capsys):
    text = (PAGES[0].parents[2] / "README.md").read_text()
    (script,) = re.findall(r"^```python\n(?!>>>)(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    assert len([line for line in script.splitlines() if line.strip()]) <= 10
    exec(compile(script, "README.md", "exec"), {})
    score, unknown = capsys.readouterr().out.splitlines()
    assert float(score) > 0.98
    assert unknown == "['unknown']"


def test_every_page_with_commands_is_looked_at():
    assert {name for name, commands in COMMANDS.items() if commands} == set(PRINT)
