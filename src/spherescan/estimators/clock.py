"""How long each part of something takes, and a line about it."""

import sys
import time


class Clock:
    """Takes the time of what is done between two looks at it, and tells of it if it is to.

    Attributes:
        verbose: Whether to write lines to the standard error.
        seconds: Of each part so far.
    """

    def __init__(self, *, verbose: bool = False) -> None:
        self.verbose = verbose
        self.seconds: dict[str, float] = {}
        self._began = self._last = time.perf_counter()

    @property
    def so_far(self) -> float:
        """Seconds since it was made."""
        return time.perf_counter() - self._began

    @property
    def since_look(self) -> float:
        """Seconds since the last look."""
        return time.perf_counter() - self._last

    def look(self, name: str) -> float:
        """Say what the time since the last look was spent on, and return how much that is."""
        now = time.perf_counter()
        spent, self._last = now - self._last, now
        self.seconds[name] = spent
        return spent

    def look_at_ridge(self, n_series: int) -> None:
        """Say that a fit to so many series has come to its end."""
        spent = self.look("ridge and decisions")
        whole = f"the whole fit {self.so_far:.1f} s"
        self.tell(f"ridge and decisions, {n_series} series, {spent:.1f} s, {whole}")

    def tell(self, line: str) -> None:
        """Write a line, where that is asked for."""
        if self.verbose:
            sys.stderr.write(f"{line}\n")
