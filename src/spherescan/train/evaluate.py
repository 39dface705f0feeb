"""How good a model is on a fixed set of batches."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from spherescan.data import Batch
from spherescan.errors import DataError
from spherescan.nn import SequenceModel
from spherescan.train.objective import Objective


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Means over all scored items.

    Attributes:
        loss: Mean loss.
        score: Accuracy of a classification or of the next token; root mean squared error of a
            regression.
        score_name: "accuracy" or "rmse".
        n: Number of scored items.
        counts: How many of them are of each class; empty unless it is a classification.
        right: How many of those are predicted so.
    """

    loss: float
    score: float
    score_name: str
    n: int
    counts: tuple[int, ...] = ()
    right: tuple[int, ...] = ()


def score_text(name: str, score: float, *, digits: int = 4) -> str:
    """Write a score with its name; an error has the unit of the targets, so it may be tiny."""
    return f"{name} {score:.{digits + 1}g}" if name == "rmse" else f"{name} {score:.{digits}f}"


def evaluate(model: SequenceModel, batches: Iterable[Batch], objective: Objective) -> Evaluation:
    """Score a model without changing it.

    Args:
        model: What is scored.
        batches: Each is scored once.
        objective: Loss and score.

    Raises:
        DataError: Nothing in the batches has a target.
    """
    loss = quality = 0.0
    n = 0
    n_classes = len(objective.task.class_names)
    counts, right = torch.zeros(2, n_classes, dtype=torch.int64)
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        for batch in batches:
            scores = objective(model, batch)
            loss += scores.loss.double().sum().item()
            quality += scores.quality.double().sum().item()
            n += scores.loss.numel()
            if n_classes:
                counts += torch.bincount(batch.targets, minlength=n_classes)
                hits = batch.targets[scores.quality > 0]
                right += torch.bincount(hits, minlength=n_classes)
    model.train(was_training)
    if n == 0:
        raise DataError("nothing to score: no token has a successor in its document")
    mean = quality / n
    return Evaluation(
        loss=loss / n,
        score=math.sqrt(mean) if objective.score_name == "rmse" else mean,
        score_name=objective.score_name,
        n=n,
        counts=tuple(counts.tolist()),
        right=tuple(right.tolist()),
    )
