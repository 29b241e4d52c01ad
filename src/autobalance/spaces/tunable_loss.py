"""A training loss whose parameters come from a design space, for the upper level to tune."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from autobalance._validation import InputError, below_one, instance, one_of, whole
from autobalance.losses import (
    LossParameters,
    ParametricCrossEntropy,
    Reduction,
    check_width,
    reduced_loss,
)
from autobalance.spaces.base import DesignSpace


@dataclass(frozen=True)
class LossSnapshot:
    """A tunable loss at one point of its design space; the space may move on without it.

    A search trains with one snapshot between two upper steps, so that the few operations that make
    the loss's parameters are not repeated in every training step. The parameters carry no gradient;
    `options` are reduction, ignored target and label smoothing, as of `ParametricCrossEntropy`.
    """

    parameters: LossParameters
    num_classes: int
    num_groups: int | None
    options: dict[str, Any]

    def __call__(
        self,
        input: Tensor,  # torch's name for it
        target: Tensor,
        *,
        groups: Tensor | None = None,
        sample_weight: Tensor | None = None,
    ) -> Tensor:
        """Same as `ParametricCrossEntropy.forward`."""
        check_width(input, self.num_classes)
        if groups is None and self.num_groups is not None:
            raise InputError(
                "This loss has one row per group: pass groups=, one index per example."
            )
        return reduced_loss(
            input, target, self.parameters, groups=groups, sample_weight=sample_weight, fused=True,
            **self.options,
        )  # fmt: skip


class TunableCrossEntropy(nn.Module):
    """Parametric cross-entropy at a design space's present point.

    Train with it as with any loss: its gradient reaches the network only, never the space.
    `LossTuner` moves the space; the loss follows, as its parameters are computed in every call.

    Parameters
    ----------
    space : DesignSpace
        What is free to move, and from where it starts.
    reduction : {"mean", "sum"}
        As for `ParametricCrossEntropy`, which knows "none" too.
    ignore_index, label_smoothing
        As for `ParametricCrossEntropy`.
    """

    def __init__(
        self,
        space: DesignSpace,
        *,
        reduction: Reduction = "mean",
        ignore_index: int = -100,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        one_of("reduction", reduction, ("mean", "sum"))
        instance("space", space, DesignSpace, "Such as HierarchicalSpace(class_counts).")
        below_one("label_smoothing", label_smoothing)
        whole("ignore_index", ignore_index, least=-(2**63))
        self.space = space
        self.options: dict[str, Any] = {
            "reduction": reduction, "ignore_index": ignore_index, "label_smoothing": label_smoothing
        }  # fmt: skip

    def forward(
        self,
        input: Tensor,
        target: Tensor,
        *,
        groups: Tensor | None = None,
        sample_weight: Tensor | None = None,
    ) -> Tensor:
        """Same as `ParametricCrossEntropy.forward`, at the space's present point."""
        return self.snapshot()(input, target, groups=groups, sample_weight=sample_weight)

    def snapshot(self) -> LossSnapshot:
        """The loss as it is now, to train with until the space moves."""
        with torch.no_grad():
            parameters = self.space().detach()
        return LossSnapshot(parameters, self.space.num_classes, self.space.num_groups, self.options)

    def at(
        self, parameters: LossParameters, input: Tensor, target: Tensor, **rows: Tensor | None
    ) -> Tensor:
        """The loss with these parameters in place of the space's; differentiable in them."""
        return reduced_loss(input, target, parameters, **rows, **self.options)

    def frozen(self) -> ParametricCrossEntropy:
        """The loss at the space's present values, free of the space."""
        return ParametricCrossEntropy(**self.space().detach()._asdict(), **self.options)
