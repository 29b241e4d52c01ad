r"""Objectives of the upper level: what the designed loss is for.

An objective aggregates conditional risks R_c, the mean loss of the examples in cell c, where a
cell is a class, a group, or a (class, group) pair. As a call it is differentiable in the raw
logits, over a surrogate for the 0-1 error; `hard` is the same aggregate of the 0-1 error itself,
for reports. Both are functions of the losses' sums per (group, class), see `Objective.value`. Cells
that a batch lacks are left out and the others' shares rescaled, so every batch gives a finite value.

The worst of a few noisy risks is mostly noise. So where an objective is not linear in the risks,
the upper level takes its derivative at risks averaged over batches and shrunk towards their mean:
see `RunningRisks`.
"""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from autobalance.checks import InputError, fraction, number, one_of, positive, whole

Over = Literal["class", "group", "class_and_group"]


# Per-example surrogates -----------------------------------------------------------------------


@dataclass(frozen=True)
class SmoothError:
    r"""Smooth 0-1 error, sigmoid(-(f_y - max_{j != y} f_j) / T), in (0, 1). The default.

    Bounded, so that a few confident mistakes on tail examples cannot rule the objective as they
    do under cross-entropy.

    Parameters
    ----------
    temperature : float or None
        T, on the scale of the logits. None takes `relative` times the batch's mean absolute
        margin |f_y - max_{j != y} f_j|, and differentiates through it: so rescaling the logits
        does not change the objective, and widening margins that are wide already does not pay.
    relative : float
        See `temperature`. Small values count only examples at the boundary, and with few of them
        the objective is noisy; large ones count all alike.
    """

    temperature: float | None = None
    relative: float = 0.7

    def __post_init__(self) -> None:
        if self.temperature is not None:
            positive("temperature", self.temperature)
        positive("relative", self.relative)

    def __call__(self, logits: Tensor, target: Tensor) -> Tensor:
        own = logits.gather(1, target[:, None]).squeeze(1)
        others = logits.scatter(1, target[:, None], -torch.inf).amax(dim=1)
        margin = own - others
        scale = self.temperature
        if scale is None:
            mean = margin.abs().mean()
            # All margins are 0 where the head is initialised at 0.
            scale = self.relative * torch.where(mean > 0, mean, 1.0)
        return torch.sigmoid(-margin / scale)


@dataclass(frozen=True)
class CrossEntropyRisk:
    """Cross-entropy of the raw logits, the paper's choice; not bounded."""

    def __call__(self, logits: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(logits, target, reduction="none")


Surrogate = SmoothError | CrossEntropyRisk


# Cells and their risks ------------------------------------------------------------------------


def group_class_sums(
    loss: Tensor,
    target: Tensor,
    groups: Tensor | None,
    num_classes: int,
    sample_weight: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Sums of the loss and of the examples' weights per group and class, each of shape ``(g, k)``.

    Without groups g = 1; with them g is one more than the largest index in the batch.
    """
    num_groups, cell = 1, target
    if groups is not None:
        num_groups = int(groups.max()) + 1 if len(groups) else 1
        cell = groups * num_classes + target
    weight = torch.ones_like(loss) if sample_weight is None else sample_weight.to(loss.dtype)
    empty = loss.new_zeros(num_groups * num_classes)
    total = empty.index_add(0, cell, loss * weight)
    mass = empty.index_add(0, cell, weight)
    return total.view(num_groups, -1), mass.view(num_groups, -1)


def cells_of(table: Tensor, over: Over) -> Tensor:
    """Sums per cell ``(..., cells)`` from those per group and class ``(..., g, k)``.

    A (class, group) pair has cell ``group * k + class``.
    """
    if over == "class":
        return table.sum(dim=-2)
    if over == "group":
        return table.sum(dim=-1)
    return table.flatten(-2)


# Objectives -----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Objective(ABC):
    """Base of all objectives.

    Parameters
    ----------
    over : {"class", "group", "class_and_group"}
        What a cell is.
    surrogate : SmoothError or CrossEntropyRisk
        The loss within a cell.
    """

    over: Over = "class"
    surrogate: Surrogate = field(default_factory=SmoothError)

    def __post_init__(self) -> None:
        one_of("over", self.over, ("class", "group", "class_and_group"))

    @property
    def importance(self) -> tuple[float, ...] | None:
        """What it makes of each class's error, beforehand; None where all classes count alike."""
        return None

    @abstractmethod
    def aggregate(self, risks: Tensor, present: Tensor) -> Tensor:
        """One number from the cells' risks ``(cells,)`` and which of them are present."""

    def aggregate_smoothly(self, risks: Tensor, present: Tensor) -> Tensor:
        """As `aggregate`, in a form fit for gradients."""
        return self.aggregate(risks, present)

    @abstractmethod
    def shares(self, present: np.ndarray) -> np.ndarray:
        """Weight omega_c of each cell in the aggregate, summing to 1 over those present."""

    @property
    def linear(self) -> bool:
        """Whether it is a mean of the risks with fixed weights."""
        return False

    def adapted(self, total: Tensor, mass: Tensor) -> Objective:
        """What the upper level goes on with, having seen these sums of the 0-1 error."""
        return self

    def value(self, total: Tensor, mass: Tensor, *, smoothly: bool = False) -> Tensor:
        """The objective from sums per group and class.

        Parameters
        ----------
        total, mass : Tensor
            Sums of the losses and of the examples' weights, each of shape ``(g, k)``.
        smoothly : bool
            Whether in a form fit for gradients.
        """
        total, mass = cells_of(total, self.over), cells_of(mass, self.over)
        risks = total / torch.where(mass > 0, mass, 1.0)
        return (self.aggregate_smoothly if smoothly else self.aggregate)(risks, mass > 0)

    def __call__(
        self,
        logits: Tensor,
        target: Tensor,
        *,
        groups: Tensor | None = None,
        sample_weight: Tensor | None = None,
    ) -> Tensor:
        """Differentiable value on raw logits ``(n, k)``, targets ``(n,)`` and groups ``(n,)``."""
        return self.value(*self.sums(logits, target, groups, sample_weight), smoothly=True)

    def sums(
        self,
        logits: Tensor,
        target: Tensor,
        groups: Tensor | None = None,
        sample_weight: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """`group_class_sums` of the surrogate."""
        self._check_groups(groups)
        logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
        loss = self.surrogate(logits, target)
        return group_class_sums(loss, target, groups, logits.shape[1], sample_weight)

    @torch.no_grad()
    def hard(
        self,
        logits: Tensor,
        target: Tensor,
        *,
        groups: Tensor | None = None,
        sample_weight: Tensor | None = None,
    ) -> float:
        """The same aggregate of the 0-1 error of ``argmax f``, in [0, 1]."""
        self._check_groups(groups)
        wrong = (logits.argmax(dim=1) != target).to(torch.float64)
        return float(
            self.value(*group_class_sums(wrong, target, groups, logits.shape[1], sample_weight))
        )

    def _check_groups(self, groups: Tensor | None) -> None:
        if self.over != "class" and groups is None:
            raise InputError(
                f"An objective over {self.over!r} needs groups=, one index per example."
            )

    def effective_size(self, counts: Any) -> float:
        """Effective number of validation examples, 1 / sum_c omega_c^2 / n_c.

        The variance of the objective on so many examples is that of one risk over this many.

        Parameters
        ----------
        counts : array-like
            Validation examples per class ``(k,)`` or per group and class ``(g, k)``.
        """
        table = np.atleast_2d(np.asarray(counts, dtype=np.float64))
        by_cell = {
            "class": table.sum(axis=0),
            "group": table.sum(axis=1),
            "class_and_group": table.reshape(-1),
        }[self.over]
        present = by_cell > 0
        omega = self.shares(present)[present]
        return float(1.0 / np.sum(omega**2 / by_cell[present]))


@dataclass(frozen=True, kw_only=True)
class BalancedError(Objective):
    """Mean of the cells' errors: over classes, the balanced error."""

    @property
    def linear(self) -> bool:
        return True

    def aggregate(self, risks: Tensor, present: Tensor) -> Tensor:
        return torch.where(present, risks, 0.0).sum() / present.sum().clamp(min=1)

    def shares(self, present: np.ndarray) -> np.ndarray:
        return present / max(1, present.sum())


@dataclass(frozen=True, kw_only=True)
class WeightedError(Objective):
    """Weighted mean of the cells' errors.

    Parameters
    ----------
    weights : tuple of float
        One non-negative weight per cell; only their ratios matter.
    """

    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        array = np.asarray(self.weights, dtype=np.float64)
        if array.ndim != 1 or not np.isfinite(array).all() or (array < 0).any() or array.sum() == 0:
            raise InputError(
                "weights must hold one non-negative number per cell, not all 0; "
                f"got {self.weights!r}."
            )

    @property
    def linear(self) -> bool:
        return True

    @property
    def importance(self) -> tuple[float, ...] | None:
        return self.weights if self.over == "class" else None

    def aggregate(self, risks: Tensor, present: Tensor) -> Tensor:
        self._check(len(risks))
        weights = torch.as_tensor(self.weights, dtype=risks.dtype, device=risks.device)
        weights = weights[: len(risks)] * present
        return (weights * risks).sum() / weights.sum().clamp(min=torch.finfo(risks.dtype).tiny)

    def shares(self, present: np.ndarray) -> np.ndarray:
        self._check(len(present))
        weights = np.asarray(self.weights)[: len(present)] * present
        return weights / max(weights.sum(), np.finfo(np.float64).tiny)

    def _check(self, cells: int) -> None:
        # A batch may lack the last groups, so over groups fewer cells than weights are in order.
        if cells > len(self.weights) or (self.over == "class" and cells < len(self.weights)):
            raise InputError(
                f"WeightedError has {len(self.weights)} weights for {cells} cells; give one per cell."
            )


@dataclass(frozen=True, kw_only=True)
class WorstError(Objective):
    """Largest of the cells' errors.

    Parameters
    ----------
    softness : float
        The gradient sees softness * log mean exp(R / softness), which lies between the mean and
        the maximum and spreads the gradient over cells that are nearly the worst; `hard` takes
        the exact maximum. Units of the risk.
    """

    softness: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        positive("softness", self.softness)

    def aggregate(self, risks: Tensor, present: Tensor) -> Tensor:
        return torch.where(present, risks, 0.0).max()

    def aggregate_smoothly(self, risks: Tensor, present: Tensor) -> Tensor:
        if not bool(present.any()):
            return risks.sum()
        scaled = risks[present] / self.softness
        return self.softness * (scaled.logsumexp(dim=0) - math.log(len(scaled)))

    def shares(self, present: np.ndarray) -> np.ndarray:
        # Any cell may be the worst. With these shares the effective size is that of a cell drawn
        # at random: the risk of one cell, not the mean of all.
        return present / np.sqrt(max(1, present.sum()))


@dataclass(frozen=True, kw_only=True)
class CVaRError(Objective):
    """Conditional value at risk: mean of the worst cells' errors.

    Parameters
    ----------
    fraction : float
        Which share of the cells is the worst, in (0, 1]; with ``fraction * cells`` not whole, the
        last of them counts in part. 1 is the balanced error.

    References
    ----------
    Rockafellar and Uryasev, "Optimization of conditional value-at-risk", 2000.
    """

    fraction: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 < number("fraction", self.fraction) <= 1.0:
            raise InputError(f"fraction must lie in (0, 1]; got {self.fraction}.")

    def aggregate(self, risks: Tensor, present: Tensor) -> Tensor:
        if not bool(present.any()):
            return risks.sum()
        worst = risks[present].sort(descending=True).values
        size = max(1.0, self.fraction * len(worst))
        places = torch.arange(len(worst), dtype=risks.dtype, device=risks.device)
        return (worst * (size - places).clamp(0.0, 1.0)).sum() / size

    def shares(self, present: np.ndarray) -> np.ndarray:
        # As for WorstError, of a random set of so many cells.
        cells = max(1, present.sum())
        return present / np.sqrt(cells * max(1.0, self.fraction * cells))


@dataclass(frozen=True, kw_only=True)
class QuantileError(Objective):
    """A quantile of the cells' errors.

    Parameters
    ----------
    q : float
        In [0, 1]: 0.5 is the median cell's error, 1 the worst. Between two cells the value is
        interpolated, as by `numpy.quantile`.
    softness : float
        The gradient spreads over cells whose risk is near the quantile, by a logistic kernel of this
        width in units of the risk; the value is the exact one.
    """

    q: float = 0.8
    softness: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 <= number("q", self.q) <= 1.0:
            raise InputError(f"q must lie in [0, 1]; got {self.q}.")
        positive("softness", self.softness)

    def aggregate(self, risks: Tensor, present: Tensor) -> Tensor:
        return torch.quantile(risks[present], self.q) if bool(present.any()) else risks.sum()

    def aggregate_smoothly(self, risks: Tensor, present: Tensor) -> Tensor:
        value = self.aggregate(risks, present).detach()
        if not bool(present.any()):
            return risks.sum()
        x = (risks.detach() - value) / self.softness
        near = F.logsigmoid(x) + F.logsigmoid(-x)  # the logistic density's logarithm
        kernel = torch.softmax(torch.where(present, near, -torch.inf), dim=0)
        return value + (kernel * (risks - risks.detach())).sum()

    def shares(self, present: np.ndarray) -> np.ndarray:
        return present / np.sqrt(max(1, present.sum()))


@dataclass(frozen=True, kw_only=True)
class ErrorDeviation(Objective):
    """Standard deviation of the cells' errors: 0 where all are alike, however high.

    For use in a `Blend`: alone it is content with a classifier that is wrong everywhere.
    """

    def aggregate(self, risks: Tensor, present: Tensor) -> Tensor:
        if not bool(present.any()):
            return risks.sum()
        variance = risks[present].var(correction=0)
        # The square root has no derivative at 0.
        some = variance > 1e-12
        return torch.where(some, torch.where(some, variance, 1.0).sqrt(), 0.0 * variance)

    def shares(self, present: np.ndarray) -> np.ndarray:
        return present / max(1, present.sum())


# Gaps between groups --------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Gap(Objective):
    """Base of objectives that compare groups; alone each is content with a constant classifier.

    So use it in a `Blend`, or under a bound: `BoundedGap`.

    Parameters
    ----------
    softness : float
        The gradient sees ``max - min`` over groups as a soft maximum and minimum of this
        temperature, in units of the risk, so that all groups near the ends share in it.
    """

    over: Over = field(default="class_and_group", init=False)
    softness: float = 0.02

    def __post_init__(self) -> None:
        super().__post_init__()
        positive("softness", self.softness)

    def aggregate(self, risks: Tensor, present: Tensor) -> Tensor:
        raise NotImplementedError("A gap is a function of the table of groups and classes.")

    @abstractmethod
    def from_rates(self, risks: Tensor, mass: Tensor, smoothly: bool) -> Tensor:
        """One number from the risks and sizes of the cells, each of shape ``(g, k)``."""

    def value(self, total: Tensor, mass: Tensor, *, smoothly: bool = False) -> Tensor:
        return self.from_rates(total / torch.where(mass > 0, mass, 1.0), mass, smoothly)

    def spread(self, rates: Tensor, present: Tensor, smoothly: bool) -> Tensor:
        """Max - min over groups ``(g, ...)``, cells that are absent left out; 0 for one alone."""
        if not smoothly:
            high = torch.where(present, rates, -torch.inf).amax(dim=0)
            low = torch.where(present, rates, torch.inf).amin(dim=0)
            return torch.where(present.any(dim=0), high - low, 0.0)
        weights = [
            torch.softmax(torch.where(present, sign * rates / self.softness, -torch.inf), dim=0)
            for sign in (1.0, -1.0)
        ]
        # A column without any cell has no softmax.
        top, bottom = (torch.where(present, w, 0.0).nan_to_num(0.0) for w in weights)
        return ((top - bottom) * rates).sum(dim=0)

    def shares(self, present: np.ndarray) -> np.ndarray:
        raise NotImplementedError("A gap is a function of the table of groups and classes.")

    def effective_size(self, counts: Any) -> float:
        """As if in each class two groups, drawn at random, were at the ends: variance 2 / g each."""
        table = np.atleast_2d(np.asarray(counts, dtype=np.float64))
        return float(1.0 / np.sum(2.0 / len(table) / table[table > 0]))


@dataclass(frozen=True, kw_only=True)
class OddsGap(Gap):
    r"""Difference of error between groups, class by class.

    .. math:: \mathrm{DEO} = \sum_k (\max_g R_{kg} - \min_g R_{kg})

    For two classes and two groups this is the paper's difference of equal opportunity (eq. 4.1),
    and twice fairlearn's ``equalized_odds_difference(agg="mean")``, also for more groups. A class
    present in one group only adds nothing.

    Parameters
    ----------
    over_classes : {"sum", "max"}
        Sum: DEO, in [0, k]. Max: equalized odds difference, in [0, 1].
    """

    over_classes: Literal["sum", "max"] = "sum"

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("over_classes", self.over_classes, ("sum", "max"))

    def from_rates(self, risks: Tensor, mass: Tensor, smoothly: bool) -> Tensor:
        gaps = self.spread(risks, mass > 0, smoothly)
        if self.over_classes == "sum":
            return gaps.sum()
        if smoothly:
            return (torch.softmax(gaps / self.softness, dim=0) * gaps).sum()
        return gaps.max()


@dataclass(frozen=True, kw_only=True)
class OpportunityGap(Gap):
    """Difference between groups of the positive class's error: equal opportunity difference.

    Parameters
    ----------
    positive : int
        Index of the positive class; -1 is the last.
    """

    positive: int = -1

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("positive", self.positive, least=-1)

    def from_rates(self, risks: Tensor, mass: Tensor, smoothly: bool) -> Tensor:
        if self.positive >= risks.shape[1]:
            raise InputError(
                f"positive must be a class, 0 to {risks.shape[1] - 1}; got {self.positive}."
            )
        return self.spread(risks[:, self.positive], mass[:, self.positive] > 0, smoothly)


@dataclass(frozen=True, kw_only=True)
class ParityGap(Gap):
    """Difference between groups of the share predicted positive: demographic parity difference.

    For two classes, the second being positive.
    """

    def from_rates(self, risks: Tensor, mass: Tensor, smoothly: bool) -> Tensor:
        if risks.shape[1] != 2:
            raise InputError(
                f"Demographic parity is for two classes; there are {risks.shape[1]}. For more take "
                "OddsGap."
            )
        sizes = mass.sum(dim=1)
        chosen = mass[:, 1] * (1.0 - risks[:, 1]) + mass[:, 0] * risks[:, 0]
        return self.spread(chosen / torch.where(sizes > 0, sizes, 1.0), sizes > 0, smoothly)


@dataclass(frozen=True, kw_only=True)
class Blend(Objective):
    """Weighted sum of objectives, sum_i weight_i L_i, over the surrogate of the blend.

    Parameters
    ----------
    parts : tuple of (float, Objective)
        Positive weights and objectives. Parts' own surrogates are not used.

    Examples
    --------
    >>> Blend.of(0.5, "balanced_error", "worst_class_error").parts[0][0]
    0.5
    """

    over: Over = field(default="class", init=False)
    parts: tuple[tuple[float, Objective], ...]

    def __post_init__(self) -> None:
        if not self.parts:
            raise InputError("A blend needs at least one part: (weight, objective).")
        for weight, part in self.parts:
            positive("the weight of a part", weight)
            if not isinstance(part, Objective):
                raise InputError(f"A blend's parts are objectives; got {type(part).__name__}.")
            if isinstance(part, BoundedGap):
                raise InputError(
                    "A bound holds for a whole objective, not for a part of a blend. Put the blend under "
                    'the bound: "0.5 * balanced_error + 0.5 * cvar_error where deo <= 0.05".'
                )
        cells = {part.over for _, part in self.parts}
        over = cells.pop() if len(cells) == 1 else "class_and_group"
        object.__setattr__(self, "over", over)

    @classmethod
    def of(cls, mix: float, first: str | Objective, second: str | Objective) -> Blend:
        """(1 - mix) first + mix second, mix in (0, 1): the paper's blend of eq. 2.3."""
        mix = fraction("mix", mix)
        return cls(parts=((1.0 - mix, as_objective(first)), (mix, as_objective(second))))

    @property
    def linear(self) -> bool:
        return all(part.linear for _, part in self.parts)

    @property
    def importance(self) -> tuple[float, ...] | None:
        found = {part.importance for _, part in self.parts}
        return found.pop() if len(found) == 1 else None

    def value(self, total: Tensor, mass: Tensor, *, smoothly: bool = False) -> Tensor:
        values = [w * part.value(total, mass, smoothly=smoothly) for w, part in self.parts]
        return torch.stack(values).sum()

    def aggregate(self, risks: Tensor, present: Tensor) -> Tensor:
        """Where all parts are over the same cells."""
        return torch.stack([w * part.aggregate(risks, present) for w, part in self.parts]).sum()

    def shares(self, present: np.ndarray) -> np.ndarray:
        """Where all parts are over the same cells."""
        total = sum(weight for weight, _ in self.parts)
        return sum(
            (w / total * part.shares(present) for w, part in self.parts), np.zeros(len(present))
        )

    def effective_size(self, counts: Any) -> float:
        """As if the parts' noises were the same noise: the deviations add up."""
        total = sum(weight for weight, _ in self.parts)
        deviation = sum(w / total / part.effective_size(counts) ** 0.5 for w, part in self.parts)
        return float(deviation**-2)


@dataclass(frozen=True, kw_only=True)
class BoundedGap(Objective):
    r"""An objective under a bound on another, by the method of multipliers: min L s.t. G <= bound.

    .. math:: L + \frac{1}{2 \rho} (\max(0, \lambda + \rho (G - b))^2 - \lambda^2)

    With every upper step lambda moves by `rate` times the excess G - b of the 0-1 errors. The hard
    value is L where the bound holds, and L plus the excess over it elsewhere, so that candidates
    compare.

    Parameters
    ----------
    main, gap : Objective
        L and G.
    bound : float
        b, in the units of G.
    multiplier : float
        lambda, at least 0.
    rho : float
        Above 0: how hard an excess is punished at once.
    rate : float
        Above 0: how fast the multiplier follows the excess.

    References
    ----------
    Hestenes (1969), Powell (1969); Bertsekas, "Constrained Optimization and Lagrange Multiplier
    Methods", 1982, section 3.1.
    """

    over: Over = field(default="class_and_group", init=False)
    main: Objective = field(default_factory=lambda: BalancedError(over="class_and_group"))
    gap: Objective = field(default_factory=OddsGap)
    bound: float
    multiplier: float = 0.0
    rho: float = 2.0
    rate: float = 0.2

    def __post_init__(self) -> None:
        for name in ("main", "gap"):
            part = getattr(self, name)
            if not isinstance(part, Objective) or isinstance(part, BoundedGap):
                raise InputError(
                    f"{name} must be an objective without a bound of its own; got {part!r}."
                )
        positive("rho", self.rho)
        positive("rate", self.rate)
        if not 0.0 <= number("bound", self.bound) < math.inf:
            raise InputError(f"bound must be a finite number of at least 0; got {self.bound}.")
        if not 0.0 <= number("multiplier", self.multiplier) < math.inf:
            raise InputError(f"multiplier must not be negative; got {self.multiplier}.")

    def value(self, total: Tensor, mass: Tensor, *, smoothly: bool = False) -> Tensor:
        main = self.main.value(total, mass, smoothly=smoothly)
        excess = self.gap.value(total, mass, smoothly=smoothly) - self.bound
        if not smoothly:
            return main + excess.clamp(min=0.0)
        force = (self.multiplier + self.rho * excess).clamp(min=0.0)
        return main + (force.square() - self.multiplier**2) / (2.0 * self.rho)

    def adapted(self, total: Tensor, mass: Tensor) -> BoundedGap:
        excess = float(self.gap.value(total, mass)) - self.bound
        return replace(self, multiplier=max(0.0, self.multiplier + self.rate * excess))

    def aggregate(self, risks: Tensor, present: Tensor) -> Tensor:
        raise NotImplementedError("A bounded objective is a function of groups and classes.")

    def shares(self, present: np.ndarray) -> np.ndarray:
        return self.main.shares(present)

    def effective_size(self, counts: Any) -> float:
        return Blend(parts=((1.0, self.main), (1.0, self.gap))).effective_size(counts)


class RunningRisks:
    r"""An objective on batches too small to tell which cell is the worst.

    Of an objective F that is not linear in the cells' risks it keeps running sums over the last
    batches, shrinks the risks R_c that they give towards their mean,

    .. math:: \tilde R_c = (n_c R_c + s \bar R) / (n_c + s),

    and returns F at these, with the gradient :math:`\sum_c (\partial F / \partial R_c) \nabla R_c`
    of the batch: stochastic compositional gradients (Wang, Fang and Liu, 2017). n_c is the number
    of validation examples of the (group, class). A linear objective is left as it is.

    Parameters
    ----------
    objective : Objective
        F.
    counts : array-like, optional
        n_c, shape ``(k,)`` or ``(g, k)``. By default those of each batch.
    decay : float
        By how much older batches' sums shrink with each new one, in [0, 1).
    shrinkage : float
        s, in examples, above 0.
    """

    def __init__(
        self,
        objective: Objective,
        counts: Any = None,
        *,
        decay: float = 0.8,
        shrinkage: float = 2.0,
    ) -> None:
        self.objective = objective
        self.counts = None if counts is None else np.atleast_2d(np.asarray(counts, dtype=float))
        if not 0.0 <= number("decay", decay) < 1.0:
            raise InputError(f"decay must lie in [0, 1); got {decay}.")
        self.shrinkage = positive("shrinkage", shrinkage)
        self._smooth = _RunningSums(decay)
        self._hard = _RunningSums(decay)

    def __call__(
        self,
        logits: Tensor,
        target: Tensor,
        *,
        groups: Tensor | None = None,
        sample_weight: Tensor | None = None,
    ) -> Tensor:
        """Value and gradient on a batch, which joins the running sums."""
        total, mass = self.objective.sums(logits, target, groups, sample_weight)
        if self.objective.linear:
            return self.objective.value(total, mass, smoothly=True)
        wrong = (logits.argmax(dim=1) != target).to(total.dtype)
        hard = group_class_sums(wrong, target, groups, logits.shape[1], sample_weight)
        now, seen = self._smooth.risks_with(total.detach(), mass)
        hard_now, _ = self._hard.risks_with(*hard)
        sizes = self._sizes(seen, groups is not None)
        now.requires_grad_()
        with torch.enable_grad():
            value = self.objective.value(self._shrunk(now, sizes), sizes, smoothly=True)
            (slopes,) = torch.autograd.grad(value, now)
        with torch.no_grad():
            self.objective = self.objective.adapted(self._shrunk(hard_now, sizes), sizes)
        risks = total / torch.where(mass > 0, mass, 1.0)
        return value.detach() + (slopes[: len(total)] * (risks - risks.detach())).sum()

    def hard(self, *args: Any, **options: Any) -> float:
        """As `Objective.hard`, of the batch alone."""
        return self.objective.hard(*args, **options)

    def state_dict(self) -> dict[str, Any]:
        """Running sums, and what of the objective has adapted."""
        return {
            "smooth": self._smooth.state_dict(),
            "hard": self._hard.state_dict(),
            "multiplier": getattr(self.objective, "multiplier", None),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self._smooth.load_state_dict(state["smooth"])
        self._hard.load_state_dict(state["hard"])
        if isinstance(self.objective, BoundedGap):
            self.objective = replace(self.objective, multiplier=state["multiplier"])

    def _shrunk(self, risks: Tensor, sizes: Tensor) -> Tensor:
        """Sums of so many examples as there are in validation, their risks shrunk."""
        mean = risks[sizes > 0].mean()
        return sizes * (sizes * risks + self.shrinkage * mean) / (sizes + self.shrinkage)

    def _sizes(self, seen: Tensor, grouped: bool) -> Tensor:
        """Validation examples per group and class, 0 where none was seen."""
        mass = self._smooth.mass
        assert mass is not None
        if self.counts is None or (grouped and len(self.counts) == 1):
            return mass  # counts per class say nothing of groups
        table = torch.as_tensor(self.counts, dtype=mass.dtype, device=mass.device)
        if not grouped:
            table = table.sum(dim=0, keepdim=True)
        return torch.where(seen, _rows(table, len(mass))[: len(mass)], 0.0)


class _RunningSums:
    """Sums per group and class, in which older batches fade."""

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.total: Tensor | None = None
        self.mass: Tensor | None = None

    def risks_with(self, total: Tensor, mass: Tensor) -> tuple[Tensor, Tensor]:
        """Add a batch; the risks ``(g, k)`` now, and which cells were ever seen."""
        if self.total is not None and self.mass is not None:
            rows = max(len(total), len(self.total))  # a batch may lack the last groups
            total = _rows(total, rows) + self.decay * _rows(self.total.to(total), rows)
            mass = _rows(mass, rows) + self.decay * _rows(self.mass.to(mass), rows)
        self.total, self.mass = total, mass
        seen = mass > 0
        return total / torch.where(seen, mass, 1.0), seen

    def state_dict(self) -> dict[str, Any]:
        return {"total": self.total, "mass": self.mass}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.total, self.mass = state["total"], state["mass"]


def _rows(table: Tensor, rows: int) -> Tensor:
    """With rows of zeros added up to so many."""
    return F.pad(table, (0, 0, 0, max(0, rows - len(table))))


# The error of a group's examples is mostly that of its frequent classes. A wide surrogate, nearly
# linear in the margin, pays for widening their margins even at the price of rare classes' errors.
SHARP = SmoothError(relative=0.2)

NAMED = {
    "balanced_error": BalancedError(),
    "worst_class_error": WorstError(),
    "cvar_error": CVaRError(),
    "quantile_error": QuantileError(),
    "balanced_error_and_deviation": Blend(parts=((0.5, BalancedError()), (0.5, ErrorDeviation()))),
    "group_balanced_error": BalancedError(over="class_and_group"),
    "worst_group_error": WorstError(over="group", surrogate=SHARP),
    "worst_class_and_group_error": WorstError(over="class_and_group"),
}


GAPS = {
    "deo": OddsGap(),
    "equalized_odds_difference": OddsGap(over_classes="max"),
    "equal_opportunity_difference": OpportunityGap(),
    "demographic_parity_difference": ParityGap(),
}
"""By name too, but only as parts of a blend or under a bound."""

_BOUND = re.compile(r"\s*(?P<main>.+?)\s+where\s+(?P<gap>\w+)\s*<=\s*(?P<bound>\S+)\s*")
_PARAMETER = re.compile(r"(?P<name>cvar_error|quantile_error)\((?P<value>[\d.]+)\)")


def as_objective(objective: str | Objective) -> Objective:
    """An objective by its name, or as it is.

    Beside the names of `NAMED`: "cvar_error(0.1)" and "quantile_error(0.9)" with a parameter; a
    blend such as "0.7 * balanced_error + 0.3 * deo" of these and of `GAPS`; and a bound such as
    "balanced_error where deo <= 0.05", all in the units of the objectives, from 0.

    Raises
    ------
    InputError
        If the name is unknown; the message lists the known ones. If it is a gap between groups
        alone: a constant classifier has none.
    """
    if not isinstance(objective, (str, Objective)):
        raise InputError(
            f"objective must be a name or an Objective; got {type(objective).__name__}."
        )
    found = _parsed(objective) if isinstance(objective, str) else objective
    if _is_gap(found):
        raise InputError(
            f"{objective!r} alone is won by a classifier that predicts one class for everyone. Blend "
            'it, "0.7 * balanced_error + 0.3 * deo", or bound it, "balanced_error where deo <= 0.05".'
        )
    return found


def _is_gap(objective: Objective) -> bool:
    """Whether a constant classifier is the best that there is for it."""
    if isinstance(objective, Blend):
        return all(_is_gap(part) for _, part in objective.parts)
    return isinstance(objective, Gap) or (
        isinstance(objective, BoundedGap) and _is_gap(objective.main)
    )


def _parsed(text: str) -> Objective:
    bounded = _BOUND.fullmatch(text)
    if bounded:
        gap = GAPS[one_of("the gap after where", bounded["gap"], GAPS)]
        try:
            bound = float(bounded["bound"])
        except ValueError:
            raise InputError(
                f"A bound is written as: objective where gap <= number; got {text!r}."
            ) from None
        return BoundedGap(main=as_objective(bounded["main"]), gap=gap, bound=bound)
    if "*" in text:
        parts = []
        for term in text.split("+"):
            weight, _, name = term.partition("*")
            try:
                parts.append((float(weight), _parsed(name.strip())))
            except ValueError as error:
                if isinstance(error, InputError):
                    raise
                raise InputError(
                    f"A blend is written as weight * name + weight * name; got {text!r}."
                ) from None
        return Blend(parts=tuple(parts))
    with_value = _PARAMETER.fullmatch(text)
    if with_value:
        value = float(with_value["value"])
        if with_value["name"] == "cvar_error":
            return CVaRError(fraction=value)
        return QuantileError(q=value)
    known = NAMED | GAPS
    return known[one_of("objective", text, known)]
