"""Data frames, and other forms that series come in."""

import numpy as np
import pandas as pd
import pytest

from spherescan.estimators import SequenceClassifier, SequenceRegressor
from tests.estimators.test_networks import waves


def classifier(**settings):
    return SequenceClassifier(**{"n_features": 84, "random_state": 0} | settings)


@pytest.fixture(scope="module")
def frames():
    X, y = waves(20)
    return [pd.DataFrame(series.T, columns=["pressure", "heat"]) for series in X], y


@pytest.fixture(scope="module")
def fitted(frames):
    return classifier().fit(*frames)


def test_columns_of_frames_are_those_of_the_fit_in_their_order(fitted, frames, tmp_path):
    X, y = frames
    assert fitted.channel_names_ == ["pressure", "heat"]
    arrays = [frame.to_numpy().T for frame in X]
    np.testing.assert_array_equal(fitted.decision_function(X), fitted.decision_function(arrays))
    fitted.save(tmp_path / "fitted")
    loaded = SequenceClassifier.load(tmp_path / "fitted")
    for made in (fitted, loaded, SequenceRegressor(n_features=84).fit(X, y.astype(float))):
        for columns in (["heat", "pressure"], ["a", "b"]):
            other = [frame.set_axis(columns, axis=1) for frame in X]
            with pytest.raises(ValueError, match=f"columns {columns[0]}, {columns[1]}; wanted"):
                made.predict([X[0], *other])
    with pytest.raises(ValueError, match=r"X\[3\] has the columns"):
        classifier().fit([*X[:3], X[3][["heat", "pressure"]], *X[4:]], y)
    fitted.fit(arrays, y)
    assert not hasattr(fitted, "channel_names_")
    assert fitted.predict([X[0][["heat", "pressure"]]]).shape == (1,)


def test_frames_that_hold_something_else_are_told_what_to_do(fitted, frames):
    X, y = frames
    with pytest.raises(ValueError, match=r"X\[0\] has the column 'time', which holds no numbers"):
        classifier().fit([frame.assign(time="noon") for frame in X], y)
    nested = pd.DataFrame({"readings": [list(frame["heat"]) for frame in X]})
    with pytest.raises(ValueError, match="give its column 'readings' as a list"):
        classifier().fit(nested, y)
    assert classifier().fit(nested["readings"], y).n_channels_ == 1
    several = pd.concat(X, keys=range(len(X)))
    with pytest.raises(ValueError, match="index of several levels; give a list of the frames"):
        classifier().fit(several, y)
    assert classifier().fit([frame for _, frame in several.groupby(level=0)], y).n_channels_ == 2
    with pytest.raises(ValueError, match="X is an empty list"):
        fitted.predict([])
    table = classifier().fit(np.stack([frame["heat"] for frame in X]), y)
    with pytest.raises(ValueError, match=r"expecting 30 features as input\..* as a list"):
        table.predict(np.zeros((2, 20)))


WHEN = pd.date_range("2020", periods=30)
TIMES = {
    "times": WHEN,
    "times of a zone": WHEN.tz_localize("UTC"),
    "lengths of time": WHEN - WHEN[0],
    "periods": WHEN.to_period("D"),
    "NaT": [pd.NaT] * 30,
}


@pytest.mark.parametrize("times", TIMES.values(), ids=TIMES)
@pytest.mark.parametrize("missing", ["refuse", "mask"])
def test_a_column_of_times_is_to_be_left_out(frames, times, missing):
    X, y = frames
    made = classifier(missing=missing)
    wanted = "has the column 'time', which holds no numbers .*; leave it out$"
    nullable = [frame.convert_dtypes().mask(frame > 1) for frame in X]
    for several in (X, nullable, [frame[[]] for frame in X]):
        with pytest.raises(ValueError, match=r"^X\[0\] " + wanted):
            made.fit([frame.assign(time=times) for frame in several], y)
    wide = pd.DataFrame(np.stack([frame["heat"] for frame in X])).add_prefix("at_")
    for table in (wide, wide[[]], wide.convert_dtypes().mask(wide > 1)):
        with pytest.raises(ValueError, match="^X " + wanted):
            made.fit(table.assign(time=times[:20]), y)


def test_columns_of_complex_numbers_are_named(frames):
    X, y = frames
    for values in ([frame.assign(wave=1j) for frame in X], X[0].assign(wave=1j)):
        with pytest.raises(ValueError, match=r"column 'wave', .* \(it is of type complex128\)"):
            classifier().fit(values, y)


@pytest.mark.parametrize("settings", [{}, {"missing": "mask"}, {"vocab_size": 3}])
def test_groups_are_told_what_to_do(frames, settings):
    X, y = frames
    table = pd.concat([frame.assign(case=case) for case, frame in enumerate(X)])
    groups = table.groupby("case")
    for values in (groups, groups["heat"], list(groups)):
        with pytest.raises(ValueError, match=r"a list of the frames alone, .*\[frame\.drop\(colum"):
            classifier(**settings).fit(values, y)
    alone = [frame.drop(columns="case") for _, frame in groups]
    expected = classifier().fit(X, y).decision_function(X)
    np.testing.assert_array_equal(classifier().fit(alone, y).decision_function(X), expected)


def test_a_column_without_ndim_is_a_list_of_series(frames):
    """As polars has it."""

    class Column:
        def __init__(self, values):
            self.values, self.shape = values, (len(values),)

        def to_numpy(self):
            return np.array([*self.values, None], dtype=object)[:-1]

    X, y = frames
    column = Column([frame["heat"].to_numpy() for frame in X])
    assert classifier().fit(column, y).predict(column).shape == (20,)


def test_features_that_memory_cannot_hold_are_refused(frames):
    for made in (classifier(n_features=10**9), SequenceRegressor(n_features=10**10)):
        with pytest.raises(ValueError, match="more than half of this machine's memory: choose"):
            made.fit(frames[0], frames[1].astype(float))


def test_the_unit_of_values_does_not_matter(frames):
    X = np.stack([frame.to_numpy().T for frame in frames[0]])
    expected = classifier().fit(X, frames[1]).decision_function(X)
    for unit in (2.0**-600, 2.0**-40, 2.0**100):
        made = classifier().fit(unit * X, frames[1])
        np.testing.assert_allclose(made.decision_function(unit * X), expected, atol=1e-3)


@pytest.mark.parametrize("settings", [{}, {"causal": True, "max_steps": 2}])
@pytest.mark.parametrize("made_of", [SequenceClassifier, SequenceRegressor])
@pytest.mark.parametrize("level", [0.1, 1e-9, 1013.1])
def test_rounding_of_a_channel_that_never_moved_in_training_is_not_magnified(
    frames, settings, made_of, level
):
    X = np.stack([frame.to_numpy().T for frame in frames[0]])

    def with_channel(value):
        return np.concatenate([X, np.full_like(X[:, :1], value)], 1)

    quick = {"n_features": 84, "random_state": 0, "missing": "mask"} | settings
    made = made_of(**quick).fit(with_channel(level), frames[1])
    say = made.predict if made_of is SequenceRegressor else made.decision_function
    expected = say(with_channel(level))
    for value in (np.float32(level), level * (1 + 1e-9), np.nan):
        np.testing.assert_allclose(say(with_channel(value)), expected, atol=1e-5)
    if made_of is SequenceClassifier:
        moved = made.predict_open(with_channel(1.1 * level))
        assert (moved == "unknown").mean() > 0.9  # its first move is a strong sign


@pytest.mark.unwatched
def test_single_numbers_and_labels_are_asked_for(fitted, frames):
    X, y = frames
    for coverage in (None, "a", [0.9, 0.9], 1.0):
        with pytest.raises(ValueError, match="must lie between 0 and 1"):
            fitted.predict_set(X, coverage=coverage)
    with pytest.raises(ValueError, match="must be a single label"):
        fitted.predict_open(X, unknown_label=np.array([1, 2]))
    with pytest.raises(ValueError, match="which classes does not have"):
        classifier().partial_fit(X, np.array([1, "a", None], dtype=object)[y % 3], classes=[5])
    with pytest.raises(ValueError, match='must be "refuse" or "mask"'):
        classifier(missing=["mask"]).fit(X, y)


def test_the_page_has_code_that_runs(fitted, tmp_path, frames):
    made = classifier(
        random_state=np.random.RandomState(0), reserve_classes=np.int64(2), time_budget=3.5
    )
    with pytest.warns(UserWarning, match="time_budget is for networks alone"):
        made.fit(*frames)
    page = made.report(tmp_path / "page.html").read_text()
    assert "from spherescan.estimators import SequenceClassifier\n\nSequenceClassifier(" in page
    assert "reserve_classes=2, time_budget=3.5).fit(X, y)  # and random_state, which" in page
