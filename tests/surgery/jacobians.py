"""Random Jacobians of every awkward kind: the i-th is the same in every run."""

import torch
from torch import Tensor

KINDS = ("plain", "scaled", "uneven", "deficient", "deficient_uneven", "zero_rows", "conflict")


def kind_of(index: int) -> str:
    return KINDS[index % len(KINDS)]


def random_jacobian(index: int, *, objectives: int | None = None) -> Tensor:
    """2 to 6 objectives, 1 to 10^4 parameters, in float64."""
    generator = torch.Generator().manual_seed(index)

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * torch.rand((), generator=generator).item()

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    t = objectives or 2 + index // len(KINDS) % 5
    p = round(10 ** uniform(0, 4))
    kind = kind_of(index)
    jacobian = normal(t, p)
    if kind.startswith("deficient"):
        rank = 1 + int(uniform(0, t - 1))
        jacobian = normal(t, rank) @ normal(rank, p)
    if kind == "conflict":  # every gradient is mostly against the others
        jacobian = jacobian - 0.99 * jacobian.mean(dim=0)
    if kind == "scaled":
        jacobian = jacobian * 10 ** uniform(-8, 8)
    if kind.endswith("uneven"):
        jacobian = jacobian * torch.tensor([[10 ** uniform(-8, 8)] for _ in range(t)])
    if kind == "zero_rows":
        jacobian[: 1 + int(uniform(0, t - 1))] = 0
    return jacobian
