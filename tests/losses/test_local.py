import math
import re

import pytest
import torch

from spherescan.losses import (
    goodness,
    goodness_loss,
    hpn_rust_trainer_loss,
    local_cross_entropy,
    rust_trainer_loss,
    symmetric_goodness_loss,
)
from tests.tolerances import assert_close


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_cross_entropy_is_per_item_for_sequences_and_positions():
    logits, target = randn(4, 5, 3), torch.tensor([[0, 1, 2, 0, 1]] * 4)
    losses = local_cross_entropy(logits, target)
    assert losses.shape == (4, 5)
    expected = -torch.log(torch.softmax(logits[2, 3], 0))[0]
    assert_close(losses[2, 3], expected)
    assert local_cross_entropy(logits[:0, 0], target[:0, 0]).shape == (0,)


@pytest.mark.parametrize("bad", [-1, 3])
def test_cross_entropy_refuses_targets_outside_the_classes(bad):
    with pytest.raises(ValueError, match=r"with 3 logits they must lie in 0\.\.2"):
        local_cross_entropy(randn(2, 3), torch.tensor([0, bad]))


def test_goodness_ignores_padding_and_counts_positions_once():
    y = randn(2, 5, 3)
    mask = torch.tensor([[True] * 5, [True] * 2 + [False] * 3])
    found = goodness(y, mask)
    assert_close(found[0], y[0].square().sum() / 5)
    assert_close(found[1], y[1, :2].square().sum() / 2)
    assert_close(goodness(y), y.square().sum((1, 2)) / 5)


def test_goodness_losses_have_their_defining_values():
    at, zero = torch.tensor([2.0]), torch.tensor([0.0])
    assert goodness_loss(at, at, threshold=2.0).item() == pytest.approx(2 * 0.693147, rel=1e-5)
    assert goodness_loss(at + 50, zero - 50, threshold=2.0).item() < 1e-6
    assert goodness_loss(zero, zero + 9, threshold=2.0).item() > 8
    # The symmetric form sees the difference alone.
    assert_close(
        symmetric_goodness_loss(at + 5, at, alpha=1.0),
        symmetric_goodness_loss(zero + 5, zero, alpha=1.0),
    )
    assert symmetric_goodness_loss(at, at + 3, alpha=2.0).item() == pytest.approx(
        6.002476, rel=1e-6
    )


@pytest.mark.parametrize(
    "function",
    [
        lambda x: goodness_loss(x[:4].exp(), x[4:].exp(), threshold=1.5),
        lambda x: symmetric_goodness_loss(x[:4], x[4:], alpha=2.0),
        lambda x: goodness(x.view(2, 2, 2)),
        lambda x: local_cross_entropy(x.view(2, 4), torch.tensor([1, 3])),
        lambda x: hpn_rust_trainer_loss(x[:4][None], x[4:][None], torch.tensor([0])),
    ],
)
def test_gradients_are_right(function):
    assert torch.autograd.gradcheck(function, (randn(8, seed=4).requires_grad_(),))


def test_the_forward_forward_loss_of_rust_trainer_by_hand():
    positive, negative = torch.tensor([3.0, -1.0]), torch.tensor([0.5, 1.5])
    theta = torch.tensor([0.6, -0.8], requires_grad=True)
    loss = rust_trainer_loss(positive, negative, theta)
    # std 2 and 0.5, |theta| 1: (1.5 * 0.6 + 0.5 * 0.8) - (1 * 0.6 - 3 * 0.8) = 3.1 > 1
    assert loss.item() == 0.0
    loss = rust_trainer_loss(negative, positive, theta)
    assert loss.item() == pytest.approx(4.1, rel=1e-4)
    loss.backward()
    expected = -(negative / 0.50001 - positive / 2.00001) / 1.00001
    assert_close(theta.grad, expected)


def test_the_prototype_loss_of_rust_trainer_does_not_normalise_prototypes():
    z, prototypes = torch.tensor([[0.0, 5.0]]), torch.tensor([[0.0, 0.5], [0.0, 2.0]])
    assert hpn_rust_trainer_loss(z, prototypes, torch.tensor([0])).item() == pytest.approx(0.25)
    assert hpn_rust_trainer_loss(z, prototypes, torch.tensor([1])).item() == pytest.approx(1.0)


@pytest.mark.unwatched
def test_cross_entropy_refuses_targets_that_are_no_integers():
    with pytest.raises(TypeError, match=r"targets are torch.float32; .*pass target.long\(\)"):
        local_cross_entropy(randn(2, 3), torch.tensor([0.9, 1.9]))


@pytest.mark.unwatched
@pytest.mark.parametrize("shape", [(4, 1), (1,), (3,), ()])
def test_each_sample_has_a_target_and_a_negative(shape):
    shown = re.escape(str(shape))
    with pytest.raises(ValueError, match=rf"target has shape {shown}; expected \(4,\)"):
        local_cross_entropy(randn(4, 3), torch.zeros(shape, dtype=torch.long))
    with pytest.raises(ValueError, match=rf"negative has shape {shown}; expected \(4,\)"):
        goodness_loss(randn(4), torch.zeros(shape), threshold=1.0)
    with pytest.raises(ValueError, match=rf"negative has shape {shown}; expected \(4,\)"):
        symmetric_goodness_loss(randn(4), torch.zeros(shape), alpha=1.0)


@pytest.mark.parametrize("padding", [math.nan, math.inf, 1e200])
def test_goodness_does_not_read_what_is_behind_its_mask(padding):
    mask = torch.arange(5) < torch.tensor([[5], [2]])
    found = []
    for value in (0.0, padding):
        y = randn(2, 5, 3).masked_fill(~mask[:, :, None], value).requires_grad_()
        values = goodness(y, mask)
        found.append([values, *torch.autograd.grad(values.sum(), y)])
    for plain, padded in zip(*found, strict=True):
        assert torch.equal(plain, padded)
    assert not found[1][1][~mask].any()


def test_goodness_needs_a_real_position():
    mask = torch.tensor([[True, True], [False, False], [True, False]])
    with pytest.raises(ValueError, match=r"1 of 3 sequences have no real position, .* row 1"):
        goodness(randn(3, 2, 4), mask)
    with pytest.raises(ValueError, match="3 of 3 sequences have no real position"):
        goodness(randn(3, 0, 4))


@pytest.mark.unwatched
def test_a_mask_has_one_value_per_position():
    """A column would make a sum of the mean."""
    with pytest.raises(ValueError, match=r"mask has shape \(3, 1\); expected \(3, 2\)"):
        goodness(randn(3, 2, 4), torch.ones(3, 1, dtype=torch.bool))
