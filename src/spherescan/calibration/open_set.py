"""Whether a sample is of a known class at all: scores, a threshold, and how good they are.

A score is higher the more a sample looks known. Letters: n known samples, m unknown ones, k
classes, p points of a curve.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from spherescan.calibration.checks import check_positive, check_share, checked
from spherescan.calibration.order_statistic import as_written
from spherescan.calibration.temperature import probabilities
from spherescan.ops.argument import expect_shape


def largest_score(scores: Float[Tensor, "n k"]) -> Float[Tensor, " n"]:
    """Return how well the best class fits: with cosines, how near the nearest prototype is.

    Args:
        scores: One per class: cosines with prototypes or with the mean directions of classes.

    Raises:
        ValueError: No scores, or one that is not finite.
    """
    return checked(scores, (None, None), of="scores").amax(1)


def largest_probability(cosines: Float[Tensor, "n k"], *, scale: float) -> Float[Tensor, " n"]:
    """Return the probability of the most likely class.

    It compares classes with each other only: far from all of them, it can still be near 1.

    Args:
        cosines: With each prototype.
        scale: Inverse temperature, see `fit_scale`.

    Raises:
        ValueError: No cosines, one that is not finite, or a scale that is not positive.

    References:
        Hendrycks and Gimpel, "A Baseline for Detecting Misclassified and Out-of-Distribution
        Examples in Neural Networks", 2016, arXiv:1610.02136.
    """
    check_positive(scale, of="the scale")
    return probabilities(cosines, scale).amax(1)


def energy_score(cosines: Float[Tensor, "n k"], *, scale: float) -> Float[Tensor, " n"]:
    """Return the negative free energy, a smooth maximum of the cosines.

        1 / scale log sum_j exp(scale cos_j)

    With cosines to the mean directions of classes and their `shared_concentration` as the scale it
    is, up to its unit and a constant, the log-density of a mixture of equally likely von
    Mises-Fisher distributions with one concentration.

    Args:
        cosines: With each prototype or mean direction.
        scale: Inverse temperature; the larger, the nearer to the largest cosine, which it exceeds
            by log(k) / scale at most.

    Raises:
        ValueError: No cosines, one that is not finite, or a scale that is not positive.

    References:
        Liu et al., "Energy-based Out-of-distribution Detection", 2020, arXiv:2010.03759.
    """
    check_positive(scale, of="the scale")
    return torch.logsumexp(scale * checked(cosines, (None, None), of="cosines"), dim=1) / scale


def known_threshold(scores: Float[Tensor, " n"], *, rejection: float) -> float:
    """Return the score below which a sample is called unknown.

        s_(r),  r = floor((n + 1) rejection)

    If the n scores and that of one more known sample are exchangeable, it is rejected with
    probability at most `rejection`; without ties it is r / (n + 1) exactly, more than
    rejection - 1 / (n + 1). Once the n scores are known, the rate on all that follow is a draw
    from Beta(r, n + 1 - r). Nothing is promised about unknown samples.

    Args:
        scores: Of samples of known classes that nothing was fitted to.
        rejection: Share of known samples one is ready to call unknown, between 0 and 1.

    Returns:
        The threshold; a sample is unknown where its score is less, not where it is equal.

    Raises:
        ValueError: No scores, one that is not finite, a rate outside 0..1, or so few scores that
            no threshold keeps the promise but the one that rejects nothing.

    Example:
        >>> known_threshold(torch.arange(1.0, 101.0), rejection=0.05)
        5.0
    """
    check_share(rejection, of="the rejection rate")
    scores = checked(scores, (None,), of="scores")
    rate = as_written(rejection)
    rank = math.floor((len(scores) + 1) * rate)
    if rank == 0:
        raise ValueError(
            f"{len(scores)} scores cannot promise a rejection rate of {rejection}; it takes "
            f"{math.ceil(1 / rate) - 1} of them, or a rate of at least 1 / {len(scores) + 1}"
        )
    return float(torch.kthvalue(scores, rank).values)


def auroc(known: Float[Tensor, " n"], unknown: Float[Tensor, " m"]) -> float:
    """Return the probability that a known sample scores higher than an unknown one.

        1 / (n m) sum_ij [known_i > unknown_j] + [known_i = unknown_j] / 2

    The area under the curve of true against false positives. Counted, not integrated, so it is
    exact; n log m steps.

    Args:
        known: Scores of samples of known classes.
        unknown: Scores of samples of unknown ones.

    Raises:
        ValueError: No scores on either side, or one that is not finite.

    References:
        Fawcett, "An introduction to ROC analysis", 2006.

    Example:
        >>> auroc(torch.tensor([2.0, 1.0]), torch.tensor([1.0, 0.0]))
        0.875
    """
    known = checked(known, (None,), of="known scores")
    unknown = checked(unknown, (None,), of="unknown scores")
    ranked = unknown.sort().values
    below = int(torch.searchsorted(ranked, known).sum())
    not_above = int(torch.searchsorted(ranked, known, right=True).sum())
    return (below + not_above) / (2 * len(known) * len(unknown))


@dataclass(frozen=True, slots=True, eq=False)
class OpenSetCurve:
    """Hold what each threshold does, from the strictest to none.

    Args:
        threshold: Samples that score at least this are taken as known; the first is infinite.
        false_positive_rate: Share of the unknown samples that is taken as known.
        correct_rate: Share of the known samples that is taken as known and classified rightly.
        area: Under correct_rate over false_positive_rate, by trapezoids: the probability that a
            known sample is classified rightly and scores higher than an unknown one, ties half.
    """

    threshold: Float[Tensor, " p"]
    false_positive_rate: Float[Tensor, " p"]
    correct_rate: Float[Tensor, " p"]
    area: float


def open_set_curve(
    known: Float[Tensor, " n"], correct: Bool[Tensor, " n"], unknown: Float[Tensor, " m"]
) -> OpenSetCurve:
    """Trade unknown samples that get in against known ones that are classified rightly.

    Its last point is the accuracy on known classes; its area is that and the `auroc` at most.

    Args:
        known: Scores of samples of known classes.
        correct: Whether each of them is given its class.
        unknown: Scores of samples of unknown classes.

    Raises:
        ValueError: No scores on either side, or one that is not finite.

    References:
        Dhamija, Guenther, Boult, "Reducing Network Agnostophobia", 2018, arXiv:1811.04110
        (OSCR).

    Notes:
        A score equal to the threshold counts as known on both axes, as it does for
        `known_threshold`.
    """
    known = checked(known, (None,), of="known scores")
    unknown = checked(unknown, (None,), of="unknown scores")
    expect_shape("correct", correct, known.shape)
    distinct = sorted({math.inf, *known.tolist(), *unknown.tolist()}, reverse=True)
    thresholds = torch.tensor(distinct, dtype=torch.float64)
    false = _count_from(unknown, thresholds) / len(unknown)
    right = _count_from(known[correct], thresholds) / len(known)
    return OpenSetCurve(thresholds, false, right, float(torch.trapezoid(right, false)))


def _count_from(scores: Float[Tensor, " c"], thresholds: Float[Tensor, " p"]) -> Tensor:
    """Count the scores at or above each threshold."""
    return (len(scores) - torch.searchsorted(scores.sort().values, thresholds)).double()
