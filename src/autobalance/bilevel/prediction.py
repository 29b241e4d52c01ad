"""What a network predicts."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from autobalance._validation import InputError
from autobalance.data import ArrayData, as_inputs, moved
from autobalance.functional import compute_logits, evaluation_mode
from autobalance.objectives import wrong_labels

MOST_LOGITS = 2**25
"""Dense logits that are made at once, 128 MiB: those of all held-out images seldom fit into memory."""


@torch.no_grad()
def predict_logits(model: nn.Module, inputs: Any, batch_size: int = 1024) -> Tensor:
    """Raw logits in evaluation mode, ``(n, k, ...)``, on the CPU; the network's mode comes back.

    Parameters
    ----------
    model : nn.Module
        From inputs to logits.
    inputs : Tensor, array, ArrayData, DatasetData, Dataset or lazy inputs
        Examples, those of a Dataset through its transforms for evaluation.
    batch_size : int
        Most examples per pass.

    Raises
    ------
    InputError
        If the output holds no logits, or an example of a Dataset cannot be used.
    """
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    inputs, done, result = as_inputs(inputs), 0, torch.empty(0)
    with evaluation_mode(model):
        for part in inputs.split(batch_size):
            logits = compute_logits(model, moved(part, device)).cpu()
            if not done:
                # In one piece: small results kept between large activations leave holes in memory, of half a
                # GB after a million rows.
                result = logits.new_empty(len(inputs), *logits.shape[1:])
            result[done : done + len(logits)] = logits
            done += len(logits)
    return result


def iterate_logits(model: nn.Module, data: ArrayData) -> Iterator[Tensor]:
    """`predict_logits` of labelled data, part by part: rows ``(m, k)``, of dense ones those that count."""
    if not data.dense:
        yield predict_logits(model, data.inputs)
        return
    each = data.num_classes * math.prod(data.target.shape[1:])
    size = max(1, min(1024, MOST_LOGITS // each))
    for first in range(0, len(data), size):
        part = data.subset(torch.arange(first, min(first + size, len(data))))
        logits = predict_logits(model, part.inputs)
        check_logits(logits, part.target.shape, data.num_classes)
        yield part.rows_of(logits)


def decide(logits: Tensor, data: ArrayData) -> Tensor:
    """What these logits decide of labelled data, or of a part of their pixels: a class for each row ``(m,)``.

    Of several labels, whose logits come in one part, whether the decision on each labelled entry is wrong,
    in the order of `ArrayData.cells`.
    """
    if not data.has_labels:
        return logits.max(dim=1).indices
    target = data.target.cpu()
    return wrong_labels(logits, target)[target >= 0]


def predict_decisions(model: nn.Module, data: ArrayData) -> Tensor:
    """What is decided in evaluation mode, see `decide`; of dense data of `ArrayData.pixels`."""
    return torch.cat([decide(rows, data) for rows in iterate_logits(model, data)])


def check_logits(logits: Any, target: torch.Size, num_classes: int) -> None:
    """Refuse what is no logits for targets of this shape, ``(n,)`` or ``(n, d1, ...)``."""
    expected = (target[0], num_classes, *target[1:])
    shape = logits.shape if isinstance(logits, Tensor) else torch.Size()
    if shape == expected:
        return
    if len(shape) > 1 and (shape[0], *shape[2:]) == tuple(target):
        raise InputError(
            f"The network returns {shape[1]} logits for each example, but the data has "
            f"{num_classes} classes. Both must be the same: change the network's last layer, or give the "
            "data the number of classes, num_classes=, or other labels."
        )
    came = tuple(shape) if isinstance(logits, Tensor) else type(logits).__name__
    remedy = ""
    if len(target) > 1:
        remedy = " One class per pixel is asked for: upsample the logits, or resize the targets."
    raise InputError(
        f"The network must return logits of shape {expected} for a batch of {target[0]}; got {came}."
        f"{remedy}"
    )
