r"""Objectives of the upper level: what the designed loss is for.

An objective aggregates conditional risks R_c, the mean loss of the examples in cell c, where a
cell is a class, a group, or a (class, group) pair. As a call it is differentiable in the raw
logits, over a surrogate for the 0-1 error; `hard` is the same aggregate of the 0-1 error itself,
for reports. Cells that a batch lacks are left out and the others' shares rescaled, so every
batch gives a finite value.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from autobalance.checks import InputError, one_of, positive

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
        margin |f_y - max_{j != y} f_j|, held fixed under differentiation. Small T counts only
        examples at the boundary, and with few of them the objective is noisy; large T counts all
        alike, and the objective is biased, the more so where a cell mixes frequent and rare classes.
    relative : float
        See `temperature`.
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
            mean = margin.detach().abs().mean()
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


def cell_index(
    over: Over, target: Tensor, groups: Tensor | None, num_classes: int
) -> tuple[Tensor, int]:
    """Cell of each example, shape ``(n,)``, and the number of cells.

    A (class, group) pair has cell ``group * k + class``.
    """
    if over == "class":
        return target, num_classes
    if groups is None:
        raise InputError(f"An objective over {over!r} needs groups=, one index per example.")
    num_groups = int(groups.max()) + 1 if len(groups) else 1
    if over == "group":
        return groups, num_groups
    return groups * num_classes + target, num_groups * num_classes


def conditional_risks(
    loss: Tensor, cell: Tensor, cells: int, sample_weight: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Mean loss within each cell ``(cells,)``, 0 where there is none, and the cells' weights."""
    weight = torch.ones_like(loss) if sample_weight is None else sample_weight.to(loss.dtype)
    mass = loss.new_zeros(cells).index_add(0, cell, weight)
    total = loss.new_zeros(cells).index_add(0, cell, loss * weight)
    return total / torch.where(mass > 0, mass, 1.0), mass


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

    def __call__(
        self,
        logits: Tensor,
        target: Tensor,
        *,
        groups: Tensor | None = None,
        sample_weight: Tensor | None = None,
    ) -> Tensor:
        """Differentiable value on raw logits ``(n, k)``, targets ``(n,)`` and groups ``(n,)``."""
        logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
        cell, cells = cell_index(self.over, target, groups, logits.shape[1])
        risks, mass = conditional_risks(self.surrogate(logits, target), cell, cells, sample_weight)
        return self.aggregate_smoothly(risks, mass > 0)

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
        wrong = (logits.argmax(dim=1) != target).to(torch.float64)
        cell, cells = cell_index(self.over, target, groups, logits.shape[1])
        risks, mass = conditional_risks(wrong, cell, cells, sample_weight)
        return float(self.aggregate(risks, mass > 0))

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


# The error of a group's examples is mostly that of its frequent classes. A wide surrogate, nearly
# linear in the margin, pays for widening their margins even at the price of rare classes' errors.
SHARP = SmoothError(relative=0.2)

NAMED = {
    "balanced_error": BalancedError(),
    "worst_class_error": WorstError(),
    "group_balanced_error": BalancedError(over="class_and_group"),
    "worst_group_error": WorstError(over="group", surrogate=SHARP),
    "worst_class_and_group_error": WorstError(over="class_and_group"),
}


def as_objective(objective: str | Objective) -> Objective:
    """An objective by its name, or as it is.

    Raises
    ------
    InputError
        If the name is unknown; the message lists the known ones.
    """
    if isinstance(objective, Objective):
        return objective
    if not isinstance(objective, str):
        raise InputError(
            f"objective must be a name or an Objective; got {type(objective).__name__}."
        )
    return NAMED[one_of("objective", objective, NAMED)]
