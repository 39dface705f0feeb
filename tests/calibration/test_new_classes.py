import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from spherescan.calibration import (
    append_cosines,
    class_direction,
    place_class,
    separated_direction,
)
from spherescan.nn import separated_prototypes
from tests.calibration.draws import clusters, randn, rotation, unit
from tests.tolerances import assert_close

STRENGTHS = [0.0, 0.5, 3.0, math.inf]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("strength", STRENGTHS)
def test_nothing_old_changes_by_a_bit(dtype, strength):
    prototypes = separated_prototypes(6, 16).points.to(dtype)
    z, _ = clusters(prototypes, 20, 0.3)
    z, before = z.to(dtype), prototypes.clone()
    cosines = z @ prototypes.T
    scores = cosines.clone()
    for seed in range(3):
        examples = clusters(unit(1, 16, seed=seed), 5, 0.2, seed=seed)[0].to(dtype)
        placed = place_class(examples, prototypes, strength=strength)
        assert placed.prototype.dtype == dtype
        grown = append_cosines(scores, z, placed.prototype)
        assert grown.dtype == dtype
        assert torch.equal(grown[:, : scores.shape[1]], scores)
        assert_close(grown[:, -1], z @ placed.prototype)
        scores = grown
    assert torch.equal(prototypes, before)
    assert torch.equal(scores[:, :6].argmax(1), cosines.argmax(1))


@given(
    n=st.integers(1, 6),
    d=st.integers(2, 6),
    seed=st.integers(0, 10**6),
    strength=st.sampled_from([0.0, 0.5, 3.0]),
)
def test_no_direction_fits_examples_and_prior_better(n, d, seed, strength):
    z, prior = unit(n, d, seed=seed), unit(d, seed=seed + 1)
    found = class_direction(z, prior=prior, strength=strength)
    others = torch.cat(
        (
            unit(50, d, seed=seed + 2),
            functional.normalize(found + 0.01 * randn(50, d, seed=seed + 3), dim=1),
        )
    )

    def log_posterior(direction):
        return (direction @ z.T).sum(-1) + strength * (direction @ prior)

    assert (log_posterior(others) <= log_posterior(found) + 1e-12).all()


def test_strength_leads_from_the_examples_to_the_prior():
    z, prior = unit(5, 8, seed=4), unit(8, seed=5)
    cosines = [
        float(class_direction(z, prior=prior, strength=strength) @ prior) for strength in STRENGTHS
    ]
    assert cosines == sorted(cosines)
    assert cosines[-1] == pytest.approx(1)
    assert_close(class_direction(z), functional.normalize(z.sum(0), dim=0))
    assert_close(class_direction(z[:1]), z[0])


@given(k=st.integers(1, 5), seed=st.integers(0, 10**6))
def test_a_separated_direction_is_the_nearest_at_right_angles_to_all(k, seed):
    prototypes, direction = unit(k, 7, seed=seed), unit(7, seed=seed + 1)
    found = separated_direction(direction, prototypes)
    assert found.norm().item() == pytest.approx(1)
    assert (prototypes @ found).abs().max() < 1e-12
    free = torch.linalg.svd(prototypes)[2][k:]
    others = functional.normalize(randn(100, 7 - k, seed=seed + 2) @ free, dim=1)
    assert (others @ direction <= found @ direction + 1e-12).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_simplex_leaves_a_direction_where_its_space_is_larger(dtype):
    # Of rank 5; turned, so that in float32 rounding leaves no direction exactly free.
    prototypes = (separated_prototypes(6, 6).points @ rotation(6, seed=1)).to(dtype)
    found = separated_direction(unit(6).to(dtype), prototypes)
    assert (prototypes.double() @ found).abs().max() < 1e-6
    with pytest.raises(ValueError, match="3 prototypes span the direction"):
        separated_direction(unit(2).to(dtype), separated_prototypes(3, 2).points.to(dtype))
    with pytest.raises(ValueError, match="1 prototypes span the direction"):
        separated_direction(prototypes[0], prototypes[:1])


def test_a_new_class_takes_the_nearest_free_reserved_prototype():
    points = separated_prototypes(6, 8).points
    old, reserved = points[:4], points[4:]
    examples, _ = clusters(reserved[1:] + 0.4 * old[:1], 5, 0.1)
    for strength in STRENGTHS:
        placed = place_class(examples, old, reserved=reserved, strength=strength)
        assert placed.reserved == 1
        assert placed.max_cosine == pytest.approx((old @ placed.prototype).max().item())
    assert_close(placed.prototype, reserved[1])
    # The other one is what is left.
    again = place_class(examples, old, reserved=reserved[:1], strength=math.inf)
    assert again.reserved == 0
    none_left = place_class(examples, old, reserved=reserved[:0], strength=math.inf)
    assert none_left.reserved is None
    assert (old @ none_left.prototype).abs().max() < 1e-12


@pytest.mark.parametrize("strength", STRENGTHS)
def test_rotating_everything_rotates_the_place(strength):
    turn = rotation(8, seed=9)
    old, examples, reserved = unit(4, 8, seed=1), unit(5, 8, seed=2), unit(2, 8, seed=3)
    for free, turned in ((None, None), (reserved, reserved @ turn)):
        placed = place_class(examples, old, reserved=free, strength=strength)
        moved = place_class(examples @ turn, old @ turn, reserved=turned, strength=strength)
        assert moved.reserved == placed.reserved
        assert_close(moved.prototype, placed.prototype @ turn)
        assert moved.max_cosine == pytest.approx(placed.max_cosine)


def test_a_class_is_learned_from_five_examples():
    points = separated_prototypes(5, 16).points
    unseen = functional.normalize(unit(1, 16, seed=3) + points[:1], dim=1)  # not far from class 0
    test, target = clusters(torch.cat((points, unseen)), 100, 0.1, seed=1)
    examples, _ = clusters(unseen, 5, 0.1, seed=2)
    placed = place_class(examples, points)
    predicted = append_cosines(test @ points.T, test, placed.prototype).argmax(1)
    right = (predicted == target).double()
    assert right[target == 5].mean() > 0.95
    assert right[target < 5].mean() > 0.99


def test_where_there_is_no_room_only_the_examples_speak():
    circle = separated_prototypes(4, 2).points
    examples = unit(1, 2)
    assert_close(place_class(examples, circle).prototype, examples[0])
    with pytest.raises(ValueError, match="span the direction"):
        place_class(examples, circle, strength=1.0)


E = torch.eye(3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: class_direction(E[:0]), "at least one"),
        (lambda: class_direction(torch.stack((E[0], -E[0]))), "cancel"),
        (lambda: class_direction(E[:1], prior=-E[0], strength=1.0), "cancel"),
        (lambda: class_direction(2 * E), "length 2"),
        (lambda: class_direction(E, prior=2 * E[0], strength=1.0), "prior directions has length 2"),
        (lambda: class_direction(E, strength=1.0), "no prior"),
        (lambda: class_direction(E, prior=E[0], strength=-1.0), "strength is -1"),
        (lambda: class_direction(E, prior=E[0], strength=math.nan), "strength is nan"),
        (lambda: class_direction(E / 0), "finite"),
        (lambda: separated_direction(2 * E[0], E), "directions has length 2"),
        (lambda: separated_direction(E[0], E[:0]), "at least one"),
        (lambda: place_class(E, E[:0]), "prototypes have the shape"),
        (lambda: place_class(E[:1], E, reserved=2 * E), "reserved prototypes has length 2"),
        (lambda: append_cosines(E, E, 2 * E[0]), "prototypes has length 2"),
        (lambda: append_cosines(E, 2 * E, E[0]), "embeddings has length 2"),
        (lambda: append_cosines(E / 0, E, E[0]), "cosines hold"),
        (lambda: append_cosines(E[:0], E[:0], E[0]), "at least one"),
    ],
)
def test_what_has_no_place_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
