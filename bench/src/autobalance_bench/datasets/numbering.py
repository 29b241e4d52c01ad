"""Whole numbers for labels of any kind, and the names that these numbers index."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from autobalance import InputError
from autobalance.data import ArrayData, shortened


class Labelled(NamedTuple):
    """Data in memory and the names of its classes and groups, by index.

    Without groups `group_names` is empty.
    """

    data: ArrayData
    class_names: tuple[str, ...]
    group_names: tuple[str, ...]


def numbered(
    values: Any, names: Sequence[str] | None, *, what: str, where: str
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Indices ``(n,)``, int64, of labels of any kind, and the names that they index.

    Parameters
    ----------
    values : array-like
        Labels, shape ``(n,)``; whole numbers may have gaps.
    names : sequence of str or None
        Names in the order to number them, those of the training data for example; more than occur
        is fine. None takes those that occur, numbers in their order and others in that of text.
    what, where : str
        "class" or "group", and the file, for messages.

    Raises
    ------
    InputError
        If a label is missing, is no whole number but a fraction, or is none of `names`, or there
        is only one.
    """
    labels = pd.Series(values)
    if labels.isna().any():
        row = int(np.argmax(labels.isna().to_numpy())) + 1
        raise InputError(f"{where}: the {what} of row {row} is missing. Fill it, or drop the row.")
    if pd.api.types.is_float_dtype(labels):
        if (labels != labels.round()).any():
            odd = labels[labels != labels.round()].iloc[0]
            raise InputError(
                f"{where}: the {what} must be a name or a whole number; got {odd:g}. Name a column "
                "of labels."
            )
        labels = labels.astype(np.int64)
    kinds, codes = np.unique(_sortable(labels), return_inverse=True)
    found = tuple(map(str, kinds.tolist()))
    if names is None:
        if len(found) < 2:
            came = f"only {shortened(found)}" if found else "none"
            raise InputError(f"{where}: there must be two {plural(what)}; got {came}.")
        return codes.astype(np.int64), found
    known = {str(name): i for i, name in enumerate(names)}
    if len(known) < len(names):
        raise InputError(f"{where}: the names of the {plural(what)} must differ from one another.")
    strange = [name for name in found if name not in known]
    if strange:
        raise InputError(
            f"{where} has the {what} {strange[0]!r}, which is none of the {len(known)} given: "
            f"{shortened(list(known))}. Correct it, or drop its rows."
        )
    return np.array([known[name] for name in found], dtype=np.int64)[codes], tuple(known)


def plural(what: str) -> str:
    """The plural of "class" or "group"."""
    return "classes" if what == "class" else f"{what}s"


def _sortable(labels: pd.Series) -> np.ndarray:
    """Whole numbers as such, anything else as text."""
    if pd.api.types.is_integer_dtype(labels):
        return labels.to_numpy(np.int64)
    return labels.map(str).to_numpy(dtype=str)
