r"""Linear programs over decisions, solved by column generation.

With the scores of a classifier fixed, a decision is one of finitely many tables of errors R, one number
per group and class, and a draw between decisions with shares s has the errors :math:`\sum_m s_m R_m`.
So the worst class, the mean of the worst classes (CVaR), and an error under a bound on DEO are linear
programs in s. A column, which is a decision, joins the program where the program's prices say that it
would lower the value; the decision that does so the most is known,

.. math:: \hat y(x) = \arg\max_k \sum_g a_{gk} \, p(k, g \mid x), \qquad a_{gk} = \text{price}_{gk} / n_{gk},

and with it the next prices are found, until none improves the program (Dantzig and Wolfe, 1960).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.optimize import linprog

LEAST_SHARE = 0.005
"""Decisions drawn more rarely are left out."""
LEAST_GAIN = 1e-5
"""The program is solved when no decision improves it by more."""
ROUNDS = 200
EXCESS = 10.0
"""Price of each unit of DEO above the bound: more than any error."""
TIE = 0.05
"""Weight of the main error where the worst cells come first."""


class DecisionColumn(NamedTuple):
    """Weights a of a decision, and its errors on held-out data, each ``(g, k)``."""

    weights: np.ndarray
    errors: np.ndarray


@dataclass(frozen=True)
class DecisionGoal:
    """What a program makes small.

    Parameters
    ----------
    main : ndarray
        What an error in each cell adds to the main error, shape ``(g, k)``; 0 where nobody is held out.
    gap : float or None
        The bound on DEO under which the main error is to be small; None where the worst parts of
        `parts` are, and the main error only decides between equals.
    parts : ndarray or None
        The means over cells whose worst count, shape ``(r, g, k)``, each summing to 1; by default each
        cell that has examples.
    tail : float
        Of how many of the parts, the worst ones, the mean is taken, at least 1. 1 is the worst part.
    """

    main: np.ndarray
    gap: float | None = None
    parts: np.ndarray | None = None
    tail: float = 1.0

    def value(self, errors: np.ndarray) -> float:
        """The goal for a table of errors ``(g, k)``; what exceeds the bound costs `EXCESS`."""
        main = float((self.main * errors).sum())
        if self.gap is not None:
            known = np.where(self.main > 0, errors, np.nan)
            high = np.where(np.isnan(known), -np.inf, known).max(axis=0)
            low = np.where(np.isnan(known), np.inf, known).min(axis=0)
            deo = float(np.where(np.isfinite(high), high - low, 0.0).sum())
            return main + EXCESS * max(0.0, deo - self.gap)
        worst = np.sort(np.tensordot(self.rows(), errors, axes=2))[::-1]
        size = min(self.tail, len(worst))
        share = np.clip(size - np.arange(len(worst)), 0.0, 1.0)
        return float(worst @ share / size) + TIE * main

    def rows(self) -> np.ndarray:
        """The parts, shape ``(r, g, k)``."""
        if self.parts is not None:
            return self.parts
        cells = np.argwhere(self.main > 0)
        rows = np.zeros((len(cells), *self.main.shape))
        rows[np.arange(len(cells)), cells[:, 0], cells[:, 1]] = 1.0
        return rows


def solve_program(errors: np.ndarray, goal: DecisionGoal) -> tuple[np.ndarray, np.ndarray, float]:
    """Shares of m decisions, the price of an error in each cell, and the level a new one must beat.

    With a bound: the lowest main error with sum_k (max_g - min_g) at most the bound, or as little above
    it as these decisions allow. A decision with errors R improves the program where
    ``(prices * R).sum() < level``.

    Parameters
    ----------
    errors : ndarray
        R_kg of each decision, shape ``(m, g, k)``.
    goal : DecisionGoal
        What is to be small.
    """
    m = len(errors)
    main = goal.main if goal.gap is not None else TIE * goal.main
    signs, parts, auxiliary, costs, limits = _constraints(goal)
    # A row of A_ub: sign * (the part's error of the draw) + auxiliary variables <= limit.
    rows = np.zeros((len(auxiliary), m + auxiliary.shape[1]))
    rows[: len(parts), :m] = signs[:, None] * np.tensordot(parts, errors, axes=([1, 2], [1, 2]))
    rows[:, m:] = auxiliary
    total = np.r_[np.ones(m), np.zeros(len(costs))][None]
    done = linprog(
        np.r_[(errors * main).sum(axis=(1, 2)), costs],
        A_ub=rows,
        b_ub=limits,
        A_eq=total,
        b_eq=[1.0],
    )
    assert done.status == 0  # the excess makes every gap possible
    marginals = np.asarray(done.ineqlin.marginals)[: len(parts)]
    prices = main - np.tensordot(signs * marginals, parts, axes=1)
    return np.clip(done.x[:m], 0.0, None), prices, float(done.eqlin.marginals[0])


def _constraints(
    goal: DecisionGoal,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Signs ``(r,)`` and parts ``(r, g, k)`` of the errors' rows; rows of the auxiliary variables, which
    may be more; the variables' costs; and all rows' limits."""
    parts = goal.rows()
    r, k = len(parts), goal.main.shape[1]
    if goal.gap is None:
        # The threshold t, and of each part how much it exceeds t: t + sum of these / tail.
        excess = np.eye(r) if goal.tail > 1.0 else np.zeros((r, 0))
        auxiliary = np.c_[-np.ones(r), -excess]
        costs = np.r_[1.0, np.full(excess.shape[1], 1.0 / goal.tail)]
        return np.ones(r), parts, auxiliary, costs, np.zeros(r)
    # Each class's highest (k) and lowest (k) error, and the excess over the bound.
    own = np.eye(k)[np.argwhere(goal.main > 0)[:, 1]]
    none, one = np.zeros((r, k)), np.zeros((r, 1))
    auxiliary = np.r_[np.c_[-own, none, one], np.c_[none, own, one]]
    auxiliary = np.r_[auxiliary, [np.r_[np.ones(k), -np.ones(k), -1.0]]]
    costs = np.r_[np.zeros(2 * k), EXCESS]
    signs = np.r_[np.ones(r), -np.ones(r)]
    return signs, np.r_[parts, parts], auxiliary, costs, np.r_[np.zeros(2 * r), goal.gap]


def constant_columns(
    errors_of: Callable[[np.ndarray], np.ndarray],
    shape: tuple[int, int],
    classes: Iterable[int] | None = None,
) -> list[DecisionColumn]:
    """Deciding for one class always, for each of these or all: so every bound is possible."""
    g, k = shape
    constant = [np.tile(np.eye(k)[j], (g, 1)) for j in (range(k) if classes is None else classes)]
    return [DecisionColumn(weights, errors_of(weights)) for weights in constant]


def generate_columns(
    errors_of: Callable[[np.ndarray], np.ndarray],
    mass: np.ndarray,
    goal: DecisionGoal,
    first: Sequence[DecisionColumn],
) -> list[DecisionColumn]:
    """The decisions that a program gives rise to, beside those it begins with.

    Parameters
    ----------
    errors_of : callable
        From weights a ``(g, k)`` to the errors ``(g, k)`` on held-out data.
    mass : ndarray
        Held-out examples of each cell, or the sum of their weights, shape ``(g, k)``.
    goal : DecisionGoal
        What is to be small.
    first : sequence of DecisionColumn
        Decisions that make every bound possible, such as the constant ones.
    """
    columns: list[DecisionColumn] = []
    prices, level = goal.main, np.inf
    for _ in range(ROUNDS):
        weights = np.divide(prices, mass, out=np.zeros_like(mass), where=mass > 0)
        errors = errors_of(weights)
        if (prices * errors).sum() > level - LEAST_GAIN:
            break
        columns.append(DecisionColumn(weights, errors))
        pool = np.stack([column.errors for column in [*first, *columns]])
        _, prices, level = solve_program(pool, goal)
    return columns


def select_draw(
    columns: Sequence[DecisionColumn], goal: DecisionGoal, *, randomised: bool = True
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The best draw between these decisions: weights ``(m, g, k)``, shares ``(m,)``, errors ``(g, k)``.

    Without `randomised` it is the best single decision.
    """
    tables = np.stack([column.errors for column in columns])
    if randomised:
        shares, _, _ = solve_program(tables, goal)
        used = np.flatnonzero(shares >= LEAST_SHARE)
        shares = shares[used] / shares[used].sum()
    else:
        used = np.array([int(np.argmin([goal.value(table) for table in tables]))])
        shares = np.ones(1)
    weights = np.stack([columns[i].weights for i in used.tolist()])
    return weights, shares, np.tensordot(shares, tables[used], axes=1)
