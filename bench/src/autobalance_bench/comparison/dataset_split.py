"""Which rows of a dataset are for training and which for testing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from autobalance import InputError
from autobalance_bench.comparison.dataset_definitions import DatasetDefinition
from autobalance_bench.comparison.dataset_readers import Rows


def split_rows(
    definition: DatasetDefinition,
    rows: Rows,
    target: np.ndarray,
    cells: np.ndarray,
    generator: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Choose the rows for training and for testing.

    Parameters
    ----------
    definition : DatasetDefinition
        Says how.
    rows : Rows
        n rows. A test set that they come with is taken as it is, and a validation set is in
        neither part.
    target, cells : ndarray
        Class index, and index of class and group, of each row, shape ``(n,)``.
    generator : numpy.random.Generator
        Decides who is drawn.

    Returns
    -------
    tuple of ndarray
        Sorted row numbers of training and of testing.

    Raises
    ------
    InputError
        If no row can be tested, or there are fewer rows than a profile or size asks for.
    """
    from autobalance.data import column
    from autobalance_bench.datasets.longtail import sample_by_class

    n = len(rows.table)
    if rows.num_test:
        held = np.arange(n) >= n - rows.num_test
    else:
        units = np.arange(n)
        if definition.split_by is not None:
            values = column(rows.table, definition.split_by, "split_by").to_numpy()
            _, units = np.unique(values, return_inverse=True)
        held = hold_out(cells, units, definition.test_fraction, generator)
    train, test = (
        np.flatnonzero(~held)[: n - rows.num_test - rows.num_validation],
        np.flatnonzero(held),
    )
    if len(test) == 0:
        raise InputError(f"{definition.name}: no class has two members, so none can be tested.")
    if definition.long_tail is not None:
        counts = _tail_counts(definition.long_tail, int(target.max()) + 1)
        try:
            train = train[sample_by_class(target[train], counts, generator)]
        except InputError as error:
            raise InputError(
                f"{definition.name}: {error} Lower `largest`, or test_fraction."
            ) from None
    train = _cap_rows(definition, "train_size", train, cells, generator)
    return train, _cap_rows(definition, "test_size", test, cells, generator)


def _tail_counts(tail: Mapping[str, Any], num_classes: int) -> np.ndarray:
    """Training rows of each class, shape ``(k,)``."""
    from autobalance_bench.datasets.longtail import profile_of

    own = {key: float(tail[key]) for key in ("power", "minority") if key in tail}
    profile = profile_of(tail.get("profile", "exponential"), **own)
    return profile(num_classes, int(tail["largest"]), float(tail["imbalance"]))


def hold_out(
    cells: np.ndarray, units: np.ndarray, share: float, generator: np.random.Generator
) -> np.ndarray:
    """Mask the test rows, shape ``(n,)``: that share of each cell's units, and no unit in part.

    Cells take turns from the one of fewest units on. Each gives `share` of its units, rounded but
    at least one and not all; a cell of one unit gives none. What earlier cells decided holds, so a
    cell all of whose units also belong to smaller ones may end up on one side.

    Parameters
    ----------
    cells, units : ndarray
        Class (or class within group), and unit of rows that must stay together, of each row, shape ``(n,)``.
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


def _cap_rows(
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
    """Return whole numbers that sum to `size`, in proportion to `counts`, at least 1 where those are.

    `size` must lie between the number of positive counts and their sum.
    """
    exact = counts * (size / counts.sum())
    shares = np.maximum(np.floor(exact), counts > 0).astype(np.int64)
    while (left := size - int(shares.sum())) != 0:
        step = 1 if left > 0 else -1
        movable = shares < counts if left > 0 else shares > 1
        shares[np.argmax(np.where(movable, step * (exact - shares), -np.inf))] += step
    return shares
