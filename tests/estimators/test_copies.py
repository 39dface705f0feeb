"""Training series that are there more than once."""

import warnings

import numpy as np
import pytest
import torch

from spherescan.estimators import SequenceClassifier, SequenceRegressor
from spherescan.estimators.copies import n_with_twin
from tests.estimators.test_networks import waves

QUICK = {"n_features": 84, "random_state": 0}


@pytest.mark.parametrize("made_of", [SequenceClassifier, SequenceRegressor])
def test_copies_get_a_warning(made_of):
    X, y = waves(40)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made_of(**QUICK).fit(X, y)
        made_of(**QUICK).fit(np.concatenate([X, X[:1]]), np.append(y, y[0]))  # of 41 they are few
    with pytest.warns(UserWarning, match="6 of 43 training series are copies of others: one that"):
        made_of(**QUICK).fit(np.concatenate([X, X[:3]]), np.append(y, y[:3]))
    made = made_of(**QUICK).fit(X, y)
    with pytest.warns(UserWarning, match="80 of 80 training series are copies"):
        made.partial_fit(X, y)


def test_tokens_are_often_the_same_and_get_none():
    X, y = [[1, 2, 3], [2, 1], [1, 2, 3], [2, 1]] * 5, [0, 1] * 10
    SequenceClassifier(**QUICK, vocab_size=4).fit(X, y)


def test_twins_are_counted_wherever_they_are(generator):
    x = torch.randn(600, 30, generator=generator)
    assert n_with_twin(x) == 0
    x[7], x[500], x[99] = x[321], x[321], x[98] * (1 + 1e-7)
    assert n_with_twin(x) == 5
    assert n_with_twin(x[torch.randperm(600, generator=generator)]) == 5
    x[41] = x[40] + 1e-4 * x.std()  # near, and not the same
    assert n_with_twin(x) == 5
    assert n_with_twin(torch.ones(4, 3)) == 4
    assert n_with_twin(x[:1]) == 0


def test_near_series_on_a_line_are_no_twins(generator):
    """Series of one number lie densely: a neighbour is not a copy."""
    assert n_with_twin(torch.rand(1000, 1, generator=generator) * torch.ones(1, 40)) < 20
