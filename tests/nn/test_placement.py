import math
import time

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from spherescan.nn import placement, separation
from spherescan.nn.placement import Placement, separated_prototypes
from spherescan.nn.separation import separation_bound

pytestmark = pytest.mark.unwatched

ROUNDING = 1e-15  # of one inner product of unit vectors in float64
PATIENCE = 5.0  # seconds for one call on one thread, several times what a quiet machine needs

# Sharp codes (k, d) with the cosine that is both reached and proved: Cohn and Kumar,
# "Universally optimal distribution of points on spheres", 2007, arXiv:math/0607446, table 1.
SHARP = {
    (12, 3): 1 / math.sqrt(5),
    (16, 5): 1 / 5,
    (27, 6): 1 / 4,
    (56, 7): 1 / 3,
    (240, 8): 1 / 2,
    (112, 21): 1 / 9,
    (162, 21): 1 / 7,
    (100, 22): 1 / 11,
    (275, 22): 1 / 6,
    (891, 22): 1 / 4,
    (552, 23): 1 / 5,
    (4600, 23): 1 / 3,
    (196560, 24): 1 / 2,
}

# The Tammes problem: degrees between the closest of k points in three dimensions, proved optimal.
TAMMES = {
    7: 77.8695421,
    8: 74.8584922,
    9: 70.5287794,
    10: 66.1468220,
    14: 55.6705700,
    24: 43.6907671,
}

# No closed form and no proof: what first-order steps on log-sum-exp reached, already well below the
# 0.3765 and 0.1335 of Mettes et al. (2019).
REACHED = {(100, 10): 0.3407, (100, 25): 0.1113}


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def largest_cosine(points: torch.Tensor) -> float:
    gram = points @ points.T
    return gram[~torch.eye(len(points), dtype=torch.bool)].max().item()


def check_certificate(placed: Placement, k: int, d: int) -> None:
    assert placed.points.shape == (k, d)
    assert placed.points.dtype == torch.float64
    norms = placed.points.norm(dim=1)
    assert_close(norms, torch.ones_like(norms), rtol=0, atol=ROUNDING)
    assert placed.max_cosine == pytest.approx(largest_cosine(placed.points), abs=ROUNDING)
    assert placed.lower_bound == separation_bound(k, d)
    assert placed.lower_bound <= placed.max_cosine + ROUNDING


@pytest.mark.parametrize(
    ("k", "d"), [(2, 1), (2, 5), (3, 2), (4, 3), (5, 9), (8, 7), (41, 40), (100, 100)]
)
def test_simplex_is_optimal_to_rounding(k, d):
    placed = separated_prototypes(k, d)
    check_certificate(placed, k, d)
    gram = torch.full((k, k), -1 / (k - 1), dtype=torch.float64).fill_diagonal_(1.0)
    assert_close(placed.points @ placed.points.T, gram, rtol=0, atol=ROUNDING)
    assert placed.max_cosine == pytest.approx(placed.lower_bound, abs=ROUNDING)


@pytest.mark.parametrize(
    ("k", "d"), [(4, 2), (5, 3), (6, 3), (20, 10), (11, 7), (100, 50), (200, 100)]
)
def test_orthoplex_is_optimal_exactly(k, d):
    placed = separated_prototypes(k, d)
    check_certificate(placed, k, d)
    assert placed.max_cosine == 0.0 == placed.lower_bound


@pytest.mark.parametrize("k", [3, 4, 5, 6, 17, 1000])
def test_two_dimensions_give_the_regular_polygon(k):
    placed = separated_prototypes(k, 2)
    check_certificate(placed, k, 2)
    assert placed.max_cosine == pytest.approx(math.cos(2 * math.pi / k), abs=ROUNDING)
    assert placed.lower_bound == pytest.approx(placed.max_cosine, abs=ROUNDING)


def test_a_single_class_has_no_neighbour():
    for d in (1, 2, 9):
        placed = separated_prototypes(1, d)
        assert placed.points.norm().item() == 1.0
        assert placed.max_cosine == -1.0 == placed.lower_bound


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(("k", "d"), [(12, 3), (16, 5), (27, 6), (56, 7)])
def test_sharp_codes_are_found(k, d, seed):
    placed = separated_prototypes(k, d, generator=seeded(seed))
    check_certificate(placed, k, d)
    assert placed.max_cosine == pytest.approx(SHARP[k, d], abs=1e-6)


@pytest.mark.parametrize("k", TAMMES)
def test_tammes_optima_are_found(k):
    placed = separated_prototypes(k, 3)
    check_certificate(placed, k, 3)
    assert placed.max_cosine == pytest.approx(math.cos(math.radians(TAMMES[k])), abs=1e-6)


@pytest.mark.parametrize(("k", "d"), REACHED)
def test_a_hundred_classes_are_well_separated_in_time(k, d):
    start = time.perf_counter()
    placed = separated_prototypes(k, d)
    assert time.perf_counter() - start < PATIENCE
    check_certificate(placed, k, d)
    assert placed.max_cosine <= REACHED[k, d]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 9))
@pytest.mark.parametrize(("k", "d"), REACHED)
def test_the_separation_is_not_the_seeds_luck(k, d, seed):
    assert separated_prototypes(k, d, generator=seeded(seed)).max_cosine <= REACHED[k, d]


@pytest.mark.slow
def test_thousands_of_classes_take_less_than_a_minute():
    start = time.perf_counter()
    placed = separated_prototypes(5000, 64)
    assert time.perf_counter() - start < 60
    assert placed.max_cosine < 0.3  # random points: 0.58
    assert placed.lower_bound < placed.max_cosine


@pytest.mark.parametrize("work", [1e7, 4e5])
def test_less_work_means_fewer_evaluations_and_still_a_placement(monkeypatch, work):
    k, d = 90, 8
    calls = []
    evaluate = placement._evaluate
    monkeypatch.setattr(placement, "WORK", work)
    monkeypatch.setattr(placement, "_evaluate", lambda *a: calls.append(a) or evaluate(*a))
    placed = separated_prototypes(k, d)
    check_certificate(placed, k, d)
    # A line search in progress may end after the last evaluation of each temperature.
    affordable = max(work / (k * k * (d + placement.OVERHEAD)), placement.FEWEST_EVALUATIONS)
    assert len(calls) <= affordable + 16
    random = torch.nn.functional.normalize(torch.randn(k, d, generator=seeded(0)), dim=1)
    assert placed.max_cosine < largest_cosine(random) - 0.1


@pytest.mark.parametrize("k", [3, 256, 257, 700])
def test_blocks_make_no_difference(k, monkeypatch):
    points = torch.randn(k, 4, generator=seeded(0), dtype=torch.float64)
    points = points / points.norm(dim=1, keepdim=True)
    points.requires_grad_()
    gram = (points @ points.T).fill_diagonal_(-math.inf)
    value = torch.logsumexp(30.0 * gram.flatten(), dim=0) / 30.0
    (gradient,) = torch.autograd.grad(value, points)
    points = points.detach()
    gradient = gradient - (gradient * points).sum(dim=1, keepdim=True) * points
    found = placement._evaluate(points, 30.0)
    assert found.value == pytest.approx(value.item(), abs=1e-13)
    assert_close(found.gradient, gradient, rtol=0, atol=1e-13)


@pytest.mark.parametrize(("k", "d"), SHARP)
def test_bound_is_attained_at_sharp_codes(k, d):
    assert separation_bound(k, d) == pytest.approx(SHARP[k, d], abs=1e-9)


@pytest.mark.parametrize("degree", range(3, 10))
@pytest.mark.parametrize("d", [3, 4, 9, 24])
def test_levenshtein_pieces_rise_from_design_to_design(d, degree):
    low, high = separation._levenshtein_interval(d, degree)
    inside = [low + (high - low) * i / 50 for i in range(51)]
    sizes = [separation._levenshtein(d, degree, s) for s in inside]
    assert sizes == sorted(sizes)
    assert sizes[0] == pytest.approx(separation._design_size(d, degree), rel=1e-9)
    assert sizes[-1] == pytest.approx(separation._design_size(d, degree + 1), rel=1e-9)


def test_bound_of_a_hundred_points_in_25_dimensions():
    assert separation_bound(100, 25) == pytest.approx(0.068757, abs=1e-6)


@given(k=st.integers(1, 3000), d=st.integers(2, 40))
def test_bound_grows_with_classes_and_falls_with_dimensions(k, d):
    here = separation_bound(k, d)
    assert -1.0 <= here <= separation_bound(k + 1, d) + 1e-12 < 1.0
    assert separation_bound(k, d + 1) <= here + 1e-12


@given(k=st.integers(2, 40), d=st.integers(2, 8))
def test_bound_holds_for_what_is_found(k, d):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(placement, "MOST_EVALUATIONS", 100)  # the bound holds for rough ones too
        check_certificate(separated_prototypes(k, d), k, d)


def test_same_seed_same_points():
    first, second = (separated_prototypes(12, 3, generator=seeded(5)).points for _ in range(2))
    assert torch.equal(first, second)
    other = separated_prototypes(12, 3, generator=seeded(6)).points
    assert not torch.equal(first, other)


def test_default_points_are_fixed_and_leave_the_global_generator_alone():
    torch.manual_seed(1)
    first = separated_prototypes(12, 3).points
    torch.manual_seed(2)
    before = torch.get_rng_state()
    second = separated_prototypes(12, 3).points
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("k", "d"), [(0, 3), (-1, 3), (3, 0), (3, -2), (3, 1)])
@pytest.mark.parametrize("function", [separated_prototypes, separation_bound])
def test_impossible_sizes_are_refused(function, k, d):
    with pytest.raises(ValueError, match=rf"got (n_classes=)?{k if k < 1 or d == 1 else d}"):
        function(k, d)


@pytest.mark.parametrize("size", [2.0, "2", None, torch.tensor(2.0)])
@pytest.mark.parametrize("function", [separated_prototypes, separation_bound])
def test_sizes_that_are_no_whole_numbers_are_refused(function, size):
    with pytest.raises(TypeError, match="n_classes must be a whole number"):
        function(size, 2)
    with pytest.raises(TypeError, match="dim must be a whole number"):
        function(2, size)


@pytest.mark.parametrize("kind", [np.int64, np.int32, torch.tensor])
def test_whole_numbers_may_be_of_any_type(kind):
    placed = separated_prototypes(kind(3), kind(2))
    assert torch.equal(placed.points, separated_prototypes(3, 2).points)


@pytest.mark.parametrize(("k", "d"), [(10**6, 3), (10**6, 64), (10**12, 3), (10**5, 10**5)])
def test_what_would_take_hours_is_refused_at_once(k, d):
    if k < 2**31:
        k, d = np.int32(k), np.int32(d)
    start = time.perf_counter()
    with pytest.raises(ValueError, match=rf"separate {k} points.* hours or more.*at random"):
        separated_prototypes(k, d)
    assert time.perf_counter() - start < PATIENCE


@pytest.mark.parametrize(("k", "d"), [(3000, 64), (8192, 256), (50_000, 256), (10**6, 2)])
def test_what_takes_seconds_or_minutes_is_not_refused(k, d):
    placement._check_work(k, d)
