"""RUN folders of decisions on scores: of columns of a table, or of a classifier fitted on one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd

from autobalance._validation import InputError
from autobalance.cli.estimators import TableEstimator
from autobalance.data import column, group_names, number_groups, positions
from autobalance.objectives import CostMatrix
from autobalance.posthoc import Adjustment, CellRule, LabelAdjustment
from autobalance.records import ErrorTable, classification_report, confused_pairs, read_json

ADJUSTMENT = "adjustment.json"
FORMAT = "autobalance-adjusted-run"


class Scorer(Protocol):
    """Gives scores to the rows of a table."""

    def scores(self, table: pd.DataFrame) -> np.ndarray:
        """Shape ``(n, k)``, or of groups' cells ``(n, g k)``."""
        ...

    def describe(self) -> dict[str, Any]:
        """What ``model.json`` says of it."""
        ...

    def files(self) -> dict[str, bytes]:
        """What else there is to keep of it, by file name."""
        ...


@dataclass(frozen=True)
class ScoreColumns:
    """Scores that are columns of the table, one per class, in the classes' order."""

    columns: list[str]

    def scores(self, table: pd.DataFrame) -> np.ndarray:
        """Shape ``(n, k)``.

        Raises
        ------
        InputError
            If a column is absent, has missing values, or holds no numbers.
        """
        remedy = "Find out why the classifier gives no score there, or drop these rows"
        values = [column(table, name, "score", remedy=remedy) for name in self.columns]
        for name, each in zip(self.columns, values, strict=True):
            if not pd.api.types.is_numeric_dtype(each) or pd.api.types.is_bool_dtype(each):
                raise InputError(
                    f"The score column {name!r} holds {each.iloc[0]!r}, which is no number. Choose other "
                    "columns with --scores."
                )
        return np.column_stack([each.to_numpy(dtype=np.float64) for each in values])

    def describe(self) -> dict[str, Any]:
        """The columns' names."""
        return {"columns": self.columns}

    def files(self) -> dict[str, bytes]:
        """None."""
        return {}


@dataclass(frozen=True)
class AdjustedModel:
    """Scores and the decisions designed on them, with what `predict` and `evaluate` ask a model for.

    `curve` is what `autobalance.posthoc.measure_taus` gave, for the record.
    """

    scorer: Scorer
    adjustment: Adjustment
    classes_: np.ndarray
    groups_: list[str] | None = None
    curve: np.ndarray | None = None

    def features(self, table: pd.DataFrame) -> np.ndarray:
        """What the other methods take: the scores of a table, ``(n, k)`` or ``(n, g, k)``."""
        scores = self.scorer.scores(table)
        return scores if self.groups_ is None else self._by_cells(scores)

    def predict(self, scores: np.ndarray) -> np.ndarray:
        """Labels, shape ``(n,)``."""
        return self.classes_[self.adjustment.predict(scores)]

    def rule_indices(self, scores: np.ndarray) -> np.ndarray | None:
        """Which rule decides each row, counted from 0, shape ``(n,)``; None where there is one alone."""
        if len(self.adjustment.rule.shares) == 1:
            return None
        return self.adjustment.rule_indices(scores)

    def predict_proba(self, scores: np.ndarray, *, prior: str | None = None) -> np.ndarray:
        """As `Adjustment.predict_proba` gives them, shape ``(n, k)``."""
        return self.adjustment.predict_proba(scores, prior)

    def evaluate(
        self, scores: np.ndarray, labels: np.ndarray, *, sensitive_features: Any = None
    ) -> dict[str, Any]:
        """Errors and confusions of the decisions on labelled examples, as a report takes them."""
        decided = self.adjustment.predict(scores)
        return self._measure(decided, labels, sensitive_features)

    def evaluate_unadjusted(
        self, scores: np.ndarray, labels: np.ndarray, *, sensitive_features: Any = None
    ) -> dict[str, Any]:
        """The same of the classes with the largest scores."""
        plain = scores if scores.ndim == 2 else scores.sum(axis=1)
        return self._measure(plain.argmax(axis=1), labels, sensitive_features)

    def _measure(self, decided: np.ndarray, labels: np.ndarray, features: Any) -> dict[str, Any]:
        target = positions(labels, self.classes_.tolist(), "class", "the target")
        groups = names = None
        if features is not None:
            names, groups = number_groups(group_names(features, "refused"))
        k = len(self.classes_)
        return {
            **classification_report(target, decided, k, groups, names),
            "confused": confused_pairs(target, decided, k),
        }

    def _by_cells(self, scores: np.ndarray) -> np.ndarray:
        return scores.reshape(len(scores), -1, len(self.classes_))

    def record(self) -> dict[str, Any]:
        """What a report shows of the decisions: the "adjustment" and the "search" of ``result.json``."""
        found = self.adjustment
        before = "most_probable" if isinstance(found.objective, CostMatrix) else "none"
        cells = isinstance(found.rule, CellRule)
        judged = [vars(each) for each in found.candidates] or [
            {"name": before, "value": found.value_before, "difference": 0.0, "standard_error": 0.0},
            {"name": found.chosen, "value": found.value, "difference": -found.gain},
        ]
        tables = self._tables()
        names = {before: "wrong_before", found.chosen: "wrong"}
        candidates = [
            {**each, "objective": each["value"]}
            | (
                {"wrong": tables[names[each["name"]]].tolist(), "n": tables["mass"].tolist()}
                if each["name"] in names
                else {}
            )
            for each in judged
        ]
        return {
            "adjustment": {
                "chosen": found.chosen,
                "before": before,
                "tau": found.tau,
                "gain": found.gain,
                "l": None if cells else found.l.tolist(),
                "rules": len(found.rule.shares),
                "intervals": {name: each.tolist() for name, each in found.intervals.items()},
                "curve": None if self.curve is None else self.curve.tolist(),
                "model": self.scorer.describe().get("name"),
            },
            "rules": {
                "shares": found.rule.shares.tolist(),
                **(
                    {"prices": found.rule.weights.tolist()}
                    if isinstance(found.rule, CellRule)
                    else {"l": found.rule.additive.tolist()}
                ),
            },
            "class_counts": found.class_counts.tolist(),
            "class_names": [str(c) for c in self.classes_],
            "group_names": self.groups_,
            "search": {"candidates": candidates, "choice": found.chosen},
        }

    def held_out_errors(self) -> ErrorTable:
        """Errors of the decisions on the examples that they were designed on, each held out."""
        tables = self._tables()
        return ErrorTable.from_counts(tables["wrong"], tables["mass"])

    def _tables(self) -> dict[str, np.ndarray]:
        """Held-out examples and errors before and after, by class or by cell, each ``(g, k)``."""
        found = self.adjustment
        if found.by_cell:
            return found.by_cell
        mass = found.class_counts[None]
        return {
            "mass": mass,
            "wrong_before": mass * np.nan_to_num(found.errors_before),
            "wrong": mass * np.nan_to_num(found.errors),
        }

    def files(self, target: str | list[str]) -> dict[str, dict[str, Any] | bytes]:
        """Contents of the RUN folder beside its record; `target` names the target column, or several."""
        description = {
            "format": FORMAT,
            "version": 1,
            "target": target,
            "classes": self.classes_.tolist(),
            "groups": self.groups_,
            "scorer": self.scorer.describe(),
        }
        return {
            "model.json": description,
            ADJUSTMENT: self.adjustment.to_dict(),
            **self.scorer.files(),
        }


def load_adjusted(folder: Path, description: Mapping[str, Any]) -> AdjustedModel:
    """The model of a RUN folder whose ``model.json`` is `description`.

    Raises
    ------
    InputError
        If a file of it is altered; other errors too, where a value is of another kind than was written.
    """
    from autobalance.cli import label_run  # whose models are such as these

    classes, groups, entry = (description[key] for key in ("classes", "groups", "scorer"))
    adjustment = Adjustment.from_dict(read_json(folder / ADJUSTMENT))
    of_labels = isinstance(adjustment, LabelAdjustment)
    if not isinstance(description["target"], list if of_labels else str):
        raise ValueError("the target is no name")
    if adjustment.class_counts.shape[-1] != len(classes):
        raise ValueError("adjustment and classes differ in number")
    if "columns" in entry:
        if len(entry["columns"]) != len(classes):
            raise ValueError("score columns and classes differ in number")
        scorer: Scorer = ScoreColumns([str(name) for name in entry["columns"]])
    else:
        kind = label_run.LabelEstimators if of_labels else TableEstimator
        scorer = kind.load(folder, entry)
    model = label_run.AdjustedLabels if of_labels else AdjustedModel
    return model(scorer, adjustment, np.array(classes), groups)
