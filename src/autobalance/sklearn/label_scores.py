"""Out-of-fold scores of several labels from any scikit-learn classifier that takes a matrix of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.utils.validation import _num_samples

from autobalance._validation import InputError
from autobalance.data import labels_without_both, shortened
from autobalance.posthoc import ScoreKind

Split = tuple[np.ndarray, np.ndarray]
"""Training and held-out rows."""


def check_complete(y: np.ndarray) -> np.ndarray:
    """The matrix of labels ``(n, k)``, in which each label has a positive and a negative.

    Raises
    ------
    InputError
        If an entry is missing, which no classifier takes, or a label lacks one of the two.
    """
    if (y < 0).any():
        raise InputError(
            f"y has {int((y < 0).sum())} entries that are not labelled, which classifiers of scikit-learn do "
            "not take. Call design_adjustment on scores of your own, or use AutoBalanceClassifier."
        )
    absent = labels_without_both(np.stack([(y == sign).sum(axis=0) for sign in (0, 1)]))
    if absent:
        raise InputError(
            f"A label needs a positive and a negative: {absent}. Leave these labels out."
        )
    return y


def keep_both_signs(splits: Sequence[Split], y: np.ndarray, *, own: bool) -> list[Split]:
    """Splits whose training parts have both signs of every label, from such of training and held-out rows.

    Where all positives (or negatives) of a label would be held out together, one stays in training
    throughout and has no score; in splits of the caller's own that is refused.

    Raises
    ------
    InputError
        If splits are the caller's `own`, and one trains without a positive or a negative of a label.
    """
    kept: set[int] = set()
    for fold, (train, held) in enumerate(splits):
        for sign in (0, 1):
            lacking = np.flatnonzero(~(y[train] == sign).any(axis=0))
            if own and len(lacking):
                raise InputError(
                    f"Fold {fold} of cv has no training example with label {lacking[0]} {sign}: its "
                    "classifier cannot learn that label. Give a number of folds instead, which keeps both."
                )
            kept |= {int(held[(y[held, j] == sign).argmax()]) for j in lacking}
    rows = np.array(sorted(kept), dtype=int)
    return [(np.union1d(train, rows), np.setdiff1d(held, rows)) for train, held in splits]


def score_labels(estimator: Any, X: Any, k: int) -> tuple[np.ndarray, ScoreKind]:
    """Probabilities of the labels, or else decision values, shape ``(n, k)``.

    Raises
    ------
    InputError
        If the estimator gives neither, or for other labels.
    """
    name, n = type(estimator).__name__, _num_samples(X)
    if hasattr(estimator, "predict_proba"):
        given = estimator.predict_proba(X)
        if isinstance(given, list):
            given = np.column_stack(
                [_positive(p, _classes(estimator, j), j, name) for j, p in enumerate(given)]
            )
        scores, kind, method = np.asarray(given, dtype=np.float64), "probabilities", "predict_proba"
    elif hasattr(estimator, "decision_function"):
        scores = np.asarray(estimator.decision_function(X), dtype=np.float64)
        kind, method = "decision_values", "decision_function"
    else:
        raise InputError(
            f"{name} has neither predict_proba nor decision_function: decisions are designed from scores. "
            "Take another classifier, such as MultiOutputClassifier around one that has."
        )
    if scores.shape != (n, k):
        raise InputError(
            f"{method} of {name} must have one column per label, shape ({n}, {k}), or be a list of {k}; got "
            f"{scores.shape}. Wrap a classifier of one label in MultiOutputClassifier."
        )
    return scores, kind


def _classes(estimator: Any, j: int) -> list[Any]:
    """The classes that the estimator knows of one label."""
    known = getattr(estimator, "classes_", None)
    return [0, 1] if known is None or np.ndim(known[j]) != 1 else np.asarray(known[j]).tolist()


def _positive(p: Any, classes: list[Any], j: int, name: str) -> np.ndarray:
    """Of a label's probabilities ``(n, 2)`` those of its presence, ``(n,)``."""
    if 1 not in classes or len(classes) != 2 or np.shape(p)[1:] != (2,):
        raise InputError(
            f"{name} knows the classes {shortened(classes)} of label {j}; it must know 0 and 1. Fit it on "
            "examples with and without each label."
        )
    return np.asarray(p, dtype=np.float64)[:, classes.index(1)]
