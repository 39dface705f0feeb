"""The tables of docs/runs.md: every line says which test holds it."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Files whose tests are there for a line of a table each.
OF_A_LINE = ["tests/train/test_situations.py", "tests/train/test_save_errors.py"]


def table(first: str) -> list[list[str]]:
    """Return the lines of the table whose first column has this name, cell by cell."""
    lines = (ROOT / "docs" / "runs.md").read_text().splitlines()
    (begin,) = (i for i, line in enumerate(lines) if line.startswith(f"| {first} |"))
    rows = []
    for line in lines[begin + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def names_in(path: Path) -> set[str]:
    """Return the names of the tests in a file."""
    functions = (n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.FunctionDef))
    return {function.name for function in functions if function.name.startswith("test_")}


def named(first: str) -> list[str]:
    return [row[-1].strip("`") for row in table(first)]


@pytest.mark.parametrize(("first", "n_at_least"), [("situation", 9), ("error", 6)])
def test_every_line_ends_with_a_test_that_exists(first, n_at_least):
    there = set().union(*map(names_in, (ROOT / "tests").rglob("test_*.py")))
    names = named(first)
    assert len(names) >= n_at_least
    assert all(re.fullmatch(r"`test_\w+`", row[-1]) for row in table(first))
    assert set(names) - there == set()
    assert len(set(names)) == len(names)


def test_every_test_of_a_line_is_in_the_tables():
    names = {*named("situation"), *named("error")}
    for file in OF_A_LINE:
        assert names_in(ROOT / file) - names == set(), file
