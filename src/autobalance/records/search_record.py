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
    """One upper step in the history of a search; see `autobalance.bilevel.loss_tuner.UpperStep`."""

    step: int  # lower steps done before it
    objective: float  # on validation data, in the differentiable form
    hard_objective: float  # the same over the 0-1 error
    training_loss: float  # the last one, mean over folds
    norm: float
    residual: float
    iterations: int
    reason: str
    skipped: bool
    predicted: int = 0  # classes predicted; 0 where nobody looked
    test_objective: float | None = None  # as `hard_objective`, on test data of the search
    derivative: str = "forward"  # how J v was computed


@dataclass(frozen=True)
class PathPoint:
    """The loss's parameters after so many lower steps, each as (nested) lists or None."""

    step: int
    weight: list[Any] | None
    additive: list[Any] | None
    multiplicative: list[Any] | None


ARM_OUTCOMES = ("taken", "passed over", "diverged", "left out")
"""What may become of an arm in a race."""


@dataclass(frozen=True)
class RacedArm:
    """One arm of a race, see `autobalance.bilevel.racing`.

    Attributes
    ----------
    name : str
        Its name.
    settings : dict
        What it changes.
    outcome : {"taken", "passed over", "diverged", "left out"}
        What became of it.
    reason : str
        Why it was left out or diverged; else empty.
    steps : int
        Training steps in the race, of all folds.
    criterion : float or None
        What arms are compared by, on held-out examples; None where it did not race.
    difference, standard_error : float or None
        The criterion less that of the favourite, and its standard error from the held-out examples.
    error : float or None
        The objective over the 0-1 error on held-out examples.
    training_error : float or None
        Mean over the classes of the error on its training rows.
    """

    name: str
    settings: dict[str, Any]
    outcome: str
    reason: str = ""
    steps: int = 0
    criterion: float | None = None
    difference: float | None = None
    standard_error: float | None = None
    error: float | None = None
    training_error: float | None = None


@dataclass(frozen=True)
class HeldOut:
    """What the network predicts on held-out data at the end of a search.

    By group and class, shape ``(g, k)``, g = 1 without groups.
    """

    n: list[list[int]]  # examples
    wrong: list[list[int]]  # those of them predicted wrongly
    predicted: list[list[int]]  # predictions, by the class predicted
    confused: list[list[int]] = field(default_factory=list)  # as `confused_pairs`, of all groups
    # Kish's effective numbers of examples, see `effective_counts`; None without weights.
    effective: list[list[float]] | None = None

    @property
    def table(self) -> ErrorTable:
        """The errors and what follows from them."""
        effective = None if self.effective is None else np.array(self.effective)
        return ErrorTable.from_counts(
            np.array(self.wrong), np.array(self.n), np.array(self.predicted), effective
        )

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

    The expected calibration errors, see `autobalance.records.metrics.expected_calibration_error`, are
    on the examples that the temperature was fitted on.
    """

    temperature: float  # T, above 0: over 1 for a network too sure of itself
    examples: int  # held out
    raw_error: float  # of the softmax of raw logits
    prior_error: float  # of the corrected probabilities at T = 1
    error: float  # of these at T
    raw_bins: Reliability | None = None  # the same three by confidence
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
