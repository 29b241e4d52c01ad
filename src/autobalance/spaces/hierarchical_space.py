"""The default space: shared strengths, and a shrunken deviation of each class."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from autobalance._validation import (
    InputError,
    array_of_numbers,
    shown,
)
from autobalance.losses import LossParameters
from autobalance.spaces.base import centre, check_learned_parts
from autobalance.spaces.shared_strengths import SharedStrengthSpace


class HierarchicalSpace(SharedStrengthSpace):
    r"""Shared strengths plus shrunken deviations per class. The default.

    .. math::
        u_k = \tau \log \pi_k - \log \omega_k + \epsilon_k, \qquad
        l_k = (1 - \rho) u_k, \qquad
        \log w_k = -\rho u_k + \epsilon''_k, \qquad
        \log \delta_k = \gamma \log(n_k / n_{max}) + \epsilon'_k

    u is how much each class's odds are corrected, rho the share of it that the weights carry: 0 is
    logit adjustment (LA), 1 class weights; searched, it ends at most at 0.5 (or its start, if that is
    more) and may fall below 0. gamma is held within `gamma_bound`. It starts at tau = 1, gamma = 0 and
    no deviations: with omega = 1 that is consistent for the balanced error whatever rho is (Menon et
    al., 2021, theorem 1 with delta_k = pi_k^(1 - rho)), and else for the error weighted by omega. With a
    ``(g, k)`` table of counts see `GroupSpace`.

    Parameters
    ----------
    counts : array-like
        Training examples per class, shape ``(k,)``.
    learn : iterable of str
        Which of "weight" (epsilon''), "additive" (tau, epsilon and rho) and "multiplicative" (gamma
        and epsilon') to learn.
    tau : float
        Start of tau.
    rho : float
        Start of rho, in [0, 1].
    gamma : float
        Start of gamma; where "multiplicative" is not learned, gamma stays there.
    importance : array-like, optional
        omega_k, how much the objective makes of each class's error, shape ``(k,)``, not negative;
        only ratios matter. None: all alike.
    sigma_tau, sigma_gamma, sigma_eps : float
        Standard deviations of the priors on the shared strengths tau and gamma, and on each
        deviation, in the units of log pi (nats) for l and of log delta for delta.
    sigma_rho : float or None
        Standard deviation of the prior on rho; None holds rho where it starts.
    deviations : bool or iterable of str
        Which of the parts learned deviate by class: True all, False none, so that the shared strengths
        alone are learned; w has none of these.
    """

    offset: Tensor

    def __init__(
        self,
        counts: Any,
        *,
        learn: Iterable[str] = ("additive",),
        tau: float = 1.0,
        rho: float = 0.2,
        gamma: float = 0.0,
        importance: Any = None,
        sigma_tau: float = 0.5,
        sigma_gamma: float = 0.5,
        sigma_eps: float = 0.5,
        sigma_rho: float | None = 1.0,
        deviations: bool | Iterable[str] = True,
    ) -> None:
        super().__init__(counts, learn)
        if self.counts.ndim != 1:
            raise InputError(
                "HierarchicalSpace takes counts per class (k,); for groups use GroupSpace."
            )
        counted = self.counts.numpy()
        self._set_strengths(
            tau, rho, gamma, sigma_tau, sigma_gamma, sigma_eps, sigma_rho, counted
        )  # fmt: skip
        self.deviations = self._deviating_parts(deviations)
        if "weight" in self.learns and "weight" not in self.deviations:
            raise InputError(
                "w has no shared strength: without deviations, leave weight out of learn."
            )
        k = self.num_classes
        self.register_buffer("offset", _log_importance(importance, k))
        self._importance = None if importance is None else np.asarray(importance).tolist()
        if "additive" in self.learns:
            self.tau = nn.Parameter(torch.tensor(self.start))
            if self.sigma_rho is not None:
                self.rho = nn.Parameter(torch.tensor(self.start_rho))
        self._weighs = "weight" in self.learns or isinstance(self.rho, Tensor) or self.rho > 0.0
        if "multiplicative" in self.learns:
            self.gamma = nn.Parameter(torch.tensor(self.start_gamma))
        if "additive" in self.deviations:
            self.eps = nn.Parameter(torch.zeros(k))
        if "multiplicative" in self.deviations:
            self.log_delta = nn.Parameter(torch.zeros(k))
        if "weight" in self.learns:
            self.log_weight = nn.Parameter(torch.zeros(k))

    def options(self) -> dict[str, Any]:
        """Same as in `DesignSpace`."""
        given = {
            "tau": self.start,
            "rho": self.start_rho,
            "gamma": self.start_gamma,
            "importance": self._importance,
            "deviations": list(self.deviations),
        }
        names = ("sigma_tau", "sigma_gamma", "sigma_eps", "sigma_rho")
        return {**super().options(), **given, **{name: getattr(self, name) for name in names}}

    def _deviating_parts(self, deviations: bool | Iterable[str]) -> tuple[str, ...]:
        """Which of the parts learned have a deviation for each class."""
        if isinstance(deviations, bool):
            return self.learns if deviations else ()
        given = tuple(deviations)
        parts = check_learned_parts(given, "deviations") if given else ()
        if not set(parts) <= set(self.learns):
            raise InputError(
                f"deviations must be of parts that are learned ({', '.join(self.learns)}); "
                f"got {shown(list(parts))}."
            )
        return parts

    def forward(self) -> LossParameters:
        """Same as in `DesignSpace`."""
        log_prior = (self.counts / self.counts.sum()).log()
        weight = multiplicative = None
        tau = self.tau if "additive" in self.learns else self.start
        correction = tau * log_prior - self.offset
        if "additive" in self.deviations:
            correction = correction + centre(self.eps)
        if "multiplicative" in self.learns or self.start_gamma:
            log_delta = self._exponent() * (self.counts / self.counts.max()).log()
            if "multiplicative" in self.deviations:
                log_delta = log_delta + centre(self.log_delta)
            multiplicative = log_delta.exp()
        rho = self._share()
        if self._weighs:
            log_weight = -rho * correction
            if "weight" in self.learns:
                log_weight = log_weight + centre(self.log_weight)
            weight = self._mean_one(log_weight)
        return LossParameters(weight, (1.0 - rho) * correction, multiplicative)


def _log_importance(importance: Any, classes: int) -> Tensor:
    """Log omega_k, its largest 0; a class of no importance counts as one of 1e-3."""
    if importance is None:
        return torch.zeros(classes)
    given = array_of_numbers("importance", importance)
    omega = torch.as_tensor(given, dtype=torch.get_default_dtype())
    valid = bool(((omega >= 0) & omega.isfinite()).all())
    if omega.shape != (classes,) or not valid or not float(omega.max()) > 0:
        raise InputError(
            f"importance must hold one non-negative number per class ({classes}), not all 0; "
            f"got shape {tuple(omega.shape)}."
        )
    return (omega / omega.max()).clamp(min=1e-3).log()
