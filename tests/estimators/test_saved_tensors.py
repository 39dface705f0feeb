"""Tensors of a file that anyone may have written: of one type and shape, without strange values."""

import re

import pytest
import torch

from spherescan.estimators.saved_tensors import expect_tensor

LARGEST32 = torch.finfo(torch.float32).max


def wide(*values):
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize(
    "tensor", [wide(1.0, -2.0), wide(0.0, LARGEST32), wide(-LARGEST32, 0.0), wide(-0.0, 1e-300)]
)
def test_what_fits_and_is_finite_is_taken(tensor):
    expect_tensor("x", tensor, torch.float64, (2,), fits="two")
    expect_tensor("x", tensor.reshape(2, 1)[:0], torch.float64, (0, 1), fits="nothing")
    expect_tensor("x", tensor[0], torch.float64, (), fits="one")


@pytest.mark.parametrize(
    ("tensor", "got"),
    [
        (torch.ones(2), r"torch.float32 of shape \(2,\)"),
        (torch.ones(2, dtype=torch.int64), r"torch.int64 of shape \(2,\)"),
        (wide(1.0), r"torch.float64 of shape \(1,\)"),
        (wide(1.0, 2.0)[None], r"torch.float64 of shape \(1, 2\)"),
        (wide(1.0)[0], r"torch.float64 of shape \(\)"),
    ],
)
def test_another_type_or_shape_is_refused(tensor, got):
    with pytest.raises(ValueError, match=f"^x is {got}, which does not fit two$"):
        expect_tensor("x", tensor, torch.float64, (2,), fits="two")


@pytest.mark.parametrize("strange", [torch.nan, torch.inf, -torch.inf, 1e39, -1e39])
@pytest.mark.parametrize("place", [0, 1])
def test_a_value_that_is_not_finite_or_too_large_is_refused(strange, place):
    tensor = wide(1.0, 2.0).index_fill(0, torch.tensor([place]), strange)
    said = (
        f"x holds a value that cannot be: {strange} is not finite or too large; wanted "
        f"-{LARGEST32}..{LARGEST32}"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(said)}$"):
        expect_tensor("x", tensor, torch.float64, (2,), fits="two")


def test_how_large_values_may_be_can_be_said():
    tensor = wide(1e300, -2.0)
    expect_tensor("x", tensor, torch.float64, (2,), fits="two", largest=1e300)
    with pytest.raises(ValueError, match=r"-2.0 is not finite or too large; wanted -1.5..1.5"):
        expect_tensor("x", tensor[1:], torch.float64, (1,), fits="one", largest=1.5)
    with pytest.raises(ValueError, match="inf is not finite"):
        expect_tensor("x", tensor / 0, torch.float64, (2,), fits="two", largest=torch.inf)
