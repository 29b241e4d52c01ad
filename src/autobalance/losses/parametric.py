"""The parametric cross-entropy as pure functions: one value per example, the caller reduces."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class LossParameters(NamedTuple):
    """Parameters of the loss, each of shape ``(k,)`` or ``(g, k)``; None means "not used".

    Attributes
    ----------
    weight : Tensor or None
        Class weights w, above 0. None: 1.
    additive : Tensor or None
        Additive logit adjustments l. None: 0.
    multiplicative : Tensor or None
        Multiplicative logit adjustments delta, above 0. None: 1.
    """

    weight: Tensor | None = None
    additive: Tensor | None = None
    multiplicative: Tensor | None = None

    def detach(self) -> LossParameters:
        return LossParameters(*(None if p is None else p.detach() for p in self))


def _rows(parameter: Tensor, groups: Tensor | None) -> Tensor:
    """Rows of a parameter for a batch: ``(k,)`` as it is, ``(g, k)`` picked by group."""
    if parameter.ndim == 1:
        return parameter
    if groups is None:
        raise ValueError("These loss parameters have one row per group: pass groups=.")
    return parameter[groups]


def _at_target(rows: Tensor, target: Tensor) -> Tensor:
    """Entry of each example's own class, from ``(k,)`` or ``(n, k)`` rows."""
    if rows.ndim == 1:
        return rows[target]
    return rows.gather(1, target[:, None]).squeeze(1)


def adjusted_logits(
    logits: Tensor,
    *,
    additive: Tensor | None = None,
    multiplicative: Tensor | None = None,
    groups: Tensor | None = None,
) -> Tensor:
    """Return z = delta * f + l, of shape ``(n, k)``, in float32 at least.

    Half precision is raised to float32 first: adjustments of tail classes are differences of
    large numbers, and bfloat16 keeps only 8 bits of them.
    """
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    if multiplicative is not None:
        logits = logits * _rows(multiplicative.to(logits.dtype), groups)
    if additive is not None:
        logits = logits + _rows(additive.to(logits.dtype), groups)
    return logits


def target_weight(
    target: Tensor, weight: Tensor | None, groups: Tensor | None = None
) -> Tensor | None:
    """Return w_y for each example, shape ``(n,)``, or None where there are no weights."""
    return None if weight is None else _at_target(_rows(weight, groups), target)


def parametric_cross_entropy(
    logits: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    additive: Tensor | None = None,
    multiplicative: Tensor | None = None,
    groups: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    r"""Cross-entropy of adjusted logits, one value per example.

    .. math:: \ell(y, f) = -w_y \log \mathrm{softmax}(\delta \odot f + l)_y

    Parameters
    ----------
    logits : Tensor
        Raw logits f, shape ``(n, k)``.
    target : Tensor
        Class indices in ``0..k-1``, shape ``(n,)``, int64.
    weight, additive, multiplicative : Tensor, optional
        See `LossParameters`. With shape ``(g, k)`` the example's group picks the row.
    groups : Tensor, optional
        Group indices in ``0..g-1``, shape ``(n,)``, int64.
    label_smoothing : float
        As in `torch.nn.functional.cross_entropy`: the smoothed part weighs every class's term
        with that class's own weight.

    Returns
    -------
    Tensor
        Shape ``(n,)``, not averaged.

    References
    ----------
    Li et al., "AutoBalance", NeurIPS 2021, eq. 2.1 and 2.2; with groups, eq. 4.2.
    """
    z = adjusted_logits(logits, additive=additive, multiplicative=multiplicative, groups=groups)
    # torch's fused loss equals -log_softmax(z)[y] and is faster than log_softmax with gather.
    loss = F.cross_entropy(z, target, reduction="none")
    rows = None if weight is None else _rows(weight.to(loss.dtype), groups)
    if rows is not None:
        loss = loss * _at_target(rows, target)
    if label_smoothing:
        log_p = F.log_softmax(z, dim=1)
        everywhere = -(log_p if rows is None else log_p * rows).sum(dim=1)
        loss = (1.0 - label_smoothing) * loss + label_smoothing / z.shape[1] * everywhere
    return loss
