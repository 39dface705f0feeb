import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spherescan.calibration import (
    aps_scores,
    class_thresholds,
    conformal_quantile,
    fit_half_width,
    intervals,
    lac_scores,
    prediction_sets,
    set_threshold,
)
from tests.calibration.draws import beta_cdf, kolmogorov, labels_of, rand, randn
from tests.tolerances import assert_close

COVERAGES = st.integers(1, 99).map(lambda percent: percent / 100)


@given(n=st.integers(1, 60), coverage=COVERAGES, seed=st.integers(0, 10**6), ties=st.booleans())
def test_coverage_is_exact_for_exchangeable_scores(n, coverage, seed, ties):
    """Of n + 1 scores each in turn is the new one: that is all exchangeable scores can be."""
    scores = randn(n + 1, seed=seed)
    if ties:
        scores = scores.round()
    covered = sum(
        int(
            scores[i]
            <= conformal_quantile(torch.cat((scores[:i], scores[i + 1 :])), coverage=coverage)
        )
        for i in range(n + 1)
    )
    wanted = -((n + 1) * round(100 * coverage) // -100)
    assert covered >= wanted if ties else covered == wanted


def test_coverage_given_the_scores_has_its_beta_distribution():
    # A uniform score is at most q with probability q.
    rates = [conformal_quantile(rand(49, seed=seed), coverage=0.9) for seed in range(400)]
    assert kolmogorov(rates, lambda x: beta_cdf(x, 45, 5)) < 1.63
    assert kolmogorov(rates, lambda x: beta_cdf(x, 44, 6)) > 1.63  # it can tell one rank


def test_a_coverage_is_the_decimal_that_was_written():
    scores = torch.arange(1.0, 100.0)
    assert 100 * 0.57 != 57
    for percent in range(1, 100):
        assert conformal_quantile(scores, coverage=percent / 100) == percent


@given(COVERAGES)
def test_too_few_scores_promise_by_infinity(coverage):
    percent = round(100 * coverage)
    enough = -(percent // -(100 - percent))  # coverage / (1 - coverage), upwards
    assert conformal_quantile(rand(enough), coverage=coverage) < math.inf
    if enough > 1:
        assert conformal_quantile(rand(enough - 1), coverage=coverage) == math.inf


def task(n, seed, k=5):
    """Probabilities that are right, and classes drawn from them."""
    p = (2 * randn(n, k, seed=seed)).softmax(1)
    return p, labels_of(p, seed)


def distorted(p):
    """Far too sure of itself."""
    return p.pow(4) / p.pow(4).sum(1, keepdim=True)


def aps_with_draws(p):
    return aps_scores(p, uniform=rand(len(p), seed=7_000_000))


def cover(inside, target):
    return inside[torch.arange(len(target)), target].double().mean().item()


@pytest.mark.parametrize("score", [lac_scores, aps_scores, aps_with_draws])
@pytest.mark.parametrize("belief", [lambda p: p, distorted])
def test_sets_cover_what_was_asked_for_whatever_the_probabilities(score, belief):
    n, rates, never_empty = 199, [], []
    for seed in range(60):
        p, target = task(n + 500, seed)
        scores = score(belief(p))
        threshold = set_threshold(scores[:n], target[:n], coverage=0.9)
        inside = prediction_sets(scores[n:], threshold, never_empty=False)
        rates.append(cover(inside, target[n:]))
        filled = prediction_sets(scores[n:], threshold)
        assert (filled | inside).equal(filled)
        assert filled.any(1).all()
        never_empty.append(cover(filled, target[n:]))
    # 180 of 200 ranks exactly; of one draw Beta(180, 20) and 500 samples, 0.026; of 60, 0.0034.
    assert sum(rates) / 60 == pytest.approx(0.9, abs=0.01)
    assert sum(never_empty) >= sum(rates)
    assert sum(0.82 <= rate <= 0.98 for rate in rates) == 60


def test_draws_make_the_adaptive_score_of_the_truth_uniform():
    """What its inventors prove, if the probabilities are right; no order or tie matters."""
    p, target = task(2000, 1)
    own = aps_with_draws(p)[torch.arange(2000), target]
    assert kolmogorov(own.tolist(), lambda x: x) < 1.63
    without = aps_scores(p)[torch.arange(2000), target]
    assert (without >= own).all()


def test_adaptive_scores_by_hand():
    p = torch.tensor([[0.2, 0.5, 0.3], [0.25, 0.5, 0.25]])
    assert_close(aps_scores(p), torch.tensor([[1.0, 0.5, 0.8], [0.75, 0.5, 1.0]]))
    drawn = aps_scores(p, uniform=torch.tensor([0.5, 0.0]))
    assert_close(drawn, torch.tensor([[0.9, 0.25, 0.65], [0.5, 0.0, 0.75]]))
    assert_close(lac_scores(p), 1 - p)


def test_least_ambiguous_sets_are_smaller_and_adaptive_ones_serve_the_hard():
    p, target = task(20_000, 2)
    half, hard = 10_000, p[10_000:].amax(1) < 0.5
    sizes, on_hard = {}, {}
    for name, score in (("lac", lac_scores), ("aps", aps_with_draws)):
        scores = score(p)
        threshold = set_threshold(scores[:half], target[:half], coverage=0.8)
        inside = prediction_sets(scores[half:], threshold, never_empty=False)
        sizes[name] = inside.sum(1).double().mean()
        on_hard[name] = cover(inside[hard], target[half:][hard])
    assert sizes["lac"] < sizes["aps"]
    assert on_hard["lac"] < 0.75
    assert on_hard["aps"] == pytest.approx(0.8, abs=0.03)


@given(st.integers(0, 10**6), COVERAGES, COVERAGES)
def test_more_coverage_never_takes_a_class_out(seed, one, other):
    p, target = task(30, seed)
    low, high = sorted((one, other))
    for score in (lac_scores, aps_scores):
        scores = score(p)
        small, large = (
            prediction_sets(scores, set_threshold(scores, target, coverage=c)) for c in (low, high)
        )
        assert (small <= large).all()


def test_a_threshold_for_each_class_covers_each_class():
    """Class 0 is hard: one threshold for all lets it pay for the others."""
    rates = {"one": torch.zeros(3), "each": torch.zeros(3)}
    for seed in range(40):
        target = torch.arange(3).repeat(500)
        logits = 4 * torch.eye(3)[target] + randn(1500, 3, seed=seed)
        logits[target == 0] = 2 * randn(500, 3, seed=seed + 1000)
        scores = lac_scores(logits.softmax(1))
        first = torch.arange(1500) < 300
        thresholds = {
            "one": set_threshold(scores[first], target[first], coverage=0.9),
            "each": class_thresholds(scores[first], target[first], coverage=0.9),
        }
        for name, threshold in thresholds.items():
            inside = prediction_sets(scores[~first], threshold, never_empty=False)
            for j in range(3):
                of_class = target[~first] == j
                rates[name][j] += cover(inside[of_class], target[~first][of_class]) / 40
    assert rates["one"][0] < 0.8
    # 91 of 101 ranks, from 100 samples of each class.
    assert (rates["each"] - 91 / 101).abs().max() < 0.015


def test_with_too_few_samples_every_class_is_inside():
    p, target = task(8, 0)
    scores = lac_scores(p)
    threshold = set_threshold(scores, target, coverage=0.9)
    assert threshold == math.inf
    assert prediction_sets(scores, threshold).all()
    # A class that nothing was seen of cannot be left out; the others can.
    scores = lac_scores(torch.tensor([[0.9, 0.1, 0.0]]).repeat(20, 1))
    thresholds = class_thresholds(scores, torch.tensor([0, 1] * 10), coverage=0.9)
    assert thresholds.isinf().tolist() == [False, False, True]
    sure = lac_scores(torch.tensor([[0.95, 0.05, 0.0]]))
    assert prediction_sets(sure, thresholds).tolist() == [[True, False, True]]


def test_an_empty_set_gets_its_best_class_if_asked():
    scores = torch.tensor([[0.5, 0.4, 0.9], [0.1, 0.1, 0.9]])
    assert not prediction_sets(scores, 0.05, never_empty=False).any()
    assert prediction_sets(scores, 0.05).tolist() == [[False, True, False], [True, False, False]]


@pytest.mark.parametrize("score", [lac_scores, aps_scores])
def test_one_class_and_one_sample(score):
    scores = score(torch.ones(1, 1))
    threshold = set_threshold(scores, torch.tensor([0]), coverage=0.5)
    assert threshold == scores.item()
    # A score that equals the threshold is not too strange: ties keep the promise.
    assert prediction_sets(scores, threshold, never_empty=False).tolist() == [[True]]


def noisy(n, seed):
    """Errors that grow with a difficulty that is known."""
    difficulty = 0.1 + 3 * rand(n, seed=seed)
    prediction = randn(n, seed=seed + 1)
    return prediction, prediction + difficulty * randn(n, seed=seed + 2), difficulty


@pytest.mark.parametrize("known", [False, True])
def test_intervals_cover_what_was_asked_for(known):
    rates, n = [], 99
    for seed in range(0, 600, 10):
        prediction, value, difficulty = noisy(n + 500, seed)
        given_ = {"difficulty": difficulty[:n]} if known else {}
        width = fit_half_width(prediction[:n], value[:n], coverage=0.9, **given_)
        given_ = {"difficulty": difficulty[n:]} if known else {}
        ends = intervals(prediction[n:], width, **given_)
        inside = (ends[:, 0] <= value[n:]) & (value[n:] <= ends[:, 1])
        rates.append(inside.double().mean().item())
    assert sum(rates) / 60 == pytest.approx(0.9, abs=0.015)


def test_a_known_difficulty_serves_easy_and_hard_alike():
    prediction, value, difficulty = noisy(20_000, 5)
    hard = difficulty[10_000:] > 2.5
    new = slice(10_000, None)

    def measured(**options):
        width = fit_half_width(
            prediction[:10_000],
            value[:10_000],
            coverage=0.9,
            **{name: of[:10_000] for name, of in options.items()},
        )
        ends = intervals(prediction[new], width, **{name: of[new] for name, of in options.items()})
        inside = (ends[:, 0] <= value[new]) & (value[new] <= ends[:, 1])
        return (ends[:, 1] - ends[:, 0]).mean().item(), inside[hard].double().mean().item()

    plain, weighed = measured(), measured(difficulty=difficulty)
    assert weighed[0] < plain[0]
    assert plain[1] < 0.8
    assert weighed[1] == pytest.approx(0.9, abs=0.02)
    # Its unit means nothing.
    assert measured(difficulty=1000 * difficulty) == pytest.approx(weighed)


def test_intervals_move_and_stretch_with_what_is_predicted():
    prediction, value, _ = noisy(50, 3)
    width = fit_half_width(prediction, value, coverage=0.8)
    assert fit_half_width(5 - 3 * prediction, 5 - 3 * value, coverage=0.8) == pytest.approx(
        3 * width
    )
    few = fit_half_width(prediction[:3].float(), value[:3], coverage=0.8)
    assert few == math.inf
    assert intervals(prediction[:1], few).tolist() == [[-math.inf, math.inf]]


TWO = torch.tensor([[0.4, 0.6]])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: conformal_quantile(torch.zeros(0), coverage=0.9), "at least one"),
        (lambda: conformal_quantile(torch.tensor([math.nan]), coverage=0.9), "finite"),
        (lambda: conformal_quantile(torch.zeros(1), coverage=1.0), "coverage is 1"),
        (lambda: set_threshold(TWO, torch.tensor([0]), coverage=0.0), "coverage is 0"),
        (lambda: class_thresholds(TWO, torch.tensor([0]), coverage=-1.0), "coverage is -1"),
        (lambda: set_threshold(TWO, torch.tensor([2]), coverage=0.9), "must lie in"),
        (lambda: class_thresholds(TWO[:0], torch.zeros(0).int(), coverage=0.9), "at least one"),
        (lambda: lac_scores(torch.tensor([[2.0, -1.0]])), r"probabilities span -1\.0\.\.2\.0"),
        (lambda: aps_scores(torch.tensor([[math.inf]])), "finite"),
        (lambda: aps_scores(TWO, uniform=torch.tensor([1.5])), "draws span"),
        (lambda: prediction_sets(TWO, math.nan), "threshold is nan"),
        (lambda: prediction_sets(TWO[:0], 0.5), "at least one"),
        (lambda: fit_half_width(torch.zeros(0), torch.zeros(0), coverage=0.9), "at least one"),
        (lambda: fit_half_width(TWO[0], TWO[0] / 0, coverage=0.9), "values hold inf"),
        (lambda: fit_half_width(TWO[0] / 0, TWO[0], coverage=0.9), "predictions hold inf"),
        (
            lambda: fit_half_width(TWO[0], TWO[0], coverage=0.9, difficulty=0 * TWO[0]),
            "difficulty is 0",
        ),
        (lambda: intervals(TWO[0], 1.0, difficulty=-TWO[0]), "difficulty is -0.6"),
        (lambda: intervals(TWO[0], -1.0), "half width is -1"),
        (lambda: intervals(TWO[0], math.nan), "half width is nan"),
    ],
)
def test_what_promises_nothing_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
