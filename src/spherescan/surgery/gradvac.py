"""Gradient vaccine: agreement between objectives is raised to what it usually is.

Letters: t objectives, p parameters.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from spherescan.surgery.gram import Rows, aggregate, weights_from
from spherescan.surgery.order import others

# A cosine of 1 with g_j can only be had by an infinite amount of g_j; this one takes 700 |g_i|.
_HIGHEST_TARGET = 1 - 1e-6
# What is left of g_i' below it, relative to what was added, is rounding and has no direction.
_CANCELLED = 1e-7


class GradVac:
    """Turn each gradient towards each other one until their cosine is at least a running mean.

        phi = cos(g_i', g_j)
        if phi < target_ij:
            g_i' += |g_i'| (target_ij sqrt(1 - phi^2) - phi sqrt(1 - target_ij^2))
                    / (|g_j| sqrt(1 - target_ij^2)) g_j
        target_ij = (1 - beta) target_ij + beta phi
        d = sum_i g_i'

    Targets begin at 0, where the step is that of PCGrad.

    References:
        Wang, Tsvetkov, Firat, Cao, "Gradient Vaccine", 2021, arXiv:2010.05874, Algorithm 1.

    Notes:
        A target counts as 1 - 1e-6 at most. A gradient that is zero, or that earlier
        steps have cancelled, is left alone and changes no target.
    """

    def __init__(self, *, beta: float = 0.01, generator: torch.Generator | None = None) -> None:
        """Begin without agreement.

        Args:
            beta: Share of the newest cosine in a target, 0 to 1. The paper's is 0.01.
            generator: Draws the order of j anew for each i. Without it the order is i + 1,
                i + 2, ... in a circle. Its state belongs to the caller.

        Raises:
            ValueError: A beta outside 0..1.
        """
        if not 0 <= beta <= 1:
            raise ValueError(f"beta is {beta}; it must lie in 0..1")
        self._beta = beta
        self._generator = generator
        self._targets: list[list[float]] = []

    def __call__(self, jacobian: Float[Tensor, "t p"]) -> Float[Tensor, " p"]:
        """Aggregate the gradients and update the targets.

        Args:
            jacobian: One gradient per objective.

        Raises:
            ValueError: Another number of objectives than in the calls before.
        """
        return aggregate(jacobian, self.weights)

    def weights(self, gram: Float[Tensor, "t t"]) -> Float[Tensor, " t"]:
        """Find the weights from the inner products of the gradients and update the targets.

        Raises:
            ValueError: Another number of objectives than in the calls before.
        """
        t = gram.shape[0]
        if not self._targets:
            self._targets = [[0.0] * t for _ in range(t)]
        if len(self._targets) != t:
            raise ValueError(
                f"{t} gradients were given; the targets are those of {len(self._targets)} "
                "objectives"
            )
        return weights_from(gram, self._vaccinate)

    def state_dict(self) -> dict[str, Any]:
        """Return the targets as nested lists, empty before the first call."""
        return {"targets": [list(row) for row in self._targets]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        self._targets = [[float(target) for target in row] for row in state["targets"]]

    def _vaccinate(self, rows: Rows) -> list[float]:
        norms, cosines = rows
        t = len(norms)
        weights = [1.0] * t
        for i in range(t):
            if not norms[i]:
                continue
            parts = [0.0] * t  # of g_i' along each unit gradient
            parts[i] = norms[i]
            for j in others(i, t, self._generator):
                if norms[j]:
                    added = self._agree(i, j, parts, cosines)
                    parts[j] += added
                    weights[j] += added / norms[j]
        return weights

    def _agree(self, i: int, j: int, parts: list[float], cosines: list[list[float]]) -> float:
        along = [sum(map(float.__mul__, parts, row)) for row in cosines]
        length = math.sqrt(max(sum(map(float.__mul__, parts, along)), 0.0))
        if length <= _CANCELLED * sum(map(abs, parts)):
            return 0.0
        phi = min(1.0, max(-1.0, along[j] / length))
        target = min(self._targets[i][j], _HIGHEST_TARGET)
        self._targets[i][j] += self._beta * (phi - self._targets[i][j])
        if phi >= target:
            return 0.0
        sine = math.sqrt((1 - target) * (1 + target))
        return length * (target * math.sqrt((1 - phi) * (1 + phi)) / sine - phi)
