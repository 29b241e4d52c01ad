"""The parametric cross-entropy as pure functions: one value per example, the caller reduces.

Logits are ``(n, k)`` or dense ``(n, k, d1, ...)``, as torch's own cross-entropy takes them: the classes lie
in dimension 1, and a target ``(n, d1, ...)`` has one class index per pixel. Dense logits are never copied
into rows, which would cost their memory once more; what belongs to a class is broadcast along the pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F

from autobalance._validation import InputError
from autobalance.objectives import per_pixel

Reduction = Literal["mean", "sum", "none"]


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
        """The same values without their graph."""
        return LossParameters(*(None if p is None else p.detach() for p in self))


def _rows(parameter: Tensor, groups: Tensor | None, ndim: int = 2) -> Tensor:
    """Rows of a parameter for a batch: ``(k,)`` as it is, ``(g, k)`` picked by group.

    For dense logits, of `ndim` dimensions, they have further dimensions of size 1 for the pixels.
    """
    if parameter.ndim == 1:
        return parameter if ndim == 2 else parameter.view(-1, *[1] * (ndim - 2))
    if groups is None:
        raise ValueError("These loss parameters have one row per group: pass groups=.")
    rows = parameter[groups].movedim(-1, 1)
    return rows.view(*rows.shape, *[1] * (ndim - rows.ndim))


def _at_target(parameter: Tensor, target: Tensor, groups: Tensor | None) -> Tensor:
    """Entry of each example's (or pixel's) own class, in the shape of the target."""
    if parameter.ndim == 1:
        return parameter[target]
    if target.ndim == 1 or groups is None:  # without groups `_rows` says what is missing
        return _rows(parameter, groups).gather(1, target[:, None]).squeeze(1)
    return parameter[per_pixel(groups, target), target]


def adjusted_logits(
    logits: Tensor,
    *,
    additive: Tensor | None = None,
    multiplicative: Tensor | None = None,
    groups: Tensor | None = None,
) -> Tensor:
    """Return z = delta * f + l, in the shape of the logits, ``(n, k, ...)``, in float32 at least.

    Half precision is raised to float32 first: adjustments of tail classes are differences of
    large numbers, and bfloat16 keeps only 8 bits of them.
    """
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    if multiplicative is not None:
        logits = logits * _rows(multiplicative.to(logits.dtype), groups, logits.ndim)
    if additive is not None:
        logits = logits + _rows(additive.to(logits.dtype), groups, logits.ndim)
    return logits


def target_weight(
    target: Tensor, weight: Tensor | None, groups: Tensor | None = None
) -> Tensor | None:
    """Return w_y in the shape of the target, or None where there are no weights."""
    return None if weight is None else _at_target(weight, target, groups)


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
    r"""Cross-entropy of adjusted logits, one value per example, or of dense logits per pixel.

    .. math:: \ell(y, f) = -w_y \log \mathrm{softmax}(\delta \odot f + l)_y

    Parameters
    ----------
    logits : Tensor
        Raw logits f, shape ``(n, k)``, or dense ``(n, k, d1, ...)``.
    target : Tensor
        Class indices in ``0..k-1``, shape ``(n,)`` or ``(n, d1, ...)``, int64.
    weight, additive, multiplicative : Tensor, optional
        See `LossParameters`. With shape ``(g, k)`` the example's group picks the row.
    groups : Tensor, optional
        Group indices in ``0..g-1``, shape ``(n,)`` or that of the target, int64.
    label_smoothing : float
        As in `torch.nn.functional.cross_entropy`: the smoothed part weighs every class's term
        with that class's own weight.

    Returns
    -------
    Tensor
        In the shape of the target, not averaged.

    References
    ----------
    Li et al., "AutoBalance", NeurIPS 2021, eq. 2.1 and 2.2; with groups, eq. 4.2.
    """
    z = adjusted_logits(logits, additive=additive, multiplicative=multiplicative, groups=groups)
    # torch's fused loss equals -log_softmax(z)[y] and is faster than log_softmax with gather.
    loss = F.cross_entropy(z, target, reduction="none")
    weight = None if weight is None else weight.to(loss.dtype)
    if weight is not None:
        loss = loss * _at_target(weight, target, groups)
    if label_smoothing:
        rows = None if weight is None else _rows(weight, groups, z.ndim)
        log_p = F.log_softmax(z, dim=1)
        everywhere = -(log_p if rows is None else log_p * rows).sum(dim=1)
        loss = (1.0 - label_smoothing) * loss + label_smoothing / z.shape[1] * everywhere
    return loss


# Reduction and checks, which every training step calls


def reduced_loss(
    logits: Tensor,
    target: Tensor,
    parameters: LossParameters,
    *,
    groups: Tensor | None = None,
    sample_weight: Tensor | None = None,
    reduction: Reduction = "mean",
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    fused: bool = False,
) -> Tensor:
    """Parametric cross-entropy of a batch, reduced as torch reduces its own.

    The mean divides by the sum of w_y (times the sample weight) over the batch, as
    `torch.nn.CrossEntropyLoss` does, so that the scale of w does not act as a learning rate; w's
    gradient sees the division. Examples (or pixels) whose target is `ignore_index` count for nothing,
    and a batch of nothing else gives 0. Groups and sample weights are of the images, or of the pixels.

    It is twice differentiable by the logits and the parameters. With `fused` it may take the form of
    `fused_cross_entropy`, the same to rounding and cheaper to train with where classes are many.
    """
    check_batch(logits, target, groups, sample_weight)
    if logits.ndim < 2:
        raise InputError(
            f"The loss needs logits of shape (n, k) or (n, k, d1, ...); got {tuple(logits.shape)}."
        )
    expected = (logits.shape[0], *logits.shape[2:])
    if target.shape != expected:
        each = "row of logits" if logits.ndim == 2 else f"pixel of logits {tuple(logits.shape)}"
        remedy = ""
        if target.shape == logits.shape:
            remedy = " Soft targets are not supported: give target.argmax(dim=1)."
            if logits.ndim == 2:
                remedy += " Where an example has several labels take ParametricBinaryCrossEntropy."
        raise InputError(
            f"The loss needs one class index per {each}: expected target of shape {expected}, got "
            f"{tuple(target.shape)}.{remedy}"
        )
    for name, values in (("target", target), ("groups", groups)):
        if values is not None and values.dtype != torch.int64:
            raise InputError(
                f"The loss needs {name} as indices of dtype int64; got {values.dtype}. "
                f"Where they are whole numbers from 0, give {name}.long()."
            )
    if groups is not None:
        _check_rows(groups)
    dtype = torch.promote_types(logits.dtype, torch.float32)
    kept, safe, scale = apply_ignore_index(target, sample_weight, ignore_index, dtype)
    given: dict[str, Any] = {"groups": groups, "label_smoothing": label_smoothing}
    try:
        of_images = groups is None or groups.ndim == 1
        if fused and of_images and should_use_fused(logits, *parameters, sample_weight):
            if reduction == "mean":  # divided before, so that the gradient is not gone over again
                scale = scale / _mass(scale, safe, parameters, groups)
            loss = fused_cross_entropy(logits, safe, parameters, scale=scale, kept=kept, **given)
            return loss if reduction == "none" else loss.sum()
        loss = parametric_cross_entropy(logits, safe, **parameters._asdict(), **given)
    except IndexError as error:  # on a CPU; looking before would make a GPU wait
        rows = next((len(p) for p in parameters if p is not None and p.ndim == 2), None)
        upto = f"target must lie in 0..{logits.shape[1] - 1} or be {ignore_index}" + (
            "" if rows is None else f", groups in 0..{rows - 1}"
        )
        outside = describe_outside(safe, logits.shape[1]) if logits.ndim > 2 else None
        raise InputError(f"An index is out of range: {upto} ({outside or error}).") from None
    # `where` rather than a product alone: an ignored row may hold a non-finite loss.
    loss = torch.where(kept, loss, 0.0) * scale
    if reduction != "mean":
        return reduced(loss, scale, reduction)
    return loss.sum() / _mass(scale, safe, parameters, groups)


def apply_ignore_index(
    target: Tensor, sample_weight: Tensor | None, ignore_index: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Which examples count, targets with 0 where one does not, and what each counts for.

    All are in the shape of the target.
    """
    kept = target != ignore_index
    weight = None if sample_weight is None else per_pixel(sample_weight, target).to(dtype)
    scale = kept.to(dtype) if weight is None else kept * weight
    return kept, torch.where(kept, target, 0), scale


def describe_outside(target: Tensor, num_classes: int) -> str | None:
    """How many class indices are outside ``0..num_classes-1``, and the first of them; None without any."""
    places = ((target < 0) | (target >= num_classes)).nonzero()
    if not len(places):
        return None
    first = places[0].tolist()
    place = f"[{', '.join(map(str, first))}]"
    return (
        f"{len(places)} of {target.numel()} targets, such as {int(target[tuple(first)])} at {place}"
    )


def reduced(loss: Tensor, scale: Tensor, reduction: Reduction) -> Tensor:
    """Losses that are scaled already, reduced; the mean divides by the sum of scales."""
    if reduction == "none":
        return loss
    return loss.sum() if reduction == "sum" else loss.sum() / _at_least_tiny(scale.sum())


def check_batch(logits: Any, target: Any, groups: Any = None, sample_weight: Any = None) -> None:
    """Refuse what a loss cannot be called with, as far as a GPU need not be waited for."""
    given = {"logits": logits, "target": target, "groups": groups, "sample_weight": sample_weight}
    for name, value in given.items():
        if not isinstance(value, Tensor) and (value is not None or name in ("logits", "target")):
            raise InputError(
                f"The loss needs {name} as a torch.Tensor; got {type(value).__name__}."
            )
    if not logits.is_floating_point():
        raise InputError(f"The loss needs logits of a floating-point dtype; got {logits.dtype}.")
    for name in ("groups", "sample_weight"):
        value = given[name]
        if value is not None and value.shape not in (target.shape, target.shape[:1]):
            raise InputError(
                f"The loss needs {name} of the shape of target, {tuple(target.shape)}; got "
                f"{tuple(value.shape)}."
            )


def _check_rows(groups: Tensor) -> None:
    """Refuse groups below -1, which would count rows from the end. -1 is the last row: unknown."""
    if groups.device.type == "cpu" and groups.numel() and not torch.compiler.is_compiling():
        lowest = int(groups.min())
        if lowest < -1:
            raise InputError(f"An index is out of range: groups has {lowest}, they count from 0.")


def _mass(
    scale: Tensor, target: Tensor, parameters: LossParameters, groups: Tensor | None
) -> Tensor:
    """What the mean divides by: the sum of scale times w_y."""
    w_y = target_weight(target, parameters.weight, groups)
    return _at_least_tiny((scale if w_y is None else scale * w_y.to(scale.dtype)).sum())


def _at_least_tiny(total: Tensor) -> Tensor:
    return total.clamp(min=torch.finfo(total.dtype).tiny)


def check_width(logits: Tensor, num_classes: int | None) -> None:
    """Refuse logits whose width is not the number of classes."""
    if not isinstance(logits, Tensor):
        raise InputError(f"The loss needs logits as a torch.Tensor; got {type(logits).__name__}.")
    if num_classes is not None and logits.ndim >= 2 and logits.shape[1] != num_classes:
        raise InputError(
            f"The loss has parameters for {num_classes} classes, but the network returned logits of "
            f"width {logits.shape[1]}. Give the network's last layer {num_classes} outputs."
        )


# Over many classes: value and gradient in one go

CHUNK = 2**18
"""Numbers in the part of the logits worked on at once, 1 MiB: it stays in the processor's caches."""

LEAST_CLASSES = 256
LEAST_LOGITS = 2**20
"""With fewer classes, or fewer numbers in the logits, the plain form is as fast; dense logits need no
classes, for in parts they stay in the caches, and no further table of their size is made."""


def should_use_fused(logits: Tensor, *others: Tensor | None) -> bool:
    """Whether `fused_cross_entropy` can serve, for a gradient by the logits alone, and is worth it.

    It is faster on a CPU, with many classes or many pixels. A compiler fuses the plain form by itself.
    `others` are whatever else the loss depends on.
    """
    many = (logits.ndim > 2 or logits.shape[1] >= LEAST_CLASSES) and logits.numel() >= LEAST_LOGITS
    return many and can_fuse(logits, *others)


def can_fuse(logits: Tensor, *others: Tensor | None) -> bool:
    """Whether a gradient by the logits alone, formed along with the value on a CPU, is all that is asked."""
    given = [logits, *(t for t in others if t is not None)]
    return (
        not torch.compiler.is_compiling()
        and logits.device.type == "cpu"
        and torch.is_grad_enabled()
        and logits.requires_grad
        and not any(t.requires_grad for t in given[1:])
        and type(logits) in (Tensor, nn.Parameter)
        and not is_transformed(logits)
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
    """`parametric_cross_entropy` times `scale` ``(n, ...)``, and 0 for what is not `kept`.

    Differentiable by the logits alone, any number of times. The gradient is formed along with the value, a
    few rows or pixels at a time, so that of all the tables on the way only it is ever whole in memory.
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
        """Losses ``(n,)``, and in the same pass their gradient, which is kept."""
        loss, ctx.gradient = _value_and_gradient(logits, rest)
        ctx.rest, ctx.dtype = rest, logits.dtype
        ctx.save_for_backward(logits)
        return loss

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        """The gradient that was kept, or where derivatives of it are wanted that of the plain form."""
        (slope,) = grad_outputs
        if torch.is_grad_enabled() or is_transformed(slope):  # create_graph, is_grads_batched
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
    """The scaled losses ``(n, ...)`` and each one's gradient ``(n, k, ...)``, in float32 at least."""
    k = logits.shape[1]
    if rest.target.numel() and not 0 <= int(rest.target.min()) <= int(rest.target.max()) < k:
        raise IndexError(f"a target lies outside 0..{k - 1}")
    dtype = torch.promote_types(logits.dtype, torch.float32)
    parameters = LossParameters(*(None if p is None else p.to(dtype) for p in rest.parameters))
    own, scale, groups = rest.target[:, None], rest.scale.to(dtype)[:, None], rest.groups
    w_y = target_weight(rest.target, parameters.weight, groups)
    hard = (1.0 - rest.smoothing) * (scale if w_y is None else scale * w_y[:, None])
    soft = rest.smoothing / k * scale

    # What is written to part by part must have pixels that lie in one line, as contiguous tensors do.
    lasting = logits.ndim == 4 and logits.is_contiguous(memory_format=torch.channels_last)
    layout = torch.channels_last if lasting else torch.contiguous_format
    gradient = torch.empty_like(logits, dtype=dtype, memory_format=layout)
    p_own, everywhere = (hard.new_zeros(hard.shape) for _ in range(2))
    tables = (logits, gradient, own, hard, soft, p_own, everywhere)
    if logits.ndim == 2:
        _fill_rows(tables, parameters, groups, rest.smoothing)
    else:
        _fill_images(tables, parameters, groups, rest.smoothing)
    log_p = p_own.log()
    lost = (p_own < torch.finfo(dtype).tiny).squeeze(1)
    if bool(lost.any()):  # the own class's probability is below what the dtype can hold
        which = None if groups is None else per_pixel(groups, rest.target)[lost]
        some = logits.movedim(1, -1)[lost].to(dtype)
        _, additive, delta = parameters
        z = _adjusted(some, _of(additive, which), _of(delta, which), torch.empty_like(some))
        log_p.squeeze(1)[lost] = -F.cross_entropy(z, rest.target[lost], reduction="none")
    loss = (soft * everywhere - hard * log_p).squeeze(1)
    if not bool(rest.kept.all()):
        loss = torch.where(rest.kept, loss, 0.0)
        gradient.movedim(1, -1)[~rest.kept] = 0.0
    return loss, gradient


_Tables = tuple[Tensor, ...]
"""Logits, gradient, own class, hard and soft factor, p of the own class, and the smoothed part."""


def _fill_rows(
    tables: _Tables, parameters: LossParameters, groups: Tensor | None, smoothing: float
) -> None:
    """Gradient, p and smoothed part of logits ``(n, k)``, some rows at a time."""
    n, k = tables[0].shape
    size = max(1, CHUNK * torch.get_num_threads() // k)
    work = tables[1].new_empty(min(n, size), k)
    for first in range(0, n, size):
        part = slice(first, first + size)
        which = None if groups is None else groups[part]
        rows = [_of(p, which) for p in parameters]
        some = [table[part] for table in tables]
        _fill(some, rows, work[: len(some[0])], smoothing, dim=1)


def _fill_images(
    tables: _Tables, parameters: LossParameters, groups: Tensor | None, smoothing: float
) -> None:
    """The same of dense logits ``(n, k, d1, ...)``, some pixels of an image at a time."""
    n, k = tables[0].shape[:2]
    flat = [table.flatten(2) for table in tables]
    size = max(1, CHUNK * torch.get_num_threads() // k)
    work = tables[1].new_empty(k, min(flat[0].shape[2], size))
    for image in range(n):
        which = None if groups is None else groups[image : image + 1]
        columns = [None if p is None else _of(p, which).view(-1, 1) for p in parameters]
        for first in range(0, flat[0].shape[2], size):
            some = [table[image, :, first : first + size] for table in flat]
            _fill(some, columns, work[:, : some[0].shape[1]], smoothing, dim=0)


def _fill(
    tables: Sequence[Tensor], rows: Sequence[Any], work: Tensor, smoothing: float, dim: int
) -> None:
    """One part of the tables, with the classes in dimension `dim`; `rows` are its w, l and delta."""
    logits, out, y, factor, soft, p_own, everywhere = tables
    weight, additive, delta = rows
    z = _adjusted(logits, additive, delta, work)
    torch.softmax(z, dim, out=out)
    torch.gather(out, dim, y, out=p_own)
    if smoothing:
        w = torch.ones_like(z) if weight is None else weight.expand_as(z)
        mass = w.sum(dim=dim, keepdim=True)
        everywhere.copy_(-(torch.log_softmax(z, dim) * w).sum(dim=dim, keepdim=True))
        out *= factor + soft * mass
        out -= soft * w
    else:
        out *= factor
    out.scatter_add_(dim, y, -factor)
    if delta is not None:
        out *= delta


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


def is_transformed(tensor: Tensor) -> bool:
    """Whether inside a transform of `torch.func`, or part of several gradients taken at once.

    torch has no public way to ask. Where its private names are gone the answer is yes, which costs time but
    is never wrong.
    """
    private = getattr(torch, "_C", None)
    is_active = getattr(private, "_are_functorch_transforms_active", None)
    is_batched = getattr(getattr(private, "_functorch", None), "is_legacy_batchedtensor", None)
    return is_active is None or is_batched is None or is_active() or is_batched(tensor)
