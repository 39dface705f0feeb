"""What every prototype loss promises; a new one is tested by its line in the registry."""

import functools
import inspect
import math
import re

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional

from spherescan.losses import (
    PROTOTYPE_LOSSES,
    from_cosine,
    prototype_cosine_loss,
    prototype_softmax_loss,
    sphere_regression_loss,
    to_cosine,
)
from spherescan.nn import separated_prototypes
from tests.tolerances import assert_close


@pytest.fixture(params=sorted(PROTOTYPE_LOSSES))
def loss(request):
    function = PROTOTYPE_LOSSES[request.param]
    if "scale" in inspect.signature(function).parameters:
        return functools.partial(function, scale=9.0)
    return function


@pytest.fixture
def case(generator):
    z = torch.randn(2, 7, 5, generator=generator, dtype=torch.float64)
    prototypes = functional.normalize(
        torch.randn(4, 5, generator=generator, dtype=torch.float64), dim=1
    )
    return z, prototypes, torch.randint(0, 4, (2, 7), generator=generator)


def test_there_is_one_value_per_sample(loss, case):
    z, prototypes, target = case
    values = loss(z, prototypes, target)
    assert values.shape == target.shape
    assert_close(loss(z[1, 3], prototypes, target[1, 3]), values[1, 3])


def test_the_length_of_features_means_nothing(loss, case):
    z, prototypes, target = case
    assert_close(loss(1000 * z, prototypes, target), loss(z, prototypes, target))


def test_a_rotation_of_everything_means_nothing(loss, case, generator):
    z, prototypes, target = case
    rotation, _ = torch.linalg.qr(torch.randn(5, 5, generator=generator, dtype=torch.float64))
    rotated = loss(z @ rotation, prototypes @ rotation, target)
    assert_close(rotated, loss(z, prototypes, target))


def test_the_minimum_is_at_the_prototype(loss, generator):
    prototypes = separated_prototypes(4, 4).points.double()
    target = torch.arange(4)
    at_home = loss(prototypes, prototypes, target)
    for _ in range(20):
        nearby = prototypes + 0.1 * torch.randn(4, 4, generator=generator, dtype=torch.float64)
        assert (loss(nearby, prototypes, target) >= at_home).all()
    away = loss(-prototypes, prototypes, target)
    assert (away > at_home).all()


def test_gradcheck(loss, case):
    z, prototypes, target = case
    run = functools.partial(loss, target=target)
    assert torch.autograd.gradcheck(run, (z.requires_grad_(), prototypes.requires_grad_()))


def test_antipodes_and_zero_features_stay_finite(loss):
    prototypes = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    z = torch.tensor([[-1.0, 0.0], [1.0, 0.0], [0.0, 0.0]], requires_grad=True)
    values = loss(z, prototypes, torch.tensor([0, 0, 1]))
    values.sum().backward()
    assert values.isfinite().all()
    assert z.grad.isfinite().all()


def test_targets_may_be_of_any_integer_type(loss, case):
    z, prototypes, target = case
    assert torch.equal(loss(z, prototypes, target.int()), loss(z, prototypes, target))


def test_an_empty_batch_has_no_loss(loss):
    values = loss(torch.zeros(0, 3), torch.eye(3), torch.zeros(0, dtype=torch.long))
    assert values.shape == (0,)


@pytest.mark.parametrize("wrong", [-100, 4])
def test_a_target_outside_the_classes_is_refused(loss, case, wrong):
    z, prototypes, target = case
    target[1, 2] = wrong
    with pytest.raises(ValueError, match=r"must lie in 0\.\.3"):
        loss(z, prototypes, target)


def test_squared_cosine_is_that_of_the_paper():
    z = torch.tensor([[1.0, 1.0]])
    value = prototype_cosine_loss(z, torch.tensor([[0.0, 5.0]]), torch.tensor([0]))
    assert_close(value, torch.tensor([(1 - math.sqrt(0.5)) ** 2]))


def test_softmax_is_cross_entropy_of_scaled_cosines(case):
    z, prototypes, target = case
    cosines = functional.cosine_similarity(z[:, :, None], prototypes, dim=-1)
    expected = -(6 * cosines).log_softmax(-1).gather(-1, target[..., None])[..., 0]
    assert_close(prototype_softmax_loss(z, prototypes, target, scale=6.0), expected)


def test_a_margin_asks_for_more(case):
    z, prototypes, target = case
    plain = prototype_softmax_loss(z, prototypes, target, scale=6.0)
    strict = prototype_softmax_loss(z, prototypes, target, scale=6.0, margin=0.2)
    assert (strict > plain).all()
    with pytest.raises(ValueError, match="scale is 0"):
        prototype_softmax_loss(z, prototypes, target, scale=0.0)


def test_regression_is_a_cosine_between_two_poles(generator):
    pole = torch.tensor([0.0, 1.0], dtype=torch.float64)
    z = torch.tensor([[0.0, 3.0], [2.0, 0.0], [0.0, -0.1]], dtype=torch.float64)
    target = torch.tensor([1.0, 0.0, -1.0], dtype=torch.float64)
    assert_close(sphere_regression_loss(z, pole, target), torch.zeros(3, dtype=torch.float64))
    assert_close(sphere_regression_loss(z, pole, -target), torch.tensor([4.0, 0.0, 4.0]))
    z = torch.randn(6, 2, generator=generator, dtype=torch.float64, requires_grad=True)
    wanted = torch.rand(6, generator=generator, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda z: sphere_regression_loss(z, pole, wanted), z)


def test_the_map_between_values_and_cosines_inverts():
    values = torch.tensor([-3.0, 0.0, 4.0, 7.0], dtype=torch.float64)
    cosines = to_cosine(values, lower=-3.0, upper=7.0)
    assert cosines[0] == -1
    assert cosines[-1] == 1
    assert_close(from_cosine(cosines, lower=-3.0, upper=7.0), values)
    for function in (to_cosine, from_cosine):
        with pytest.raises(ValueError, match="empty"):
            function(values, lower=1.0, upper=1.0)


@pytest.mark.unwatched
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bool])
def test_targets_that_are_no_integers_are_refused(loss, case, dtype):
    """As integers 0.9 and 1.9 would be 0 and 1."""
    z, prototypes, target = case
    with pytest.raises(TypeError, match=rf"targets are {dtype}; .*pass target.long\(\)"):
        loss(z, prototypes, target.to(dtype))


@pytest.mark.unwatched
@pytest.mark.parametrize("shape", [(2, 7, 1), (2, 1), (1, 7), (3, 7), (14,), ()])
def test_there_is_one_target_per_sample(loss, case, shape):
    """A column would be compared with every sample, and one target taken for all."""
    z, prototypes, _ = case
    with pytest.raises(ValueError, match=rf"target has shape {re.escape(str(shape))}; .*\(2, 7\)"):
        loss(z, prototypes, torch.zeros(shape, dtype=torch.long))


@pytest.mark.unwatched
def test_prototypes_are_as_wide_as_the_features(loss, case):
    z, prototypes, target = case
    with pytest.raises(ValueError, match=r"prototypes has shape \(4, 1\); expected \(4, 5\)"):
        loss(z, prototypes[:, :1], target)


def test_a_margin_has_the_digits_of_the_logits(case):
    z, prototypes, target = case
    cosines = functional.cosine_similarity(z[:, :, None], prototypes, dim=-1)
    own = functional.one_hot(target, 4).double()
    logits = 6 * (cosines - 0.1 * own)
    expected = -logits.log_softmax(-1).gather(-1, target[..., None])[..., 0]
    found = prototype_softmax_loss(z, prototypes, target, scale=6.0, margin=0.1)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)


@pytest.mark.unwatched
@pytest.mark.parametrize("shape", [(5, 1), (1,), (4,), ()])
def test_regression_has_one_target_per_sample(shape):
    z, pole = torch.ones(5, 3), torch.ones(3)
    with pytest.raises(ValueError, match=rf"target has shape {re.escape(str(shape))}; .*\(5,\)"):
        sphere_regression_loss(z, pole, torch.zeros(shape))
    with pytest.raises(ValueError, match=r"pole has shape \(1,\); expected \(3,\)"):
        sphere_regression_loss(z, pole[:1], torch.zeros(5))


def test_regression_is_mapped_and_traced_with_its_check(generator):
    z, pole, target = (torch.randn(*shape, generator=generator) for shape in ((5, 3), (3,), (5,)))
    expected = sphere_regression_loss(z, pole, target)
    mapped = torch.func.vmap(sphere_regression_loss, in_dims=(0, None, 0))
    assert_close(mapped(z, pole, target), expected)
    traced = make_fx(sphere_regression_loss)(z, pole, target)
    assert_close(traced(z, pole, target), expected)
    with FakeTensorMode() as mode:
        fake = [mode.from_tensor(each) for each in (z, pole, target)]
        assert sphere_regression_loss(*fake).shape == (5,)


@pytest.mark.parametrize(
    "bounds", [(0.0, math.inf), (-math.inf, 0.0), (-math.inf, math.inf), (-1e308, 1e308)]
)
def test_a_range_has_a_finite_width(bounds):
    """All values would be at the lower pole."""
    for function in (to_cosine, from_cosine):
        with pytest.raises(ValueError, match=r"no finite width; give finite bounds"):
            function(torch.ones(2), lower=bounds[0], upper=bounds[1])
