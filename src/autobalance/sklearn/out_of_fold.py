"""Out-of-fold scores of any scikit-learn classifier, with every class in every training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np
from joblib import Parallel, delayed
from sklearn.base import clone
from sklearn.model_selection import check_cv
from sklearn.utils import _safe_indexing
from sklearn.utils.validation import _check_method_params, _num_samples

from autobalance._validation import InputError, shown, whole
from autobalance.data import assign_folds, number_of
from autobalance.posthoc import ScoreKind
from autobalance.sklearn.label_scores import Split, score_labels


@dataclass(frozen=True)
class OutOfFold:
    """Scores of examples from classifiers that were not trained on them.

    Attributes
    ----------
    scores : ndarray
        Shape ``(n, k)``, or of cells ``(n, g k)``; NaN for an example that every training had.
    fold : ndarray
        The fold that held each example out, shape ``(n,)``; -1 for none.
    kind : {"probabilities", "decision_values"}
        What the scores are.
    """

    scores: np.ndarray
    fold: np.ndarray
    kind: ScoreKind

    @property
    def rows(self) -> np.ndarray:
        """The examples that have scores."""
        return np.flatnonzero(self.fold >= 0)


def folds_of(
    cv: Any, X: Any, cells: np.ndarray, seed: int, split_params: Mapping[str, Any]
) -> list[Split]:
    """Training and held-out rows of each fold.

    A number of folds deals the members of each class (or cell) to the folds, so that small classes are held
    out in part and the only member of a class never.

    Raises
    ------
    InputError
        If held-out parts overlap or leave rows out, or a fold trains on what it holds out.
    """
    n = len(cells)
    if cv is None or (isinstance(cv, Integral) and not isinstance(cv, bool)):
        number = whole("cv", 5 if cv is None else int(cv), least=2)
        fold = assign_folds(cells, min(number, n), np.random.default_rng(seed))
        parts = [np.flatnonzero(fold == f) for f in range(number)]
        return [(np.setdiff1d(np.arange(n), held), held) for held in parts if len(held)]
    try:
        splitter: Any = check_cv(cv, cells, classifier=True)
    except (TypeError, ValueError) as error:
        raise InputError(
            'cv must be a number of folds, a splitter of scikit-learn, an iterable of splits, or "prefit"; '
            f"got {shown(cv)} ({error})."
        ) from None
    splits = [
        (_rows(train, n), _rows(held, n))
        for train, held in splitter.split(X, cells, **split_params)
    ]
    _check_splits(splits, n)
    return splits


def _rows(part: Any, n: int) -> np.ndarray:
    """Row numbers of a part of a split, given as numbers or as a mask."""
    rows = np.asarray(part)
    if rows.dtype == bool and rows.shape == (n,):
        return np.flatnonzero(rows)
    if rows.ndim != 1 or rows.dtype.kind not in "iu" or ((rows < 0) | (rows >= n)).any():
        raise InputError(
            f"The splits of cv must hold row numbers from 0 to {n - 1}, or masks of {n} rows; got "
            f"{shown(rows.tolist())}."
        )
    return rows


def _check_splits(splits: Sequence[Split], n: int) -> None:
    held_out = np.zeros(n, dtype=int)
    for i, (train, held) in enumerate(splits):
        both = np.intersect1d(train, held)
        if len(both):
            raise InputError(
                f"Fold {i} of cv trains on {number_of(len(both), 'row')} that it holds out, such as row "
                f"{both[0]}: scores of these would be too sure. Take them out of its training part."
            )
        np.add.at(held_out, held, 1)
    if (held_out > 1).any():
        raise InputError(
            f"The held-out parts of cv overlap: row {int(np.argmax(held_out > 1))} is in "
            f"{held_out.max()} of them. Each row is to have one score; take a KFold without repetition."
        )
    if (held_out == 0).any():
        raise InputError(
            f"cv leaves {number_of(int((held_out == 0).sum()), 'row')} without a score, the first "
            f"{int(np.argmax(held_out == 0))}. For a single held-out part fit the estimator on the others "
            'and take cv="prefit" with the held-out rows.'
        )


def fit_out_of_fold(
    estimator: Any,
    X: Any,
    labels: np.ndarray,
    classes: np.ndarray,
    splits: Sequence[Split],
    fit_params: Mapping[str, Any],
    n_jobs: int | None,
) -> tuple[OutOfFold, list[Any]]:
    """Scores of the held-out rows from a clone of the estimator for each fold, and the clones.

    `labels` has shape ``(n,)``, or ``(n, k)`` of 0 and 1 with `classes` their k numbers.
    """
    fitted: Any = Parallel(n_jobs=n_jobs)(
        delayed(_fit_and_score)(clone(estimator), X, labels, classes, split, fit_params, fold)
        for fold, split in enumerate(splits)
    )
    kinds = {kind for _, _, kind in fitted}
    n = _num_samples(X)
    scores, fold = np.full((n, len(classes)), np.nan), np.full(n, -1)
    for f, ((_, held), (_, own, _)) in enumerate(zip(splits, fitted, strict=True)):
        scores[held], fold[held] = own, f
    return OutOfFold(scores, fold, kinds.pop()), [model for model, _, _ in fitted]


def _fit_and_score(
    estimator: Any,
    X: Any,
    labels: np.ndarray,
    classes: np.ndarray,
    split: Split,
    fit_params: Mapping[str, Any],
    fold: int,
) -> tuple[Any, np.ndarray, ScoreKind]:
    train, held = split
    of_labels = labels.ndim == 2
    missing = [] if of_labels else np.setdiff1d(classes, labels[train]).tolist()
    if missing:
        raise InputError(
            f"Fold {fold} of cv has no training example of class {missing[0]!r}: its classifier "
            "cannot score that class. Give a number of folds instead, which keeps every class in training."
        )
    own = _check_method_params(X, params=dict(fit_params), indices=train)
    model = estimator.fit(_safe_indexing(X, train), labels[train], **own)
    held_out = _safe_indexing(X, held)
    scores, kind = (
        score_labels(model, held_out, len(classes))
        if of_labels
        else score(model, held_out, classes)
    )
    return model, scores, kind


def score(estimator: Any, X: Any, classes: np.ndarray) -> tuple[np.ndarray, ScoreKind]:
    """Probabilities, or else decision values, in the order of the classes, shape ``(n, k)``.

    Raises
    ------
    InputError
        If the estimator has neither method, or other classes.
    """
    if not np.array_equal(getattr(estimator, "classes_", classes), classes):
        raise InputError(
            f"{type(estimator).__name__} has the classes {shown(list(estimator.classes_))}, but y those of "
            f"{shown(list(classes))}. Fit it on every class."
        )
    if hasattr(estimator, "predict_proba"):
        p = np.asarray(estimator.predict_proba(X), dtype=np.float64)
        if p.shape != (_num_samples(X), len(classes)):
            raise InputError(
                f"predict_proba of {type(estimator).__name__} must have one column per class, shape "
                f"({_num_samples(X)}, {len(classes)}); got {p.shape}."
            )
        return p, "probabilities"
    if not hasattr(estimator, "decision_function"):
        raise InputError(
            f"{type(estimator).__name__} has neither predict_proba nor decision_function: decisions are "
            "designed from scores. Wrap it in CalibratedClassifierCV, or take another classifier."
        )
    values = np.asarray(estimator.decision_function(X), dtype=np.float64)
    if values.ndim == 1:
        values = np.stack([np.zeros_like(values), values], axis=1)
    if values.shape[1] != len(classes):
        raise InputError(
            f"decision_function of {type(estimator).__name__} has {values.shape[1]} columns for "
            f"{len(classes)} classes. Set decision_function_shape='ovr'."
        )
    return values, "decision_values"
