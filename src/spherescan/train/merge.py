"""Where the local gradient of a group of blocks meets that of backpropagation.

Letters: p parameters that both reach.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from spherescan.surgery import EqualWeights, GradNorm, GradVac

# One call each for what a loop over parameters does in dozens; they carry no annotations.
_flattened: Callable[[Sequence[Tensor]], Tensor] = torch._utils._flatten_dense_tensors
_unflattened: Callable[[Tensor, Sequence[Tensor]], tuple[Tensor, ...]] = (
    torch._utils._unflatten_dense_tensors
)


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
        scaled: Whether `aggregate` takes the factor of the local gradient.
    """

    def __init__(
        self,
        aggregate: Callable[..., Tensor],
        weigh: EqualWeights | GradNorm,
        *,
        scaled: bool = False,
    ) -> None:
        self._aggregate, self._weigh, self._scaled = aggregate, weigh, scaled

    def __call__(
        self,
        local: Sequence[Tensor | None],
        backprop: Sequence[Tensor | None],
        losses: tuple[float, float],
        *,
        local_scale: float = 1.0,
    ) -> tuple[list[Tensor | None], Meeting | None]:
        """Merge where both gradients exist, and take the one that exists elsewhere.

        Args:
            local: One gradient per parameter; None where the local loss does not depend on it.
            backprop: The same of backpropagation.
            losses: Value of both losses; finite, as all gradients must be.
            local_scale: Factor of the local gradient, for an aggregator that takes it.

        Returns:
            The merged gradients, and how they met; None when no parameter has both.

        Raises:
            ValueError: An aggregator that returns no gradient of these parameters.
        """
        merged = [a if b is None else b for a, b in zip(local, backprop, strict=True)]
        shared = [
            (index, a, b)
            for index, (a, b) in enumerate(zip(local, backprop, strict=True))
            if a is not None and b is not None
        ]
        if not shared:
            return merged, None
        places, first, second = zip(*shared, strict=True)
        jacobian = _flattened([*first, *second]).view(2, -1)
        norms = torch.linalg.vector_norm(jacobian, dim=1)
        weights = self._weights(losses, norms)
        cosine = _cosine(jacobian, norms.tolist())
        if not isinstance(self._weigh, EqualWeights):
            jacobian = jacobian * weights.to(jacobian)[:, None]
        scale = {"local_scale": local_scale} if self._scaled else {}
        direction = _direction(self._aggregate, self._aggregate(jacobian, **scale), jacobian)
        for index, part in zip(places, _unflattened(direction, first), strict=True):
            merged[index] = part
        return merged, Meeting(cosine, tuple(weights.tolist()))

    def _weights(self, losses: tuple[float, float], norms: Tensor) -> Tensor:
        if isinstance(self._weigh, GradNorm) and not self._weigh.begun and min(losses) <= 0:
            return torch.ones(2)  # it measures from the first losses: nothing to measure yet
        return self._weigh(torch.tensor(losses), norms.float())

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


def _direction(aggregate: Callable[..., Tensor], found: object, jacobian: Tensor) -> Tensor:
    """Refuse what a function of the user returns, or detach it, before parameters take it apart."""
    wanted = jacobian.shape[1:]
    if isinstance(found, Tensor) and found.shape == wanted and found.dtype == jacobian.dtype:
        return found.detach()
    what = f"an object of type {type(found).__name__}"
    if isinstance(found, Tensor):
        what = f"{found.dtype} of shape {tuple(found.shape)}"
    raise ValueError(
        f"the aggregator {aggregate!r} returned {what}; expected {jacobian.dtype} of shape "
        f"{tuple(wanted)}: one number for each parameter, in the type of the gradients"
    )


def _cosine(jacobian: Tensor, norms: list[float]) -> float:
    if not all(norms):
        return 0.0
    # One after the other: the product of both lengths leaves the range of float32 before they do.
    cosine = float(torch.dot(jacobian[0] / norms[0], jacobian[1])) / norms[1]
    return min(1.0, max(-1.0, cosine))
