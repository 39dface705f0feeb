import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.model_selection import cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from spherescan.errors import CheckpointError
from spherescan.estimators import SequenceRegressor
from tests.estimators.forging import Forger


def waves(n: int, *, length: int = 40, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Series of two channels whose value is the frequency of the first."""
    rng = np.random.default_rng(seed)
    y = rng.uniform(1, 4, size=n)
    t = np.linspace(0, 6, length)
    first = np.sin(y[:, None] * t + rng.uniform(0, 6, size=(n, 1)))
    return np.stack([first, first[:, ::-1]], 1) + 0.1 * rng.standard_normal((n, 2, length)), y


@pytest.fixture(scope="module")
def fitted():
    return SequenceRegressor(n_features=252, random_state=0).fit(*waves(120))


def test_it_tells_the_frequency_of_series_of_other_phases_and_lengths(fitted):
    X, y = waves(60, seed=1)
    assert fitted.score(X, y) > 0.95
    ragged = [series[:, : 30 + i % 10] for i, series in enumerate(X)]
    assert fitted.score(ragged, y) > 0.9
    in_pipeline = make_pipeline(FunctionTransformer(), SequenceRegressor(n_features=252))
    assert np.corrcoef(cross_val_predict(in_pipeline, X, y, cv=3), y)[0, 1] > 0.8


def test_more_series_are_learned_as_if_with_the_others(tmp_path):
    X, y = waves(90)
    made = SequenceRegressor(n_features=84, random_state=0).partial_fit(X[:50], y[:50])
    before = made.score(X[50:], y[50:])
    _, high = made.range_
    made.partial_fit(X[50:], 3 * y[50:] - 2)
    assert made.range_[1] > high
    made = SequenceRegressor(n_features=84, random_state=0).partial_fit(X[:50], y[:50])
    assert made.partial_fit(X[50:], y[50:]) is made
    assert made.score(X[50:], y[50:]) > before
    assert len(made.left_out_predictions_) == 90
    twice = SequenceRegressor(n_features=84, random_state=0).fit(X[:50], y[:50])
    twice.partial_fit(X[50:70], y[50:70]).partial_fit(X[70:], y[70:])
    np.testing.assert_allclose(twice.predict(X), made.predict(X), atol=1e-5)
    made.save(tmp_path / "saved")
    with pytest.raises(ValueError, match="without the features of its training series"):
        SequenceRegressor.load(tmp_path / "saved").partial_fit(X, y)


def test_predictions_are_cosines_with_the_pole_in_the_range(fitted):
    X, _ = waves(20, seed=2)
    low, high = fitted.range_
    margin = 0.5 * (waves(120)[1].max() - waves(120)[1].min())
    assert (low, high) == pytest.approx(
        (waves(120)[1].min() - margin, waves(120)[1].max() + margin)
    )
    points = fitted.transform(X)
    np.testing.assert_allclose(np.linalg.norm(points, axis=1), 1)
    np.testing.assert_allclose(fitted.predict(X), low + (points[:, 0] + 1) / 2 * (high - low))
    assert list(fitted.get_feature_names_out()) == ["sequenceregressor0", "sequenceregressor1"]
    far = fitted.predict(1e6 * X)
    assert ((low <= far) & (far <= high)).all()


@pytest.mark.unwatched
def test_a_series_left_out_gets_nearly_what_a_fit_without_it_says():
    X, y = waves(30, seed=4)
    fitted = SequenceRegressor(n_features=84, random_state=0).fit(X, y)
    seen = np.abs(fitted.predict(X) - y).mean()
    left_out = fitted.left_out_predictions_
    refits = []
    for i in range(30):
        rest = np.arange(30) != i
        without = SequenceRegressor(n_features=84, random_state=0).fit(X[rest], y[rest])
        refits.append(without.predict(X[i : i + 1])[0])
    # Features and penalty were fitted without the series too, so they differ a little.
    assert np.abs(left_out - refits).mean() < 0.5 * np.abs(np.array(refits) - y).mean()
    assert np.abs(left_out - y).mean() > 2 * seen


@pytest.mark.unwatched
def test_intervals_hold_the_value_as_often_as_promised():
    shares, widths = [], []
    for seed in range(20):
        fitted = SequenceRegressor(n_features=84, random_state=seed).fit(*waves(40, seed=seed))
        X, y = waves(50, seed=1000 + seed)
        found = fitted.predict_interval(X, coverage=0.8)
        np.testing.assert_allclose(found.mean(1), fitted.predict(X))
        shares.append(((found[:, 0] <= y) & (y <= found[:, 1])).mean())
        widths.append([np.diff(fitted.predict_interval(X[:1], coverage=c)) for c in (0.5, 0.9)])
    assert abs(np.mean(shares) - 0.8) < 0.05
    assert (np.array(widths)[:, 0] < np.array(widths)[:, 1]).all()


def test_a_coverage_that_so_few_series_cannot_tell_is_refused(fitted):
    with pytest.raises(ValueError, match="120 series cannot tell a coverage"):
        fitted.predict_interval(waves(2)[0], coverage=0.999)
    few = SequenceRegressor(n_features=84).fit(*waves(12))
    with pytest.raises(ValueError, match=r"ask for at most 0\.923$"):
        few.predict_interval(waves(2)[0], coverage=0.95)
    assert few.predict_interval(waves(2)[0], coverage=0.923).shape == (2, 2)
    with pytest.raises(ValueError, match="coverage"):
        fitted.predict_interval(waves(2)[0], coverage=1.5)


def test_values_that_are_all_the_same_are_learnt():
    X, _ = waves(6)
    for value in (0.0, -7.0, 1e9):
        found = SequenceRegressor(n_features=84).fit(X, np.full(6, value)).predict(X)
        np.testing.assert_allclose(found, value, rtol=1e-9, atol=1e-9)


def test_what_is_saved_answers_with_the_same_bits(fitted, tmp_path):
    X, _ = waves(9, seed=5)
    fitted.save(tmp_path / "kept")
    again = SequenceRegressor.load(tmp_path / "kept")
    for method in ("predict", "transform", "predict_interval"):
        assert (getattr(again, method)(X) == getattr(fitted, method)(X)).all()
    assert again.get_params() == fitted.get_params()
    assert again.range_ == fitted.range_
    assert again.n_channels_ == 2
    fitted.save(tmp_path / "kept")  # the same bytes once more
    another = SequenceRegressor(n_features=84, random_state=1).fit(*waves(9))
    with pytest.raises(CheckpointError):
        another.save(tmp_path / "kept")


def test_a_forged_file_is_refused(fitted, tmp_path):
    forger = Forger(fitted, tmp_path)
    good, refused = forger.good, forger.refused
    refused("of 'SequenceClassifier'", state=good.state | {"estimator": "SequenceClassifier"})
    refused("margin", state=good.state | {"margin": 0.0})
    refused("margin", state=good.state | {"margin": "wide"})
    refused("empty", state=good.state | {"lower": 9.0})
    refused("not finite", state=good.state | {"lower": -1e308, "upper": 1e308})
    refused("n_features_in", state=good.state | {"n_features_in": -1})
    refused("with 1 names", state=good.state | {"n_features_in": 2, "feature_names": ["a"]})
    refused("too large", target=99 + good.tensors["target"])
    refused("too large", weight=1e300 + good.tensors["weight"])
    refused("weight", weight=None)
    refused("does not fit", weight=good.tensors["weight"][1:])
    refused("does not fit", bias=good.tensors["bias"][None])
    refused("does not fit", target=good.tensors["target"][1:])
    refused("does not fit", left_out=good.tensors["left_out"].float())
    refused("not finite", left_out=good.tensors["left_out"] / 0)
    refused("too large", left_out=99 + good.tensors["left_out"])
    refused("too large", bias=torch.tensor(-1e300, dtype=torch.float64))
    empty = torch.zeros(0, dtype=torch.float64)
    refused("does not fit", target=empty, left_out=empty)


@pytest.mark.parametrize(
    ("settings", "error", "reason"),
    [
        ({"margin": 0}, ValueError, "between 0.01 and 1000"),
        ({"margin": float("inf")}, ValueError, "between"),
        ({"margin": float("nan")}, ValueError, "between"),
        ({"margin": "wide"}, TypeError, "must be a number"),
        ({"margin": True}, TypeError, "must be a number"),
        ({"n_features": 3}, ValueError, "84"),
        ({"n_features": 99.0}, TypeError, "whole number"),
    ],
)
def test_settings_that_are_wrong_are_refused(settings, error, reason):
    with pytest.raises(error, match=reason):
        SequenceRegressor(**settings).fit(*waves(5))


@pytest.mark.parametrize(
    ("y", "reason"),
    [
        (None, "requires y"),
        ([1.0, 2.0], "inconsistent"),
        ([1.0, 2.0, np.nan], "NaN"),
        ([1.0, 2.0, np.inf], "infinity"),
        (np.ones((3, 2)), "1d array"),
        (["a", "b", "c"], "could not convert|strings"),
        (np.ma.masked_equal([1.0, 2.0, 3.0], 2.0), "masked values"),
        ([1.0, 2.0, None], "NaN"),
        (pd.Series([1, 2, None], dtype="Int64"), "NaN"),
        (np.array([1.0, 2.0, pd.NA], dtype=object), "NaN"),
        (["a", "b", "c"], "^y: could not convert .*'a'; give a number for each series"),
        ([-1e308, 0.0, 1e308], "too large; rescale"),
        ([1e308, 1e308, 1e308], "too large; rescale"),
        ([1e16, 1e16, 1e16 + 2], "barely tell apart"),
    ],
)
def test_values_that_are_wrong_are_refused(y, reason):
    regressor = SequenceRegressor(n_features=84)
    with pytest.raises(ValueError, match=reason):
        regressor.fit(waves(3)[0], y)
    with pytest.raises(ValueError, match="at least two"):
        regressor.fit(waves(1)[0], [1.0])
    assert not regressor.__sklearn_is_fitted__()


TIMES = np.array(["2020-01-01", "2020-01-02", "NaT"], dtype="datetime64[s]")


@pytest.mark.parametrize(
    ("y", "reason"),
    [
        (TIMES, r"of type datetime64\[s\], which .*: \(y - start\) / np\.timedelta64\(1, 's'\)"),
        (TIMES - TIMES[0], r"of type timedelta64\[s\], .*: y / np\.timedelta64\(1, 's'\)"),
        (pd.Series(TIMES), r"of type datetime64\[s\]"),
        (list(TIMES), r"of type datetime64\[s\]"),
        (pd.Series(TIMES).dt.tz_localize("UTC"), "^y: .* not 'Timestamp'; give a number for each"),
        (pd.Series(TIMES).dt.to_period("D"), "^y: .* not 'Period'; give a number for each series"),
    ],
)
def test_times_are_no_values(fitted, y, reason):
    for learn in (SequenceRegressor().fit, fitted.partial_fit, fitted.calibrate):
        with pytest.raises(TypeError, match=reason):
            learn(waves(3)[0], y)


def test_the_largest_values_are_refused_without_a_warning():
    y = [-1.7e308, 1.7e308] * 8
    with pytest.raises(ValueError, match="which is too large; rescale it"):
        SequenceRegressor().fit(waves(16)[0], y)
