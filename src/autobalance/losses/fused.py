"""The parametric cross-entropy at fixed parameters, for training over many classes.

The gradient by the logits is formed along with the value, a few rows at a time, so that of all the
tables ``(n, k)`` on the way only the gradient is ever whole in memory. What is differentiated
twice, or by the parameters, takes the plain form of `autobalance.losses.parametric`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F

from autobalance.losses.parametric import (
    LossParameters,
    _rows,
    parametric_cross_entropy,
    target_weight,
)

CHUNK = 2**18
"""Numbers in the part of the logits worked on at once, 1 MiB: it stays in the processor's caches."""

LEAST_CLASSES = 256
LEAST_LOGITS = 2**20
"""With fewer classes, or fewer numbers in the logits, the plain form is as fast."""


def should_use_fused(logits: Tensor, *others: Tensor | None) -> bool:
    """Whether `fused_cross_entropy` can serve and is worth it.

    It can where a gradient is wanted by the logits alone, in reverse mode; it is measured to be worth
    it on a CPU, with many classes. A compiler fuses the plain form by itself.

    Parameters
    ----------
    logits : Tensor
        Shape ``(n, k)``.
    *others : Tensor or None
        Whatever else the loss depends on.
    """
    if torch.compiler.is_compiling():
        return False
    if logits.shape[1] < LEAST_CLASSES or logits.numel() < LEAST_LOGITS:
        return False
    given = [logits, *(t for t in others if t is not None)]
    return (
        logits.device.type == "cpu"
        and torch.is_grad_enabled()
        and logits.requires_grad
        and not any(t.requires_grad for t in given[1:])
        and type(logits) in (Tensor, nn.Parameter)
        and not _is_transformed(logits)
        and all(forward_ad.unpack_dual(t).tangent is None for t in given)
    )


def fused_cross_entropy(
    logits: Tensor,
    target: Tensor,
    parameters: LossParameters,
    *,
    scale: Tensor,
    kept: Tensor,
    groups: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """`parametric_cross_entropy` of the rows that are kept, times their scale, shape ``(n,)``.

    Differentiable by the logits alone, any number of times.

    Parameters
    ----------
    logits, target, groups, label_smoothing
        As for `parametric_cross_entropy`; on the CPU.
    parameters : LossParameters
        w, l and delta.
    scale : Tensor
        Shape ``(n,)``.
    kept : Tensor
        Of dtype bool, shape ``(n,)``. Other rows give 0 and get no gradient, whatever they hold.

    Raises
    ------
    IndexError
        If a target or group is out of range.
    """
    rest = _Rest(target, parameters.detach(), scale.detach(), kept, groups, label_smoothing)
    return _Fused.apply(logits, rest)


@dataclass(frozen=True)
class _Rest:
    """What the loss depends on beside the logits."""

    target: Tensor
    parameters: LossParameters
    scale: Tensor
    kept: Tensor
    groups: Tensor | None
    smoothing: float

    def plain(self, logits: Tensor) -> Tensor:
        """The loss in its plain form."""
        loss = parametric_cross_entropy(
            logits,
            self.target,
            **self.parameters._asdict(),
            groups=self.groups,
            label_smoothing=self.smoothing,
        )
        return torch.where(self.kept, loss, 0.0) * self.scale


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, rest: _Rest) -> Tensor:
        loss, ctx.gradient = _value_and_gradient(logits, rest)
        ctx.rest, ctx.dtype = rest, logits.dtype
        ctx.save_for_backward(logits)
        return loss

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        (slope,) = grad_outputs
        if torch.is_grad_enabled() or _is_transformed(slope):  # create_graph, is_grads_batched
            (logits,) = ctx.saved_tensors
            again = torch.is_grad_enabled()
            with torch.enable_grad():
                loss = ctx.rest.plain(logits)
            return torch.autograd.grad(loss, logits, slope, create_graph=again)[0], None
        gradient, ctx.gradient = ctx.gradient, None
        if gradient is None:  # a second pass over a retained graph
            gradient = _value_and_gradient(ctx.saved_tensors[0], ctx.rest)[1]
        if not bool((slope == 1).all()):
            gradient *= slope[:, None]
        return gradient.to(ctx.dtype), None


@torch.no_grad()
def _value_and_gradient(logits: Tensor, rest: _Rest) -> tuple[Tensor, Tensor]:
    """The scaled losses ``(n,)`` and each one's gradient by its row ``(n, k)``, in float32 at least."""
    n, k = logits.shape
    if n and not 0 <= int(rest.target.min()) <= int(rest.target.max()) < k:
        raise IndexError(f"a target lies outside 0..{k - 1}")
    dtype = torch.promote_types(logits.dtype, torch.float32)
    weight, additive, delta = (None if p is None else p.to(dtype) for p in rest.parameters)
    own, scale, groups = rest.target[:, None], rest.scale.to(dtype)[:, None], rest.groups
    w_y = target_weight(rest.target, weight, groups)
    hard = (1.0 - rest.smoothing) * (scale if w_y is None else scale * w_y[:, None])
    soft = rest.smoothing / k * scale

    gradient = logits.new_empty(n, k, dtype=dtype)
    p_own, everywhere = (torch.zeros_like(hard) for _ in range(2))
    size = max(1, CHUNK * torch.get_num_threads() // k)
    work = logits.new_empty(min(n, size), k, dtype=dtype)
    for first in range(0, n, size):
        part = slice(first, first + size)
        out, y, factor = gradient[part], own[part], hard[part]
        which = None if groups is None else groups[part]
        z = _adjusted(logits[part], _of(additive, which), _of(delta, which), work[: len(out)])
        torch.softmax(z, 1, out=out)
        torch.gather(out, 1, y, out=p_own[part])
        if rest.smoothing:
            w = torch.ones_like(z) if weight is None else _of(weight, which).expand_as(z)
            mass = w.sum(dim=1, keepdim=True)
            everywhere[part] = -(torch.log_softmax(z, 1) * w).sum(dim=1, keepdim=True)
            out *= factor + soft[part] * mass
            out -= soft[part] * w
        else:
            out *= factor
        out.scatter_add_(1, y, -factor)
        if delta is not None:
            out *= _of(delta, which)
    log_p = p_own.log()
    lost = (p_own < torch.finfo(dtype).tiny).squeeze(1)
    if bool(lost.any()):  # the own class's probability is below what the dtype can hold
        which = None if groups is None else groups[lost]
        some = logits[lost].to(dtype)
        z = _adjusted(some, _of(additive, which), _of(delta, which), torch.empty_like(some))
        log_p[lost] = -F.cross_entropy(z, rest.target[lost], reduction="none")[:, None]
    loss = (soft * everywhere - hard * log_p).squeeze(1)
    if not bool(rest.kept.all()):
        loss = torch.where(rest.kept, loss, 0.0)
        gradient[~rest.kept] = 0.0
    return loss, gradient


def _of(parameter: Tensor | None, groups: Tensor | None) -> Any:
    return None if parameter is None else _rows(parameter, groups)


def _adjusted(logits: Tensor, additive: Tensor | None, delta: Tensor | None, out: Tensor) -> Tensor:
    """As `adjusted_logits`, in the dtype of `out` and, where there is anything to do, its memory."""
    logits = logits.to(out.dtype)
    if additive is not None and delta is not None:
        return torch.addcmul(additive, logits, delta, out=out)
    if additive is not None:
        return torch.add(logits, additive, out=out)
    return logits if delta is None else torch.mul(logits, delta, out=out)


def _is_transformed(tensor: Tensor) -> bool:
    """Whether inside a transform of `torch.func`, or part of several gradients taken at once.

    torch has no public way to ask. Where its private names are gone the answer is yes, which costs time but
    is never wrong.
    """
    private = getattr(torch, "_C", None)
    is_active = getattr(private, "_are_functorch_transforms_active", None)
    is_batched = getattr(getattr(private, "_functorch", None), "is_legacy_batchedtensor", None)
    return is_active is None or is_batched is None or is_active() or is_batched(tensor)
