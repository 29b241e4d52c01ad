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
from autobalance.posthoc.adjustment_choice import Maker, importance_of_cells
from autobalance.posthoc.adjustment_fit import (
    AdjustmentFit,
    AdjustmentPrior,
    fit_adjustment,
    tune_tau,
)
from autobalance.posthoc.decision_program import (
    DecisionGoal,
    constant_columns,
    generate_columns,
    select_draw,
)
from autobalance.posthoc.decision_rule import DecisionRule
from autobalance.posthoc.rival_scores import RivalScores

UNIT = SmoothError(temperature=1.0)
"""In units of the log-probabilities: on these a margin means the same for every classifier."""


SHRINKAGE = 2.0
"""Examples by which a class's share in the cross-entropy is shrunk, n / (n + 2), as a search shrinks risks.

One or two examples that the scores call impossible would else rule the mean of the classes' cross-entropies,
which knows no bound, and with it the tau of all classes.
"""


def candidates_for(
    goal: Objective, counts: np.ndarray, unadjusted: np.ndarray, *, randomised: bool
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
    unadjusted : ndarray
        l of the classifier's own decisions, shape ``(k,)``: 0 unless its scores were shifted.
    randomised : bool
        Whether a draw between decisions may be a candidate.
    """
    if isinstance(goal, CostMatrix):
        return _for_costs(goal, counts, unadjusted)
    prior = AdjustmentPrior.of(counts, goal)
    makers: dict[str, Maker] = {
        "none": lambda rows: single(AdjustmentFit(unadjusted, 0.0)),
        "post_hoc": lambda rows: single(AdjustmentFit(prior.additive(prior.tau[0]), prior.tau[0])),
        "tuned_tau": lambda rows: single(tune_tau(rows, prior, goal)),
    }
    makers, start = _add_designed(makers, prior, goal, counts, randomised=randomised)

    def favouring(make: Maker) -> Maker:
        return lambda rows: favour_unseen(make(rows), rows, prior.log_prior)

    return {
        name: make if name in ("none", "post_hoc") else favouring(make)
        for name, make in makers.items()
    }, start


def _add_designed(
    makers: dict[str, Maker],
    prior: AdjustmentPrior,
    goal: Objective,
    counts: np.ndarray,
    *,
    randomised: bool,
) -> tuple[dict[str, Maker], str]:
    """These makers and those that minimise a surrogate or solve a program; the name of the start."""
    makers = dict(makers)
    for name, surrogate in (("smooth_error", SmoothError()), ("unit_smooth_error", UNIT)):
        makers[name] = lambda rows, s=surrogate: single(fit_adjustment(rows, prior, goal, s))
    if goal.linear:
        makers["cross_entropy"] = lambda rows: single(
            fit_adjustment(rows, prior, shrink_small_classes(goal, rows), CrossEntropyRisk())
        )
        return makers, "cross_entropy"
    if goal.over == "class":
        mean = BalancedError()
        narrow = AdjustmentPrior.of(counts, mean)
        makers["cross_entropy"] = lambda rows: single(
            fit_adjustment(rows, narrow, shrink_small_classes(mean, rows), CrossEntropyRisk())
        )
        if isinstance(goal, (WorstError, CVaRError)):
            makers["program"] = lambda rows: solve_for_worst(rows, goal, randomised=randomised)
    return makers, "smooth_error"


def favour_unseen(rule: DecisionRule, rows: RivalScores, log_prior: np.ndarray) -> DecisionRule:
    """The rule with l of classes without an example in `rows` at most that of logit adjustment.

    Nothing was seen to speak for less: a design that never decides for such a class loses nothing on these
    rows. Logit adjustment is consistent for the class, whoever its members are. The level of l is that of
    the classes seen, by the median.
    """
    seen = rows.counts().reshape(rows.shape).any(axis=0)
    if seen.all():
        return rule
    level = np.median((rule.additive - log_prior)[:, seen], axis=1, keepdims=True)
    additive = np.where(seen, rule.additive, np.minimum(rule.additive, log_prior + level))
    return replace(rule, additive=additive)


def shrink_small_classes(goal: Objective, rows: RivalScores) -> Objective:
    """A mean of the classes' errors with the shares of small classes shrunk; others as they are."""
    if goal.over != "class":
        return goal
    share = importance_of_cells(goal, rows.mass()).sum(dim=0).numpy()
    n = np.bincount(rows.target.numpy(), minlength=len(share))
    return WeightedError(weights=tuple((share * n / (n + SHRINKAGE)).tolist()))


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

    first = constant_columns(errors_of, (1, k), np.flatnonzero(present[0]))
    columns = [*first, *generate_columns(errors_of, mass, program, first)]
    weights, shares, _ = select_draw(columns, program, randomised=randomised)
    return DecisionRule(np.stack([_additive(a[0]) for a in weights]), shares)


def single(fit: AdjustmentFit) -> DecisionRule:
    """The rule of one adjustment."""
    return DecisionRule(fit.l[None], np.ones(1), fit.scale, fit.tau)


def _additive(weights: np.ndarray) -> np.ndarray:
    """L under which argmax z - l is argmax a p; a weight of 0 never wins against another."""
    return -np.log(np.maximum(weights / weights.max(), 1e-40))


def _for_costs(
    goal: CostMatrix, counts: np.ndarray, unadjusted: np.ndarray
) -> tuple[dict[str, Maker], str]:
    costs = np.asarray(goal.costs)
    k = len(counts)
    goal.check_classes(k)
    return {
        "most_probable": lambda rows: single(AdjustmentFit(unadjusted, 0.0)),
        "none": lambda rows: replace(single(AdjustmentFit(np.zeros(k), 0.0)), costs=costs),
        "cross_entropy": lambda rows: replace(single(calibrate(rows, counts)), costs=costs),
    }, "cross_entropy"
