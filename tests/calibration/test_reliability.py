from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spherescan.calibration import expected_calibration_error, reliability_table
from tests.calibration.draws import labels_of, rand, randn


def confident(values):
    """Two classes, the first with these probabilities."""
    first = torch.tensor(values, dtype=torch.float64)
    return torch.stack((first, 1 - first), dim=1)


def by_hand(probabilities, target, n_bins):
    """The definition, in a plain loop over samples and bins."""
    rows = [(max(p), p.index(max(p)) == y) for p, y in zip(probabilities, target, strict=True)]
    error = 0.0
    for i in range(n_bins):
        inside = [row for row in rows if i / n_bins < row[0] <= (i + 1) / n_bins]
        if inside:
            mean_confidence = sum(row[0] for row in inside) / len(inside)
            accuracy = sum(row[1] for row in inside) / len(inside)
            error += len(inside) / len(rows) * abs(accuracy - mean_confidence)
    return error


@given(
    n=st.integers(1, 60),
    k=st.integers(1, 5),
    seed=st.integers(0, 10**6),
    n_bins=st.sampled_from([1, 2, 10, 15]),
    coarse=st.booleans(),
)
def test_it_is_its_definition(n, k, seed, n_bins, coarse):
    p = (3 * randn(n, k, seed=seed)).softmax(1)
    if coarse:  # most confidences on an edge
        p = torch.floor(10 * p)
        p[:, 0] += 10 - p.sum(1)
        p = p / 10
    target = torch.randint(0, k, (n,), generator=torch.Generator().manual_seed(seed))
    found = expected_calibration_error(p, target, n_bins=n_bins)
    assert found == pytest.approx(by_hand(p.tolist(), target.tolist(), n_bins), abs=1e-12)
    table = reliability_table(p, target, n_bins=n_bins)
    full = table.count > 0
    assert table.count.sum() == n
    assert (table.count * table.confidence)[full].sum().item() == pytest.approx(
        p.amax(1).sum().item()
    )
    overall = (p.amax(1).mean() - (p.argmax(1) == target).double().mean()).abs().item()
    assert overall - 1e-12 <= found <= 1


def test_probabilities_that_are_right_have_no_error_in_the_limit():
    errors = {}
    for n in (1_000, 100_000):
        p = (2 * randn(n, 4)).softmax(1)
        errors[n] = expected_calibration_error(p, labels_of(p))
    assert errors[100_000] < 0.005
    assert errors[100_000] < errors[1_000] / 3  # the chance part, 1 / sqrt(n)


def test_a_bin_holds_its_upper_edge():
    table = reliability_table(
        confident([0.5, 0.6, 0.7, 0.75, 1.0]), torch.zeros(5).int(), n_bins=10
    )
    assert table.count.tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 0, 1]
    assert table.edges.tolist() == [float(Fraction(i, 10)) for i in range(11)]
    # In float32 0.6 is a little more, and counted as what it is.
    table = reliability_table(confident([0.6]).float(), torch.tensor([0]), n_bins=10)
    assert table.count.argmax() == 6


def test_an_empty_bin_has_no_mean():
    table = reliability_table(confident([0.9]), torch.tensor([1]), n_bins=2)
    assert table.confidence.isnan().tolist() == [True, False]
    assert table.accuracy[1] == 0
    assert expected_calibration_error(confident([0.9]), torch.tensor([1])) == pytest.approx(0.9)


def test_of_equal_probabilities_the_first_is_predicted():
    assert reliability_table(confident([0.5]), torch.tensor([0])).accuracy.nansum() == 1
    assert reliability_table(confident([0.5]), torch.tensor([1])).accuracy.nansum() == 0


def test_one_class_is_certain():
    assert expected_calibration_error(torch.ones(3, 1), torch.zeros(3, dtype=torch.long)) == 0


@pytest.mark.parametrize(
    ("probabilities", "target", "message"),
    [
        (torch.zeros(0, 2), torch.zeros(0, dtype=torch.long), "at least one"),
        (torch.tensor([[0.5, float("nan")]]), torch.tensor([0]), "finite"),
        (torch.tensor([[0.5, 0.5], [3.0, -2.0]]), torch.tensor([0, 0]), r"row 1 .* -2\.\.3"),
        (torch.tensor([[90.0, 10.0]]), torch.tensor([0]), "adds up to 100"),
        (torch.tensor([[0.5, 0.5]]), torch.tensor([2]), r"must lie in 0\.\.1"),
    ],
)
def test_what_is_no_distribution_is_refused(probabilities, target, message):
    with pytest.raises(ValueError, match=message):
        expected_calibration_error(probabilities, target)


def test_no_bins_are_refused():
    with pytest.raises(ValueError, match="got 0 bins"):
        reliability_table(rand(1, 1) * 0 + 1, torch.tensor([0]), n_bins=0)
