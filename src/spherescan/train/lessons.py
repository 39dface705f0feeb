"""What each group of blocks learns by in a step, and three ways to make gradients of it."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from spherescan.data import Batch
from spherescan.nn import SequenceModel
from spherescan.train.local import Passage, Passing
from spherescan.train.merge import Meeting, Merger
from spherescan.train.objective import Objective, Scores
from spherescan.train.rule import LearningRule


@dataclass(slots=True)
class Lesson:
    """What a group of blocks has to learn by.

    Attributes:
        blocks: The group.
        local: Local loss of each item; None when the group has none.
        scores: Of the task; for the last group, when the model is read out.
        meeting: How the gradients of the group met, when they did.
    """

    blocks: range
    local: Tensor | None = None
    scores: Scores | None = None
    meeting: Meeting | None = None

    @property
    def mean_local(self) -> Tensor:
        """The mean local loss; 0 when nothing has a target."""
        assert self.local is not None
        return self.local.sum() / max(1, self.local.numel())


def lessons_of(
    model: SequenceModel,
    batch: Batch,
    objective: Objective,
    rule: LearningRule,
    *,
    step: int,
    joined: bool,
) -> Iterator[Lesson]:
    """Run forward group by group, and yield each lesson as soon as it is known.

    When backpropagation does not join, every group gets a detached input, and the head of the model
    learns as the local loss says; when it does, gradients cross groups but where the rule cuts.
    """
    local = rule.local
    groups = rule.groups(len(model.layers))
    reads_out = joined or local is None or local.head_learning != "not"
    head_alone = not joined and local is not None and local.head_learning == "alone"
    with objective.precision():
        passing = Passing(
            model.begin(batch.inputs, batch.mask), batch.mask, batch.reset, batch, step
        )
        if local is not None:
            passing = local.widen(passing)
        x = passing.x
        for blocks in groups:
            lesson = Lesson(blocks)
            last = blocks is groups[-1]
            if blocks.start > 0 and (not joined or rule.is_cut(blocks.start)):
                x = x.detach()
            base, update = model.through(blocks, x, mask=passing.mask, reset=passing.reset)
            out = base + update if local is not None else base
            if local is not None and (local.at_last or not last) and _parameters(model, blocks):
                lesson.local = local.loss(Passage(model, blocks, x, out, batch))
            if last and reads_out:
                if local is not None:
                    base, update = local.narrow(base), local.narrow(update)
                if head_alone:
                    base, update = base.detach(), update.detach()
                z = model.read_out(base, update, mask=batch.mask)
                lesson.scores = objective.score(z, model.head, batch.targets)
            x = out
            yield lesson


def learn_alone(lessons: Iterable[Lesson]) -> list[Lesson]:
    """Run backward through each group before the next one runs forward."""
    done = []
    for lesson in lessons:
        losses = [] if lesson.local is None else [lesson.mean_local]
        if lesson.scores is not None:
            losses.append(lesson.scores.mean_loss)
        _backward(losses)
        done.append(lesson)
    return done


def learn_summed(lessons: Iterable[Lesson], *, weight: float) -> list[Lesson]:
    """Run forward through all groups, then backward once through the sum of all losses."""
    done = list(lessons)
    losses = [weight * lesson.mean_local for lesson in done if lesson.local is not None]
    assert done[-1].scores is not None
    _backward([*losses, done[-1].scores.mean_loss])
    return done


def learn_merged(
    model: SequenceModel,
    lessons: Iterable[Lesson],
    rule: LearningRule,
    mergers: Sequence[Merger],
    *,
    local_scale: float,
) -> list[Lesson]:
    """Compute the gradients of local losses and of backpropagation apart, and merge them by group.

    A group that ends at a cut has no gradient from above: its local loss takes that place, for
    itself and for the groups below it. When anything is not finite, nothing is merged.

    Raises:
        ValueError: Not one merger for each group.
    """
    n_groups = len(rule.groups(len(model.layers)))
    if len(mergers) != n_groups:
        raise ValueError(
            f"{len(mergers)} mergers were given; surgery needs one for each of {n_groups} groups: "
            "rule.make_merger makes one"
        )
    done = list(lessons)
    scores = done[-1].scores
    assert scores is not None
    above, tops = scores.mean_loss, [scores.mean_loss]
    pairs: dict[int, tuple[Tensor, Tensor]] = {}  # local loss, and that of backpropagation
    for number in reversed(range(len(done))):
        lesson = done[number]
        if lesson.local is None:
            continue
        loss = rule.weight * lesson.mean_local
        if rule.is_cut(lesson.blocks.stop) and lesson is not done[-1]:
            above = loss
            tops.append(loss)
        else:
            pairs[number] = (loss, above)
    reached = {number: _parameters(model, done[number].blocks) for number in pairs}
    local = {
        number: torch.autograd.grad(loss, reached[number], retain_graph=True, allow_unused=True)
        for number, (loss, _) in pairs.items()
        if loss.requires_grad
    }
    _backward(tops)
    losses = [float(loss.detach()) for pair in pairs.values() for loss in pair]
    lengths = [norm_of(g for each in local.values() for g in each)]
    lengths.append(norm_of(p.grad for p in model.parameters()))
    if not all(map(math.isfinite, [*losses, *lengths])):
        return _unmerged(done, reached, local)
    for number, own in local.items():
        parameters = reached[number]
        values = (pairs[number][0].item(), pairs[number][1].item())
        merged, done[number].meeting = mergers[number](
            own, [p.grad for p in parameters], values, local_scale=local_scale
        )
        for parameter, value in zip(parameters, merged, strict=True):
            parameter.grad = value
    return done


def norm_of(tensors: Iterable[Tensor | None]) -> float:
    """Return the Euclidean norm of all of them together.

    NaN or infinite when one of them is, or when their type cannot hold the norm.
    """
    found = [tensor for tensor in tensors if tensor is not None]
    if not found:
        return 0.0
    return float(torch.linalg.vector_norm(torch.stack(torch._foreach_norm(found))))


def _unmerged(
    done: list[Lesson],
    reached: dict[int, list[nn.Parameter]],
    local: Mapping[int, Sequence[Tensor | None]],
) -> list[Lesson]:
    """Add gradients of which some are not finite, so that the guard of the step sees them."""
    for number, gradients in local.items():
        for parameter, gradient in zip(reached[number], gradients, strict=True):
            if gradient is not None:
                parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
    return done


def _backward(losses: list[Tensor]) -> None:
    losses = [loss for loss in losses if loss.requires_grad]
    # Between two lessons the forward pass still holds its autocast, which is not for gradients.
    with torch.autocast("cpu", enabled=False):
        if losses:
            torch.autograd.backward(losses)


def _parameters(model: SequenceModel, blocks: range) -> list[nn.Parameter]:
    """Return what a local loss may train: blocks of the group, its head, and what feeds it."""
    modules: list[nn.Module] = [model.layers[i] for i in blocks]
    if str(blocks[-1]) in model.local_heads:
        modules.append(model.local_heads[str(blocks[-1])])
    if blocks.start == 0:
        modules.append(model.embedding)
    return [p for module in modules for p in module.parameters() if p.requires_grad]
