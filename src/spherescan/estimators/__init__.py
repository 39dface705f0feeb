"""Classifiers and regressors after scikit-learn's habits."""

from spherescan.estimators.classifier import SequenceClassifier

__all__ = ["SequenceClassifier"]
