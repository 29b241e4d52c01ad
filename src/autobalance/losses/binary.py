"""The parametric binary cross-entropy of several labels, as pure functions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from autobalance._validation import InputError
from autobalance.losses.parametric import (
    LossParameters,
    Reduction,
    can_fuse,
    check_batch,
    is_transformed,
)

LEAST_FUSED = 2**14
"""With fewer numbers in the logits the plain form is as fast."""
AT_ONCE = 2**18
"""Numbers in the part of the logits worked on at once, 1 MiB."""
SURELY_WRONG = -12.0
"""Log probability of a true label below which losses are computed from the logits; above it the rounding of
the probability is at most 0.1 % of the label's loss, and no part of the gradient."""


def is_known(target: Tensor) -> Tensor:
    """Which entries of a target ``(n, k)`` are 0 or 1; the others, -1 and NaN, are not labelled."""
    return (target == 0) | (target == 1)


def _of_sign(parameter: Tensor, positive: Tensor) -> Tensor:
    """A parameter for each entry: ``(k,)`` as it is, of ``(2, k)`` the row of the entry's sign."""
    return parameter if parameter.ndim == 1 else torch.where(positive, parameter[1], parameter[0])


def parametric_binary_cross_entropy(
    logits: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    additive: Tensor | None = None,
    multiplicative: Tensor | None = None,
) -> Tensor:
    r"""Binary cross-entropy of adjusted logits, one value per example and label.

    .. math::
        \ell(y, f) = -w_y \log \mathrm{sigmoid}(\pm (\delta_y f + l_y)),
        \qquad + \text{ for } y = 1, \; - \text{ for } y = 0

    With one l and one delta a label and w of both signs it is the parametric cross-entropy of the label's
    two classes at logits (0, f); with an l and a delta of each sign, margins and slopes differ by sign.

    Parameters
    ----------
    logits : Tensor
        Raw logits f, shape ``(n, k)``; above 0 the label is predicted.
    target : Tensor
        0 or 1, shape ``(n, k)``, of any dtype; -1 or NaN where an entry is not labelled.
    weight, additive, multiplicative : Tensor, optional
        Shape ``(k,)``, or ``(2, k)`` with a row for negatives and a row for positives.

    Returns
    -------
    Tensor
        Shape ``(n, k)``, in float32 at least; what stands at entries that are not labelled means nothing.
    """
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    positive = target == 1
    if multiplicative is not None:
        logits = logits * _of_sign(multiplicative.to(logits.dtype), positive)
    if additive is not None:
        logits = logits + _of_sign(additive.to(logits.dtype), positive)
    loss = F.binary_cross_entropy_with_logits(logits, positive.to(logits.dtype), reduction="none")
    return loss if weight is None else loss * _of_sign(weight.to(loss.dtype), positive)


def reduced_binary_loss(
    logits: Tensor,
    target: Tensor,
    parameters: LossParameters,
    *,
    sample_weight: Tensor | None = None,
    reduction: Reduction = "mean",
    fused: bool = False,
) -> Tensor:
    """Parametric binary cross-entropy of a batch, reduced as `torch.nn.BCEWithLogitsLoss` does.

    The mean divides by the number of labelled entries, or with `sample_weight` ``(n,)`` by the sum of their
    weights, not by w. Entries that are -1 or NaN count for nothing, and a batch of nothing else gives 0.

    It is twice differentiable by the logits and the parameters. With `fused` the gradient by the logits may
    be formed along with the value, which is the same to rounding and faster on a CPU.

    Raises
    ------
    InputError
        If shapes do not fit, or on a CPU an entry is none of 0, 1, -1 and NaN.
    """
    check_labels(logits, target, sample_weight)
    dtype = torch.promote_types(logits.dtype, torch.float32)
    if sample_weight is not None:
        sample_weight = sample_weight.to(dtype)[:, None]
    if (
        fused
        and reduction == "mean"
        and logits.numel() >= LEAST_FUSED
        and can_fuse(logits, *parameters, sample_weight)
    ):
        return _FusedMean.apply(logits, target, parameters, sample_weight)
    loss = parametric_binary_cross_entropy(logits, target, **parameters._asdict())
    known = is_known(target)
    if logits.device.type == "cpu" and not torch.compiler.is_compiling():
        known = _checked(target, known)
    if known is not None:  # `where`, since a product with 0 keeps a loss that is not finite
        loss = torch.where(known, loss, 0.0)
    if sample_weight is not None:
        loss = loss * sample_weight
    if reduction != "mean":
        return loss if reduction == "none" else loss.sum()
    if known is None and sample_weight is None:
        return loss.mean()
    return loss.sum() / _mass(logits, known, sample_weight)


def check_labels(logits: Any, target: Any, sample_weight: Any = None) -> None:
    """Refuse what a loss of several labels cannot be called with, as far as shapes and dtypes tell it."""
    check_batch(logits, target)
    if logits.ndim == 2 and target.ndim == 1 and len(target) == len(logits):
        raise InputError(
            f"The loss needs a 0 or 1 for each label, target of shape {tuple(logits.shape)}; got one number "
            "per example. Where these are class indices, take ParametricCrossEntropy."
        )
    if logits.ndim != 2 or target.shape != logits.shape:
        raise InputError(
            "The loss needs logits and target of one shape (n, k), a 0 or 1 for each example and label; "
            f"got {tuple(logits.shape)} and {tuple(target.shape)}."
        )
    if sample_weight is not None and (
        not isinstance(sample_weight, Tensor) or sample_weight.shape != target.shape[:1]
    ):
        raise InputError(
            f"sample_weight needs one number per example, a tensor of shape ({len(target)},)."
        )


def check_label_values(target: Tensor) -> None:
    """Refuse a target of which an entry is none of 0, 1, -1 and NaN; a GPU is waited for."""
    _checked(target, is_known(target))


def _checked(target: Tensor, known: Tensor) -> Tensor | None:
    """Which entries are labelled, None where all are; refused where one is no label at all."""
    if bool(known.all()):
        return None
    others = target[~known]
    wrong = others[(others != -1) & ~others.isnan()]
    if len(wrong):
        raise InputError(
            f"target must be 0, 1, or -1 or NaN where an entry is not labelled; got {wrong[0].item():g} "
            f"in {len(wrong)} of {target.numel()} entries."
        )
    return known


def _mass(logits: Tensor, known: Tensor | None, sample_weight: Tensor | None) -> Tensor:
    """What the mean divides by: the labelled entries, each times its example's weight ``(n, 1)``."""
    dtype = torch.promote_types(logits.dtype, torch.float32)
    scale = torch.ones_like(logits, dtype=dtype) if known is None else known.to(dtype)
    total = (scale if sample_weight is None else scale * sample_weight).sum()
    return total.clamp(min=torch.finfo(dtype).tiny)


class _FusedMean(torch.autograd.Function):
    """The mean over labelled entries with its gradient by the logits, a few rows at a time."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        target: Tensor,
        parameters: LossParameters,
        sample_weight: Tensor | None,
    ) -> Tensor:
        """The mean, and in the same pass its gradient, which is kept."""
        parameters = parameters.detach()
        value, ctx.gradient = _value_and_gradient(logits, target, parameters, sample_weight)
        ctx.rest, ctx.dtype = (target, parameters, sample_weight), logits.dtype
        ctx.save_for_backward(logits)
        return value

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient that was kept, or where derivatives of it are wanted that of the plain form."""
        (slope,) = grad_outputs
        (logits,) = ctx.saved_tensors
        target, parameters, sample_weight = ctx.rest
        if torch.is_grad_enabled() or is_transformed(slope):
            again = torch.is_grad_enabled()
            weight = None if sample_weight is None else sample_weight[:, 0]
            with torch.enable_grad():
                value = reduced_binary_loss(logits, target, parameters, sample_weight=weight)
            [gradient] = torch.autograd.grad(value, logits, slope, create_graph=again)
            return gradient, None, None, None
        gradient, ctx.gradient = ctx.gradient, None
        if gradient is None:  # a second pass over a retained graph
            gradient = _value_and_gradient(logits, target, parameters, sample_weight)[1]
        if float(slope) != 1.0:
            gradient *= slope
        return gradient.to(ctx.dtype), None, None, None


@torch.no_grad()
def _value_and_gradient(
    logits: Tensor, target: Tensor, parameters: LossParameters, sample_weight: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The mean and its gradient ``(n, k)``, in float32 at least.

    A few rows at a time, so that what is computed on the way stays in the processor's caches.
    """
    n, k = logits.shape
    dtype = torch.promote_types(logits.dtype, torch.float32)
    size = max(1, AT_ONCE // k)
    gradient = logits.new_empty(n, k, dtype=dtype)
    spare = [logits.new_empty(min(n, size), k, dtype=dtype) for _ in range(4)]
    known = _known_entries(target, size, spare[0])
    share = 1.0 / (n * k)
    if known is not None or sample_weight is not None:
        share = 1.0 / _mass(logits, known, sample_weight)
    weight, additive, delta = (None if p is None else p.to(dtype) for p in parameters)
    scaled = share if weight is None else weight * share
    total = logits.new_zeros((), dtype=dtype)
    for first in range(0, n, size):
        part = slice(first, first + size)
        f, y, out = logits[part].to(dtype), target[part].to(dtype), gradient[part]
        own, slope, z, loss = (buffer[: len(out)] for buffer in spare)
        if known is not None:
            y = torch.where(known[part], y, 0.0)
        if delta is not None:
            slope = _interpolate(delta, y, slope)
            f = torch.mul(f, slope, out=z)
        if additive is not None:
            f = torch.add(f, _interpolate(additive, y, own), out=z)
        torch.sigmoid(f, out=out)
        out -= y
        # -log(1 - |p - y|), in a third of the time that a softplus of the logits takes; where p - y is
        # near 1 its rounding would show.
        torch.abs(out, out=loss).neg_().log1p_()
        if not bool(loss.amin() > SURELY_WRONG):
            loss = -F.binary_cross_entropy_with_logits(f, y, reduction="none")
        scale = _interpolate(scaled, y, own) if isinstance(scaled, Tensor) else scaled
        if known is not None:
            scale = torch.where(known[part], scale, 0.0)
        if sample_weight is not None:
            scale = scale * sample_weight[part]
        if isinstance(scale, Tensor) and scale.shape == loss.shape:
            total -= loss.view(-1) @ scale.view(-1)
        else:
            total -= loss.mul_(scale).sum()
        out *= scale
        if delta is not None:
            out *= slope
    return total, gradient


def _interpolate(parameter: Tensor, y: Tensor, out: Tensor) -> Tensor:
    """`_of_sign` for targets y of 0 and 1, by arithmetic, which is faster than to choose."""
    if parameter.ndim < 2:
        return parameter
    return torch.addcmul(parameter[0], y, parameter[1] - parameter[0], out=out)


def _known_entries(target: Tensor, size: int, spare: Tensor) -> Tensor | None:
    """As `_checked`, some rows at a time: y - y^2 is 0 for 0 and 1 alone."""
    for rows in target.split(size):
        y, rest = rows.to(spare.dtype), spare[: len(rows)]
        rest = torch.addcmul(y, y, y, value=-1.0, out=rest).view(-1)
        if float(rest @ rest) != 0.0:  # also where it is NaN
            return _checked(target, is_known(target))
    return None
