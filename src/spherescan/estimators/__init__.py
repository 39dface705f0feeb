"""Classifiers and regressors after scikit-learn's habits."""

from spherescan.estimators.classifier import SequenceClassifier
from spherescan.estimators.regressor import SequenceRegressor

__all__ = ["SequenceClassifier", "SequenceRegressor"]
