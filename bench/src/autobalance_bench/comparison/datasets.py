"""Datasets of a comparison: one dataset and one seed make a `Problem`.

The split depends on the definition and the seed only, so that all methods meet the same rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from autobalance import InputError
from autobalance_bench._checks import check_int
from autobalance_bench.comparison.dataset_definitions import (
    DatasetDefinition,
    definition_of,
    packaged_definitions,
    read_definitions,
)
from autobalance_bench.comparison.dataset_files import read_rows
from autobalance_bench.comparison.dataset_readers import Rows
from autobalance_bench.comparison.dataset_split import split_rows

if TYPE_CHECKING:
    import pandas as pd

    from autobalance.bilevel import ModelFactory
    from autobalance.data import ArrayData, StoredRows

__all__ = [
    "DatasetDefinition",
    "Problem",
    "definition_of",
    "load_problem",
    "packaged_definitions",
    "read_definitions",
]

OTHER = "other"


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What a method gets of one dataset and seed.

    Attributes
    ----------
    name : str
        Of the dataset.
    train, test : ArrayData
        Numbered alike.
    validation : ArrayData or None
        The published part, where the definition asks for it.
    class_names : tuple of str
        By class index.
    group_names : tuple of str or None
        By group index.
    network : callable
        Returns a new, untrained network; it can be pickled.
    recipe : mapping
        What differs from the comparison's `Recipe`.
    """

    name: str
    train: ArrayData
    test: ArrayData
    class_names: tuple[str, ...]
    group_names: tuple[str, ...] | None
    network: ModelFactory
    recipe: Mapping[str, Any]
    validation: ArrayData | None = None


def load_problem(
    definition: DatasetDefinition, seed: int, data: str | Path | None, device: str = "cpu"
) -> Problem:
    """Load one dataset, divided and encoded as the seed says.

    Parameters
    ----------
    definition : DatasetDefinition
        What to load.
    seed : int
        Decides which rows are drawn for training and testing, at least 0.
    data : path or None
        The data folder; None will do where the definition's paths are absolute.
    device : str
        Where a backbone makes features, as for `search`.

    Raises
    ------
    InputError
        If a file or column is missing, the data is not of the declared kind, or a class or group
        is left without training rows.
    """
    from autobalance.data import ArrayData
    from autobalance_bench.comparison.dataset_network import check_importable, network_factory

    check_int("seed", seed, least=0)
    check_importable(definition)
    rows = read_rows(definition, data, device)
    target, class_names = _classes(definition, rows)
    groups, group_names = _groups(definition, rows)
    cells = target if groups is None else groups * len(class_names) + target
    train, test = split_rows(definition, rows, target, cells, np.random.default_rng(seed))
    _check_present(definition.name, "class", target[train], class_names)
    if groups is not None and group_names is not None:
        _check_present(definition.name, "group", groups[train], group_names)
    parts = [train, test]
    if rows.num_validation:
        end = len(rows.table) - rows.num_test
        parts.append(np.arange(end - rows.num_validation, end))
    sides = [
        ArrayData.of(
            inputs,
            target[index],
            groups=None if groups is None else groups[index],
            num_classes=len(class_names),
            num_groups=None if group_names is None else len(group_names),
        )
        for inputs, index in zip(_encode_inputs(definition, rows, parts), parts, strict=True)
    ]
    return Problem(
        name=definition.name,
        train=sides[0],
        test=sides[1],
        class_names=class_names,
        group_names=group_names,
        network=network_factory(definition, tuple(sides[0].inputs.shape[1:]), len(class_names)),
        recipe=dict(definition.recipe),
        validation=sides[2] if len(sides) == 3 else None,
    )


# Classes and groups ---------------------------------------------------------------------


def _classes(definition: DatasetDefinition, rows: Rows) -> tuple[np.ndarray, tuple[str, ...]]:
    """Class indices ``(n,)`` in sorted order of the classes, and their names."""
    import pandas as pd

    from autobalance.data import column

    values = column(rows.table, definition.target, "target")
    if rows.names is not None:
        index = values.to_numpy()
        if index.dtype.kind not in "iu" or index.min() < 0 or index.max() >= len(rows.names):
            raise InputError(
                f"{definition.name}: {definition.target!r} must index {definition.class_names!r}, so "
                f"hold whole numbers from 0 to {len(rows.names) - 1}."
            )
        values = pd.Series(rows.names[index])
    array = values.to_numpy()
    ordered = array.dtype.kind in "iuf"
    if ordered and (array != np.round(array)).any():
        raise InputError(
            f"{definition.name}: the target {definition.target!r} looks continuous (such as "
            f"{array[array != np.round(array)][0]:g}). Name a column of classes."
        )
    array = array.astype(np.int64) if ordered else array.astype(str)
    values, target, counts = np.unique(array, return_inverse=True, return_counts=True)
    merged, names = merge_classes(values, counts, definition.merge_below)
    if len(names) < 2:
        raise InputError(
            f"{definition.name}: classification needs two classes; {definition.target!r} has "
            f"{len(names)}."
        )
    return merged[target], names


def merge_classes(
    values: np.ndarray, counts: np.ndarray, least: int
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return the new class index of each class ``(k,)``, and the new names, sorted as `values` are.

    Numbers are ordered: the smallest class, while it has fewer than `least` members, joins the
    smaller of its neighbours, ties going to the lower number; its name is then "24-29". Other
    classes of fewer members become the one class "other", however many that has then.
    """
    if not np.issubdtype(values.dtype, np.integer):
        small = counts < least
        names = np.where(small, OTHER, values.astype(str)) if small.any() else values.astype(str)
        distinct, merged = np.unique(names, return_inverse=True)
        return merged, tuple(distinct.tolist())
    runs = [(i, i + 1) for i in range(len(values))]
    sizes = [int(n) for n in counts]
    while len(runs) > 1 and min(sizes) < least:
        i = int(np.argmin(sizes))
        near = [j for j in (i - 1, i + 1) if 0 <= j < len(runs)]
        a, b = sorted((i, min(near, key=lambda j: sizes[j])))
        runs[a : b + 1] = [(runs[a][0], runs[b][1])]
        sizes[a : b + 1] = [sizes[a] + sizes[b]]
    merged = np.repeat(np.arange(len(runs)), [end - start for start, end in runs])
    spans = [(values[start], values[end - 1]) for start, end in runs]
    return merged, tuple(f"{a}" if a == b else f"{a}-{b}" for a, b in spans)


def _groups(
    definition: DatasetDefinition, rows: Rows
) -> tuple[np.ndarray | None, tuple[str, ...] | None]:
    """Group indices ``(n,)`` and names; several columns make one group per combination."""
    from autobalance.data import column

    if not definition.groups:
        return None, None
    parts = [column(rows.table, name, "group").astype(str) for name in definition.groups]
    combined = parts[0]
    for part in parts[1:]:
        combined = combined + ", " + part
    names, index = np.unique(combined.to_numpy(dtype=str), return_inverse=True)
    if len(names) < 2:
        raise InputError(f"{definition.name}: there is one group only, {str(names[0])!r}.")
    return index, tuple(names.tolist())


def _check_present(name: str, what: str, index: np.ndarray, names: tuple[str, ...]) -> None:
    absent = np.flatnonzero(np.bincount(index, minlength=len(names)) == 0)
    if len(absent):
        raise InputError(
            f"{name}: the {what} {names[absent[0]]!r} has no training row after the split. Merge or "
            "remove it (merge_below merges small classes), or leave more rows for training."
        )


# Inputs ---------------------------------------------------------------------------------


def _encode_inputs(
    definition: DatasetDefinition, rows: Rows, parts: Sequence[np.ndarray]
) -> list[np.ndarray | StoredRows]:
    """Inputs of each part, float32 or bytes; encoders see the first one's rows only, those of training."""
    import pandas as pd

    from autobalance.data import StoredRows, TableEncoder

    images = rows.inputs
    if isinstance(images, StoredRows):
        return [images.subset(part) for part in parts]
    if definition.as_bytes and (images is None or images.dtype != np.uint8):
        raise InputError(
            f"{definition.name}: as_bytes is for images of bytes, which these inputs are not. "
            "Leave it out."
        )

    if definition.text is not None:
        return _tfidf_weights(definition, rows, parts)
    if images is None:
        table = _select_features(definition, rows.table)
    elif images.ndim == 2:
        table = pd.DataFrame(images, columns=[f"x{i}" for i in range(images.shape[1])])
    else:
        return [_scale_pixels(definition, images[part]) for part in parts]
    encoder = TableEncoder().fit(table.iloc[parts[0]])
    return [encoder.transform(table.iloc[part]) for part in parts]


def _select_features(definition: DatasetDefinition, table: pd.DataFrame) -> pd.DataFrame:
    named = [*definition.drop, *definition.features]
    absent = [c for c in named if c not in table.columns]
    if absent:
        columns = ", ".join(map(str, table.columns[:20])) + (", ..." if table.shape[1] > 20 else "")
        raise InputError(
            f"{definition.name}: the column {absent[0]!r} is not in the table, which has: {columns}."
        )
    out = {definition.target, definition.split_by, *definition.groups, *definition.drop}
    return table[[c for c in definition.features or table.columns if c not in out]]


def _tfidf_weights(
    definition: DatasetDefinition, rows: Rows, parts: Sequence[np.ndarray]
) -> list[np.ndarray | StoredRows]:
    from sklearn.feature_extraction.text import TfidfVectorizer

    from autobalance.data import column

    texts = column(rows.table, str(definition.text), "text").astype(str)
    make: Any = TfidfVectorizer  # its dtype is annotated as float64 alone
    encoder = make(max_features=definition.vocabulary, sublinear_tf=True, dtype=np.float32)
    try:
        fitted: Any = encoder.fit_transform(texts.iloc[parts[0]])
    except ValueError as error:  # no term at all
        raise InputError(f"{definition.name}: {definition.text!r} is no text: {error}.") from None
    others: list[Any] = [encoder.transform(texts.iloc[part]) for part in parts[1:]]
    return [weights.toarray() for weights in (fitted, *others)]


def _scale_pixels(definition: DatasetDefinition, images: np.ndarray) -> np.ndarray:
    """Images ``(n, c, h, w)``, or flat for a network on flat inputs."""
    images = images if images.ndim == 4 else images[:, None]
    if definition.as_bytes:
        return images
    scaled = images.astype(np.float32)
    if images.dtype == np.uint8:
        scaled /= 255.0
    return scaled.reshape(len(scaled), -1) if definition.network in ("table", "linear") else scaled
