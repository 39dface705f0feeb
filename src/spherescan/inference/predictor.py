"""Predictions of a trained run.

Letters: n sequences, k classes, d prototype dimensions.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from spherescan.config import parse_config
from spherescan.data import Batch, SeriesTable, Task
from spherescan.data.series import expect_channels, series_batches
from spherescan.data.tokens import collate_tokens
from spherescan.errors import CheckpointError, DataError
from spherescan.inference.decision import confidences, decide, expect_moderate
from spherescan.inference.stream import Stream
from spherescan.nn import ModelDescription, SequenceModel
from spherescan.nn.pooling import last_pool
from spherescan.runs import Checkpoint, RunStore

Which = Literal["best", "newest"] | int

# Sequences per forward pass: enough to fill the vector units, little enough to stay in cache.
_BATCH_SIZE = 64


class Predictor:
    """A trained model and what its outputs mean.

    Args:
        description: Sizes of the network.
        model: The network.
        task: What it predicts.
        step: Training step of the weights.
        config: Configuration of the run, as plain values.
        fingerprint: Digest of the data it was trained on.
    """

    def __init__(
        self,
        description: ModelDescription,
        model: SequenceModel,
        task: Task,
        *,
        step: int,
        config: dict[str, Any],
        fingerprint: str,
    ) -> None:
        self.description, self.model = description, model.eval()
        self.task, self.step = task, step
        self.config, self.fingerprint = config, fingerprint

    @classmethod
    def load(cls, run_dir: str | Path, *, which: Which = "best") -> "Predictor":
        """Load a run.

        Args:
            run_dir: Folder of the run.
            which: The checkpoint of the best validation, the newest, or that of a step.

        Raises:
            RunDirectoryError: There is no run.
            CheckpointError: There is no such checkpoint, it is damaged, or of another model.
            ValueError: Another word than best or newest.
        """
        if not isinstance(which, int) and which not in {"best", "newest"}:
            raise ValueError(f"unknown checkpoint {which!r}; choose best, newest or a step")
        store = RunStore.open(Path(run_dir))
        if which == "best":
            return cls._from_checkpoint(store.load_best())
        return cls._from_checkpoint(store.load(which if isinstance(which, int) else None))

    @classmethod
    def _from_checkpoint(cls, checkpoint: Checkpoint) -> "Predictor":
        state = checkpoint.state
        try:
            description = ModelDescription.from_json(state["model"])
            model = description.build(place=False)
            model.load_state_dict(checkpoint.below("model/"))
            task = Task.from_json(state["task"])
        except (RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise CheckpointError(f"the checkpoint is of another model: {reason}") from error
        return cls(
            description,
            model,
            task,
            step=state["step"],
            config=state["config"],
            fingerprint=state["fingerprint"],
        )

    def predict(
        self, sequences: Sequence[ArrayLike]
    ) -> list[str] | NDArray[np.float64] | NDArray[np.int64]:
        """Predict one class name, number or next token for each sequence.

        Args:
            sequences: For a series model arrays of shape (length, channels), or (length,) for one
                channel; for a token model arrays of token ids. Lengths may differ.

        Returns:
            Class names of a classification; an array of numbers, or of token ids, otherwise.

        Raises:
            DataError: Another channel count, a value that is not finite or too large for the
                model, a token outside the vocabulary, or an empty sequence.
        """
        return decide(self.task, self.cosines(sequences))

    def stream(self) -> Stream:
        """Return a stream that answers the same for a sequence that still grows.

        Raises:
            ConfigError: A bidirectional model, or a configuration that is none.
        """
        return Stream(self.description, self.model, self.task, scale=self._scale())

    def confidences(self, cosines: Float[Tensor, "n k"]) -> Float[Tensor, " n"] | None:
        """Return how sure each decision is, given what `cosines` returned.

        Returns:
            The probability of the class or token under the softmax that the model was trained
            with; without such a scale the largest cosine; None of numbers, which the model gives
            no probability.
        """
        return confidences(self.task, cosines, scale=self._scale())

    def _scale(self) -> float | None:
        prototypes = parse_config(self.config).prototypes
        return prototypes.scale if prototypes.loss == "softmax" else None

    def cosines(self, sequences: Sequence[ArrayLike]) -> Float[Tensor, "n k"]:
        """Return the cosine of each sequence with each prototype; arguments as of `predict`."""
        with torch.inference_mode():
            return torch.cat([self.model.head(z) for z in self._embedded(sequences)])

    def embed(self, sequences: Sequence[ArrayLike]) -> Float[Tensor, "n d"]:
        """Return the unit vector of each sequence; arguments as of `predict`."""
        with torch.inference_mode():
            z = torch.cat(list(self._embedded(sequences)))
            return torch.nn.functional.normalize(z, dim=1)

    def moderate(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Yield batches whose values the model can take.

        Raises:
            DataError: Values too large for it, from the sequence that has them on.
        """
        first = 0
        for batch in batches:
            expect_moderate(self.model, batch.inputs, batch.mask, of="sequence {}", first=first)
            first += len(batch.inputs)
            yield batch

    def _embedded(self, sequences: Sequence[ArrayLike]) -> Iterator[Tensor]:
        if len(sequences) == 0:
            raise DataError("there are no sequences; give at least one")
        collated = (
            self._token_batches(sequences)
            if self.task.kind == "next_token"
            else self._series_batches(sequences)
        )
        for batch in self.moderate(collated):
            z = self.model.embed(batch.inputs, mask=batch.mask)
            yield z if self.model.pool is not None else last_pool(z, batch.mask)

    def _series_batches(self, sequences: Sequence[ArrayLike]) -> Iterator[Batch]:
        assert self.description.n_channels is not None
        try:
            arrays = [np.asarray(sequence, dtype=np.float32) for sequence in sequences]
        except (TypeError, ValueError) as error:
            raise DataError(f"a sequence is not an array of numbers: {error}") from error
        arrays = [np.ascontiguousarray(a[:, None] if a.ndim == 1 else a) for a in arrays]
        table = SeriesTable(
            tuple(arrays), labels=None, targets=None, class_names=None, source="the sequences"
        )
        expect_channels(table, self.description.n_channels)
        no_targets = np.zeros(len(table), dtype=np.int64)
        return series_batches(table.series, no_targets, batch_size=_BATCH_SIZE)

    def _token_batches(self, sequences: Sequence[ArrayLike]) -> Iterator[Batch]:
        assert self.description.vocab_size is not None
        arrays = [np.asarray(sequence) for sequence in sequences]
        for start in range(0, len(arrays), _BATCH_SIZE):
            part = arrays[start : start + _BATCH_SIZE]
            yield collate_tokens(part, vocab_size=self.description.vocab_size)
