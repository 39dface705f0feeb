"""The checks that scikit-learn has for estimators of others."""

import pytest
from sklearn.utils.estimator_checks import parametrize_with_checks

from spherescan.estimators import SequenceClassifier, SequenceRegressor

pytestmark = pytest.mark.unwatched


@parametrize_with_checks(
    [
        SequenceClassifier(n_features=252),
        SequenceRegressor(n_features=252),
    ]
)
def test_what_scikit_learn_expects(estimator, check):
    check(estimator)


@pytest.mark.slow
@parametrize_with_checks([SequenceClassifier(n_features=84, n_networks=2, max_steps=1)])
def test_networks_are_no_exception(estimator, check):
    check(estimator)
