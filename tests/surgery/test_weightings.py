"""What weightings promise: positive, adding up, resumable; and what GradNorm is for."""

import json
import math

import pytest
import torch

from spherescan.surgery import WEIGHTINGS, EqualWeights, GradNorm, make_weighting


@pytest.fixture(params=sorted(WEIGHTINGS))
def name(request):
    return request.param


def measurements(generator, *, steps=9, t=3):
    losses = torch.rand(steps, t, generator=generator) + 0.1
    norms = 10 ** (4 * torch.rand(steps, t, generator=generator) - 2)
    return list(zip(losses, norms, strict=True))


def test_weights_are_positive_and_sum_to_their_number(name, generator):
    weigh = make_weighting(name)
    for losses, norms in measurements(generator, steps=200):
        weights = weigh(losses, norms)
        assert weights.shape == (3,)
        assert weights.min() > 0
        assert weights.sum().item() == pytest.approx(3, abs=1e-5)


def test_a_resumed_weighting_goes_on_bit_for_bit(name, generator):
    steps = measurements(generator)
    whole = make_weighting(name)
    states, expected = [], []
    for losses, norms in steps:
        states.append(json.loads(json.dumps(whole.state_dict())))
        expected.append(whole(losses, norms))
    for start, state in enumerate(states):
        resumed = make_weighting(name)
        resumed.load_state_dict(state)
        for (losses, norms), weights in zip(steps[start:], expected[start:], strict=True):
            assert torch.equal(resumed(losses, norms), weights)


@pytest.mark.parametrize("scale", [1e-15, 1.0, 1e15])
def test_the_common_scale_of_gradients_means_nothing(generator, scale):
    plain, scaled = GradNorm(), GradNorm()
    for losses, norms in measurements(generator):
        expected = plain(losses.double(), norms.double())
        torch.testing.assert_close(scaled(losses.double(), scale * norms.double()), expected)


@pytest.mark.unwatched
def test_equal_progress_ends_in_equal_gradients():
    """At equilibrium w_i n_i is the mean for all, whatever alpha is."""
    weigh = GradNorm(rate=0.02)
    norms = torch.tensor([1000.0, 1.0, 0.3], dtype=torch.float64)
    for _ in range(3000):
        weights = weigh(torch.ones(3, dtype=torch.float64), norms)
    weighted = weights * norms
    assert (weighted / weighted.mean() - 1).abs().max() < 0.06  # steps of 0.02 swing around it


def test_one_step_on_paper():
    """Losses fell to 1/2 and 1/4: r = (4/3, 2/3); lengths are 3 and 1, their mean 2."""
    weigh = GradNorm(alpha=1.0, rate=0.1)
    weigh.load_state_dict({"first": [1.0, 1.0], "weights": [1.0, 1.0]})
    weights = weigh(
        torch.tensor([0.5, 0.25], dtype=torch.float64), torch.tensor([3.0, 1.0]).double()
    )
    # 3 > 2 * 4/3 falls;  1 < 2 * 2/3 rises
    moved = torch.tensor([-0.1, 0.1], dtype=torch.float64).exp()
    torch.testing.assert_close(weights, 2 * moved / moved.sum())


@pytest.mark.unwatched
def test_a_slow_objective_is_favoured_with_alpha():
    """The first has not moved, the second is down to a half: r = (4/3, 2/3).

    At alpha 2 the targets, 16/9 and 4/9 of the mean, do not add up: the second meets its own.
    """
    for alpha, ratio in ((0.0, 1.0), (1.0, 2.0), (2.0, (2 - 4 / 9) / (4 / 9))):
        weigh = GradNorm(alpha=alpha, rate=0.005)
        norms = torch.ones(2, dtype=torch.float64)
        weigh(torch.tensor([1.0, 1.0], dtype=torch.float64), norms)
        for _ in range(3000):
            weights = weigh(torch.tensor([1.0, 0.5], dtype=torch.float64), norms)
        assert (weights[0] / weights[1]).item() == pytest.approx(ratio, rel=0.05)


def test_two_objectives_of_very_different_scale_are_learned_together(generator):
    """x minimises |x - a|^2 and 10^4 |x - b|^2: the sum ends at b, GradNorm between them."""
    a, b = torch.zeros(4), torch.ones(4)

    def distances(weigh):
        x = torch.randn(4, generator=generator).requires_grad_()
        for _ in range(600):
            losses = torch.stack([(x - a).square().sum(), 1e4 * (x - b).square().sum()])
            rows = torch.stack(
                [torch.autograd.grad(loss, x, retain_graph=True)[0] for loss in losses]
            )
            weights = weigh(losses.detach(), rows.norm(dim=1))
            direction = weights @ rows
            with torch.no_grad():
                x -= 0.01 * direction / direction.norm().clamp(min=1e-3)
        return (x - a).norm().item(), (x - b).norm().item()

    to_a, to_b = distances(EqualWeights())
    assert to_a > 50 * to_b
    to_a, to_b = distances(GradNorm(alpha=0.0))
    assert 0.5 < to_a / to_b < 2


def test_an_objective_without_gradient_takes_no_part():
    """Else the others would lose all their weight to it, which nothing comes of."""
    weigh, without = GradNorm(), GradNorm()
    for _ in range(400):
        weights = weigh(torch.ones(3), torch.tensor([10.0, 0.0, 1.0]))
        alone = without(torch.ones(2), torch.tensor([10.0, 1.0]))
    assert weights[1] == 1
    torch.testing.assert_close(weights[[0, 2]], alone)
    weights = weigh(torch.ones(3), torch.tensor([10.0, 3.0, 1.0]))  # it has one again
    assert weights[1] != 1
    assert weights.sum().item() == pytest.approx(3)


def test_gradients_that_vanish_change_nothing():
    weigh = GradNorm()
    weights = weigh(torch.ones(2), torch.zeros(2))
    assert weights.tolist() == [1.0, 1.0]
    assert weigh(torch.zeros(2), torch.ones(2)).isfinite().all()  # all losses reached zero


def test_invalid_calls_are_refused():
    with pytest.raises(ValueError, match="alpha is -1"):
        GradNorm(alpha=-1.0)
    with pytest.raises(ValueError, match="alpha is inf"):
        GradNorm(alpha=math.inf)
    for rate in (0.0, 2.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="rate is"):
            GradNorm(rate=rate)
    weigh = GradNorm()
    for losses, norms in ((2, 1), (1, 2), (0, 0)):
        with pytest.raises(ValueError, match="wanted one of each for every objective"):
            weigh.__call__.__wrapped__(weigh, torch.ones(losses), torch.ones(norms))
    with pytest.raises(ValueError, match=r"the first losses are .*must be positive"):
        weigh(torch.tensor([1.0, 0.0]), torch.ones(2))
    with pytest.raises(ValueError, match=r"losses are .*not negative"):
        weigh(torch.tensor([1.0, -1.0]), torch.ones(2))
    with pytest.raises(ValueError, match=r"norms are .*finite"):
        weigh(torch.ones(2), torch.tensor([1.0, torch.nan]))
    assert weigh.state_dict() == {"first": [], "weights": []}  # nothing was taken from them
    weigh(torch.ones(2), torch.ones(2))
    with pytest.raises(ValueError, match="3 losses were given; the weights are those of 2"):
        weigh(torch.ones(3), torch.ones(3))
    with pytest.raises(ValueError, match="equal weights have no state; this one has first"):
        EqualWeights().load_state_dict({"first": [1.0]})


@pytest.mark.unwatched
def test_losses_that_are_no_floating_point_numbers_are_refused():
    """Weights have the type of the losses: both would be 0 or 1."""
    weigh = GradNorm()
    with pytest.raises(TypeError, match=r"losses has dtype torch\.int64"):
        weigh(torch.tensor([1, 2]), torch.tensor([3.0, 1.0]))
    assert not weigh.begun
