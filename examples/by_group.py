"""What the examples share: a network trained with cross-entropy, to compare with, and a table by group."""

from __future__ import annotations

from functools import partial

import numpy as np
import pandas as pd
from sklearn.metrics import balanced_accuracy_score, recall_score, zero_one_loss

from autobalance import ArrayData, AutoBalanceClassifier, ParametricCrossEntropy, Recipe, retrain
from autobalance.bilevel import predict_logits
from autobalance.networks import TableNetwork
from autobalance.records import classification_report

try:
    from fairlearn.metrics import MetricFrame, count
except ImportError:
    MetricFrame = None


def plain_predictions(
    designed: AutoBalanceClassifier,
    train: tuple[pd.DataFrame, pd.Series],
    test: pd.DataFrame,
    recipe: Recipe,
) -> np.ndarray:
    """Predicted labels of the network, encoder and recipe of `designed`, trained with cross-entropy."""
    encoder, features = designed.encoder_, train[0]
    target = np.searchsorted(designed.classes_, train[1])
    data = ArrayData.of(encoder.transform(features), target)
    network = partial(TableNetwork, encoder.num_features, data.num_classes)
    plain = ParametricCrossEntropy.cross_entropy()
    module = retrain(network, data, plain, recipe=recipe, seed=0)
    inputs = ArrayData.of(encoder.transform(test), np.zeros(len(test), dtype=int)).inputs
    return designed.classes_[predict_logits(module, inputs).argmax(dim=1).numpy()]


def table_by_group(y_true: pd.Series, y_pred: np.ndarray, groups: pd.Series) -> pd.DataFrame:
    """Rows of each group, and its error, balanced error and worst class's error in percent.

    Computed by fairlearn's MetricFrame if fairlearn is installed, else by autobalance's own report. The
    numbers are the same.
    """
    if MetricFrame is not None:
        metrics = {
            "n": count,
            "error": zero_one_loss,
            "balanced": lambda y, p: 1.0 - balanced_accuracy_score(y, p),
            "worst class": lambda y, p: 1.0 - recall_score(y, p, average=None).min(),
        }
        table = MetricFrame(
            metrics=metrics, y_true=y_true, y_pred=y_pred, sensitive_features=groups
        ).by_group
    else:
        classes, target = np.unique(y_true, return_inverse=True)
        names, index = np.unique(groups, return_inverse=True)
        predicted = np.searchsorted(classes, y_pred)
        report = classification_report(target, predicted, len(classes), index, names.tolist())
        table = pd.DataFrame(
            {
                "n": {name: sum(n) for name, n in report["class_and_group_n"].items()},
                "error": report["group_errors"],
                "balanced": report["group_balanced_errors"],
                "worst class": {n: max(e) for n, e in report["class_and_group_errors"].items()},
            }
        )
    percent = table.drop(columns="n").astype(float) * 100.0
    return pd.concat([table[["n"]].astype(int), percent.round(1)], axis=1)
