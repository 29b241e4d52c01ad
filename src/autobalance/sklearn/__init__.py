"""The scikit-learn estimator."""

from autobalance.sklearn.classifier import AutoBalanceClassifier

__all__ = [
    "AutoBalanceClassifier",
]
