"""Targets of several labels, as scikit-learn's multilabel convention has them, for the classifier."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from autobalance._validation import InputError, same_length
from autobalance.data import ArrayData, as_label_matrix, as_tensor, class_labels, shape_of


def read_target(y: Any) -> np.ndarray:
    """Class labels ``(n,)``, or of two columns or more a matrix ``(n, k)`` of 0, 1 and -1, int8.

    Raises
    ------
    InputError
        If they are neither; -1 and NaN stand for entries that are not labelled.
    """
    columns = shape_of(y)
    if len(columns) != 2 or columns[1] < 2:
        return class_labels(y)
    try:
        values: Any = y if torch.is_tensor(y) else np.asarray(y, dtype=np.float64)
    except (TypeError, ValueError):
        raise InputError(
            "y of several columns has a 0 or 1 for each label. Give one column of classes, or numbers."
        ) from None
    return as_label_matrix("y", values).numpy(force=True)


def label_names(y: Any, k: int) -> np.ndarray:
    """The names of a table's columns where they are text, else the labels' numbers; shape ``(k,)``."""
    names = [*getattr(y, "columns", [])]
    return np.array(names) if names and all(isinstance(n, str) for n in names) else np.arange(k)


def label_arrays(inputs: Any, target: np.ndarray, groups: Any, sample_weight: Any) -> ArrayData:
    """Labelled data of several labels; groups are refused.

    Raises
    ------
    InputError
        If lengths differ, or there are groups.
    """
    if groups is not None:
        raise InputError(
            "sensitive_features is for one class per example; y has several labels. Leave it out."
        )
    same_length(X=inputs, y=target, sample_weight=sample_weight)
    return ArrayData.of(inputs, target, sample_weight=sample_weight)


def held_out_labels(
    given: Any, data: ArrayData, read_inputs: Callable[[Any], Any], what: str
) -> ArrayData:
    """What was given as "validation" or "test", ``(X, y)``, for training data of several labels.

    Raises
    ------
    InputError
        If it cannot be used, or has other labels than training.
    """
    if isinstance(given, ArrayData):
        inputs, target = given.inputs, given.target
    elif isinstance(given, (tuple, list)) and (*given, None)[2:3] == (None,):
        inputs, target = read_inputs(given[0]), read_target(given[1])
    else:
        raise InputError(f"{what} must be (X, y) where y has several labels.")
    target = as_label_matrix(f"y of {what}", as_tensor("y", target), data.num_classes)
    weight = None if data.sample_weight is None else np.ones(len(target), dtype=np.float32)
    return ArrayData.of(inputs, target, sample_weight=weight)
