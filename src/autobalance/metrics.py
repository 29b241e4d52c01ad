"""Numbers for reports, from predicted and true class indices. numpy only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


def class_errors(target: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """Share of each class's examples predicted wrongly, shape ``(k,)``; NaN for absent classes."""
    counts = np.bincount(target, minlength=num_classes).astype(float)
    wrong = np.bincount(target[target != predicted], minlength=num_classes)
    return np.divide(wrong, counts, out=np.full(num_classes, np.nan), where=counts > 0)


def classification_report(
    target: np.ndarray,
    predicted: np.ndarray,
    num_classes: int,
    groups: np.ndarray | None = None,
    group_names: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Error rates in [0, 1]: overall, balanced, worst class, and by class.

    With groups the same by group and by (class, group), and each group objective's value.
    Balanced and worst are over the classes (groups, pairs) present in `target`; a class without
    examples has None. Beside the errors are the numbers of examples they rest on.

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
        "class_n": np.bincount(target, minlength=num_classes).tolist(),
        "class_errors": _or_none(per_class),
    }
    if groups is not None:
        found = np.unique(groups).tolist()
        names = {g: g if group_names is None else group_names[g] for g in found}
        parts = {names[g]: (target[groups == g], predicted[groups == g]) for g in found}
        cells = {name: class_errors(*part, num_classes) for name, part in parts.items()}
        by_group = {name: float(np.mean(y != guess)) for name, (y, guess) in parts.items()}
        everywhere = np.concatenate(list(cells.values()))
        report |= {
            "worst_group_error": max(by_group.values()),
            "group_balanced_error": float(np.nanmean(everywhere)),
            "worst_class_and_group_error": float(np.nanmax(everywhere)),
            "group_errors": by_group,
            "group_balanced_errors": {n: float(np.nanmean(c)) for n, c in cells.items()},
            "class_and_group_errors": {n: _or_none(c) for n, c in cells.items()},
            "class_and_group_n": {
                n: np.bincount(y, minlength=num_classes).tolist() for n, (y, _) in parts.items()
            },
        }
    return report


def _or_none(errors: np.ndarray) -> list[float | None]:
    return [None if np.isnan(e) else float(e) for e in errors]
