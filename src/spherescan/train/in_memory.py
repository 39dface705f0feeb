"""Train a small model on series or sequences of tokens in memory: no run on disk, a few seconds.

Letters: n series, l length, c channels, d prototype dimension.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor
from torch.nn.utils import clip_grad_norm_
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from spherescan.data.augment import augmented, windows
from spherescan.losses import prototype_softmax_loss
from spherescan.nn import SequenceModel, SeriesEmbedding
from spherescan.train.optim import make_optimizer
from spherescan.train.schedule import learning_rate

# The mean of weights reaches back over this part of the run.
_AVERAGED_PART = 0.04
_WARMUP_PART = 0.06
_CLIP = 1.0
_PATIENCE = 3
# Held-out series in one forward pass.
_LOOK = 64
# Tokens of a longer sequence that a step looks at.
_WINDOW = 512
_BETAS = (0.9, 0.98)


@dataclass(frozen=True, slots=True, eq=False)
class Series:
    """Padded series, or sequences of tokens, and their classes."""

    x: Float[Tensor, "n l c"] | Int[Tensor, "n l"]
    mask: Bool[Tensor, "n l"]
    target: Int[Tensor, " n"]

    def __getitem__(self, index: Tensor) -> "Series":
        """Return some of them, as short as they are."""
        mask = self.mask[index]
        longest = int(mask.sum(1).max())
        return Series(self.x[index, :longest], mask[:, :longest], self.target[index])


@dataclass(frozen=True, slots=True)
class Plan:
    """How to train.

    Attributes:
        steps: Steps of the schedule.
        batch_size: Series in a step.
        lr: Peak learning rate.
        weight_decay: Decoupled decay.
        scale: Of the softmax over cosines.
        augment: Whether series are changed a little each time, and a part of long sequences of
            tokens is taken.
        seconds: After which it ends early, with the weights it has then; never when missing.
        early_stopping: Whether it ends when three looks at held-out series, each after a twentieth
            of the steps, found no smaller loss; the weights of the smallest are kept.
    """

    steps: int
    batch_size: int = 16
    lr: float = 2e-3
    weight_decay: float = 0.05
    scale: float = 24.0
    augment: bool = True
    seconds: float | None = None
    early_stopping: bool = False


def fit_series(
    model: SequenceModel,
    series: Series,
    plan: Plan,
    *,
    generator: Generator,
    held_out: Series | None = None,
    watch: Callable[[int, float], None] | None = None,
) -> SequenceModel:
    """Train by the softmax loss on the model's prototypes, which stay as they are.

    Args:
        model: With fresh weights; its statistics are set by the series.
        series: What it learns.
        plan: How.
        generator: Source of order and changes.
        held_out: What early stopping looks at.
        watch: Gets the step and the mean loss since its last call, about a hundred times.

    Returns:
        The model with the mean of its last weights, in eval mode.
    """
    began = time.perf_counter()
    deviation = None
    if isinstance(model.embedding, SeriesEmbedding):
        values = series.x[series.mask]
        deviation = values.std(0, correction=0)
        deviation = torch.where(deviation > 0, deviation, 1.0)
        model.embedding.set_statistics(values.mean(0), deviation)
    optimizer = make_optimizer(
        model.named_parameters(), lr=plan.lr, betas=_BETAS, weight_decay=plan.weight_decay
    )
    decay = max(0.0, 1 - 1 / max(1.0, _AVERAGED_PART * plan.steps))
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))  # type: ignore[no-untyped-call]
    model.train()
    batches = _batches(series, plan, deviation, generator=generator)
    losses: list[Tensor] = []
    every, look = max(1, plan.steps // 100), max(1, plan.steps // 20)
    best = _Best(held_out if plan.early_stopping else None, plan.scale)
    for step in range(plan.steps):
        rate = learning_rate(
            step,
            lr=plan.lr,
            warmup_steps=max(1, round(_WARMUP_PART * plan.steps)),
            total_steps=plan.steps,
            min_scale=0.0,
        )
        for group in optimizer.param_groups:
            group["lr"] = rate
        batch = next(batches)
        z = model.embed(batch.x, mask=batch.mask)
        loss = prototype_softmax_loss(z, model.head.weight, batch.target, scale=plan.scale).mean()
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        clip_grad_norm_(model.parameters(), _CLIP, error_if_nonfinite=True)
        optimizer.step()
        averaged.update_parameters(model)
        losses.append(loss.detach())
        late = plan.seconds is not None and time.perf_counter() - began > plan.seconds
        if watch is not None and ((step + 1) % every == 0 or late):
            watch(step + 1, float(torch.stack(losses).mean()))
            losses.clear()
        if late or ((step + 1) % look == 0 and best.is_past(averaged)):
            break
    found = averaged.module
    assert isinstance(found, SequenceModel)
    return best.restored(found).eval()


def _batches(
    series: Series, plan: Plan, deviation: Tensor | None, *, generator: Generator
) -> Iterator[Series]:
    """Yield batches for ever, each epoch in an order of its own; tokens have no deviation."""
    order = torch.empty(0, dtype=torch.long)
    while True:
        while len(order) < min(plan.batch_size, len(series.target)):
            more = torch.randperm(len(series.target), generator=generator)
            order = torch.cat([order, more])
        batch, order = series[order[: plan.batch_size]], order[plan.batch_size :]
        if plan.augment and deviation is not None:
            x = augmented(batch.x, batch.mask, deviation, generator=generator)
            batch = Series(x, batch.mask, batch.target)
        elif plan.augment:
            x, mask = windows(batch.x, batch.mask, longest=_WINDOW, generator=generator)
            batch = Series(x, mask, batch.target)
        yield batch


class _Best:
    """The weights with the smallest loss on held-out series so far; without these, the last."""

    def __init__(self, held_out: Series | None, scale: float) -> None:
        self._held_out, self._scale = held_out, scale
        self._loss, self._since = math.inf, 0
        self._weights: dict[str, Tensor] | None = None

    def is_past(self, averaged: AveragedModel) -> bool:
        """Look at the held-out series, and return whether the best is three looks ago."""
        if self._held_out is None:
            return False
        held, model = self._held_out, averaged.module
        assert isinstance(model, SequenceModel)
        losses = []
        with torch.inference_mode():
            for index in torch.split(torch.arange(len(held.target)), _LOOK):
                some = held[index]
                z = model.embed(some.x, mask=some.mask)
                losses.append(
                    prototype_softmax_loss(z, model.head.weight, some.target, scale=self._scale)
                )
        loss = float(torch.cat(losses).mean())
        self._since += 1
        if loss < self._loss:
            self._loss, self._since = loss, 0
            self._weights = {name: t.clone() for name, t in model.state_dict().items()}
        return self._since >= _PATIENCE

    def restored(self, model: SequenceModel) -> SequenceModel:
        """Put the best weights back."""
        if self._weights is not None:
            model.load_state_dict(self._weights)
        return model


def steps_for(n: int, *, batch_size: int) -> int:
    """Return how many steps a set of so many series deserves."""
    return min(2500, max(500, math.ceil(20 * n / batch_size)))
