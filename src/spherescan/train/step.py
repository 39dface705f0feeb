"""One training step, whole: local losses, backpropagation, and where they meet.

    every step                    each group of blocks has a loss of its own
    (step + 1) % backprop_every   the loss of the task reaches through all groups, and the two are
                                  summed before one backward pass ("deep"), or computed apart and
                                  merged for each group by an aggregator ("surgery")

A step without backpropagation runs forward and backward through one group at a time, so it holds
the activations of one group. Both kinds have the same guards, clipping and metrics.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from spherescan.data import Batch
from spherescan.data.order import derived_seed
from spherescan.nn import SequenceModel
from spherescan.train.lessons import (
    Lesson,
    learn_alone,
    learn_merged,
    learn_summed,
    lessons_of,
    norm_of,
)
from spherescan.train.merge import Merger
from spherescan.train.objective import Objective
from spherescan.train.optim import set_step_count
from spherescan.train.rule import LearningRule


@dataclass(frozen=True, slots=True)
class GroupMetrics:
    """What happened in one group of blocks.

    Attributes:
        blocks: Their indices.
        local_loss: Mean local loss; None when the group has none.
        cosine: Between local and backprop gradient; None when they did not meet.
        weights: What they were multiplied by before they were merged.
        grad_norm: Of the gradient its blocks were given, before clipping.
        update_norm: Of what was added to its blocks.
    """

    blocks: range
    local_loss: float | None = None
    cosine: float | None = None
    weights: tuple[float, float] | None = None
    grad_norm: float = 0.0
    update_norm: float = 0.0

    @property
    def conflict(self) -> bool:
        """Whether the two gradients pointed away from each other."""
        return self.cosine is not None and self.cosine < 0


@dataclass(frozen=True, slots=True)
class StepMetrics:
    """What a step did; norms are those before clipping.

    Attributes:
        loss: Mean loss of the task over the scored items; None in a step without backpropagation.
        local_loss: Mean of the local losses; None without any. That of the task, by which the last
            group may learn, is not among them.
        quality: Mean quality, see `Scores`; None when the model was not read out.
        grad_norm: Over all trained parameters.
        grad_norm_embedding: Over the embedding.
        grad_norm_prototypes: Over the prototypes; 0 when they are fixed.
        grad_norm_top: Over the last block.
        clipped: Whether the gradient was scaled down.
        updated: False when something was not finite and nothing was changed.
        groups: Each group of blocks; none without local learning.
    """

    loss: float | None
    local_loss: float | None
    quality: float | None
    grad_norm: float
    grad_norm_embedding: float
    grad_norm_prototypes: float
    grad_norm_top: float
    clipped: bool
    updated: bool
    groups: tuple[GroupMetrics, ...] = ()


def hybrid_step(
    model: SequenceModel,
    batch: Batch,
    objective: Objective,
    optimizer: AdamW,
    rule: LearningRule,
    mergers: Sequence[Merger] = (),
    *,
    step: int,
    lr: float,
    local_lr: float,
    grad_clip: float,
    local_scale: float = 1.0,
) -> StepMetrics:
    """Update the model on one batch.

    Losses and gradients are checked before the update: when one is not finite the model and the
    optimiser stay as they are.

    Args:
        model: What is trained.
        batch: What it is trained on.
        objective: Loss and score of the task.
        optimizer: Over the trained parameters of the model.
        rule: How local learning and backpropagation meet.
        mergers: One for each group; for "surgery".
        step: Steps done before.
        lr: Learning rate when backpropagation joins.
        local_lr: Learning rate when it does not.
        grad_clip: Largest gradient norm; 0 for no clipping.
        local_scale: Factor of a local gradient after surgery by a method of rust_trainer, whose
            local learning rate is not that of its optimiser.

    Raises:
        ValueError: In a step of surgery, not one merger for each group.
    """
    # Of all parameters: one that was frozen since the last step must not keep its gradient.
    model.zero_grad(set_to_none=True)
    model.dropout_seed = derived_seed(rule.seed, "dropout", step)
    joined = rule.backprop_joins(step)
    lessons = lessons_of(model, batch, objective, rule, step=step, joined=joined)
    if not joined:
        done = learn_alone(lessons)
    elif rule.local is not None and rule.mode == "surgery":
        done = learn_merged(model, lessons, rule, mergers, local_scale=local_scale)
    else:
        done = learn_summed(lessons, weight=rule.weight)

    metrics = _measure(model, done, local=rule.local is not None, joined=joined)
    if not metrics.updated:
        return metrics
    plain = rule.plain_updates and not joined
    trained = [p for p in model.parameters() if p.grad is not None]
    gradients = [p.grad for p in trained if p.grad is not None]
    if 0 < grad_clip < metrics.grad_norm and not plain:
        metrics = replace(metrics, clipped=True)
        torch._foreach_mul_(gradients, grad_clip / metrics.grad_norm)
    weights = [_trained(model, group.blocks) for group in metrics.groups]
    before = [[weight.clone() for weight in each] for each in weights]
    if plain:
        torch._foreach_sub_([p.data for p in trained], gradients, alpha=local_lr)
    else:
        if rule.run_step_count:
            set_step_count(optimizer, trained, step)
        for parameters in optimizer.param_groups:
            parameters["lr"] = lr if joined else local_lr
        optimizer.step()
    # In place, so that all weights are in memory twice and not three times.
    updates = [
        norm_of(old.sub_(new) for old, new in zip(*each, strict=True))
        for each in zip(before, weights, strict=True)
    ]
    groups = zip(metrics.groups, updates, strict=True)
    return replace(metrics, groups=tuple(replace(g, update_norm=norm) for g, norm in groups))


def _measure(
    model: SequenceModel, lessons: Sequence[Lesson], *, local: bool, joined: bool
) -> StepMetrics:
    main = lessons[-1].scores
    loss = None if main is None else main.mean_loss.item()
    grad_norm = _grad_norm(model)
    groups = [_describe(model, lesson) for lesson in lessons] if local else []
    local_losses = [group.local_loss for group in groups if group.local_loss is not None]
    if groups and not joined and groups[-1].local_loss is None:
        # The last group learned by the loss of the task, and nothing below it did.
        groups[-1] = replace(groups[-1], local_loss=loss)
    return StepMetrics(
        loss=loss if joined else None,
        local_loss=sum(local_losses) / len(local_losses) if local_losses else None,
        quality=None if main is None else main.mean_quality.item(),
        grad_norm=grad_norm,
        grad_norm_embedding=_grad_norm(model.embedding),
        grad_norm_prototypes=_grad_norm(model.head),
        grad_norm_top=_grad_norm(model.layers[-1]),
        clipped=False,
        updated=all(map(math.isfinite, [grad_norm, loss or 0.0, *local_losses])),
        groups=tuple(groups),
    )


def _describe(model: SequenceModel, lesson: Lesson) -> GroupMetrics:
    meeting = lesson.meeting
    return GroupMetrics(
        blocks=lesson.blocks,
        local_loss=None if lesson.local is None else lesson.mean_local.item(),
        cosine=None if meeting is None else meeting.cosine,
        weights=None if meeting is None else meeting.weights,
        grad_norm=_grad_norm(*(model.layers[i] for i in lesson.blocks)),
    )


def _grad_norm(*modules: nn.Module) -> float:
    return norm_of(p.grad for module in modules for p in module.parameters())


def _trained(model: SequenceModel, blocks: range) -> list[Tensor]:
    """Return the trained weights of some blocks."""
    weights = (p for i in blocks for p in model.layers[i].parameters())
    return [p.detach() for p in weights if p.requires_grad]
