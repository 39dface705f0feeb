"""Endless batches with one cursor."""

from spherescan.data.batch import Batch, Source
from spherescan.data.prefetch import Prefetch


class BatchStream:
    """The batches of a run, one after the other; each is a function of the source and its place.

    Worker processes, when there are any, make batches ahead. They change nothing else: the state is
    that of the last batch that was taken, and those made ahead of it are made again after a resume,
    by as many workers as there are then.

    Args:
        source: What batches are made from.
        batch_size: Samples per batch.
        workers: Processes that make batches ahead; none makes them here, when they are asked for.
        ahead: How many batches they make ahead.
    """

    def __init__(
        self, source: Source, *, batch_size: int, workers: int = 0, ahead: int = 16
    ) -> None:
        self.source, self._batch_size = source, batch_size
        self._workers, self._ahead = workers, ahead
        self._next_sample = 0
        self._prefetch: Prefetch | None = None

    def __iter__(self) -> "BatchStream":
        return self

    def __next__(self) -> Batch:
        batch = self._taken() if self._workers else self._made()
        self._next_sample += self._batch_size
        return batch

    def state_dict(self) -> dict[str, int]:
        """Return the place of the next batch."""
        epoch, position = divmod(self._next_sample, len(self.source))
        return {"epoch": epoch, "position": position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue at a place that `state_dict` returned."""
        self.close()
        self._next_sample = state["epoch"] * len(self.source) + state["position"]

    def close(self) -> None:
        """End the workers; the next batch starts new ones."""
        if self._prefetch is not None:
            self._prefetch.close()
            self._prefetch = None

    def _made(self) -> Batch:
        return self.source.batch(self._next_sample, self._batch_size)

    def _taken(self) -> Batch:
        if self._prefetch is None:
            self._prefetch = Prefetch(
                self.source,
                start=self._next_sample,
                batch_size=self._batch_size,
                workers=self._workers,
                ahead=self._ahead,
            )
        try:
            return self._prefetch.take()
        except BaseException:
            self.close()
            raise
