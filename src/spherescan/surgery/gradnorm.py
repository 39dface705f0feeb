"""Weights of objectives, learned from the lengths of their gradients.

Letters: t objectives.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from spherescan.ops.argument import expect_numbers


class GradNorm:
    """Learn weights with which all objectives train at similar rates.

        r_i = (L_i / L_i(first)) / mean_j (L_j / L_j(first))
        target_i = mean_j (w_j n_j) r_i^alpha
        log w_i -= rate sign(w_i n_i - target_i),  then scaled so that sum_i w_i = t

    The sign is that of the gradient of sum_i |w_i n_i - target_i| with the targets held.

    References:
        Chen et al., "GradNorm", 2018, arXiv:1711.02257, Algorithm 1 and equation 2.

    Notes:
        The paper leaves the update rule open; the sign on log w keeps weights positive whatever
        the scales of the gradients are. An objective whose gradient is zero takes no part: no
        weight would give it a share, and the others would end at none. Its weight stays.

    Example:
        >>> weigh = GradNorm(rate=0.1)
        >>> for _ in range(200):
        ...     weights = weigh(torch.tensor([1.0, 1.0]), torch.tensor([30.0, 10.0]))
        >>> [round(weight, 1) for weight in weights.tolist()]
        [0.5, 1.5]
    """

    def __init__(self, *, alpha: float = 1.5, rate: float = 0.025) -> None:
        """Begin with equal weights.

        Args:
            alpha: How strongly a slow objective is favoured; at 0 all weighted gradients become
                equally long. The paper uses 0.12 to 1.5.
            rate: Relative change of a weight per call. The paper uses 0.025.

        Raises:
            ValueError: An alpha that is negative or not finite, or a rate outside 0..1.
        """
        if not 0 <= alpha < math.inf:
            raise ValueError(f"alpha is {alpha}; it must be finite and not negative")
        if not 0 < rate <= 1:
            raise ValueError(f"rate is {rate}; it must be above 0 and at most 1")
        self._alpha = alpha
        self._rate = rate
        self._first: list[float] = []
        self._weights: list[float] = []

    def __call__(
        self, losses: Float[Tensor, " t"], norms: Float[Tensor, " t"]
    ) -> Float[Tensor, " t"]:
        """Update the weights and return them, for the gradients that were measured.

        Args:
            losses: Value of each objective. Those of the first call are the reference of all
                later ones.
            norms: Length of each objective's gradient of the shared parameters, unweighted.

        Raises:
            TypeError: Losses that are no floating-point numbers, whose type weights have.
            ValueError: Another number of objectives than before, or of lengths than of losses; a
                loss that is negative, or not positive in the first call; a negative length;
                anything not finite.
        """
        expect_numbers("losses", losses)
        if losses.ndim != 1 or norms.shape != losses.shape or not len(losses):
            raise ValueError(
                f"losses have the shape {tuple(losses.shape)}, norms {tuple(norms.shape)}; wanted "
                "one of each for every objective"
            )
        values, lengths = _checked("losses", losses), _checked("norms", norms)
        if not self._first:
            if not min(values) > 0:
                raise ValueError(
                    f"the first losses are {values}; they must be positive, since GradNorm "
                    "measures progress relative to them"
                )
            self._first = values
            self._weights = [1.0] * len(values)
        if len(values) != len(self._first):
            raise ValueError(
                f"{len(values)} losses were given; the weights are those of {len(self._first)} "
                "objectives"
            )
        self._update(values, lengths)
        return torch.tensor(self._weights, dtype=losses.dtype, device=losses.device)

    @property
    def begun(self) -> bool:
        """Whether there were losses to measure from."""
        return bool(self._first)

    def state_dict(self) -> dict[str, Any]:
        """Return the first losses and the weights as lists, empty before the first call."""
        return {"first": list(self._first), "weights": list(self._weights)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        self._first = [float(loss) for loss in state["first"]]
        self._weights = [float(weight) for weight in state["weights"]]

    def _update(self, losses: list[float], norms: list[float]) -> None:
        t = len(losses)
        left = [loss / first for loss, first in zip(losses, self._first, strict=True)]
        slowness = [share * t / sum(left) if any(left) else 1.0 for share in left]
        weighted = [weight * norm for weight, norm in zip(self._weights, norms, strict=True)]
        live = [i for i in range(t) if weighted[i]]
        if not live:
            return
        mean = sum(weighted) / len(live)
        moved = list(self._weights)
        for i in live:
            excess = weighted[i] - mean * slowness[i] ** self._alpha
            sign = math.copysign(1.0, excess) if excess else 0.0
            moved[i] *= math.exp(-self._rate * sign)
        rest = t - sum(moved[i] for i in range(t) if not weighted[i])
        total = sum(moved[i] for i in live)
        self._weights = [
            rest * weight / total if weighted[i] else weight for i, weight in enumerate(moved)
        ]


class EqualWeights:
    """Give every objective the weight 1."""

    def __call__(
        self, losses: Float[Tensor, " t"], norms: Float[Tensor, " t"]
    ) -> Float[Tensor, " t"]:
        """Return ones; neither values matter."""
        del norms
        return torch.ones_like(losses)

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: there is no state."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Accept what `state_dict` returned.

        Raises:
            ValueError: A state of something else.
        """
        if state:
            raise ValueError(f"equal weights have no state; this one has {', '.join(state)}")


def _checked(name: str, tensor: Tensor) -> list[float]:
    values: list[float] = tensor.tolist()
    if not all(math.isfinite(value) and value >= 0 for value in values):
        raise ValueError(f"{name} are {values}; GradNorm needs finite values that are not negative")
    return values
