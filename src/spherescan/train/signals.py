"""Stop at the next step boundary instead of in the middle of one."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopFlag:
    """Which signal came, if any."""

    def __init__(self) -> None:
        self.signum: int | None = None

    @property
    def exit_code(self) -> int:
        """128 + the signal, as a shell counts; 0 when none came."""
        return 0 if self.signum is None else 128 + self.signum


@contextmanager
def stop_on_signals() -> Iterator[StopFlag]:
    """Record SIGINT and SIGTERM in a flag; a second SIGINT interrupts at once.

    For the main thread only, as Python delivers signals there. The handlers that were there
    before are put back.
    """
    flag = StopFlag()

    def record(signum: int, _frame: FrameType | None) -> None:
        if flag.signum == signal.SIGINT and signum == signal.SIGINT:
            raise KeyboardInterrupt
        flag.signum = signum

    previous = {number: signal.signal(number, record) for number in _SIGNALS}
    try:
        yield flag
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
