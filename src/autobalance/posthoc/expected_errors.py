"""Error tables per group and class, of deterministic and of randomised predictions alike."""

from __future__ import annotations

import numpy as np
from torch import nn

from autobalance._validation import InputError
from autobalance.bilevel import predict_logits
from autobalance.data import ArrayData
from autobalance.records import ErrorTable, rates


def evaluate_probabilities(probabilities: np.ndarray, data: ArrayData) -> ErrorTable:
    """Expected error rates where a prediction is drawn from these probabilities.

    Parameters
    ----------
    probabilities : ndarray
        Of predicting each class, shape ``(n, k)``, rows summing to 1. One-hot rows are predictions
        without randomness.
    data : ArrayData
        The n examples, which count by their weights; without groups they are all one group.

    Raises
    ------
    InputError
        If the probabilities are none, or of another shape.
    """
    shape = (len(data), data.num_classes)
    if probabilities.shape != shape:
        raise InputError(
            f"Expected a probability of each class per example, shape {shape}; got "
            f"{probabilities.shape}."
        )
    if (probabilities < -1e-9).any() or not np.allclose(probabilities.sum(axis=1), 1.0, atol=1e-6):
        raise InputError("Probabilities must not be negative, and each row must sum to 1.")
    target = data.target.cpu().numpy()
    cells, groups = data.cells().cpu().numpy(), data.num_groups or 1
    size = groups * data.num_classes
    wrong = 1.0 - probabilities[np.arange(len(target)), target]
    weight = None if data.sample_weight is None else data.row_weights().cpu().numpy()
    mass = np.bincount(cells, weight, size).astype(np.float64)
    total = np.bincount(cells, wrong if weight is None else weight * wrong, size)
    return ErrorTable.from_rates(*(t.reshape(groups, -1) for t in (rates(total, mass), mass)))


def evaluate_model(model: nn.Module, data: ArrayData) -> ErrorTable:
    """Error rates of a network, which sees the inputs and never the groups."""
    predicted = predict_logits(model, data.inputs).argmax(dim=1)
    one_hot = nn.functional.one_hot(predicted, data.num_classes).numpy().astype(np.float64)
    return evaluate_probabilities(one_hot, data)
