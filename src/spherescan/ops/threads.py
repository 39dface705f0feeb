"""Work that waits for no thread of torch.

Threads of torch wait for each other at the end of every operation that they share. Where another
program holds a core, each of these waits can last a slice of the scheduler, some milliseconds:
what has thousands of them takes a hundred times as long.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import TypeVar

import torch

T = TypeVar("T")


_changing = threading.Lock()


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute on one thread for a while, in this thread of Python and in no other."""
    own = torch.get_num_threads()
    if own == 1:
        yield
        return
    try:
        _set_own(1)
        yield
    finally:
        _set_own(own)


def _set_own(count: int) -> None:
    """Set how many threads torch has in this thread of Python.

    torch also keeps the last count that was set anywhere, with which new threads begin: one that
    ends at once puts that back.
    """
    with _changing, ThreadPoolExecutor(1) as elsewhere:
        of_new = elsewhere.submit(torch.get_num_threads).result()
        torch.set_num_threads(count)
        elsewhere.submit(torch.set_num_threads, of_new).result()


def _alone(task: Callable[[], T]) -> T:
    with one_thread():
        return task()


def side_by_side(
    tasks: Sequence[Callable[[], T]],
    *,
    at_most: int | None = None,
    stop: threading.Event | None = None,
) -> list[T]:
    """Do independent tasks, as many at once as torch has threads, each on one thread.

    What a task computes does not depend on how many are done at once.

    Args:
        tasks: What to do. With a single thread or task they are done here, else by other threads
            of Python, in which gradients and autocast are as torch has them at first.
        at_most: How many at once; 1 for tasks so small that to begin a thread costs as much.
        stop: Set when one of several at once has failed or this thread is interrupted, for those
            that look at it.

    Returns:
        What they return, in their order.

    Raises:
        BaseException: What one of them has raised.
    """
    n = min(at_most or len(tasks), len(tasks), torch.get_num_threads())
    if n <= 1:
        with one_thread():
            return [task() for task in tasks]
    with ThreadPoolExecutor(n) as pool:
        try:
            found = [pool.submit(_alone, task) for task in tasks]
            for each in wait(found, return_when=FIRST_EXCEPTION).done:
                each.result()
            return [each.result() for each in found]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            if stop is not None:
                stop.set()
            raise
