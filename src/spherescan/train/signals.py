"""Stop at the next step boundary instead of in the middle of one."""

import math
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Signals:
    """What a run has been asked to do.

    Args:
        grace_seconds: Time between a signal to stop and the end of the process, as whoever sends it
            allows (torchrun kills after 30 s).
    """

    def __init__(self, grace_seconds: float = math.inf) -> None:
        self.signum: int | None = None
        self.save = False
        self._grace_seconds = grace_seconds
        self._received = 0.0

    def ask(self, signum: int) -> None:
        """Take a signal: SIGUSR1 asks to save and go on, the others to save and stop."""
        if signum == signal.SIGUSR1:
            self.save = True
            return
        if self.signum is None:
            self._received = time.monotonic()
        self.signum = signum

    @property
    def stop(self) -> bool:
        """Whether to stop at the next step boundary."""
        return self.signum is not None

    @property
    def seconds_left(self) -> float:
        """Seconds until the process may be killed."""
        if self.signum is None:
            return math.inf
        return self._grace_seconds - (time.monotonic() - self._received)

    @property
    def exit_code(self) -> int:
        """128 + the signal, as a shell counts; 0 when none came."""
        return 0 if self.signum is None else 128 + self.signum


@contextmanager
def stop_on_signals(grace_seconds: float = math.inf) -> Iterator[Signals]:
    """Record SIGINT, SIGTERM, SIGHUP and SIGUSR1; a second SIGINT interrupts at once.

    For the main thread only, as Python delivers signals there. The handlers that were there
    before are put back.
    """
    signals = Signals(grace_seconds)

    def record(signum: int, _frame: FrameType | None) -> None:
        if signals.signum == signal.SIGINT and signum == signal.SIGINT:
            raise KeyboardInterrupt
        signals.ask(signum)

    previous = {number: signal.signal(number, record) for number in (*_STOPPING, signal.SIGUSR1)}
    try:
        yield signals
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
