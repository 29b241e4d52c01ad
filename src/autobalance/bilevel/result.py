"""The record of a search: the loss found, how it came about, and what it cost."""

from __future__ import annotations

import html
import json
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from torch import nn

from autobalance._validation import InputError
from autobalance.augment import describe_augmentation, restore_augmentation
from autobalance.bilevel.arms import Arm
from autobalance.bilevel.label_summary import summarise_labels
from autobalance.losses import (
    BINARY_FORMAT,
    ParametricBinaryCrossEntropy,
    ParametricCrossEntropy,
)
from autobalance.objectives import DENSE, NAMED
from autobalance.records import (
    Calibration,
    HeldOut,
    PathPoint,
    RacedArm,
    UpperRecord,
    check_format,
    counts_to_dict,
    parsed_record,
    to_json,
)

if TYPE_CHECKING:
    from autobalance.report import Run

_FORMAT = "autobalance-search"
_WHAT = "a search result of autobalance"
_PLAIN = (
    "design", "settings", "seed", "seconds", "status", "choice", "training_runs", "versions",
)  # fmt: skip


@dataclass(frozen=True)
class Candidate:
    """One loss in the final choice; see `autobalance.bilevel.candidate_selection`.

    Attributes
    ----------
    name : str
        "designed", "start" or "cross_entropy".
    loss : ParametricCrossEntropy
        The loss.
    objective : float
        Over the 0-1 error, of networks trained with it on every fold, on all held-out examples.
    difference : float
        The objective less that of the start; below 0 is better.
    standard_error : float
        Of the difference, from the sampling of the held-out examples.
    collapsed : bool
        Whether on some fold the network trained with it predicts one class for everyone, or is
        always wrong. Such a candidate is never chosen where there is another.
    wrong, n : list of list of int
        Held-out examples predicted wrongly, and all of them, by group and class, shape ``(g, k)``;
        empty where the record is from before they were kept.
    confused : list of list of int
        Which classes are taken for which, see `autobalance.records.metrics.confused_pairs`; empty as for
        `wrong`.
    effective : list of list of float or None
        Kish's effective numbers of these examples, as `n`, where they have weights.
    undefined : str or None
        Why the objective is not defined on these examples, where a group has none of some class.
        `objective` and `difference` then are of the other cells alone, which the choice went by.
    """

    name: str
    loss: ParametricCrossEntropy
    objective: float
    difference: float
    standard_error: float
    collapsed: bool = False
    wrong: list[list[int]] = field(default_factory=list)
    n: list[list[int]] = field(default_factory=list)
    confused: list[list[int]] = field(default_factory=list)
    effective: list[list[float]] | None = None
    undefined: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON has them, without those that are None."""
        fields = {**vars(self), "loss": self.loss.to_dict()}
        return {name: value for name, value in fields.items() if value is not None}


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Attributes
    ----------
    loss : ParametricCrossEntropy or ParametricBinaryCrossEntropy
        The designed loss, or the candidate chosen in its place; frozen, it needs nothing else to
        be used elsewhere.
    start : ParametricCrossEntropy
        The loss from which the search started.
    history : list of UpperRecord
        One entry per upper step.
    path : list of PathPoint
        The loss over time, thinned out where classes are many.
    design : dict
        The space's kind and its free parameters as found.
    settings : dict
        Recipe, search settings, objective, solver and the sizes of the data.
    versions : dict
        Versions of Python and of the libraries that matter.
    seed : int
        The seed.
    seconds : dict
        "wall" and "cpu" time of the search.
    status : str
        "finished", "interrupted" or "diverged".
    candidates : list of Candidate
        What the final choice was among; empty where there was none.
    choice : str
        Name of the candidate chosen; "designed" where there was no choice.
    augment : nn.Module or None
        The augmentation that belongs to the loss, for `retrain`: an
        `autobalance.augment.Augmentation`, or the module of the user's own that the search was
        given, which a record only names.
    training_runs : float
        What the search cost, in training runs on the training split.
    arm : Arm or None
        The way to train that won the race, which belongs to the loss; None without a race.
    race : list of RacedArm
        What each arm gave; empty without a race.
    held_out : HeldOut or None
        Predictions of the network searched with, at the end; None where the search was not
        finished, and from `search_head`.
    calibration : Calibration or None
        How well its probabilities fit the held-out examples, and its temperature; None as for
        `held_out`.
    """

    loss: ParametricCrossEntropy
    start: ParametricCrossEntropy
    history: list[UpperRecord]
    path: list[PathPoint]
    design: dict[str, Any]
    settings: dict[str, Any]
    seed: int
    seconds: dict[str, float]
    status: str = "finished"
    candidates: list[Candidate] = field(default_factory=list)
    choice: str = "designed"
    training_runs: float = 1.0
    augment: nn.Module | None = None
    versions: dict[str, str] = field(default_factory=lambda: used_versions())
    held_out: HeldOut | None = None
    calibration: Calibration | None = None
    arm: Arm | None = None
    race: list[RacedArm] = field(default_factory=list)

    @property
    def collapsed(self) -> bool:
        """Whether the network searched with ended up predicting one class for everyone."""
        return self.held_out is not None and self.held_out.collapsed

    @property
    def of_labels(self) -> bool:
        """Whether the loss is of several labels."""
        return isinstance(self.start, ParametricBinaryCrossEntropy)

    def summary(
        self, class_names: Sequence[Any] | None = None, group_names: Sequence[Any] | None = None
    ) -> str:
        """In words: what the loss does, whom it helped, what to be careful about, what it cost.

        Parameters
        ----------
        class_names, group_names : sequence, optional
            In the order of their indices; by default "class 0" and so on.
        """
        if self.of_labels:
            return summarise_labels(self, class_names)
        from autobalance.report import as_text, explanation

        return as_text(explanation(self._run(class_names, group_names)))

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        if self.of_labels:
            return f"<pre>{html.escape(self.summary())}</pre>"
        from autobalance.report import as_html

        return as_html(self._run(None, None))

    def _run(self, class_names: Sequence[Any] | None, group_names: Sequence[Any] | None) -> Run:
        """As the report reads it."""
        from autobalance.report import read_run

        return read_run(self.record(class_names, group_names))

    def record(
        self, class_names: Sequence[Any] | None = None, group_names: Sequence[Any] | None = None
    ) -> dict[str, Any]:
        """As the ``result.json`` of a RUN folder holds it; names as for `summary`."""
        from autobalance.report import setting_text

        objective = self.settings.get("objective", "objective given")
        names = NAMED | DENSE
        known = next((n for n, o in names.items() if objective in (o.to_dict(), repr(o))), None)
        return {
            "kind": "search",
            "objective": known or setting_text(objective),
            "class_names": None if class_names is None else [*map(str, class_names)],
            "group_names": None if group_names is None else [*map(str, group_names)],
            "class_counts": self.settings.get("class_counts"),
            "several_labels": self.of_labels,
            "search": json.loads(self.to_json()),
            "seconds": {"search": self.seconds.get("wall")},
        }

    def to_dict(self) -> dict[str, Any]:
        """The record, for JSON; numbers that are not there (a residual nobody looked at) are NaN."""
        return {
            "format": _FORMAT,
            "version": 1,
            "status": self.status,
            "seed": self.seed,
            "loss": self.loss.to_dict(),
            "start": self.start.to_dict(),
            "design": self.design,
            "settings": self.settings,
            "versions": self.versions,
            "seconds": self.seconds,
            "history": [asdict(record) for record in self.history],
            "path": [asdict(point) for point in self.path],
            "candidates": [candidate.to_dict() for candidate in self.candidates],
            "choice": self.choice,
            "augment": describe_augmentation(self.augment),
            "training_runs": self.training_runs,
            "held_out": None if self.held_out is None else counts_to_dict(self.held_out),
            "calibration": None if self.calibration is None else counts_to_dict(self.calibration),
            "arm": None if self.arm is None else self.arm.to_dict(),
            "race": [asdict(record) for record in self.race],
        }

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> SearchResult:
        """Inverse of `to_dict`.

        Raises
        ------
        InputError
            If the record was not written by autobalance, or in another version of the format.
        """
        check_format(record, _FORMAT, _WHAT, "result")
        try:
            return cls(
                loss=_loss_from_dict(record["loss"]),
                start=_loss_from_dict(record["start"]),
                history=[UpperRecord(**_with_nan(entry)) for entry in record["history"]],
                path=[PathPoint(**point) for point in record["path"]],
                candidates=[
                    Candidate(**{**entry, "loss": _loss_from_dict(entry["loss"])})
                    for entry in record["candidates"]
                ],
                augment=restore_augmentation(record.get("augment")),
                held_out=HeldOut(**held) if (held := record.get("held_out")) else None,
                calibration=Calibration.from_dict(fit)
                if (fit := record.get("calibration"))
                else None,
                arm=Arm(**arm) if (arm := record.get("arm")) else None,
                race=[RacedArm(**entry) for entry in record.get("race", [])],
                **{name: record[name] for name in _PLAIN},
            )
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"This search result is incomplete or altered: {error}.") from None

    def to_json(self) -> str:
        """`to_dict` as JSON text."""
        return to_json(self.to_dict())

    @classmethod
    def from_json(cls, text: str) -> SearchResult:
        """Inverse of `to_json`; see `from_dict`."""
        return cls.from_dict(parsed_record(text, _WHAT))


def _loss_from_dict(record: dict[str, Any]) -> Any:
    """The loss of a record, of classes or of several labels."""
    binary = record.get("format") == BINARY_FORMAT
    return (ParametricBinaryCrossEntropy if binary else ParametricCrossEntropy).from_dict(record)


def _with_nan(entry: dict[str, Any]) -> dict[str, Any]:
    """JSON has no NaN: `to_json` writes null."""
    missing = (key for key, value in entry.items() if value is None and key != "test_objective")
    return {**entry, **dict.fromkeys(missing, float("nan"))}


def used_versions() -> dict[str, str]:
    """Versions of Python, autobalance and the libraries whose numerics matter."""
    names = ("autobalance", "torch", "lightning-fabric", "numpy", "scikit-learn", "pandas")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}
