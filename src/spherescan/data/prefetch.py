"""Batches made ahead by worker processes, and taken in order.

Worker w of K makes batches w, w + K, w + 2 K, ... and holds a few of them back until the pipe has
room; the consumer takes from one pipe after the other. Which worker makes a batch, and when, is
nothing that the batch depends on. Between the processes go the bytes of arrays behind a small
header, and never a pickle.
"""

import multiprocessing
import os
import signal
import struct
import threading
from collections import deque
from multiprocessing import connection as connections
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, SpawnContext
from multiprocessing.process import BaseProcess
from multiprocessing.util import Finalize

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spherescan.data.batch import Batch, Source
from spherescan.errors import DataError

# What all workers together may hold, however many batches that is: they are there to hide the time
# that a batch takes, and a few batches do.
MAX_BYTES = 256 << 20
_MAX_HEADER_BYTES = 1 << 16
_BATCH, _DATA_ERROR, _OTHER_ERROR = range(3)
_START = struct.Struct("<BQ")
_DTYPES = ("int64", "int32", "float32", "float64", "bool")
_ABSENT = 255
# A run decides itself what to do about these, and ends its workers then.
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

Message = tuple[bytes | memoryview, ...]


class Prefetch:
    """Workers that make the batches of a run from some sample on.

    They end with `close`, with this object, and with this process.

    Args:
        source: What batches are made from; a copy of it goes to each worker.
        start: First sample of the first batch.
        batch_size: Samples per batch.
        workers: Number of processes.
        ahead: Batches that all of them together make ahead, at least one each.
    """

    def __init__(
        self, source: Source, *, start: int, batch_size: int, workers: int, ahead: int
    ) -> None:
        self._next, self._batch_size, self._turn = start, batch_size, 0
        context = _context()
        pipes = [context.Pipe() for _ in range(workers)]
        self._pipes = [ours for ours, _ in pipes]
        self._processes: list[BaseProcess] = [
            context.Process(
                target=_work,
                args=(theirs, source),
                kwargs={
                    "start": start + worker * batch_size,
                    "batch_size": batch_size,
                    "step": workers * batch_size,
                    "ahead": max(1, ahead // workers),
                    "most_bytes": MAX_BYTES // workers,
                },
                name=f"spherescan-data-{worker}",
                daemon=True,
            )
            for worker, (_, theirs) in enumerate(pipes)
        ]
        # Before the processes of multiprocessing itself are ended, which would wait for ours.
        self._end = Finalize(self, _end, args=(self._pipes, self._processes), exitpriority=10)
        try:
            _start(self._processes)
        except BaseException as error:
            self.close()
            if not isinstance(error, OSError | EOFError):
                raise
            raise DataError(
                f"a data worker cannot be started ({error}); set data.prefetch_workers = 0"
            ) from error
        finally:
            for _, theirs in pipes:
                theirs.close()

    def take(self) -> Batch:
        """Return the next batch.

        Raises:
            DataError: What the worker raised over this batch; or a worker has died.
        """
        self._await(self._pipes[self._turn])
        try:
            start, result = _received(self._pipes[self._turn])
        except (EOFError, OSError) as error:
            raise self._death(self._turn) from error
        assert start == self._next
        if not isinstance(result, Batch):
            raise result
        self._next += self._batch_size
        self._turn = (self._turn + 1) % len(self._pipes)
        return result

    def close(self) -> None:
        """End the workers."""
        self._end()

    def _await(self, pipe: Connection) -> None:
        """Wait for a message, or for the end of any worker: even one whose turn comes much later.

        Raises:
            DataError: One has died.
        """
        sentinels = {process.sentinel: worker for worker, process in enumerate(self._processes)}
        for ready in connections.wait([pipe, *sentinels]):
            if isinstance(ready, int):
                raise self._death(sentinels[ready])

    def _death(self, worker: int) -> DataError:
        process = self._processes[worker]
        process.join(timeout=1)
        return DataError(
            f"data worker {worker} of {len(self._processes)} died (exit code {process.exitcode}) "
            f"before it made all batches from sample {self._next} on; no batch is lost: resume "
            "the run, or set data.prefetch_workers = 0 to see the cause here"
        )


class _Outbox:
    """Messages of a worker that wait for the pipe, up to a number of them and of bytes."""

    def __init__(self, *, most: int, most_bytes: int) -> None:
        self._most, self._most_bytes = most, most_bytes
        self._waiting: deque[Message] = deque()
        self._bytes = 0
        self._changed = threading.Condition()

    def put(self, message: Message) -> None:
        """Add a message when there is room; one there is always room for."""
        size = _size(message)
        with self._changed:
            while self._waiting and (
                len(self._waiting) >= self._most or self._bytes + size > self._most_bytes
            ):
                self._changed.wait()
            self._waiting.append(message)
            self._bytes += size
            self._changed.notify_all()

    def send_all(self, pipe: Connection) -> None:
        """Send messages for as long as the pipe takes them."""
        while True:
            with self._changed:
                while not self._waiting:
                    self._changed.wait()
                message = self._waiting.popleft()
                self._bytes -= _size(message)
                self._changed.notify_all()
            for part in message:
                pipe.send_bytes(part)


def _size(message: Message) -> int:
    return sum(map(len, message))


def _context() -> ForkServerContext | SpawnContext:
    """Return a way to start processes that inherit nothing, least of all the lock of a run."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["spherescan.data"])  # once for all workers
    return context


def _start(processes: list[BaseProcess]) -> None:
    """Start workers that no signal reaches before they ignore it."""
    resource_tracker.ensure_running()  # it would let the signals through again
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        for process in processes:
            process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _end(pipes: list[Connection], processes: list[BaseProcess]) -> None:
    for pipe in pipes:
        pipe.close()
    for process in processes:
        if process.pid is not None:
            process.join(timeout=2)
            if process.exitcode is None:
                process.kill()
                process.join()


def _work(
    pipe: Connection,
    source: Source,
    *,
    start: int,
    batch_size: int,
    step: int,
    ahead: int,
    most_bytes: int,
) -> None:
    """Make batches until the pipe closes or the parent is gone."""
    for each in _SIGNALS:
        signal.signal(each, signal.SIG_IGN)
    torch.set_num_threads(1)
    outbox = _Outbox(most=ahead, most_bytes=most_bytes)
    threading.Thread(target=_exit_with, args=(pipe,), daemon=True).start()
    threading.Thread(target=_send, args=(outbox, pipe), daemon=True).start()
    try:
        while True:
            outbox.put(_batch_message(start, source.batch(start, batch_size)))
            start += step
    except DataError as error:
        outbox.put((_START.pack(_DATA_ERROR, start), str(error).encode()))
    except Exception as error:  # noqa: BLE001  it is raised in the consumer
        text = f"{type(error).__name__}: {error}"
        outbox.put((_START.pack(_OTHER_ERROR, start), text.encode()))
    threading.Event().wait()


def _exit_with(pipe: Connection) -> None:
    """Leave when the other end of the pipe closes, whatever the other threads are doing."""
    parent = multiprocessing.parent_process()
    connections.wait([pipe] if parent is None else [pipe, parent.sentinel])
    os._exit(0)


def _send(outbox: _Outbox, pipe: Connection) -> None:
    try:
        outbox.send_all(pipe)
    except OSError:
        os._exit(0)


def _batch_message(start: int, batch: Batch) -> Message:
    """Return a header and the bytes of each array.

    The header holds the kind of the message and the first sample; then for each of the four arrays
    its dtype, its number of axes and its shape, or that it is absent.
    """
    header, parts = [_START.pack(_BATCH, start)], []
    for tensor in (batch.inputs, batch.targets, batch.mask, batch.reset):
        if tensor is None:
            header.append(bytes([_ABSENT]))
            continue
        array = np.ascontiguousarray(tensor.numpy())
        header.append(bytes([_DTYPES.index(array.dtype.name), array.ndim]))
        header.append(struct.pack(f"<{array.ndim}Q", *array.shape))
        parts.append(_bytes_of(array))
    return b"".join(header), *parts


def _received(pipe: Connection) -> tuple[int, Batch | DataError]:
    header = pipe.recv_bytes(_MAX_HEADER_BYTES)
    kind, start = _START.unpack_from(header)
    if kind != _BATCH:
        text = pipe.recv_bytes().decode()
        if kind == _OTHER_ERROR:
            text = f"a data worker failed over the batch at sample {start}: {text}"
        return start, DataError(text)
    at = _START.size
    tensors: list[Tensor | None] = []
    for _ in range(4):
        if header[at] == _ABSENT:
            tensors.append(None)
            at += 1
            continue
        dtype, n_axes = _DTYPES[header[at]], header[at + 1]
        array = np.empty(struct.unpack_from(f"<{n_axes}Q", header, at + 2), dtype=dtype)
        pipe.recv_bytes_into(_bytes_of(array))
        tensors.append(torch.from_numpy(array))
        at += 2 + 8 * n_axes
    inputs, targets, mask, reset = tensors
    assert inputs is not None
    assert targets is not None
    assert mask is not None
    return start, Batch(inputs, targets, mask, reset)


def _bytes_of(array: NDArray[np.generic]) -> memoryview:
    return array.reshape(-1).view(np.uint8).data
