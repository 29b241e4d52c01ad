"""Numbers for reports, from predicted and true class indices. numpy only."""

from __future__ import annotations

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
) -> dict[str, Any]:
    """Error rates in [0, 1]: overall, balanced, worst class; by class (with its number of examples),
    and by group if given.

    Balanced and worst are over the classes (groups) present in `target`.
    """
    per_class = class_errors(target, predicted, num_classes)
    report: dict[str, Any] = {
        "n": len(target),
        "error": float(np.mean(target != predicted)),
        "balanced_error": float(np.nanmean(per_class)),
        "worst_class_error": float(np.nanmax(per_class)),
        "class_n": np.bincount(target, minlength=num_classes).tolist(),
        "class_errors": [None if np.isnan(e) else float(e) for e in per_class],
    }
    if groups is not None:
        ids = np.unique(groups)
        by_group = {int(g): float(np.mean((target != predicted)[groups == g])) for g in ids}
        balanced = {
            int(g): float(
                np.nanmean(class_errors(target[groups == g], predicted[groups == g], num_classes))
            )
            for g in ids
        }
        report |= {
            "worst_group_error": max(by_group.values()),
            "group_errors": by_group,
            "group_balanced_errors": balanced,
        }
    return report
