"""The scikit-learn estimator."""

from autobalance.sklearn.classifier import AutoBalanceClassifier
from autobalance.sklearn.table_input import TableInput, fitted_network, mark, table_input_of

__all__ = [
    "AutoBalanceClassifier",
    "TableInput",
    "fitted_network",
    "mark",
    "table_input_of",
]
