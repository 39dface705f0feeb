"""Values of X that are no numbers are named with their series."""

import numpy as np
import pandas as pd
import pytest

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
