"""Per-example surrogates for the 0-1 error."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from autobalance._validation import positive
from autobalance.records import PlainSettings


@dataclass(frozen=True)
class SmoothError(PlainSettings):
    r"""Smooth 0-1 error, sigmoid(-(f_y - max_{j != y} f_j) / T), in (0, 1). The default.

    Bounded, so that a few confident mistakes on tail examples cannot rule the objective as they
    do under cross-entropy.

    Parameters
    ----------
    temperature : float or None
        T, on the scale of the logits. None takes `relative` times the batch's (weighted) mean absolute
        margin ``|f_y - max_{j != y} f_j|``, and differentiates through it: so rescaling the logits
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

    def __call__(
        self, logits: Tensor, target: Tensor, sample_weight: Tensor | None = None
    ) -> Tensor:
        if logits.ndim == 2:
            own = logits.gather(1, target[:, None]).squeeze(1)
            others = logits.scatter(1, target[:, None], -torch.inf).amax(dim=1)
        else:  # without a graph through a table of the logits' size; of equal logits one has the gradient
            rivals = logits.detach().scatter(1, target[:, None], -torch.inf).max(dim=1).indices
            own, others = logits.gather(1, torch.stack([target, rivals], dim=1)).unbind(dim=1)
        margin = own - others
        return torch.sigmoid(-margin / self.scale_of(margin.abs(), sample_weight))

    def scale_of(self, margins: Tensor, sample_weight: Tensor | None = None) -> Tensor | float:
        """T for examples with these absolute margins, shape ``(n,)``."""
        if self.temperature is not None:
            return self.temperature
        mean = margins.mean()
        if sample_weight is not None:
            mean = (margins * sample_weight).sum() / sample_weight.sum().clamp(min=1e-30)
        # All margins are 0 where the head is initialised at 0.
        return self.relative * torch.where(mean > 0, mean, 1.0)


@dataclass(frozen=True)
class CrossEntropyRisk(PlainSettings):
    """Cross-entropy of the raw logits, the paper's choice; not bounded."""

    def __call__(self, logits: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(logits, target, reduction="none")


Surrogate = SmoothError | CrossEntropyRisk
"""What stands for the 0-1 error where it is differentiated."""
