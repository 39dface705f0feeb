"""What a batch is scored by: the loss of the task and how well its predictions do.

Letters: n scored items (sequences, or positions with a target).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from spherescan.data import NO_TARGET, Batch, Task
from spherescan.losses import from_cosine, sphere_regression_loss, to_cosine
from spherescan.nn import SequenceModel

# z, prototypes, targets -> one loss per sample
ClassLoss = Callable[[Tensor, Tensor, Tensor], Tensor]


class Scores(NamedTuple):
    """Loss and quality of each scored item.

    `quality` is 1 or 0 for a right or wrong class, or the squared error of a number.
    """

    loss: Float[Tensor, " n"]
    quality: Float[Tensor, " n"]


@dataclass(frozen=True, slots=True)
class Objective:
    """The loss of a task.

    Attributes:
        task: What is predicted.
        loss: Loss of a classification or of the next token.
    """

    task: Task
    loss: ClassLoss

    def __call__(self, model: SequenceModel, batch: Batch) -> Scores:
        """Run the model and score every item of the batch that has a target."""
        z = model.embed(batch.inputs, mask=batch.mask, reset=batch.reset)
        prototypes = model.head.prototypes
        if self.task.kind == "regression":
            return self._regression(z, prototypes, batch.targets)
        targets = batch.targets
        if self.task.kind == "next_token":
            scored = targets != NO_TARGET
            z, targets = z[scored], targets[scored]
        loss = self.loss(z, prototypes, targets)
        with torch.no_grad():
            hit = (model.head(z).argmax(-1) == targets).to(loss.dtype)
        return Scores(loss, hit)

    def _regression(self, z: Tensor, prototypes: Tensor, targets: Tensor) -> Scores:
        lower, upper = self.task.lower, self.task.upper
        pole = prototypes[0]
        wanted = to_cosine(targets.to(z.dtype), lower=lower, upper=upper)
        loss = sphere_regression_loss(z, pole, wanted)
        with torch.no_grad():
            cosine = torch.nn.functional.cosine_similarity(z, pole.expand_as(z), dim=-1)
            predicted = from_cosine(cosine, lower=lower, upper=upper)
            return Scores(loss, (predicted - targets).square().to(loss.dtype))
