"""Measures of several labels from scores. Imports no torch."""

from __future__ import annotations

from typing import Any

import numpy as np

from autobalance._validation import InputError, array_of_numbers
from autobalance.records.error_table import as_counts, rates


def average_precision_error(scores: Any, y: Any) -> float:
    """One minus mean average precision, over the labels that have a positive and a negative.

    Parameters
    ----------
    scores : array-like
        Any number that is larger for likelier labels, such as logits, shape ``(n, k)``.
    y : array-like
        0 or 1, shape ``(n, k)``; -1 or NaN where an entry is not labelled.

    Raises
    ------
    InputError
        If shapes differ, or no label has both.
    """
    from sklearn.metrics import average_precision_score

    table, target = array_of_numbers("scores", scores), array_of_numbers("y", y)
    if table.ndim != 2 or table.shape != target.shape:
        raise InputError(
            f"scores and y need one shape (n, k); got {table.shape} and {target.shape}."
        )
    values = []
    for score, label in zip(table.T, target.T, strict=True):
        known = (label == 0) | (label == 1)
        if 0 < label[known].sum() < known.sum():
            values.append(average_precision_score(label[known], score[known]))
    if not values:
        raise InputError("No label has both a positive and a negative.")
    return float(1.0 - np.mean(values))


def label_report(target: Any, predicted: Any, sample_weight: Any = None) -> dict[str, Any]:
    """Errors of decisions for several labels, as counts and rates for a report.

    Parameters
    ----------
    target : array-like
        0 or 1, shape ``(n, k)``; -1 where an entry is not labelled.
    predicted : array-like
        0 or 1, shape ``(n, k)``.
    sample_weight : array-like, optional
        What each example counts for, shape ``(n,)``.

    Returns
    -------
    dict
        "n", the number of examples; "sign_n" and "sign_wrong", entries and those decided wrongly by sign
        and label ``(2, k)``, or sums of their weights; "class_errors", each label's balanced error, None
        where it lacks a positive or a negative; "class_n", its positives; and of the labels that have both
        "balanced_error", the mean, "worst_class_error", and "macro_f1_error".
    """
    y, decided = np.asarray(target), np.asarray(predicted)
    weight = np.ones(len(y)) if sample_weight is None else np.asarray(sample_weight, dtype=float)
    signs = [y == sign for sign in (0, 1)]
    mass, wrong = (
        as_counts(np.stack([weight @ (some & entries) for some in signs]))
        for entries in (y >= 0, decided != y)
    )
    errors = rates(wrong, mass).mean(axis=0)
    both = ~np.isnan(errors)
    right = mass[1] - wrong[1]
    f1 = np.nan_to_num(rates(2.0 * right, 2.0 * right + wrong.sum(axis=0)))
    return {
        "n": len(y),
        "sign_n": mass.tolist(),
        "sign_wrong": wrong.tolist(),
        "class_errors": [
            float(e) if known else None for e, known in zip(errors, both, strict=True)
        ],
        "class_n": mass[1].tolist(),
        "balanced_error": float(errors[both].mean()) if both.any() else None,
        "worst_class_error": float(errors[both].max()) if both.any() else None,
        "macro_f1_error": float(1.0 - f1[both].mean()) if both.any() else None,
    }
