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
        autocast: Whether the network computes in bfloat16 where that is safe. Weights, states, the
            residual stream and everything from the point on the sphere on stay float32.
    """

    task: Task
    loss: ClassLoss
    autocast: bool = False

    @property
    def score_name(self) -> str:
        """Return what the quality adds up to: "accuracy" or "rmse"."""
        return "rmse" if self.task.kind == "regression" else "accuracy"

    def __call__(self, model: SequenceModel, batch: Batch) -> Scores:
        """Run the model and score every item of the batch that has a target."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self.autocast):
            z = model.embed(batch.inputs, mask=batch.mask, reset=batch.reset)
        z = z.to(model.head.prototypes.dtype)
        targets = batch.targets
        if self.task.kind == "regression":
            return self._regression(model, z, targets)
        if self.task.kind == "next_token":
            scored = targets != NO_TARGET
            z, targets = z[scored], targets[scored]
        loss = self.loss(z, model.head.prototypes, targets)
        with torch.no_grad():
            hit = (model.head(z).argmax(-1) == targets).to(loss.dtype)
        return Scores(loss, hit)

    def _regression(self, model: SequenceModel, z: Tensor, targets: Tensor) -> Scores:
        lower, upper = self.task.lower, self.task.upper
        pole = model.head.prototypes[0]
        # In float64: a range may be narrow beside the size of its values.
        wanted = to_cosine(targets.double(), lower=lower, upper=upper)
        loss = sphere_regression_loss(z, pole, wanted.to(z.dtype))
        with torch.no_grad():
            predicted = from_cosine(model.head(z)[:, 0].double(), lower=lower, upper=upper)
            return Scores(loss, (predicted - targets).square())
