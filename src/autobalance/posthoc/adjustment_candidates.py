"""The adjustments among which the choice is: by name, how each is designed, and which is the start."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from autobalance.objectives import (
    BalancedError,
    CostMatrix,
    CrossEntropyRisk,
    CVaRError,
    Objective,
    SmoothError,
    WeightedError,
    WorstError,
)
from autobalance.posthoc.adjustment_choice import Maker
from autobalance.posthoc.adjustment_fit import (
    AdjustmentFit,
    AdjustmentPrior,
    fit_adjustment,
    tune_tau,
)
from autobalance.posthoc.decision_program import (
    DecisionColumn,
    DecisionGoal,
    generate_columns,
    select_draw,
)
from autobalance.posthoc.decision_rule import DecisionRule
from autobalance.posthoc.rival_scores import RivalScores

UNIT = SmoothError(temperature=1.0)
"""In units of the log-probabilities: on these a margin means the same for every classifier."""


def candidates_for(
    goal: Objective, counts: np.ndarray, *, randomised: bool
) -> tuple[dict[str, Maker], str]:
    """The makers by name, and the name of the start.

    For a mean of the classes' errors the start is the cross-entropy with errors counted by class: it
    calibrates the scores for balanced classes, and there the largest is the best decision. For another
    function of the classes' errors it is the smooth error. The linear program, which has no prior, fits
    small classes too closely to be the start.

    Parameters
    ----------
    goal : Objective
        What is to be small.
    counts : ndarray
        Training examples per class, or the sums of their weights, shape ``(k,)``.
    randomised : bool
        Whether a draw between decisions may be a candidate.
    """
    if isinstance(goal, CostMatrix):
        return _for_costs(goal, counts)
    prior = AdjustmentPrior.of(counts, goal)
    k = len(counts)
    makers: dict[str, Maker] = {
        "none": lambda rows: single(AdjustmentFit(np.zeros(k), 0.0)),
        "post_hoc": lambda rows: single(AdjustmentFit(prior.additive(prior.tau[0]), prior.tau[0])),
        "tuned_tau": lambda rows: single(tune_tau(rows, prior, goal)),
    }
    for name, surrogate in (("smooth_error", SmoothError()), ("unit_smooth_error", UNIT)):
        makers[name] = lambda rows, s=surrogate: single(fit_adjustment(rows, prior, goal, s))
    if goal.linear:
        makers["cross_entropy"] = lambda rows: single(
            fit_adjustment(rows, prior, goal, CrossEntropyRisk())
        )
        return makers, "cross_entropy"
    if goal.over == "class":
        mean = BalancedError()
        narrow = AdjustmentPrior.of(counts, mean)
        makers["cross_entropy"] = lambda rows: single(
            fit_adjustment(rows, narrow, mean, CrossEntropyRisk())
        )
        if isinstance(goal, (WorstError, CVaRError)):
            makers["program"] = lambda rows: solve_for_worst(rows, goal, randomised=randomised)
    return makers, "smooth_error"


def calibrate(rows: RivalScores, counts: np.ndarray) -> AdjustmentFit:
    """Scale a and l such that softmax(a (z - l)) has the examples' labels most likely.

    The prior is around the scores as they are.
    """
    prior = AdjustmentPrior(np.log(counts / counts.sum()), np.zeros(len(counts)), (0.0, 0.5), 0.5)
    shares = rows.mass().sum(dim=0)
    goal = WeightedError(weights=tuple(shares.tolist()))
    return fit_adjustment(rows, prior, goal, CrossEntropyRisk())


def solve_for_worst(
    rows: RivalScores, goal: WorstError | CVaRError, *, randomised: bool
) -> DecisionRule:
    """The linear program for the worst class, or for the mean of the worst share of the classes."""
    mass = rows.mass().sum(dim=0, keepdim=True).numpy()
    present = mass > 0
    size = max(1.0, goal.fraction * present.sum()) if isinstance(goal, CVaRError) else 1.0
    program = DecisionGoal(present / present.sum(), tail=float(size))
    k = mass.shape[1]

    def errors_of(weights: np.ndarray) -> np.ndarray:
        wrong = rows.wrong(_additive(weights[0]))
        total = np.bincount(rows.target.numpy(), rows.weight.numpy() * wrong, k)[None]
        return np.divide(total, mass, out=np.zeros_like(mass), where=present)

    constant = [np.eye(k)[[j]] for j in np.flatnonzero(present)]
    first = [DecisionColumn(weights, errors_of(weights)) for weights in constant]
    columns = [*first, *generate_columns(errors_of, mass, program, first)]
    weights, shares, _ = select_draw(columns, program, randomised=randomised)
    return DecisionRule(np.stack([_additive(a[0]) for a in weights]), shares)


def single(fit: AdjustmentFit) -> DecisionRule:
    """The rule of one adjustment."""
    return DecisionRule(fit.l[None], np.ones(1), fit.scale, fit.tau)


def _additive(weights: np.ndarray) -> np.ndarray:
    """L under which argmax z - l is argmax a p; a weight of 0 never wins against another."""
    return -np.log(np.maximum(weights / weights.max(), 1e-40))


def _for_costs(goal: CostMatrix, counts: np.ndarray) -> tuple[dict[str, Maker], str]:
    costs = np.asarray(goal.costs)
    k = len(counts)
    goal.check_classes(k)
    plain = DecisionRule(np.zeros((1, k)), np.ones(1), 1.0, 0.0)
    return {
        "most_probable": lambda rows: plain,
        "none": lambda rows: replace(plain, costs=costs),
        "cross_entropy": lambda rows: replace(single(calibrate(rows, counts)), costs=costs),
    }, "cross_entropy"
