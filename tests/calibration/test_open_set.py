import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spherescan.calibration import (
    auroc,
    energy_score,
    known_threshold,
    largest_probability,
    largest_score,
    open_set_curve,
)
from tests.calibration.draws import beta_cdf, kolmogorov, rand, randn
from tests.tolerances import assert_close

# Few different values, so that most pairs tie.
SCORES = st.lists(st.integers(-3, 3), min_size=1, max_size=25).map(
    lambda values: torch.tensor(values, dtype=torch.float64)
)
RATES = st.integers(1, 99).map(lambda percent: percent / 100)


def wins(known, unknown):
    """Count pair by pair, ties half."""
    return [[(a > b) + 0.5 * (a == b) for b in unknown.tolist()] for a in known.tolist()]


@given(SCORES, SCORES)
def test_auroc_counts_pairs(known, unknown):
    pairs = wins(known, unknown)
    expected = sum(map(sum, pairs)) / (len(known) * len(unknown))
    assert auroc(known, unknown) == expected
    assert auroc(unknown, known) == pytest.approx(1 - expected)
    assert auroc(known.exp(), unknown.exp()) == expected  # only the order counts
    assert auroc(known.float(), unknown) == expected


@pytest.mark.unwatched
@given(SCORES, SCORES)
def test_auroc_is_that_of_scikit_learn(known, unknown):
    metrics = pytest.importorskip("sklearn.metrics")
    labels = [1] * len(known) + [0] * len(unknown)
    expected = metrics.roc_auc_score(labels, torch.cat((known, unknown)).numpy())
    assert auroc(known, unknown) == pytest.approx(expected)


@pytest.mark.unwatched
@given(SCORES, SCORES, st.integers(0, 10**6))
def test_the_curve_is_what_each_threshold_does(known, unknown, seed):
    correct = rand(len(known), seed=seed) < 0.6
    curve = open_set_curve(known, correct, unknown)
    for threshold, false, right in zip(
        curve.threshold, curve.false_positive_rate, curve.correct_rate, strict=True
    ):
        assert false == (unknown >= threshold).double().mean()
        assert right == ((known >= threshold) & correct).double().mean()
    assert (curve.false_positive_rate[0], curve.correct_rate[0]) == (0, 0)
    assert (curve.false_positive_rate[-1], curve.correct_rate[-1]) == (1, correct.double().mean())
    pairs = wins(known, unknown)
    area = sum(sum(row) for row, hit in zip(pairs, correct, strict=True) if hit)
    assert curve.area == pytest.approx(area / (len(known) * len(unknown)), abs=1e-12)
    assert curve.area <= min(auroc(known, unknown), correct.double().mean().item()) + 1e-12
    all_right = open_set_curve(known, torch.ones_like(correct), unknown)
    assert all_right.area == pytest.approx(auroc(known, unknown), abs=1e-12)


@pytest.mark.unwatched
@given(n=st.integers(1, 60), rejection=RATES, seed=st.integers(0, 10**6), ties=st.booleans())
def test_the_rejection_rate_is_exact_for_exchangeable_scores(n, rejection, seed, ties):
    """Of n + 1 scores each in turn is the new one: that is all exchangeable scores can be."""
    allowed = math.floor((n + 1) * round(100 * rejection) / 100 + 1e-9)
    scores = randn(n + 1, seed=seed)
    if ties:
        scores = scores.round()
    if allowed == 0:
        with pytest.raises(ValueError, match="it takes"):
            known_threshold(scores[1:], rejection=rejection)
        return
    rejected = sum(
        int(
            scores[i]
            < known_threshold(torch.cat((scores[:i], scores[i + 1 :])), rejection=rejection)
        )
        for i in range(n + 1)
    )
    assert rejected <= allowed if ties else rejected == allowed


def test_the_measured_rate_on_fresh_data_is_the_chosen_one():
    rates = []
    for seed in range(40):
        known = randn(1400, seed=seed)
        threshold = known_threshold(known[:400], rejection=0.05)
        rates.append((known[400:] < threshold).double().mean().item())
    assert sum(rates) / len(rates) == pytest.approx(0.05, abs=0.005)
    assert sum(0.03 <= rate <= 0.07 for rate in rates) >= 34


def test_the_rate_given_the_scores_has_its_beta_distribution():
    # A uniform score is below the threshold with probability threshold.
    rates = [known_threshold(rand(59, seed=seed), rejection=0.05) for seed in range(400)]
    assert kolmogorov(rates, lambda x: beta_cdf(x, 3, 57)) < 1.63
    assert kolmogorov(rates, lambda x: beta_cdf(x, 4, 56)) > 1.63  # it can tell one rank


@given(RATES)
def test_the_error_says_how_many_scores_it_takes(rejection):
    enough = math.ceil(100 / round(100 * rejection)) - 1
    assert known_threshold(torch.arange(float(enough)), rejection=rejection) == 0 or enough > 1
    if enough > 1:
        with pytest.raises(ValueError, match=rf"it takes {enough} of them"):
            known_threshold(torch.arange(float(enough - 1)), rejection=rejection)


def test_a_rate_is_the_decimal_that_was_written():
    assert 100 * 0.29 < 29
    assert known_threshold(torch.arange(1.0, 100.0), rejection=0.29) == 29
    # A float32 score equals the threshold that it became.
    scores = torch.tensor([0.1, 0.2, 0.3])
    assert not bool(scores[0] < known_threshold(scores, rejection=0.25))


@given(st.integers(1, 6), st.integers(0, 10**6), st.sampled_from([0.1, 10.0, 1000.0]))
def test_energy_is_a_smooth_maximum(k, seed, scale):
    cosines = 2 * rand(7, k, seed=seed) - 1
    excess = energy_score(cosines, scale=scale) - largest_score(cosines)
    assert (excess >= -1e-12).all()
    assert (excess <= math.log(k) / scale + 1e-12).all()


def test_scores_tell_near_from_far_and_a_probability_does_not():
    prototypes = torch.eye(3)
    near, far = torch.tensor([0.9, 0.3, 0.3]), torch.tensor([0.3, -0.6, -0.6])
    cosines = torch.stack((near, far)) @ prototypes.T
    assert_close(largest_score(cosines), torch.tensor([0.9, 0.3]))
    energy = energy_score(cosines, scale=10.0)
    assert energy[0] > energy[1] + 0.5
    probability = largest_probability(cosines, scale=10.0)
    assert_close(probability, (10 * cosines.double()).softmax(1).amax(1))
    assert probability[1] > probability[0]


NONE = torch.zeros(0)


@pytest.mark.parametrize("bad", [NONE, torch.tensor([0.0, math.nan]), torch.tensor([-math.inf])])
def test_scores_that_are_none_are_refused(bad):
    good = torch.tensor([0.0])
    for call in (
        lambda: auroc(bad, good),
        lambda: auroc(good, bad),
        lambda: open_set_curve(good, torch.tensor([True]), bad),
        lambda: open_set_curve(bad, torch.ones(len(bad), dtype=torch.bool), good),
        lambda: known_threshold(bad, rejection=0.5),
        lambda: largest_score(bad[:, None]),
        lambda: largest_probability(bad[:, None], scale=1.0),
        lambda: energy_score(bad[:, None], scale=1.0),
    ):
        with pytest.raises(ValueError, match=r"at least one|finite"):
            call()


def test_settings_that_mean_nothing_are_refused():
    for rejection in (0.0, 1.0, -0.1, math.nan):
        with pytest.raises(ValueError, match="rejection rate is"):
            known_threshold(rand(100), rejection=rejection)
    for score in (largest_probability, energy_score):
        for scale in (0.0, -1.0, math.inf, math.nan):
            with pytest.raises(ValueError, match="the scale is"):
                score(rand(2, 2), scale=scale)
