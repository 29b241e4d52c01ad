"""What an objective is: a function of the losses' sums per group and class."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from autobalance._validation import InputError, one_of
from autobalance.objectives.labels import (
    label_effective_size,
    label_risks,
    sign_label_sums,
    surrogate_losses,
    wrong_labels,
)
from autobalance.objectives.surrogates import SmoothError, Surrogate
from autobalance.records import PlainSettings

Over = Literal["class", "group", "class_and_group", "label"]
"""What an objective's cells are; with several labels tables have rows of signs, see `labels`."""


def group_class_sums(
    loss: Tensor,
    target: Tensor,
    groups: Tensor | None,
    num_classes: int,
    sample_weight: Tensor | None = None,
    rows: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Sums of the loss and of the examples' weights per group and class, each of shape ``(g, k)``.

    Without groups g = 1; with them g is one more than the largest index in the batch, for which a GPU
    is waited unless `rows` says it. Examples of group -1, not known, are left out.
    """
    num_groups, cell = 1, target
    weight = torch.ones_like(loss) if sample_weight is None else sample_weight.to(loss.dtype)
    if groups is not None and len(groups):
        lowest, highest = -1, (rows or 1) - 1
        if rows is None:
            lowest, highest = torch.stack(torch.aminmax(groups)).tolist()
        num_groups = max(1, highest + 1)
        cell = groups * num_classes + target
        if lowest < 0:
            known = groups >= 0
            loss, weight, cell = (torch.where(known, t, 0) for t in (loss, weight, cell))
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


@dataclass(frozen=True, kw_only=True)
class Objective(PlainSettings, ABC):
    """Base of all objectives.

    Parameters
    ----------
    over : {"class", "group", "class_and_group", "label"}
        What a cell is; "label" where examples have several labels, targets ``(n, k)`` of 0 and 1.
    surrogate : SmoothError or CrossEntropyRisk
        The loss within a cell.
    """

    over: Over = "class"
    surrogate: Surrogate = field(default_factory=SmoothError)

    def __post_init__(self) -> None:
        one_of("over", self.over, ("class", "group", "class_and_group", "label"))
        if not callable(self.surrogate) or isinstance(self.surrogate, Objective):
            raise InputError(
                "surrogate must be a SmoothError or a CrossEntropyRisk; got "
                f"{type(self.surrogate).__name__}."
            )

    @property
    def importance(self) -> tuple[float, ...] | None:
        """What it makes of each class's error, beforehand; None where all classes count alike."""
        return None

    def importance_of(self, counts: np.ndarray) -> tuple[float, ...] | None:
        """The same where it depends on the training examples per class ``(k,)``."""
        return self.importance

    @property
    def start_tau(self) -> float:
        """The tau from which a loss of several labels is searched for it: 1, for their balanced errors."""
        return 1.0

    @property
    def linear(self) -> bool:
        """Whether it is a mean of the risks with fixed weights."""
        return False

    def decision_losses(self, predicted: Tensor, target: Tensor) -> Tensor:
        """What each decision ``(n,)`` counts for in the hard objective: the 0-1 error, float64."""
        return (predicted != target).to(torch.float64)

    def adapted(self, total: Tensor, mass: Tensor) -> Objective:
        """What the upper level goes on with, having seen these sums of the 0-1 error."""
        return self

    @abstractmethod
    def value(self, total: Tensor, mass: Tensor, *, smoothly: bool = False) -> Tensor:
        """The objective from sums of the losses and of the examples' weights, each ``(g, k)``.

        `smoothly` asks for a form that is fit for gradients.
        """

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
        self._check_target(target)
        logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
        if self.over == "label":
            loss = surrogate_losses(self.surrogate, logits, target, sample_weight)
            return sign_label_sums(loss, target, sample_weight)
        scaled = sample_weight is not None and isinstance(self.surrogate, SmoothError)
        loss = self.surrogate(logits, target, *((sample_weight,) if scaled else ()))
        return group_class_sums(loss, target, groups, logits.shape[1], sample_weight)

    def hard(
        self,
        logits: Tensor,
        target: Tensor,
        *,
        groups: Tensor | None = None,
        sample_weight: Tensor | None = None,
    ) -> float:
        """The same aggregate of the 0-1 error of ``argmax f``, in [0, 1]."""
        return float(self.hard_value(logits, target, groups=groups, sample_weight=sample_weight))

    @torch.no_grad()
    def hard_value(
        self,
        logits: Tensor,
        target: Tensor,
        *,
        groups: Tensor | None = None,
        sample_weight: Tensor | None = None,
    ) -> Tensor:
        """As `hard`, float64 on the device: to be read together with other numbers."""
        self._check_groups(groups)
        return self.value(*self.decision_sums(logits, target, groups, sample_weight))

    def decision_sums(
        self,
        logits: Tensor,
        target: Tensor,
        groups: Tensor | None = None,
        sample_weight: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """As `sums`, of what the decisions by these logits count for in the hard objective, float64."""
        self._check_target(target)
        if self.over == "label":
            return sign_label_sums(wrong_labels(logits, target).double(), target, sample_weight)
        wrong = self.decision_losses(logits.argmax(dim=1), target)
        return group_class_sums(wrong, target, groups, logits.shape[1], sample_weight)

    def _check_target(self, target: Tensor) -> None:
        if target.ndim != (2 if self.over == "label" else 1):
            raise InputError(
                f"An objective over {self.over!r} needs "
                + ("0 and 1, shape (n, k)" if self.over == "label" else "class indices, shape (n,)")
                + f"; got a target of shape {tuple(target.shape)}. See autobalance.objectives.over_labels."
            )

    def _check_groups(self, groups: Tensor | None) -> None:
        if self.over not in ("class", "label") and groups is None:
            raise InputError(
                f"An objective over {self.over!r} needs groups=, one index per example."
            )

    @abstractmethod
    def effective_size(self, counts: Any) -> float:
        """Effective number of validation examples, given theirs per class ``(k,)`` or cell ``(g, k)``.

        The variance of the objective on `counts` is that of one risk over this many.
        """


@dataclass(frozen=True, kw_only=True)
class CellObjective(Objective):
    """Base of objectives that are one function of the cells' risks."""

    @abstractmethod
    def aggregate(self, risks: Tensor, present: Tensor) -> Tensor:
        """One number from the cells' risks ``(cells,)`` and which of them are present."""

    def aggregate_smoothly(self, risks: Tensor, present: Tensor) -> Tensor:
        """As `aggregate`, in a form fit for gradients."""
        return self.aggregate(risks, present)

    def shares(self, present: np.ndarray) -> np.ndarray:
        """Weight omega_c of each cell in the aggregate, summing to 1 over those present.

        All alike by default, also where any cell may be the worst: that noise is for
        `RunningRisks` to shrink.
        """
        return present / max(1, present.sum())

    def value(self, total: Tensor, mass: Tensor, *, smoothly: bool = False) -> Tensor:
        """The aggregate of each cell's mean risk; cells without mass are left out."""
        if self.over == "label":
            risks, present = label_risks(total, mass)
        else:
            total, mass = cells_of(total, self.over), cells_of(mass, self.over)
            risks, present = total / torch.where(mass > 0, mass, 1.0), mass > 0
        return (self.aggregate_smoothly if smoothly else self.aggregate)(risks, present)

    def effective_size(self, counts: Any) -> float:
        """1 / sum_c omega_c^2 / n_c, of the shares omega."""
        if self.over == "label":
            return label_effective_size(counts, self.shares)
        table = np.atleast_2d(np.asarray(counts, dtype=np.float64))
        by_cell = {
            "class": table.sum(axis=0),
            "group": table.sum(axis=1),
            "class_and_group": table.reshape(-1),
        }[self.over]
        present = by_cell > 0
        omega = self.shares(present)[present]
        return float(1.0 / np.sum(omega**2 / by_cell[present]))
