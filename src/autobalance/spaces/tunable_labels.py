"""The tunable loss of several labels, whose parameters come from a space over labels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from autobalance._validation import InputError, instance, one_of
from autobalance.losses import (
    LossParameters,
    ParametricBinaryCrossEntropy,
    Reduction,
    check_width,
    reduced_binary_loss,
)
from autobalance.spaces.base import DesignSpace
from autobalance.spaces.label_space import HierarchicalLabelSpace
from autobalance.spaces.tunable_loss import LossSnapshot, TunableCrossEntropy


class LabelLossSnapshot(LossSnapshot):
    """As `LossSnapshot`, of a `TunableBinaryCrossEntropy`."""

    def __call__(
        self,
        input: Tensor,
        target: Tensor,
        *,
        groups: Tensor | None = None,
        sample_weight: Tensor | None = None,
    ) -> Tensor:
        """Same as `ParametricBinaryCrossEntropy.forward`."""
        check_width(input, self.num_classes)
        return reduced_binary_loss(
            input, target, self.parameters, sample_weight=sample_weight, fused=True, **self.options
        )


class TunableBinaryCrossEntropy(TunableCrossEntropy):
    """Parametric binary cross-entropy at the present point of a design space over labels.

    As `TunableCrossEntropy`, for logits and targets ``(n, k)``.

    Parameters
    ----------
    space : HierarchicalLabelSpace
        What is free to move, and from where it starts.
    reduction : {"mean", "sum"}
        As for `ParametricBinaryCrossEntropy`.
    """

    def __init__(self, space: DesignSpace, *, reduction: Reduction = "mean") -> None:
        nn.Module.__init__(self)
        one_of("reduction", reduction, ("mean", "sum"))
        instance("space", space, HierarchicalLabelSpace, "Such as HierarchicalLabelSpace(counts).")
        self.space = space
        self.options: dict[str, Any] = {"reduction": reduction}

    def snapshot(self) -> LossSnapshot:
        """The loss as it is now, to train with until the space moves."""
        with torch.no_grad():
            parameters = self.space().detach()
        return LabelLossSnapshot(parameters, self.space.num_classes, None, self.options)

    def at(
        self, parameters: LossParameters, input: Tensor, target: Tensor, **rows: Tensor | None
    ) -> Tensor:
        """The loss with these parameters in place of the space's; differentiable in them."""
        weight = rows.get("sample_weight")
        return reduced_binary_loss(input, target, parameters, sample_weight=weight, **self.options)

    def frozen(self) -> ParametricBinaryCrossEntropy:  # type: ignore[override]
        """The loss at the space's present values, free of the space."""
        return ParametricBinaryCrossEntropy(**self.space().detach()._asdict(), **self.options)


def build_tunable_loss(space: DesignSpace, *, labels: bool = False) -> TunableCrossEntropy:
    """The tunable loss of a space: over labels where the data has several of them.

    Raises
    ------
    InputError
        If a space over classes is given for several labels, or the other way round.
    """
    if isinstance(space, HierarchicalLabelSpace) != labels:
        needed = "HierarchicalLabelSpace" if labels else "a space over classes, HierarchicalSpace"
        what = "several labels, y of shape (n, k)" if labels else "one class per example"
        raise InputError(
            f"The data has {what}: the space must be {needed}; got {type(space).__name__}."
        )
    return TunableBinaryCrossEntropy(space) if labels else TunableCrossEntropy(space)
