"""Values of X that are no numbers are named with their series, and labels that are none."""

import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_array

from spherescan.estimators import SequenceClassifier, SequenceRegressor

NUMBERS, TEXTS = ["1", "2", "3"], ["4", "a", "b"]


@pytest.mark.parametrize("missing", ["refuse", "mask"])
@pytest.mark.parametrize(
    "X",
    [
        [NUMBERS, TEXTS],
        [NUMBERS, TEXTS[:2]],
        [[NUMBERS, NUMBERS], [NUMBERS, TEXTS]],
        [np.ones(3), np.array(TEXTS)],
        [np.ones(3), np.array(TEXTS[:2], dtype=object)],
        np.array([NUMBERS, TEXTS]),
        np.array([NUMBERS, TEXTS], dtype=object),
        np.array([[NUMBERS], [TEXTS]], dtype=object),
        pd.DataFrame([NUMBERS, TEXTS]),
        pd.DataFrame([NUMBERS, TEXTS], dtype="category"),
        pd.Series([NUMBERS, TEXTS[:2]]),
    ],
    ids=lambda X: type(X).__name__,
)
def test_a_text_that_is_no_number_is_named_with_its_series(X, missing):
    # NumPy may write np.str_('a').
    wanted = "^series 1 of X: could not convert string to float: .*a.*; it has to be a number$"
    for made in (SequenceClassifier(missing=missing), SequenceRegressor(missing=missing)):
        with pytest.raises(ValueError, match=wanted):
            made.fit(X, [0, 1])


def test_a_single_text_in_an_array_is_refused():
    with pytest.raises(ValueError, match="series 0 of X: could not convert string to float"):
        SequenceClassifier().fit(np.array("a"), [0])


WHEN = np.array(["2020-01-01", "2020-01-02", "NaT"], dtype="datetime64[s]")
SINCE = WHEN - WHEN[0]


@pytest.mark.parametrize("missing", ["refuse", "mask"])
@pytest.mark.parametrize(
    ("times", "wanted"),
    [
        (
            WHEN,
            r"of type datetime64\[s\], which is no number; .*: \(X.* - start\) / np\.timedelta64",
        ),
        (SINCE, r"of type timedelta64\[s\], which is no number; .*: X.* / np\.timedelta64"),
    ],
)
def test_times_are_no_numbers(times, wanted, missing):
    table = np.stack([times, times])
    lists = [list(times), list(times)]
    columns = [pd.Series(times), pd.Series(times)]
    nested, stacked, ragged = [[*table], [*table]], np.stack([table, table]), [times, times[:2]]
    for X in (table, lists, columns, nested, stacked, ragged, [*table], pd.Series([*table])):
        with pytest.raises(TypeError, match=wanted):
            SequenceClassifier(missing=missing).fit(X, [0, 1])


@pytest.mark.parametrize(
    ("strange", "kind"),
    [
        (pd.Timestamp(0), "not 'Timestamp'"),
        (pd.Timestamp(0, tz="UTC"), "not 'Timestamp'"),
        (pd.Period("2020"), "not 'Period'"),
        (1j, "of type complex128|not 'complex'"),
        ({}, "not 'dict'"),
    ],
)
def test_objects_that_are_no_numbers_are_named_with_their_series(strange, kind):
    wanted = f"^series 1 of X: .* ({kind}); it has to be a number$"
    good, bad = [1.0, pd.NA, None], np.array([2.0, strange, 3.0], dtype=object)
    for X in ([good, list(bad)], np.array([good, bad]), [good, pd.Series(bad)], [good, bad[:2]]):
        with pytest.raises(TypeError, match=wanted):
            SequenceClassifier(missing="mask").fit(X, [0, 1])


def test_a_series_of_times_of_a_zone_makes_no_numbers():
    times = pd.Series(pd.date_range("2020", periods=4, tz="UTC"))
    for X in ([times, times], [times, times[:3]], pd.Series([times, times])):
        with pytest.raises(TypeError, match=r"series 0 of X: .* not 'Timestamp'; it has to be"):
            SequenceClassifier().fit(X, [0, 1])


def test_a_sparse_matrix_is_called_one():
    X = csr_array(np.eye(2))
    for values in (X, [X, X]):
        with pytest.raises(TypeError, match="Sparse data was passed"):
            SequenceClassifier().fit(values, [0, 1])


def test_complex_numbers_are_refused_in_a_few_words():
    X = np.ones((2, 3, 40)) + 1j
    for values in (X, X[:, 0], X.tolist(), list(X), [X[0], X[1, :, :5]]):
        with pytest.raises(ValueError, match=r"^Complex data not supported: X(\[0\])? is of type"):
            SequenceClassifier().fit(values, [0, 1])
    with pytest.raises(ValueError, match=r"^Complex data not supported: y is of"):
        SequenceClassifier().fit(X.real, [1j, 2j])
    with pytest.raises(ValueError, match=r"^Complex data not supported: y is of"):
        SequenceRegressor().fit(X.real, [1j, 2j])


@pytest.fixture(scope="module")
def fitted():
    X = np.random.default_rng(0).standard_normal((4, 20))
    return SequenceClassifier(n_features=84).fit(X, ["a", "b", "a", "b"])


@pytest.mark.parametrize(
    "y",
    [
        pd.Series(["a", "b", None, "b"], dtype="string"),
        pd.Series(["a", "b", None, "b"], dtype="category"),
        pd.Series(["a", "b", None, "b"]),
        pd.Series([1, 2, None, 2], dtype="Int64"),
        pd.Series([True, False, None, True], dtype="boolean"),
        ["a", "b", None, "b"],
        ["a", "b", np.nan, "b"],
        [1, 2, None, 2],
        np.array([1, 2, pd.NA, 2], dtype=object),
        np.array([1, 2, np.nan, 2]),
        np.array(["2020", "2021", "NaT", "2021"], dtype="datetime64[ns]"),
    ],
    ids=lambda y: f"{type(y).__name__} of {getattr(y, 'dtype', type(y[0]).__name__)}",
)
def test_labels_that_are_missing_are_counted(fitted, y):
    X = np.zeros((4, 20))
    for learn in (SequenceClassifier().fit, fitted.partial_fit, fitted.calibrate):
        with pytest.raises(ValueError, match=r"missing labels .NaN.*, the first for series 2; "):
            learn(X, y)


@pytest.mark.parametrize(
    ("y", "wanted"),
    [
        ([1, "a", 1, "a"], "labels of several types, int and str; make them one"),
        (["a", 1.5, "a", True], "labels of several types, bool and float and str"),
        (np.array([1, "a", 1, "a"], dtype=object), "labels of several types, int and str"),
        (np.array([1, 2, 1, 2], dtype=object), r"type object and holds int; .* by astype\(int\)"),
        (pd.Series([True, False] * 2, dtype=object), "type object and holds bool; make"),
        ([2**70, 2**71] * 2, "type object and holds int; make the labels whole numbers or texts"),
        (pd.Series(pd.period_range("2020", periods=4)), "type object and holds Period; make"),
        (np.array([], dtype=object), "inconsistent numbers of samples"),
    ],
)
def test_labels_of_several_types_or_of_another_are_refused(fitted, y, wanted):
    X = np.zeros((4, 20))
    for learn in (SequenceClassifier().fit, fitted.partial_fit):
        with pytest.raises(ValueError, match=wanted):
            learn(X, y)


def test_labels_of_one_kind_are_taken_in_any_form(fitted):
    X = np.random.default_rng(0).standard_normal((4, 20))
    expected = fitted.decision_function(X)
    texts = ["a", np.str_("b"), "a", "b"]
    forms = (texts, np.array(texts), np.array(texts, dtype=object), tuple(texts))
    for y in (*forms, *(pd.Series(list("abab"), dtype=kind) for kind in ("string", "category"))):
        made = SequenceClassifier(n_features=84).fit(X, y)
        assert made.classes_.tolist() == ["a", "b"]
        assert made.decision_function(X).shape == expected.shape
    assert SequenceClassifier(n_features=84).fit(X, [1, 2.0, 1, 2]).classes_.tolist() == [1, 2]
