"""Spaces of losses with one row per group, and with one more where a group is not known."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from autobalance._validation import InputError, finite_number, instance, positive
from autobalance.losses import LossParameters
from autobalance.spaces.base import DesignSpace, centre


class GroupSpace(DesignSpace):
    r"""One row of l, delta and w per group, with shared strengths and shrunken deviations.

    .. math:: l_{kg} = \tau_c \log \pi_k + \tau_g \log(\pi_{k|g} / \pi_k) + \epsilon_{kg}

    By default it starts at tau_c = tau_g = 1: logit adjustment within each group, l_kg = log pi_{k|g}.
    A group's main effect cancels in the softmax; it acts through w. The prior of a class within
    a group is smoothed by one example spread as the classes are overall, so that empty cells
    stay finite.

    Parameters
    ----------
    counts : array-like
        Training examples per group and class, shape ``(g, k)``.
    tau_class, tau_group : float
        Start of the shared strengths: (1, 1) is consistent where classes count alike within each
        group, (1, 0) where they do over all groups, (0, 0) where examples count alike.
    learn, sigma_tau, sigma_eps
        As for `HierarchicalSpace`.
    """

    def __init__(
        self,
        counts: Any,
        *,
        learn: Iterable[str] = ("additive",),
        tau_class: float = 1.0,
        tau_group: float = 1.0,
        sigma_tau: float = 0.5,
        sigma_eps: float = 0.5,
    ) -> None:
        super().__init__(counts, learn)
        if self.counts.ndim != 2:
            raise InputError("GroupSpace takes counts per group and class (g, k).")
        given = {"tau_class": tau_class, "tau_group": tau_group}
        self.starts = {name: float(finite_number(name, value)) for name, value in given.items()}
        self.sigma_tau = positive("sigma_tau", sigma_tau)
        self.sigma_eps = positive("sigma_eps", sigma_eps)
        shape = self.counts.shape
        if "additive" in self.learns:
            self.tau_class = nn.Parameter(torch.tensor(self.starts["tau_class"]))
            self.tau_group = nn.Parameter(torch.tensor(self.starts["tau_group"]))
            self.eps = nn.Parameter(torch.zeros(shape))
        if "multiplicative" in self.learns:
            self.log_delta = nn.Parameter(torch.zeros(shape))
        if "weight" in self.learns:
            self.log_weight = nn.Parameter(torch.zeros(shape))

    def options(self) -> dict[str, Any]:
        """Same as in `DesignSpace`."""
        deviations = {"sigma_tau": self.sigma_tau, "sigma_eps": self.sigma_eps}
        return {**super().options(), **self.starts, **deviations}

    def forward(self) -> LossParameters:
        """Same as in `DesignSpace`."""
        prior = self.counts.sum(dim=0) / self.counts.sum()
        within = (self.counts + prior) / (self.counts.sum(dim=1, keepdim=True) + 1.0)
        weight = multiplicative = None
        tau_class, tau_group = self.starts["tau_class"], self.starts["tau_group"]
        if "additive" in self.learns:
            tau_class, tau_group = self.tau_class, self.tau_group
        additive = tau_class * prior.log() + tau_group * (within / prior).log()
        if "additive" in self.learns:
            additive = additive + centre(self.eps)
        if "multiplicative" in self.learns:
            multiplicative = self.log_delta.exp()
        if "weight" in self.learns:
            weight = self._mean_one(self.log_weight)
        return LossParameters(weight, additive, multiplicative)

    def priors(self) -> dict[str, tuple[float, float]]:
        """Same as in `DesignSpace`."""
        shared = {name: (start, self.sigma_tau) for name, start in self.starts.items()}
        names = (name for name, _ in self.named_parameters())
        return {name: shared.get(name, (0.0, self.sigma_eps)) for name in names}


class WithUnknownGroup(DesignSpace):
    r"""A space whose loss has one row more, the last, for examples of group -1: not known.

    Where the space has one row per group, the further row is their mean, weighted by the groups'
    sizes, l_k = sum_g (n_g / n) l_kg; it has no free parameters of its own. `search` takes it
    where training data has unknown groups.

    Parameters
    ----------
    space : DesignSpace
        With one row per group, from counts over the known groups ``(g, k)``.
    """

    def __init__(self, space: DesignSpace) -> None:
        if instance("space", space, DesignSpace).num_groups is None:
            raise InputError("WithUnknownGroup takes a space made from counts per group (g, k).")
        super().__init__(space.counts, space.learns)
        self.inner = space

    def to_dict(self) -> dict[str, Any]:
        """The kind, and the space within."""
        return {"kind": type(self).__name__, "space": self.inner.to_dict()}

    def forward(self) -> LossParameters:
        """Same as in `DesignSpace`."""
        shares = self.counts.sum(dim=1) / self.counts.sum()
        return LossParameters(
            *(
                p if p is None or p.ndim == 1 else torch.cat([p, (shares @ p)[None]])
                for p in self.inner()
            )
        )

    def priors(self) -> dict[str, tuple[float, float]]:
        """Same as in `DesignSpace`."""
        return self.inner.priors()

    def penalty(self) -> Tensor:
        """Same as in `DesignSpace`."""
        return self.inner.penalty()

    def values(self) -> dict[str, list[Any]]:
        """Same as in `DesignSpace`."""
        return self.inner.values()
