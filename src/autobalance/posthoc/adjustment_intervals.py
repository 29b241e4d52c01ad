"""Intervals of a designed adjustment, by the bootstrap over the examples of each cell."""

from __future__ import annotations

import numpy as np

from autobalance.objectives import Objective
from autobalance.posthoc.adjustment_choice import Maker, thin
from autobalance.posthoc.decision_rule import DecisionRule
from autobalance.posthoc.rival_scores import RivalScores

PERCENTILES = (5.0, 95.0)


def bootstrap_intervals(
    rows: RivalScores,
    make: Maker,
    rule: DecisionRule,
    before: np.ndarray,
    after: np.ndarray,
    goal: Objective,
    resamples: int,
    seed: int,
) -> dict[str, np.ndarray]:
    """The 5th and 95th percentile of tau, of l and of the objective's gain.

    Each resample draws as many examples of each cell as it has, with replacement, and designs the rule
    again. Of more than 20,000 examples fewer are drawn, and the deviations shrunk by the root of how many
    fewer: the m-out-of-n bootstrap (Bickel, Götze and van Zwet, 1997).

    Parameters
    ----------
    rows : RivalScores
        What the rule was designed on.
    make : callable
        Designs it.
    rule : DecisionRule
        The rule designed on all rows.
    before, after : ndarray
        Losses of each example without adjustment and with the design, from cross-fitting, ``(n,)``.
    goal : Objective
        What the design is for.
    resamples : int
        How many, at least 1.
    seed : int
        Of the draws.
    """
    generator = np.random.default_rng(seed)
    some, weight = thin(rows, np.arange(len(rows)), generator)
    cells = rows.cells.numpy()[some]
    members = [np.flatnonzero(cells == cell) for cell in np.unique(cells)]
    size = rows.shape[0] * rows.shape[1]
    drawn_sizes, all_sizes = (
        goal.effective_size(np.bincount(each, minlength=size).reshape(rows.shape))
        for each in (cells, rows.cells.numpy())
    )
    shrink = float(np.sqrt(min(1.0, drawn_sizes / all_sizes)))
    taus, additives, gains = [], [], []
    for _ in range(resamples):
        drawn = np.concatenate([generator.choice(own, len(own)) for own in members])
        sample = rows.subset(some[drawn], weight[drawn])
        redesigned = make(sample)
        taus.append(np.nan if redesigned.tau is None else redesigned.tau)
        additives.append(redesigned.additive[int(redesigned.shares.argmax())])
        gains.append(
            sample.objective(goal, before[some[drawn]]) - sample.objective(goal, after[some[drawn]])
        )
    own = rule.additive[int(rule.shares.argmax())]
    gain = rows.objective(goal, before) - rows.objective(goal, after)
    found = {
        "l": _interval(own, np.array(additives), shrink),
        "gain": _interval(np.array(gain), np.array(gains), shrink),
    }
    if rule.tau is not None:
        found["tau"] = _interval(np.array(rule.tau), np.array(taus), shrink)
    return found


def _interval(centre: np.ndarray, draws: np.ndarray, shrink: float) -> np.ndarray:
    return np.percentile(centre + shrink * (draws - centre), PERCENTILES, axis=0).T
