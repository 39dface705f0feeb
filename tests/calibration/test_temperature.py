import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from spherescan.calibration import (
    LARGEST_SCALE,
    expected_calibration_error,
    fit_scale,
    fit_scale_and_bias,
    laplace_smoothing,
    probabilities,
)
from tests.calibration.draws import labels_of, rand, randn
from tests.tolerances import assert_close

GRID = torch.cat((torch.zeros(1), torch.logspace(-4, 3, 4001))).double()


def loss(logits, target, smoothing=0.0):
    """The same loss by torch, whose label smoothing is the same mixture."""
    return functional.cross_entropy(logits, target, label_smoothing=smoothing)


@pytest.mark.unwatched
@given(
    n=st.integers(1, 40),
    k=st.integers(1, 6),
    seed=st.integers(0, 10**6),
    smoothing=st.sampled_from([0.0, 0.05, 0.5]),
    sharpness=st.sampled_from([0.0, 3.0, 30.0]),
)
def test_no_scale_of_a_grid_predicts_better(n, k, seed, smoothing, sharpness):
    cosines = 2 * rand(n, k, seed=seed) - 1
    target = labels_of((sharpness * cosines).softmax(1), seed)
    scale = fit_scale(cosines, target, smoothing=smoothing)
    found = loss(scale * cosines, target, smoothing)
    on_grid = torch.stack([loss(s * cosines, target, smoothing) for s in GRID[::40]])
    assert found <= on_grid.min() + 1e-12
    if 1e-3 < scale < LARGEST_SCALE:
        beside = [loss(scale * (1 + e) * cosines, target, smoothing) for e in (-1e-3, 1e-3)]
        assert found <= min(beside)


def test_a_fine_grid_finds_the_same_scale():
    cosines = 2 * rand(300, 4) - 1
    target = labels_of((7 * cosines).softmax(1))
    losses = torch.stack([loss(s * cosines, target) for s in GRID])
    best = GRID[losses.argmin()].item()
    assert fit_scale(cosines, target) == pytest.approx(best, rel=4e-3)  # the step of the grid


def test_the_scale_that_drew_the_labels_is_found_and_makes_them_calibrated():
    cosines = 2 * rand(20_000, 5) - 1
    target = labels_of((12 * cosines).softmax(1))
    scale = fit_scale(cosines, target)
    assert scale == pytest.approx(12, rel=0.03)
    assert expected_calibration_error(probabilities(cosines, scale), target) < 0.01
    assert expected_calibration_error(probabilities(cosines, 2 * scale), target) > 0.03


@pytest.mark.parametrize("n", [1, 50])
def test_without_a_mistake_the_scale_is_the_bound_or_what_smoothing_allows(n):
    cosines = torch.tensor([[0.1, 0.9, 0.1]]).repeat(n, 1)
    target = torch.ones(n, dtype=torch.long)
    assert fit_scale(cosines, target) == LARGEST_SCALE
    assert fit_scale(cosines, target, largest=40.0) == 40.0
    # Laplace: with n right ones of n, the next one is right with probability (n + 1) / (n + 2).
    scale = fit_scale(cosines, target, smoothing=3 / (2 * (n + 2)))
    assert probabilities(cosines, scale)[0, 1].item() == pytest.approx((n + 1) / (n + 2))


def test_a_tie_with_the_true_class_is_no_mistake():
    cosines = torch.tensor([[0.3, 0.3, 0.1], [0.2, 0.9, 0.9]])
    assert fit_scale(cosines, torch.tensor([1, 2])) == LARGEST_SCALE


@pytest.mark.parametrize(
    ("cosines", "target"),
    [
        ([[0.3], [0.9]], [0, 0]),  # one class
        ([[0.4, 0.4], [-0.1, -0.1]], [0, 1]),  # the same for every class
        ([[0.9, 0.1]], [1]),  # worse than nothing
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_cosines_that_say_nothing_have_scale_zero(cosines, target, dtype):
    cosines, target = torch.tensor(cosines, dtype=dtype), torch.tensor(target)
    assert fit_scale(cosines, target) == 0
    assert_close(probabilities(cosines, 0.0), torch.full_like(cosines, 1 / cosines.shape[1]))


def test_what_all_classes_share_and_their_order_mean_nothing():
    cosines = 2 * rand(30, 4) - 1
    target = labels_of((5 * cosines).softmax(1))
    scale = fit_scale(cosines, target)
    shifted = fit_scale(cosines + randn(30, 1), target)
    turned = fit_scale(cosines.flip(1), 3 - target)
    assert shifted == pytest.approx(scale, rel=1e-9)
    assert turned == pytest.approx(scale, rel=1e-9)
    assert torch.equal(probabilities(cosines, scale).argmax(1), cosines.argmax(1))


def test_float32_is_taken_as_it_is():
    cosines = (2 * rand(30, 4) - 1).float()
    target = labels_of((5 * cosines).softmax(1)).int()
    assert fit_scale(cosines, target) == fit_scale(cosines.double(), target.long())
    sure = probabilities(torch.tensor([[1.0, 0.0]]), 20.0)
    assert 0 < 1 - sure[0, 0].item() < 1e-8


def test_embeddings_with_a_gradient_or_made_for_inference_are_welcome():
    target = torch.tensor([0, 1, 1])
    cosines = rand(3, 2)
    with torch.inference_mode():
        inferred = cosines.clone()
    assert fit_scale(inferred, target) == fit_scale(cosines.requires_grad_(), target)
    assert not probabilities(cosines, 1.0).requires_grad


@given(
    n=st.integers(1, 40),
    k=st.integers(1, 5),
    seed=st.integers(0, 10**6),
    smoothing=st.sampled_from([1e-3, 0.02, 0.5]),
)
def test_scale_and_bias_are_a_minimum(n, k, seed, smoothing):
    cosines = 2 * rand(n, k, seed=seed) - 1
    target = labels_of((6 * cosines + randn(k, seed=seed)).softmax(1), seed)
    check_minimum(cosines, target, smoothing)


def test_a_newton_step_that_goes_too_far_is_shortened():
    """A few samples far from all others: undamped steps from zero overshoot, and diverge."""
    cosines = randn(10, 3, seed=60).pow(5).tanh()
    check_minimum(cosines, cosines.argmax(1), 1e-3)


def check_minimum(cosines, target, smoothing):
    found = fit_scale_and_bias(cosines, target, smoothing=smoothing)
    assert found.scale >= 0
    assert abs(found.bias.mean().item()) < 1e-10
    scale = torch.tensor(found.scale, dtype=torch.float64, requires_grad=True)
    bias = found.bias.clone().requires_grad_()
    value = loss(scale * cosines + bias, target, smoothing)
    by_scale, by_bias = torch.autograd.grad(value, (scale, bias))
    assert by_bias.abs().max() < 1e-9
    assert by_scale.abs() < 1e-9 or (found.scale == 0 and by_scale > 0)
    alone = fit_scale(cosines, target, smoothing=smoothing)
    assert value <= loss(alone * cosines, target, smoothing) + 1e-9


def test_the_bias_that_drew_the_labels_is_found():
    cosines, bias = 2 * rand(20_000, 3) - 1, torch.tensor([1.0, -0.5, -0.5]).double()
    target = labels_of((8 * cosines + bias).softmax(1))
    found = fit_scale_and_bias(cosines, target, smoothing=1e-6)
    assert found.scale == pytest.approx(8, rel=0.05)
    assert (found.bias - bias).abs().max() < 0.15
    assert_close(
        probabilities(cosines, found.scale, found.bias),
        (found.scale * cosines + found.bias).softmax(1),
    )


def test_where_only_the_frequency_of_classes_is_known_it_is_what_is_predicted():
    cosines = torch.tensor([[0.0, 1.0, 0.0]]).repeat(4, 1)
    found = fit_scale_and_bias(cosines, torch.tensor([0, 0, 0, 2]), smoothing=0.3)
    expected = torch.tensor([0.625, 0.1, 0.275], dtype=torch.float64)  # 0.7 q + 0.3 / 3
    assert_close(probabilities(cosines, *found)[0], expected)
    # Cosines that point away from the true class are not believed the other way round.
    misleading = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert fit_scale_and_bias(misleading, torch.tensor([1, 0]), smoothing=0.1).scale == 0


ONE = torch.tensor([[0.5, 0.1]])


@pytest.mark.parametrize("fit", [fit_scale, fit_scale_and_bias])
@pytest.mark.parametrize(
    ("cosines", "target", "smoothing", "message"),
    [
        (torch.zeros(0, 2), torch.zeros(0, dtype=torch.long), 0.1, "give at least one"),
        (torch.zeros(1, 0), torch.tensor([0]), 0.1, "give at least one"),
        (torch.tensor([[0.5, math.nan]]), torch.tensor([0]), 0.1, r"nan at \(0, 1\)"),
        (torch.tensor([[math.inf, 0.0]]), torch.tensor([0]), 0.1, r"inf at \(0, 0\)"),
        (ONE, torch.tensor([2]), 0.1, r"must lie in 0\.\.1"),
        (ONE, torch.tensor([-1]), 0.1, r"span -1\.\.-1"),
        (ONE, torch.tensor([0]), 1.0, "smoothing is 1"),
        (ONE, torch.tensor([0]), math.nan, "smoothing is nan"),
    ],
)
def test_what_cannot_be_fitted_is_refused(fit, cosines, target, smoothing, message):
    with pytest.raises(ValueError, match=message):
        fit(cosines, target, smoothing=smoothing)


def test_settings_that_mean_nothing_are_refused():
    with pytest.raises(ValueError, match="largest scale is 0"):
        fit_scale(ONE, torch.tensor([0]), largest=0.0)
    with pytest.raises(ValueError, match="smoothing is 0"):
        fit_scale_and_bias(ONE, torch.tensor([0]), smoothing=0.0)
    for scale in (-1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="the scale is"):
            probabilities(ONE, scale)


@pytest.mark.parametrize("k", [2, 3, 7])
def test_by_laplace_n_right_answers_are_as_sure_as_n_plus_1_of_n_plus_2(k):
    cosines, target = torch.eye(k).double().repeat(5, 1), torch.arange(k).repeat(5)
    scale = fit_scale(cosines, target, smoothing=laplace_smoothing(5 * k, k))
    sure = probabilities(cosines, scale).max(1).values
    assert sure.tolist() == pytest.approx([(5 * k + 1) / (5 * k + 2)] * (5 * k), abs=1e-6)
