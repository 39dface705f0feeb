"""Values that are missing: refused unless one says that they may be."""

import numpy as np
import pandas as pd
import pytest
from sklearn.utils.estimator_checks import parametrize_with_checks

from spherescan.errors import CheckpointError
from spherescan.estimators import SequenceClassifier, SequenceRegressor
from spherescan.runs import read_checkpoint, write_checkpoint

QUICK = {"n_features": 84, "random_state": 0}


def waves(n=30, length=40, seed=0):
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 3
    t = np.linspace(0, 6, length)
    X = np.sin((1 + y[:, None, None]) * t + np.arange(2)[:, None])
    return X + 0.1 * rng.standard_normal((n, 2, length)), y


def holes(X, share=0.2, seed=1):
    gone = np.random.default_rng(seed).random(X.shape) < share
    return np.where(gone, np.nan, X)


@pytest.mark.unwatched
@parametrize_with_checks([SequenceClassifier(n_features=84, missing="mask")])
def test_what_scikit_learn_expects(estimator, check):
    check(estimator)


@pytest.mark.parametrize("estimator", [SequenceClassifier(**QUICK), SequenceRegressor(**QUICK)])
def test_they_are_refused_unless_they_may_be(estimator):
    X, y = waves()
    with pytest.raises(ValueError, match="NaN"):
        estimator.fit(holes(X), y)
    with pytest.raises(ValueError, match='set missing="mask"'):
        estimator.fit(np.ma.masked_array(X, np.isnan(holes(X))), y)
    with pytest.raises(ValueError, match='must be "refuse" or "mask"'):
        estimator.set_params(missing="drop").fit(X, y)
    with pytest.raises(ValueError, match="infinity"):
        estimator.set_params(missing="mask").fit(np.where(holes(X) > 1, np.inf, X), y)


def test_holes_are_read_over_by_straight_lines():
    X, y = waves()
    made = SequenceClassifier(**QUICK, missing="mask").fit(X, y)
    t = np.arange(40.0)
    line = np.stack([2 * t - 3, 5 - t])
    gaps = line.copy()
    gaps[0, 4:9], gaps[1, [3, 20, 21]] = np.nan, np.nan
    assert np.array_equal(made.decision_function([gaps]), made.decision_function([line]))
    ends = line.copy()
    ends[0, :3], ends[1, 38:] = line[0, 3], line[1, 37]
    gaps = ends.copy()
    gaps[0, :3], gaps[1, 38:] = np.nan, np.nan
    assert np.array_equal(made.decision_function([gaps]), made.decision_function([ends]))
    empty, mean = line.copy(), line.copy()
    empty[1], mean[1] = np.nan, X[:, 1].mean()
    np.testing.assert_allclose(
        made.decision_function([empty]), made.decision_function([mean]), atol=1e-12
    )


@pytest.mark.parametrize("form", ["array", "masked", "list", "masked list"])
def test_every_form_of_holes_gives_the_same_answers(form):
    X, y = waves()
    gaps = holes(X)
    forms = {
        "array": gaps,
        "masked": np.ma.masked_array(X, np.isnan(gaps)),
        "list": list(gaps),
        "masked list": [np.ma.masked_array(x, np.isnan(g)) for x, g in zip(X, gaps, strict=True)],
    }
    made = SequenceClassifier(**QUICK, missing="mask").fit(forms[form], y)
    again = SequenceClassifier(**QUICK, missing="mask").fit(gaps, y)
    assert np.array_equal(made.decision_function(forms[form]), again.decision_function(gaps))
    test = waves(seed=5)
    assert made.score(holes(test[0], seed=6), test[1]) > 0.9


@pytest.mark.parametrize("kind", [SequenceClassifier, SequenceRegressor])
@pytest.mark.parametrize("unit", ["Float64", "Int64"])
def test_the_na_of_pandas_is_nan(kind, unit):
    X, y = waves()
    X = (100 * X).round()
    gone = np.isnan(holes(X))
    gaps = np.where(gone, np.nan, X)
    frames = [pd.DataFrame(series.T).astype(unit) for series in gaps]
    assert frames[0].iloc[int(gone[0, 0].argmax()), 0] is pd.NA
    table = pd.DataFrame(gaps[:, 0]).astype(unit)
    some = np.where(gone, pd.NA, X.astype(object))
    made = kind(**QUICK, missing="mask")
    for expected, forms in (
        (gaps, [frames, some, list(some), [list(map(list, series)) for series in some]]),
        (gaps[:, 0], [table, table.astype(object), [frame[0] for frame in frames], some[:, 0]]),
    ):
        answers = made.fit(expected, y).transform(expected)
        for form in forms:
            assert np.array_equal(made.fit(form, y).transform(form), answers)
            with pytest.raises(ValueError, match=r"^series 0 of X has NaN in channel 0 at"):
                kind(**QUICK).fit(form, y)
    named = table.astype(object).add_prefix("at_")
    names = made.fit(named, y).feature_names_in_
    assert list(names) == list(named.columns)


def test_a_flag_that_is_missing_is_nan():
    X, y = waves()
    up = pd.array([True, False, None, True] * 10, dtype="boolean")
    frames = [pd.DataFrame({"wave": series[0], "up": up}) for series in X]
    numbers = [frame.astype(float) for frame in frames]
    made = SequenceClassifier(**QUICK, missing="mask")
    expected = made.fit(numbers, y).transform(numbers)
    assert np.array_equal(made.fit(frames, y).transform(frames), expected)


def test_without_holes_it_is_as_if_none_could_be():
    X, y = waves()
    plain = SequenceClassifier(**QUICK).fit(X, y)
    made = SequenceClassifier(**QUICK, missing="mask").fit(X, y)
    assert np.array_equal(plain.decision_function(X), made.decision_function(X))


def test_a_channel_that_nobody_has_seen_is_named():
    X, y = waves()
    X[:, 1] = np.nan
    with pytest.raises(ValueError, match="channel 1 of X has no value in any series"):
        SequenceClassifier(**QUICK, missing="mask").fit(X, y)


@pytest.mark.parametrize("kind", [SequenceClassifier, SequenceRegressor])
def test_what_is_saved_fills_in_the_same(tmp_path, kind):
    X, y = waves()
    made = kind(**QUICK, missing="mask").fit(holes(X), y)
    made.save(tmp_path / "good")
    again = kind.load(tmp_path / "good")
    gaps = holes(X, seed=3)
    gaps[0, 1] = np.nan
    assert np.array_equal(again.transform(gaps), made.transform(gaps))
    good = read_checkpoint(tmp_path / "good")
    for means in (None, [1.0], [1.0, "a"]):
        state = good.state | {"channel_means": means}
        write_checkpoint(tmp_path / "bad", good.tensors, state)
        with pytest.raises(CheckpointError, match="means"):
            kind.load(tmp_path / "bad")
        (tmp_path / "bad").unlink()


@pytest.mark.parametrize("kind", [SequenceClassifier, SequenceRegressor])
def test_what_was_fitted_without_cannot_be_switched_on(kind):
    X, y = waves()
    made = kind(**QUICK).fit(X, y).set_params(missing="mask")
    with pytest.raises(ValueError, match="fit it again"):
        made.predict(holes(X))
