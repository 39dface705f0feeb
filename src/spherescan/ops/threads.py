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


class _Process:
    """How many are inside `one_thread`, and how many threads torch had before the first."""

    lock = threading.Lock()
    inside = 0
    before = 1


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute on one thread for a while.

    The count belongs to a thread of Python, but new ones begin with the last that was set
    anywhere. So the last to leave restores that too; those that began meanwhile stay at one.
    """
    own = torch.get_num_threads()
    if own == 1:
        yield
        return
    with _Process.lock:
        if not _Process.inside:
            _Process.before = own
        _Process.inside += 1
        torch.set_num_threads(1)
    try:
        yield
    finally:
        with _Process.lock:
            _Process.inside -= 1
            torch.set_num_threads(own)
            of_others = 1 if _Process.inside else _Process.before
            if of_others != own:
                # In a thread that ends: it leaves the count of this one as it is.
                setter = threading.Thread(target=torch.set_num_threads, args=(of_others,))
                setter.start()
                setter.join()


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
        stop: Set when one has failed or this thread is interrupted, for those that look at it.

    Returns:
        What they return, in their order.

    Raises:
        BaseException: What one of them has raised.
    """
    n = min(at_most or len(tasks), len(tasks), torch.get_num_threads())
    with one_thread():
        if n <= 1:
            return [task() for task in tasks]
        with ThreadPoolExecutor(n) as pool:
            try:
                found = [pool.submit(task) for task in tasks]
                for each in wait(found, return_when=FIRST_EXCEPTION).done:
                    each.result()
                return [each.result() for each in found]
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                if stop is not None:
                    stop.set()
                raise
