"""How a block learns from what it computes itself: the local losses, wired to a model.

The three kinds share one shape:

    widen(passing)   what runs through the blocks beside the batch: its negatives, say
    loss(passage)    one value per item from what went into a group and came out
    narrow(x)        the part that the model reads out
    at_last          whether the last group has such a loss too

Letters: b batch, l length, m model width.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Generator, Tensor

from spherescan.config import RunConfig
from spherescan.data import NEGATIVES, Batch, rust_trainer_negative, wrong_label
from spherescan.data.order import derived_seed
from spherescan.losses import (
    goodness,
    goodness_loss,
    local_cross_entropy,
    rust_trainer_loss,
    symmetric_goodness_loss,
)
from spherescan.nn import SequenceModel
from spherescan.train.objective import Objective

# How the head of the model learns in a step without backpropagation: by the loss of the task,
# whose gradient goes into the last group too, or ends at the head; or not at all.
HeadLearning = Literal["with_last_group", "alone", "not"]


@dataclass(frozen=True, slots=True)
class Passing:
    """What passes through the blocks: the residual stream, and which positions of it are real."""

    x: Tensor
    mask: Tensor
    reset: Tensor | None
    batch: Batch
    step: int


@dataclass(frozen=True, slots=True)
class Passage:
    """What a local loss may look at: a group of blocks, and what went in and came out."""

    model: SequenceModel
    blocks: range
    x_in: Tensor
    x_out: Tensor
    batch: Batch


@dataclass(frozen=True, slots=True)
class HeadLoss:
    """Each group is read out by a head of its own, which learns the task.

    Attributes:
        objective: Of the task, for a head onto the prototypes.
        kind: "prototype", or "cross_entropy" for a linear head.
    """

    objective: Objective
    kind: str
    head_learning: HeadLearning = "with_last_group"
    at_last: bool = False

    def widen(self, passing: Passing) -> Passing:
        """Return the batch alone."""
        return passing

    def narrow(self, x: Tensor) -> Tensor:
        """Return all of it."""
        return x

    def loss(self, passage: Passage) -> Tensor:
        """Return the loss of the head of a block."""
        model, batch = passage.model, passage.batch
        z = model.read_out_local(passage.blocks[-1], passage.x_out, mask=batch.mask)
        if self.kind == "prototype":
            return self.objective.losses(z, model.head, batch.targets)
        return local_cross_entropy(*self.objective.scored(z.float(), batch.targets))


@dataclass(frozen=True, slots=True)
class Goodness:
    """Each group learns to be active on real data and quiet on negative data.

    The stream is three times as wide as the batch: real, negative, and neutral data that the model
    reads out. With wrong labels the label of a sequence is added to its stream as a fixed random
    vector; neutral data has none.

    Attributes:
        compare: Goodness of real and negative data to a loss.
        negatives: Name of the negatives.
        n_classes: Classes of the task; for wrong labels.
        seed: Of the negatives and the label vectors.
    """

    compare: Callable[[Tensor, Tensor], Tensor]
    negatives: str
    n_classes: int
    seed: int
    head_learning: HeadLearning = "alone"
    at_last: bool = True

    def widen(self, passing: Passing) -> Passing:
        """Put real, negative and neutral streams below each other."""
        x, batch = passing.x, passing.batch
        generator = Generator().manual_seed(derived_seed(self.seed, "negatives", passing.step))
        positive = negative = x
        if self.negatives == "wrong_label":  # the label is in the real stream too
            wrong = wrong_label(batch.targets, n_classes=self.n_classes, generator=generator)
            labels = self._label_vectors(x)
            positive = x + labels[batch.targets][:, None]
            negative = x + labels[wrong][:, None]
        else:
            negative = NEGATIVES[self.negatives](x, batch.mask, generator=generator)
        reset = None if batch.reset is None else batch.reset.repeat(3, 1)
        x = torch.cat([positive, negative, x])
        return replace(passing, x=x, mask=batch.mask.repeat(3, 1), reset=reset)

    def narrow(self, x: Tensor) -> Tensor:
        """Return the neutral part."""
        return x.tensor_split(3)[2]

    def loss(self, passage: Passage) -> Tensor:
        """Compare how active the group is on real and on negative data."""
        positive, negative, _ = (passage.x_out - passage.x_in).tensor_split(3)
        mask = passage.batch.mask
        return self.compare(goodness(positive, mask), goodness(negative, mask))

    def _label_vectors(self, x: Tensor) -> Tensor:
        """Return one fixed random vector per class, as long as a position with unit variance."""
        generator = Generator().manual_seed(derived_seed(self.seed, "labels"))
        return torch.randn(self.n_classes, x.shape[2], generator=generator).to(x)


@dataclass(frozen=True, slots=True)
class RustTrainer:
    """The Forward-Forward step of rust_trainer 0.1.4: only the vector D of each mixer learns."""

    head_learning: HeadLearning = "not"
    at_last: bool = True

    def widen(self, passing: Passing) -> Passing:
        """Return the batch alone."""
        return passing

    def narrow(self, x: Tensor) -> Tensor:
        """Return all of it."""
        return x

    def loss(self, passage: Passage) -> Tensor:
        """Compare the mean input of the block with that of its negative, through D."""
        x = passage.x_in.detach()
        mask = passage.batch.mask
        real = mask[:, :, None].to(x.dtype)
        both = (x, rust_trainer_negative(x, mask))
        positive, negative = ((h * real).sum((0, 1)) / real.sum() for h in both)
        layers = [passage.model.layers[i] for i in passage.blocks]
        named = [pair for layer in layers for pair in layer.named_parameters()]
        thetas = [theta for name, theta in named if name.endswith(".D")]
        losses = [rust_trainer_loss(positive, negative, theta) for theta in thetas]
        return torch.stack(losses).sum()[None]


LocalLoss = HeadLoss | Goodness | RustTrainer


def _head_loss(config: RunConfig, objective: Objective) -> HeadLoss:
    return HeadLoss(objective, config.local.loss)


def _goodness(config: RunConfig, objective: Objective) -> Goodness:
    threshold = config.local.threshold * config.model.d_model
    return _comparing(functools.partial(goodness_loss, threshold=threshold), config, objective)


def _symmetric_goodness(config: RunConfig, objective: Objective) -> Goodness:
    alpha = config.local.alpha / config.model.d_model
    return _comparing(functools.partial(symmetric_goodness_loss, alpha=alpha), config, objective)


def _comparing(
    compare: Callable[[Tensor, Tensor], Tensor], config: RunConfig, objective: Objective
) -> Goodness:
    n_classes = len(objective.task.class_names)
    return Goodness(compare, config.local.negatives, n_classes, config.run.seed)


def _rust_trainer(config: RunConfig, objective: Objective) -> RustTrainer:
    del config, objective
    return RustTrainer()


LOCAL_LOSSES: dict[str, Callable[[RunConfig, Objective], LocalLoss]] = {
    "prototype": _head_loss,
    "cross_entropy": _head_loss,
    "goodness": _goodness,
    "symmetric_goodness": _symmetric_goodness,
    "rust_trainer": _rust_trainer,
}
