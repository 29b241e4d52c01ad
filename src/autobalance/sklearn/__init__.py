"""The scikit-learn estimators."""

from autobalance.sklearn.adjusted import LogitAdjustedClassifierCV
from autobalance.sklearn.baselines import (
    CLASS_WEIGHTS,
    CROSS_ENTROPY,
    estimator_baselines,
    network_baselines,
    network_errors,
)
from autobalance.sklearn.classifier import AutoBalanceClassifier
from autobalance.sklearn.out_of_fold import OutOfFold
from autobalance.sklearn.table_input import TableInput, fitted_network, mark, table_input_of

__all__ = [
    "CLASS_WEIGHTS",
    "CROSS_ENTROPY",
    "AutoBalanceClassifier",
    "LogitAdjustedClassifierCV",
    "OutOfFold",
    "TableInput",
    "estimator_baselines",
    "fitted_network",
    "mark",
    "network_baselines",
    "network_errors",
    "table_input_of",
]
