"""Untrusted text inside a one-line message: escaped and short."""

from collections.abc import Iterable
from pathlib import Path

# Long enough to recognise the piece in an editor, short enough for one line.
LONGEST = 40


def quoted(piece: str | bytes) -> str:
    r"""Return the piece in quotes, escaped to ASCII and cut after `LONGEST` characters.

    >>> print(quoted(b"caf\xe9"))
    'caf\xe9'
    """
    head = piece[:LONGEST]
    text = head if isinstance(head, str) else head.decode("latin-1")
    return ascii(text) + ("..." if len(piece) > LONGEST else "")


def listed(names: Iterable[str]) -> str:
    """Return the names quoted and joined by commas, the first ten of them."""
    all_names = list(names)
    rest = len(all_names) - 10
    return ", ".join(quoted(name) for name in all_names[:10]) + (
        f" and {rest} more" if rest > 0 else ""
    )


def source_name(path: Path) -> str:
    """Return the path as the user gave it, with anything that would break the line escaped."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in str(path))
