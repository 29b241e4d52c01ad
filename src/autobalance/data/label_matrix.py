"""Targets of several labels: a matrix of 0 and 1, and -1 where an entry is not labelled."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from autobalance._validation import InputError
from autobalance.data.arrays import as_tensor

NOT_LABELLED = -1
MOST_SHOWN = 5


def shape_of(values: Any) -> tuple[int, ...]:
    """The shape of a tensor, an array, a table or nested lists; empty where it is not known."""
    if hasattr(values, "shape"):
        return tuple(values.shape)
    try:
        return np.shape(values) if isinstance(values, (list, tuple)) else ()
    except ValueError:  # rows of different lengths
        return ()


def as_label_matrix(name: str, values: Any, num_labels: int | None = None) -> Tensor:
    """The values as a matrix ``(n, k)`` of int8: 0, 1, and -1 where they are -1 or NaN.

    Raises
    ------
    InputError
        If there are fewer than two labels, or others than `num_labels`, or an entry is something else.
    """
    matrix = as_tensor(name, values)
    if matrix.ndim != 2 or matrix.shape[1] < 2:
        raise InputError(
            f"{name} of several labels needs a 0 or 1 for each example and label, shape (n, k) with k at "
            f"least 2; got {tuple(matrix.shape)}."
        )
    if num_labels is not None and matrix.shape[1] != num_labels:
        raise InputError(f"{name} has {matrix.shape[1]} labels; expected {num_labels}.")
    missing = matrix == NOT_LABELLED
    if matrix.is_floating_point():
        missing |= matrix.isnan()
    wrong = ~missing & (matrix != 0) & (matrix != 1)
    if bool(wrong.any()):
        i, j = wrong.nonzero()[0].tolist()
        raise InputError(
            f"{name} of several labels must be 0, 1, or -1 or NaN where not labelled; got "
            f"{matrix[i, j].item():g} in row {i}, label {j}, and {int(wrong.sum())} such entries in all. "
            "Class indices have shape (n,); a class for each element (n, d1) needs dense=True."
        )
    return torch.where(missing, NOT_LABELLED, matrix).to(torch.int8)


def labelled_entries(target: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of the labelled entries of a matrix, in order, and their cells ``sign * k + label``; int64."""
    rows, labels = (target >= 0).nonzero(as_tuple=True)
    return rows, target[rows, labels].long() * target.shape[1] + labels


def rarest_labels(target: Tensor) -> Tensor:
    """The rarest of each row's labels ``(n,)``, k where it has none: strata to split and to draw by.

    So the rare labels' positives are shared out evenly, and frequent ones come with them.
    """
    positive = target == 1
    order = positive.sum(dim=0).argsort(stable=True)
    rarest = order[positive[:, order].to(torch.int8).argmax(dim=1)]
    return torch.where(positive.any(dim=1), rarest, target.shape[1])


def labels_without_both(counts: Any) -> str | None:
    """Which labels lack positives or negatives by counts ``(2, k)``, as a sentence goes on; None if none."""
    parts = []
    for row, sign in zip(counts, ("negative", "positive"), strict=True):
        empty = [j for j, n in enumerate(row) if n == 0]
        if empty:
            some = ", ".join(map(str, empty[:MOST_SHOWN])) + (
                ", ..." if len(empty) > MOST_SHOWN else ""
            )
            parts.append(f"{len(empty)} of {len(row)} labels have no {sign} example there ({some})")
    return " and ".join(parts) or None
