"""What every aggregator promises; a new one is tested by its line in the registry.

The Rust trainer's forms keep an absolute epsilon and take two gradients; they are tested with
epsilon 0 here, and as they are in test_rust_trainer.py.
"""

import math
import re

import pytest
import torch

from spherescan.surgery import (
    AGGREGATORS,
    WEIGHTINGS,
    GradVac,
    aligned_mtl_weights,
    cagrad_weights,
    gram_matrix,
    imtl_g_weights,
    make_aggregator,
    make_weighting,
    mgda_weights,
    nash_mtl_weights,
    pcgrad_weights,
    upgrad_weights,
)
from tests.surgery.jacobians import random_jacobian

pytestmark = pytest.mark.unwatched

WEIGHTS = {
    "aligned_mtl": aligned_mtl_weights,
    "cagrad": cagrad_weights,
    "gradvac": lambda gram: GradVac().weights(gram),
    "imtl_g": imtl_g_weights,
    "mgda": mgda_weights,
    "nash_mtl": nash_mtl_weights,
    "pcgrad": pcgrad_weights,
    "upgrad": upgrad_weights,
}


@pytest.fixture(params=sorted(AGGREGATORS))
def name(request):
    return request.param


def build(name):
    """A fresh one each time: GradVac remembers."""
    return make_aggregator(name, **({"epsilon": 0.0} if name.startswith("rust_") else {}))


def jacobians(name, *, count=42):
    objectives = 2 if name.startswith("rust_") else None
    return [random_jacobian(index, objectives=objectives) for index in range(count)]


def test_there_is_one_direction_of_the_gradients_own_type(name):
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        direction = build(name)(torch.eye(2, 7, dtype=dtype))
        assert direction.shape == (7,)
        assert direction.dtype == dtype


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_any_scale_zero_rows_and_dependent_rows_stay_finite(name, dtype, generator):
    scales = [0.0, 1e-15, 1e-7, 1.0, 1e7, 1e15]
    for base in (
        torch.randn(3, 5, generator=generator),
        torch.randn(3, 1, generator=generator),  # rank 1, one parameter
        torch.randn(3, 1, generator=generator) @ torch.randn(1, 5, generator=generator),
        torch.tensor([[1.0, 2.0], [-1.0, -2.0], [1.0, 2.0]]),
        torch.ones(3, 4),
    ):
        for first in scales:
            for second in scales:
                rows = base.to(dtype) * torch.tensor([[first], [second], [1.0]], dtype=dtype)
                rows = rows[:2] if name.startswith("rust_") else rows
                assert build(name)(rows).isfinite().all(), (first, second)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.bool])
def test_gradients_that_are_no_floating_point_numbers_are_refused(name, dtype):
    """Weights of 1/4 and 3/4 would be rounded to 0."""
    rows = torch.tensor([[1, 0], [-1, 1]]).to(dtype)
    aggregate = build(name)
    with pytest.raises(TypeError, match=rf"jacobian has dtype {dtype}; .*float\(\)"):
        aggregate(rows)
    # Nothing was taken from them either.
    assert torch.equal(aggregate(rows.float()), build(name)(rows.float()))


@pytest.mark.parametrize("shape", [(), (3,), (2, 3, 4)])
def test_gradients_are_rows(name, shape):
    """Otherwise the sum of one gradient would be a number, and that of three axes a matrix."""
    expected = rf"jacobian has shape {re.escape(str(shape))}; .*\(objectives, parameters\)"
    with pytest.raises(ValueError, match=expected):
        build(name)(torch.ones(shape))


def test_no_gradients_are_refused(name):
    with pytest.raises(ValueError, match="no gradients were given"):
        build(name)(torch.zeros(0, 3))


@pytest.mark.parametrize("rows", [[[1.0, 2.0], [3.0, 4.0]], None])
def test_what_is_no_tensor_is_refused(name, rows):
    with pytest.raises(TypeError, match=rf"jacobian is of type {type(rows).__name__}"):
        build(name)(rows)


def test_zero_gradients_give_a_zero_direction(name):
    assert torch.equal(build(name)(torch.zeros(2, 4)), torch.zeros(4))


def test_no_parameters_give_an_empty_direction(name):
    assert build(name)(torch.zeros(2, 0)).shape == (0,)


@pytest.mark.parametrize("power", [-60, 60])
def test_positive_homogeneity(name, power):
    """Bit for bit where scaling rounds nothing."""
    for jacobian in jacobians(name):
        scale = 2.0**power
        assert torch.equal(build(name)(scale * jacobian), scale * build(name)(jacobian))


@pytest.mark.parametrize("scale", [3.0, 1e12])
def test_positive_homogeneity_up_to_rounding(name, scale):
    for jacobian in jacobians(name):
        if name == "aligned_mtl" and jacobian.norm(dim=1).log10().diff().abs().max() > 3:
            continue  # the smallest singular value has then lost its digits, see its Notes
        difference = build(name)(scale * jacobian) / scale - build(name)(jacobian)
        assert difference.norm() <= 1e-7 * terms(name, jacobian)


def test_a_common_rotation_turns_the_direction(name, generator):
    for index in range(40):
        t = 2 if name.startswith("rust_") else 2 + index % 5
        jacobian = torch.randn(t, 8, generator=generator, dtype=torch.float64)
        rotation, _ = torch.linalg.qr(torch.randn(8, 8, generator=generator, dtype=torch.float64))
        turned = build(name)(jacobian @ rotation)
        expected = build(name)(jacobian) @ rotation
        assert (turned - expected).norm() <= 1e-9 * terms(name, jacobian)


def test_aligned_rows_keep_the_direction_of_their_sum(name, generator):
    for index in range(20):
        t = 2 if name.startswith("rust_") else 2 + index % 5
        base = torch.randn(6, generator=generator, dtype=torch.float64)
        lengths = torch.logspace(-2, 2, t, dtype=torch.float64)[torch.randperm(t)]
        direction = build(name)(lengths[:, None] * base)
        cosine = torch.cosine_similarity(direction, base, dim=0)
        assert cosine > 1 - 1e-12
        assert direction.norm() >= 0.99 * lengths.min() * base.norm()


def test_one_row_returns_itself(name, generator):
    row = torch.randn(1, 9, generator=generator)
    if name.startswith("rust_"):
        with pytest.raises(ValueError, match="takes two"):
            build(name)(row)
    else:
        torch.testing.assert_close(build(name)(row), row[0], rtol=1e-6, atol=0)


def test_a_gradient_that_is_not_finite_is_seen(name):
    for bad in (torch.nan, torch.inf):
        direction = build(name)(torch.tensor([[bad, 1.0], [1.0, 2.0]]))
        assert not direction.isfinite().all()


def test_nothing_is_changed_in_place_and_calls_repeat(name):
    for jacobian in jacobians(name, count=14):
        before = jacobian.clone()
        first = build(name)(jacobian)
        assert torch.equal(build(name)(jacobian), first)
        assert torch.equal(jacobian, before)


@pytest.mark.parametrize("name", sorted(WEIGHTS))
def test_weights_come_from_the_gram_matrix_alone(name):
    """Many tensors: add their Gram matrices, then weigh each."""
    for jacobian in jacobians(name, count=21):
        half = jacobian.shape[1] // 2
        parts = [jacobian[:, :half], jacobian[:, half:]]
        weights = WEIGHTS[name](gram_matrix(parts[0]) + gram_matrix(parts[1]))
        whole = torch.cat([weights @ part for part in parts])
        size = terms(name, jacobian)
        assert (whole - build(name)(jacobian)).norm() <= 1e-7 * size
        assert (WEIGHTS[name](gram_matrix(jacobian).float()).dtype) == torch.float64


@pytest.mark.parametrize("name", sorted(WEIGHTS))
def test_weighing_nothing_is_refused(name):
    with pytest.raises(ValueError, match="no gradients"):
        WEIGHTS[name](torch.zeros(0, 0))


def test_gram_matrices_are_exact_in_parts(generator):
    jacobian = torch.randn(3, 200_000, generator=generator)
    expected = jacobian.double() @ jacobian.double().T
    torch.testing.assert_close(gram_matrix(jacobian), expected, rtol=1e-12, atol=1e-9)
    assert gram_matrix(torch.tensor([[1e30, 1.0]])).item() == pytest.approx(1e60)


def test_unknown_names_and_options_list_the_known_ones():
    with pytest.raises(ValueError, match=r"unknown surgery method 'pcgrd'; choose one of .*pcgrad"):
        make_aggregator("pcgrd")
    with pytest.raises(ValueError, match=r"'cagrad' has no option 'lam'; it has c"):
        make_aggregator("cagrad", lam=1.0)
    with pytest.raises(ValueError, match=r"'mgda' has no option 'c'; it has none"):
        make_aggregator("mgda", c=1.0)
    with pytest.raises(ValueError, match=r"unknown weighting 'dwa'; choose one of gradnorm, none"):
        make_weighting("dwa")
    with pytest.raises(ValueError, match="no option 'alpha'"):
        make_weighting("none", alpha=1.0)
    for c in (-1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match=f"c is {c}; it must be finite"):
            make_aggregator("cagrad", c=c)(torch.eye(2))


def test_options_arrive():
    rows = torch.tensor([[2.0, 0.0], [0.0, 4.0]])
    assert make_aggregator("cagrad", c=0.0)(rows).tolist() == [1.0, 2.0]
    assert make_aggregator("rust_pcgrad", local_scale=3.0)(rows).tolist() == [6.0, 4.0]
    assert make_aggregator("gradvac", beta=1.0).state_dict() == {"targets": []}
    assert set(WEIGHTINGS) == {"none", "gradnorm"}


def terms(name, jacobian):
    """The size of what is added: the direction itself may be the small rest of a cancellation."""
    norms = jacobian.norm(dim=1)
    if name not in WEIGHTS:
        return norms.sum()
    return (WEIGHTS[name](gram_matrix(jacobian)).abs() * norms).sum()
