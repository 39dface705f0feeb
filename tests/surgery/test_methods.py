"""What each method says of itself, on small numbers."""

import itertools
import json
import math

import pytest
import torch

from spherescan.surgery import (
    GradVac,
    cagrad,
    cagrad_weights,
    gram_matrix,
    imtl_g,
    mgda,
    nash_mtl,
    nash_mtl_weights,
    pcgrad,
    upgrad,
)
from tests.surgery.jacobians import random_jacobian
from tests.surgery.reference import cagrad_reference, mgda_reference


def pairs(count=60):
    return [random_jacobian(index, objectives=2) for index in range(count)]


def test_pcgrad_leaves_friends_alone_and_removes_a_conflict():
    friends = torch.tensor([[1.0, 0.0], [1.0, 2.0]])
    assert pcgrad(friends).tolist() == [2.0, 2.0]
    # g_1 - (-1/2) g_2 = (.5, .5);  g_2 - (-1/1) g_1 = (0, 1)
    assert pcgrad(torch.tensor([[1.0, 0.0], [-1.0, 1.0]])).tolist() == [0.5, 1.5]


def test_pcgrad_is_the_published_loop_in_either_order():
    """Algorithm 1 on the vectors themselves."""
    for index in range(50):
        jacobian = random_jacobian(index)
        t = len(jacobian)
        generator = torch.Generator().manual_seed(index)
        drawn = [
            [j for j in torch.randperm(t, generator=generator).tolist() if j != i] for i in range(t)
        ]
        circle = [[(i + step) % t for step in range(1, t)] for i in range(t)]
        for orders, given in ((circle, None), (drawn, generator.manual_seed(index))):
            expected = torch.zeros_like(jacobian[0])
            for i, order in enumerate(orders):
                projected = jacobian[i].clone()
                for j in order:
                    product = projected @ jacobian[j]
                    if product < 0:
                        projected -= product / jacobian[j].square().sum() * jacobian[j]
                expected += projected
            error = (pcgrad(jacobian, generator=given) - expected).norm()
            assert error <= 1e-10 * jacobian.norm(dim=1).sum()


def test_two_objectives_make_upgrad_half_of_pcgrad():
    for jacobian in pairs():
        size = jacobian.norm(dim=1).sum()
        assert (2 * upgrad(jacobian) - pcgrad(jacobian)).norm() <= 1e-12 * size


def test_upgrad_and_mgda_conflict_with_no_gradient():
    for index in range(140):
        jacobian = random_jacobian(index)
        norms = jacobian.norm(dim=1)
        for direction in (upgrad(jacobian), mgda(jacobian)):
            assert (jacobian @ direction >= -1e-7 * norms * norms.max()).all()


def test_mgda_goes_halfway_between_equals_and_all_the_way_to_the_shortest():
    assert mgda(torch.tensor([[2.0, 0.0], [0.0, 2.0]])).tolist() == [1.0, 1.0]
    assert mgda(torch.tensor([[1.0, 0.0], [3.0, 5.0]])).tolist() == [1.0, 0.0]
    assert mgda(torch.tensor([[3.0, 5.0], [1.0, 0.0]])).tolist() == [1.0, 0.0]
    triangle = torch.tensor([[1.0, 0.0], [-0.5, 0.75**0.5], [-0.5, -(0.75**0.5)]])
    assert mgda(triangle).norm() < 1e-6


def test_imtl_g_has_equal_projections():
    for index in range(140):
        jacobian = (
            torch.randn(
                2 + index % 5,
                30,
                generator=torch.Generator().manual_seed(index),
                dtype=torch.float64,
            )
            * torch.logspace(-6, 6, 2 + index % 5, dtype=torch.float64)[:, None]
        )
        unit = jacobian / jacobian.norm(dim=1, keepdim=True)
        projections = unit @ imtl_g(jacobian)
        spread = projections.max() - projections.min()
        assert spread <= 1e-9 * projections.abs().max()


def test_imtl_g_may_point_against_every_gradient():
    """The sum of three weights can be negative before it is made 1."""
    jacobian = torch.tensor([[1.0, 0.0, 0.2], [0.0, 1.0, 0.2], [0.05, 0.05, 0.0]])
    assert (jacobian @ imtl_g(jacobian) < 0).all()


def test_nash_mtl_converges_where_full_newton_steps_do_not():
    jacobian = torch.tensor(
        [[0.56, 0.74, -0.36], [0.8, 0.5, 0.32], [-0.75, 0.46, 0.47], [0.03, 1.0, 0.09],
         [0.77, 0.43, 0.47], [-0.79, 0.29, -0.54]], dtype=torch.float64,
    )  # fmt: skip
    gram = gram_matrix(jacobian)
    alpha = nash_mtl_weights(gram) / gram.norm().sqrt()
    torch.testing.assert_close(alpha * (gram @ alpha), torch.ones(6, dtype=torch.float64))


@pytest.mark.parametrize("t", [23, 24, 50, 200])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nash_mtl_of_many_gradients_without_a_common_direction_is_zero(t, dtype, generator):
    jacobian = torch.randn(t, 3, generator=generator, dtype=dtype)
    assert (jacobian @ torch.randn(3, 10000, generator=generator, dtype=dtype) < 0).any(0).all()
    assert not nash_mtl(jacobian).any()


@pytest.mark.unwatched
@pytest.mark.parametrize("angle", [1e-4, 1e-7, 1e-10])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_almost_parallel_and_almost_opposite_gradients(angle, sign, generator):
    """The Gram matrix sees a part of 1e-8 of a gradient; nothing worse may come of it."""
    for index in range(12):
        noise = torch.randn(2 + index % 3, 8, generator=generator, dtype=torch.float64)
        jacobian = noise[0] * (1 + 10 * angle * noise[:, :1]) + angle * noise
        jacobian[0] *= sign
        size = jacobian.norm()
        assert (mgda(jacobian) - mgda_reference(jacobian)).norm() <= 1e-6 * size
        expected = cagrad_reference(jacobian, c=0.5)
        assert (cagrad(jacobian, c=0.5) - expected).norm() <= 1e-6 * size


def test_gradients_thirty_orders_of_magnitude_apart(generator):
    for scales in itertools.product([1e-15, 1e-7, 1.0, 1e15], repeat=3):
        jacobian = torch.randn(3, 3, generator=generator, dtype=torch.float64)
        jacobian *= torch.tensor(scales, dtype=torch.float64)[:, None]
        for ours, exact in (
            (mgda(jacobian), mgda_reference(jacobian)),
            (cagrad(jacobian, c=0.5), cagrad_reference(jacobian, c=0.5)),
        ):
            assert (ours - exact).norm() <= 1e-9 * exact.norm(), scales


def test_nash_mtl_takes_no_notice_of_one_gradients_length():
    for index in range(40):
        jacobian = random_jacobian(7 * index)
        stretched = jacobian.clone()
        stretched[0] *= 1000
        first, second = nash_mtl(jacobian), nash_mtl(stretched)
        if first.any() and len(jacobian) <= jacobian.shape[1]:
            assert torch.cosine_similarity(first, second, dim=0) > 1 - 1e-9
            length = (len(jacobian) * gram_matrix(jacobian).norm()).sqrt()
            assert first.norm().item() == pytest.approx(length.item())


@pytest.mark.parametrize("c", [0.1, 0.5, 0.9, 1.5])
def test_cagrad_of_two_is_the_best_point_of_a_fine_grid_on_its_ball(c):
    """max over |d - g_0| <= c |g_0| of min_i <g_i, d>; the best point lies on the circle."""
    for index in range(60):
        generator = torch.Generator().manual_seed(index)
        jacobian = torch.randn(2, 2, generator=generator, dtype=torch.float64)
        jacobian *= torch.tensor([[1.0], [10.0 ** (index % 5 - 2)]])
        mean = jacobian.mean(dim=0)
        radius = c * mean.norm()
        centre, width = 0.0, math.pi
        for _ in range(4):  # refined to 1e-10; the minimum of two sinusoids has one top in the end
            angles = torch.linspace(centre - width, centre + width, 2001, dtype=torch.float64)
            ball = mean[:, None] + radius * torch.stack([angles.cos(), angles.sin()])
            worst = (jacobian @ ball).amin(dim=0)
            centre, width = float(angles[worst.argmax()]), width / 250
        direction = cagrad(jacobian, c=c)
        assert (direction - mean).norm() <= radius * (1 + 1e-12)
        size = jacobian.norm() * radius
        assert (jacobian @ direction).min().item() == pytest.approx(
            worst.max().item(), abs=1e-8 * size.item()
        )


def test_cagrad_of_two_agrees_with_the_solver_for_many(generator):
    """A third gradient that is always better off changes nothing but the mean."""
    for index in range(60):
        jacobian = torch.randn(2, 6, generator=generator, dtype=torch.float64)
        doubled = torch.cat([jacobian, jacobian])  # the same mean, the same worst off
        pair = cagrad(jacobian, c=0.5)
        assert (pair - cagrad(doubled, c=0.5)).norm() <= 1e-9 * jacobian.norm(), index


def test_cagrad_lies_between_the_mean_and_beyond():
    jacobian = torch.tensor([[4.0, 0.0], [0.0, 1.0]])
    assert torch.equal(cagrad(jacobian, c=0.0), jacobian.mean(dim=0))
    # At c = 1 the worse objective, the second, is all that is helped until both are equal.
    small = jacobian @ cagrad(jacobian, c=0.2)
    large = jacobian @ cagrad(jacobian, c=0.8)
    assert small[1] < large[1]


def test_cagrad_is_not_stopped_by_an_objective_that_is_done():
    jacobian = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    assert cagrad(jacobian, c=0.5).tolist() == [1.5 * 1.5, 1.5 * 2.0]


def test_cagrad_without_a_way_out_conflicts_with_none():
    """Opposite gradients and a ball that holds a vector orthogonal to them."""
    jacobian = torch.tensor([[1.0, 0.0], [-2.0, 0.0]], dtype=torch.float64)
    assert cagrad(jacobian, c=1.5).abs().max() < 1e-12
    third = torch.tensor([[1.0, 0.0], [-2.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    nearest = torch.tensor([0.0, 1 / 3], dtype=torch.float64)
    torch.testing.assert_close(cagrad(third, c=1.5), nearest, atol=1e-12, rtol=0)
    third[1] = torch.tensor([-1.0, 0.0])  # now the mean itself conflicts with none
    torch.testing.assert_close(cagrad(third, c=0.5), nearest, atol=1e-12, rtol=0)
    with pytest.raises(ValueError, match=r"c is -0\.5"):
        cagrad_weights(torch.eye(2), c=-0.5)


def test_gradvac_turns_a_gradient_until_the_cosine_is_the_target():
    vaccine = GradVac()
    vaccine.load_state_dict({"targets": [[0.0, 0.6], [-1.0, 0.0]]})
    jacobian = torch.tensor([[1.0, 0.0], [0.0, 2.0]], dtype=torch.float64)
    turned = vaccine(jacobian) - jacobian[1]  # the second asks for nothing
    assert torch.cosine_similarity(turned, jacobian[1], dim=0).item() == pytest.approx(0.6)
    assert turned[0] == 1
    [[_, first], [second, _]] = vaccine.state_dict()["targets"]
    assert first == pytest.approx(0.99 * 0.6)  # beta 0.01 of a cosine 0
    assert second == pytest.approx(-0.99)


def test_gradvac_begins_as_pcgrad():
    for index in range(30):
        jacobian = random_jacobian(index)
        size = jacobian.norm(dim=1).sum()
        assert (GradVac()(jacobian) - pcgrad(jacobian)).norm() <= 1e-9 * size


def test_gradvac_learns_nothing_from_a_gradient_that_it_has_cancelled(generator):
    """The first loses all to the second; what is left of it has no cosine with the third."""
    for _ in range(30):
        base = torch.randn(30, generator=generator, dtype=torch.float64)
        vaccine = GradVac(beta=0.5)
        vaccine(torch.tensor([[1.0], [-2.3], [0.7]]) * base)
        [[_, second, third], *_] = vaccine.state_dict()["targets"]
        assert second == pytest.approx(-0.5)
        assert third == 0


def test_gradvac_stays_finite_at_a_target_of_one():
    vaccine = GradVac(beta=1.0)
    vaccine(torch.ones(2, 3))
    assert vaccine.state_dict()["targets"][0][1] == 1.0
    direction = vaccine(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    assert direction.isfinite().all()
    assert direction.norm() < 2000


def test_gradvac_goes_on_from_its_state_bit_for_bit(generator):
    steps = torch.randn(7, 3, 5, generator=generator)
    whole = GradVac(beta=0.3)
    states, expected = [], []
    for step in steps:
        states.append(json.loads(json.dumps(whole.state_dict())))
        expected.append(whole(step))
    for start, state in enumerate(states):
        resumed = GradVac(beta=0.3)
        resumed.load_state_dict(state)
        for step, direction in zip(steps[start:], expected[start:], strict=True):
            assert torch.equal(resumed(step), direction)


def test_gradvac_refuses_what_it_cannot_mean(generator):
    with pytest.raises(ValueError, match=r"beta is 1\.5"):
        GradVac(beta=1.5)
    vaccine = GradVac(generator=generator)
    vaccine(torch.ones(3, 2))
    with pytest.raises(ValueError, match="2 gradients were given; the targets are those of 3"):
        vaccine(torch.ones(2, 2))
    before = vaccine.state_dict()
    assert vaccine(torch.full((3, 2), torch.nan)).isnan().all()
    assert vaccine.state_dict() == before
