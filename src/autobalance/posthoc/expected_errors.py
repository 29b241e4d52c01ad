"""Error tables per group and class, of deterministic and of randomised predictions alike."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from autobalance._validation import InputError
from autobalance.bilevel import predict_logits
from autobalance.data import ArrayData
from autobalance.records import class_ranges


@dataclass(frozen=True)
class Evaluated:
    """Error rates R_kg and what follows from them, all in [0, 1] but `deo`, in [0, k].

    The same numbers as `classification_report` of predictions without randomness; of randomised
    predictions the expected rates, and what follows from these.

    Attributes
    ----------
    errors : ndarray
        R_kg, shape ``(g, k)``; NaN for cells without examples.
    mass : ndarray
        Examples per cell, shape ``(g, k)``.
    """

    errors: np.ndarray
    mass: np.ndarray

    @property
    def class_errors(self) -> np.ndarray:
        """Errors of the classes, shape ``(k,)``; NaN for absent ones."""
        return self._rates(axis=0)

    @property
    def group_errors(self) -> np.ndarray:
        """Errors of the groups, shape ``(g,)``; NaN for absent ones."""
        return self._rates(axis=1)

    @property
    def error(self) -> float:
        return float(np.nansum(self.errors * self.mass) / self.mass.sum())

    @property
    def balanced_error(self) -> float:
        """Mean over the classes."""
        return float(np.nanmean(self.class_errors))

    @property
    def group_balanced_error(self) -> float:
        """Mean over the cells."""
        return float(np.nanmean(self.errors))

    @property
    def worst_group_error(self) -> float:
        return float(np.nanmax(self.group_errors))

    @property
    def worst_class_and_group_error(self) -> float:
        return float(np.nanmax(self.errors))

    @property
    def deo(self) -> float:
        """As `autobalance.records.metrics.deo`."""
        return float(np.nansum(class_ranges(self.errors)))

    @property
    def equalized_odds_difference(self) -> float:
        """As `autobalance.records.metrics.equalized_odds_difference`."""
        return float(np.nanmax(class_ranges(self.errors)))

    @property
    def point(self) -> tuple[float, float]:
        """(balanced error, DEO) in percent: a point for `hypervolume`."""
        return 100 * self.balanced_error, 100 * self.deo

    def _rates(self, axis: int) -> np.ndarray:
        mass = self.mass.sum(axis=axis)
        wrong = np.nansum(self.errors * self.mass, axis=axis)
        return np.divide(wrong, mass, out=np.full(mass.shape, np.nan), where=mass > 0)


def evaluate_probabilities(probabilities: np.ndarray, data: ArrayData) -> Evaluated:
    """Expected error rates where a prediction is drawn from these probabilities.

    Parameters
    ----------
    probabilities : ndarray
        Of predicting each class, shape ``(n, k)``, rows summing to 1. One-hot rows are predictions
        without randomness.
    data : ArrayData
        The n examples; without groups they are all one group.

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
    mass = np.bincount(cells, minlength=size).astype(np.float64)
    total = np.bincount(cells, weights=wrong, minlength=size)
    errors = np.divide(total, mass, out=np.full(size, np.nan), where=mass > 0)
    return Evaluated(errors.reshape(groups, -1), mass.reshape(groups, -1))


def predicted_classes(model: nn.Module, data: ArrayData) -> np.ndarray:
    """One-hot rows of a network's predictions, shape ``(n, k)``."""
    predicted = predict_logits(model, data.inputs).argmax(dim=1)
    return torch.nn.functional.one_hot(predicted, data.num_classes).numpy().astype(np.float64)


def evaluate_model(model: nn.Module, data: ArrayData) -> Evaluated:
    """Error rates of a network, which sees the inputs and never the groups."""
    return evaluate_probabilities(predicted_classes(model, data), data)
