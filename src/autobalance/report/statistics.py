"""Intervals for error rates, and smoothing for curves. numpy only."""

from __future__ import annotations

import math

import numpy as np

Z90, Z95 = 1.644854, 1.959964


def wilson(share: np.ndarray, n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Wilson's 95% interval of a proportion (E. B. Wilson, JASA 22, 1927).

    `share` are the observed proportions, NaN where there is none, `n` the trials behind each. Both
    ends are NaN where `share` is NaN or `n` is 0. scipy has it for one proportion at a time.
    """
    share, n = np.asarray(share, dtype=float), np.asarray(n, dtype=float)
    known = np.isfinite(share) & (n > 0)
    p, trials = np.where(known, share, 0.0), np.where(known, n, 1.0)
    shrink = 1.0 + Z95**2 / trials
    middle = (p + Z95**2 / (2 * trials)) / shrink
    half = Z95 / shrink * np.sqrt(p * (1 - p) / trials + Z95**2 / (4 * trials**2))
    return (
        np.where(known, np.clip(middle - half, 0.0, 1.0), np.nan),
        np.where(known, np.clip(middle + half, 0.0, 1.0), np.nan),
    )


def class_variances(errors: np.ndarray, n: np.ndarray) -> np.ndarray:
    """Variance of each class's error due to the choice of test examples, shape ``(k,)``.

    Each share is first pulled towards 1/2 by two successes and two failures (Agresti and Coull), so
    that a class without any error does not count as known exactly.
    """
    trials = n + 4
    share = (errors * n + 2) / trials
    return share * (1 - share) / trials


def mean_error_variance(errors: np.ndarray, n: np.ndarray) -> float:
    """Variance of the balanced error due to the choice of test examples."""
    present = np.isfinite(errors) & (n > 0)
    variances = class_variances(errors[present], n[present])
    return float(np.sum(variances) / max(1, present.sum()) ** 2)


def half_width(*variances: float) -> float:
    """Half of the 95% interval of a sum or difference of independent estimates."""
    return Z95 * math.sqrt(sum(variances))


def smooth(values: np.ndarray, window: int) -> np.ndarray:
    """Centred moving average that ignores NaN; at the ends over what the window still holds."""
    known = np.isfinite(values)
    ones = np.ones(window | 1)
    total = np.convolve(np.where(known, values, 0.0), ones)
    count = np.convolve(known.astype(float), ones)
    reach = (window | 1) // 2
    middle = slice(reach, reach + len(values))
    return np.divide(
        total[middle], count[middle], out=np.full(len(values), np.nan), where=count[middle] > 0.5
    )


def slope(values: np.ndarray, log_counts: np.ndarray) -> float | None:
    """Least-squares slope of `values` over `log_counts`; None where the counts do not differ."""
    known = np.isfinite(values) & np.isfinite(log_counts)
    if known.sum() < 2 or np.ptp(log_counts[known]) < 1e-6:
        return None
    centred = log_counts[known] - log_counts[known].mean()
    return float(centred @ values[known] / (centred @ centred))
