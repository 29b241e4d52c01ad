"""What a network predicts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from autobalance.data import as_inputs, moved
from autobalance.functional import compute_logits, evaluation_mode


@torch.no_grad()
def predict_logits(model: nn.Module, inputs: Any, batch_size: int = 1024) -> Tensor:
    """Raw logits in evaluation mode, shape ``(n, k)``, on the CPU; the network's mode comes back.

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
    inputs, done = as_inputs(inputs), 0
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
