"""A training loss whose parameters come from a design space, for the upper level to tune."""

from __future__ import annotations

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
from autobalance.spaces.spaces import DesignSpace


class TunableCrossEntropy(nn.Module):
    """Parametric cross-entropy at a design space's present point.

    Train with it as with any loss: its gradient reaches the network only, never the space.
    `LossTuner` moves the space.

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
            "reduction": reduction,
            "ignore_index": ignore_index,
            "label_smoothing": label_smoothing,
        }
        self._current: LossParameters | None = None
        self.register_load_state_dict_post_hook(_refresh)

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        self.refresh()
        return super()._apply(*args, **kwargs)

    def forward(
        self,
        input: Tensor,  # torch's name for it
        target: Tensor,
        *,
        groups: Tensor | None = None,
        sample_weight: Tensor | None = None,
    ) -> Tensor:
        """As `ParametricCrossEntropy.forward`."""
        check_width(input, self.space.num_classes)
        if groups is None and self.space.num_groups is not None:
            raise InputError(
                "This loss has one row per group: pass groups=, one index per example."
            )
        current = self._current
        if current is None:
            # Not in inference mode, whose tensors could not serve in training afterwards.
            with torch.inference_mode(False):
                current = self._current = self.space().detach()
        return reduced_loss(
            input, target, current, groups=groups, sample_weight=sample_weight, fused=True,
            **self.options,
        )  # fmt: skip

    def at(
        self,
        parameters: LossParameters,
        input: Tensor,  # torch's name for it
        target: Tensor,
        *,
        groups: Tensor | None = None,
        sample_weight: Tensor | None = None,
    ) -> Tensor:
        """The loss with these parameters in place of the space's; differentiable in them."""
        return reduced_loss(
            input, target, parameters, groups=groups, sample_weight=sample_weight, **self.options
        )

    def refresh(self) -> None:
        """Take up the space's present values; to be called whenever the space was moved."""
        self._current = None

    def frozen(self) -> ParametricCrossEntropy:
        """The loss at the space's present values, free of the space."""
        return ParametricCrossEntropy(**self.space().detach()._asdict(), **self.options)


def _refresh(module: TunableCrossEntropy, _: Any) -> None:
    """Hook after loading a state dict; a plain function, so that the loss can be pickled."""
    module.refresh()
