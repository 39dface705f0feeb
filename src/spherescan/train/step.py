"""One training step, whole."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim import Optimizer

from spherescan.data import Batch
from spherescan.nn import SequenceModel
from spherescan.train.objective import Objective


@dataclass(frozen=True, slots=True)
class StepMetrics:
    """What a step did; norms are those before clipping.

    Attributes:
        loss: Mean over the scored items.
        quality: Mean quality, see `Scores`.
        grad_norm: Over all trained parameters.
        grad_norm_embedding: Over the embedding.
        grad_norm_prototypes: Over the prototypes; 0 when they are fixed.
        grad_norm_top: Over the last block.
        clipped: Whether the gradient was scaled down.
        updated: False when something was not finite and nothing was changed.
    """

    loss: float
    quality: float
    grad_norm: float
    grad_norm_embedding: float
    grad_norm_prototypes: float
    grad_norm_top: float
    clipped: bool
    updated: bool


def backprop_step(
    model: SequenceModel,
    batch: Batch,
    objective: Objective,
    optimizer: Optimizer,
    *,
    lr: float,
    grad_clip: float,
) -> StepMetrics:
    """Update the model on one batch by backpropagation.

    Loss and gradient are checked before the update: when one is not finite the model and the
    optimiser stay as they are.

    Args:
        model: What is trained.
        batch: What it is trained on.
        objective: Loss and score.
        optimizer: Over the parameters of the model.
        lr: Learning rate of this step.
        grad_clip: Largest gradient norm; 0 for no clipping.
    """
    optimizer.zero_grad(set_to_none=True)
    scores = objective(model, batch)
    n = max(1, scores.loss.numel())  # a batch of one-token documents has nothing to score
    loss = scores.loss.sum() / n
    loss.backward()  # type: ignore[no-untyped-call]

    trained = [p for p in model.parameters() if p.requires_grad]
    norm = gradient_norm(trained)
    metrics = StepMetrics(
        loss=loss.item(),
        quality=scores.quality.sum().item() / n,
        grad_norm=norm,
        grad_norm_embedding=gradient_norm(model.embedding.parameters()),
        grad_norm_prototypes=gradient_norm(model.head.parameters()),
        grad_norm_top=gradient_norm(model.layers[-1].parameters()),
        clipped=0 < grad_clip < norm < math.inf,
        updated=math.isfinite(loss.item()) and math.isfinite(norm),
    )
    if metrics.updated:
        if metrics.clipped:
            for parameter in trained:
                if parameter.grad is not None:
                    parameter.grad.mul_(grad_clip / norm)
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
    return metrics


def gradient_norm(parameters: Iterable[Tensor]) -> float:
    """Return the Euclidean norm of all gradients together; NaN or infinite when one of them is."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return 0.0
    norms = torch._foreach_norm(gradients)
    return float(torch.linalg.vector_norm(torch.stack(norms)))
