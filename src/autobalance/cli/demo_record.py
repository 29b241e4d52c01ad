"""The demo's entries of several seeds as one entry of a record."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

KEYS = ("balanced_error", "worst_class_error")
"""The errors that the demo shows, each with its standard error over the seeds."""


def average(entries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One method's entry over seeds, from its entry of each seed, which may come in any order.

    Every number is the mean over the seeds; the worst class is that of each seed, then the mean. Counts of
    examples are sums, and "class_n_effective" says of how many examples their noise is: those of one seed,
    because further seeds bring no new examples. "by_seed" has each seed's numbers, and "standard_error"
    that of the means of `KEYS` where there are several seeds.
    """
    entries = sorted(entries, key=lambda entry: entry["seed"])
    numbers = [key for key, value in entries[0].items() if isinstance(value, float)]
    merged = {
        **entries[0],
        **{key: float(np.mean([e[key] for e in entries])) for key in numbers},
        "by_seed": [{"seed": e["seed"], **{key: e[key] for key in numbers}} for e in entries],
    }
    del merged["seed"], merged["name"]
    several = len(entries)
    if several == 1:
        return merged
    sizes = np.array([e["class_n"] for e in entries])
    wrong = np.array([e["class_errors"] for e in entries]) * sizes
    merged |= {
        "n": int(sizes.sum()),
        "class_n": sizes.sum(axis=0).tolist(),
        "class_n_effective": sizes.mean(axis=0).tolist(),
        "class_errors": (wrong.sum(axis=0) / sizes.sum(axis=0)).tolist(),
        "confused": _add_confusions([e["confused"] for e in entries]),
        "standard_error": {
            key: float(np.std([e[key] for e in entries], ddof=1) / several**0.5) for key in KEYS
        },
    }
    if "calibration" in merged:
        parts = [e["calibration"] for e in entries]
        merged["calibration"] = {
            "temperature": float(np.mean([part["temperature"] for part in parts])),
            **{name: _add_bins([part[name] for part in parts]) for name in ("raw", "corrected")},
        }
    return merged


def _add_confusions(parts: Sequence[list[list[int]]]) -> list[list[int]]:
    """Rows of class, class predicted and examples, added up."""
    total: Counter[tuple[int, int]] = Counter()
    for part in parts:
        for target, predicted, n in part:
            total[target, predicted] += n
    return [[*pair, n] for pair, n in sorted(total.items())]


def _add_bins(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The fields of an `autobalance.records.Reliability`, whose bins are the same in every part."""
    n, right, confidence = (
        np.array([part[key] for part in parts]) for key in ("n", "right", "confidence")
    )
    total = n.sum(axis=0)
    sums = (n * confidence).sum(axis=0)
    return {
        "n": total.tolist(),
        "right": right.sum(axis=0).tolist(),
        "confidence": np.divide(sums, total, out=np.zeros(len(total)), where=total > 0).tolist(),
        "effective": (total / len(parts)).tolist(),
    }
