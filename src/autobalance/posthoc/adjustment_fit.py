r"""The few-parameter adjustment that makes a smooth objective small, with the scores held fixed.

The decision is :math:`\arg\max_k z_k - l_k` with z the logarithm of a classifier's probabilities and

.. math:: l_k = \tau \log \pi_k - \log \omega_k + \epsilon_k, \qquad \sum_k \epsilon_k = 0,

the adjustment of the `HierarchicalSpace`, under its prior: tau near 1, where l is post hoc logit
adjustment, and each epsilon near 0. Two surrogates of the 0-1 error can be minimised:

- the `SmoothError` of z - l, of one temperature or relative to the mean margin;
- the cross-entropy of a (z - l), with the scale a > 0 learned too. That is a calibration: with errors
  counted by class it makes softmax(a (z - l)) the probabilities for balanced classes, so that the
  largest is the best decision. a takes up how sure the classifier is of itself, which l should not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from autobalance.objectives import CrossEntropyRisk, Objective, SmoothError, Surrogate
from autobalance.posthoc.rival_scores import RivalScores
from autobalance.spaces import HierarchicalSpace, build_space

SIGMA_SCALE = 1.0
"""Standard deviation of the prior on log a."""
MOST_LOG_SCALE = 3.0
ITERATIONS = 60
TUNED_TAUS = np.arange(31) / 10.0
"""The strengths tried where tau alone is tuned on the 0-1 error."""


@dataclass(frozen=True)
class AdjustmentPrior:
    """The space of adjustments and its prior.

    Attributes
    ----------
    log_prior, offset : ndarray
        log pi_k, and log omega_k, each of shape ``(k,)``.
    tau : tuple of float
        Mean and standard deviation of the prior on tau.
    sigma_eps : float
        Standard deviation of the prior on each epsilon.
    """

    log_prior: np.ndarray
    offset: np.ndarray
    tau: tuple[float, float]
    sigma_eps: float

    @classmethod
    def of(cls, counts: np.ndarray, goal: Objective) -> AdjustmentPrior:
        """That of the default space for the objective, from training examples per class ``(k,)``."""
        space = build_space(None, counts, goal)
        assert isinstance(space, HierarchicalSpace)
        return cls(
            log_prior=np.log(counts / counts.sum()),
            offset=space.offset.double().numpy(),
            tau=(space.start, space.sigma_tau),
            sigma_eps=space.sigma_eps,
        )

    def additive(self, tau: float, eps: np.ndarray | float = 0.0) -> np.ndarray:
        """L of these parameters, shape ``(k,)``."""
        return tau * self.log_prior - self.offset + (eps - np.mean(eps))


@dataclass(frozen=True)
class AdjustmentFit:
    """l ``(k,)``, its tau, and the scale a of z - l under which its softmax is calibrated."""

    l: np.ndarray  # noqa: E741
    tau: float
    scale: float = 1.0


def fit_adjustment(
    rows: RivalScores,
    prior: AdjustmentPrior,
    goal: Objective,
    surrogate: Surrogate,
    *,
    iterations: int = ITERATIONS,
    start: AdjustmentFit | None = None,
) -> AdjustmentFit:
    """Minimise the objective over the surrogate, plus the prior's penalty over the effective examples.

    Parameters
    ----------
    rows : RivalScores
        The scores, of examples that the classifier was not trained on.
    prior : AdjustmentPrior
        The space.
    goal : Objective
        What is to be small, over the classes' or cells' mean losses.
    surrogate : SmoothError or CrossEntropyRisk
        The loss within a cell. Under cross-entropy the scale is fitted too.
    iterations : int
        Of L-BFGS, at most.
    start : AdjustmentFit, optional
        Where to begin; by default at the prior's mean.
    """
    problem = _Problem(rows, prior, goal, surrogate)
    scaled = isinstance(surrogate, CrossEntropyRisk)
    x = problem.position(start)
    bounds: list[tuple[float | None, float | None]] = [(None, None)] * len(x)
    bounds[1] = (-MOST_LOG_SCALE, MOST_LOG_SCALE) if scaled else (0.0, 0.0)
    options: Any = {"maxiter": iterations, "ftol": 1e-7, "gtol": 1e-6}
    found = minimize(problem, x, jac=True, method="L-BFGS-B", bounds=bounds, options=options)
    tau, log_scale, eps = found.x[0], found.x[1], found.x[2:]
    return AdjustmentFit(prior.additive(tau, eps), float(tau), float(np.exp(log_scale)))


def tune_tau(rows: RivalScores, prior: AdjustmentPrior, goal: Objective) -> AdjustmentFit:
    """Tau alone, of `TUNED_TAUS` the one with the lowest objective of the 0-1 error."""
    values = [rows.objective(goal, rows.wrong(prior.additive(tau))) for tau in TUNED_TAUS]
    tau = float(TUNED_TAUS[int(np.argmin(values))])
    return AdjustmentFit(prior.additive(tau), tau)


class _Problem:
    """Value and gradient in x = (tau, log a, epsilon)."""

    def __init__(
        self, rows: RivalScores, prior: AdjustmentPrior, goal: Objective, surrogate: Surrogate
    ) -> None:
        self.rows, self.prior, self.goal, self.surrogate = rows, prior, goal, surrogate
        self.mass = rows.mass()
        self.strength = 1.0 / goal.effective_size(self.mass.numpy())

    def position(self, start: AdjustmentFit | None) -> np.ndarray:
        k = self.rows.shape[1]
        if start is None:
            return np.r_[self.prior.tau[0], 0.0, np.zeros(k)]
        eps = start.l - self.prior.additive(start.tau)
        return np.r_[start.tau, np.log(start.scale), eps]

    def __call__(self, x: np.ndarray) -> tuple[float, np.ndarray]:
        tau, log_scale, eps = x[0], x[1], x[2:]
        l = torch.from_numpy(self.prior.additive(tau, eps)).float()  # noqa: E741
        if isinstance(self.surrogate, CrossEntropyRisk):
            value, slope, along_scale = self._cross_entropy(l, float(np.exp(log_scale)))
        else:
            value, slope, along_scale = *self._smooth_error(l, self.surrogate), 0.0
        mean, sigma = self.prior.tau
        value += self.strength * (
            (tau - mean) ** 2 / (2 * sigma**2)
            + (eps**2).sum() / (2 * self.prior.sigma_eps**2)
            + log_scale**2 / (2 * SIGMA_SCALE**2)
        )
        along_tau = slope @ self.prior.log_prior + self.strength * (tau - mean) / sigma**2
        along_scale += self.strength * log_scale / SIGMA_SCALE**2
        along_eps = slope - slope.mean() + self.strength * eps / self.prior.sigma_eps**2
        return value, np.r_[along_tau, along_scale, along_eps]

    def _aggregate(self, losses: Tensor) -> tuple[float, Tensor]:
        """The objective of the examples' losses, and its derivative in each of them, ``(n,)``."""
        total = self.rows.sums(losses).requires_grad_()
        value = self.goal.value(total, self.mass, smoothly=True)
        (slopes,) = torch.autograd.grad(value, total)
        each = slopes.flatten()[self.rows.cells] * self.rows.weight
        return float(value.detach()), each.float()

    def _smooth_error(self, l: Tensor, surrogate: SmoothError) -> tuple[float, np.ndarray]:  # noqa: E741
        rows = self.rows
        margin, rival = rows.margins(l)
        temperature, share = surrogate.temperature, None
        if temperature is None:
            share = (rows.weight / rows.weight.sum()).float()
            temperature = surrogate.relative * float((margin.abs() * share).sum())
            temperature = temperature or surrogate.relative
        losses = torch.sigmoid(-margin / temperature)
        value, each = self._aggregate(losses)
        bend = losses * (1.0 - losses) * each
        slope = -bend / temperature
        if share is not None:
            along_temperature = float((bend * margin).sum()) / temperature**2
            slope = slope + along_temperature * surrogate.relative * margin.sign() * share
        # The margin falls with l_y and grows with l of the best rival.
        gradient = torch.zeros(rows.shape[1], dtype=torch.float64)
        gradient.index_add_(0, rival, slope.double()).index_add_(0, rows.target, -slope.double())
        return value, gradient.numpy()

    def _cross_entropy(self, l: Tensor, scale: float) -> tuple[float, np.ndarray, float]:  # noqa: E741
        rows = self.rows
        own = scale * (rows.own - l[rows.target])
        log_sum = torch.empty_like(own)
        for some in rows.blocks():
            others = scale * (rows.rivals[:, some] - rows.of_rivals(l, some))
            log_sum[some] = torch.logaddexp(others.logsumexp(dim=0), own[some])
        value, each = self._aggregate(log_sum - own)
        missing = 1.0 - (own - log_sum).exp()  # the rivals' share
        gradient = torch.zeros(rows.shape[1], dtype=torch.float64)
        gradient.index_add_(0, rows.target, (scale * each * missing).double())
        # d value / d log a = a sum_i each_i (sum_j p_ij (z_ij - l_j) - missing_i (z_iy - l_y))
        along = -float((each * missing * own).sum())
        for some in rows.blocks():
            others = scale * (rows.rivals[:, some] - rows.of_rivals(l, some))
            p = (others - log_sum[some]).exp_().mul_(each[some])
            along += float((p * others).sum())
            rows.add_by_rival(gradient, p.mul_(-scale), some)
        return value, gradient.numpy(), along
