"""The scikit-learn estimator."""

from autobalance.sklearn.classifier import AutoBalanceClassifier
from autobalance.sklearn.table_input import TableInput

__all__ = [
    "AutoBalanceClassifier",
    "TableInput",
]
