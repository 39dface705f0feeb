"""Where the local gradient of a group of blocks meets that of backpropagation.

Letters: p parameters that both reach.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from spherescan.surgery import Aggregator, EqualWeights, GradNorm, GradVac

# Of which cosine and weights are reported: 0 / 0 has no angle.
_TINY = 1e-30


@dataclass(frozen=True, slots=True)
class Meeting:
    """How two gradients met.

    Attributes:
        cosine: Of the angle between the local and the backprop gradient; 0 when one is zero.
        weights: What the two were multiplied by before they were merged.
    """

    cosine: float
    weights: tuple[float, float]


class Merger:
    """Merge two gradients of the same parameters; one for each group, since it may have state.

    Args:
        aggregate: Two rows to one direction.
        weigh: Losses and gradient norms to weights.
    """

    def __init__(self, aggregate: Aggregator, weigh: EqualWeights | GradNorm) -> None:
        self._aggregate, self._weigh = aggregate, weigh

    def __call__(
        self,
        local: Sequence[Tensor | None],
        backprop: Sequence[Tensor | None],
        losses: tuple[float, float],
    ) -> tuple[list[Tensor | None], Meeting | None]:
        """Merge where both gradients exist, and take the one that exists elsewhere.

        Args:
            local: One gradient per parameter; None where the local loss does not depend on it.
            backprop: The same of backpropagation.
            losses: Value of both losses.

        Returns:
            The merged gradients, and how they met; None when no parameter has both.
        """
        merged = [a if b is None else b for a, b in zip(local, backprop, strict=True)]
        shared = [
            (index, a, b)
            for index, (a, b) in enumerate(zip(local, backprop, strict=True))
            if a is not None and b is not None
        ]
        if not shared:
            return merged, None
        jacobian = torch.stack(
            [
                torch.cat([a.reshape(-1) for _, a, _ in shared]),
                torch.cat([b.reshape(-1) for _, _, b in shared]),
            ]
        )
        norms = torch.linalg.vector_norm(jacobian, dim=1)
        if not all(map(math.isfinite, [*losses, *norms.tolist()])):
            # The step will be left out; what is not finite must still be seen.
            for index, a, b in shared:
                merged[index] = a + b
            return merged, None
        weights = self._weigh(torch.tensor(losses), norms.float())
        cosine = torch.dot(jacobian[0], jacobian[1]) / norms.prod().clamp(min=_TINY)
        direction = self._aggregate(jacobian * weights.to(jacobian)[:, None])
        offset = 0
        for index, a, _ in shared:
            merged[index] = direction[offset : offset + a.numel()].view_as(a)
            offset += a.numel()
        return merged, Meeting(float(cosine), (float(weights[0]), float(weights[1])))

    def state_dict(self) -> dict[str, Any]:
        """Return what changes, as plain values."""
        state = {"weighting": self._weigh.state_dict()}
        if isinstance(self._aggregate, GradVac):
            state["aggregator"] = self._aggregate.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        self._weigh.load_state_dict(state["weighting"])
        if isinstance(self._aggregate, GradVac):
            self._aggregate.load_state_dict(state["aggregator"])
