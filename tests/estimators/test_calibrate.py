"""Thresholds and widths from series that no fit has seen."""

import copy
import functools

import numpy as np
import pytest
import torch

from spherescan.estimators import SequenceClassifier, SequenceRegressor
from tests.estimators.forging import Forger

T = np.linspace(0, 6, 40)


def waves(n, seed, *, noise):
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 3
    return np.sin((2 + y[:, None]) * T) + noise * rng.standard_normal((n, 40)), y


def slopes(n, seed, *, noise):
    rng = np.random.default_rng(seed)
    y = rng.uniform(-1, 1, n)
    return y[:, None] * T + noise * rng.standard_normal((n, 40)), y


@functools.cache
def _classifier():
    return SequenceClassifier(n_features=84, random_state=0).fit(*waves(60, 0, noise=0.3))


@functools.cache
def _regressor():
    return SequenceRegressor(n_features=84, random_state=0).fit(*slopes(60, 0, noise=0.3))


def classifier():
    return copy.deepcopy(_classifier())


def regressor():
    return copy.deepcopy(_regressor())


def test_rates_are_those_asked_for_where_new_series_are_unlike_those_of_training():
    made = classifier()

    def rates(X, y):
        held = made.predict_set(X, coverage=0.8)[np.arange(len(y)), y].mean()
        return held, (made.predict_open(X, rejection=0.1) == "unknown").mean()

    X, y = waves(100, 99, noise=1.5)
    before, (held, unknown) = made.decision_function(X), rates(X, y)
    assert held < 0.7
    assert unknown > 0.3
    found = []
    for seed in range(6):
        X, y = waves(160, seed, noise=1.5)
        made.calibrate(X[:60], y[:60])
        found.append(rates(X[60:], y[60:]))
    held, unknown = np.mean(found, 0)
    assert held == pytest.approx(0.8, abs=0.05)
    assert unknown == pytest.approx(0.1, abs=0.04)
    assert (made.decision_function(waves(100, 99, noise=1.5)[0]) == before).all()


def test_intervals_hold_values_as_often_as_asked_where_series_are_unlike_those_of_training():
    made = regressor()

    def rate(X, y):
        low, high = made.predict_interval(X, coverage=0.8).T
        return ((low <= y) & (y <= high)).mean()

    assert rate(*slopes(100, 99, noise=3.0)) < 0.7
    found = []
    for seed in range(6):
        X, y = slopes(160, seed, noise=3.0)
        made.calibrate(X[:60], y[:60])
        found.append(rate(X[60:], y[60:]))
    assert np.mean(found) == pytest.approx(0.8, abs=0.05)


def test_what_was_calibrated_is_saved_and_ends_with_the_classes_it_knew(tmp_path):
    X, y = waves(90, 1, noise=1.5)
    plain, made = classifier(), classifier().calibrate(X, y)
    made.save(tmp_path / "kept")
    again = SequenceClassifier.load(tmp_path / "kept")
    assert (again.predict_set(X) == made.predict_set(X)).all()
    assert (again.predict_open(X) == made.predict_open(X)).all()
    assert (again.predict_set(X) != plain.predict_set(X)).any()
    strange = np.cos(9 * T)[None] + np.zeros((5, 1))
    for each in (plain, made):
        each.add_classes(strange, [7] * 5)
    assert (made.predict_set(X) == plain.predict_set(X)).all()
    widened = made.calibrate(X, y).predict_set(X)
    assert widened.shape == (90, 4)
    made.partial_fit(X, y)
    assert (made.predict_set(X) == plain.partial_fit(X, y).predict_set(X)).all()


def test_a_calibrated_regressor_is_saved_and_a_later_fit_forgets(tmp_path):
    X, y = slopes(90, 1, noise=3.0)
    made = regressor().calibrate(X, y)
    made.save(tmp_path / "kept")
    again = SequenceRegressor.load(tmp_path / "kept")
    assert (again.predict_interval(X) == made.predict_interval(X)).all()
    again = regressor().partial_fit(X, y)
    assert (made.partial_fit(X, y).predict_interval(X) == again.predict_interval(X)).all()


def test_a_page_says_what_sets_were_made_by(tmp_path):
    X, y = waves(90, 1, noise=1.5)
    made = classifier()
    note = "Measured on the series that set their sizes"
    assert note in made.report(tmp_path / "left_out.html").read_text()
    assert note not in made.calibrate(X, y).report(tmp_path / "held_out.html").read_text()
    few = made.calibrate(X[:6], y[:6]).report(tmp_path / "few.html").read_text()
    assert "6 series are too few to tell a coverage" in few


def test_what_cannot_calibrate_is_refused_and_changes_nothing():
    X, y = waves(30, 1, noise=0.3)
    made = classifier()
    before = made.predict_set(X)
    for bad, reason in ((y + 1, "3"), (y[1:], "inconsistent"), (None, "requires y")):
        with pytest.raises(ValueError, match=reason):
            made.calibrate(X, bad)
    with pytest.raises(ValueError, match="NaN"):
        regressor().calibrate(X, np.full(30, np.nan))
    assert (made.predict_set(X) == before).all()
    made.calibrate(X[:5], y[:5])
    with pytest.raises(ValueError, match="5 scores cannot promise a rejection rate"):
        made.predict_open(X)
    with pytest.raises(ValueError, match="5 series cannot tell a coverage"):
        regressor().calibrate(*slopes(5, 1, noise=1.0)).predict_interval(X)


def test_forged_files_are_refused(tmp_path):
    forger = Forger(classifier().calibrate(*waves(30, 1, noise=0.3)), tmp_path)
    good, refused = forger.good.tensors, forger.refused
    for name in ("cosines", "target", "known"):
        tensor = good[f"calibration.{name}"]
        refused(f"no {name} of calibration", **{f"calibration__{name}": None})
        refused("does not fit", **{f"calibration__{name}": tensor[:0]})
        refused("does not fit", **{f"calibration__{name}": tensor.flatten()[0]})
        refused("does not fit", **{f"calibration__{name}": tensor.to(torch.float32)})
    refused("does not fit", calibration__cosines=good["calibration.cosines"][:, :2])
    names = ("cosines", "target", "known")
    nothing = {f"calibration__{name}": good[f"calibration.{name}"][:0] for name in names}
    refused("does not fit", **nothing)
    refused("cannot be", calibration__cosines=2 + good["calibration.cosines"])
    refused("cannot be", calibration__cosines=good["calibration.cosines"] - 2)
    refused("cannot be", calibration__target=3 + good["calibration.target"])
    refused("cannot be", calibration__target=good["calibration.target"] - 1)
    refused("cannot be", calibration__known=good["calibration.known"] / 0)
    (tmp_path / "other").mkdir()
    forger = Forger(regressor().calibrate(*slopes(30, 1, noise=0.3)), tmp_path / "other")
    found, refused = forger.good.tensors["calibration"], forger.refused
    refused("calibration is", calibration=found[0])
    refused("calibration is", calibration=found.float())
    refused("calibration is", calibration=found[:1])
    refused("calibration is", calibration=found[:, :0])
    refused("calibration is", calibration=found.T.contiguous())
    refused("not finite", calibration=found / 0)
