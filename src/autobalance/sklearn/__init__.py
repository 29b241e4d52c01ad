"""The scikit-learn estimators."""

from autobalance.sklearn.adjusted import LogitAdjustedClassifierCV
from autobalance.sklearn.classifier import AutoBalanceClassifier
from autobalance.sklearn.out_of_fold import OutOfFold
from autobalance.sklearn.table_input import TableInput, fitted_network, mark, table_input_of

__all__ = [
    "AutoBalanceClassifier",
    "LogitAdjustedClassifierCV",
    "OutOfFold",
    "TableInput",
    "fitted_network",
    "mark",
    "table_input_of",
]
