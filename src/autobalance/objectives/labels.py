"""Sums of losses per sign and label, for objectives over several labels.

They take the place of the sums per group and class: the table ``(2, k)`` has a row for negatives and a row
for positives of each label. A label's risk is the mean of its two cells', as the balanced error of its two
classes; a label that lacks positives or negatives has none.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from autobalance._validation import InputError
from autobalance.objectives.surrogates import SmoothError, Surrogate


def sign_label_sums(
    loss: Tensor, target: Tensor, sample_weight: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Sums of the losses ``(n, k)`` and of the examples' weights per sign and label, each ``(2, k)``.

    Targets ``(n, k)`` are 0 or 1; others are not labelled and count for nothing.
    """
    signs = [target == 0, target == 1]
    if sample_weight is None:
        total = [torch.where(sign, loss, 0.0).sum(dim=0) for sign in signs]
        mass = [sign.sum(dim=0).to(loss.dtype) for sign in signs]
    else:  # a product with the weights by a matrix, without another table of n times k
        weight = sample_weight.to(loss.dtype)
        total = [weight @ torch.where(sign, loss, 0.0) for sign in signs]
        mass = [weight @ sign.to(loss.dtype) for sign in signs]
    return torch.stack(total), torch.stack(mass)


def label_risks(total: Tensor, mass: Tensor) -> tuple[Tensor, Tensor]:
    """Each label's risk ``(k,)``, the mean of its negatives' and positives', and whether it has both."""
    risks = total / torch.where(mass > 0, mass, 1.0)
    return risks.mean(dim=0), (mass > 0).all(dim=0)


def surrogate_losses(
    surrogate: Surrogate, logits: Tensor, target: Tensor, sample_weight: Tensor | None = None
) -> Tensor:
    """The surrogate of each example and label ``(n, k)``, by the margin f of a positive, -f of a negative."""
    margin = torch.where(target == 1, logits, -logits)
    if not isinstance(surrogate, SmoothError):
        return F.softplus(-margin)
    scale: Any = surrogate.temperature
    if scale is None:
        # Every label and sign counts alike, or the many easy negatives would set the scale.
        size, mass = sign_label_sums(margin.abs(), target, sample_weight)
        mean = (size / torch.where(mass > 0, mass, 1.0)).sum() / (mass > 0).sum().clamp(min=1)
        scale = surrogate.relative * torch.where(mean > 0, mean, 1.0)
    return torch.sigmoid(-margin / scale)


def wrong_labels(logits: Tensor, target: Tensor) -> Tensor:
    """Which labels are predicted wrongly ``(n, k)``: f > 0 predicts the label."""
    return (logits > 0) != (target == 1)


def label_effective_size(counts: Any, shares: Any) -> float:
    """`Objective.effective_size` of a mean over labels, whose `shares` follow from which are present."""
    table = np.asarray(counts, dtype=np.float64)
    if table.ndim != 2 or len(table) != 2:
        raise InputError(
            "An objective over labels needs counts of negatives and positives (2, k); got shape "
            f"{table.shape}."
        )
    present = (table > 0).all(axis=0)
    omega = shares(present)[present]
    return float(1.0 / np.sum((omega / 2) ** 2 / table[:, present])) if present.any() else 1.0
