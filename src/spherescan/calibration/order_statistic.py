"""The order statistic that the guarantees rest on.

Letters: n samples.
"""

import math
from fractions import Fraction

import torch
from jaxtyping import Float
from torch import Tensor

from spherescan.calibration.checks import check_share, checked


def conformal_quantile(scores: Float[Tensor, " n"], *, coverage: float) -> float:
    """Return the value that one more score exceeds with probability at most 1 - coverage.

        q = s_(r),  r = ceil((n + 1) coverage);  infinite where r > n

    If the n scores and the new one are exchangeable, the rank of the new one among all n + 1 is
    uniform, so that P(s_new <= q) >= coverage. Without ties it is r / (n + 1) exactly, less than
    coverage + 1 / (n + 1). Once the n scores are known, the probability for all that follow is a
    draw from Beta(r, n + 1 - r).

    Args:
        scores: Of samples that nothing was fitted to.
        coverage: Probability wanted, between 0 and 1.

    Returns:
        The order statistic; infinity where n < coverage / (1 - coverage), the only answer that
        keeps the promise with so few samples.

    Raises:
        ValueError: No scores, one that is not finite, or a coverage outside 0..1.

    References:
        Vovk, Gammerman, Shafer, "Algorithmic Learning in a Random World", 2005; Papadopoulos et
        al., "Inductive Confidence Machines for Regression", 2002. The distribution given the
        scores: Vovk, "Conditional validity of inductive conformal predictors", 2012,
        arXiv:1209.2673.

    Example:
        >>> scores = torch.arange(1.0, 20.0)
        >>> conformal_quantile(scores, coverage=0.9), conformal_quantile(scores, coverage=0.96)
        (18.0, inf)
    """
    check_share(coverage, of="the coverage")
    scores = checked(scores, (None,), of="scores")
    rank = math.ceil((len(scores) + 1) * as_written(coverage))
    return math.inf if rank > len(scores) else float(torch.kthvalue(scores, rank).values)


def as_written(share: float) -> Fraction:
    """Return the decimal number the caller wrote.

    In floating point 100 times 0.29 is less than 29, and a rank would be one off.
    """
    return Fraction(repr(float(share)))
