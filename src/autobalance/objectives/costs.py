"""The mean cost of decisions, from a matrix of costs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from autobalance._validation import InputError, array_of_numbers
from autobalance.objectives.base import Objective, Over, group_class_sums
from autobalance.objectives.surrogates import SmoothError


def cost_matrix(costs: Any) -> CostMatrix:
    """The objective of the lowest mean cost, for a matrix ``(k, k)`` of any kind; see `CostMatrix`."""
    return CostMatrix(costs=costs)


@dataclass(frozen=True, kw_only=True)
class CostMatrix(Objective):
    r"""Mean cost of the decisions over the examples, in shares of the largest cost.

    .. math:: \frac{1}{n \max C} \sum_i C_{y_i \hat y_i}

    The examples count as they are, not class by class: what an error on a rare class costs is in C.
    Dividing by the largest cost keeps the objective in [0, 1], so that learning rates and priors mean
    what they mean for errors; times ``largest`` it is a cost.

    Parameters
    ----------
    costs : array-like
        C_kj, what deciding for class j costs where the class is k, shape ``(k, k)``; finite, not
        negative, not all 0. The diagonal is mostly 0.
    surrogate : SmoothError
        Its temperature T: the gradient sees :math:`\sum_j C_{yj} \, \mathrm{softmax}(f / T)_j`, which for
        two classes and costs of 1 is the smooth error.

    Raises
    ------
    InputError
        If the matrix is none; the message says why.

    References
    ----------
    Elkan, "The Foundations of Cost-Sensitive Learning", IJCAI 2001.
    """

    over: Over = field(default="class", init=False)
    costs: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.surrogate, SmoothError):
            raise InputError("Costs are of decisions: the surrogate must be a SmoothError.")
        array = _check_costs(self.costs)
        object.__setattr__(self, "costs", tuple(map(tuple, array.tolist())))

    @property
    def linear(self) -> bool:
        """Always: a mean is linear in the risks."""
        return True

    @property
    def largest(self) -> float:
        """The largest cost, which is the objective's unit."""
        return max(map(max, self.costs))

    def importance_of(self, counts: np.ndarray) -> tuple[float, ...]:
        """Examples of each class times the mean cost of deciding for another: the start for these costs."""
        self.check_classes(counts.shape[-1])
        costs = np.asarray(self.costs)
        regret = (costs - np.diag(costs)[:, None]).clip(min=0.0).sum(axis=1)
        per_class = counts if counts.ndim == 1 else counts.sum(axis=0)
        importance = per_class * regret
        return tuple((importance if importance.any() else per_class).tolist())

    def decision_losses(self, predicted: Tensor, target: Tensor) -> Tensor:
        """What each decision costs, in shares of the largest cost, shape ``(n,)``, float64."""
        matrix = self._shares(target.device)
        return matrix[target, predicted]

    def sums(
        self,
        logits: Tensor,
        target: Tensor,
        groups: Tensor | None = None,
        sample_weight: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """`group_class_sums` of the smooth costs."""
        self.check_classes(logits.shape[1])
        logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
        assert isinstance(self.surrogate, SmoothError)
        scale: Tensor | float | None = self.surrogate.temperature
        if scale is None:
            highest = logits.topk(2, dim=1).values
            weight = None if sample_weight is None else sample_weight.to(logits.dtype)
            scale = self.surrogate.scale_of(highest[:, 0] - highest[:, 1], weight)
        decided = torch.softmax(logits / scale, dim=1)
        loss = (decided * self._shares(logits.device).to(logits.dtype)[target]).sum(dim=1)
        return group_class_sums(loss, target, groups, logits.shape[1], sample_weight)

    def value(self, total: Tensor, mass: Tensor, *, smoothly: bool = False) -> Tensor:
        """The mean over the examples."""
        return total.sum() / mass.sum().clamp(min=torch.finfo(mass.dtype).tiny)

    def effective_size(self, counts: Any) -> float:
        """All examples: each counts alike."""
        return float(np.sum(counts))

    def _shares(self, device: torch.device) -> Tensor:
        matrix = torch.tensor(self.costs, dtype=torch.float64, device=device)
        return matrix / self.largest

    def check_classes(self, k: int) -> None:
        """Raise `InputError` unless the matrix is for so many classes."""
        if len(self.costs) != k:
            raise InputError(
                f"costs has shape ({len(self.costs)}, {len(self.costs)}), but there are {k} classes: give "
                "one row and one column per class, in the order of the classes."
            )


def _check_costs(costs: Any) -> np.ndarray:
    array = array_of_numbers("costs", costs)
    if array.ndim != 2 or array.shape[0] != array.shape[1] or len(array) < 2:
        raise InputError(
            "costs must be a square matrix, C[k, j] the cost of deciding for class j where the class is "
            f"k; got shape {array.shape}."
        )
    if not np.isfinite(array).all():
        k, j = np.argwhere(~np.isfinite(array))[0]
        raise InputError(f"costs must be finite; costs[{k}, {j}] is {array[k, j]}.")
    if (array < 0).any():
        k, j = np.argwhere(array < 0)[0]
        raise InputError(
            f"costs must not be negative; costs[{k}, {j}] is {array[k, j]:g}. For a gain take its row's "
            "least value off the whole row: what is added to all decisions changes none."
        )
    if not array.any():
        raise InputError("costs must not all be 0: every decision would be as good as any other.")
    return array
