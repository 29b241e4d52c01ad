"""What spaces with shared strengths have in common: tau, rho and gamma, their bounds and their priors."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from torch import Tensor

from autobalance._validation import finite_number, positive, zero_to_one
from autobalance.spaces.base import DesignSpace

MOST_RHO = 0.5
"""Upper bound of a learned rho, unless it starts above. Larger values never helped on development data;
one short run reached 0.68 and lost 2 points: "Weights and adjustments at once" in the notebook.
"""
LEAST_DELTA = 0.5
"""How far the exponent gamma may take delta of the rarest class below that of the most frequent one, or
above it by the inverse, unless it starts further away. Published exponents of 0.2 break networks on data
whose class counts differ by a factor of 2,000.
"""


class SharedStrengthSpace(DesignSpace):
    """Base of spaces with a shared tau, a shared rho and a shared exponent gamma, beside deviations.

    A subclass calls `_set_strengths` and makes parameters of those that it learns, by their names.
    """

    def _set_strengths(
        self,
        tau: float,
        rho: float,
        gamma: float,
        sigma_tau: float,
        sigma_gamma: float,
        sigma_eps: float,
        sigma_rho: float | None,
        imbalance: Any,
    ) -> None:
        """Check and keep starts and priors; `imbalance` has the counts that bound gamma."""
        self.sigma_tau = positive("sigma_tau", sigma_tau)
        self.sigma_gamma = positive("sigma_gamma", sigma_gamma)
        self.sigma_eps = positive("sigma_eps", sigma_eps)
        self.start = float(finite_number("tau", tau))
        self.sigma_rho = None if sigma_rho is None else positive("sigma_rho", sigma_rho)
        self.start_rho = float(zero_to_one("rho", rho))
        self.most_rho = max(MOST_RHO, self.start_rho)
        self.rho: Tensor | float = self.start_rho
        self.start_gamma = float(finite_number("gamma", gamma))
        self.most_gamma = max(gamma_bound(imbalance), abs(self.start_gamma))
        self.gamma: Tensor | float = self.start_gamma

    def _share(self) -> Tensor | float:
        """Where rho acts; a step beyond the most it may be has no effect, and the prior takes it back."""
        return self.rho.clamp(max=self.most_rho) if isinstance(self.rho, Tensor) else self.rho

    def _exponent(self) -> Tensor | float:
        """Where gamma acts, within its bound; as for rho, a step beyond it has no effect."""
        most = self.most_gamma
        return self.gamma.clamp(-most, most) if isinstance(self.gamma, Tensor) else self.gamma

    def values(self) -> dict[str, list[Any]]:
        """Same as in `DesignSpace`."""
        values = super().values()
        for name, acting in (("rho", self._share()), ("gamma", self._exponent())):
            if isinstance(acting, Tensor):
                values[name] = acting.detach().tolist()
        return values

    def priors(self) -> dict[str, tuple[float, float]]:
        """Same as in `DesignSpace`; all deviations have one, scaled by whoever adds the penalty."""
        shared = {
            "tau": (self.start, self.sigma_tau),
            "gamma": (self.start_gamma, self.sigma_gamma),
        }
        if self.sigma_rho is not None:
            shared["rho"] = (self.start_rho, self.sigma_rho)
        names = (name for name, _ in self.named_parameters())
        return {name: shared.get(name, (0.0, self.sigma_eps)) for name in names}


def gamma_bound(counts: Any) -> float:
    """The gamma at which delta falls to `LEAST_DELTA` from the most frequent class to the rarest.

    It is at most 1, where the classes are nearly as frequent.

    Parameters
    ----------
    counts : array-like
        Training examples per class, shape ``(k,)``, above 0.
    """
    imbalance = float(np.max(counts) / np.min(counts))
    return min(1.0, -math.log(LEAST_DELTA) / math.log(imbalance)) if imbalance > 1.0 else 1.0
