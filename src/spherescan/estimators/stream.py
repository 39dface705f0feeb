"""Answers of an estimator while a series comes in, in constant memory.

Letters: c channels, l length, k classes, d prototype dimension, f features.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.nn import functional

from spherescan.estimators.description import SeriesFeatures
from spherescan.estimators.frames import as_floats, is_frame, values_of
from spherescan.estimators.networks import full_precision
from spherescan.estimators.sequences import checked_tokens, has_masked
from spherescan.features import RunningStatistics
from spherescan.nn import StreamedModel, StreamState, digest_of_weights
from spherescan.runs import restore_stream_state, write_stream_state

# Positions that go through the networks at once: it bounds the memory of a push.
_PIECE = 512
_STATISTICS = "statistics/"  # begins the names of their tensors


@dataclass(frozen=True, slots=True, eq=False)  # eq: arrays have no single truth value
class ClassAnswer:
    """What a classifier says of all samples since the series began.

    Attributes:
        n_steps: How many samples or tokens that is.
        label: The nearest class, or what the stream calls unknown.
        probability: Of the nearest class.
        probabilities: Of every class, in the order of `classes_`.
        cosines: With every class.
        known_score: How much the series is like those of a class.
    """

    n_steps: int
    label: Any
    probability: float
    probabilities: NDArray[np.float64]
    cosines: NDArray[np.float64]
    known_score: float


@dataclass(frozen=True, slots=True)
class NumberAnswer:
    """What a regressor says of all samples since the series began.

    Attributes:
        n_steps: How many samples or tokens that is.
        value: The prediction.
    """

    n_steps: int
    value: float


A = TypeVar("A")


class SeriesStream(Generic[A]):
    """Answer at any time what an estimator would answer for everything pushed so far.

    Every sample costs the same time, and nothing is kept but a state of fixed size. The answers do
    not depend on how samples are put into chunks, up to rounding.

    Args:
        features: Those of the estimator.
        answer: Makes an answer of the number of samples and their features.

    Raises:
        ValueError: Features of whole series.
    """

    def __init__(
        self, features: SeriesFeatures, answer: Callable[[int, Float[Tensor, "1 f"]], A]
    ) -> None:
        if features.fixed is not None or features.networks is None:
            raise ValueError(
                "this estimator looks at whole series: quantiles of convolutions, and models that "
                "read from the end too; fit one with causal=True"
            )
        self._features, self._networks, self._answer = features, features.networks, answer
        self._models = [StreamedModel(model) for model in features.networks.each()]
        self._digest: Tensor | None = None
        self.reset()

    @property
    def n_steps(self) -> int:
        """Samples or tokens since the series began."""
        return self._n_steps

    def reset(self) -> None:
        """Begin a new series."""
        self._statistics: RunningStatistics | None = None
        if self._features.n_statistics:
            self._statistics = RunningStatistics.of_nothing(self._networks.n_channels)
        with torch.inference_mode():
            self._states = [model.start(batch=1) for model in self._models]
        self._n_steps = 0
        # Samples of the last stride, which the next ones may complete; tokens come one by one.
        self._open = self._networks.nothing()

    def push(self, samples: ArrayLike) -> A:
        """Go on with the series, and answer for all of it.

        Args:
            samples: One of shape (n_channels,), or several of shape (n_channels, n_timepoints), as
                `fit` has series; of one channel also a number, or several of shape
                (n_timepoints,). Of tokens one, or several of shape (n_timepoints,), or a text. None
                at all change nothing.

        Raises:
            TypeError: Tokens that are no whole numbers.
            ValueError: Another shape, a value that is not finite, or nothing so far; the stream is
                then as it was before.
        """
        rows = self._checked(samples)
        n_steps = self._n_steps + len(rows)
        if n_steps == 0:
            raise ValueError("nothing has been pushed; give at least one sample")
        stride = self._networks.stride
        with torch.inference_mode(), full_precision():
            statistics = None if self._statistics is None else self._statistics.extended(rows)
            rows = torch.cat([self._open, rows])
            whole = len(rows) // stride * stride
            done = rows[:whole]
            if stride > 1:
                done = done.reshape(-1, stride, rows.shape[1]).mean(1)
            rest = rows[whole:].clone()
            states = _extended(self._models, self._states, done)
            # An unfinished stride counts as far as it goes, for this answer alone.
            seen = states
            if len(rest):
                seen = _extended(self._models, states, rest.mean(0, keepdim=True))
            z = _mean_vector(self._models, seen)
            values = None if statistics is None else statistics.values()
            described = self._features.of_stream(z, values)
            if not bool(described.isfinite().all()):
                raise ValueError("samples so large that the answer is not finite; check their unit")
            found = self._answer(n_steps, described)
        self._states, self._open, self._n_steps = states, rest, n_steps
        self._statistics = statistics
        return found

    def state_dict(self) -> dict[str, Tensor]:
        """Return everything that the next answers depend on beside the estimator."""
        if self._digest is None:
            self._digest = digest_of_weights(self._networks)
        state = {
            "n_steps": torch.tensor(self._n_steps),
            "open": self._open,
            "networks": self._digest,
        }
        if self._statistics is not None:
            held = self._statistics.tensors()
            state |= {_STATISTICS + name: tensor for name, tensor in held.items()}
        for index, each in enumerate(self._states):
            state |= {f"{index}/{name}": tensor for name, tensor in each.tensors().items()}
        return {name: tensor.contiguous() for name, tensor in state.items()}

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
            CheckpointError: The file is missing, damaged, of another kind or of another estimator.
        """
        restore_stream_state(path, self.load_state_dict)

    def load_state_dict(self, state: Any) -> None:
        """Go on where `state_dict` was taken, of a stream with the same networks.

        Raises:
            TypeError: It holds something else than tensors.
            ValueError: It is of others, or of none; the stream is then as it was before.
        """
        expected = self.state_dict()
        tensors = state.values() if isinstance(state, Mapping) else [state]
        if not all(isinstance(tensor, Tensor) for tensor in tensors):
            raise TypeError("a state of a stream holds tensors by name, as state_dict returns it")
        if expected.keys() != state.keys():
            names = ", ".join(sorted(expected.keys() ^ state.keys())[:3])
            raise ValueError(f"not a state of a stream of this estimator: it differs in {names}")
        n_steps = state["n_steps"]
        if n_steps.shape != () or n_steps.dtype != torch.int64 or int(n_steps) < 0:
            raise ValueError(f"not a state of a stream: n_steps is {n_steps}")
        for name, tensor in state.items():
            wanted = expected[name]
            shape = wanted.shape
            if name == "open":  # as many rows as there are samples that no stride is full of
                shape = torch.Size([int(n_steps) % self._networks.stride, *shape[1:]])
            of_another = tensor.shape != shape or tensor.dtype != wanted.dtype
            negative = name == _STATISTICS + "squares" and bool((tensor < 0).any())
            if of_another or negative or bool(tensor.isnan().any()):
                raise ValueError(f"not a state of a stream of this estimator: {name}")
        if not torch.equal(state["networks"], expected["networks"]):
            raise ValueError("the state belongs to a stream of another estimator")
        self._n_steps, self._open = int(n_steps), state["open"].clone()
        if self._statistics is not None:
            held = {name: state[_STATISTICS + name].clone() for name in self._statistics.tensors()}
            self._statistics = RunningStatistics(self._n_steps, **held)
        self._states = [
            each.with_tensors({name: state[f"{index}/{name}"].clone() for name in each.tensors()})
            for index, each in enumerate(self._states)
        ]

    def _checked(self, samples: ArrayLike) -> Float[Tensor, "l c"] | Int[Tensor, " l"]:
        """Return tokens, or samples as the networks have them."""
        if self._networks.vocab_size is not None:
            one = not isinstance(samples, str | bytes) and np.ndim(samples) == 0
            tokens = [samples] if one else samples
            return checked_tokens(tokens, self._networks.vocab_size, name="what was pushed")
        n_channels = self._networks.n_channels
        if has_masked(samples):
            raise ValueError("samples have masked values; a stream takes none")
        if is_frame(samples):
            samples = values_of(samples, name="what was pushed")
        try:
            values = as_floats(samples)
        except (TypeError, ValueError) as error:
            raise ValueError(f"samples are no numbers: {error}") from error
        if n_channels == 1 and values.ndim < 2:
            values = values.reshape(1, -1)
        elif values.ndim == 1 and values.size:
            values = values[:, None]
        elif values.ndim == 1:
            values = values.reshape(n_channels, 0)
        if values.ndim != 2 or len(values) != n_channels:
            raise ValueError(
                f"samples have the shape {np.shape(samples)}; wanted ({n_channels},) or "
                f"({n_channels}, n_timepoints)"
            )
        if not np.isfinite(values).all():
            channel, time = np.argwhere(~np.isfinite(values))[0].tolist()
            raise ValueError(
                f"samples hold {values[channel, time]} in channel {channel} at time {time}; a "
                "stream has nothing to read over it with: leave it out, or push the last value"
            )
        return self._networks.standardised(torch.from_numpy(values.T.copy()))


def _extended(
    models: list[StreamedModel],
    states: list[StreamState],
    rows: Float[Tensor, "l c"] | Int[Tensor, " l"],
) -> list[StreamState]:
    for begin in range(0, len(rows), _PIECE):
        piece = rows[begin : begin + _PIECE]
        piece = piece.float() if piece.is_floating_point() else piece
        pairs = zip(models, states, strict=True)
        states = [model.extend(state, piece[None]) for model, state in pairs]
    return states


def _mean_vector(models: list[StreamedModel], states: list[StreamState]) -> Float[Tensor, "1 d"]:
    found = [
        functional.normalize(model.read_out(state), dim=1).double()
        for model, state in zip(models, states, strict=True)
    ]
    return torch.stack(found).mean(0)
