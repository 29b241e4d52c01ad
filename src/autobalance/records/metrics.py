"""Numbers for reports, from predicted and true class indices. numpy only.

With groups, R_kg is the error of class k within group g: the share of its examples predicted
wrongly. Groups are treated alike where R_kg does not depend on g.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from autobalance._validation import InputError, array_of_numbers, same_length, whole

if TYPE_CHECKING:
    from fairlearn.metrics import MetricFrame


def class_errors(target: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """Share of each class's examples predicted wrongly, shape ``(k,)``; NaN for absent classes."""
    counts = np.bincount(target, minlength=num_classes).astype(float)
    wrong = np.bincount(target[target != predicted], minlength=num_classes)
    return np.divide(wrong, counts, out=np.full(num_classes, np.nan), where=counts > 0)


def expected_calibration_error(probabilities: Any, target: Any, bins: int = 15) -> float:
    r"""Expected calibration error, :math:`\sum_b (n_b / n) |\mathrm{acc}_b - \mathrm{conf}_b|`, in [0, 1].

    Examples are put into bins of equal width by their confidence, the largest probability; acc_b
    is the share of a bin's examples whose most probable class is theirs, conf_b their mean
    confidence. It is about the most probable class only, in which frequent classes weigh most, and
    with few examples it is above 0 for any probabilities.

    Parameters
    ----------
    probabilities : array-like
        Shape ``(n, k)``, rows that sum to 1.
    target : array-like
        Class indices, shape ``(n,)``.
    bins : int
        Number of bins, ``(b / bins, (b + 1) / bins]``.

    Raises
    ------
    InputError
        If there is no example, lengths differ, or the probabilities are none.

    References
    ----------
    Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, eq. 3.
    """
    found, confidence, right = _binned(probabilities, target, bins)
    excess = np.bincount(found, weights=confidence - right, minlength=bins)
    return float(np.abs(excess).sum() / len(found))


@dataclass(frozen=True)
class Reliability:
    """How often predictions are right, by how sure they are: a reliability diagram as counts.

    Bin b of B holds the examples whose largest probability lies in (b / B, (b + 1) / B].

    Attributes
    ----------
    n, right : list of int
        Examples in each bin, and those of them predicted rightly.
    confidence : list of float
        Mean confidence in each bin, in [0, 1]; 0 in an empty one.
    """

    n: list[int]
    right: list[int]
    confidence: list[float]

    @property
    def error(self) -> float:
        """Expected calibration error, see `expected_calibration_error`."""
        bins = zip(self.n, self.right, self.confidence, strict=True)
        return sum(abs(n * c - right) for n, right, c in bins) / max(1, sum(self.n))


def reliability(probabilities: Any, target: Any, bins: int = 15) -> Reliability:
    """Examples, right predictions and mean confidence by bin of confidence.

    Parameters
    ----------
    probabilities, target, bins
        As for `expected_calibration_error`, which says what it raises.
    """
    found, confidence, right = _binned(probabilities, target, bins)
    n = np.bincount(found, minlength=bins)
    sums = np.bincount(found, weights=confidence, minlength=bins)
    hits = np.bincount(found[right], minlength=bins)
    return Reliability(n.tolist(), hits.tolist(), (sums / np.maximum(n, 1)).tolist())


def _binned(
    probabilities: Any, target: Any, bins: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each example its bin, its largest probability, and whether that is of its class."""
    whole("bins", bins, least=1)
    p, y = array_of_numbers("probabilities", probabilities), np.asarray(target)
    if p.ndim != 2 or len(p) == 0:
        raise InputError(f"probabilities must have shape (n, k), n at least 1; got {p.shape}.")
    same_length(probabilities=p, target=y)
    if not (np.abs(p.sum(axis=1) - 1.0) < 1e-3).all() or (p < 0).any():
        raise InputError("probabilities must not be negative, and each row sum to 1.")
    confidence, right = p.max(axis=1), p.argmax(axis=1) == y
    return np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1), confidence, right


MAX_CONFUSED = 20_000
"""Pairs of classes that a record holds at most."""


def confused_pairs(target: Any, predicted: Any, num_classes: int) -> list[list[int]]:
    """Which classes are taken for which: ``[class, predicted, examples]`` where that is not 0.

    The pairs of most examples first, at most `MAX_CONFUSED`; right predictions are not among them.

    Parameters
    ----------
    target, predicted : array-like
        Class indices in ``0..num_classes-1``, shape ``(n,)``.
    num_classes : int
        Number of classes k.
    """
    y, guess = np.asarray(target, dtype=np.int64), np.asarray(predicted, dtype=np.int64)
    same_length(target=y, predicted=guess)
    missed = y != guess
    pairs, n = np.unique(y[missed] * num_classes + guess[missed], return_counts=True)
    order = np.argsort(-n, kind="stable")[:MAX_CONFUSED]
    columns = (pairs[order] // num_classes, pairs[order] % num_classes, n[order])
    return np.stack(columns, axis=1).tolist()


# What a search leaves -----------------------------------------------------------------------

SEEN = 10
"""Held-out examples of a class, or of others, from which on it says something that all are missed."""


@dataclass(frozen=True)
class HeldOut:
    """What the network predicts on held-out data at the end of a search.

    Attributes
    ----------
    n, wrong, predicted : list of list of int
        By group and class, shape ``(g, k)``, g = 1 without groups: examples; those of them
        predicted wrongly; and predictions, by the class predicted.
    confused : list of list of int
        `confused_pairs`, of all groups together; empty where the record is from before they were
        kept.
    """

    n: list[list[int]]
    wrong: list[list[int]]
    predicted: list[list[int]]
    confused: list[list[int]] = field(default_factory=list)

    @property
    def never_predicted(self) -> list[int]:
        """Classes of at least `SEEN` examples that are predicted for none at all."""
        pairs = zip(_columns(self.n), _columns(self.predicted), strict=True)
        return [k for k, (n, predicted) in enumerate(pairs) if n >= SEEN and predicted == 0]

    @property
    def collapsed(self) -> bool:
        """Whether one class is predicted for everyone, also for `SEEN` examples of others or more."""
        predicted = [c > 0 for c in _columns(self.predicted)]
        others = sum(n for n, p in zip(_columns(self.n), predicted, strict=True) if not p)
        return sum(predicted) == 1 and others >= SEEN


def _columns(table: list[list[int]]) -> list[int]:
    return [sum(column) for column in zip(*table, strict=True)]


# Between groups -------------------------------------------------------------------------------


def group_class_errors(
    target: np.ndarray, predicted: np.ndarray, groups: np.ndarray, num_classes: int
) -> np.ndarray:
    """R_kg, shape ``(g, k)``, g one more than the largest group index; NaN for empty cells.

    Parameters
    ----------
    target, predicted : ndarray
        Class indices in ``0..num_classes-1``, shape ``(n,)``.
    groups : ndarray
        Group indices from 0, shape ``(n,)``.
    num_classes : int
        Number of classes k.

    Raises
    ------
    InputError
        If lengths differ, there is no example, or an index is not one.
    """
    target, predicted, groups = _indices(target, predicted, groups, num_classes)
    members = [groups == g for g in range(groups.max() + 1)]
    return np.stack([class_errors(target[m], predicted[m], num_classes) for m in members])


def class_ranges(table: np.ndarray) -> np.ndarray:
    """max_g - min_g of each class's rates, shape ``(k,)``, from a table ``(g, k)``.

    Cells that are NaN are left out: a class found in one group has range 0, in none NaN.
    """
    known = ~np.isnan(table)
    highest = np.where(known, table, -np.inf).max(axis=0)
    lowest = np.where(known, table, np.inf).min(axis=0)
    found = known.any(axis=0)
    return np.subtract(highest, lowest, out=np.full(table.shape[1], np.nan), where=found)


def deo(target: np.ndarray, predicted: np.ndarray, groups: np.ndarray, num_classes: int) -> float:
    r"""Difference of equal opportunity, :math:`\sum_k (\max_g R_{kg} - \min_g R_{kg})`, in [0, k].

    For two classes and two groups that is :math:`|R_{+,1} - R_{+,2}| + |R_{-,1} - R_{-,2}|`, eq. 4.1
    of the paper; the sum over classes of the range over groups is our extension of it to more of
    either. With two classes and any number of groups it is twice fairlearn's
    ``equalized_odds_difference(agg="mean")``, and not its `equal_opportunity_difference`, which
    looks at the positive class alone.

    Cells without examples are left out, see `class_ranges`; fairlearn counts a rate of 0 for them.

    Parameters
    ----------
    target, predicted, groups, num_classes
        As for `group_class_errors`, which says what it raises.
    """
    return float(
        np.nansum(class_ranges(group_class_errors(target, predicted, groups, num_classes)))
    )


def equalized_odds_difference(
    target: np.ndarray, predicted: np.ndarray, groups: np.ndarray, num_classes: int
) -> float:
    r""":math:`\max_k (\max_g R_{kg} - \min_g R_{kg})`, in [0, 1].

    With two classes fairlearn's measure of that name (its default, the worst case), but for cells
    without examples: as for `deo`.

    Parameters
    ----------
    target, predicted, groups, num_classes
        As for `group_class_errors`, which says what it raises.
    """
    return float(
        np.nanmax(class_ranges(group_class_errors(target, predicted, groups, num_classes)))
    )


def equal_opportunity_difference(
    target: np.ndarray,
    predicted: np.ndarray,
    groups: np.ndarray,
    num_classes: int,
    positive: int | None = None,
) -> float:
    r""":math:`\max_g R_{+,g} - \min_g R_{+,g}` of the positive class, in [0, 1].

    With two classes fairlearn's measure of that name, but for cells without examples: as for
    `deo`. NaN where no example is of the positive class.

    Parameters
    ----------
    target, predicted, groups, num_classes
        As for `group_class_errors`, which says what it raises.
    positive : int, optional
        The positive class; by default the last.
    """
    ranges = class_ranges(group_class_errors(target, predicted, groups, num_classes))
    positive = num_classes - 1 if positive is None else whole("positive", positive, least=0)
    if positive >= num_classes:
        raise InputError(f"positive must be a class, 0 to {num_classes - 1}; got {positive}.")
    return float(ranges[positive])


def demographic_parity_difference(
    target: np.ndarray, predicted: np.ndarray, groups: np.ndarray, num_classes: int
) -> float:
    """Range over groups of the share predicted as a class, the largest of the classes', in [0, 1].

    With two classes the ranges are alike, and this is fairlearn's measure of that name.

    Parameters
    ----------
    target, predicted, groups, num_classes
        As for `group_class_errors`, which says what it raises. `target` plays no part but for its
        length; all measures of this kind are called alike.
    """
    _, predicted, groups = _indices(target, predicted, groups, num_classes)
    return _parity_difference(predicted, groups, num_classes)


def _parity_difference(predicted: np.ndarray, groups: np.ndarray, num_classes: int) -> float:
    members = [predicted[groups == g] for g in np.unique(groups)]
    rates = [np.bincount(part, minlength=num_classes) / len(part) for part in members]
    return float(np.ptp(rates, axis=0).max())


def metric_frame(target: np.ndarray, predicted: np.ndarray, groups: Any) -> MetricFrame:
    """Our measures as a `MetricFrame` of fairlearn: by group, differences, ratios and plots.

    Its metrics are "error", "balanced_error" (over the classes that a group has) and, for each
    class c, "selection_rate_c", the share predicted as c.

    Parameters
    ----------
    target, predicted : ndarray
        Class indices, shape ``(n,)``.
    groups : array-like
        Index or name of each example's group, shape ``(n,)``, or several such columns.

    Raises
    ------
    InputError
        If fairlearn is not installed, or lengths differ.
    """
    try:
        from fairlearn.metrics import MetricFrame
    except ImportError:
        raise InputError(
            "metric_frame needs fairlearn. Install it: pip install 'autobalance[fairness]'."
        ) from None
    same_length(target=target, predicted=predicted, groups=groups)
    target, predicted = np.asarray(target), np.asarray(predicted)
    metrics: dict[str, Callable[..., float]] = {"error": _error, "balanced_error": _balanced_error}
    for c in np.union1d(target, predicted).tolist():
        metrics[f"selection_rate_{c}"] = _selection_rate(c)
    return MetricFrame(metrics=metrics, y_true=target, y_pred=predicted, sensitive_features=groups)


def _error(target: Any, predicted: Any) -> float:
    return float(np.mean(np.asarray(target) != np.asarray(predicted)))


def _balanced_error(target: Any, predicted: Any) -> float:
    y, guess = np.asarray(target), np.asarray(predicted)
    return float(np.nanmean(class_errors(y, guess, int(y.max()) + 1)))


def _selection_rate(c: int) -> Callable[[Any, Any], float]:
    return lambda target, predicted: float(np.mean(np.asarray(predicted) == c))


def _indices(
    target: Any, predicted: Any, groups: Any, num_classes: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The three as checked arrays of indices."""
    whole("num_classes", num_classes, least=2)
    given = {"target": target, "predicted": predicted, "groups": groups}
    if same_length(**given) == 0:
        raise InputError("There is no example to measure: target is empty.")
    checked = []
    for name, values in given.items():
        array = np.asarray(values)
        if array.ndim != 1 or array.dtype.kind not in "iu" or array.min() < 0:
            raise InputError(
                f"{name} must hold indices, whole numbers from 0, of shape (n,); got {array.dtype} of "
                f"shape {array.shape}. Number the labels first, with numpy.unique(return_inverse=True)."
            )
        if name != "groups" and array.max() >= num_classes:
            raise InputError(
                f"{name} has class {array.max()}, but there are only {num_classes} classes."
            )
        checked.append(array.astype(np.int64))
    return checked[0], checked[1], checked[2]


# Reports --------------------------------------------------------------------------------------


def classification_report(
    target: np.ndarray,
    predicted: np.ndarray,
    num_classes: int,
    groups: np.ndarray | None = None,
    group_names: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Rates of error in [0, 1]: overall, balanced, worst class, by class; named objectives' values.

    With groups the same by group and by (class, group), each group objective's value, and the
    differences between groups that the functions of this module measure ("deo" alone can exceed
    1). Means and extremes are over the classes (groups, pairs) present in `target`; what rests
    on no example is None. Beside the errors are the numbers of examples they rest on.

    Parameters
    ----------
    target, predicted : ndarray
        Class indices, shape ``(n,)``.
    num_classes : int
        Number of classes k.
    groups : ndarray, optional
        Group indices, shape ``(n,)``.
    group_names : sequence of str, optional
        Name of each group index, the keys of what is by group; by default the indices.
    """
    per_class = class_errors(target, predicted, num_classes)
    report: dict[str, Any] = {
        "n": len(target),
        "error": float(np.mean(target != predicted)),
        "balanced_error": float(np.nanmean(per_class)),
        "worst_class_error": float(np.nanmax(per_class)),
        **_other_objectives(per_class[~np.isnan(per_class)]),
        "class_n": np.bincount(target, minlength=num_classes).tolist(),
        "class_errors": _or_none(per_class),
    }
    if groups is not None:
        found = np.unique(groups).tolist()
        names = {g: g if group_names is None else group_names[g] for g in found}
        parts = {names[g]: (target[groups == g], predicted[groups == g]) for g in found}
        cells = {name: class_errors(*part, num_classes) for name, part in parts.items()}
        by_group = {name: float(np.mean(y != guess)) for name, (y, guess) in parts.items()}
        everywhere = np.stack(list(cells.values()))
        ranges = class_ranges(everywhere)
        report |= {
            "worst_group_error": max(by_group.values()),
            "group_balanced_error": float(np.nanmean(everywhere)),
            "worst_class_and_group_error": float(np.nanmax(everywhere)),
            "deo": float(np.nansum(ranges)),
            "equalized_odds_difference": float(np.nanmax(ranges)),
            "equal_opportunity_difference": _or_none(ranges)[-1],
            "demographic_parity_difference": _parity_difference(predicted, groups, num_classes),
            "group_errors": by_group,
            "group_balanced_errors": {n: float(np.nanmean(c)) for n, c in cells.items()},
            "class_and_group_errors": {n: _or_none(c) for n, c in cells.items()},
            "class_and_group_n": {
                n: np.bincount(y, minlength=num_classes).tolist() for n, (y, _) in parts.items()
            },
        }
    return report


def _other_objectives(errors: np.ndarray) -> dict[str, float]:
    """The named objectives that aggregate present classes' errors in other ways."""
    worst = np.sort(errors)[::-1]
    size = max(1.0, 0.2 * len(worst))
    share = np.clip(size - np.arange(len(worst)), 0.0, 1.0)
    return {
        "cvar_error": float(worst @ share / size),
        "quantile_error": float(np.quantile(errors, 0.8)),
        "balanced_error_and_deviation": float((errors.mean() + errors.std()) / 2),
    }


def _or_none(errors: np.ndarray) -> list[float | None]:
    return [None if np.isnan(e) else float(e) for e in errors]
