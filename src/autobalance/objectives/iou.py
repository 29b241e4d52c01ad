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
        scale = self.surrogate.temperature
        if scale is None:
            first = logits.detach().argmax(dim=1, keepdim=True)
            second = logits.detach().scatter(1, first, -torch.inf).argmax(dim=1, keepdim=True)
            highest = logits.gather(1, torch.cat([first, second], dim=1))
            del first, second
            size = highest[:, 0] - highest[:, 1]
            share = torch.ones_like(size) if weight is None else weight.to(size)
            mean = (size * share).sum() / share.sum().clamp(min=1e-30)
            scale = self.surrogate.relative * torch.where(mean > 0, mean, 1.0)
        scale = torch.as_tensor(scale, dtype=logits.dtype, device=logits.device)
        shares = torch.ones_like(logits[:, 0]) if weight is None else weight.to(logits)
        total = cast(Tensor, _Confusion.apply(logits, scale, labels.target, shares))
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

    Image by image, forwards and backwards, for of dense logits tables of their size would add up.
    """

    @staticmethod
    def forward(ctx: Any, *given: Tensor) -> Tensor:
        """The sums; logits, T, targets and weights are kept."""
        logits, scale, *labels = given
        ctx.save_for_backward(*given)
        total = logits.new_zeros(logits.shape[1], logits.shape[1])
        for image, target, weight in _images(logits, *labels):
            total.index_add_(1, target, torch.softmax(image / scale, dim=0) * weight)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The gradient by logits and T, from that by the sums."""
        logits, scale, *labels = ctx.saved_tensors
        # Contiguous, so that the images' rows are views to write to.
        gradient, by_scale = logits.new_empty(logits.shape), torch.zeros_like(scale)
        parts = zip(_images(logits, *labels), _images(gradient, *labels), strict=True)
        for (image, target, weight), (out, _, _) in parts:
            p = torch.softmax(image / scale, dim=0)
            along = grad_outputs[0].index_select(1, target) * weight
            along = p * (along - (p * along).sum(dim=0)) / scale
            out.copy_(along)
            by_scale -= (along * image).sum() / scale
        return gradient, by_scale, None, None


def _images(logits: Tensor, target: Tensor, weight: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Views of each image, logits ``(k, m)`` and labels ``(m,)``; examples are one image together."""
    if logits.ndim == 2:
        yield logits.T, target, weight
        return
    for image in range(len(logits)):
        yield logits[image].flatten(1), target[image].flatten(), weight[image].flatten()
