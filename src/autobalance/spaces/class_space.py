"""Spaces without shared strengths: one free l, delta and w a class, or a cluster of classes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from autobalance._validation import InputError, class_counts, finite_number, positive, whole
from autobalance.losses import LossParameters
from autobalance.spaces.base import DesignSpace, centre


class ClassSpace(DesignSpace):
    """One free l, delta and w for every class (and group), as in the paper (section 2).

    Parameters
    ----------
    counts : array-like
        Training examples per class, shape ``(k,)``, or per group and class, shape ``(g, k)``.
    learn : iterable of str
        Which of "weight", "additive" and "multiplicative" to learn.
    tau : float
        Start of l at ``tau log pi``: 1 is logit adjustment, 0 the paper's zero start.
    sigmoid : bool
        delta = sigmoid(Delta) with Delta starting at 1, as in the paper's code, so delta starts
        at 0.73. Otherwise delta = exp(log_delta), starting at 1.
    sigma : float or None
        Standard deviation of a Gaussian prior around the start; None for none (the paper).
    """

    start: Tensor

    def __init__(
        self,
        counts: Any,
        *,
        learn: Iterable[str] = ("additive", "multiplicative"),
        tau: float = 1.0,
        sigmoid: bool = False,
        sigma: float | None = None,
    ) -> None:
        super().__init__(counts, learn)
        self.sigmoid = sigmoid
        self.sigma = None if sigma is None else positive("sigma", sigma)
        self.tau = float(finite_number("tau", tau))
        self.register_buffer("start", self.tau * self._log_prior())
        free = self._free_shape()
        if "additive" in self.learns:
            self.additive = nn.Parameter(torch.zeros(free))
        if "multiplicative" in self.learns:
            self.raw_delta = nn.Parameter(torch.full(free, 1.0 if sigmoid else 0.0))
        if "weight" in self.learns:
            self.log_weight = nn.Parameter(torch.zeros(free))

    def _log_prior(self) -> Tensor:
        return (self.counts / self.counts.sum(dim=-1, keepdim=True)).clamp(min=1e-12).log()

    def _free_shape(self) -> tuple[int, ...]:
        return tuple(self.counts.shape)

    def _expand(self, free: Tensor) -> Tensor:
        """From free parameters to one number per class (per group)."""
        return free

    def options(self) -> dict[str, Any]:
        """Same as in `DesignSpace`."""
        names = ("tau", "sigmoid", "sigma")
        return {**super().options(), **{name: getattr(self, name) for name in names}}

    def forward(self) -> LossParameters:
        """Same as in `DesignSpace`."""
        weight = multiplicative = None
        additive = self.start
        if "additive" in self.learns:
            additive = self.start + centre(self._expand(self.additive))
        if "multiplicative" in self.learns:
            raw = self._expand(self.raw_delta)
            multiplicative = torch.sigmoid(raw) if self.sigmoid else raw.exp()
        if "weight" in self.learns:
            weight = self._mean_one(self._expand(self.log_weight))
        return LossParameters(weight, additive, multiplicative)

    def priors(self) -> dict[str, tuple[float, float]]:
        """Same as in `DesignSpace`."""
        if self.sigma is None:
            return {}
        starts = {"raw_delta": 1.0} if self.sigmoid else {}
        return {n: (starts.get(n, 0.0), self.sigma) for n, _ in self.named_parameters()}


class ClusterSpace(ClassSpace):
    """Classes of similar frequency share their free parameters (paper, section 3).

    Parameters
    ----------
    counts : array-like
        Training examples per class, shape ``(k,)``.
    size : int
        Classes per cluster; the paper takes 1, 10, 20 and 40 for 10, 100, 1,000 and 8,142 classes.
    **options
        As for `ClassSpace`.
    """

    cluster: Tensor

    def __init__(self, counts: Any, *, size: int, **options: Any) -> None:
        table = class_counts(counts, name="counts")
        if table.ndim != 1:
            raise InputError("ClusterSpace takes counts per class (k,).")
        whole("size", size, least=1)
        order = np.argsort(-table, kind="stable")
        cluster = np.empty(len(table), dtype=np.int64)
        cluster[order] = np.arange(len(table)) // size
        self._clusters = int(cluster.max()) + 1
        super().__init__(counts, **options)
        self.size = int(size)
        self.register_buffer("cluster", torch.from_numpy(cluster))

    def options(self) -> dict[str, Any]:
        """Same as in `DesignSpace`."""
        return {**super().options(), "size": self.size}

    def _free_shape(self) -> tuple[int, ...]:
        return (self._clusters,)

    def _expand(self, free: Tensor) -> Tensor:
        return free[self.cluster]
