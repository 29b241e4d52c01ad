"""Labels and groups as what they are: numbers as numbers, text as text, and their positions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import column_or_1d

from autobalance._validation import InputError, shown
from autobalance.data.array_data import MissingGroups
from autobalance.data.arrays import UNKNOWN
from autobalance.data.columns import as_table, category_text

NO_GROUP = None
"""Name of a group that is not known."""


def shortened(items: Sequence[Any], most: int = 10) -> str:
    """The first few of a list, as text."""
    return ", ".join(map(str, items[:most])) + (", ..." if len(items) > most else "")


def class_labels(y: Any) -> np.ndarray:
    """The labels of a classification, shape ``(n,)``: all numbers, all booleans or all text.

    Raises
    ------
    InputError
        If one is missing or infinite, they mix numbers and text, or are no classes.
    """
    if y is None:
        raise ValueError("requires y to be passed, but the target y is None.")
    labels = column_or_1d(_as_column(y), warn=True)
    missing = pd.isna(labels)
    if missing.any():
        raise InputError(
            f"y has {number_of(int(missing.sum()), 'missing label')} (NaN), the first at position "
            f"{int(np.argmax(missing))}. Fill them, or drop these examples."
        )
    name = getattr(y, "name", None)
    what = "y" if name is None else f"The target column {name!r}"
    if labels.dtype == object:
        labels = _of_one_kind(labels, what)
    if np.issubdtype(labels.dtype, np.floating) and np.isinf(labels).any():
        raise InputError(
            "y has an infinite label (inf). Labels must be finite; drop these examples."
        )
    try:
        check_classification_targets(labels)
    except ValueError as error:
        if np.issubdtype(labels.dtype, np.floating):
            raise InputError(
                f"{what} looks continuous (such as {labels[labels % 1 != 0][0]:g}). Give classes, or "
                "bin it first (pandas.cut with labels). Unknown label type: continuous."
            ) from None
        raise InputError(f"{what} holds no class labels: {str(error).splitlines()[0]}") from None
    return labels


def positions(values: np.ndarray, known: Sequence[Any], what: str, where: str) -> np.ndarray:
    """Position of each label among the known ones; 1, 1.0 and True are one label, "1" is another.

    Raises
    ------
    InputError
        If a label is not known.
    """
    position = {value: i for i, value in enumerate(known)}
    labels = values.tolist()
    unseen = list(map(str, sorted(set(labels) - position.keys(), key=str)))
    if unseen:
        names = [str(value) for value in known]
        # 7 is not "7": where they look alike, say of which kind they are.
        alike = f" as {type(known[0]).__name__}" if set(unseen) & set(names) else ""
        raise InputError(
            f"{where} has a {what} that training lacks: {shortened(unseen, 5)}; training has "
            f"{shortened(names, 5)}{alike}. Leave these rows out, or train with them."
        )
    return np.array([position[label] for label in labels], dtype=np.int64)


def group_names(groups: Any, missing_groups: MissingGroups) -> np.ndarray:
    """One name per example, `NO_GROUP` where it is not known; columns are joined by a comma.

    Names of different combinations differ: a part with a comma, a quote or a backslash is quoted.

    Raises
    ------
    InputError
        If a value is missing and that is refused, all are missing, or a column mixes numbers and
        text.
    """
    table = as_table(groups)
    if table is None:
        frame = pd.DataFrame(_as_column(groups))
    else:
        columns = [series.reset_index(drop=True) for series in table.columns]
        frame = pd.DataFrame(dict(zip(table.names, columns, strict=True)))
    missing: Any = frame.isna().to_numpy().any(axis=1)
    if missing.any() and missing_groups == "refused":
        raise InputError(
            f"sensitive_features has {number_of(int(missing.sum()), 'missing value')} (the first at "
            f"position {int(np.argmax(missing))}). Fill them, for example with a group of their own, or "
            'take them for unknown: missing_groups="unknown".'
        )
    if missing.all():
        raise InputError("sensitive_features has missing values only. Leave it out.")
    names = np.full(len(frame), NO_GROUP, dtype=object)
    known = frame.loc[~missing]
    parts = [_group_column(known.iloc[:, i]) for i in range(frame.shape[1])]
    if len(parts) > 1:
        parts = [[_quote(text) for text in part] for part in parts]
    names[~missing] = [", ".join(row) for row in zip(*parts, strict=True)]
    return names


def number_groups(names: np.ndarray) -> tuple[list[str], np.ndarray]:
    """The names in sorted order, and each example's position among them, or -1."""
    known = names != np.array(NO_GROUP)
    groups, position = np.unique(names[known].astype(str), return_inverse=True)
    index = np.full(len(names), UNKNOWN)
    index[known] = position
    return groups.tolist(), index


def number_of(n: int, one: str, many: str | None = None) -> str:
    """A number and its noun: 1 class, 2 classes."""
    return f"{n} {one if n == 1 else many or one + 's'}"


def _as_column(y: Any) -> Any:
    """A series of another library than pandas as an array."""
    return y if isinstance(y, (pd.Series, np.ndarray)) else getattr(y, "to_numpy", lambda: y)()


def _of_one_kind(labels: np.ndarray, what: str) -> np.ndarray:
    """Objects as an array of text or of numbers, where they are all of one kind."""
    kinds = {_kind(value): value for value in labels.tolist()}
    if len(kinds) > 1:
        first, second = (shown(value) for value in list(kinds.values())[:2])
        raise InputError(
            f"{what} holds mixed labels, {' and '.join(kinds)}, such as {first} and {second}. Make them "
            "all text (y.astype(str)) or all numbers."
        )
    kind, example = next(iter(kinds.items()), ("text", None))
    if kind == "text":
        return labels
    if kind == "booleans":
        return labels.astype(bool)
    if kind == "numbers":
        return np.array([float(v) if v % 1 else int(v) for v in labels.tolist()])
    raise InputError(
        f"{what} holds {kind}, such as {shown(example)}, which are no class labels; unknown label type. Make "
        "them text: y.astype(str), or pandas.cut(..., labels=[...])."
    )


def _kind(value: Any) -> str:
    if isinstance(value, str):
        return "text"
    if isinstance(value, (bool, np.bool_)):
        return "booleans"
    try:
        return "numbers" if float(value) == value else type(value).__name__
    except (TypeError, ValueError, OverflowError):
        return type(value).__name__


def _group_column(values: pd.Series) -> list[str]:
    """Text of each value; refused where numbers and text of one column would look alike."""
    objects = values.tolist()
    texts = [category_text(value) for value in objects]
    kinds = {(text, isinstance(value, str)) for value, text in zip(objects, texts, strict=True)}
    both = [text for text, is_text in kinds if is_text and (text, False) in kinds]
    if both:
        raise InputError(
            f"sensitive_features holds {min(both)} as a number and as text. Make the column all text "
            "(astype(str)) or all numbers."
        )
    return texts


def _quote(text: str) -> str:
    return json.dumps(text, ensure_ascii=False) if set(text) & set(',"\\') else text
