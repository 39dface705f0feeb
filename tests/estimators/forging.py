"""Files of estimators with something in them that no estimator writes."""

from pathlib import Path

import pytest

from spherescan.errors import CheckpointError
from spherescan.runs import read_checkpoint, write_checkpoint


class Forger:
    """Takes the file of an estimator, and expects that a changed one is refused."""

    def __init__(self, made, folder: Path) -> None:
        self._kind, self._folder = type(made), folder
        made.save(folder / "good")
        self.good = read_checkpoint(folder / "good")

    def refused(self, reason: str, state=None, **tensors) -> None:
        """Change tensors, whose names have two underscores for a dot; None takes one away.

        Args:
            reason: What the error must say.
            state: Instead of that of the file.
            tensors: Instead of those of the file.
        """
        changed = {name.replace("__", "."): value for name, value in tensors.items()}
        kept = {n: t for n, t in (self.good.tensors | changed).items() if t is not None}
        path = self._folder / "bad"
        write_checkpoint(path, kept, self.good.state if state is None else state)
        with pytest.raises(CheckpointError, match=reason):
            self._kind.load(path)
        path.unlink()
