"""Predictions of a sequence that still grows, in constant memory.

Letters: b batch (always 1), l length, c series channels, k classes.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from numpy.typing import ArrayLike
from torch import Tensor

from spherescan.data import Task
from spherescan.errors import CheckpointError, ConfigError, DataError
from spherescan.inference.decision import confidences, decide, expect_moderate
from spherescan.nn import (
    ModelDescription,
    SequenceModel,
    StreamedModel,
    StreamState,
    digest_of_weights,
)
from spherescan.runs import restore_stream_state, write_stream_state

# Positions that go through the model at once: enough to fill the vector units, and what bounds the
# memory of a push, however long its chunk is.
_PIECE = 512
_N_STEPS, _MODEL = "n_steps", "model"


@dataclass(frozen=True, slots=True, eq=False)  # eq: tensors have no single truth value
class Prediction:
    """What the model says of all that was pushed since the sequence began.

    Attributes:
        n_steps: How many samples or tokens that is.
        value: Class name, number, or token that follows.
        confidence: Probability of the class or token under the softmax that the model was trained
            with; without such a scale the largest cosine; None for a number, which the model gives
            no probability.
        cosines: Cosine with every prototype.
    """

    n_steps: int
    value: str | float | int
    confidence: float | None
    cosines: Float[Tensor, " k"]


class Stream:
    """Answer at any time what `Predictor` would answer for everything pushed so far.

    Every sample costs the same time and nothing is kept of it but a state of fixed size. The
    answers do not depend on how samples are put into chunks, up to rounding: cosines agree with
    those of the whole sequence to 1e-5.

    Args:
        description: Sizes of the network.
        model: The network, in eval mode. It must not change while the stream is in use.
        task: What it predicts.
        scale: Of the softmax that it was trained with, if it was.

    Raises:
        ConfigError: A bidirectional model.

    Example:
        >>> import torch
        >>> from spherescan.config import parse_config
        >>> from spherescan.train import build
        >>> config = parse_config({
        ...     "data": {"source": "synthetic", "vocab_size": 10},
        ...     "model": {"d_model": 8, "n_layers": 1},
        ... })
        >>> problem, model = build(config)
        >>> stream = Stream(problem.description, model.eval(), Task("next_token"), scale=12.0)
        >>> stream.push([3, 4]).n_steps, stream.push(5).n_steps
        (2, 3)
        >>> stream.reset()
        >>> stream.n_steps
        0
    """

    def __init__(
        self,
        description: ModelDescription,
        model: SequenceModel,
        task: Task,
        *,
        scale: float | None,
    ) -> None:
        if description.bidirectional:
            raise ConfigError(
                "model.bidirectional is true: this model reads every sequence from its end too, "
                "and a stream has no end yet; train one with model.bidirectional = false "
                "(--model.bidirectional false)"
            )
        self._description, self._model, self._task = description, model, task
        self._streamed = StreamedModel(model)
        self._scale = scale
        self._digest: Tensor | None = None
        self.reset()

    @property
    def n_steps(self) -> int:
        """Samples or tokens since the sequence began."""
        return self._n_steps

    def reset(self) -> None:
        """Begin a new sequence."""
        with torch.inference_mode():
            self._n_steps, self._state = 0, self._streamed.start(batch=1)

    def push(self, chunk: ArrayLike) -> Prediction:
        """Go on with the sequence, and answer for all of it.

        Args:
            chunk: For a series model one sample of shape (channels,) or several of shape
                (length, channels); with one channel also a number, or several of shape (length,).
                For a token model one token id or several. An empty chunk changes nothing.

        Raises:
            DataError: A chunk that is not that: another shape or channel count, a value that is not
                finite or too large, a token outside the vocabulary; or nothing in the sequence so
                far. The stream is then as it was before.
        """
        inputs = self._checked(chunk)
        n_steps = self._n_steps + inputs.shape[1]
        if n_steps == 0:
            raise DataError("nothing has been pushed; give at least one sample")
        with torch.inference_mode():
            state = self._state
            for piece in _pieces(inputs):
                state = self._streamed.extend(state, piece)
            prediction = self._prediction(state, n_steps)
        self._state, self._n_steps = state, n_steps
        return prediction

    def state_dict(self) -> dict[str, Tensor]:
        """Return everything that the next answers depend on beside the model, as tensors."""
        if self._digest is None:
            self._digest = digest_of_weights(self._model)
        n_steps = torch.tensor(self._n_steps)
        return {_N_STEPS: n_steps, _MODEL: self._digest, **self._state.tensors()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on where `state_dict` was taken; what follows is the same bit for bit.

        Raises:
            CheckpointError: A state of another model, or none of a stream. The stream is then as it
                was before.
        """
        expected = self.state_dict()
        if set(state) != set(expected):
            names = ", ".join(sorted(set(state) ^ set(expected))[:3])
            raise CheckpointError(f"not a state of a stream of this model: it differs in {names}")
        for name, tensor in state.items():
            _expect_like(name, tensor, expected[name])
        if not torch.equal(state[_MODEL], expected[_MODEL]):
            raise CheckpointError(
                "the state belongs to a stream of another model; load the run and the checkpoint "
                "that it was taken from"
            )
        if (n_steps := int(state[_N_STEPS])) < 0:
            raise CheckpointError(f"not a state of a stream: {_N_STEPS} is {n_steps}")
        # Copies: nobody else may change what the stream goes on with.
        copies = {name: tensor.clone() for name, tensor in state.items()}
        self._n_steps, self._state = n_steps, self._state.with_tensors(copies)

    def save(self, path: str | Path) -> None:
        """Write the state to a file, which takes the place of an older one at once or not at all.

        Raises:
            CheckpointError: The path names no file, or one that is no state of a stream.
            StorageError: The disk refused; an older file is still there.
        """
        write_stream_state(path, self.state_dict())

    def restore(self, path: str | Path) -> None:
        """Go on with the state of a file that `save` wrote; what follows is the same bit for bit.

        Raises:
            CheckpointError: The file is missing, damaged, of another kind or of another model.
        """
        restore_stream_state(path, self.load_state_dict)

    def _checked(self, chunk: ArrayLike) -> Int[Tensor, "1 l"] | Float[Tensor, "1 l c"]:
        try:
            values = np.asarray(chunk)
        except (RuntimeError, TypeError, ValueError) as error:  # rows of different lengths, say
            raise DataError(f"a chunk is not an array: {error}") from error
        if self._description.vocab_size is not None:
            return _tokens(values, self._description.vocab_size)
        assert self._description.n_channels is not None
        samples = _samples(values, self._description.n_channels)
        expect_moderate(self._model, samples, of="a chunk")
        return samples

    def _prediction(self, state: StreamState, n_steps: int) -> Prediction:
        cosines = self._model.head(self._streamed.read_out(state))
        (value,) = decide(self._task, cosines)
        sure = confidences(self._task, cosines, scale=self._scale)
        return Prediction(
            n_steps,
            value if isinstance(value, str) else value.item(),
            None if sure is None else sure.item(),
            cosines[0],
        )


def _samples(values: Shaped[np.ndarray, "..."], n_channels: int) -> Float[Tensor, "1 l c"]:
    if values.dtype.kind not in "biuf":
        raise DataError(f"a chunk is of {values.dtype}; wanted numbers")
    shape = values.shape
    if shape == (0,):
        values = values.reshape(0, n_channels)
    elif n_channels == 1 and values.ndim < 2:
        values = values.reshape(-1, 1)
    elif values.ndim == 1:
        values = values[None]
    if values.ndim != 2 or values.shape[1] != n_channels:
        flat = " or (length,)" if n_channels == 1 else ""
        raise DataError(
            f"a chunk has the shape {shape}; the training data has {n_channels} channels: wanted "
            f"({n_channels},) or (length, {n_channels}){flat}"
        )
    with np.errstate(over="ignore"):
        samples = np.array(values, dtype=np.float32, order="C")
    finite = np.isfinite(samples)
    if not finite.all():
        position, channel = np.argwhere(~finite)[0]
        raise DataError(
            f"a chunk has {values[position, channel]} at position {position} of channel {channel}; "
            "wanted finite float32 numbers"
        )
    return torch.from_numpy(samples)[None]


def _tokens(values: Shaped[np.ndarray, "..."], vocab_size: int) -> Int[Tensor, "1 l"]:
    if values.ndim > 1 or (values.dtype.kind not in "iu" and values.size):
        raise DataError(
            f"a chunk is {values.dtype} of shape {values.shape}; wanted token ids in one row"
        )
    if values.size and not 0 <= values.min() <= values.max() < vocab_size:
        raise DataError(
            f"a chunk holds tokens {values.min()}..{values.max()}; the vocabulary is "
            f"0..{vocab_size - 1}"
        )
    return torch.from_numpy(values.astype(np.int64).reshape(1, -1))


def _pieces(inputs: Tensor) -> Iterator[Tensor]:
    for start in range(0, inputs.shape[1], _PIECE):
        yield inputs[:, start : start + _PIECE]


def _expect_like(name: str, tensor: Tensor, expected: Tensor) -> None:
    if tensor.shape != expected.shape or tensor.dtype != expected.dtype:
        raise CheckpointError(
            f"not a state of a stream of this model: {name} is {tensor.dtype} of shape "
            f"{tuple(tensor.shape)}; wanted {expected.dtype} of {tuple(expected.shape)}"
        )
    if bool(tensor.isnan().any()):
        raise CheckpointError(f"not a state of a stream: {name} holds values that are no numbers")
