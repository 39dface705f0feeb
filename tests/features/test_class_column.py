import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spherescan.features import added_cosine, class_column, ridge

pytestmark = pytest.mark.unwatched


@given(st.integers(0, 99), st.integers(4, 20), st.integers(1, 10), st.integers(1, 3))
def test_left_out_the_classes_come_halfway_between_the_two(seed, n, f, members):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, f, generator=generator, dtype=torch.float64)
    rival = torch.rand(n, generator=generator, dtype=torch.float64)
    is_member = torch.arange(n) < members
    squared = torch.rand(n, generator=generator, dtype=torch.float64)
    found = class_column(x, is_member, rival, squared, apart=0.4)
    fitted = ridge(x, torch.where(is_member, 1.0, 0.4).double()[:, None])
    torch.testing.assert_close(found.weight, fitted.weight[:, 0])
    # Without its only member the ridge says nothing of the class.
    unseen = torch.where(is_member & (members == 1), fitted(x)[:, 0], fitted.left_out[:, 0])
    t = unseen + found.bias - fitted.bias[0]
    ahead = t - rival
    assert float(ahead[is_member].mean() + ahead[~is_member].mean()) == pytest.approx(0, abs=1e-9)
    torch.testing.assert_close(found.left_out, added_cosine(t, squared, found.reach))
    torch.testing.assert_close(found.left_out, t.clamp(-1, 1))  # none is farther out than any was


def test_far_out_no_class_is_near():
    t = torch.tensor([-1e4, -2.0, 0.5, 1.0, 2.0, 1e4], dtype=torch.float64)
    found = added_cosine(
        t, torch.zeros(6, dtype=torch.float64), torch.tensor(1.2, dtype=torch.float64)
    )
    assert found.abs().max() <= 1
    assert found[2:4].tolist() == [0.5, 1.0]
    assert found[4] == pytest.approx(1.44 / 2)
    assert found[[0, 5]].abs().max() < 1e-3


@pytest.mark.parametrize("is_member", [[True, True], [False, False]])
def test_a_class_of_all_or_of_none_is_refused(is_member):
    with pytest.raises(ValueError, match="some of the class and some not"):
        class_column(
            torch.eye(2), torch.tensor(is_member), torch.zeros(2), torch.zeros(2), apart=0.0
        )
