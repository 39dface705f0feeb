"""Training series that are there more than once.

Letters: n series, f features.
"""

import warnings

import torch
from jaxtyping import Float
from torch import Tensor

# Two series that are nearer than this part of how far series are from their middle are one.
_SAME = 1e-6
# The same as seen on a line, which rounds.
_SEEN = 10 * _SAME
# Fewer change no rate by much.
_MANY = 0.05
# Pairs that are compared at once.
_AT_ONCE = 256


def warn_of_copies(x: Float[Tensor, "n f"], *, too_good: str) -> None:
    """Warn when many series have a twin: left out, each would still be there.

    Args:
        x: Features of training series, of which one of networks says nothing: another network
            describes the twin.
        too_good: What comes of leaving series out.
    """
    n = n_with_twin(x) if x.numel() else 0
    if n > _MANY * len(x):
        warnings.warn(
            f"{n} of {len(x)} training series are copies of others: one that is left out is still "
            f"there, so {too_good} cannot be trusted; leave copies out, or take thresholds from "
            "series that were not trained on with calibrate",
            stacklevel=4,
        )


def n_with_twin(x: Float[Tensor, "n f"]) -> int:
    """Return how many series have another one with the same features, but for rounding.

    Those with the same features lie side by side on any line.
    """
    line = torch.randn(x.shape[1], 2, generator=torch.Generator().manual_seed(0), dtype=x.dtype)
    seen = x @ (line / line.norm(dim=0))
    order = seen[:, 0].argsort(stable=True)
    size = x.var(0, correction=0).sum().sqrt()
    near = (seen[order].diff(dim=0).abs().amax(1) <= _SEEN * size).nonzero()[:, 0]
    twin = torch.zeros(len(x), dtype=torch.bool)
    for part in torch.split(near, _AT_ONCE):
        first, second = order[part], order[part + 1]
        same = (x[first] - x[second]).norm(dim=1) <= _SAME * size
        twin[first] |= same
        twin[second] |= same
    return int(twin.sum())
