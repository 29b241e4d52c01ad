"""What a report shows of a run: `record.read_run` makes it of a result.json."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from autobalance.records import ErrorTable, HeldOut, RacedArm, Reliability


@dataclass(frozen=True, eq=False)
class ByGroup:
    """Errors within the groups that have examples, a row of `table` each; `data` for a caption."""

    names: list[str]
    table: ErrorTable
    data: str


@dataclass(frozen=True, eq=False)
class Method:
    """One way of training, and its errors on some data."""

    name: str
    title: str
    errors: np.ndarray  # per class, shape (k,), in [0, 1]; NaN where a class has no example
    n: np.ndarray | None  # examples per class, or sums of weights, shape (k,), where known
    scores: dict[str, float] = field(default_factory=dict)  # by `record.SCORES`, where known
    undefined: dict[str, str] = field(default_factory=dict)  # why a measure has no value, by name
    seconds: float | None = None
    training_runs: float | None = None
    confused: np.ndarray | None = None  # class, class predicted and examples, shape (m, 3)
    reliability: dict[str, Reliability] = field(default_factory=dict)  # "raw" and "corrected"
    by_group: ByGroup | None = None
    effective: np.ndarray | None = None  # numbers that noise is of, where that is not n
    standard_errors: dict[str, float] = field(default_factory=dict)  # of `scores`, over seeds

    @property
    def trials(self) -> np.ndarray | None:
        """Of how many examples the noise of each class's error is, shape ``(k,)``, where known."""
        return self.n if self.effective is None else self.effective


@dataclass(frozen=True, eq=False)
class Part:
    """One of ℓ, δ and w, of the designed loss, whether or not the final choice took it."""

    key: str  # such as "additive"
    symbol: str  # such as "ℓ"
    title: str
    start: np.ndarray  # shape (g, k), g = 1 without groups; ℓ has mean 0 in each row
    end: np.ndarray
    steps: np.ndarray  # training steps at which the path was noted, shape (t,)
    path: np.ndarray  # shape (t, g, k)

    @property
    def changed(self) -> bool:
        """Whether the search moved it."""
        return bool(np.nanmax(np.abs(self.end - self.start), initial=0.0) > 1e-6)


@dataclass(frozen=True, eq=False)
class Candidate:
    """A loss of the final choice, "designed", "start" or "cross_entropy", judged on held-out examples."""

    name: str
    objective: float  # over the 0-1 error, in [0, 1]
    difference: float | None  # from the start; below 0 is better
    standard_error: float | None
    table: ErrorTable | None = None
    confused: np.ndarray | None = None  # as in `Method`
    by_group: ByGroup | None = None
    undefined: str | None = None  # why the objective is that of some cells alone


@dataclass(frozen=True, eq=False)
class Run:
    """A run, ready to be described: g groups (1 without groups), k classes, t upper steps."""

    kind: str
    command: str | None
    objective: str
    classes: list[str]
    groups: list[str] | None
    counts: np.ndarray  # training examples, shape (g, k)
    order: np.ndarray  # classes from the most to the least frequent, shape (k,)
    methods: list[Method]
    evaluation_data: str | None
    baselines: list[Method]  # plain training, class weights and the run's result, on held-out rows
    baselines_data: str  # those rows in words
    parts: list[Part]
    snippet: str | None  # the loss taken as code that stands alone, where that is not long
    curves: dict[str, np.ndarray]  # by the names of `record.CURVES`, each of shape (t,)
    search_status: str
    status: str  # of the whole run: with the search finished, that of retraining
    candidates: list[Candidate]  # of the final choice; empty where there was none
    choice: str  # name of the candidate taken
    race: list[RacedArm]  # ways to train that were raced before the search; may be empty
    training_runs: float | None  # what the search cost
    steps: int | None  # of the lower level, in one training run
    folds: int | None
    held_out: HeldOut | None  # what the network searched with predicts at the end of the search
    confused: np.ndarray | None  # by that network, of all groups together; as in `Method`
    calibration: dict[str, float]  # numbers of `autobalance.records.Calibration`; may be empty
    reliability: dict[str, Reliability]  # its bins: "raw", "prior" and "corrected" where known
    by_group: ByGroup | None  # of the method "autobalance" on test data, or of `held_out`
    policy: dict[str, Any]  # class (and group), operation, "probability" and "magnitude" in [0, 1]
    design: dict[str, Any]
    settings: dict[str, Any]
    search_seconds: dict[str, float]
    seconds: dict[str, float]
    versions: dict[str, str]
    notes: list[str]  # what reading the training table told
    seed: int | None
    # "main", "gap", "points", "baselines", "by" ("mix" or "bound") and under that name the point taken.
    frontier: dict[str, Any]
    options: dict[str, Any]  # of the command, those that `settings` lacks, such as "groups"
    # Of decisions on scores: "chosen", "before", "tau", "gain", "l" (k,), "rules", "intervals", "model",
    # and "curve" (t, 3) of tau, the objective under l = tau log pi, and its standard error.
    adjusted: dict[str, Any]
    # Of decisions: "count", "shares" (m,) or None, "l" (m, k) or "prices" (m, g, k) of "groups".
    rules: dict[str, Any]
    samples: dict[str, Any]  # as `autobalance.report.samples` packs them, with their rows' "names"
    place: str = ""  # in front of every identifier, where a page shows several runs
    rows: int = 1000  # most rows of a table

    @property
    def several_labels(self) -> bool:
        """Whether its examples have several labels each; see `autobalance.report.label_run.LabelRun`."""
        return False

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
        if self.adjusted:
            names = [name for name in [self.adjusted["before"]] if name != self.choice]
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
