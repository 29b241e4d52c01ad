"""Mean intersection over union, the measure of segmentation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from autobalance._validation import InputError
from autobalance.objectives.base import Labels, Objective, Over
from autobalance.objectives.surrogates import SmoothError, Surrogate

_AT_ONCE = 2**18
"""Logits that are worked on at once on a CPU, 1 MiB for each thread."""


@dataclass(frozen=True, kw_only=True)
class MeanIoU(Objective):
    r"""One minus the mean over classes of intersection over union (the Jaccard index).

    .. math:: 1 - \frac{1}{k} \sum_k \frac{C_{kk}}{n_k + \sum_{j \ne k} C_{kj}}

    C_kj is how many of the n_j pixels (or examples) of class j are decided to be of class k; the counts
    are of all images together, as benchmarks of segmentation have them. Classes that the data lack are
    left out of the mean, though a pixel that is taken for one counts as an error of its own class.

    Smoothly C sums the probabilities :math:`\mathrm{softmax}(f / T)` in place of decisions. Unlike an
    error rate by class it punishes a rare class's false positives as much as its misses, so it depends on
    how frequent the classes are.

    Parameters
    ----------
    surrogate : SmoothError
        Its temperature T; by default a tenth of the mean distance of the two largest logits, through which it
        is differentiated. It must be small: the probabilities that many pixels of frequent classes give to
        a rare one would outnumber its own pixels.

    Raises
    ------
    InputError
        If the surrogate is no SmoothError.

    References
    ----------
    Everingham et al., "The PASCAL Visual Object Classes (VOC) Challenge", IJCV 2010. The smooth form is that
    of Rahman and Wang, "Optimizing Intersection-Over-Union in Deep Neural Networks for Image Segmentation",
    2016, over all classes.
    """

    over: Over = field(default="class", init=False)
    surrogate: Surrogate = field(default_factory=lambda: SmoothError(relative=0.1))

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.surrogate, SmoothError):
            raise InputError("MeanIoU is of decisions: the surrogate must be a SmoothError.")

    @property
    def by_decision(self) -> bool:
        """Always: false positives are of the class decided for."""
        return True

    def sums(
        self,
        logits: Tensor,
        target: Tensor,
        groups: Tensor | None = None,
        sample_weight: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The smooth C ``(k, k)``, and n_j in each of its rows; groups have no part."""
        labels = Labels.of(logits[:, 0], target, None, sample_weight)
        logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
        assert isinstance(self.surrogate, SmoothError)
        weight = labels.sample_weight
        shares = torch.ones_like(logits[:, 0]) if weight is None else weight.to(logits)
        total = cast(Tensor, _Confusion.apply(logits, labels.target, shares, self.surrogate))
        return total, self._masses(labels.target.flatten(), weight, total)

    @torch.no_grad()
    def decision_sums(
        self,
        predicted: Tensor,
        target: Tensor,
        num_classes: int,
        groups: Tensor | None = None,
        sample_weight: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The hard C ``(k, k)``, and n_j in each of its rows, in float64; groups have no part."""
        labels = Labels.of(predicted, target, None, sample_weight)
        own, weight = labels.target.flatten(), labels.sample_weight
        each = torch.ones_like(own, dtype=torch.float64) if weight is None else weight.double()
        empty = torch.zeros(num_classes**2, dtype=torch.float64, device=own.device)
        cell = predicted.flatten() * num_classes + own
        total = empty.index_add(0, cell, each.flatten()).view(num_classes, -1)
        return total, self._masses(own, weight, total)

    def value(self, total: Tensor, mass: Tensor, *, smoothly: bool = False) -> Tensor:
        """One minus the mean IoU, from C and the n_j in each row, both ``(k, k)``."""
        if total.shape[-2] != total.shape[-1]:
            raise InputError(
                "MeanIoU needs to know which class is decided for, not only what is wrong; got sums of shape "
                f"{tuple(total.shape)}."
            )
        sizes = mass[0]
        inside = total.diagonal()
        union = sizes + total.sum(dim=1) - inside
        iou = inside / torch.where(union > 0, union, 1.0)
        present = sizes > 0
        return 1.0 - torch.where(present, iou, 0.0).sum() / present.sum().clamp(min=1)

    def effective_size(self, counts: Any) -> float:
        """As of the mean over classes of the error: k^2 / sum_k 1 / n_k."""
        by_class = np.atleast_2d(np.asarray(counts, dtype=np.float64)).sum(axis=0)
        present = by_class[by_class > 0]
        return float(len(present) ** 2 / np.sum(1.0 / present))

    @staticmethod
    def _masses(own: Tensor, weight: Tensor | None, like: Tensor) -> Tensor:
        each = torch.ones_like(own, dtype=like.dtype) if weight is None else weight.flatten()
        sizes = like.new_zeros(like.shape[1]).index_add(0, own, each.to(like))
        return sizes.expand_as(like)


class _Confusion(torch.autograd.Function):
    """Sums of softmax(f / T) by class, ``(k, k)``; targets and weights are of the shape ``(n, ...)``.

    Part by part, forwards and backwards, since of dense logits tables of their size would add up. T is the
    surrogate's, where it has none `relative` times the mean distance of the two largest logits.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, target: Tensor, weight: Tensor, surrogate: SmoothError
    ) -> Tensor:
        """The sums; which logits are the two largest is kept for T's gradient."""
        highest: list[Tensor] = []
        ctx.by_distance = None
        scale = logits.new_tensor(surrogate.temperature or 1.0)
        if surrogate.temperature is None:
            highest = [
                target.new_empty(target.shape) for _ in range(2)
            ]  # contiguous: views of it are written
            mean = _mean_distance(logits, weight, highest)
            slope = surrogate.relative / weight.sum().clamp(min=1e-30)
            ctx.by_distance = torch.where(mean > 0, slope, 0.0)
            scale = surrogate.relative * torch.where(mean > 0, mean, 1.0)
        total = logits.new_zeros(logits.shape[1], logits.shape[1])
        for part, own, share in _parts(logits, target, weight):
            total.index_add_(1, own, torch.softmax(part / scale, dim=0).mul_(share))
        ctx.save_for_backward(logits, target, weight, scale, *highest)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The gradient by the logits from that by the sums, through T as well."""
        logits, target, weight, scale, *highest = ctx.saved_tensors
        gradient, by_scale = logits.new_empty(logits.shape), torch.zeros_like(scale)
        parts = zip(_parts(logits, target, weight), _parts(gradient), strict=True)
        for (part, own, share), (out,) in parts:
            p = torch.softmax(part / scale, dim=0)
            along = grad_outputs[0].index_select(1, own).mul_(share)
            along.sub_((p * along).sum(dim=0)).mul_(p).div_(scale)
            out.copy_(along)
            by_scale -= along.mul_(part).sum() / scale
        if highest:
            slope = by_scale * ctx.by_distance
            for out, share, *places in _parts(gradient, weight, *highest):
                for sign, place in zip((slope, -slope), places, strict=True):
                    out.scatter_add_(0, place[None], (sign * share)[None])
        return gradient, None, None, None


def _mean_distance(logits: Tensor, weight: Tensor, highest: list[Tensor]) -> Tensor:
    """Weighted mean distance of the two largest logits, whose classes are written to `highest`."""
    total = weight.new_zeros(())
    for part, share, first, second in _parts(logits, weight, *highest):
        largest, place = part.max(dim=0)
        first.copy_(place)
        next_largest, place = part.scatter(0, first[None], -torch.inf).max(dim=0)
        second.copy_(place)
        total += ((largest - next_largest) * share).sum()
    return total / weight.sum().clamp(min=1e-30)


def _parts(logits: Tensor, *labels: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Views of some pixels of an image, logits ``(k, m)`` and labels ``(m,)``.

    On a CPU so few that they stay in its caches. Examples are one part together.
    """
    if logits.ndim == 2:
        yield logits.T, *labels
        return
    on_cpu = logits.device.type == "cpu"
    size = max(1, _AT_ONCE * torch.get_num_threads() // logits.shape[1]) if on_cpu else None
    for image, *own in zip(logits, *labels, strict=True):
        flat = [image.flatten(1), *(values.flatten() for values in own)]
        for first in range(0, flat[0].shape[1], size or flat[0].shape[1]):
            yield tuple(values[..., first : first + (size or flat[0].shape[1])] for values in flat)
