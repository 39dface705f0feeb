import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import Ridge as SklearnRidge
from sklearn.linear_model import RidgeCV

from spherescan.features import ridge
from spherescan.features.ridge import PENALTIES


def problem(seed: int, n: int, f: int, d: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, f, generator=generator, dtype=torch.float64)
    noise = torch.randn(n, d, generator=generator, dtype=torch.float64)
    return 3 + x, x @ torch.randn(f, d, generator=generator, dtype=torch.float64) + noise - 7


@given(st.integers(0, 99), st.integers(2, 12), st.integers(1, 20), st.integers(1, 4))
def test_each_sample_left_out_is_what_a_fit_without_it_predicts(seed, n, f, d):
    x, target = problem(seed, n, f, d)
    fitted = ridge(x, target, penalties=[0.5])
    for i in range(n):
        rest = torch.arange(n) != i
        without = SklearnRidge(alpha=0.5).fit(x[rest], target[rest].numpy())
        expected = without.predict(x[i : i + 1].numpy()).reshape(-1)
        np.testing.assert_allclose(fitted.left_out[i], expected, rtol=1e-7, atol=1e-7)


@pytest.mark.unwatched
@given(st.integers(0, 99), st.integers(3, 30), st.integers(1, 40), st.integers(1, 4))
def test_it_is_the_ridge_of_scikit_learn(seed, n, f, d):
    x, target = problem(seed, n, f, d)
    fitted = ridge(x, target)
    oracle = RidgeCV(alphas=PENALTIES).fit(x.numpy(), target.numpy())
    assert fitted.penalty == pytest.approx(oracle.alpha_)
    expected = oracle.predict(x.numpy()).reshape(n, d)
    np.testing.assert_allclose(fitted(x), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.unwatched
@given(st.integers(0, 99), st.integers(2, 10), st.integers(1, 15), st.integers(1, 3))
def test_weights_are_those_of_scikit_learn_left_out_too(seed, n, f, d):
    x, target = problem(seed, n, f, d)
    weights = 0.1 + torch.rand(n, generator=torch.Generator().manual_seed(seed)).double()
    fitted = ridge(x, target, weights=weights, penalties=[0.5])
    whole = SklearnRidge(alpha=0.5).fit(x, target.numpy(), sample_weight=weights.numpy())
    expected = whole.predict(x.numpy()).reshape(n, d)
    np.testing.assert_allclose(fitted(x), expected, rtol=1e-7, atol=1e-7)
    for i in range(n):
        rest = torch.arange(n) != i
        without = SklearnRidge(alpha=0.5).fit(
            x[rest], target[rest].numpy(), sample_weight=weights[rest].numpy()
        )
        expected = without.predict(x[i : i + 1].numpy()).reshape(-1)
        np.testing.assert_allclose(fitted.left_out[i], expected, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("n", "f"), [(60, 90), (60, 60), (60, 12), (61, 1)])
def test_of_many_samples_the_penalty_is_looked_for_with_some(monkeypatch, n, f, weighted):
    """By samples and by features, a few rows or columns at a time."""
    x, target = problem(n + f, n, f, 3)
    weights = torch.linspace(0.5, 2.0, n).double() if weighted else None
    each = [ridge(x, target, weights=weights, penalties=[p, p]) for p in sorted(PENALTIES)]
    module = sys.modules["spherescan.features.ridge"]
    monkeypatch.setattr(module, "_FEW", 20)
    monkeypatch.setattr(module, "_AT_ONCE", 7)
    some = torch.randperm(n, generator=torch.Generator().manual_seed(0))[:20]
    part = None if weights is None else weights[some]
    index = sorted(PENALTIES).index(ridge(x[some], target[some], weights=part).penalty)
    root = torch.ones(n).double() if weights is None else weights.sqrt()
    errors = [(root[:, None] * (fit.left_out - target))[some].square().sum() for fit in each]
    begin = index
    while index + 1 < len(errors) and errors[index + 1] < errors[index]:
        index += 1
    while index == begin and index > 0 and errors[index - 1] < errors[index]:
        index = begin = index - 1

    found = ridge(x, target, weights=weights)
    assert found.penalty == each[index].penalty
    for name in ("weight", "bias", "left_out"):
        torch.testing.assert_close(getattr(found, name), getattr(each[index], name))
    one = ridge(x, target, weights=weights, penalties=[found.penalty])
    torch.testing.assert_close(one.left_out, found.left_out)


def test_features_beside_which_every_penalty_is_rounding_are_refused():
    x = 1e12 * torch.ones(30, 40).double().index_fill_(0, torch.arange(15), 0.0)
    with pytest.raises(ValueError, match="can be told from rounding"):
        ridge(x, torch.arange(30.0).double()[:, None], penalties=[1e-4])


def test_of_equally_good_penalties_the_largest_is_taken():
    x = torch.ones(5, 3)  # nothing to learn from: every penalty gives the mean
    fitted = ridge(x, torch.arange(5.0)[:, None])
    assert fitted.penalty == max(PENALTIES)
    assert torch.equal(fitted.weight, torch.zeros(3, 1))
    assert fitted(x).tolist() == [[2.0]] * 5


def test_what_cannot_be_fitted_is_refused():
    with pytest.raises(TypeError, match=r"target has dtype torch.int64"):
        getattr(ridge, "__wrapped__", ridge)(torch.ones(3, 2), torch.eye(3).long())
    with pytest.raises(ValueError, match="got 1 samples"):
        ridge(torch.ones(1, 2), torch.ones(1, 1))
    for weight in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="weight that is not above 0"):
            ridge(torch.ones(2, 2), torch.ones(2, 1), weights=torch.tensor([1.0, weight]))
    for penalties in ([], [1.0, 0.0], [-1.0]):
        with pytest.raises(ValueError, match="above 0"):
            ridge(torch.ones(3, 2), torch.ones(3, 1), penalties=penalties)


@pytest.mark.parametrize(("n", "f"), [(30, 40), (40, 30)])
@pytest.mark.parametrize("penalties", [PENALTIES, [0.5]])
def test_narrow_features_are_widened_in_parts_with_the_same_bits(monkeypatch, n, f, penalties):
    x, target = problem(n, n, f, 2)
    monkeypatch.setattr(sys.modules["spherescan.features.ridge"], "_AT_ONCE", 16)
    narrow = x.float()
    found = ridge(narrow, target, penalties=penalties)
    expected = ridge(narrow.double(), target, penalties=penalties)
    for name in ("weight", "bias", "left_out"):
        assert torch.equal(getattr(found, name), getattr(expected, name))
    assert torch.equal(found(narrow), expected(narrow.double()))
    assert ridge(narrow, target.float(), penalties=penalties).weight.dtype == torch.float32


@pytest.mark.parametrize(
    ("target", "more", "said"),
    [
        (torch.zeros(5), {}, r"target has shape \(5,\).*target\[:, None\]"),
        (torch.zeros(4, 1), {}, r"target has shape \(4, 1\); expected \(5, any\)"),
        (torch.zeros(5, 1), {"weights": torch.ones(1)}, "weights has shape"),
        (torch.full((5, 1), torch.inf), {}, "a target that is not finite"),
        (torch.zeros(5, 1), {"penalties": [1.0, torch.inf]}, "above 0, finite"),
    ],
)
def test_what_would_broadcast_or_is_not_finite_is_refused(target, more, said):
    with pytest.raises(ValueError, match=said):
        getattr(ridge, "__wrapped__", ridge)(torch.eye(5), target, **more)
