"""The objective against the strength of logit adjustment, to see how much hangs on it."""

from __future__ import annotations

from typing import Any

import numpy as np

from autobalance._validation import InputError
from autobalance.objectives import CostMatrix
from autobalance.posthoc.adjustment import Adjustment
from autobalance.posthoc.adjustment_choice import judge
from autobalance.posthoc.decision_rule import DecisionRule
from autobalance.posthoc.rival_scores import RivalScores

TAUS = np.linspace(0.0, 3.0, 25)


def measure_taus(
    adjustment: Adjustment, scores: Any, y: Any, groups: Any = None, *, seed: int = 0
) -> np.ndarray | None:
    r"""The objective under :math:`l = \tau \log \pi` for tau from 0 to 3, with its standard error.

    Parameters
    ----------
    adjustment : Adjustment
        Designed on these examples.
    scores, y, groups : array-like
        As for `design_adjustment`.
    seed : int
        Of the standard error's draws, where the objective is not a mean of errors.

    Returns
    -------
    ndarray or None
        tau, value and standard error, shape ``(25, 3)``; None for costs and for groups' cells, whose
        decisions no tau expresses.
    """
    if isinstance(adjustment.objective, CostMatrix) or not isinstance(
        adjustment.rule, DecisionRule
    ):
        return None
    z, counts = adjustment.log_scores(scores), adjustment.class_counts
    target = np.asarray(y)
    if len(target) != len(z):
        raise InputError(f"y has {len(target)} labels, the scores have {len(z)} rows.")
    log_prior = np.log(counts / counts.sum())
    members = None if adjustment.objective.over == "class" else groups
    rows = RivalScores.of(z, target, groups=members, log_prior=log_prior)
    none = np.zeros(len(z))  # a difference to no error at all is the value itself
    wrong = {str(i): rows.wrong(tau * log_prior).astype(float) for i, tau in enumerate(TAUS)}
    judged = judge(rows, {"none": none, **wrong}, "none", adjustment.objective, seed)[1:]
    return np.array(
        [[tau, each.value, each.standard_error] for tau, each in zip(TAUS, judged, strict=True)]
    )
