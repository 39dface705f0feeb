"""Sets of classes, and intervals of numbers, that hold the truth with a chosen probability.

Everything rests on `conformal_quantile`: it needs held-out samples exchangeable with those to come,
and nothing else. Letters: n samples, k classes.
"""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from spherescan.calibration.checks import check_share, checked
from spherescan.calibration.order_statistic import conformal_quantile
from spherescan.ops.argument import expect_shape
from spherescan.ops.targets import check_target


def lac_scores(probabilities: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
    """Return how strange each class would be: one minus its probability.

    If the probabilities are right, no other score has smaller sets on the average (least ambiguous
    classifiers).

    Args:
        probabilities: Of each class.

    Raises:
        ValueError: No probabilities, or one that is not within 0..1.

    References:
        Sadinle, Lei, Wasserman, "Least Ambiguous Set-Valued Classifiers with Bounded Error Levels",
        2019, arXiv:1609.00451.
    """
    return 1 - _probabilities(probabilities)


def aps_scores(
    probabilities: Float[Tensor, "n k"], *, uniform: Float[Tensor, " n"] | None = None
) -> Float[Tensor, "n k"]:
    """Return how strange each class would be: the probability of it and all likelier ones.

        s_j = sum of p_l over the classes before j in falling order + u p_j

    Sets are larger than those of `lac_scores`, and larger where a sample is hard: its coverage
    depends less on the sample (adaptive prediction sets).

    Args:
        probabilities: Of each class. Of equal ones the first comes first.
        uniform: Independent draws u from 0..1, one per sample; 1 when missing. The promise holds
            either way; without draws sets are larger than they must be.

    Raises:
        ValueError: No probabilities, or one that is not within 0..1, or draws that are not.

    References:
        Romano, Sesia, Candes, "Classification with Valid and Adaptive Coverage", 2020,
        arXiv:2006.02544.
    """
    ranked, order = _probabilities(probabilities).sort(dim=1, descending=True, stable=True)
    draws = None if uniform is None else _within(uniform, ranked.shape[:1], of="draws")
    before = torch.cat((torch.zeros_like(ranked[:, :1]), ranked.cumsum(1)[:, :-1]), dim=1)
    own = ranked if draws is None else draws[:, None] * ranked
    return torch.empty_like(ranked).scatter_(1, order, before + own)


def set_threshold(
    scores: Float[Tensor, "n k"], target: Int[Tensor, " n"], *, coverage: float
) -> float:
    """Return the largest score of a class that belongs in a prediction set.

    P(true class in set) >= coverage, on the average over everything: see `conformal_quantile`.

    Args:
        scores: How strange each class would be, of held-out samples.
        target: Their classes.
        coverage: Probability wanted, between 0 and 1.

    Returns:
        The threshold; infinite, so that sets hold every class, where n < coverage / (1 - coverage).

    Raises:
        ValueError: No samples, a score that is not finite, a target outside the classes, or a
            coverage outside 0..1.
    """
    return conformal_quantile(_own(scores, target), coverage=coverage)


def class_thresholds(
    scores: Float[Tensor, "n k"], target: Int[Tensor, " n"], *, coverage: float
) -> Float[Tensor, " k"]:
    """Return a threshold for each class, from the held-out samples of that class alone.

    P(true class in set | true class is j) >= coverage for every j: no class pays for another one.
    It needs samples of each, and where they differ in difficulty makes sets larger.

    Args:
        scores: How strange each class would be, of held-out samples.
        target: Their classes.
        coverage: Probability wanted, between 0 and 1.

    Returns:
        In float64; infinite, so that it is in every set, for a class of which there are fewer than
        coverage / (1 - coverage) samples.

    Raises:
        ValueError: No samples, a score that is not finite, a target outside the classes, or a
            coverage outside 0..1.

    References:
        Vovk, 2012, arXiv:1209.2673 (label-conditional, a Mondrian predictor); Sadinle,
        Lei, Wasserman, 2019, arXiv:1609.00451.
    """
    check_share(coverage, of="the coverage")
    own = _own(scores, target)
    found = own.new_full((scores.shape[1],), math.inf)
    for j in set(target.tolist()):
        found[j] = conformal_quantile(own[target == j], coverage=coverage)
    return found


def prediction_sets(
    scores: Float[Tensor, "n k"],
    threshold: float | Float[Tensor, " k"],
    *,
    never_empty: bool = True,
) -> Bool[Tensor, "n k"]:
    """Return which classes belong in the set of each sample: those that are not too strange.

    Args:
        scores: How strange each class would be, by the function that made the threshold.
        threshold: Of `set_threshold` or `class_thresholds`.
        never_empty: Whether the least strange class is always inside. It makes sets larger, so
            coverage stays at least what was asked for, but it can exceed that by more than
            1 / (n + 1). Without it an empty set says that no class fits, and is always wrong.

    Raises:
        ValueError: No samples, a score that is not finite, or a threshold that is not a number.
    """
    scores = checked(scores, (None, None), of="scores")
    limit = torch.as_tensor(threshold, dtype=torch.float64)
    if limit.isnan().any():
        raise ValueError(f"the threshold is {threshold}; it must be a number, or infinite")
    if limit.ndim:
        expect_shape("threshold", limit, scores.shape[1:])
    inside = scores <= limit
    if never_empty:
        inside[torch.arange(len(scores)), scores.argmin(1)] = True
    return inside


def fit_half_width(
    prediction: Float[Tensor, " n"],
    value: Float[Tensor, " n"],
    *,
    coverage: float,
    difficulty: Float[Tensor, " n"] | None = None,
) -> float:
    """Return half the width of intervals around predictions, per unit of difficulty.

        w = conformal quantile of |value - prediction| / difficulty

    P(value in prediction +- w difficulty) >= coverage, on the average over everything.

    Args:
        prediction: Of held-out samples.
        value: What came true.
        coverage: Probability wanted, between 0 and 1.
        difficulty: How large an error is to be expected of each sample, in any unit, from what was
            known before its value; 1 when missing. The promise does not need it to be right; the
            better it is, the narrower intervals are.

    Returns:
        The half width; infinite where n < coverage / (1 - coverage).

    Raises:
        ValueError: No samples, a value that is not finite, a difficulty that is not positive, or a
            coverage outside 0..1.

    References:
        Lei et al., "Distribution-Free Predictive Inference for Regression", 2018,
        arXiv:1604.04173, algorithm 2 and section 5.2 (locally weighted).
    """
    value = checked(value, (None,), of="values")
    error = (value - checked(prediction, value.shape, of="predictions")).abs()
    return conformal_quantile(error / _difficulty(difficulty, value.shape), coverage=coverage)


def intervals(
    prediction: Float[Tensor, " n"],
    half_width: float,
    *,
    difficulty: Float[Tensor, " n"] | None = None,
) -> Float[Tensor, "n 2"]:
    """Return the lower and upper end of an interval around each prediction.

    Args:
        prediction: Of new samples.
        half_width: Of `fit_half_width`.
        difficulty: As there; of the new samples.

    Returns:
        In float64, the ends included.

    Raises:
        ValueError: No samples, a value that is not finite, a difficulty that is not positive, or a
            half width that is negative or not a number.

    Example:
        >>> intervals(torch.tensor([2.0]), 0.5, difficulty=torch.tensor([3.0])).tolist()
        [[0.5, 3.5]]
    """
    if not half_width >= 0:
        raise ValueError(f"the half width is {half_width}; it must not be negative")
    centre = checked(prediction, (None,), of="predictions")
    reach = half_width * _difficulty(difficulty, centre.shape)
    return torch.stack((centre - reach, centre + reach), dim=1)


def _own(scores: Float[Tensor, "n k"], target: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    scores = checked(scores, (None, None), of="scores")
    check_target(target, scores.shape[1], scores.shape[:1], of="classes")
    return scores[torch.arange(len(scores)), target.long()]


def _probabilities(values: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
    return _within(values, (None, None), of="probabilities")


def _within(
    values: Float[Tensor, "*shape"], shape: tuple[int | None, ...], *, of: str
) -> Float[Tensor, "*shape"]:
    values = checked(values, shape, of=of)
    low, high = (bound.item() for bound in values.aminmax())
    if low < 0 or high > 1:
        raise ValueError(f"the {of} span {low}..{high}; they must lie in 0..1")
    return values


def _difficulty(difficulty: Float[Tensor, " n"] | None, shape: tuple[int, ...]) -> Tensor:
    if difficulty is None:
        return torch.ones((), dtype=torch.float64)
    difficulty = checked(difficulty, shape, of="difficulties")
    if not (difficulty > 0).all():
        raise ValueError(f"a difficulty is {difficulty.min().item()}; all must be positive")
    return difficulty
