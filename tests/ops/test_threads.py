"""Work on one thread of torch, and several such pieces at once."""

import threading

import pytest
import torch

from spherescan.ops.threads import one_thread, side_by_side


def in_new_thread(work):
    """Return what it returns in a thread that has just begun."""
    found = []
    thread = threading.Thread(target=lambda: found.append(work()))
    thread.start()
    thread.join(60)
    return found[0]


def test_one_thread_for_a_while_also_when_it_fails():
    torch.set_num_threads(3)
    with one_thread(), one_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 3
    with pytest.raises(ZeroDivisionError), one_thread():
        _ = 1 / 0
    assert torch.get_num_threads() == 3


def test_other_threads_keep_their_count_and_new_ones_get_what_they_would():
    torch.set_num_threads(3)
    events = {name: threading.Event() for name in ("there", "inside", "leave")}
    counts = []

    def other():
        counts.append(torch.get_num_threads())
        events["there"].set()
        assert events["inside"].wait(60)
        counts.append(torch.get_num_threads())
        with one_thread():
            counts.append(torch.get_num_threads())
            assert events["leave"].wait(60)
        counts.append(torch.get_num_threads())

    thread = threading.Thread(target=other)
    thread.start()
    assert events["there"].wait(60)
    with one_thread():
        events["inside"].set()
        assert in_new_thread(torch.get_num_threads) == 3
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 3
    assert in_new_thread(torch.get_num_threads) == 3
    events["leave"].set()
    thread.join(60)
    assert counts == [3, 3, 1, 3]
    assert in_new_thread(torch.get_num_threads) == 3


@pytest.mark.parametrize(("threads", "n_tasks"), [(1, 3), (2, 4), (3, 3), (4, 2), (2, 1), (2, 0)])
def test_tasks_are_done_at_once_on_one_thread_each(threads, n_tasks):
    torch.set_num_threads(threads)
    at_once = min(threads, max(1, n_tasks))
    together = threading.Barrier(at_once)

    def task(number):
        together.wait(60)  # would end in an error were there fewer at once
        return number, torch.get_num_threads()

    tasks = [lambda number=number: task(number) for number in range(n_tasks)]
    assert side_by_side(tasks) == [(number, 1) for number in range(n_tasks)]
    assert torch.get_num_threads() == threads


def test_small_tasks_are_done_here():
    torch.set_num_threads(2)
    tasks = [lambda: (threading.get_ident(), torch.get_num_threads())] * 3
    assert side_by_side(tasks, at_most=1) == [(threading.get_ident(), 1)] * 3
    assert torch.get_num_threads() == 2


def test_a_task_that_fails_stops_those_that_look_and_those_to_come():
    torch.set_num_threads(2)
    stop, begun = threading.Event(), []

    def waits():
        assert stop.wait(60)
        begun.append("waits")

    def fails():
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        side_by_side([waits, fails, *[lambda: begun.append("later")] * 20], stop=stop)
    assert "waits" in begun
    assert len(begun) < 20
    assert torch.get_num_threads() == 2


def test_an_interrupt_stops_tasks(monkeypatch):
    torch.set_num_threads(2)
    stop = threading.Event()

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("spherescan.ops.threads.wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        side_by_side([lambda: stop.wait(60)] * 2, stop=stop)
    assert stop.is_set()
    assert torch.get_num_threads() == 2
