"""Which rows of a dataset are for training and which for testing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from autobalance import InputError
from autobalance_bench.comparison.dataset_definitions import DatasetDefinition
from autobalance_bench.comparison.dataset_readers import Rows


def division(
    definition: DatasetDefinition,
    rows: Rows,
    target: np.ndarray,
    cells: np.ndarray,
    generator: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Sorted row numbers of training and of testing; those of a given validation set are in neither."""
    from autobalance.data import column
    from autobalance_bench.datasets.longtail import sample_by_class

    n = len(rows.table)
    if rows.given:
        held = np.arange(n) >= n - rows.given
    else:
        units = np.arange(n)
        if definition.split_by is not None:
            values = column(rows.table, definition.split_by, "split_by").to_numpy()
            _, units = np.unique(values, return_inverse=True)
        held = held_out(cells, units, definition.test_fraction, generator)
    train, test = np.flatnonzero(~held)[: n - rows.given - rows.validation], np.flatnonzero(held)
    if len(test) == 0:
        raise InputError(f"{definition.name}: no class has two members, so none can be tested.")
    if definition.long_tail is not None:
        counts = _tail(definition.long_tail, int(target.max()) + 1)
        try:
            train = train[sample_by_class(target[train], counts, generator)]
        except InputError as error:
            raise InputError(
                f"{definition.name}: {error} Lower `largest`, or test_fraction."
            ) from None
    train = _capped(definition, "train_size", train, cells, generator)
    return train, _capped(definition, "test_size", test, cells, generator)


def _tail(tail: Mapping[str, Any], num_classes: int) -> np.ndarray:
    """Training rows of each class, shape ``(k,)``."""
    from autobalance_bench.datasets.longtail import profile_of

    own = {key: float(tail[key]) for key in ("power", "minority") if key in tail}
    profile = profile_of(tail.get("profile", "exponential"), **own)
    return profile(num_classes, int(tail["largest"]), float(tail["imbalance"]))


def held_out(
    cells: np.ndarray, units: np.ndarray, share: float, generator: np.random.Generator
) -> np.ndarray:
    """Mask of the test rows, shape ``(n,)``: that share of each cell's units, and no unit in part.

    Cells take turns from the one of fewest units on. Each gives `share` of its units, rounded but
    at least one and not all; a cell of one unit gives none. What earlier cells decided holds, so a
    cell all of whose units also belong to smaller ones may end up on one side.

    Parameters
    ----------
    cells, units : ndarray
        Class (or class within group), and what must stay together, of each row, shape ``(n,)``.
    share : float
        For testing, in (0, 1).
    generator : numpy.random.Generator
        Decides who is held out.
    """
    tested = np.zeros(int(units.max()) + 1, dtype=bool)
    open_ = np.ones(len(tested), dtype=bool)
    members = {c: np.unique(units[cells == c]) for c in np.unique(cells).tolist()}
    for cell in sorted(members, key=lambda c: (len(members[c]), c)):
        own = members[cell]
        wanted = min(max(1, round(share * len(own))), len(own) - 1)
        free = generator.permutation(own[open_[own]])
        more = max(0, wanted - int(tested[own].sum()))
        tested[free[:more]] = True
        open_[free] = False
    return tested[units]


def _capped(
    definition: DatasetDefinition,
    key: Literal["train_size", "test_size"],
    rows: np.ndarray,
    cells: np.ndarray,
    generator: np.random.Generator,
) -> np.ndarray:
    from autobalance_bench.datasets.longtail import sample_by_class

    size = getattr(definition, key)
    if size is None or len(rows) <= size:
        return rows
    counts = np.bincount(cells[rows])
    if size < (counts > 0).sum():
        raise InputError(
            f"{definition.name}: {key} is {size}, but there are {(counts > 0).sum()} classes (within "
            "groups) to keep a row of. Raise it."
        )
    return rows[sample_by_class(cells[rows], proportional(counts, size), generator)]


def proportional(counts: np.ndarray, size: int) -> np.ndarray:
    """Whole numbers that sum to `size`, in proportion to `counts`, at least 1 where those are.

    `size` must lie between the number of positive counts and their sum.
    """
    exact = counts * (size / counts.sum())
    shares = np.maximum(np.floor(exact), counts > 0).astype(np.int64)
    while (left := size - int(shares.sum())) != 0:
        step = 1 if left > 0 else -1
        movable = shares < counts if left > 0 else shares > 1
        shares[np.argmax(np.where(movable, step * (exact - shares), -np.inf))] += step
    return shares
