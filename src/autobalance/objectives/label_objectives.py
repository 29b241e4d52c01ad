"""Objectives of several labels that are no function of the labels' risks alone, and how others come to be."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from autobalance._validation import InputError
from autobalance.objectives.base import CellObjective, Objective, Over
from autobalance.objectives.combined import Blend
from autobalance.objectives.labels import label_effective_size
from autobalance.objectives.surrogates import SmoothError


@dataclass(frozen=True, kw_only=True)
class MacroF1Error(Objective):
    r"""One minus the mean over labels of F1.

    .. math:: 1 - F_1 = \frac{FN + FP}{2 n^+ - FN + FP}

    of each label that has a positive; in its differentiable form FN and FP are sums of the surrogate. F1
    depends on how frequent a label is, so that the counts of the whole validation set enter where they are
    known, see `RunningRisks`.
    """

    over: Over = field(default="label", init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.surrogate, SmoothError):
            raise InputError(
                "MacroF1Error counts errors, for which a SmoothError can stand; got "
                f"{type(self.surrogate).__name__}."
            )

    @property
    def start_tau(self) -> float:
        """0.5: F1's best threshold is half the best F1, between those of the balanced and the plain error."""
        return 0.5

    def value(self, total: Tensor, mass: Tensor, *, smoothly: bool = False) -> Tensor:
        """The mean over labels that have a positive of (FN + FP) / (2 n - FN + FP)."""
        errors, present = self.label_errors(total, mass)
        return torch.where(present, errors, 0.0).sum() / present.sum().clamp(min=1)

    def label_errors(self, total: Tensor, mass: Tensor) -> tuple[Tensor, Tensor]:
        """One minus each label's F1 ``(k,)``, from sums as for `value`, and whether it has a positive."""
        false_positives, false_negatives = total
        tiny = torch.finfo(total.dtype).tiny
        predicted_and_true = 2.0 * mass[1] - false_negatives + false_positives
        errors = (false_negatives + false_positives) / predicted_and_true.clamp(min=tiny)
        return errors, mass[1] > 0

    def effective_size(self, counts: Any) -> float:
        """That of the mean over labels of the balanced error."""
        return label_effective_size(counts, lambda present: present / max(1, present.sum()))


def over_labels(objective: Objective) -> Objective:
    """The objective over labels: as it is, or where it is over classes with labels in their place.

    Raises
    ------
    InputError
        If it is over groups, or of decisions for one class.
    """
    if objective.over == "label":
        return objective
    if isinstance(objective, Blend) and objective.over == "class":
        return replace(
            objective, parts=tuple((w, over_labels(part)) for w, part in objective.parts)
        )
    if isinstance(objective, CellObjective) and objective.over == "class":
        return replace(objective, over="label")
    raise InputError(
        f"{type(objective).__name__} over {objective.over!r} is of one class per example. For several labels "
        "take balanced_error, worst_class_error, cvar_error, quantile_error or macro_f1; groups have no part."
    )
