"""What a report shows of a run: `record.read_run` makes it of a result.json."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from autobalance.records import ErrorTable, HeldOut, Reliability


@dataclass(frozen=True, eq=False)
class ByGroup:
    """Errors within the groups that have examples, a row of `table` each; `data` for a caption."""

    names: list[str]
    table: ErrorTable
    data: str


@dataclass(frozen=True, eq=False)
class Method:
    """One way of training, and its errors on some data.

    Attributes
    ----------
    errors : ndarray
        Error per class, shape ``(k,)``, in [0, 1]; NaN where a class has no example.
    n : ndarray or None
        Examples per class, shape ``(k,)``; None where unknown.
    scores : dict
        "balanced_error", "worst_class_error" and "worst_group_error" where known.
    undefined : dict
        Why a measure has no value, by its name, for a sentence after "because".
    confused : ndarray or None
        Rows of class, class predicted and examples, shape ``(m, 3)``; None where unknown.
    reliability : dict
        "raw" and "corrected" where known; see `autobalance.calibration.temperature.measured`.
    """

    name: str
    title: str
    errors: np.ndarray
    n: np.ndarray | None
    scores: dict[str, float] = field(default_factory=dict)
    undefined: dict[str, str] = field(default_factory=dict)
    seconds: float | None = None
    training_runs: float | None = None
    confused: np.ndarray | None = None
    reliability: dict[str, Reliability] = field(default_factory=dict)
    by_group: ByGroup | None = None


@dataclass(frozen=True, eq=False)
class Part:
    """One of ℓ, δ and w: the key "additive", the symbol "ℓ", and the title in words.

    Attributes
    ----------
    start, end : ndarray
        Shape ``(g, k)``, g = 1 without groups. ℓ has mean 0 in each row: only differences act.
        `end` is the designed loss, whether or not the final choice took it.
    steps, path : ndarray
        Training steps at which the path was noted, shape ``(t,)``, and the path ``(t, g, k)``.
    """

    key: str
    symbol: str
    title: str
    start: np.ndarray
    end: np.ndarray
    steps: np.ndarray
    path: np.ndarray

    @property
    def changed(self) -> bool:
        """Whether the search moved it."""
        return bool(np.nanmax(np.abs(self.end - self.start), initial=0.0) > 1e-6)


@dataclass(frozen=True, eq=False)
class Candidate:
    """A loss of the final choice, "designed", "start" or "cross_entropy", judged on held-out examples.

    Attributes
    ----------
    objective : float
        Over the 0-1 error, in [0, 1].
    difference, standard_error : float or None
        From the start; below 0 is better.
    table : ErrorTable or None
        Errors on held-out examples, by group and class.
    confused, by_group
        Same as in `Method`.
    """

    name: str
    objective: float
    difference: float | None
    standard_error: float | None
    table: ErrorTable | None = None
    confused: np.ndarray | None = None
    by_group: ByGroup | None = None


@dataclass(frozen=True, eq=False)
class Run:
    """A run, ready to be described.

    Attributes
    ----------
    counts : ndarray
        Training examples, shape ``(g, k)``, g = 1 without groups.
    order : ndarray
        Classes from the most to the least frequent, shape ``(k,)``.
    snippet : str or None
        The loss taken as code that stands alone; None where it would be long.
    curves : dict
        "step", "objective", "hard_objective", "test_objective", "training_loss" and "norm", each of
        shape ``(t,)``.
    search_status, status : str
        Of the search, and of the whole run: with the search finished, that of retraining.
    candidates, choice
        What the final choice was among, empty where there was none, and the name of the one taken.
    training_runs : float or None
        What the search cost, in training runs.
    held_out, confused
        What the network searched with predicts at the end of the search; of all groups together.
    calibration, reliability : dict
        Numbers of `autobalance.records.Calibration`; its bins as "raw", "prior" and "corrected".
    by_group : ByGroup or None
        Of the method "autobalance" on test data, or of `held_out`.
    policy : dict
        The augmentation learned: class (and group), then operation, then "probability" and
        "magnitude" in [0, 1]; empty where there was none.
    frontier : dict
        "main", "gap", "points", "baselines", "by" ("mix" or "bound") and under that name the point
        taken, where the run is a frontier's; may be empty.
    options : dict
        Options of the command that `settings` lacks, "groups" and "test" among them.
    samples : dict
        Training images and their augmented versions, as `autobalance.report.samples` packs them, with
        their rows' "names"; empty where there are none.
    place : str
        In front of every identifier, where a page shows several runs.
    rows : int
        Most rows of a table.
    """

    kind: str
    command: str | None
    objective: str
    classes: list[str]
    groups: list[str] | None
    counts: np.ndarray
    order: np.ndarray
    methods: list[Method]
    evaluation_data: str | None
    parts: list[Part]
    snippet: str | None
    curves: dict[str, np.ndarray]
    search_status: str
    status: str
    candidates: list[Candidate]
    choice: str
    training_runs: float | None
    steps: int | None
    folds: int | None
    held_out: HeldOut | None
    confused: np.ndarray | None
    calibration: dict[str, float]
    reliability: dict[str, Reliability]
    by_group: ByGroup | None
    policy: dict[str, Any]
    design: dict[str, Any]
    settings: dict[str, Any]
    search_seconds: dict[str, float]
    seconds: dict[str, float]
    versions: dict[str, str]
    seed: int | None
    frontier: dict[str, Any]
    options: dict[str, Any]
    samples: dict[str, Any]
    place: str = ""
    rows: int = 1000

    @property
    def class_totals(self) -> np.ndarray:
        """Training examples per class, shape ``(k,)``."""
        return self.counts.sum(axis=0)

    @property
    def moved(self) -> list[Part]:
        """The parts of the loss that the search changed."""
        return [part for part in self.parts if part.changed]

    @property
    def data(self) -> str:
        """The test data in words."""
        return self.evaluation_data or "test data"

    @property
    def decided(self) -> dict[str, Any] | None:
        """The point of a frontier of decisions that was taken; None for every other run."""
        if self.frontier.get("by") != "bound":
            return None
        taken = self.frontier["bound"]
        return next((p for p in self.frontier["points"] if p["bound"] == taken), None)

    @property
    def steps_done(self) -> int | None:
        """Steps that the search has done, of `steps`."""
        if self.training_runs is None or self.steps is None:
            return None
        return min(self.steps, round(self.training_runs / (self.folds or 1) * self.steps))

    @property
    def search_time(self) -> float | None:
        """Seconds of the search on the clock, where the record says so."""
        return self.seconds.get("search", self.search_seconds.get("wall"))

    def candidate(self, name: str) -> Candidate | None:
        """The candidate of this name, if there is one."""
        return next((c for c in self.candidates if c.name == name), None)

    @property
    def other(self) -> Candidate | None:
        """What the candidate taken is compared with: the start, or for the start another."""
        names = ["cross_entropy", "designed"] if self.choice == "start" else ["start"]
        return next((c for c in map(self.candidate, names) if c is not None), None)

    @property
    def in_folds(self) -> str:
        """How many splits the final choice was on, in words."""
        if self.folds is None:
            return "folds"
        return "one split" if self.folds == 1 else f"{self.folds} folds"

    def method(self, name: str) -> Method | None:
        """The method of this name, if there is one."""
        return next((m for m in self.methods if m.name == name), None)

    @property
    def before(self) -> Method | None:
        """Plain cross-entropy, or whatever else came first."""
        first = self.method("cross_entropy") or (self.methods[0] if self.methods else None)
        return None if first is self.after else first

    @property
    def after(self) -> Method | None:
        """The loss found, or whatever came last."""
        return self.method("autobalance") or (self.methods[-1] if self.methods else None)
