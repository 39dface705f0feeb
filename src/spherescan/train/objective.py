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
from spherescan.nn import PrototypeHead, SequenceModel

# z, prototypes as they are stored, targets -> one loss per sample
ClassLoss = Callable[[Tensor, Tensor, Tensor], Tensor]


class Scores(NamedTuple):
    """Loss and quality of each scored item.

    `quality` is 1 or 0 for a right or wrong class, or the squared error of a number.
    """

    loss: Float[Tensor, " n"]
    quality: Float[Tensor, " n"]

    @property
    def mean_loss(self) -> Float[Tensor, ""]:
        """The mean; 0 when nothing is scored, as in a batch of one-token documents."""
        return self.loss.sum() / max(1, self.loss.numel())

    @property
    def mean_quality(self) -> Float[Tensor, ""]:
        """The mean; 0 when nothing is scored."""
        return self.quality.sum() / max(1, self.quality.numel())


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
        with self.precision():
            z = model.embed(batch.inputs, mask=batch.mask, reset=batch.reset)
        return self.score(z, model.head, batch.targets)

    def precision(self) -> torch.autocast:
        """Return the context in which the network computes."""
        return torch.autocast("cpu", torch.bfloat16, enabled=self.autocast)

    def scored(self, z: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return those of the outputs that have a target, and their targets."""
        if self.task.kind != "next_token":
            return z, targets
        kept = targets != NO_TARGET
        return z[kept], targets[kept]

    def score(self, z: Tensor, head: PrototypeHead, targets: Tensor) -> Scores:
        """Compare outputs with the prototypes, where there is a target.

        Args:
            z: Points in the space of the prototypes.
            head: The prototypes.
            targets: As in a batch.
        """
        z, targets = self.scored(z.to(head.weight.dtype), targets)
        with torch.autocast("cpu", enabled=False):
            loss = self._losses(z, head, targets)
            with torch.no_grad():
                return Scores(loss, self._qualities(z, head, targets))

    def losses(self, z: Tensor, head: PrototypeHead, targets: Tensor) -> Float[Tensor, " n"]:
        """Return the loss that `score` does, without asking how well predictions do."""
        z, targets = self.scored(z.to(head.weight.dtype), targets)
        with torch.autocast("cpu", enabled=False):
            return self._losses(z, head, targets)

    def _losses(self, z: Tensor, head: PrototypeHead, targets: Tensor) -> Tensor:
        if self.task.kind != "regression":
            return self.loss(z, head.weight, targets)
        # In float64: a range may be narrow beside the size of its values.
        wanted = to_cosine(targets.double(), lower=self.task.lower, upper=self.task.upper)
        return sphere_regression_loss(z, head.prototypes[0], wanted.to(z.dtype))

    def _qualities(self, z: Tensor, head: PrototypeHead, targets: Tensor) -> Tensor:
        cosines: Tensor = head(z)
        if self.task.kind != "regression":
            return (cosines.argmax(-1) == targets).to(z.dtype)
        lower, upper = self.task.lower, self.task.upper
        return (from_cosine(cosines[:, 0].double(), lower=lower, upper=upper) - targets).square()
