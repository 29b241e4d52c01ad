"""Objectives over cells of one kind: means, the worst, tails, quantiles, the spread."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from autobalance._validation import InputError, array_of_numbers, number, positive, zero_to_one
from autobalance.objectives.base import CellObjective


def _of_present(risks: Tensor, present: Tensor) -> Tensor:
    """Risks of the cells present, by their places: a mask makes a GPU wait here and in the backward pass."""
    return risks[present.nonzero().squeeze(1)]


@dataclass(frozen=True, kw_only=True)
class BalancedError(CellObjective):
    """Mean of the cells' errors: over classes, the balanced error."""

    @property
    def linear(self) -> bool:
        """Always: a mean is linear in the risks."""
        return True

    def aggregate(self, risks: Tensor, present: Tensor) -> Tensor:
        """The mean of the risks that are present, over the last dimension."""
        return torch.where(present, risks, 0.0).sum() / present.sum().clamp(min=1)


@dataclass(frozen=True, kw_only=True)
class WeightedError(CellObjective):
    """Weighted mean of the cells' errors.

    Parameters
    ----------
    weights : tuple of float
        One non-negative weight per cell; only their ratios matter.
    """

    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        array = array_of_numbers("weights", self.weights)
        if array.ndim != 1 or not np.isfinite(array).all() or (array < 0).any() or array.sum() == 0:
            raise InputError(
                "weights must hold one non-negative number per cell, not all 0; "
                f"got {self.weights!r}."
            )

    @property
    def linear(self) -> bool:
        """Always: a weighted mean is linear in the risks."""
        return True

    @property
    def importance(self) -> tuple[float, ...] | None:
        """The weights, if they are of classes; None if they are of groups."""
        return self.weights if self.over == "class" else None

    def aggregate(self, risks: Tensor, present: Tensor) -> Tensor:
        """The weighted mean of the risks that are present."""
        self._check(len(risks))
        weights = torch.as_tensor(self.weights, dtype=risks.dtype, device=risks.device)
        weights = weights[: len(risks)] * present
        return (weights * risks).sum() / weights.sum().clamp(min=torch.finfo(risks.dtype).tiny)

    def shares(self, present: np.ndarray) -> np.ndarray:
        """The weights of the cells that are present, scaled to sum to 1."""
        self._check(len(present))
        weights = np.asarray(self.weights)[: len(present)] * present
        return weights / max(weights.sum(), np.finfo(np.float64).tiny)

    def _check(self, cells: int) -> None:
        # A batch may lack the last groups, so over groups fewer cells than weights are in order.
        if cells > len(self.weights) or (self.over == "class" and cells < len(self.weights)):
            raise InputError(
                f"WeightedError has {len(self.weights)} weights for {cells} cells; give one per cell."
            )


@dataclass(frozen=True, kw_only=True)
class WorstError(CellObjective):
    """Largest of the cells' errors.

    Parameters
    ----------
    softness : float
        The gradient sees softness * log mean exp(R / softness), which lies between the mean and
        the maximum and spreads the gradient over cells that are nearly the worst; `hard` takes
        the exact maximum. Units of the risk.
    """

    softness: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        positive("softness", self.softness)

    def aggregate(self, risks: Tensor, present: Tensor) -> Tensor:
        """The largest risk that is present."""
        return torch.where(present, risks, 0.0).max()

    def aggregate_smoothly(self, risks: Tensor, present: Tensor) -> Tensor:
        """A soft maximum of the risks, which gives every bad cell some of the gradient."""
        known = _of_present(risks, present)
        if len(known) == 0:
            return risks.sum()
        scaled = known / self.softness
        return self.softness * (scaled.logsumexp(dim=0) - math.log(len(scaled)))


@dataclass(frozen=True, kw_only=True)
class CVaRError(CellObjective):
    """Conditional value at risk: mean of the worst cells' errors.

    Parameters
    ----------
    fraction : float
        Which share of the cells is the worst, in (0, 1]; with ``fraction * cells`` not whole, the
        last of them counts in part. 1 is the balanced error.

    References
    ----------
    Rockafellar and Uryasev, "Optimization of conditional value-at-risk", 2000.
    """

    fraction: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 < number("fraction", self.fraction) <= 1.0:
            raise InputError(f"fraction must lie in (0, 1]; got {self.fraction}.")

    def aggregate(self, risks: Tensor, present: Tensor) -> Tensor:
        """The mean of the worst share of the risks that are present."""
        known = _of_present(risks, present)
        if len(known) == 0:
            return risks.sum()
        worst = known.sort(descending=True).values
        size = max(1.0, self.fraction * len(worst))
        places = torch.arange(len(worst), dtype=risks.dtype, device=risks.device)
        return (worst * (size - places).clamp(0.0, 1.0)).sum() / size


@dataclass(frozen=True, kw_only=True)
class QuantileError(CellObjective):
    """A quantile of the cells' errors.

    Parameters
    ----------
    q : float
        In [0, 1]: 0.5 is the median cell's error, 1 the worst. Between two cells the value is
        interpolated, as by `numpy.quantile`.
    softness : float
        The gradient spreads over cells whose risk is near the quantile, by a logistic kernel of this
        width in units of the risk; the value is the exact one.
    """

    q: float = 0.8
    softness: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        zero_to_one("q", self.q)
        positive("softness", self.softness)

    def aggregate(self, risks: Tensor, present: Tensor) -> Tensor:
        """The quantile of the risks that are present."""
        known = _of_present(risks, present)
        return torch.quantile(known, self.q) if len(known) else risks.sum()

    def aggregate_smoothly(self, risks: Tensor, present: Tensor) -> Tensor:
        """The quantile with weights that fall off around it, so that neighbours have a gradient too."""
        known = _of_present(risks.detach(), present)
        if len(known) == 0:
            return risks.sum()
        value = torch.quantile(known, self.q)
        x = (risks.detach() - value) / self.softness
        near = F.logsigmoid(x) + F.logsigmoid(-x)  # the logistic density's logarithm
        kernel = torch.softmax(torch.where(present, near, -torch.inf), dim=0)
        return value + (kernel * (risks - risks.detach())).sum()


@dataclass(frozen=True, kw_only=True)
class ErrorDeviation(CellObjective):
    """Standard deviation of the cells' errors: 0 where all are alike, however high.

    For use in a `Blend`: alone it is content with a classifier that is wrong everywhere.
    """

    def aggregate(self, risks: Tensor, present: Tensor) -> Tensor:
        """The standard deviation of the risks that are present."""
        known = _of_present(risks, present)
        if len(known) == 0:
            return risks.sum()
        variance = known.var(correction=0)
        # The square root has no derivative at 0.
        some = variance > 1e-12
        return torch.where(some, torch.where(some, variance, 1.0).sqrt(), 0.0 * variance)
