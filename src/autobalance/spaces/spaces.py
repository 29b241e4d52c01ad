r"""Design spaces: from few free parameters to the loss's w, l and delta.

A space is a module whose parameters are what the upper level learns. Calling it gives the
`LossParameters` at their present values; `penalty` is the negative logarithm of the prior
around the consistent start (up to a constant), which the upper level adds to its objective,
divided by the effective number of validation examples. Every space starts at a loss that is
Fisher consistent for the balanced error, unless told otherwise.

Two gauges are fixed, because the loss does not see them or should not: within a row the free
deviations of l sum to 0 (softmax ignores a common offset), and w has mean 1 over the training
examples (or it would learn the learning rate).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from autobalance._validation import (
    InputError,
    array_of_numbers,
    class_counts,
    finite_number,
    instance,
    positive,
    shown,
    whole,
    zero_to_one,
)
from autobalance.losses import LossParameters
from autobalance.records import recorded_kind

PARTS = ("weight", "additive", "multiplicative")


def _parts(learn: Iterable[str]) -> tuple[str, ...]:
    chosen = (
        tuple(learn) if isinstance(learn, Iterable) and not isinstance(learn, str) else (learn,)
    )
    unknown = [part for part in chosen if part not in PARTS]
    if unknown or not chosen:
        raise InputError(f"learn must name some of {', '.join(PARTS)}; got {shown(list(chosen))}.")
    return tuple(part for part in PARTS if part in chosen)


def _centred(rows: Tensor) -> Tensor:
    return rows - rows.mean(dim=-1, keepdim=True)


class DesignSpace(nn.Module, ABC):
    """Base of all spaces.

    Attributes
    ----------
    learns : tuple of str
        Which of "weight", "additive" and "multiplicative" it learns.
    counts : Tensor
        Training examples per class ``(k,)``, or per group and class ``(g, k)``.
    """

    counts: Tensor

    def __init__(self, counts: Any, learn: Iterable[str]) -> None:
        super().__init__()
        self.learns = _parts(learn)
        table = torch.tensor(class_counts(counts, name="counts"), dtype=torch.get_default_dtype())
        self.register_buffer("counts", table)

    @property
    def num_classes(self) -> int:
        return self.counts.shape[-1]

    @property
    def num_groups(self) -> int | None:
        return None if self.counts.ndim == 1 else self.counts.shape[0]

    @abstractmethod
    def forward(self) -> LossParameters:
        """The loss's parameters at the present free parameters, differentiable in them."""

    def priors(self) -> dict[str, tuple[float, float]]:
        """Mean and standard deviation of each free parameter's Gaussian prior, by its name.

        A parameter that is not there is free; by default all are.
        """
        return {}

    def penalty(self) -> Tensor:
        """Negative log prior of the free parameters, a scalar, 0 at the start."""
        total = self.counts.new_zeros(())
        priors = self.priors()
        for name, p in self.named_parameters():
            if name in priors:
                mean, deviation = priors[name]
                total = total + (p - mean).square().sum() / (2 * deviation**2)
        return total

    def values(self) -> dict[str, list[Any]]:
        """The free parameters by name, for records."""
        return {name: p.detach().tolist() for name, p in self.named_parameters()}

    def options(self) -> dict[str, Any]:
        """What the space was made with beside the counts, for `to_dict`."""
        return {"learn": list(self.learns)}

    def to_dict(self) -> dict[str, Any]:
        """The kind, counts, options and free parameters, of numbers, strings, lists and dicts alone."""
        kind, counts = type(self).__name__, self.counts.tolist()
        return {"kind": kind, "counts": counts, **self.options(), "values": self.values()}

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> DesignSpace:
        """Inverse of `to_dict`, called on `DesignSpace` or the kind expected.

        Raises
        ------
        InputError
            If the record has an unknown kind, option or free parameter.
        """
        kind = recorded_kind(cls, record)
        options = {key: value for key, value in record.items() if key not in ("kind", "values")}
        if isinstance(options.get("space"), dict):
            options["space"] = DesignSpace.from_dict(options["space"])
        values = record.get("values", {})
        try:
            space = kind(**options)
            with torch.no_grad():
                for name, value in values.items():
                    space.get_parameter(name).copy_(torch.tensor(value, dtype=torch.float64))
        except InputError:
            raise
        except (AttributeError, RuntimeError, TypeError, ValueError) as error:
            raise InputError(f"This record of {record['kind']} is altered: {error}.") from None
        return space

    def _mean_one(self, log_weight: Tensor) -> Tensor:
        """exp(log_weight) rescaled to mean 1 over the training examples; at least exp(-80), above 0."""
        log_shares = (self.counts / self.counts.sum()).log()
        mean = torch.logsumexp((log_weight + log_shares).flatten(), dim=0)
        return (log_weight - mean).clamp(min=-80.0).exp()


TRUSTED_SIZE = 50.0


def prior_strength(effective_size: float) -> float:
    """What the prior counts for beside the objective: 1 / effective_size + 1 / TRUSTED_SIZE.

    The first part stands for the noise of the validation examples, see
    `Objective.effective_size`; the second for errors that more of them do not cure: the
    surrogate's, and the hypergradient's in a training that has not converged.
    """
    return 1.0 / effective_size + 1.0 / TRUSTED_SIZE


SpaceFactory = Callable[[np.ndarray], DesignSpace]
"""From training counts, ``(k,)`` or ``(g, k)``, to a space."""

MOST_RHO = 0.5
"""A searched rho goes no further, unless it starts there. On the datasets that defaults are developed on
more gains nothing, and a training far from its end asked for 0.68, which cost 2 points:
`docs/experiments.md`, "Weights and adjustments at once"."""


class HierarchicalSpace(DesignSpace):
    r"""Shared strengths plus shrunken deviations per class. The default.

    .. math::
        u_k = \tau \log \pi_k - \log \omega_k + \epsilon_k, \qquad
        l_k = (1 - \rho) u_k, \qquad
        \log w_k = -\rho u_k + \epsilon''_k, \qquad
        \log \delta_k = \gamma \log(n_k / n_{max}) + \epsilon'_k

    u is how much each class's odds are corrected, rho the share of it that the weights carry: 0 is
    logit adjustment (LA), 1 class weights; searched, it ends at most at 0.5 (or its start, if that is
    more) and may fall below 0. It starts at tau = 1, gamma = 0 and no deviations: with omega = 1 that
    is consistent for the balanced error whatever rho is (Menon et al., 2021, theorem 1 with
    delta_k = pi_k^(1 - rho)), and else for the error weighted by omega. With a ``(g, k)`` table of
    counts see `GroupSpace`.

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
    importance : array-like, optional
        omega_k, how much the objective makes of each class's error, shape ``(k,)``, not negative;
        only ratios matter. None: all alike.
    sigma_tau, sigma_eps : float
        Standard deviations of the priors on the shared strengths (tau, gamma) and on each
        deviation, in the units of log pi (nats) for l and of log delta for delta.
    sigma_rho : float or None
        Standard deviation of the prior on rho; None holds rho where it starts.
    deviations : bool
        False learns the shared strengths alone; w has none.
    """

    offset: Tensor

    def __init__(
        self,
        counts: Any,
        *,
        learn: Iterable[str] = ("additive",),
        tau: float = 1.0,
        rho: float = 0.2,
        importance: Any = None,
        sigma_tau: float = 0.5,
        sigma_eps: float = 0.5,
        sigma_rho: float | None = 1.0,
        deviations: bool = True,
    ) -> None:
        super().__init__(counts, learn)
        if self.counts.ndim != 1:
            raise InputError(
                "HierarchicalSpace takes counts per class (k,); for groups use GroupSpace."
            )
        self.sigma_tau = positive("sigma_tau", sigma_tau)
        self.sigma_eps = positive("sigma_eps", sigma_eps)
        self.start = float(finite_number("tau", tau))
        self.sigma_rho = None if sigma_rho is None else positive("sigma_rho", sigma_rho)
        self.start_rho = float(zero_to_one("rho", rho))
        self.most_rho = max(MOST_RHO, self.start_rho)
        self.rho: Tensor | float = self.start_rho
        self.deviations = deviations
        if not deviations and "weight" in self.learns:
            raise InputError(
                "w has no shared strength: without deviations, leave weight out of learn."
            )
        k = self.num_classes
        self.register_buffer("offset", _log_importance(importance, k))
        self._importance = None if importance is None else np.asarray(importance).tolist()
        if "additive" in self.learns:
            self.tau = nn.Parameter(torch.tensor(float(tau)))
            if self.sigma_rho is not None:
                self.rho = nn.Parameter(torch.tensor(self.start_rho))
        self._weighs = "weight" in self.learns or isinstance(self.rho, Tensor) or self.rho > 0.0
        if "multiplicative" in self.learns:
            self.gamma = nn.Parameter(torch.zeros(()))
        if "additive" in self.learns and deviations:
            self.eps = nn.Parameter(torch.zeros(k))
        if "multiplicative" in self.learns and deviations:
            self.log_delta = nn.Parameter(torch.zeros(k))
        if "weight" in self.learns:
            self.log_weight = nn.Parameter(torch.zeros(k))

    def extra_repr(self) -> str:
        return (
            f"learn={self.learns}, tau={self.start:g}, rho={self.start_rho:g}, "
            f"sigma_tau={self.sigma_tau:g}, sigma_eps={self.sigma_eps:g}, "
            f"sigma_rho={self.sigma_rho}, deviations={self.deviations}"
        )

    def options(self) -> dict[str, Any]:
        """Same as in `DesignSpace`."""
        given = {"tau": self.start, "rho": self.start_rho, "importance": self._importance}
        names = ("sigma_tau", "sigma_eps", "sigma_rho", "deviations")
        return {**super().options(), **given, **{name: getattr(self, name) for name in names}}

    def forward(self) -> LossParameters:
        log_prior = (self.counts / self.counts.sum()).log()
        weight = multiplicative = None
        tau = self.tau if "additive" in self.learns else self.start
        correction = tau * log_prior - self.offset
        if "additive" in self.learns and self.deviations:
            correction = correction + _centred(self.eps)
        if "multiplicative" in self.learns:
            shared = self.gamma * (self.counts / self.counts.max()).log()
            multiplicative = (
                shared + _centred(self.log_delta) if self.deviations else shared
            ).exp()
        rho = self._share()
        if self._weighs:
            log_weight = -rho * correction
            if "weight" in self.learns:
                log_weight = log_weight + _centred(self.log_weight)
            weight = self._mean_one(log_weight)
        return LossParameters(weight, (1.0 - rho) * correction, multiplicative)

    def _share(self) -> Tensor | float:
        """Where rho acts; a step beyond the most it may be has no effect, and the prior takes it back."""
        return self.rho.clamp(max=self.most_rho) if isinstance(self.rho, Tensor) else self.rho

    def values(self) -> dict[str, list[Any]]:
        found = super().values()
        share = self._share()
        if isinstance(share, Tensor):
            found["rho"] = share.detach().tolist()
        return found

    def priors(self) -> dict[str, tuple[float, float]]:
        shared = {"tau": (self.start, self.sigma_tau), "gamma": (0.0, self.sigma_tau)}
        if self.sigma_rho is not None:
            shared["rho"] = (self.start_rho, self.sigma_rho)
        names = (name for name, _ in self.named_parameters())
        return {name: shared.get(name, (0.0, self.sigma_eps)) for name in names}


def _log_importance(importance: Any, classes: int) -> Tensor:
    """Log omega_k, its largest 0; a class of no importance counts as one of 1e-3."""
    if importance is None:
        return torch.zeros(classes)
    omega = torch.as_tensor(
        array_of_numbers("importance", importance), dtype=torch.get_default_dtype()
    )
    if (
        omega.shape != (classes,)
        or not bool(((omega >= 0) & omega.isfinite()).all())
        or not float(omega.max()) > 0
    ):
        raise InputError(
            f"importance must hold one non-negative number per class ({classes}), not all 0; "
            f"got shape {tuple(omega.shape)}."
        )
    return (omega / omega.max()).clamp(min=1e-3).log()


class ClassSpace(DesignSpace):
    """One free l, delta and w for every class (and group), as in the paper (section 2).

    Parameters
    ----------
    counts : array-like
        Training examples per class, shape ``(k,)``, or per group and class, shape ``(g, k)``.
    learn : iterable of str
        Which of "weight", "additive" and "multiplicative" to learn.
    tau : float
        Start of l at ``tau log pi``: 1 is logit adjustment, 0 the paper's zero start.
    sigmoid : bool
        delta = sigmoid(Delta) with Delta starting at 1, as in the paper's code, so delta starts
        at 0.73. Otherwise delta = exp(log_delta), starting at 1.
    sigma : float or None
        Standard deviation of a Gaussian prior around the start; None for none (the paper).
    """

    start: Tensor

    def __init__(
        self,
        counts: Any,
        *,
        learn: Iterable[str] = ("additive", "multiplicative"),
        tau: float = 1.0,
        sigmoid: bool = False,
        sigma: float | None = None,
    ) -> None:
        super().__init__(counts, learn)
        self.sigmoid = sigmoid
        self.sigma = None if sigma is None else positive("sigma", sigma)
        self.tau = float(finite_number("tau", tau))
        self.register_buffer("start", self.tau * self._log_prior())
        free = self._free_shape()
        if "additive" in self.learns:
            self.additive = nn.Parameter(torch.zeros(free))
        if "multiplicative" in self.learns:
            self.raw_delta = nn.Parameter(torch.full(free, 1.0 if sigmoid else 0.0))
        if "weight" in self.learns:
            self.log_weight = nn.Parameter(torch.zeros(free))

    def extra_repr(self) -> str:
        return (
            f"learn={self.learns}, tau={self.tau:g}, sigmoid={self.sigmoid}, sigma={self.sigma}, "
            f"free={tuple(self._free_shape())}"
        )

    def _log_prior(self) -> Tensor:
        return (self.counts / self.counts.sum(dim=-1, keepdim=True)).clamp(min=1e-12).log()

    def _free_shape(self) -> tuple[int, ...]:
        return tuple(self.counts.shape)

    def _expand(self, free: Tensor) -> Tensor:
        """From free parameters to one number per class (per group)."""
        return free

    def options(self) -> dict[str, Any]:
        """Same as in `DesignSpace`."""
        names = ("tau", "sigmoid", "sigma")
        return {**super().options(), **{name: getattr(self, name) for name in names}}

    def forward(self) -> LossParameters:
        weight = multiplicative = None
        additive = self.start
        if "additive" in self.learns:
            additive = self.start + _centred(self._expand(self.additive))
        if "multiplicative" in self.learns:
            raw = self._expand(self.raw_delta)
            multiplicative = torch.sigmoid(raw) if self.sigmoid else raw.exp()
        if "weight" in self.learns:
            weight = self._mean_one(self._expand(self.log_weight))
        return LossParameters(weight, additive, multiplicative)

    def priors(self) -> dict[str, tuple[float, float]]:
        if self.sigma is None:
            return {}
        starts = {"raw_delta": 1.0} if self.sigmoid else {}
        return {n: (starts.get(n, 0.0), self.sigma) for n, _ in self.named_parameters()}


class ClusterSpace(ClassSpace):
    """Classes of similar frequency share their free parameters (paper, section 3).

    Parameters
    ----------
    counts : array-like
        Training examples per class, shape ``(k,)``.
    size : int
        Classes per cluster; the paper takes 1, 10, 20 and 40 for 10, 100, 1,000 and 8,142 classes.
    **options
        As for `ClassSpace`.
    """

    cluster: Tensor

    def __init__(self, counts: Any, *, size: int, **options: Any) -> None:
        table = class_counts(counts, name="counts")
        if table.ndim != 1:
            raise InputError("ClusterSpace takes counts per class (k,).")
        whole("size", size, least=1)
        order = np.argsort(-table, kind="stable")
        cluster = np.empty(len(table), dtype=np.int64)
        cluster[order] = np.arange(len(table)) // size
        self._clusters = int(cluster.max()) + 1
        super().__init__(counts, **options)
        self.size = int(size)
        self.register_buffer("cluster", torch.from_numpy(cluster))

    def options(self) -> dict[str, Any]:
        """Same as in `DesignSpace`."""
        return {**super().options(), "size": self.size}

    def _free_shape(self) -> tuple[int, ...]:
        return (self._clusters,)

    def _expand(self, free: Tensor) -> Tensor:
        return free[self.cluster]


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

    def extra_repr(self) -> str:
        starts = ", ".join(f"{name}={value:g}" for name, value in self.starts.items())
        return (
            f"learn={self.learns}, {starts}, sigma_tau={self.sigma_tau:g}, "
            f"sigma_eps={self.sigma_eps:g}"
        )

    def options(self) -> dict[str, Any]:
        """Same as in `DesignSpace`."""
        deviations = {"sigma_tau": self.sigma_tau, "sigma_eps": self.sigma_eps}
        return {**super().options(), **self.starts, **deviations}

    def forward(self) -> LossParameters:
        prior = self.counts.sum(dim=0) / self.counts.sum()
        within = (self.counts + prior) / (self.counts.sum(dim=1, keepdim=True) + 1.0)
        weight = multiplicative = None
        tau_class, tau_group = self.starts["tau_class"], self.starts["tau_group"]
        if "additive" in self.learns:
            tau_class, tau_group = self.tau_class, self.tau_group
        additive = tau_class * prior.log() + tau_group * (within / prior).log()
        if "additive" in self.learns:
            additive = additive + _centred(self.eps)
        if "multiplicative" in self.learns:
            multiplicative = self.log_delta.exp()
        if "weight" in self.learns:
            weight = self._mean_one(self.log_weight)
        return LossParameters(weight, additive, multiplicative)

    def priors(self) -> dict[str, tuple[float, float]]:
        return {
            name: (
                self.starts.get(name, 0.0),
                self.sigma_tau if name in self.starts else self.sigma_eps,
            )
            for name, _ in self.named_parameters()
        }


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
        shares = self.counts.sum(dim=1) / self.counts.sum()
        return LossParameters(
            *(
                p if p is None or p.ndim == 1 else torch.cat([p, (shares @ p)[None]])
                for p in self.inner()
            )
        )

    def priors(self) -> dict[str, tuple[float, float]]:
        return self.inner.priors()

    def penalty(self) -> Tensor:
        return self.inner.penalty()

    def values(self) -> dict[str, list[Any]]:
        return self.inner.values()


def default_space(
    counts: Sequence[float] | np.ndarray,
    over: str = "class",
    importance: Any = None,
    *,
    linear: bool = True,
) -> DesignSpace:
    """The space that starts at a loss consistent for the mean error over these cells.

    Parameters
    ----------
    counts : array-like
        Training examples per class ``(k,)``, or per group and class ``(g, k)``.
    over : {"class", "group", "class_and_group"}
        The objective's cells. The error of a group is that of its examples, so over groups the
        start is cross-entropy.
    importance : array-like, optional
        As for `HierarchicalSpace`.
    linear : bool
        Whether the objective is that mean, or one with fixed weights. The best loss for another function of
        the classes' errors, such as the largest, may be nats away from the start, so that the prior on
        each class's deviation is four times as wide; over groups that was measured not to help.
    """
    if np.ndim(counts) == 1:
        tau = 0.0 if over == "group" else 1.0
        sigma = 0.5 if linear or over != "class" else 2.0
        return HierarchicalSpace(counts, tau=tau, importance=importance, sigma_eps=sigma)
    tau_class, tau_group = {"class": (1.0, 0.0), "group": (0.0, 0.0)}.get(over, (1.0, 1.0))
    return GroupSpace(counts, tau_class=tau_class, tau_group=tau_group)


class Goal(Protocol):
    """What of an `Objective` decides on the space by default."""

    @property
    def over(self) -> str: ...

    @property
    def importance(self) -> Any: ...

    @property
    def linear(self) -> bool: ...


def build_space(factory: SpaceFactory | None, counts: np.ndarray, goal: Goal) -> DesignSpace:
    """What a user's factory makes of the counts, or without one the `default_space`.

    Raises
    ------
    InputError
        If the factory returns something else.
    """
    if factory is None:
        return default_space(counts, goal.over, goal.importance, linear=goal.linear)
    if not callable(factory):
        raise InputError(
            "space must be a function from training counts to a DesignSpace; got "
            f"{type(factory).__name__}."
        )
    space = factory(counts)
    if not isinstance(space, DesignSpace):
        raise InputError(f"space must return a DesignSpace; got {type(space).__name__}.")
    return space
