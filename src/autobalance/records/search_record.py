"""The plain parts of a search's record, which the search writes and the report reads."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from autobalance.records.error_table import ErrorTable
from autobalance.records.metrics import Reliability

SEEN = 10
"""So many held-out examples of a class, or more, all missed, say that it is never predicted."""


@dataclass(frozen=True)
class UpperRecord:
    """One upper step in the history of a search.

    Attributes
    ----------
    step : int
        Lower steps done before it.
    objective, hard_objective : float
        On validation data: the differentiable objective, and the same over the 0-1 error.
    training_loss : float
        Last training loss, mean over folds.
    norm, residual, iterations, reason, skipped, predicted
        Diagnostics; see `autobalance.bilevel.loss_tuner.UpperStep`. `predicted` is 0 where nobody
        looked, and `derivative` "forward" in records of earlier releases.
    test_objective : float or None
        Same as `hard_objective`, on test data of the search; None where nobody looked.
    """

    step: int
    objective: float
    hard_objective: float
    training_loss: float
    norm: float
    residual: float
    iterations: int
    reason: str
    skipped: bool
    predicted: int = 0
    test_objective: float | None = None
    derivative: str = "forward"


@dataclass(frozen=True)
class PathPoint:
    """The loss's parameters after so many lower steps, each as (nested) lists or None."""

    step: int
    weight: list[Any] | None
    additive: list[Any] | None
    multiplicative: list[Any] | None


@dataclass(frozen=True)
class HeldOut:
    """What the network predicts on held-out data at the end of a search.

    Attributes
    ----------
    n, wrong, predicted : list of list of int
        By group and class, shape ``(g, k)``, g = 1 without groups: examples; those of them
        predicted wrongly; and predictions, by the class predicted.
    confused : list of list of int
        Same as `autobalance.records.metrics.confused_pairs`, of all groups together.
    """

    n: list[list[int]]
    wrong: list[list[int]]
    predicted: list[list[int]]
    confused: list[list[int]] = field(default_factory=list)

    @property
    def table(self) -> ErrorTable:
        """The errors and what follows from them."""
        return ErrorTable.from_counts(*map(np.array, (self.wrong, self.n, self.predicted)))

    @property
    def never_predicted(self) -> list[int]:
        """Classes of at least `SEEN` examples that are predicted for none at all."""
        n, predicted = np.sum(self.n, axis=0), np.sum(self.predicted, axis=0)
        return np.flatnonzero((n >= SEEN) & (predicted == 0)).tolist()

    @property
    def collapsed(self) -> bool:
        """Whether one class is predicted for everyone, also for `SEEN` examples of others or more."""
        n, predicted = np.sum(self.n, axis=0), np.sum(self.predicted, axis=0) > 0
        return bool(predicted.sum() == 1 and n[~predicted].sum() >= SEEN)


@dataclass(frozen=True)
class Calibration:
    """How well probabilities fit held-out data, and the temperature that makes them fit.

    Attributes
    ----------
    temperature : float
        T, above 0: over 1 for a network too sure of itself.
    examples : int
        Held-out examples it was fitted on.
    raw_error, prior_error, error : float
        Expected calibration error on these examples, see
        `autobalance.records.metrics.expected_calibration_error`: of the softmax of raw logits; of the
        corrected probabilities at T = 1; and at T, which was fitted on the same examples.
    raw_bins, prior_bins, bins : Reliability or None
        The same three by confidence; None where the record is from before they were kept.
    """

    temperature: float
    examples: int
    raw_error: float
    prior_error: float
    error: float
    raw_bins: Reliability | None = None
    prior_bins: Reliability | None = None
    bins: Reliability | None = None

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> Calibration:
        """Inverse of `dataclasses.asdict`; bins that are not there stay None."""
        fields = dict(record)
        for name in ("raw_bins", "prior_bins", "bins"):
            if fields.get(name) is not None:
                fields[name] = Reliability(**fields[name])
        return cls(**fields)
