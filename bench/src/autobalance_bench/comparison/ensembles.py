"""Ensembles whose members each see a balanced sample of a table: published rivals without a network."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal

import numpy as np

from autobalance import InputError
from autobalance.data import ArrayData
from autobalance_bench.comparison.trees import ClassifierDecisions, as_rows


@dataclass(frozen=True)
class Ensemble:
    """Where the class of an ensemble is found.

    Attributes
    ----------
    title : str
        For tables.
    package, name : str
        What to import from `package.ensemble`.
    install : str
        What follows `pip install` to get the package.
    """

    title: str
    package: Literal["imblearn", "imbens"]
    name: str
    install: str


_LEARN = "imbalanced-learn"
_IMBENS = "-r bench/imbalanced_ensemble.txt, in an environment of its own"
ENSEMBLES = {
    "balanced_forest": Ensemble(
        "Balanced random forest", "imblearn", "BalancedRandomForestClassifier", _LEARN
    ),
    "easy_ensemble": Ensemble("EasyEnsemble", "imblearn", "EasyEnsembleClassifier", _LEARN),
    "self_paced_ensemble": Ensemble(
        "Self-paced ensemble", "imbens", "SelfPacedEnsembleClassifier", _IMBENS
    ),
}
"""By the name of their method; Chen et al. (2004), Liu et al. (2009) and Liu et al. (2020)."""


def fit_ensemble(method: str, rows: np.ndarray, target: np.ndarray, seed: int) -> Any:
    """An ensemble of `ENSEMBLES`, as its library sets it up, fitted to rows ``(n, d)`` and classes ``(n,)``.

    Raises
    ------
    InputError
        If its library is not installed.
    """
    ensemble = ENSEMBLES[method]
    try:
        module = import_module(f"{ensemble.package}.ensemble")
    except ImportError:
        raise InputError(
            f"{ensemble.title} needs {ensemble.package}. Install it: pip install {ensemble.install}."
        ) from None
    return getattr(module, ensemble.name)(random_state=seed).fit(rows, target)


def fit_on_dataset(method: str, data: ArrayData, seed: int) -> ClassifierDecisions:
    """The decisions of an ensemble that is fitted to all data, each example as a row of numbers."""
    classifier = fit_ensemble(method, as_rows(data.in_memory()), data.target.numpy(), seed)
    return ClassifierDecisions(classifier, data.num_classes).eval()
