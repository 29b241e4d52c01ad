"""A new network, its optimiser, and the bias that training starts from."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from autobalance._validation import InputError
from autobalance.bilevel.types import ModelFactory
from autobalance.losses import last_linear
from autobalance.records import Recipe


def make_network(model_factory: ModelFactory) -> nn.Module:
    """A new network from its factory; what is no factory, or makes no module, is refused."""
    if isinstance(model_factory, nn.Module) or not callable(model_factory):
        raise InputError(
            "The model factory must be a function that returns a new network, such as "
            f"lambda: Network(); got {type(model_factory).__name__}. Each run trains one of its own."
        )
    module = model_factory()
    if not isinstance(module, nn.Module):
        raise InputError(
            f"The model factory must return a torch.nn.Module; got {type(module).__name__}."
        )
    return module


def make_optimizer(
    model: nn.Module, recipe: Recipe, undecayed: nn.Parameter | None = None
) -> Optimizer:
    """The recipe's optimiser of all trainable weights; weight decay leaves `undecayed` alone."""
    weights: list[Any] = [p for p in model.parameters() if p.requires_grad and p is not undecayed]
    if undecayed is not None and undecayed.requires_grad:
        weights = [{"params": weights}, {"params": [undecayed], "weight_decay": 0.0}]
    if not weights:
        raise InputError("The network has no trainable parameter.")
    common: dict[str, Any] = {"lr": recipe.lr, "weight_decay": recipe.weight_decay}
    if recipe.optimizer == "sgd":
        nesterov = recipe.momentum > 0
        return torch.optim.SGD(weights, momentum=recipe.momentum, nesterov=nesterov, **common)
    return torch.optim.AdamW(weights, **common)


@torch.no_grad()
def init_bias_offset(
    module: nn.Module, additive: Tensor, counts: np.ndarray
) -> nn.Parameter | None:
    """Take l off the bias of the last linear layer, where that has one output per class.

    Returns that bias, or None where there is none such. The last linear layer in order of registration
    gives the logits. Of l with shape ``(g, k)`` the mean over the examples is taken, by their counts
    ``(g, k)``; a further row of l, for unknown groups, is a mean of the others already.
    """
    try:
        bias = getattr(last_linear(module)[1], "bias", None)
    except InputError:  # there is no linear layer
        return None
    if not isinstance(bias, nn.Parameter) or len(bias) != additive.shape[-1]:
        return None
    if additive.ndim == 2 and counts.ndim == 1:
        return None  # the loss is going to ask for groups
    if additive.ndim == 2:
        groups = torch.as_tensor(counts.sum(axis=-1) / counts.sum(), dtype=additive.dtype)
        additive = groups.to(additive.device) @ additive[: len(counts)]
    bias.sub_((additive - additive.mean()).to(bias))
    return bias
