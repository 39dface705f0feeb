"""Many new series: a part of them is described at a time."""

import weakref

import numpy as np
import pytest

from spherescan.estimators import SequenceClassifier, SequenceRegressor, sequences

pytestmark = pytest.mark.unwatched


def waves(n, seed):
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 3
    X = np.sin((1 + y[:, None]) * np.linspace(0, 6, 30)) + 0.3 * rng.standard_normal((n, 30))
    return X, y


@pytest.fixture(scope="module")
def classifier():
    return SequenceClassifier(n_features=84, random_state=0).fit(*waves(30, 0))


def few_at_once(estimator, monkeypatch):
    """Let three series be described at a time, and return of how many that was asked."""
    features, asked = estimator._fitted.features, []
    forward = features.forward

    def counted(x, mask):
        asked.append(len(x))
        return forward(x, mask)

    monkeypatch.setattr(features, "forward", counted)
    monkeypatch.setattr(sequences, "_FEATURES_AT_ONCE", 3 * features.n_features + 1)
    return asked


@pytest.mark.parametrize(
    "method",
    ["decision_function", "known_score", "predict", "predict_open", "predict_proba", "transform"],
)
def test_answers_of_a_classifier_are_those_to_all_at_once(classifier, monkeypatch, method):
    X = waves(10, 1)[0]
    whole = getattr(classifier, method)(X)
    asked = few_at_once(classifier, monkeypatch)
    found = getattr(classifier, method)(X)
    assert asked == [3, 3, 3, 1]
    if found.dtype.kind == "f":
        np.testing.assert_allclose(found, whole, rtol=1e-12, atol=1e-14)
    else:
        np.testing.assert_array_equal(found, whole)


@pytest.mark.parametrize("method", ["predict", "transform"])
def test_answers_of_a_regressor_are_those_to_all_at_once(monkeypatch, method):
    X, y = waves(30, 0)
    regressor = SequenceRegressor(n_features=84, random_state=0).fit(X, y + 0.1 * X[:, 0])
    whole = getattr(regressor, method)(X[:10])
    asked = few_at_once(regressor, monkeypatch)
    np.testing.assert_allclose(getattr(regressor, method)(X[:10]), whole, rtol=1e-12, atol=1e-14)
    assert asked == [3, 3, 3, 1]


@pytest.mark.parametrize("kind", [SequenceClassifier, SequenceRegressor])
def test_calibrating_holds_a_few_features_at_once_and_decides_by_what_answers_are(
    kind, monkeypatch
):
    X, y = waves(30, 0)
    made = kind(n_features=84, random_state=0).fit(X, y)
    asked = few_at_once(made, monkeypatch)
    features, parts = made._fitted.features, []
    forward = features.forward

    def watched(x, mask):
        # The last part may still be in use while the next one is described.
        assert all(part() is None for part in parts[:-1])
        rows = forward(x, mask)
        parts.append(weakref.ref(rows))
        return rows

    monkeypatch.setattr(features, "forward", watched)
    X, y = waves(10, 1)
    calibration = made.calibrate(X, y)._fitted.calibration
    assert asked == [3, 3, 3, 1]
    if kind is SequenceRegressor:
        np.testing.assert_array_equal(calibration, [made.predict(X), y])
        return
    np.testing.assert_array_equal(calibration.cosines, made.decision_function(X))
    np.testing.assert_array_equal(calibration.known, made.known_score(X))
    np.testing.assert_array_equal(calibration.target, y)


def test_a_series_that_is_refused_is_named_by_its_place_in_all(monkeypatch):
    X, y = waves(30, 0)
    classifier = SequenceClassifier(n_features=84, random_state=0).fit(1e-6 * X, y)
    few_at_once(classifier, monkeypatch)
    X[7] *= 1e35
    with pytest.raises(ValueError, match=r"series 7 of X has values too far"):
        classifier.predict(X)
