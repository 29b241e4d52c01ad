"""What a report shows of a run of several labels: `record.read_run` makes it of a result.json."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from autobalance.records import ErrorTable
from autobalance.report.run import Run


@dataclass(frozen=True, eq=False)
class LabelErrors:
    """Errors of a way to decide, by its title: a table ``(2, k)`` of negatives and positives."""

    title: str
    table: ErrorTable

    @property
    def balanced(self) -> np.ndarray:
        """Of each label, the mean of its two rates, shape ``(k,)``; NaN without one of the signs."""
        return self.table.errors.mean(axis=0)


@dataclass(frozen=True, eq=False)
class LabelEvidence:
    """What was measured on some data: the last of `methods` is what the run took."""

    key: str
    data: str
    methods: list[LabelErrors]

    @property
    def change(self) -> np.ndarray | None:
        """Of each label's balanced error, from the first to the last; None of one alone."""
        if len(self.methods) < 2:
            return None
        return self.methods[-1].balanced - self.methods[0].balanced


@dataclass(frozen=True, eq=False)
class LabelRun(Run):
    """A run of several labels; `classes` has their names, and `counts` the positives in training."""

    negatives: np.ndarray = field(default_factory=lambda: np.zeros(0))  # in training, shape (k,)
    additive: np.ndarray | None = None  # l of the loss, or the thresholds, shape (k,)
    evidence: list[LabelEvidence] = field(default_factory=list)

    @property
    def several_labels(self) -> bool:
        """True."""
        return True
