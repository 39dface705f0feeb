"""The Rust trainer's surgery: its formulas on numbers worked by hand, and what its tests state."""

import math

import pytest
import torch

from spherescan.surgery import rust_cagradstep, rust_gradnorm, rust_pcgrad, rust_trainer

AGAINST = torch.tensor([1.0, -2.0]), torch.tensor([1.0, 1.0])  # <f, b> = -1, |b|^2 = 2


def random_pairs(generator, count=300):
    for index in range(count):
        scale = 10.0 ** (index % 7 - 3)
        ff, bp = torch.randn(2, 1 + index % 9, generator=generator, dtype=torch.float64)
        yield scale * ff, bp


def test_pcgrad_on_paper():
    assert rust_trainer.pcgrad(*AGAINST, 0.0).tolist() == [1.5, -1.5]
    # f + 1 / (2 + 2) b
    assert rust_trainer.pcgrad(*AGAINST, 2.0).tolist() == [1.25, -1.75]
    assert rust_trainer.pcgrad(*AGAINST, -2.0).tolist() == [1.5, -1.5]  # counts as 0


def test_cagradstep_on_paper():
    assert rust_trainer.cagradstep(*AGAINST, 2.0, 0.0).tolist() == [2.0, -1.0]
    assert rust_trainer.cagradstep(*AGAINST, 0.5, 2.0).tolist() == [1.125, -1.875]
    assert rust_trainer.cagradstep(*AGAINST, -1.0, 0.0).tolist() == [1.0, -2.0]  # counts as 0


def test_gradnorm_ff_scale_on_paper():
    right, up = torch.tensor([3.0, 0.0]), torch.tensor([0.0, 0.5])
    scale = rust_trainer.gradnorm_ff_scale
    assert scale(right, 7 * right, 0.2, 0.0) == pytest.approx(1.0)
    assert scale(right, up, 0.2, 0.0) == pytest.approx(math.exp(0.2 * math.sqrt(2)))
    assert scale(right, -1000 * right, 0.2, 0.0) == pytest.approx(math.exp(0.4))
    # |3 / (3 + 1) - 0.5 / (0.5 + 1)| along two axes: sqrt(0.75^2 + (1/3)^2)
    assert scale(right, up, 0.2, 1.0) == pytest.approx(math.exp(0.2 * math.hypot(0.75, 1 / 3)))
    assert scale(torch.zeros(2), up, 0.2, 0.0) == pytest.approx(math.exp(0.2))


def test_aligned_gradients_are_returned_unchanged(generator):
    for ff, bp in random_pairs(generator):
        if ff @ bp >= 0:
            assert torch.equal(rust_trainer.pcgrad(ff, bp, 1e-8), ff)
            assert torch.equal(rust_trainer.cagradstep(ff, bp, 1.5, 1e-8), ff)


def test_after_pcgrad_nothing_conflicts(generator):
    for ff, bp in random_pairs(generator):
        assert rust_trainer.pcgrad(ff, bp, 1e-8) @ bp >= -1e-6 * max(1.0, float(ff.norm()))


def test_the_scale_does_not_fall_with_disagreement():
    bp = torch.tensor([2.0, 0.0], dtype=torch.float64)
    angles = torch.linspace(0, math.pi, 50, dtype=torch.float64)
    around = torch.stack([angles.cos(), angles.sin()], dim=1)
    scales = [rust_trainer.gradnorm_ff_scale(ff, bp, 0.2, 1e-8) for ff in around]
    assert scales == sorted(scales)
    assert scales[0] == pytest.approx(1.0, abs=1e-7)
    assert scales[-1] == pytest.approx(math.exp(0.4))


def test_cagradstep_never_lowers_the_product(generator):
    for ff, bp in random_pairs(generator):
        for lam in (0.0, 0.3, 1.0, 4.0):
            raised = rust_trainer.cagradstep(ff, bp, lam, 1e-8) @ bp
            assert raised >= ff @ bp - 1e-12 * ff.norm() * bp.norm()


def test_cagradstep_at_one_is_pcgrad(generator):
    for ff, bp in random_pairs(generator):
        assert torch.equal(
            rust_trainer.cagradstep(ff, bp, 1.0, 1e-8), rust_trainer.pcgrad(ff, bp, 1e-8)
        )


def test_unequal_lengths_are_an_error():
    ff, bp = torch.ones(3), torch.ones(4)
    with pytest.raises(ValueError, match="has 3 elements and that of backprop 4"):
        rust_trainer.pcgrad(ff, bp, 1e-8)
    with pytest.raises(ValueError, match="has 3 elements and that of backprop 4"):
        rust_trainer.cagradstep(ff, bp, 1.0, 1e-8)
    with pytest.raises(ValueError, match="has 3 elements and that of backprop 4"):
        rust_trainer.gradnorm_ff_scale(ff, bp, 0.2, 1e-8)


def test_jacobian_forms_add_the_changed_local_gradient_to_that_of_backprop(generator):
    for ff, bp in random_pairs(generator, count=60):
        rows = torch.stack([ff, bp])
        torch.testing.assert_close(
            rust_pcgrad(rows, epsilon=0.3, local_scale=2.5),
            2.5 * rust_trainer.pcgrad(ff, bp, 0.3) + bp,
        )
        torch.testing.assert_close(
            rust_gradnorm(rows, alpha=0.7, epsilon=0.3, local_scale=2.5),
            2.5 * rust_trainer.gradnorm_ff_scale(ff, bp, 0.7, 0.3) * ff + bp,
        )
        torch.testing.assert_close(
            rust_cagradstep(rows, lam=1.7, epsilon=0.3, local_scale=2.5),
            2.5 * rust_trainer.cagradstep(ff, bp, 1.7, 0.3) + bp,
        )


def test_defaults_are_those_of_the_trainer():
    (ff, bp), rows = AGAINST, torch.stack(AGAINST)
    torch.testing.assert_close(rust_pcgrad(rows), rust_trainer.pcgrad(ff, bp, 1e-8) + bp)
    torch.testing.assert_close(
        rust_cagradstep(rows), rust_trainer.cagradstep(ff, bp, 1.0, 1e-8) + bp
    )
    factor = rust_trainer.gradnorm_ff_scale(ff, bp, 0.2, 1e-8)
    torch.testing.assert_close(rust_gradnorm(rows), factor * ff + bp)
    coarse = 100.0  # an epsilon that would show
    assert not torch.allclose(rust_pcgrad(rows), rust_pcgrad(rows, epsilon=coarse))


@pytest.mark.parametrize("method", [rust_pcgrad, rust_gradnorm, rust_cagradstep])
def test_there_are_two_gradients(method):
    for t in (1, 3):
        with pytest.raises(ValueError, match=f"{t} gradients were given; this method takes two"):
            method(torch.ones(t, 2))


@pytest.mark.unwatched
def test_integers_are_refused():
    rows = torch.tensor([[1, 0], [-1, 1]])
    for function, more in (
        (rust_trainer.pcgrad, (0.0,)),
        (rust_trainer.cagradstep, (0.5, 0.0)),
        (rust_trainer.gradnorm_ff_scale, (0.2, 0.0)),
    ):
        with pytest.raises(TypeError, match=r"grad_ff has dtype torch\.int64"):
            function(*rows, *more)
        with pytest.raises(TypeError, match=r"grad_bp has dtype torch\.int64"):
            function(rows[0].float(), rows[1], *more)
