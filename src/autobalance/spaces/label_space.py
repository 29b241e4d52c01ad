"""The default space of several labels: shared strengths, and a shrunken deviation of each label."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from autobalance._validation import not_negative
from autobalance.losses import LossParameters, sign_counts
from autobalance.spaces.shared_strengths import SharedStrengthSpace


class HierarchicalLabelSpace(SharedStrengthSpace):
    r"""Shared strengths plus shrunken deviations per label, for data of several labels. Their default.

    .. math::
        u_j = \tau \log (n_j^+ / n_j^-) + \epsilon_j, \qquad
        l_j = (1 - \rho) u_j, \qquad
        \log (w_j^+ / w_j^-) = -\rho u_j + \epsilon''_j, \qquad
        \log \delta_j^\pm = \gamma \log(n_j^\pm / \max(n_j^+, n_j^-))

    As `HierarchicalSpace` for the two classes of each label: u is how much the label's odds are corrected,
    rho the share of it that the weights carry, and w has mean 1 over a label's training examples. It starts
    at tau = 1, gamma = 0 and no deviations, which is consistent for the mean over labels of the balanced
    error whatever rho is. A label's score is its own, so that deviations have no gauge to be fixed.

    A label of few positives has few in validation too, so that its deviation is held closer to 0: the
    prior's variance is sigma^2 n / (n + s) for n positives. Each label has a k-th part of the objective,
    and its deviation a k-th part of the prior's weight.

    Parameters
    ----------
    counts : array-like
        Negatives and positives of each label in training, shape ``(2, k)``, none 0.
    learn : iterable of str
        Which of "weight" (epsilon''), "additive" (tau, epsilon and rho) and "multiplicative" (gamma) to
        learn.
    tau, rho, gamma : float
        Starts, as for `HierarchicalSpace`.
    sigma_tau, sigma_gamma, sigma_eps : float
        Standard deviations of the priors on the shared strengths and on each deviation, the last one that
        of a label of many positives.
    sigma_rho : float or None
        Standard deviation of the prior on rho; None holds rho where it starts.
    shrinkage : float
        s, in positives, not negative.
    deviations : bool
        Whether labels deviate; without, the shared strengths alone are learned.

    Raises
    ------
    InputError
        If the counts are no such table, or a label has no positive or no negative example.
    """

    shrink: Tensor

    def __init__(
        self,
        counts: Any,
        *,
        learn: Iterable[str] = ("additive",),
        tau: float = 1.0,
        rho: float = 0.2,
        gamma: float = 0.0,
        sigma_tau: float = 0.5,
        sigma_gamma: float = 0.5,
        sigma_eps: float = 0.5,
        sigma_rho: float | None = 1.0,
        shrinkage: float = 20.0,
        deviations: bool = True,
    ) -> None:
        table = sign_counts(counts)
        super().__init__(table, learn)
        self.shrinkage = float(not_negative("shrinkage", shrinkage))
        self.deviations = bool(deviations)
        imbalance = [1.0, max(max(pair) / min(pair) for pair in table.T)]
        self._set_strengths(
            tau, rho, gamma, sigma_tau, sigma_gamma, sigma_eps, sigma_rho, imbalance
        )  # fmt: skip
        # Standard deviations of the priors as shares of `sigma_eps`.
        shares = np.sqrt(table[1] / (table[1] + self.shrinkage))
        self.register_buffer("shrink", torch.tensor(shares, dtype=self.counts.dtype))
        k = self.num_classes
        if "additive" in self.learns:
            self.tau = nn.Parameter(torch.tensor(self.start))
            if self.sigma_rho is not None:
                self.rho = nn.Parameter(torch.tensor(self.start_rho))
            if self.deviations:
                self.eps = nn.Parameter(torch.zeros(k))
        if "multiplicative" in self.learns:
            self.gamma = nn.Parameter(torch.tensor(self.start_gamma))
        if "weight" in self.learns:
            self.log_weight = nn.Parameter(torch.zeros(k))

    @property
    def num_groups(self) -> int | None:
        """None: the two rows of the counts are signs, not groups."""
        return None

    def options(self) -> dict[str, Any]:
        """Same as in `DesignSpace`."""
        given = {"tau": self.start, "rho": self.start_rho, "gamma": self.start_gamma}
        names = ("sigma_tau", "sigma_gamma", "sigma_eps", "sigma_rho", "shrinkage", "deviations")
        return {**super().options(), **given, **{name: getattr(self, name) for name in names}}

    def forward(self) -> LossParameters:
        """Same as in `DesignSpace`; w of shape ``(2, k)``, l of ``(k,)``, delta of ``(2, k)`` or none."""
        negatives, positives = self.counts
        tau = self.tau if "additive" in self.learns else self.start
        correction = tau * (positives / negatives).log()
        if "additive" in self.learns and self.deviations:
            correction = correction + self.eps
        rho = self._share()
        log_ratio = -rho * correction
        if "weight" in self.learns:
            log_ratio = log_ratio + self.log_weight
        delta = None
        if "multiplicative" in self.learns or self.start_gamma:
            shares = self.counts / self.counts.amax(dim=0)
            delta = (self._exponent() * shares.log()).exp()
        return LossParameters(self._mean_one_by_label(log_ratio), (1.0 - rho) * correction, delta)

    def _mean_one_by_label(self, log_ratio: Tensor) -> Tensor:
        """W ``(2, k)`` of this logarithm of w+ / w-, with mean 1 over each label's examples."""
        both = torch.stack([torch.zeros_like(log_ratio), log_ratio])
        log_shares = (self.counts / self.counts.sum(dim=0)).log()
        return (both - torch.logsumexp(both + log_shares, dim=0)).clamp(min=-80.0).exp()

    def penalty(self) -> Tensor:
        """Same as in `DesignSpace`, with each label's deviations at a k-th part."""
        total = self.counts.new_zeros(())
        for name, (mean, deviation) in self.priors().items():
            p = self.get_parameter(name)
            scaled = (p - mean) / deviation
            each = scaled.square() if p.ndim == 0 else (scaled / self.shrink).square().mean()
            total = total + each / 2
        return total
