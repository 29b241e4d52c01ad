"""Decisions from p(class, group | x), designed under objectives over groups, made without the group."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from autobalance._validation import InputError
from autobalance.objectives import (
    BalancedError,
    BoundedGap,
    CVaRError,
    Objective,
    OddsGap,
    WorstError,
)
from autobalance.posthoc.decision_program import (
    DecisionGoal,
    constant_columns,
    generate_columns,
    select_draw,
)
from autobalance.posthoc.decision_rule import numbers_of, uniform_of_rows


@dataclass(frozen=True)
class CellRule:
    r"""Decides for :math:`\arg\max_k \sum_g a_{gk} \, p(k, g \mid x)`, a being drawn if there are several.

    Attributes
    ----------
    weights : ndarray
        a, shape ``(m, g, k)``, of any sign.
    shares : ndarray
        How often each is drawn, shape ``(m,)``, summing to 1.
    """

    weights: np.ndarray
    shares: np.ndarray

    def decide(self, cells: np.ndarray) -> np.ndarray:
        """Class of each row of p(class, group | x) ``(n, g, k)``, shape ``(n,)``."""
        drawn = self.index_of(cells)
        decided = np.empty(len(cells), dtype=np.int64)
        for m, weights in enumerate(self.weights):
            rows = drawn == m
            decided[rows] = _decide(cells[rows], weights)
        return decided

    def index_of(self, cells: np.ndarray) -> np.ndarray:
        """Which a decides each row of p(class, group | x) ``(n, g, k)``: its index, shape ``(n,)``."""
        uniform = uniform_of_rows(cells.reshape(len(cells), -1))
        return np.searchsorted(np.cumsum(self.shares)[:-1], uniform, side="right")

    def shares_of_classes(self, cells: np.ndarray) -> np.ndarray:
        """How often each class is decided over many draws, shape ``(n, k)``."""
        shares = np.zeros((len(cells), cells.shape[2]))
        for share, weights in zip(self.shares, self.weights, strict=True):
            shares[np.arange(len(cells)), _decide(cells, weights)] += share
        return shares

    def to_dict(self) -> dict[str, Any]:
        """Of lists alone."""
        return {"weights": self.weights.tolist(), "shares": self.shares.tolist()}

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> CellRule:
        """Inverse of `to_dict`."""
        weights, shares = numbers_of(record["weights"], 3), numbers_of(record["shares"], 1)
        if len(weights) != len(shares):
            raise ValueError("its arrays do not belong together")
        return cls(weights, shares)


def design_cell_rule(
    cells: np.ndarray,
    target: np.ndarray,
    groups: np.ndarray,
    weight: np.ndarray,
    goal: Objective,
    *,
    randomised: bool,
) -> CellRule:
    """The best draw between decisions, or the best single one, for an objective over groups.

    Parameters
    ----------
    cells : ndarray
        p(class, group | x) of examples that the classifier was not trained on, shape ``(n, g, k)``.
    target, groups, weight : ndarray
        Their classes and groups, and what they count for, each of shape ``(n,)``.
    goal : Objective
        See `program_goals`.
    randomised : bool
        Whether decisions may be drawn.
    """
    _, g, k = cells.shape
    index = groups * k + target
    mass = np.bincount(index, weight, g * k).reshape(g, k)

    def errors_of(weights: np.ndarray) -> np.ndarray:
        wrong = _decide(cells, weights) != target
        total = np.bincount(index, weight * wrong, g * k).reshape(g, k)
        return np.divide(total, mass, out=np.zeros_like(mass), where=mass > 0)

    first = constant_columns(errors_of, (g, k))
    goals = program_goals(goal, mass)
    columns = list(first)
    for each in goals:
        columns += generate_columns(errors_of, mass, each, first)
    weights, shares, _ = select_draw(columns, goals[-1], randomised=randomised)
    return CellRule(weights, shares)


def program_goals(goal: Objective, mass: np.ndarray) -> list[DecisionGoal]:
    """The linear program of an objective, the last; before it others whose decisions it may draw on.

    Raises
    ------
    InputError
        If the objective is no linear program over decisions that is solved here.
    """
    k = mass.shape[1]
    if isinstance(goal, BoundedGap):
        if type(goal.gap) is not OddsGap or goal.gap.over_classes != "sum":
            raise InputError(
                f"Decisions are designed under a bound on deo; got {type(goal.gap).__name__}. Say "
                '"balanced_error where deo <= 0.05": whoever is within a DEO is within the same '
                "equalized odds difference."
            )
        main = _main_weights(goal.main, mass)
        bounds = np.linspace(float(k), 0.0, 2).tolist() + [goal.bound * x for x in (2.0, 1.5, 1.0)]
        return [DecisionGoal(main, bound) for bound in bounds]
    if isinstance(goal, (WorstError, CVaRError)):
        parts = _parts(goal.over, mass)
        tail = max(1.0, goal.fraction * len(parts)) if isinstance(goal, CVaRError) else 1.0
        main = _main_weights(BalancedError(over="class_and_group"), mass)
        return [DecisionGoal(main, parts=parts, tail=tail)]
    return [DecisionGoal(_main_weights(goal, mass), float(k))]


def _main_weights(goal: Objective, mass: np.ndarray) -> np.ndarray:
    """What an error in each cell adds to a linear objective, shape ``(g, k)``."""
    if not isinstance(goal, BalancedError):
        raise InputError(
            "With groups, decisions are designed for a balanced, worst or CVaR error, or a balanced error "
            f"under a bound on deo; got {type(goal).__name__}."
        )
    parts = _parts(goal.over, mass)
    return parts.mean(axis=0)


def _parts(over: str, mass: np.ndarray) -> np.ndarray:
    """The objective's cells that have examples, as means over pairs of group and class, ``(r, g, k)``."""
    g, k = mass.shape
    if over == "class_and_group":
        rows = np.eye(g * k).reshape(-1, g, k)
    elif over == "group":
        rows = np.eye(g)[:, :, None] * mass
    else:
        rows = np.eye(k)[:, None, :] * mass
    rows = rows * (mass > 0)
    sums = rows.sum(axis=(1, 2), keepdims=True)
    return rows[sums[:, 0, 0] > 0] / sums[sums[:, 0, 0] > 0]


def _decide(cells: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return np.einsum("ngk,gk->nk", cells, weights).argmax(axis=1)
