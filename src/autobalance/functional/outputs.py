"""What a network returns: its logits, and a look at whether they are logits."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from autobalance._validation import InputError


def call_network(network: Callable[..., Any], inputs: Any) -> Any:
    """What a network returns for a tensor, a tuple of arguments, or a mapping of keyword arguments."""
    if isinstance(inputs, Mapping):
        return network(**inputs)
    return network(*inputs) if isinstance(inputs, tuple) else network(inputs)


def compute_logits(network: Callable[..., Any], inputs: Any) -> Tensor:
    """Call a network with a tensor, a tuple of arguments, or a mapping of keyword arguments; its logits.

    A network may return the logits, or an object with an attribute or key "logits".

    Raises
    ------
    InputError
        If a batch is too small for BatchNorm, or the output holds no logits.
    """
    try:
        output: Any = call_network(network, inputs)
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise InputError(
            "BatchNorm cannot train on a batch of one example. Use batches of at least two, or "
            f"drop the last, short one. ({error})"
        ) from None
    by_key = isinstance(output, Mapping)
    logits = output.get("logits") if by_key else getattr(output, "logits", output)
    if not isinstance(logits, Tensor):
        raise InputError(
            "The network must return logits, or an object with an attribute or key 'logits'; got "
            f"{type(output).__name__}. Wrap it in a module that does."
        )
    return logits


@torch.no_grad()
def warn_if_probabilities(logits: Tensor) -> None:
    """Warn where a network seems to end in a softmax or a sigmoid; to be called with its first batch.

    Rows in [0, 1] that sum to 1 are a softmax's. Numbers that all lie strictly between 0 and 1, in two rows
    or more that are not all alike, are a sigmoid's.

    Parameters
    ----------
    logits : Tensor
        What the network returned, shape ``(n, k)``.
    """
    if logits.ndim != 2 or logits.shape[1] < 2 or len(logits) == 0:
        return
    values = logits.double()
    within = ((values >= 0) & (values <= 1)).all()
    strictly = ((values > 0) & (values < 1)).all() & (values.numel() >= 32)
    sums = (values.sum(dim=1) - 1).abs().max() < 1e-2
    softmax, sigmoid = torch.stack([within & sums, strictly & (values != values[0]).any()]).tolist()
    if softmax or sigmoid:
        layer = "softmax" if softmax else "sigmoid"
        evidence = "sum to 1 in each row" if softmax else "all lie between 0 and 1"
        warnings.warn(
            f"The network seems to end in a {layer}: its outputs {evidence}. The losses apply a softmax "
            f"themselves and expect logits. Remove the last {layer} from the network.",
            stacklevel=3,
        )
