"""Measures of predictions, from predicted and true class indices. numpy only.

Rates and gaps are those of an `autobalance.records.error_table.ErrorTable`; beside them stand
calibration and the classes that are taken for each other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from autobalance._validation import (
    InputError,
    array_of_numbers,
    how_to_install,
    same_length,
    whole,
)
from autobalance.records.error_table import ErrorTable, as_counts, effective_counts

if TYPE_CHECKING:
    from fairlearn.metrics import MetricFrame


def class_errors(target: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """Share of each class's examples predicted wrongly, shape ``(k,)``; NaN for absent classes."""
    return ErrorTable.from_predictions(target, predicted, num_classes).class_errors


def expected_calibration_error(
    probabilities: Any, target: Any, bins: int = 15, *, sample_weight: Any = None
) -> float:
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
    sample_weight : array-like, optional
        What each example counts for, shape ``(n,)``, above 0; by default 1.

    Raises
    ------
    InputError
        If there is no example, lengths differ, or the probabilities are none.

    References
    ----------
    Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, eq. 3.
    """
    bin_of, confidence, right = _sort_into_bins(probabilities, target, bins)
    weight = np.ones(len(bin_of)) if sample_weight is None else np.asarray(sample_weight, float)
    excess = np.bincount(bin_of, weights=(confidence - right) * weight, minlength=bins)
    return float(np.abs(excess).sum() / weight.sum())


@dataclass(frozen=True)
class Reliability:
    """How often predictions are right, by how sure they are: a reliability diagram as counts.

    Bin b of B holds the examples whose largest probability lies in (b / B, (b + 1) / B].

    The numbers are sums of weights where the examples have some; `effective` then holds Kish's
    effective numbers of examples, see `autobalance.records.error_table.effective_counts`.
    """

    n: list[int]  # examples in each bin
    right: list[int]  # those of them predicted rightly
    confidence: list[float]  # mean confidence in each bin, in [0, 1]; 0 in an empty one
    effective: list[float] | None = None

    @property
    def error(self) -> float:
        """Expected calibration error, see `expected_calibration_error`."""
        bins = zip(self.n, self.right, self.confidence, strict=True)
        return sum(abs(n * c - right) for n, right, c in bins) / (sum(self.n) or 1)


def reliability(
    probabilities: Any, target: Any, bins: int = 15, *, sample_weight: Any = None
) -> Reliability:
    """Examples, right predictions and mean confidence by bin of confidence.

    The arguments are those of `expected_calibration_error`.
    """
    bin_of, confidence, right = _sort_into_bins(probabilities, target, bins)
    weight = None if sample_weight is None else np.asarray(sample_weight, dtype=float)
    n = np.bincount(bin_of, weight, bins)
    sums = np.bincount(bin_of, confidence if weight is None else confidence * weight, bins)
    hits = np.bincount(bin_of[right], None if weight is None else weight[right], bins)
    means = np.divide(sums, n, out=np.zeros(bins), where=n > 0)
    effective = None
    if weight is not None:
        effective = effective_counts(bin_of, weight, bins).tolist()
    return Reliability(n.tolist(), hits.tolist(), means.tolist(), effective)


def _sort_into_bins(
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


def counts_to_dict(counts: Any) -> dict[str, Any]:
    """A dataclass of counts, and those in it, for JSON; "effective" only where examples have weights."""
    return asdict(
        counts,
        dict_factory=lambda items: {k: v for k, v in items if k != "effective" or v is not None},
    )


MAX_CONFUSED = 20_000
"""Pairs of classes that a record holds at most."""


def confused_pairs(
    target: Any, predicted: Any, num_classes: int, *, sample_weight: Any = None
) -> list[list[Any]]:
    """Which classes are taken for which: ``[class, predicted, examples]`` where that is not 0.

    The pairs of most examples first, at most `MAX_CONFUSED`; right predictions are not among them.

    Targets and predictions are class indices in ``0..num_classes-1``, shape ``(n,)``. With weights
    ``(n,)`` the third is the sum of the examples' weights, as an int where all these sums are whole.
    """
    y, guess = np.asarray(target, dtype=np.int64), np.asarray(predicted, dtype=np.int64)
    same_length(target=y, predicted=guess, sample_weight=sample_weight)
    missed = y != guess
    pairs, of_pair = np.unique(y[missed] * num_classes + guess[missed], return_inverse=True)
    weight = None if sample_weight is None else np.asarray(sample_weight, dtype=float)[missed]
    n = as_counts(np.bincount(of_pair, weight, len(pairs)))
    order = np.argsort(-n, kind="stable")[:MAX_CONFUSED]
    order = order[n[order] > 0]
    columns = (pairs[order] // num_classes, pairs[order] % num_classes, n[order])
    return [list(row) for row in zip(*(column.tolist() for column in columns), strict=True)]


# Between groups -------------------------------------------------------------------------------


def group_class_errors(
    target: np.ndarray, predicted: np.ndarray, groups: np.ndarray, num_classes: int
) -> np.ndarray:
    """R_kg, shape ``(g, k)``, g one more than the largest group index; NaN for empty cells.

    Parameters
    ----------
    target, predicted, groups : ndarray
        Class indices in ``0..num_classes-1`` and group indices from 0, each of shape ``(n,)``.
    num_classes : int
        Number of classes k.

    Raises
    ------
    InputError
        If lengths differ, there is no example, or an index is not one.
    """
    return _table(target, predicted, groups, num_classes).errors


def deo(
    target: np.ndarray, predicted: np.ndarray, groups: np.ndarray, num_classes: int
) -> float | None:
    r"""Difference of equal opportunity, :math:`\sum_k (\max_g R_{kg} - \min_g R_{kg})`, in [0, k].

    For two classes and two groups that is :math:`|R_{+,1} - R_{+,2}| + |R_{-,1} - R_{-,2}|`, eq. 4.1
    of the paper; the sum over classes of the range over groups is our extension of it to more of
    either. With two classes and any number of groups it is twice fairlearn's
    ``equalized_odds_difference(agg="mean")``, and not its `equal_opportunity_difference`, which
    looks at the positive class alone.

    It is None where a class has no example in one of the groups; fairlearn counts a rate of 0 there.

    The arguments are those of `group_class_errors`.
    """
    return _table(target, predicted, groups, num_classes).deo


def equalized_odds_difference(
    target: np.ndarray, predicted: np.ndarray, groups: np.ndarray, num_classes: int
) -> float | None:
    r""":math:`\max_k (\max_g R_{kg} - \min_g R_{kg})`, in [0, 1].

    With two classes this is fairlearn's measure of that name (its default, the worst case). It is
    None where a class has no example in one of the groups.

    The arguments are those of `group_class_errors`.
    """
    return _table(target, predicted, groups, num_classes).equalized_odds_difference


def equal_opportunity_difference(
    target: np.ndarray,
    predicted: np.ndarray,
    groups: np.ndarray,
    num_classes: int,
    positive: int | None = None,
) -> float | None:
    r""":math:`\max_g R_{+,g} - \min_g R_{+,g}` of the positive class, in [0, 1].

    With two classes this is fairlearn's measure of that name. It is None where one of the groups
    has no example of the positive class, and where it is not said which of several it is.

    The arguments are those of `group_class_errors`; `positive` is by default the last of two classes.
    """
    table = _table(target, predicted, groups, num_classes)
    if positive is None:
        return table.equal_opportunity_difference
    if whole("positive", positive, least=0) >= num_classes:
        raise InputError(f"positive must be a class, 0 to {num_classes - 1}; got {positive}.")
    return table.opportunity_gap(positive)


def demographic_parity_difference(
    target: np.ndarray, predicted: np.ndarray, groups: np.ndarray, num_classes: int
) -> float | None:
    """Range over groups of the share predicted as a class, the largest of the classes', in [0, 1].

    With two classes the ranges are alike, and this is fairlearn's measure of that name.

    The arguments are those of `group_class_errors`; `target` counts by its length alone.
    """
    return _table(target, predicted, groups, num_classes).demographic_parity_difference


def _table(target: Any, predicted: Any, groups: Any, num_classes: int) -> ErrorTable:
    y, guess, members = _indices(target, predicted, groups, num_classes)
    return ErrorTable.from_predictions(y, guess, num_classes, members)


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
        raise InputError(f"metric_frame needs fairlearn. {how_to_install('fairlearn')}.") from None
    same_length(target=target, predicted=predicted, groups=groups)
    target, predicted = np.asarray(target), np.asarray(predicted)
    metrics: dict[str, Callable[..., float]] = {
        "error": lambda y, guess: float(np.mean(np.asarray(y) != np.asarray(guess))),
        "balanced_error": lambda y, guess: float(
            np.nanmean(class_errors(np.asarray(y), np.asarray(guess), int(np.max(y)) + 1))
        ),
    }
    for c in np.union1d(target, predicted).tolist():
        metrics[f"selection_rate_{c}"] = lambda y, guess, c=c: float(
            np.mean(np.asarray(guess) == c)
        )
    return MetricFrame(metrics=metrics, y_true=target, y_pred=predicted, sensitive_features=groups)


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


GAPS = (
    "deo",
    "equalized_odds_difference",
    "equal_opportunity_difference",
    "demographic_parity_difference",
)
"""Differences between groups that a report holds."""


def classification_report(
    target: np.ndarray,
    predicted: np.ndarray,
    num_classes: int,
    groups: np.ndarray | None = None,
    group_names: Sequence[str] | None = None,
    sample_weight: np.ndarray | None = None,
) -> dict[str, Any]:
    """Rates of error in [0, 1]: overall, balanced, worst class, by class; named objectives' values.

    With groups the same by group and by (class, group), each group objective's value, and the
    differences between groups that the functions of this module measure ("deo" alone can exceed
    1). Means are over the classes (groups, pairs) present in `target`. What is not defined is None,
    such as the worst class where a class has no example; "undefined", which is there only where
    something is, says why by name. Beside the errors are the numbers of examples they rest on.

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
    sample_weight : ndarray, optional
        What each example counts for, shape ``(n,)``, above 0; by default 1. Numbers of examples are
        then sums of weights, and "class_n_effective" and "class_and_group_n_effective" hold Kish's
        effective numbers, on which intervals rest; see `autobalance.records.error_table.effective_counts`.
    """
    table = ErrorTable.from_predictions(target, predicted, num_classes, groups, sample_weight)
    return report_rates(table, group_names, by_group=groups is not None)


def report_rates(
    table: ErrorTable, group_names: Sequence[str] | None = None, *, by_group: bool
) -> dict[str, Any]:
    """What `classification_report` says, of a table of errors whose rows may be groups."""
    per_class = table.class_errors
    weighted = table.effective is not None
    report: dict[str, Any] = {
        "n": table.mass.sum().item(),
        "error": table.error,
        "balanced_error": table.balanced_error,
        "worst_class_error": table.worst_class_error,
        **_other_objectives(per_class[~np.isnan(per_class)]),
        "class_n": table.mass.sum(axis=0).tolist(),
        **({"class_n_effective": table.trials(axis=0).tolist()} if weighted else {}),
        "class_errors": _or_none(per_class),
    }
    measures = ["worst_class_error"]
    if by_group:
        present = np.flatnonzero(table.present_groups).tolist()
        names = {g: g if group_names is None else group_names[g] for g in present}
        report |= {
            "worst_group_error": table.worst_group_error,
            "group_balanced_error": table.group_balanced_error,
            "worst_class_and_group_error": table.worst_class_and_group_error,
            **{gap: getattr(table, gap) for gap in GAPS},
            "group_errors": {names[g]: float(table.group_errors[g]) for g in present},
            "group_balanced_errors": {
                names[g]: float(table.group_balanced_errors[g]) for g in present
            },
            "class_and_group_errors": {names[g]: _or_none(table.errors[g]) for g in present},
            "class_and_group_n": {names[g]: table.mass[g].tolist() for g in present},
        }
        if weighted:
            effective = table.trials()
            report["class_and_group_n_effective"] = {
                names[g]: effective[g].tolist() for g in present
            }
        measures += ["worst_class_and_group_error", *GAPS]
    reasons = {m: table.undefined(m, group_names=group_names or ()) for m in measures}
    if any(reasons.values()):
        report["undefined"] = {name: reason for name, reason in reasons.items() if reason}
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
