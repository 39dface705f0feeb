"""The checks that scikit-learn has for estimators of others."""

from sklearn.utils.estimator_checks import parametrize_with_checks

from spherescan.estimators import SequenceClassifier, SequenceRegressor


@parametrize_with_checks(
    [
        SequenceClassifier(n_features=252),
        SequenceClassifier(n_features=84, n_networks=2, max_steps=1),
        SequenceRegressor(n_features=252),
    ]
)
def test_what_scikit_learn_expects(estimator, check):
    check(estimator)
