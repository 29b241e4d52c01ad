r"""Thresholds of several labels on scores that are held fixed.

A label is decided for where z_j > l_j, with z the logarithm of the odds that a classifier gives it, and

.. math:: l_j = \tau \log (n_j^+ / n_j^-) + \epsilon_j,

the adjustment of the `HierarchicalLabelSpace` under its prior: tau near 1, where l has the log prior odds,
and each epsilon near 0, the closer the fewer positives a label has. An objective over labels falls with the
error of each label, and a label's error depends on its own threshold alone: once tau is given, each label
by itself is made as good as it can be, whatever the objective makes of the labels' errors.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor
from torch.nn import functional as F

from autobalance.objectives import MacroF1Error, Objective
from autobalance.posthoc.adjustment_candidates import SHRINKAGE
from autobalance.posthoc.adjustment_fit import ITERATIONS, MOST_LOG_SCALE, SIGMA_SCALE, TUNED_TAUS
from autobalance.spaces import HierarchicalLabelSpace

AT_ONCE = 2**21
"""Scores worked on at once, some labels of all examples."""
DEVIATIONS = np.arange(-16, 17) / 4.0
"""Those tried for each label on the 0-1 error."""


@dataclass(frozen=True)
class LabelScores:
    """Log odds and targets of some examples: what thresholds are designed on.

    Attributes
    ----------
    z : Tensor
        Shape ``(n, k)``, float32.
    target : Tensor
        0, 1, and -1 where not labelled, shape ``(n, k)``, int8.
    weight : Tensor or None
        What each example counts for, shape ``(n,)``, float64.
    """

    z: Tensor
    target: Tensor
    weight: Tensor | None = None

    def subset(self, rows: np.ndarray) -> Self:
        """Of these examples."""
        index = torch.from_numpy(rows)
        weight = None if self.weight is None else self.weight[index]
        return replace(self, z=self.z[index], target=self.target[index], weight=weight)

    def mass(self) -> Tensor:
        """Examples, or sums of their weights, per sign and label ``(2, k)``, float64."""
        return self.sums(self.target >= 0)

    def sums(self, entries: Tensor) -> Tensor:
        """Examples, or sums of their weights, per sign and label ``(2, k)`` of some entries ``(n, k)``."""
        some = [entries & (self.target == sign) for sign in (0, 1)]
        if self.weight is None:
            return torch.stack([each.sum(dim=0) for each in some]).double()
        return torch.stack([self.weight @ each.double() for each in some])

    def wrong(self, l: np.ndarray) -> Tensor:  # noqa: E741
        """Which entries the thresholds ``(k,)`` decide wrongly, shape ``(n, k)``."""
        return (self.z > torch.from_numpy(l).float()) != (self.target == 1)

    def blocks(self) -> list[slice]:
        """Columns that are worked on at once."""
        n, k = self.z.shape
        width = max(1, AT_ONCE // max(1, n))
        return [slice(first, first + width) for first in range(0, k, width)]


@dataclass(frozen=True)
class ThresholdPrior:
    """The space of thresholds: log prior odds ``(k,)``, and the mean and deviation of tau and epsilon.

    `sigma_eps` has that of each label, shape ``(k,)``, and `tau` mean and deviation.
    """

    log_odds: np.ndarray
    tau: tuple[float, float]
    sigma_eps: np.ndarray

    @classmethod
    def of(cls, counts: np.ndarray, goal: Objective) -> Self:
        """That of the default space for the objective, from training counts ``(2, k)``."""
        space = HierarchicalLabelSpace(counts, tau=goal.start_tau)
        sigma = space.sigma_eps * space.shrink.double().numpy()
        return cls(np.log(counts[1] / counts[0]), (space.start, space.sigma_tau), sigma)

    @classmethod
    def near_scores(cls, counts: np.ndarray) -> Self:
        """Around the scores as they are, for their calibration."""
        return cls(np.log(counts[1] / counts[0]), (0.0, 0.5), np.full(counts.shape[1], 0.5))


@dataclass(frozen=True)
class ThresholdFit:
    """l ``(k,)``, the tau it was built from, and the scale a under which sigmoid(a (z - l)) is calibrated."""

    l: np.ndarray  # noqa: E741
    tau: float
    scale: float = 1.0


def label_errors(goal: Objective, total: Tensor, mass: Tensor) -> np.ndarray:
    """The error of each label that the objective is over, ``(k,)``; NaN for a label without both signs."""
    if isinstance(goal, MacroF1Error):
        errors, present = goal.label_errors(total, mass)
    else:
        errors = (total / mass.clamp(min=torch.finfo(mass.dtype).tiny)).mean(dim=0)
        present = (mass > 0).all(dim=0)
    return torch.where(present, errors, torch.nan).numpy()


def tune_shared(rows: LabelScores, prior: ThresholdPrior, goal: Objective) -> ThresholdFit:
    """Tau alone, of `TUNED_TAUS` the one with the lowest objective of the 0-1 error."""
    mass = rows.mass()
    values = [
        float(goal.value(rows.sums(rows.wrong(tau * prior.log_odds)), mass)) for tau in TUNED_TAUS
    ]
    tau = float(TUNED_TAUS[int(np.argmin(values))])
    return ThresholdFit(tau * prior.log_odds, tau)


def tune_each(rows: LabelScores, prior: ThresholdPrior, goal: Objective) -> ThresholdFit:
    """Tau as `tune_shared` finds it, and of `DEVIATIONS` the best of each label, held to 0 by the prior."""
    shared = tune_shared(rows, prior, goal)
    mass = rows.mass()
    strength = _strengths(mass)
    best, chosen = np.full(len(shared.l), np.inf), np.zeros(len(shared.l))
    for eps in sorted(DEVIATIONS, key=abs):
        errors = label_errors(goal, rows.sums(rows.wrong(shared.l + eps)), mass)
        values = errors + strength * (eps / prior.sigma_eps) ** 2 / 2
        better = values < best
        best, chosen = np.where(better, values, best), np.where(better, eps, chosen)
    return ThresholdFit(shared.l + chosen, shared.tau)


def fit_balanced(rows: LabelScores, prior: ThresholdPrior) -> ThresholdFit:
    """A calibration for labels of which every one is as often present as not.

    There the likelier is the best decision for the balanced error. A label of n positives counts for
    n / (n + 2) of its share, as small classes do, for the cross-entropy of one positive knows no bound.
    """
    mass = rows.mass().numpy()
    positives = (rows.target == 1).sum(dim=0).numpy()
    share = positives / (positives + SHRINKAGE) / mass.shape[1]
    importance = share * (mass > 0).all(axis=0) / 2 / np.maximum(mass, 1e-30)
    return _fit(rows, prior, importance, _strengths(torch.from_numpy(mass)))


def calibrate_labels(rows: LabelScores, counts: np.ndarray) -> ThresholdFit:
    """Scale a and l such that sigmoid(a (z - l)) has the targets most likely, as often as they are here."""
    mass = rows.mass().numpy().sum(axis=0)
    importance = np.tile(1.0 / np.maximum(mass, 1e-30) / len(mass), (2, 1))
    strength = 1.0 / np.maximum(mass, 1.0)
    return _fit(rows, ThresholdPrior.near_scores(counts), importance, strength)


def _strengths(mass: Tensor) -> np.ndarray:
    """One over the effective number of examples of each label's balanced error, shape ``(k,)``."""
    return (0.25 / mass.clamp(min=1.0)).sum(dim=0).numpy()


def _fit(
    rows: LabelScores, prior: ThresholdPrior, importance: np.ndarray, strength: np.ndarray
) -> ThresholdFit:
    """Minimise the cross-entropy of a (z - l) plus the prior's penalty, by L-BFGS.

    `importance` ``(2, k)`` has what an entry of each sign and label counts for, and `strength` ``(k,)`` one
    over the effective number of examples of each label.
    """
    k = len(prior.log_odds)
    parts = _parts(rows, importance)
    mean, sigma = prior.tau
    shared = strength.sum() / k**2

    def problem(x: np.ndarray) -> tuple[float, np.ndarray]:
        tau, log_scale, eps = x[0], x[1], x[2:]
        value, slope, along_scale = _cross_entropy(
            parts, tau * prior.log_odds + eps, float(np.exp(log_scale))
        )
        scaled = eps / prior.sigma_eps
        value += shared * ((tau - mean) ** 2 / sigma**2 + log_scale**2 / SIGMA_SCALE**2) / 2
        value += (strength * scaled**2).mean() / 2
        along_tau = slope @ prior.log_odds + shared * (tau - mean) / sigma**2
        along_scale += shared * log_scale / SIGMA_SCALE**2
        return value, np.r_[along_tau, along_scale, slope + strength * scaled / prior.sigma_eps / k]

    start = np.r_[mean, 0.0, np.zeros(k)]
    bounds: Any = [(None, None), (-MOST_LOG_SCALE, MOST_LOG_SCALE), *[(None, None)] * k]
    options: Any = {"maxiter": ITERATIONS, "ftol": 1e-9, "gtol": 1e-7}
    x = minimize(problem, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options).x
    return ThresholdFit(x[0] * prior.log_odds + x[2:], float(x[0]), float(np.exp(x[1])))


def _parts(rows: LabelScores, importance: np.ndarray) -> list[tuple[slice, Tensor, Tensor, Tensor]]:
    """Labels worked on at once, with z, the targets, and what each entry counts for, all float32."""
    table, parts = torch.from_numpy(importance).float(), []
    for some in rows.blocks():
        target = rows.target[:, some]
        weight = torch.where(target == 1, table[1, some], table[0, some]) * (target >= 0)
        if rows.weight is not None:
            weight *= rows.weight.float()[:, None]
        parts.append((some, rows.z[:, some], (target == 1).float(), weight))
    return parts


def _cross_entropy(
    parts: list[tuple[slice, Tensor, Tensor, Tensor]],
    l: np.ndarray,  # noqa: E741
    scale: float,
) -> tuple[float, np.ndarray, float]:
    """The weighted cross-entropy of a (z - l), and its derivatives in l and in log a."""
    value, along_scale, slope = 0.0, 0.0, np.empty(len(l))
    for some, z, target, weight in parts:
        margin = (z - torch.from_numpy(l[some]).float()).mul_(scale)
        value += float(
            F.binary_cross_entropy_with_logits(margin, target, weight, reduction="none").sum(
                dtype=torch.float64
            )
        )
        each = torch.sigmoid(margin).sub_(target).mul_(weight)
        slope[some] = -scale * each.sum(dim=0, dtype=torch.float64).numpy()
        along_scale += float(each.mul_(margin).sum(dtype=torch.float64))
    return value, slope, along_scale
