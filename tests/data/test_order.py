import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spherescan.data.order import derived_seed, permuted, sample_order

pytestmark = pytest.mark.unwatched


@given(st.integers(1, 700), st.integers(0, 2**40), st.integers(0, 2**30))
def test_every_epoch_shows_every_sample_once(n, seed, epoch):
    order = permuted(np.arange(n), n=n, seed=seed, epoch=epoch)
    assert np.array_equal(np.sort(order), np.arange(n))


@given(st.integers(1, 60), st.integers(0, 300), st.integers(0, 100), st.booleans())
def test_any_part_of_the_order_can_be_had_alone(n, start, count, shuffle):
    whole = sample_order(0, start + count, n=n, seed=5, shuffle=shuffle)
    part = sample_order(start, count, n=n, seed=5, shuffle=shuffle)
    assert np.array_equal(part, whole[start:])


def test_unshuffled_is_the_order_of_the_data():
    assert sample_order(2, 5, n=3, seed=1, shuffle=False).tolist() == [2, 0, 1, 2, 0]


def test_seeds_and_epochs_give_different_orders():
    orders = {
        tuple(permuted(np.arange(50), n=50, seed=seed, epoch=epoch))
        for seed in range(5)
        for epoch in range(5)
    }
    assert len(orders) == 25


def test_the_order_never_changes_between_releases():
    """A run resumed under a newer release must see the same data: these numbers are forever."""
    order = [2, 4, 0, 5, 3, 7, 1, 8, 9, 6, 7, 1]
    assert sample_order(0, 12, n=10, seed=42).tolist() == order
    assert derived_seed(42, "weights") == 1059101914036167468


@pytest.mark.parametrize("n", [10, 37])
def test_places_are_uniform(n):
    """Where sample 0 lands over many epochs: chi-square below its 0.1 % point, n + 4.4 sqrt n."""
    epochs = 200 * n
    first = [int(permuted(np.array([0]), n=n, seed=7, epoch=e)[0]) for e in range(epochs)]
    counts = np.bincount(first, minlength=n)
    chi_square = ((counts - 200) ** 2 / 200).sum()
    assert chi_square < n + 4.4 * np.sqrt(n) + 4
