"""One self-contained HTML page: figures that can be turned and read, without a network."""

import json
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from spherescan.errors import ConfigError, StorageError
from spherescan.paths import user_path

# By this a page is known; only a page is written over.
GENERATOR = '<meta name="generator" content="spherescan">'
_HEAD_BYTES = 1 << 10

_KEY = re.compile(r"[a-z][a-z-]*")


@dataclass(frozen=True, slots=True)
class Table:
    """Rows under headings; what a figure shows, for those who read rather than look.

    Raises:
        ValueError: A row of another width than the headings.
    """

    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def __post_init__(self) -> None:
        wrong = [row for row in self.rows if len(row) != len(self.headings)]
        if wrong:
            raise ValueError(f"a row of {len(wrong[0])} cells under {len(self.headings)} headings")


@dataclass(frozen=True, slots=True)
class Section:
    """Part of a page: a figure, a table, or the reason why there is neither.

    Attributes:
        key: Its name in the page's address, lower case.
        title: Heading.
        text: What to see in it, and what it was made from.
        data: Traces of plotly; no figure when there are none. Names in them are plain text.
        layout: Layout of plotly.
        table: The same in numbers.
        fold: Whether the table is folded away.
        turns: Whether the figure is a space that can be turned.
    """

    key: str
    title: str
    text: str
    data: tuple[dict[str, Any], ...] = ()
    layout: dict[str, Any] = field(default_factory=dict)
    table: Table | None = None
    fold: bool = True
    turns: bool = False

    def __post_init__(self) -> None:
        if not _KEY.fullmatch(self.key):
            raise ValueError(f"the key of a section is {self.key!r}; use lower case and hyphens")


@dataclass(frozen=True, slots=True)
class Page:
    """Everything a page says.

    Attributes:
        title: Of the page.
        subtitle: What was done on what, in a sentence.
        headline: The few numbers that matter, by name.
        sections: In the order of reading.
        facts: Tables of names and values, by heading.
        commands: What to type to get the same again, by what it does.
        configuration: The whole of it as text; none when empty.
    """

    title: str
    subtitle: str
    headline: Mapping[str, str]
    sections: Sequence[Section]
    facts: Mapping[str, Mapping[str, str]]
    commands: Mapping[str, str] = field(default_factory=dict)
    configuration: str = ""


def page_path(path: str | Path) -> Path:
    """Return where a page may be written, before it is made.

    Raises:
        ConfigError: There is no such folder, or something else than a page has the name.
    """
    path = user_path(path)
    if not path.parent.is_dir():
        raise ConfigError(f"{path}: its folder does not exist; make it first")
    if path.is_dir():
        raise ConfigError(f"{path}: is a folder; give the name of a file")
    if path.exists():
        try:
            with path.open("rb") as file:
                known = GENERATOR.encode() in file.read(_HEAD_BYTES)
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
        if not known:
            raise ConfigError(f"{path}: another file has this name; give another one")
    return path


def write_page(page: Page, path: str | Path) -> None:
    """Write a page; one that was there before is replaced whole.

    Raises:
        ConfigError: As of `page_path` and `html_of`.
        StorageError: The disk refused.
    """
    path = page_path(path)
    text = html_of(page)
    try:
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", dir=path.parent, prefix=f".{path.name}.", delete=False
        ) as file:
            new = Path(file.name)
            try:
                file.write(text)
                file.flush()
                new.chmod(0o666 & ~_umask())
                new.replace(path)
            except BaseException:
                new.unlink(missing_ok=True)
                raise
    except OSError as error:
        raise StorageError(f"{path}: cannot be written ({error.strerror})") from error


def _umask() -> int:
    """Return which rights a new file of this process does not get."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def html_of(page: Page) -> str:
    """Return a page as HTML that needs nothing else.

    Raises:
        ConfigError: The libraries of the extra `report` are not installed.
    """
    try:
        import jinja2  # noqa: PLC0415
        from plotly.offline import get_plotlyjs  # noqa: PLC0415
    except ImportError as error:
        raise ConfigError(
            f'a report needs {error.name}, which is not installed; pip install "spherescan[report]"'
        ) from error
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    figures = {
        section.key: {"data": section.data, "layout": section.layout, "turns": section.turns}
        for section in page.sections
        if section.data
    }
    text: str = environment.from_string(_part("page.html.jinja")).render(
        page=page,
        figures=script_json(figures),
        style=_part("page.css"),
        script=_part("page.js"),
        generator=GENERATOR,
        plotly=get_plotlyjs() if figures else "",
    )
    # A lone surrogate is no text that a file could hold.
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def script_json(value: object) -> str:
    """Write JSON that may stand in a script of a page: nothing in it ends the script.

    Raises:
        ValueError: A number that is not finite.
    """
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _part(name: str) -> str:
    return (resources.files(__package__) / name).read_text(encoding="utf-8")
