"""Published losses for imbalanced data that are not a parametric cross-entropy, for comparison.

Those that are one are class methods of `ParametricCrossEntropy`. All are called alike, and
`to_dict` says which loss with which arguments it is, so that a run can be told from another.
"""

from __future__ import annotations

import copy
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autobalance._validation import (
    InputError,
    class_counts,
    fraction,
    not_negative,
    one_of,
    positive,
    whole,
)
from autobalance.losses.modules import (
    ArrayLike,
    _counts_per_class,
    _parameter,
    effective_number_weights,
)
from autobalance.losses.parametric import (
    LossParameters,
    Reduction,
    adjusted_logits,
    apply_ignore_index,
    check_batch,
    check_width,
    reduced,
    reduced_loss,
    target_weight,
)
from autobalance.objectives import per_pixel

_FORMAT = "autobalance-published-loss"


class _PublishedLoss(nn.Module):
    """What identifies a published loss: its class and the arguments that build it again."""

    ARGUMENTS: ClassVar[tuple[str, ...]]
    """Names of the arguments, each an attribute too."""

    def arguments(self) -> dict[str, Any]:
        """Arguments of the class, in JSON's types."""
        return {name: _plain(getattr(self, name)) for name in self.ARGUMENTS}

    def extra_repr(self) -> str:
        """The arguments that are plain numbers and names."""
        values = self.arguments().items()
        return ", ".join(f"{n}={v}" for n, v in values if isinstance(v, (int, float, str)))

    def to_dict(self) -> dict[str, Any]:
        """Class and arguments, in JSON's types. State that training moves is not part of it."""
        return {
            "format": _FORMAT,
            "version": 1,
            "loss": type(self).__name__,
            "arguments": self.arguments(),
        }


def _plain(value: Any) -> Any:
    if isinstance(value, nn.Module):
        return value.to_dict()  # type: ignore[operator]
    return value.tolist() if isinstance(value, Tensor) else value


def _class_weight(weight: ArrayLike | None, num_classes: int | None = None) -> Tensor | None:
    tensor = _parameter("weight", weight, above_zero=True)
    if tensor is not None and (tensor.ndim != 1 or len(tensor) != (num_classes or len(tensor))):
        raise InputError(
            f"weight needs one number per class, shape ({num_classes or 'k'},); "
            f"got shape {tuple(tensor.shape)}."
        )
    return tensor


class FocalLoss(_PublishedLoss):
    r"""Focal loss of a softmax: examples already classified well count less.

    .. math:: \ell(y, f) = -w_y (1 - p_y)^\gamma \log p_y, \quad p = \mathrm{softmax}(f)

    Parameters
    ----------
    gamma : float
        At least 0; 0 is cross-entropy.
    weight : array-like, optional
        Class weights w, above 0, shape ``(k,)``. None: 1.
    reduction : {"mean", "sum", "none"}
        "mean" divides by the batch's sum of w_y, not by the factors (1 - p_y)^gamma.
    ignore_index : int
        Target value that counts for nothing.

    Raises
    ------
    InputError
        If `gamma` is negative or `weight` is not as above.

    References
    ----------
    Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017, eq. 5, there with a sigmoid
    per class; here in the softmax form that Cao et al., NeurIPS 2019, compare with (gamma = 1).

    Examples
    --------
    >>> loss = FocalLoss.class_balanced([500, 50, 5])
    >>> value = loss(torch.zeros(2, 3), torch.tensor([0, 2]))
    """

    ARGUMENTS = ("gamma", "weight", "reduction", "ignore_index")
    weight: Tensor | None

    def __init__(
        self,
        gamma: float = 2.0,
        weight: ArrayLike | None = None,
        *,
        reduction: Reduction = "mean",
        ignore_index: int = -100,
    ) -> None:
        super().__init__()
        self.gamma = float(not_negative("gamma", gamma))
        self.register_buffer("weight", _class_weight(weight))
        one_of("reduction", reduction, ("mean", "sum", "none"))
        self.reduction: Reduction = reduction
        self.ignore_index = ignore_index

    @classmethod
    def class_balanced(
        cls, cls_num_list: ArrayLike, beta: float = 0.9999, gamma: float = 2.0, **options: Any
    ) -> FocalLoss:
        """With the weights of `ParametricCrossEntropy.class_balanced` (Cui et al., CVPR 2019)."""
        return cls(gamma, effective_number_weights(cls_num_list, beta), **options)

    def forward(
        self,
        input: Tensor,
        target: Tensor,
        *,
        groups: Tensor | None = None,
        sample_weight: Tensor | None = None,
    ) -> Tensor:
        """Loss of raw logits ``(n, k, ...)`` against class indices ``(n, ...)``; `groups` have no part."""
        check_batch(input, target, groups, sample_weight)
        check_width(input, None if self.weight is None else len(self.weight))
        loss = reduced_loss(
            input, target, LossParameters(), reduction="none", ignore_index=self.ignore_index
        )
        # Kept above 0: where p rounds to 1, a power below 1 would have an infinite derivative.
        missing = (-torch.expm1(-loss)).clamp(min=torch.finfo(loss.dtype).tiny)
        _, own, scale = apply_ignore_index(target, sample_weight, self.ignore_index, loss.dtype)
        w_y = target_weight(own, self.weight)
        if w_y is not None:
            scale = scale * w_y.to(loss.dtype)
        return reduced(missing**self.gamma * loss * scale, scale, self.reduction)


class LDAMLoss(_PublishedLoss):
    r"""Label-distribution-aware margin loss: the rarer the class, the wider its margin.

    .. math:: \ell(y, f) = -w_y \log \mathrm{softmax}(s (f - m_y e_y))_y,
              \quad m_j = C / n_j^{1/4}

    Its logits are meant to be cosines, from -1 to 1, as `NormalizedLinear` returns them: the
    published network ends in such a layer, and margin and scale are sized for it. On the logits
    of a plain linear layer, which is accepted, the same formula is another, much sharper loss.

    Parameters
    ----------
    cls_num_list : array-like
        Training examples per class, shape ``(k,)``.
    max_margin : float
        The widest margin, that of the rarest class; it sets C. Above 0.
    scale : float
        s, above 0, applied after the margin is taken off.
    weight : array-like, optional
        Class weights w, above 0, shape ``(k,)``. None: 1.
    reduction : {"mean", "sum", "none"}
        "mean" divides by the batch's sum of w_y, as torch's cross-entropy does.
    ignore_index : int
        Target value that counts for nothing.

    Raises
    ------
    InputError
        If an argument is not as above.

    References
    ----------
    Cao et al., "Learning Imbalanced Datasets with Label-Distribution-Aware Margin Loss",
    NeurIPS 2019, eq. 13; the scale and the default margin are those of its code.
    """

    ARGUMENTS = ("cls_num_list", "max_margin", "scale", "weight", "reduction", "ignore_index")
    margins: Tensor
    weight: Tensor | None

    def __init__(
        self,
        cls_num_list: ArrayLike,
        max_margin: float = 0.5,
        scale: float = 30.0,
        weight: ArrayLike | None = None,
        *,
        reduction: Reduction = "mean",
        ignore_index: int = -100,
    ) -> None:
        super().__init__()
        counts = _counts_per_class(cls_num_list)
        self.cls_num_list = [int(n) for n in counts]
        self.max_margin = float(positive("max_margin", max_margin))
        self.scale = float(positive("scale", scale))
        margins = self.max_margin * (counts.min() / counts) ** 0.25
        self.register_buffer("margins", torch.tensor(margins, dtype=torch.get_default_dtype()))
        self.register_buffer("weight", _class_weight(weight, len(counts)))
        one_of("reduction", reduction, ("mean", "sum", "none"))
        self.reduction: Reduction = reduction
        self.ignore_index = ignore_index

    @classmethod
    def deferred(
        cls, cls_num_list: ArrayLike, beta: float = 0.9999, *, start: float = 0.8, **options: Any
    ) -> DeferredLoss:
        """LDAM-DRW: without weights at first, from the share `start` with class-balanced ones.

        As published: 160 of 200 epochs, and the weights of `effective_number_weights`.
        """
        weight = effective_number_weights(cls_num_list, beta)
        return DeferredLoss(
            cls(cls_num_list, **options), cls(cls_num_list, weight=weight, **options), start
        )

    def forward(
        self,
        input: Tensor,
        target: Tensor,
        *,
        groups: Tensor | None = None,
        sample_weight: Tensor | None = None,
    ) -> Tensor:
        """Loss of logits ``(n, k, ...)`` against class indices ``(n, ...)``; `groups` have no part."""
        check_batch(input, target, groups, sample_weight)
        check_width(input, len(self.margins))
        logits = adjusted_logits(input)  # half precision raised to float32
        if logits.ndim > 1 and target.shape == logits[:, 0].shape:  # else refused just below
            each = (
                -1,
                *[1] * (logits.ndim - 2),
            )  # a class's number and margin are the same for all pixels
            own = target[:, None] == torch.arange(len(self.margins), device=target.device).view(
                each
            )
            logits = self.scale * (logits - own * self.margins.to(logits.dtype).view(each))
        return reduced_loss(
            logits,
            target,
            LossParameters(weight=self.weight),
            sample_weight=sample_weight,
            reduction=self.reduction,
            ignore_index=self.ignore_index,
        )


COSINE_SCALE = 16.0
"""Of cosine logits under any loss but LDAM's, which has a scale of its own; see docs/experiments.md."""


class NormalizedLinear(nn.Module):
    """Last layer that returns a multiple of the cosine between features and each class's weights.

    Parameters
    ----------
    in_features, out_features : int
        At least 1. Weights ``(out_features, in_features)`` start in random directions, drawn
        from torch's global generator as its own layers do.
    scale : float
        The multiple, above 0. 1 for `LDAMLoss`, which multiplies by its own.

    References
    ----------
    The classifier that Cao et al., NeurIPS 2019, train LDAM with.
    """

    def __init__(self, in_features: int, out_features: int, scale: float = 1.0) -> None:
        super().__init__()
        self.in_features = whole("in_features", in_features, least=1)
        self.out_features = whole("out_features", out_features, least=1)
        self.scale = positive("scale", scale)
        self.weight = nn.Parameter(F.normalize(torch.randn(out_features, in_features), dim=1))

    def forward(self, input: Tensor) -> Tensor:
        """In [-scale, scale], shape ``(n, out_features)``, of features ``(n, in_features)``.

        Computed in float32 at least: the square of a feature can overflow in half precision.
        """
        features = adjusted_logits(input)
        weight = self.weight.to(features.dtype)
        return self.scale * F.linear(F.normalize(features, dim=-1), F.normalize(weight, dim=1))

    def extra_repr(self) -> str:
        """Widths and scale."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"scale={self.scale:g}"
        )


def with_normalized_head(model: nn.Module, scale: float = 1.0) -> nn.Module:
    """A copy of the model whose last linear layer is a `NormalizedLinear`: a cosine classifier.

    The last is the one registered last. The new layer starts in the directions of the old one's
    weights, so nothing is drawn at random; the old one's bias is dropped.

    Parameters
    ----------
    model : nn.Module
        The network.
    scale : float
        Of the cosines, above 0: 1 for `LDAMLoss`, 16 (`COSINE_SCALE`) for other losses.

    Raises
    ------
    InputError
        If the model has no `torch.nn.Linear`, or a row of the last one's weights is 0.

    Examples
    --------
    >>> network = with_normalized_head(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3)))
    """
    model = copy.deepcopy(model)
    name, old = last_linear(model)
    directions = F.normalize(old.weight.detach(), dim=1)
    if not directions.any(dim=1).all():
        raise InputError(
            f"A row of the weights of {name or 'the model'} is 0 and has no direction. "
            "Initialise the last layer at random."
        )
    # On "meta" nothing is drawn; the weights come from the old layer.
    with torch.device("meta"):
        new = NormalizedLinear(old.in_features, old.out_features, scale)
    new.weight = nn.Parameter(directions, requires_grad=old.weight.requires_grad)
    new.train(old.training)
    if not name:
        return new
    model.set_submodule(name, new)
    return model


LastLayer = nn.Linear | NormalizedLinear


def last_linear(model: nn.Module) -> tuple[str, LastLayer]:
    """Name and module of the last linear layer of a model, in order of registration.

    That is a `torch.nn.Linear` or a `NormalizedLinear`.

    Raises
    ------
    InputError
        If it has none.
    """
    kinds = (nn.Linear, NormalizedLinear)
    found = [(name, m) for name, m in model.named_modules() if type(m) in kinds]
    if not found:
        raise InputError(
            f"The model ({type(model).__name__}) has no torch.nn.Linear to replace. "
            "Give a network that ends in one."
        )
    return found[-1]  # type: ignore[return-value]


def new_layer_like(layer: LastLayer, out_features: int) -> LastLayer:
    """A layer of the same kind, drawn anew, for as many classes."""
    if isinstance(layer, NormalizedLinear):
        return NormalizedLinear(layer.in_features, out_features, layer.scale)
    return nn.Linear(layer.in_features, out_features, bias=layer.bias is not None)


class DeferredLoss(_PublishedLoss):
    """One loss until a share of the training is done, then another (deferred re-weighting, DRW).

    Before each step the training loop calls `reached`; a loss on which it was never called is `first`.
    The stage is no part of the state dict, since the step tells it.

    Parameters
    ----------
    first, then : nn.Module
        Losses of this package, `DeferredLoss` among them.
    start : float
        Share of the training after which `then` takes over, between 0 and 1.

    Raises
    ------
    InputError
        If `start` is out of range, or one of the two is no loss of this package.

    References
    ----------
    Cao et al., NeurIPS 2019, algorithm 1, which defers from epoch 160 of 200.
    """

    ARGUMENTS = ("first", "then", "start")

    def __init__(self, first: nn.Module, then: nn.Module, start: float = 0.8) -> None:
        super().__init__()
        for name, loss in (("first", first), ("then", then)):
            if not isinstance(loss, nn.Module) or not callable(getattr(loss, "to_dict", None)):
                raise InputError(
                    f"{name} must be a loss with to_dict, such as ParametricCrossEntropy(); "
                    f"got {type(loss).__name__}."
                )
        self.first = first
        self.then = then
        self.start = float(fraction("start", start))
        self.started = False

    def reached(self, done: int, total: int) -> None:
        """Set the stage for the step after `done` of `total` steps."""
        share = whole("done", done, least=0) / whole("total", total, least=1)
        self.started = share >= self.start
        for loss in (self.first, self.then):
            if isinstance(loss, DeferredLoss):
                loss.reached(done, total)

    def forward(
        self,
        input: Tensor,
        target: Tensor,
        *,
        groups: Tensor | None = None,
        sample_weight: Tensor | None = None,
    ) -> Tensor:
        """The present stage's loss of raw logits ``(n, k, ...)`` against class indices ``(n, ...)``."""
        loss = self.then if self.started else self.first
        return loss(input, target, groups=groups, sample_weight=sample_weight)


class GroupDROLoss(_PublishedLoss):
    r"""Online group distributionally robust optimisation: the worst groups weigh most.

    Each call in training mode first raises the weights of the batch's groups, then weighs with
    them; in evaluation mode the weights stay:

    .. math:: q_g \leftarrow q_g \exp(\eta \, (\ell_g + C / \sqrt{n_g})) / \text{sum}, \quad
              \ell = \sum_g q_g \, \ell_g

    where :math:`\ell_g` is the mean cross-entropy of the batch's examples of group g. A group
    that the batch lacks keeps its weight up to the division by the sum, and adds nothing to the
    loss. C moves the weights alone: in the loss it would be a constant. The loss is a weighted
    sum over groups, so there is no other reduction.

    Parameters
    ----------
    num_groups : int
        At least 2; the number of classes with ``over="class"``, of classes times groups with
        ``over="class_and_group"``.
    step_size : float
        :math:`\eta`, above 0.
    over : {"group", "class", "class_and_group"}
        What is a group: the `groups` of a call, the classes, or pairs of both, as in the paper's
        experiments; there group ``g * k + y``.
    adjustment : float
        C, at least 0: it guards groups of few examples, whose training loss says less.
    counts : array-like, optional
        Training examples per group n, shape ``(num_groups,)``; needed where C is above 0.
    ignore_index : int
        Target value that counts for nothing.

    Attributes
    ----------
    q : Tensor
        Group weights, shape ``(num_groups,)``, sum 1, float32; part of the state dict, but not of
        `to_dict`. None falls below the smallest normal number, so that each can rise again.

    Raises
    ------
    InputError
        If an argument is not as above.

    References
    ----------
    Sagawa et al., "Distributionally Robust Neural Networks for Group Shifts", ICLR 2020,
    algorithm 1, and eq. 5 for the adjustment. There each step draws a group at random; with
    batches of several groups each step moves them all, as in the paper's code, which counts on
    batches drawn evenly over groups.
    """

    ARGUMENTS = ("num_groups", "step_size", "over", "adjustment", "counts", "ignore_index")
    q: Tensor
    adjustments: Tensor | None

    def __init__(
        self,
        num_groups: int,
        step_size: float = 0.01,
        over: Literal["group", "class", "class_and_group"] = "group",
        *,
        adjustment: float = 0.0,
        counts: ArrayLike | None = None,
        ignore_index: int = -100,
    ) -> None:
        super().__init__()
        self.num_groups = int(whole("num_groups", num_groups, least=2))
        self.step_size = float(positive("step_size", step_size))
        self.over = one_of("over", over, ("group", "class", "class_and_group"))
        self.adjustment = float(not_negative("adjustment", adjustment))
        self.counts = None if counts is None else _group_counts(counts, self.num_groups)
        self.ignore_index = ignore_index
        adjustments = None
        if self.adjustment > 0:
            if self.counts is None:
                raise InputError(
                    "The adjustment is C / sqrt(n_g): give counts, the training examples per group."
                )
            adjustments = self.adjustment / torch.tensor(self.counts, dtype=torch.float32).sqrt()
        self.register_buffer("adjustments", adjustments)
        even = torch.full((self.num_groups,), 1.0 / self.num_groups, dtype=torch.float32)
        self.register_buffer("q", even)

    def forward(
        self,
        input: Tensor,
        target: Tensor,
        *,
        groups: Tensor | None = None,
        sample_weight: Tensor | None = None,
    ) -> Tensor:
        """Loss of raw logits ``(n, k, ...)`` against class indices ``(n, ...)``.

        Parameters
        ----------
        input : Tensor
            Raw logits, shape ``(n, k)``, or dense ``(n, k, d1, ...)``.
        target : Tensor
            Class indices, shape ``(n,)`` or ``(n, d1, ...)``.
        groups : Tensor, optional
            Group indices, shape ``(n,)`` or that of the target; needed with ``over="group"``, else without
            a part.
        sample_weight : Tensor, optional
            Non-negative weights in their group's mean, in one of these shapes.
        """
        check_batch(input, target, None, sample_weight)
        if self.over == "class":
            check_width(input, self.num_groups)
        elif not isinstance(groups, Tensor) or groups.shape not in (target.shape, target.shape[:1]):
            tensor = isinstance(groups, Tensor)
            came = f"shape {tuple(groups.shape)}" if tensor else "none"
            raise InputError(
                f"This loss weighs groups: pass groups=, one index per example; got {came}. "
                'To weigh classes instead, build it with over="class".'
            )
        loss = reduced_loss(
            input,
            target,
            LossParameters(),
            groups=groups,
            reduction="none",
            ignore_index=self.ignore_index,
        )
        _, index, scale = apply_ignore_index(target, sample_weight, self.ignore_index, loss.dtype)
        if groups is not None and self.over != "class":
            groups = per_pixel(groups, target)
            index = groups if self.over == "group" else groups * input.shape[1] + index
        loss, index, scale = loss.flatten(), index.flatten(), scale.flatten()
        share = self._members(index) * scale[:, None]
        # `where`: an infinite loss must not reach the other groups as 0 * inf.
        sums = torch.where(share > 0, share * loss[:, None], 0.0).sum(dim=0)
        total = share.sum(dim=0)
        means = sums / total.clamp(min=torch.finfo(loss.dtype).tiny)
        if self.training:
            self._raise_weights(means, total > 0)
        # A copy: the next call's update must not reach into this call's graph.
        return (self.q.to(loss.dtype, copy=True) * means).sum()

    def _members(self, index: Tensor) -> Tensor:
        """Which example is in which group, ``(n, num_groups)``; sums over it are deterministic."""
        try:
            return F.one_hot(index, self.num_groups)
        except RuntimeError as error:  # on a CPU; looking before would make a GPU wait
            raise InputError(
                f"An index is out of range: groups must lie in 0..{self.num_groups - 1} ({error})"
            ) from None

    @torch.no_grad()
    def _raise_weights(self, means: Tensor, present: Tensor) -> None:
        step = means if self.adjustments is None else means + self.adjustments.to(means.dtype)
        # In logarithms, where exp cannot overflow; a diverged loss leaves the weights as they are.
        step = torch.where(present & step.isfinite(), self.step_size * step, 0.0)
        weights = torch.softmax(self.q.to(step.dtype).log() + step, dim=0)
        self.q.copy_(weights.clamp(min=torch.finfo(self.q.dtype).tiny))


def _group_counts(counts: ArrayLike, num_groups: int) -> list[int]:
    array = class_counts(counts, name="counts", allow_empty=True)
    if array.shape != (num_groups,):
        raise InputError(
            f"counts needs one number per group, shape ({num_groups},); got shape {array.shape}."
        )
    if (array < 1).any() or (array % 1 != 0).any():
        raise InputError(
            f"counts must hold whole numbers of examples, each at least 1; got {array.tolist()}. "
            "Leave groups without examples out."
        )
    return [int(n) for n in array]
