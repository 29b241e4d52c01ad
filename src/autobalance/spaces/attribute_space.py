"""l and delta as a map of attributes of the classes: few numbers whatever the number of classes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from autobalance._validation import InputError, array_of_numbers, positive
from autobalance.losses import LossParameters
from autobalance.spaces.base import DesignSpace

START_RHO = 0.2
"""The share of the correction that class weights carry; as in `HierarchicalSpace`, but held."""


class AttributeSpace(DesignSpace):
    r"""Class-attribute priors (CAP): adjustments that depend on what a class is like, not which it is.

    .. math::
        u_k = \log \pi_k + \sum_j a_j A_{kj}, \qquad l_k = (1 - \rho) u_k, \qquad
        \log w_k = -\rho u_k, \qquad \log \delta_k = \sum_j d_j A_{kj}

    The columns of A are the attributes, each with mean 0 and standard deviation 1 over the classes. a and d
    start at 0, so that the space starts at the same consistent loss as `HierarchicalSpace`, and have 2 m
    numbers for m attributes and any number of classes.

    Parameters
    ----------
    counts : array-like
        Training examples per class, shape ``(k,)``.
    attributes : array-like, optional
        One row per class, shape ``(k, m)``, such as `class_attributes` computes; standardised here. By
        default the logarithm of the class frequency and its square.
    learn : iterable of str
        "additive" (a), "multiplicative" (d), or both.
    sigma : float
        Standard deviation of the prior on each of a, in nats per standard deviation of its attribute.
    sigma_delta : float
        Likewise of d, in units of log delta.

    Raises
    ------
    InputError
        If the attributes are not finite numbers of one row per class, or none of them differs between
        classes.

    References
    ----------
    Zhang et al., "Class-attribute Priors: Adapting Optimization to Heterogeneity and Fairness Objective",
    AAAI 2024, arXiv 2401.14343.
    """

    attributes: Tensor

    def __init__(
        self,
        counts: Any,
        attributes: Any = None,
        *,
        learn: Iterable[str] = ("additive", "multiplicative"),
        sigma: float = 0.5,
        sigma_delta: float = 0.1,
    ) -> None:
        super().__init__(counts, learn)
        if self.counts.ndim != 1 or "weight" in self.learns:
            raise InputError(
                "AttributeSpace takes counts per class (k,), and learns additive and multiplicative parts."
            )
        self.sigma = positive("sigma", sigma)
        self.sigma_delta = positive("sigma_delta", sigma_delta)
        if attributes is None:
            log_n = np.log(self.counts.numpy())
            attributes = np.stack([log_n, (log_n - log_n.mean()) ** 2], axis=1)
        table = _standardised(array_of_numbers("attributes", attributes), self.num_classes)
        self.register_buffer("attributes", torch.tensor(table, dtype=self.counts.dtype))
        if "additive" in self.learns:
            self.shift = nn.Parameter(torch.zeros(table.shape[1]))
        if "multiplicative" in self.learns:
            self.stretch = nn.Parameter(torch.zeros(table.shape[1]))

    def options(self) -> dict[str, Any]:
        """Same as in `DesignSpace`."""
        own = {"attributes": self.attributes.tolist()}
        return {**super().options(), **own, "sigma": self.sigma, "sigma_delta": self.sigma_delta}

    def forward(self) -> LossParameters:
        """Same as in `DesignSpace`."""
        correction = (self.counts / self.counts.sum()).log()
        multiplicative = None
        if "additive" in self.learns:
            correction = correction + self.attributes @ self.shift
        if "multiplicative" in self.learns:
            multiplicative = (self.attributes @ self.stretch).exp()
        weight = self._mean_one(-START_RHO * correction)
        return LossParameters(weight, (1.0 - START_RHO) * correction, multiplicative)

    def priors(self) -> dict[str, tuple[float, float]]:
        """Same as in `DesignSpace`."""
        deviations = {"shift": self.sigma, "stretch": self.sigma_delta}
        return {name: (0.0, deviations[name]) for name, _ in self.named_parameters()}


def class_attributes(logits: Any, target: Any, counts: Any) -> np.ndarray:
    """What each class is like, from a network's logits on examples that it was not trained on.

    Parameters
    ----------
    logits : array-like
        Raw logits, shape ``(n, k)``.
    target : array-like
        Their classes, shape ``(n,)``.
    counts : array-like
        Training examples per class, shape ``(k,)``.

    Returns
    -------
    ndarray
        Shape ``(k, 3)``: the logarithm of the frequency, the error, and the size of the neighbourhood, which
        is the effective number of classes (the exponential of the entropy) among which the examples'
        probabilities are spread on average. Error and neighbourhood are shrunk towards their mean over the
        classes as if two more examples of that mean had been seen.
    """
    scores, y = array_of_numbers("logits", logits), np.asarray(target)
    n = array_of_numbers("counts", counts)
    if scores.ndim != 2 or scores.shape != (len(y), len(n)):
        raise InputError(
            f"logits must have one row per example and one column per class ({len(y)}, {len(n)}); "
            f"got shape {scores.shape}."
        )
    scores = scores - scores.max(axis=1, keepdims=True)
    probabilities = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    wrong = (scores.argmax(axis=1) != y).astype(float)
    seen = np.bincount(y, minlength=len(n))
    sums = np.zeros((len(n), len(n)))
    np.add.at(sums, y, probabilities)
    mean = sums / np.maximum(seen, 1)[:, None]
    entropy = -(mean * np.log(np.maximum(mean, 1e-12))).sum(axis=1)
    errors = _shrunk(np.bincount(y, wrong, len(n)), seen)
    return np.stack([np.log(n / n.sum()), errors, _shrunk(np.exp(entropy) * seen, seen)], axis=1)


def _shrunk(sums: np.ndarray, seen: np.ndarray, examples: float = 2.0) -> np.ndarray:
    """Means of the classes, shrunk towards the mean of the classes that were seen."""
    known = seen > 0
    centre = float((sums[known] / seen[known]).mean()) if known.any() else 0.0
    return (sums + examples * centre) / (seen + examples)


def _standardised(table: np.ndarray, classes: int) -> np.ndarray:
    """Columns with mean 0 and standard deviation 1; those that do not vary are left out."""
    if table.ndim != 2 or len(table) != classes or not np.isfinite(table).all():
        raise InputError(
            f"attributes must be finite numbers, one row per class ({classes}, m); got shape "
            f"{np.shape(table)}."
        )
    spread = table.std(axis=0)
    varies = spread > 1e-9 * np.maximum(1.0, np.abs(table).max(axis=0))
    if not varies.any():
        raise InputError("No attribute differs between the classes. Give at least one that does.")
    return (table[:, varies] - table[:, varies].mean(axis=0)) / spread[varies]
