"""Differences between groups."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from autobalance._validation import InputError, one_of, positive, whole
from autobalance.objectives.base import Objective, Over


@dataclass(frozen=True, kw_only=True)
class Gap(Objective):
    """Base of objectives that compare groups; alone each is content with a constant classifier.

    So use it in a `Blend`, or under a bound: `BoundedGap`.

    Parameters
    ----------
    softness : float
        The gradient sees ``max - min`` over groups as a soft maximum and minimum of this
        temperature, in units of the risk, so that all groups near the ends share in it.
    """

    over: Over = field(default="class_and_group", init=False)
    softness: float = 0.02

    def __post_init__(self) -> None:
        super().__post_init__()
        positive("softness", self.softness)

    @abstractmethod
    def from_rates(self, risks: Tensor, mass: Tensor, smoothly: bool) -> Tensor:
        """One number from the risks and sizes of the cells, each of shape ``(g, k)``."""

    def value(self, total: Tensor, mass: Tensor, *, smoothly: bool = False) -> Tensor:
        """The gap between groups from sums of risks and their mass, each of shape ``(g, k)``."""
        return self.from_rates(total / torch.where(mass > 0, mass, 1.0), mass, smoothly)

    def spread(self, rates: Tensor, present: Tensor, smoothly: bool) -> Tensor:
        """Max - min over groups ``(g, ...)``, cells that are absent left out; 0 for one alone."""
        if not smoothly:
            high = torch.where(present, rates, -torch.inf).amax(dim=0)
            low = torch.where(present, rates, torch.inf).amin(dim=0)
            return torch.where(present.any(dim=0), high - low, 0.0)
        weights = [
            torch.softmax(torch.where(present, sign * rates / self.softness, -torch.inf), dim=0)
            for sign in (1.0, -1.0)
        ]
        # A column without any cell has no softmax.
        top, bottom = (torch.where(present, w, 0.0).nan_to_num(0.0) for w in weights)
        return ((top - bottom) * rates).sum(dim=0)

    def effective_size(self, counts: Any) -> float:
        """As if in each class two groups, drawn at random, were at the ends: variance 2 / g each."""
        table = np.atleast_2d(np.asarray(counts, dtype=np.float64))
        return float(1.0 / np.sum(2.0 / len(table) / table[table > 0]))


@dataclass(frozen=True, kw_only=True)
class OddsGap(Gap):
    r"""Difference of error between groups, class by class.

    .. math:: \mathrm{DEO} = \sum_k (\max_g R_{kg} - \min_g R_{kg})

    For two classes and two groups this is the paper's difference of equal opportunity (eq. 4.1),
    and twice fairlearn's ``equalized_odds_difference(agg="mean")``, also for more groups. A class
    present in one group only adds nothing.

    Parameters
    ----------
    over_classes : {"sum", "max"}
        Sum: DEO, in [0, k]. Max: equalized odds difference, in [0, 1].
    """

    over_classes: Literal["sum", "max"] = "sum"

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("over_classes", self.over_classes, ("sum", "max"))

    def from_rates(self, risks: Tensor, mass: Tensor, smoothly: bool) -> Tensor:
        """The gap from each group's rates of error by class, ``(g, k)``."""
        gaps = self.spread(risks, mass > 0, smoothly)
        if self.over_classes == "sum":
            return gaps.sum()
        if smoothly:
            return (torch.softmax(gaps / self.softness, dim=0) * gaps).sum()
        return gaps.max()


@dataclass(frozen=True, kw_only=True)
class OpportunityGap(Gap):
    """Difference between groups of the positive class's error: equal opportunity difference.

    Parameters
    ----------
    positive : int
        Index of the positive class; -1 is the second of two classes. Of more classes none is the
        positive one unless it is named.
    """

    positive: int = -1

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("positive", self.positive, least=-1)

    def from_rates(self, risks: Tensor, mass: Tensor, smoothly: bool) -> Tensor:
        """The gap in the rate of error of the positive class."""
        if self.positive >= risks.shape[1]:
            raise InputError(
                f"positive must be a class, 0 to {risks.shape[1] - 1}; got {self.positive}."
            )
        if self.positive == -1 and risks.shape[1] != 2:
            raise InputError(
                f"Equal opportunity is about the positive one of two classes; there are "
                f"{risks.shape[1]}. Name it, OpportunityGap(positive=...), or take OddsGap."
            )
        return self.spread(risks[:, self.positive], mass[:, self.positive] > 0, smoothly)


@dataclass(frozen=True, kw_only=True)
class ParityGap(Gap):
    """Difference between groups of the share predicted positive: demographic parity difference.

    For two classes, the second being positive.
    """

    def from_rates(self, risks: Tensor, mass: Tensor, smoothly: bool) -> Tensor:
        """The gap in the rate at which the positive class is predicted."""
        if risks.shape[1] != 2:
            raise InputError(
                f"Demographic parity is for two classes; there are {risks.shape[1]}. For more take "
                "OddsGap."
            )
        sizes = mass.sum(dim=1)
        chosen = mass[:, 1] * (1.0 - risks[:, 1]) + mass[:, 0] * risks[:, 0]
        return self.spread(chosen / torch.where(sizes > 0, sizes, 1.0), sizes > 0, smoothly)
