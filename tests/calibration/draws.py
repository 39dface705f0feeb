"""Random clusters on the sphere, and how far a sample is from a distribution."""

import math

import torch
from torch.nn import functional


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def rand(*shape, seed=0):
    return torch.rand(*shape, generator=generator(seed), dtype=torch.float64)


def unit(*shape, seed=0):
    return functional.normalize(randn(*shape, seed=seed), dim=-1)


def rotation(d, seed=0):
    return torch.linalg.qr(randn(d, d, seed=seed))[0]


def clusters(centres, per_class, spread, seed=0):
    """Draw unit vectors around each centre; return them with their classes."""
    target = torch.arange(len(centres)).repeat_interleave(per_class)
    z = centres[target] + spread * randn(len(target), centres.shape[1], seed=seed)
    return functional.normalize(z, dim=1), target


def labels_of(probabilities, seed=0):
    """Draw a class for each row from the distribution that the row is.

    From another seed than the rows: the same numbers again would not be independent of them.
    """
    return torch.multinomial(probabilities, 1, generator=generator(seed + 3_000_000))[:, 0]


def beta_cdf(x, a, b):
    """Return P(Beta(a, b) <= x) for integers: a-1 successes are too few in a + b - 1 trials."""
    n = a + b - 1
    return math.fsum(math.comb(n, i) * x**i * (1 - x) ** (n - i) for i in range(a, n + 1))


def kolmogorov(sample, cdf):
    """Return the largest gap between a sample and a distribution, times sqrt(n).

    Above 1.63 for one sample of a hundred that does come from the distribution.
    """
    values = torch.tensor([cdf(x) for x in sorted(sample)], dtype=torch.float64)
    n = len(values)
    above = torch.arange(1, n + 1) / n - values
    below = values - torch.arange(n) / n
    return max(above.max().item(), below.max().item()) * math.sqrt(n)
