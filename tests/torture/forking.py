"""One attempt is one forked child: it has everything imported already, and it may die."""

import json
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass

FAILED = 99  # exit code of a child whose work raised


@dataclass(frozen=True, slots=True)
class Ended:
    """How a child ended.

    Attributes:
        signum: The signal that killed it; 0 when it exited.
        code: Its exit code.
        value: What the work returned, by way of JSON.
        seconds: How long it lived.
    """

    signum: int
    code: int
    value: object
    seconds: float

    @property
    def finished(self) -> bool:
        """Whether the work was done to its end."""
        return self.signum == 0 and self.code == 0

    def expect_finished(self) -> object:
        """Return the value of work that must not have failed."""
        if not self.finished:
            raise AssertionError(f"the child ended by signal {self.signum}, code {self.code}")
        return self.value


def in_child(
    work: Callable[[], object],
    *,
    send: tuple[tuple[float, int], ...] = (),
    limit: int = 120,
    quiet: bool = True,
    threads: bool = True,
) -> Ended:
    """Do some work in a forked child.

    Args:
        work: What to do; the result must be JSON.
        send: Signals to send, each after so many seconds from the fork, in order.
        limit: The child is killed by SIGALRM after so many seconds; that is always a failure.
        quiet: Whether the child's standard output and errors are thrown away.
        threads: Whether saving and pruning use their threads however small a checkpoint is.
    """
    began = time.monotonic()
    reading, writing = os.pipe()
    # An interrupt of the child has to wait until `_live` catches it: sooner, the child would leave
    # through what the parent is doing, and clean up after it.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    child = os.fork()
    if child == 0:
        os.close(reading)
        if threads:
            # Whoever saves has it loaded, and others need not wait for torch.
            from spherescan.runs import container, folder

            container._WORTH_A_THREAD = folder.WORTH_A_THREAD = 0
        _live(work, writing, limit, before, quiet=quiet)
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    os.close(writing)
    try:
        for after, signum in send:
            _wait(reading, began + after - time.monotonic())
            os.kill(child, signum)  # it is not reaped yet, so the number is still its own
        value = _read_all(reading)
    finally:
        os.close(reading)
        _, status = os.waitpid(child, 0)
    seconds = time.monotonic() - began
    if os.WIFSIGNALED(status):
        if os.WTERMSIG(status) == signal.SIGALRM:
            raise AssertionError(f"a child was still at work after {limit} seconds")
        return Ended(os.WTERMSIG(status), -1, None, seconds)
    code = os.WEXITSTATUS(status)
    if code == FAILED:
        raise AssertionError(f"the work of a child raised:\n{value.decode()}")
    return Ended(0, code, json.loads(value) if value else None, seconds)


def _live(
    work: Callable[[], object], writing: int, limit: int, mask: set[int], *, quiet: bool
) -> None:
    code = FAILED
    try:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(limit)
        if quiet:
            nowhere = os.open(os.devnull, os.O_RDWR)
            for file in (1, 2):
                os.dup2(nowhere, file)
        os.write(writing, json.dumps(work()).encode())
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except KeyboardInterrupt:  # it came when the work was done
        code = 128 + signal.SIGINT
    except BaseException:  # noqa: BLE001 - the parent reports it
        os.write(writing, traceback.format_exc().encode()[-60_000:])
    finally:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        sys.stdout = sys.stderr = None  # what the parent had buffered is the parent's to print
        os._exit(code)


def _wait(file: int, seconds: float) -> None:
    if seconds > 0:
        select.select([file], [], [], seconds)


def _read_all(file: int) -> bytes:
    parts = []
    while part := os.read(file, 1 << 16):
        parts.append(part)
    return b"".join(parts)
