"""Whether probabilities are what they say: the reliability diagram and its summary.

Letters: n samples, k classes, m bins.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from spherescan.calibration.checks import checked
from spherescan.ops.targets import check_target

# Rounding to bfloat16 passes as a distribution; logits and percentages do not.
_SUM_TOLERANCE = 1e-2


@dataclass(frozen=True, slots=True, eq=False)
class ReliabilityTable:
    """Hold a reliability diagram.

    Args:
        edges: Bin i holds confidences above edge i, up to and including edge i + 1.
        count: Samples in each bin.
        confidence: Their mean probability of the predicted class; nan in an empty bin.
        accuracy: The share of them that is right; nan in an empty bin.
    """

    edges: Float[Tensor, " edges"]
    count: Int[Tensor, " m"]
    confidence: Float[Tensor, " m"]
    accuracy: Float[Tensor, " m"]


def reliability_table(
    probabilities: Float[Tensor, "n k"], target: Int[Tensor, " n"], *, n_bins: int = 15
) -> ReliabilityTable:
    """Compare confidence with accuracy, bin by bin.

    Bins are equally wide, ((i - 1) / m, i / m] for i in 1..m; the edges are these numbers in
    float64. The prediction is the class of the largest probability, the first of several.

    Args:
        probabilities: Of each class; rows that add up to 1.
        target: Class of each sample.
        n_bins: Number of bins m.

    Raises:
        ValueError: No samples, no bins, rows that are no distributions, or a target outside the
            classes.

    References:
        Niculescu-Mizil and Caruana, "Predicting Good Probabilities with Supervised Learning", 2005
        (the diagram); Guo et al., 2017, arXiv:1706.04599, section 2 (the bins).
    """
    if n_bins < 1:
        raise ValueError(f"got {n_bins} bins; give at least 1")
    values = checked(probabilities, (None, None), of="probabilities")
    check_target(target, values.shape[1], values.shape[:1], of="classes")
    _check_distributions(values)
    confidence, predicted = values.max(dim=1)
    edges = torch.arange(n_bins + 1, dtype=torch.float64) / n_bins
    where = torch.bucketize(confidence, edges[1:-1])
    count = torch.bincount(where, minlength=n_bins)
    right = (predicted == target).double()
    sums = (torch.bincount(where, weights=w, minlength=n_bins) for w in (confidence, right))
    return ReliabilityTable(edges, count, *(total / count for total in sums))


def expected_calibration_error(
    probabilities: Float[Tensor, "n k"], target: Int[Tensor, " n"], *, n_bins: int = 15
) -> float:
    """Return by how much confidence and accuracy differ, on the average over samples.

        sum_i count_i / n |accuracy_i - confidence_i|  over the bins of `reliability_table`

    Args:
        probabilities: Of each class; rows that add up to 1.
        target: Class of each sample.
        n_bins: Number of bins.

    Raises:
        ValueError: As of `reliability_table`.

    References:
        Naeini, Cooper, Hauskrecht, "Obtaining Well Calibrated Probabilities Using Bayesian
        Binning", 2015; Guo et al., 2017, arXiv:1706.04599, equation 3.

    Notes:
        Of few samples it is never 0, however right the probabilities are: a bin of c samples
        with accuracy a is off by about sqrt(a (1 - a) / c) by chance.

    Example:
        >>> sure = torch.tensor([[0.9, 0.1]]).expand(10, 2)
        >>> round(expected_calibration_error(sure, torch.tensor([0] * 8 + [1] * 2)), 6)
        0.1
    """
    table = reliability_table(probabilities, target, n_bins=n_bins)
    gap = (table.accuracy - table.confidence).abs().nan_to_num(0.0)
    return float((table.count * gap).sum() / table.count.sum())


def _check_distributions(values: Float[Tensor, "n k"]) -> None:
    wrong = (values < 0).any(1) | ((values.sum(1) - 1).abs() > _SUM_TOLERANCE)
    if wrong.any():
        row = int(wrong.nonzero()[0])
        raise ValueError(
            f"row {row} of the probabilities spans {values[row].min().item():.4g}.."
            f"{values[row].max().item():.4g} and adds up to {values[row].sum().item():.4g}; "
            "a row must not be negative and add up to 1"
        )
