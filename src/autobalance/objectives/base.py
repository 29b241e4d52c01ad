"""What an objective is: a function of the losses' sums per group and class."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from autobalance._validation import InputError, one_of
from autobalance.objectives.labels import (
    label_effective_size,
    label_risks,
    sign_label_sums,
    surrogate_losses,
)
from autobalance.objectives.surrogates import SmoothError, Surrogate
from autobalance.records import PlainSettings

Over = Literal["class", "group", "class_and_group", "label"]
"""What an objective's cells are; with several labels tables have rows of signs, see `labels`."""

IGNORED = -100
"""Target of a pixel that counts for nothing, as torch's losses have it by default."""


def group_class_sums(
    loss: Tensor,
    target: Tensor,
    groups: Tensor | None,
    num_classes: int,
    sample_weight: Tensor | None = None,
    rows: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Sums of the loss and of the examples' weights per group and class, each of shape ``(g, k)``.

    All are of the examples ``(n,)``, or of the pixels of dense targets, then in one shape. Without groups
    g = 1; with them g is one more than the largest index in the batch, for which a GPU is waited unless
    `rows` says it. Examples of group -1, not known, are left out.
    """
    loss, cell = loss.flatten(), target.flatten()
    groups = None if groups is None else groups.flatten()
    num_groups = 1
    weight = torch.ones_like(loss)
    if sample_weight is not None:
        weight = sample_weight.flatten().to(loss.dtype)
    if groups is not None and len(groups):
        lowest, highest = -1, (rows or 1) - 1
        if rows is None:
            lowest, highest = torch.stack(torch.aminmax(groups)).tolist()
        num_groups = max(1, highest + 1)
        cell = groups * num_classes + cell
        if lowest < 0:
            known = groups >= 0
            loss, weight, cell = (torch.where(known, t, 0) for t in (loss, weight, cell))
    empty = loss.new_zeros(num_groups * num_classes)
    total = empty.index_add(0, cell, loss * weight)
    mass = empty.index_add(0, cell, weight)
    return total.view(num_groups, -1), mass.view(num_groups, -1)


def per_pixel(values: Tensor, target: Tensor) -> Tensor:
    """Values of the images ``(n,)`` in the shape of a dense target; others as they are."""
    if values.ndim == target.ndim:
        return values
    return values.view(-1, *[1] * (target.ndim - 1)).expand_as(target)


class Labels(NamedTuple):
    """Targets, groups and weights as the sums of an objective take them, in the shape of the target."""

    target: Tensor
    groups: Tensor | None = None
    sample_weight: Tensor | None = None

    @classmethod
    def of(
        cls, like: Tensor, target: Tensor, groups: Tensor | None, sample_weight: Tensor | None
    ) -> Labels:
        """Labels ``(n,)`` as they are; of dense targets, in the shape of `like`, those of each pixel.

        A pixel that is `IGNORED` gets class 0 and weight 0: to leave it out, the logits would have to be
        copied.
        """
        if like.ndim == 1 and target.ndim == 1:
            return cls(target, groups, sample_weight)
        if like.shape != target.shape:
            raise InputError(
                "The objective needs one class index per pixel: expected target of shape "
                f"{tuple(like.shape)}, got {tuple(target.shape)}."
            )
        groups = None if groups is None else per_pixel(groups, target)
        weight = None if sample_weight is None else per_pixel(sample_weight, target)
        kept = target != IGNORED
        weight = kept.float() if weight is None else kept * weight
        return cls(torch.where(kept, target, 0), groups, weight)


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

    @property
    def by_decision(self) -> bool:
        """Whether its sums are by the class decided for and the class, ``(k, k)``, in place of ``(g, k)``."""
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
        """Differentiable value on raw logits ``(n, k)``, targets ``(n,)`` and groups ``(n,)``.

        Logits may be dense, ``(n, k, d1, ...)``, with targets ``(n, d1, ...)``; a target of -100 is
        ignored then. Groups and weights are of the images ``(n,)``, or in the shape of the target.
        """
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
        self._check_target(logits, target)
        logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
        if self.over == "label":
            loss = surrogate_losses(self.surrogate, logits, target, sample_weight)
            return sign_label_sums(loss, target, sample_weight)
        labels = Labels.of(logits[:, 0], target, groups, sample_weight)
        scaled = labels.sample_weight is not None and isinstance(self.surrogate, SmoothError)
        loss = self.surrogate(logits, labels.target, *((labels.sample_weight,) if scaled else ()))
        return group_class_sums(
            loss, labels.target, labels.groups, logits.shape[1], labels.sample_weight
        )

    def decide(self, logits: Tensor) -> Tensor:
        """The class of the largest logit, in the shape of the target; of several labels those with f > 0."""
        # Of dense logits on a CPU four times as fast as `argmax`, with the same indices.
        return (logits > 0).long() if self.over == "label" else logits.max(dim=1).indices

    @torch.no_grad()
    def decision_sums(
        self,
        predicted: Tensor,
        target: Tensor,
        num_classes: int,
        groups: Tensor | None = None,
        sample_weight: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """As `sums`, of what the decisions, in the shape of the target, count for, in float64."""
        if self.over == "label":
            return sign_label_sums((predicted != target).double(), target, sample_weight)
        labels = Labels.of(predicted, target, groups, sample_weight)
        losses = self.decision_losses(predicted, labels.target)
        return group_class_sums(
            losses, labels.target, labels.groups, num_classes, labels.sample_weight
        )

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
        self._check_target(logits, target)
        decided, k = self.decide(logits), logits.shape[1]
        return self.value(*self.decision_sums(decided, target, k, groups, sample_weight))

    def _check_target(self, logits: Tensor, target: Tensor) -> None:
        if self.over == "label":
            fits, expected = target.ndim == 2, "0 and 1, shape (n, k)"
        else:
            fits, expected = target.ndim == logits.ndim - 1, "class indices, shape (n,)"
            if logits.ndim > 2:
                expected = "class indices, shape (n, d1, ...)"
        if not fits:
            raise InputError(
                f"An objective over {self.over!r} needs {expected}; got a target of shape "
                f"{tuple(target.shape)}. For several labels see autobalance.objectives.over_labels."
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
