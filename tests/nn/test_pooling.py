import math

import pytest
import torch

from spherescan.nn import POOLING_NAMES, Pooling
from tests.tolerances import assert_close


@pytest.fixture(params=POOLING_NAMES)
def pooling(request, generator):
    pool = Pooling(4, [request.param], n_heads=2, generator=generator).double()
    if pool.attention is not None:
        torch.nn.init.normal_(pool.attention.query.weight, generator=generator)
    return pool


def test_padding_changes_nothing(pooling, generator):
    x = torch.randn(3, 7, 4, generator=generator, dtype=torch.float64)
    mask = torch.arange(7) < torch.tensor([[1], [4], [7]])
    x[~mask] = 1e6
    pooled = pooling(x, mask)
    assert pooled.shape == (3, pooling.dim)
    for row, length in enumerate((1, 4, 7)):
        assert_close(pooled[row : row + 1], pooling(x[row : row + 1, :length]))


def test_gradcheck(pooling, generator):
    x = torch.randn(2, 5, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    mask = torch.arange(5) < torch.tensor([[3], [5]])
    assert torch.autograd.gradcheck(lambda x: pooling(x, mask), x)


def test_known_values():
    x = torch.tensor([[[1.0, -1.0], [3.0, -5.0], [9.0, 9.0]]])
    mask = torch.tensor([[True, True, False]])
    pooled = Pooling(2, ["last", "mean", "max"])(x, mask)
    assert pooled.tolist() == [[3.0, -5.0, 2.0, -3.0, 3.0, -1.0]]


def test_attention_starts_as_the_mean(generator):
    x = torch.randn(2, 5, 4, generator=generator)
    pool = Pooling(4, ["attention"], n_heads=3, generator=generator)
    assert_close(pool(x), x.mean(1).repeat(1, 3))


@pytest.mark.parametrize(
    ("kinds", "message"),
    [
        ([], "at least one"),
        (["mean", "mean"], "each once"),
        (["median"], "unknown pooling 'median'"),
    ],
)
def test_a_wrong_choice_is_refused(kinds, message):
    with pytest.raises(ValueError, match=message):
        Pooling(4, kinds)


@pytest.mark.parametrize("padding", [math.nan, math.inf, -math.inf])
def test_what_is_behind_the_mask_is_not_read(pooling, generator, padding):
    mask = torch.arange(7) < torch.tensor([[1], [4], [7]])
    values = torch.randn(3, 7, 4, generator=generator, dtype=torch.float64)
    found = []
    for value in (0.0, padding):
        x = values.masked_fill(~mask[:, :, None], value).requires_grad_()
        pooled = pooling(x, mask)
        learned = [x, *pooling.parameters()]
        found.append([pooled, *torch.autograd.grad(pooled.square().sum(), learned)])
    for plain, padded in zip(*found, strict=True):
        assert torch.equal(plain, padded)
    assert not found[1][1][~mask].any()


@pytest.mark.unwatched
def test_a_mask_has_one_value_per_position(pooling):
    """A column would make a sum of the mean."""
    mask = torch.ones(3, 1, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"mask has shape \(3, 1\); expected \(3, 7\)"):
        pooling(torch.ones(3, 7, 4, dtype=torch.float64), mask)
