import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spherescan.features import sphere_ridge
from spherescan.features.sphere_ridge import cosine_of_height
from spherescan.losses import sphere_regression_loss

pytestmark = pytest.mark.unwatched


def problem(seed: int, n: int, f: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, f, generator=generator, dtype=torch.float64)
    z = x @ torch.randn(f, generator=generator, dtype=torch.float64) / f**0.5
    noise = 0.3 * torch.randn(n, generator=generator, dtype=torch.float64)
    return 2 + x, cosine_of_height(z + 0.2 + noise)


@given(st.integers(0, 99), st.integers(2, 30), st.integers(1, 12))
def test_it_is_a_minimum_of_the_loss_of_regression_onto_the_sphere(seed, n, f):
    x, target = problem(seed, n, f)
    fitted = sphere_ridge(x, target, penalties=[0.3])
    weight, bias = fitted.weight.clone().requires_grad_(), fitted.bias.clone().requires_grad_()

    def objective() -> torch.Tensor:
        z = torch.stack([x @ weight + bias, torch.ones(n, dtype=torch.float64)], 1)
        pole = torch.tensor([1.0, 0.0], dtype=torch.float64)
        return sphere_regression_loss(z, pole, target).sum() + 0.3 * weight.square().sum()

    gradients = torch.autograd.grad(objective(), [weight, bias])
    assert max(float(g.abs().max()) for g in gradients) < 1e-3
    lost = float(objective().detach())
    generator = torch.Generator().manual_seed(seed)
    for size in (1e-3, 1e-2, 1e-1):
        with torch.no_grad():
            weight += size * torch.randn(f, generator=generator, dtype=torch.float64)
            bias += size * torch.randn((), generator=generator, dtype=torch.float64)
            assert float(objective()) > lost - 1e-9
        with torch.no_grad():
            weight.copy_(fitted.weight)
            bias.copy_(fitted.bias)


def test_each_sample_left_out_is_nearly_what_a_fit_without_it_says():
    x, target = problem(3, 40, 8)
    fitted = sphere_ridge(x, target, penalties=[0.3])
    away, near = [], []
    for i in range(40):
        rest = torch.arange(40) != i
        without = sphere_ridge(x[rest], target[rest], penalties=[0.3])(x[i : i + 1])[0]
        away.append(float((fitted(x[i : i + 1])[0] - without).abs()))
        near.append(float((fitted.left_out[i] - without).abs()))
    assert sum(near) < 0.15 * sum(away)


def test_the_penalty_is_chosen_by_samples_left_out():
    x, target = problem(0, 60, 8)
    shuffled = target[torch.randperm(60, generator=torch.Generator().manual_seed(1))]
    chosen = [sphere_ridge(x, t, penalties=[1e-1, 1e4]).penalty for t in (target, shuffled)]
    assert chosen == [1e-1, 1e4]


def test_values_that_are_all_the_same_are_learnt():
    fitted = sphere_ridge(torch.eye(4, dtype=torch.float64), torch.full((4,), 0.25))
    assert fitted(torch.zeros(1, 4, dtype=torch.float64))[0] == pytest.approx(0.25)
    assert fitted.left_out.tolist() == pytest.approx([0.25] * 4)


def test_a_target_that_is_a_whole_number_is_refused():
    with pytest.raises(TypeError, match=r"target has dtype torch.int64"):
        getattr(sphere_ridge, "__wrapped__", sphere_ridge)(torch.ones(3, 2), torch.zeros(3).long())


@pytest.mark.parametrize("target", [[0.0, 1.0], [-1.0, 0.5], [float("nan"), 0.0]])
def test_a_target_that_no_point_has_is_refused(target):
    with pytest.raises(ValueError, match="not between -1 and 1"):
        sphere_ridge(torch.ones(2, 1), torch.tensor(target))


def test_narrow_features_are_widened_in_parts_with_the_same_bits(monkeypatch):
    module = sys.modules["spherescan.features.ridge"]
    x = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    goal = torch.linspace(-0.8, 0.8, 40, dtype=torch.float64)
    monkeypatch.setattr(module, "_AT_ONCE", 16)
    found, expected = sphere_ridge(x, goal), sphere_ridge(x.double(), goal)
    for name in ("weight", "bias", "left_out"):
        assert torch.equal(getattr(found, name), getattr(expected, name))
    assert torch.equal(found(x), expected(x.double()))


def test_targets_at_the_poles_do_not_begin_where_nothing_has_a_slope(generator):
    x = torch.randn(40, 2, generator=generator, dtype=torch.float64)
    goal = torch.where(torch.arange(40) < 24, 1 - 1e-6, 1e-6 - 1).double()
    fitted = sphere_ridge(x, goal)
    constant = (goal - goal.mean()).square().sum()
    assert (goal - fitted(x)).square().sum() <= constant
