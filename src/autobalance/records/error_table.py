"""Errors by group and class, and every rate and gap that follows from them. numpy only.

R_kg is the error of class k within group g: the share of its examples that is predicted wrongly.
Groups are treated alike where R_kg does not depend on g.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from autobalance._validation import InputError


def class_ranges(table: np.ndarray) -> np.ndarray:
    """max_g - min_g of each class's rates, shape ``(k,)``, from a table ``(g, k)``.

    Cells that are NaN are left out: a class that one group alone has gets the range 0, a class
    that no group has gets NaN.
    """
    known = ~np.isnan(table)
    highest = np.where(known, table, -np.inf).max(axis=0)
    lowest = np.where(known, table, np.inf).min(axis=0)
    present = known.any(axis=0)
    return np.subtract(highest, lowest, out=np.full(table.shape[1], np.nan), where=present)


def as_counts(sums: np.ndarray) -> np.ndarray:
    """Whole numbers as integers, as counts are; sums of fractional weights as they are."""
    return sums.astype(int) if (sums == np.round(sums)).all() else sums


def effective_counts(cells: np.ndarray, weight: np.ndarray, count: int) -> np.ndarray:
    """Kish's effective number of examples of each cell, shape ``(count,)``.

    It is (sum w)^2 / sum w^2 over a cell's examples (L. Kish, Survey Sampling, 1965): their number where
    all weights are equal, and less the more they differ, as a mean that few examples dominate is as noisy
    as one over few. `cells` and `weight` are of the examples, shape ``(n,)``; -1 is in no cell.
    """
    known, weight = cells >= 0, np.asarray(weight, dtype=float)
    sums, squares = (np.bincount(cells[known], w[known], count) for w in (weight, weight**2))
    return np.nan_to_num(rates(sums**2, squares))


def rates(wrong: np.ndarray, mass: np.ndarray) -> np.ndarray:
    """``wrong / mass``, NaN where there is no example."""
    return np.divide(wrong, mass, out=np.full(np.shape(mass), np.nan), where=mass > 0)


@dataclass(frozen=True, eq=False)
class ErrorTable:
    """Errors and examples by group and class: the one place where rates and gaps are computed.

    Means are over the classes (groups, cells) that have examples. A worst class or cell, and a gap
    between groups, is None where a class or cell has no example: it could be any number, and 0
    would be the best of all. `undefined` says why. Groups without any example are left out.

    All tables have shape ``(g, k)``, g = 1 without groups.
    """

    errors: np.ndarray  # R_kg in [0, 1], expected ones of random predictions; NaN for empty cells
    mass: np.ndarray  # examples of each cell, or the sum of their weights
    wrong: np.ndarray  # those of them predicted wrongly
    # Predictions by the class predicted, where known. Of two classes they follow from the errors.
    predicted: np.ndarray | None = None
    effective: np.ndarray | None = None  # `effective_counts` of each cell; without weights `mass`

    @classmethod
    def from_counts(
        cls,
        wrong: np.ndarray,
        mass: np.ndarray,
        predicted: np.ndarray | None = None,
        effective: np.ndarray | None = None,
    ) -> ErrorTable:
        """From the examples predicted wrongly and all examples, each of shape ``(g, k)``.

        Where examples have weights these are sums of them, and `effective` has each cell's
        `effective_counts`.
        """
        return cls(rates(wrong, mass), mass, wrong, predicted, effective)

    @classmethod
    def from_rates(cls, errors: np.ndarray, mass: np.ndarray) -> ErrorTable:
        """From error rates and numbers of examples, each of shape ``(g, k)``."""
        errors = np.where(mass > 0, errors, np.nan)
        return cls(errors, mass, np.nan_to_num(errors) * mass)

    @classmethod
    def from_predictions(
        cls,
        target: np.ndarray,
        predicted: np.ndarray,
        num_classes: int,
        groups: np.ndarray | None = None,
        sample_weight: np.ndarray | None = None,
    ) -> ErrorTable:
        """From class indices ``(n,)`` and group indices ``(n,)``, counted or weighed.

        The table has a row for each index up to the largest of `groups`; an example of weight 0
        counts as if it were not there.
        """
        rows = 1 if groups is None else int(groups.max(initial=0)) + 1
        first = 0 if groups is None else np.asarray(groups) * num_classes

        def counts(classes: np.ndarray, chosen: np.ndarray | slice = slice(None)) -> np.ndarray:
            weights = None if sample_weight is None else np.asarray(sample_weight)[chosen]
            size = rows * num_classes
            sums = np.bincount((first + classes)[chosen], weights, size)
            return as_counts(sums.reshape(rows, num_classes))

        missed = np.asarray(target) != np.asarray(predicted)
        mass, effective = counts(target), None
        if sample_weight is not None:
            cells = effective_counts(first + np.asarray(target), sample_weight, mass.size)
            effective = cells.reshape(mass.shape)
        return cls.from_counts(counts(target, missed), mass, counts(predicted), effective)

    def trials(self, axis: int | None = None) -> np.ndarray:
        """Of how many examples the noise of a rate is: their effective number, without weights all.

        Of each cell ``(g, k)``, of each class ``(k,)`` with ``axis=0``, or of each group ``(g,)`` with
        ``axis=1``.
        """
        if self.effective is None:
            return self.mass if axis is None else self.mass.sum(axis=axis)
        if axis is None:
            return self.effective
        squares = np.nan_to_num(rates(self.mass**2, self.effective)).sum(axis=axis)
        return np.nan_to_num(rates(self.mass.sum(axis=axis) ** 2, squares))

    @property
    def present_groups(self) -> np.ndarray:
        """Whether each group has an example, shape ``(g,)``."""
        return self.mass.sum(axis=1) > 0

    @property
    def known_errors(self) -> np.ndarray:
        """R_kg of the groups that have examples, shape ``(g', k)``."""
        return self.errors[self.present_groups]

    @property
    def class_errors(self) -> np.ndarray:
        """Errors of the classes, shape ``(k,)``; NaN for absent ones."""
        return rates(self.wrong.sum(axis=0), self.mass.sum(axis=0))

    @property
    def group_errors(self) -> np.ndarray:
        """Errors of the groups, shape ``(g,)``; NaN for absent ones."""
        return rates(self.wrong.sum(axis=1), self.mass.sum(axis=1))

    @property
    def selection_rates(self) -> np.ndarray | None:
        """Share of each group predicted as each class, shape ``(g, k)``, or None where unknown."""
        chosen = self.predicted
        if chosen is None:
            if self.mass.shape[1] != 2:
                return None
            right = self.mass - self.wrong
            chosen = right + self.wrong[:, ::-1]  # an error of one class is the other's prediction
        return rates(chosen, self.mass.sum(axis=1, keepdims=True) + np.zeros(chosen.shape[1]))

    @property
    def error(self) -> float:
        """Share of all examples that is predicted wrongly, in [0, 1]."""
        return float(self.wrong.sum() / self.mass.sum())

    @property
    def balanced_error(self) -> float:
        """Mean over the classes that have examples, in [0, 1]."""
        return float(np.nanmean(self.class_errors))

    @property
    def group_balanced_error(self) -> float:
        """Mean over the cells that have examples, in [0, 1]."""
        return float(np.nanmean(self.known_errors))

    @property
    def group_balanced_errors(self) -> np.ndarray:
        """Mean over the classes that a group has, shape ``(g,)``; NaN for absent groups."""
        rows = zip(self.errors, self.present_groups.tolist(), strict=True)
        return np.array([np.nanmean(row) if here else np.nan for row, here in rows])

    @property
    def worst_class_error(self) -> float | None:
        """Largest error of a class; None where a class has no example."""
        return self._defined("worst_class_error", np.nanmax, self.class_errors)

    @property
    def worst_group_error(self) -> float:
        """Largest error of a group that has examples."""
        return float(np.nanmax(self.group_errors))

    @property
    def worst_class_and_group_error(self) -> float | None:
        """Largest error of a cell; None where a cell has no example."""
        return self._defined("worst_class_and_group_error", np.nanmax, self.known_errors)

    @property
    def deo(self) -> float | None:
        """Difference of equal opportunity, in [0, k]; see `autobalance.records.metrics.deo`."""
        return self._defined("deo", np.nansum, class_ranges(self.known_errors))

    @property
    def known_deo(self) -> float:
        """The same over cells that have examples: a class that one group alone has adds nothing."""
        return float(np.nansum(class_ranges(self.known_errors)))

    @property
    def equalized_odds_difference(self) -> float | None:
        """Largest gap between groups in the error of a class, in [0, 1]."""
        ranges = class_ranges(self.known_errors)
        return self._defined("equalized_odds_difference", np.nanmax, ranges)

    @property
    def equal_opportunity_difference(self) -> float | None:
        """Gap between groups in the error of the second of two classes, in [0, 1]."""
        ranges = class_ranges(self.known_errors)
        return self._defined("equal_opportunity_difference", lambda r: r[-1], ranges)

    def opportunity_gap(self, positive: int) -> float | None:
        """Gap between groups in the error of one class, in [0, 1]; None where a group lacks it."""
        column = self.known_errors[:, positive : positive + 1]
        return None if np.isnan(column).any() else float(class_ranges(column)[0])

    @property
    def demographic_parity_difference(self) -> float | None:
        """Largest gap between groups in the share predicted as a class, in [0, 1]."""
        selected = self.selection_rates
        if selected is None:
            return None
        return float(np.ptp(selected[self.present_groups], axis=0).max())

    @property
    def point(self) -> tuple[float, float]:
        """(balanced error, known DEO) in percent: a point of a trade-off."""
        return 100 * self.balanced_error, 100 * self.known_deo

    def undefined(
        self, measure: str, class_names: Sequence[object] = (), group_names: Sequence[object] = ()
    ) -> str | None:
        """Why a measure of this table is None, as a sentence goes on after "because"; else None.

        `measure` is the name of a property, such as "deo" or "worst_class_error"; names are in the
        order of the indices, by default "class 0" and "group 0" and so on. Raises InputError if there
        is no such measure.
        """
        if not isinstance(getattr(ErrorTable, measure, None), property):
            raise InputError(f"An error table has no measure {measure!r}.")
        empty = self.mass <= 0
        k = self.mass.shape[1]
        if measure == "demographic_parity_difference" and self.selection_rates is None:
            return f"it is not known how often each of the {k} classes was predicted"
        if measure == "equal_opportunity_difference":
            if k != 2:
                return f"equal opportunity is about the positive one of two classes; there are {k}"
            empty = empty[:, -1:]
        if measure == "worst_class_error":
            empty = empty.all(axis=0, keepdims=True)
        elif measure in _OF_CELLS:
            empty = empty & self.present_groups[:, None]
        else:
            return None
        if not empty.any():
            return None
        g, c = np.argwhere(empty)[0].tolist()
        c += k - np.size(empty, axis=1)
        name = class_names[c] if c < len(class_names) else f"class {c}"
        if measure == "worst_class_error" or len(self.mass) == 1:
            return f"there is no example of {name}"
        group = group_names[g] if g < len(group_names) else f"group {g}"
        return f"there is no example of {name} in {group}"

    def _defined(
        self, measure: str, reduce: Callable[[np.ndarray], float], values: np.ndarray
    ) -> float | None:
        if self.undefined(measure) is not None:
            return None
        return float(reduce(values))


_OF_CELLS = (
    "worst_class_and_group_error",
    "deo",
    "equalized_odds_difference",
    "equal_opportunity_difference",
)
