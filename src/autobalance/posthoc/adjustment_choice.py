"""The choice among adjustments: each designed on three quarters of the examples, judged on the rest."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from autobalance.data import assign_folds
from autobalance.objectives import Objective, cells_of
from autobalance.posthoc.decision_rule import DecisionRule
from autobalance.posthoc.rival_scores import RivalScores

FOLDS = 4
LEAD = 1.0
"""Standard errors by which a candidate must lead for the start to be left."""
FEW = 5
"""A cell of fewer examples, all of which may agree by chance, gets the variance of a fair coin."""
MOST_ROWS = 20_000
"""Examples on which a candidate is designed where it is only to be judged."""
DRAWS = 200

Maker = Callable[[RivalScores], DecisionRule]
"""Designs a candidate."""
Losses = Callable[[DecisionRule, np.ndarray], np.ndarray]
"""Expected losses of a rule's decisions on the examples of some indices."""


@dataclass(frozen=True)
class JudgedCandidate:
    """A candidate on examples that it was not designed on.

    Attributes
    ----------
    name : str
        "none", "post_hoc", "tuned_tau", "cross_entropy", "smooth_error", "unit_smooth_error" or "program".
    value : float
        The objective of its decisions.
    difference, standard_error : float
        To the start, and of that difference.
    """

    name: str
    value: float
    difference: float
    standard_error: float


def cross_fit(
    rows: RivalScores, makers: Mapping[str, Maker], losses_of: Losses, seed: int
) -> dict[str, np.ndarray]:
    """Expected loss of each example under each candidate, designed without the example, ``(n,)``."""
    generator = np.random.default_rng(seed)
    fold = assign_folds(rows.cells.numpy(), FOLDS, generator)
    alone = fold < 0
    fold[alone] = generator.integers(FOLDS, size=int(alone.sum()))
    losses = {name: np.zeros(len(rows)) for name in makers}
    for f in range(FOLDS):
        held = np.flatnonzero(fold == f)
        if len(held) in (0, len(rows)):
            continue
        train = rows.subset(*thin(rows, np.flatnonzero(fold != f), generator))
        for name, make in makers.items():
            losses[name][held] = losses_of(make(train), held)
    return losses


def thin(
    rows: RivalScores, some: np.ndarray, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """At most about `MOST_ROWS` of some examples, and their weights.

    Cells are cut at the same number of examples, and those left of a cell weigh so much more.
    """
    weight = rows.weight.numpy()[some]
    if len(some) <= MOST_ROWS:
        return some, weight
    cells = rows.cells.numpy()[some]
    counts = np.bincount(cells)
    ascending = np.sort(counts)
    below = np.concatenate([[0], np.cumsum(ascending)[:-1]])
    caps = (MOST_ROWS - below) / np.arange(len(ascending), 0, -1)
    cap = max(FEW, int(caps[np.argmax(caps <= ascending)]))
    order = generator.permutation(len(some))
    order = order[np.argsort(cells[order], kind="stable")]
    place = np.arange(len(order)) - np.concatenate([[0], np.cumsum(counts)[:-1]])[cells[order]]
    kept = np.sort(order[place < cap])
    factor = np.maximum(1.0, counts / cap)[cells[kept]]
    return some[kept], weight[kept] * factor


def judge(
    rows: RivalScores, wrong: Mapping[str, np.ndarray], start: str, goal: Objective, seed: int
) -> list[JudgedCandidate]:
    """Every candidate's objective, and its difference to the start, from what `cross_fit` gave."""
    base = rows.objective(goal, wrong[start])
    judged = []
    for name, losses in wrong.items():
        own = rows.objective(goal, losses)
        if name == start:
            error = 0.0
        elif goal.linear:
            error = _linear_standard_error(rows, losses - wrong[start], goal)
        else:
            error = _drawn_standard_error(rows, losses, wrong[start], goal, seed)
        judged.append(JudgedCandidate(name, own, own - base, error))
    return judged


def choose(judged: list[JudgedCandidate], start: str) -> str:
    """The best candidate if it leads the start by `LEAD` standard errors, else the start."""
    best = min(judged, key=lambda candidate: candidate.difference)
    return best.name if best.difference < -LEAD * best.standard_error else start


def importance_of_cells(goal: Objective, mass: Tensor) -> Tensor:
    """What the mean loss of each cell adds to a linear objective, shape ``(g, k)``."""
    total = torch.zeros_like(mass).requires_grad_()
    (slopes,) = torch.autograd.grad(goal.value(total, mass), total)
    return slopes * mass


def _linear_standard_error(rows: RivalScores, difference: np.ndarray, goal: Objective) -> float:
    """Of sum_c omega_c mean_c(difference), cell by cell."""
    mass = rows.mass()
    omega = importance_of_cells(goal, mass).flatten().numpy()
    cells, counts = rows.cells.numpy(), rows.counts()
    weight = rows.weight.numpy() / np.maximum(mass.flatten().numpy(), 1e-30)[cells]
    mean = np.bincount(cells, weight * difference, len(counts))
    spread = np.bincount(cells, (weight * (difference - mean[cells])) ** 2, len(counts))
    coin = np.where((counts > 0) & (counts < FEW), 0.25 / np.maximum(counts, 1), 0.0)
    return float(np.sqrt((omega**2 * (spread + coin)).sum()))


def _drawn_standard_error(
    rows: RivalScores, losses: np.ndarray, start: np.ndarray, goal: Objective, seed: int
) -> float:
    """Of an objective that is not linear, see `drawn_standard_error`."""
    cells, size = rows.cells.numpy(), rows.shape[0] * rows.shape[1]
    outcomes = [
        (1 - losses) * (1 - start),
        losses * (1 - start),
        (1 - losses) * start,
        losses * start,
    ]
    counts = np.stack([np.bincount(cells, outcome, size) for outcome in outcomes], axis=1)
    return drawn_standard_error(counts, rows.mass(), goal, seed)


def drawn_standard_error(counts: np.ndarray, mass: Tensor, goal: Objective, seed: int) -> float:
    """Of a difference in the objective: over draws of each cell's shares of the four outcomes.

    These are right or wrong for one candidate and for the other, from their posterior under a uniform
    Dirichlet prior worth one example. `counts` has those of each cell, shape ``(r c, 4)``: both right, the
    first alone wrong, the second alone, both wrong; `mass` is the cells' weight, shape ``(r, c)``.
    """
    present = counts.sum(axis=1) > 0
    generator = np.random.default_rng(seed)
    gammas = generator.standard_gamma(counts + 0.25, size=(DRAWS, len(counts), 4))
    shares = gammas / gammas.sum(axis=2, keepdims=True)
    differences = []
    for draw in shares:
        own, other = (
            float(goal.value(torch.from_numpy(rates * present).view(mass.shape) * mass, mass))
            for rates in (draw[:, 1] + draw[:, 3], draw[:, 2] + draw[:, 3])
        )
        differences.append(own - other)
    return float(np.std(differences))


def class_means(rows: RivalScores, losses: np.ndarray) -> np.ndarray:
    """Mean loss of each class ``(k,)``, NaN where it has no example."""
    total, mass = rows.sums(torch.from_numpy(losses)), rows.mass()
    total, mass = (cells_of(table, "class").numpy() for table in (total, mass))
    return np.divide(total, mass, out=np.full(len(mass), np.nan), where=mass > 0)
