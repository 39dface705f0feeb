import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spherescan.features import class_column, ridge


@given(st.integers(0, 99), st.integers(3, 20), st.integers(1, 10), st.integers(1, 2))
def test_left_out_the_classes_come_halfway_between_the_two(seed, n, f, members):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, f, generator=generator, dtype=torch.float64)
    rival = torch.rand(n, generator=generator, dtype=torch.float64)
    is_member = torch.arange(n) < members
    found = class_column(x, is_member, rival, apart=0.4)
    ahead = found.left_out - rival
    assert float(ahead[is_member].mean() + ahead[~is_member].mean()) == pytest.approx(0, abs=1e-9)
    fitted = ridge(x, torch.where(is_member, 1.0, 0.4).double()[:, None])
    torch.testing.assert_close(found.weight, fitted.weight[:, 0])
    moved = found.left_out - fitted.left_out[:, 0]
    torch.testing.assert_close(moved, (found.bias - fitted.bias[0]).expand(n))


@pytest.mark.parametrize("is_member", [[True, True], [False, False]])
def test_a_class_of_all_or_of_none_is_refused(is_member):
    with pytest.raises(ValueError, match="some of the class and some not"):
        class_column(torch.eye(2), torch.tensor(is_member), torch.zeros(2), apart=0.0)
