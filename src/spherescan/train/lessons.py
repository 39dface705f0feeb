"""What each group of blocks learns by in a step, and three ways to make gradients of it."""

from collections.abc import Iterable, Iterator, Sequence
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
        passing = Passing(model.begin(batch.inputs), batch.mask, batch.reset, batch, step)
        if local is not None:
            passing = local.widen(passing)
        x = passing.x
        for blocks in groups:
            lesson = Lesson(blocks)
            last = blocks is groups[-1]
            if blocks.start > 0 and (not joined or rule.is_cut(blocks.start)):
                x = x.detach()
            base, update = model.through(blocks, x, mask=passing.mask, reset=passing.reset)
            has_local = local is not None and (local.at_last or not last)
            if has_local and any(is_trained(model.layers[i]) for i in blocks):
                assert local is not None
                lesson.local = local.loss(Passage(model, blocks, x, base + update, batch))
            if last and reads_out:
                if local is not None:
                    base, update = local.narrow(base), local.narrow(update)
                if head_alone:
                    base, update = base.detach(), update.detach()
                z = model.read_out(base, update, mask=batch.mask)
                lesson.scores = objective.score(z, model.head, batch.targets)
            if not last:
                x = base + update
            yield lesson


def learn_alone(lessons: Iterable[Lesson]) -> list[Lesson]:
    """Run backward through each group before the next one runs forward."""
    done = []
    for lesson in lessons:
        losses = [] if lesson.local is None else [lesson.local.mean()]
        if lesson.scores is not None:
            losses.append(lesson.scores.mean_loss)
        _backward(losses)
        done.append(lesson)
    return done


def learn_summed(lessons: Iterable[Lesson], *, weight: float) -> list[Lesson]:
    """Run forward through all groups, then backward once through the sum of all losses."""
    done = list(lessons)
    losses = [weight * lesson.local.mean() for lesson in done if lesson.local is not None]
    assert done[-1].scores is not None
    _backward([*losses, done[-1].scores.mean_loss])
    return done


def learn_merged(
    model: SequenceModel, lessons: Iterable[Lesson], rule: LearningRule, mergers: Sequence[Merger]
) -> list[Lesson]:
    """Compute the gradients of local losses and of backpropagation apart, and merge them by group.

    A group that ends at a cut has no gradient from above: its local loss takes that place.
    """
    done = list(lessons)
    assert done[-1].scores is not None
    main = done[-1].scores.mean_loss
    tops: list[Tensor] = [main]
    apart: dict[int, Tensor] = {}
    for number, lesson in enumerate(done):
        if lesson.local is not None:
            loss = rule.weight * lesson.local.mean()
            if rule.is_cut(lesson.blocks.stop) and lesson is not done[-1]:
                tops.append(loss)
            else:
                apart[number] = loss
    reached: list[list[nn.Parameter]] = [_parameters(model, lesson.blocks) for lesson in done]
    local = {
        number: torch.autograd.grad(loss, reached[number], retain_graph=True, allow_unused=True)
        for number, loss in apart.items()
    }
    every = [p for p in model.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(tops, every, allow_unused=True)
    backprop = dict(zip(map(id, every), gradients, strict=True))
    for parameter in every:
        parameter.grad = backprop[id(parameter)]
    for number, gradient in local.items():
        parameters = reached[number]
        merged, done[number].meeting = mergers[number](
            gradient, [p.grad for p in parameters], (apart[number].item(), main.item())
        )
        for parameter, value in zip(parameters, merged, strict=True):
            parameter.grad = value
    return done


def is_trained(module: nn.Module) -> bool:
    """Return whether any parameter of a module is trained."""
    return any(p.requires_grad for p in module.parameters())


def _backward(losses: list[Tensor]) -> None:
    losses = [loss for loss in losses if loss.requires_grad]
    if losses:
        torch.autograd.backward(losses)


def _parameters(model: SequenceModel, blocks: range) -> list[nn.Parameter]:
    """Return what the local loss of a group may reach: its blocks, its head, and what feeds it."""
    modules: list[nn.Module] = [model.layers[i] for i in blocks]
    if str(blocks[-1]) in model.local_heads:
        modules.append(model.local_heads[str(blocks[-1])])
    if blocks.start == 0:
        modules.append(model.embedding)
    return [p for module in modules for p in module.parameters() if p.requires_grad]
