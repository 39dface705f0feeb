"""Paths that a user wrote."""

from pathlib import Path

from spherescan.errors import ConfigError, SpherescanError


def user_path(name: str | Path, *, error: type[SpherescanError] = ConfigError) -> Path:
    """Return a path, with ~ for the home folder, that the system is able to look for.

    Args:
        name: As written; there may be nothing there.
        error: What to raise.

    Raises:
        SpherescanError: It is too long, runs in circles, or leads through what may not be searched.
    """
    path = Path(name)
    try:
        path = path.expanduser()
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, RuntimeError, ValueError) as problem:  # no such home; a NUL in it
        reason = problem.strerror if isinstance(problem, OSError) else str(problem)
        raise error(f"{path}: cannot be looked for: {reason}; give another path") from problem
    return path
