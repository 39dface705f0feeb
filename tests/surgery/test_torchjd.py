"""Every method against the TorchJD package, on random Jacobians of every awkward kind.

TorchJD's own numbers are not always good to 1e-6. Measured on the first 140 of these Jacobians
against 60-digit references (reference.py) or the defining equation:

- MGDA takes at most 100 Frank-Wolfe steps: errors of 1e-3 are usual. It is compared with the
  reference alone.
- CAGrad is solved by Clarabel to 1e-8 in the value, 1e-5 to 1e-3 in the direction. Here the solver
  is asked for more; what is left, and gradients of uneven length, are compared with the reference.
  With a zero gradient TorchJD returns zero, outside of CAGrad's ball; see the Notes of `cagrad`.
- UPGrad adds reg_eps to the diagonal and Nash-MTL stops at residuals of 1e-3, both absolute, so
  they see unit gradients here; the lengths are put back by the definition of the method.
- IMTL-G and Aligned-MTL cut eigenvalues of the Gram matrix; where one lies near the cut, or what is
  above it has lost its digits in float64, no two programs agree.
"""

import warnings
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from spherescan.surgery import (
    GradVac,
    aligned_mtl,
    aligned_mtl_weights,
    cagrad,
    cagrad_weights,
    gram_matrix,
    imtl_g,
    imtl_g_weights,
    mean_gradient,
    mgda,
    mgda_weights,
    nash_mtl,
    nash_mtl_weights,
    pcgrad,
    pcgrad_weights,
    sum_gradients,
    upgrad,
    upgrad_weights,
)
from tests.surgery.jacobians import kind_of, random_jacobian
from tests.surgery.reference import cagrad_reference, mgda_reference

pytestmark = pytest.mark.unwatched

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of its solvers, at import
    import cvxpy
    from torchjd import aggregation as torchjd
    from torchjd.linalg import QuadprogProjector

EPSILON = torch.finfo(torch.float64).eps
FULL = pytest.mark.slow
TIERS = pytest.mark.parametrize(
    "indices", [range(100), pytest.param(range(100, 1000), marks=FULL)], ids=["some", "all"]
)


def cases(indices: range, *, without: tuple[str, ...] = ()) -> Iterator[tuple[int, Tensor]]:
    for index in indices:
        if kind_of(index) not in without:
            yield index, random_jacobian(index)


def assert_same(
    ours: Tensor, theirs: Tensor, jacobian: Tensor, weights: Tensor, *, relative: float = 1e-6
) -> None:
    """Within 1e-6 of the direction.

    Where the direction is a small rest of what is added, 1e-8 of that: the Gram matrix gives a
    length that cancels to the root of its 16 digits.
    """
    terms = float((weights.abs() * jacobian.norm(dim=1)).sum())
    error = float((ours - theirs).norm())
    assert error <= relative * float(theirs.norm()) + 1e-2 * relative * terms


@TIERS
def test_mean_and_sum(indices):
    for _, jacobian in cases(indices):
        ones = torch.ones(len(jacobian))
        assert_same(mean_gradient(jacobian), torchjd.Mean()(jacobian), jacobian, ones)
        assert_same(sum_gradients(jacobian), torchjd.Sum()(jacobian), jacobian, ones)


@TIERS
def test_pcgrad(indices):
    """The same seed draws the same orders."""
    for index, jacobian in cases(indices):
        generator = torch.Generator().manual_seed(index)
        weights = pcgrad_weights(gram_matrix(jacobian), generator=generator)
        ours = pcgrad(jacobian, generator=generator.manual_seed(index))
        with torch.random.fork_rng():
            torch.manual_seed(index)
            assert_same(ours, torchjd.PCGrad()(jacobian), jacobian, weights)


@TIERS
def test_gradvac_over_three_steps(indices, monkeypatch):
    """TorchJD's random orders are made ours; beta is large so that the targets matter."""
    compared = 0
    for _, jacobian in cases(indices):
        t = len(jacobian)
        if int(torch.linalg.matrix_rank(gram_matrix(jacobian), hermitian=True)) < 2:
            continue  # projected gradients vanish, and TorchJD takes the cosines of their rounding
        ours, theirs = GradVac(beta=0.5), torchjd.GradVac(beta=0.5, eps=0.0)
        for step in (jacobian, jacobian.flip(1) + 2 * jacobian.mean(dim=0), jacobian):
            rows = step[(step != 0).any(dim=1)] if (step == 0).all(dim=1).any() else step
            if len(rows) < t:
                break  # TorchJD divides by a zero length
            # Objective i visits the others from i + 1 on: its list of them, rotated by i.
            orders = iter([torch.arange(t - 1).roll(-i) for i in range(t)])
            monkeypatch.setattr(torch, "randperm", lambda _, orders=orders: next(orders))
            expected = theirs(step)
            monkeypatch.undo()
            weights = ours.weights(gram_matrix(step))
            if not expected.isfinite().all():
                break  # a target of 1 divides by zero there
            assert_same(weights @ step, expected, step, weights)
            compared += 1
    assert compared > 1.5 * len(indices)


@TIERS
def test_upgrad(indices):
    """Its projections are those of unit gradients, weighted by the lengths."""
    projector = QuadprogProjector(norm_eps=0.0, reg_eps=1e-12)
    for _, jacobian in cases(indices):
        norms = jacobian.norm(dim=1)
        unit = torch.nn.functional.normalize(jacobian, dim=1)
        greatest = norms.max()
        their = torchjd.UPGrad(pref_vector=norms / greatest / len(norms), projector=projector)
        weights = upgrad_weights(gram_matrix(jacobian))
        assert_same(upgrad(jacobian), greatest * their(unit), jacobian, weights)


@TIERS
def test_imtl_g(indices):
    compared = 0
    for _, jacobian in cases(indices):
        norms = jacobian.norm(dim=1)
        weights = imtl_g_weights(gram_matrix(jacobian))
        if norms.all() and condition(jacobian / norms[:, None]) < 1e8:
            # v = C^-1 1 / norms is free of the cut
            unit = torchjd.IMTLGWeighting()(gram_matrix(jacobian / norms[:, None]))
            values = unit / norms * norms.min()
            if abs(values.sum()) < 1e-9 * values.abs().sum():
                continue  # the sum, by which all is divided, is rounding
            expected = values / values.sum() @ jacobian
        elif digits_lost(jacobian) < 1e-7:
            scaled = jacobian / norms.max()
            values = torch.linalg.eigvalsh(gram_matrix(scaled)).abs()
            values /= values.max()
            if ((values > len(values) * EPSILON / 2) & (values < 1e-12)).any():
                continue  # it is rounding, but TorchJD may invert it: 1 in 1000
            expected = torchjd.IMTLG()(scaled) * norms.max()
        else:
            continue
        assert_same(imtl_g(jacobian), expected, jacobian, weights)
        compared += 1
    assert compared > 0.9 * len(indices)


@TIERS
def test_aligned_mtl(indices):
    compared = 0
    for _, jacobian in cases(indices):
        if digits_lost(jacobian) < 1e-7:
            weights = aligned_mtl_weights(gram_matrix(jacobian))
            assert_same(aligned_mtl(jacobian), torchjd.AlignedMTL()(jacobian), jacobian, weights)
            compared += 1
    assert compared > 0.8 * len(indices)


@TIERS
def test_mgda_is_the_shortest_convex_combination(indices):
    for _, jacobian in cases(indices):
        weights = mgda_weights(gram_matrix(jacobian))
        assert weights.min() >= 0
        assert weights.sum().item() == pytest.approx(1, abs=1e-12)
        assert_same(mgda(jacobian), mgda_reference(jacobian), jacobian, weights)


def test_mgda_approaches_torchjd_as_torchjd_takes_more_steps():
    """Of three objectives or two; Frank-Wolfe converges slowly."""
    for t in (2, 3):
        for index in (0, 7, 14, 21):
            jacobian = random_jacobian(index, objectives=t)
            weights = mgda_weights(gram_matrix(jacobian))
            theirs = torchjd.MGDA(epsilon=1e-12, max_iters=20_000)(jacobian)
            assert_same(mgda(jacobian), theirs, jacobian, weights, relative=1e-4)


@TIERS
@pytest.mark.parametrize("c", [0.5, pytest.param(0.9, marks=FULL)])
def test_cagrad_is_the_best_of_its_ball(indices, c):
    for _, jacobian in cases(indices):
        weights = cagrad_weights(gram_matrix(jacobian), c=c)
        expected = cagrad_reference(jacobian, c=c)
        assert_same(cagrad(jacobian, c=c), expected, jacobian, weights)


@TIERS
def test_cagrad(indices, monkeypatch):
    solve = cvxpy.Problem.solve

    def accurately(problem, solver):
        return solve(
            problem, solver, tol_gap_abs=1e-14, tol_gap_rel=1e-14, tol_feas=1e-14, max_iter=500
        )

    monkeypatch.setattr(cvxpy.Problem, "solve", accurately)
    for _, jacobian in cases(indices, without=("uneven", "deficient_uneven", "zero_rows")):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the solver may not have reached 1e-14
            theirs = torchjd.CAGrad(c=0.5, norm_eps=0.0)(jacobian)
        weights = cagrad_weights(gram_matrix(jacobian), c=0.5)
        # The value is flat: its 16 digits leave half as many of the direction, less a few. In 1000
        # of these ours is within 1e-12 of the reference, and TorchJD 37 times beyond 1e-6.
        assert_same(cagrad(jacobian, c=0.5), theirs, jacobian, weights, relative=3e-5)


@TIERS
def test_nash_mtl_solves_its_equation(indices):
    for _, jacobian in cases(indices):
        gram = gram_matrix(jacobian)
        weights, direction = nash_mtl_weights(gram), nash_mtl(jacobian)
        present = jacobian.norm(dim=1) > 0
        if direction.any():  # alpha = weights / sqrt(|G|)
            gains = (weights * (jacobian @ direction))[present] / gram.norm()
            torch.testing.assert_close(gains, torch.ones_like(gains), rtol=1e-6, atol=0)
            assert weights[present].min() > 0
            assert not weights[~present].any()
        else:  # no direction improves all: a convex combination of unit gradients vanishes
            unit = jacobian[present] / jacobian[present].norm(dim=1, keepdim=True)
            assert mgda(unit).norm() < 1e-6


@pytest.mark.parametrize(
    "indices", [range(21), pytest.param(range(21, 1000), marks=FULL)], ids=["some", "all"]
)
def test_nash_mtl(indices):
    """Of unit gradients, where TorchJD solves its own equation."""
    solved = 0
    unsolved = 0
    for _, jacobian in cases(indices, without=("zero_rows",)):
        unit = jacobian / jacobian.norm(dim=1, keepdim=True)
        their = torchjd.NashMTL(len(unit), max_norm=0.0, optim_niter=100)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that its program is slow, and divisions by zero
            expected = their(unit)
        alpha = torch.as_tensor(their.weighting.prvs_alpha, dtype=torch.float64)
        if (alpha * (unit @ expected) - 1).abs().max() > 1e-7:
            unsolved += 1
            continue
        solved += 1
        gram = gram_matrix(jacobian)
        weights = nash_mtl_weights(gram) / gram.norm().sqrt()
        assert_same(weights @ jacobian, expected, jacobian, weights)
    assert solved >= unsolved / 3


def test_nash_mtl_of_torchjd_leaves_its_equation_unsolved_elsewhere():
    """Evidence for the two tests above: plain gradients of length 1e6 are enough."""
    jacobian = 1e6 * random_jacobian(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = torchjd.NashMTL(len(jacobian), max_norm=0.0, optim_niter=100)
        theirs(jacobian)
    alpha = torch.as_tensor(theirs.weighting.prvs_alpha, dtype=torch.float64)
    assert (alpha * (gram_matrix(jacobian) @ alpha) - 1).abs().max() > 0.1


def condition(jacobian: Tensor) -> float:
    """Greatest eigenvalue of the Gram matrix by the smallest."""
    if len(jacobian) > jacobian.shape[1]:
        return torch.inf
    values = torch.linalg.svdvals(jacobian)
    return float((values[0] / values[-1]) ** 2)


def digits_lost(jacobian: Tensor) -> float:
    """Relative rounding of the smallest eigenvalue that counts; infinite if that is undecided."""
    values = torch.linalg.svdvals(jacobian) ** 2
    values = values / values[0]
    if ((values > 1e-18) & (values < 1e-12)).any():
        return torch.inf
    return float(len(jacobian) * EPSILON / values[values >= 1e-12].min())
