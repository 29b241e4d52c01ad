"""Measures of several labels from scores. Imports no torch."""

from __future__ import annotations

from typing import Any

import numpy as np

from autobalance._validation import InputError, array_of_numbers


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
