"""Objectives made of others: weighted sums, and one under a bound on another."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from autobalance._validation import InputError, fraction, number, positive, shown
from autobalance.objectives.aggregates import BalancedError
from autobalance.objectives.base import Objective, Over
from autobalance.objectives.costs import CostMatrix
from autobalance.objectives.gaps import OddsGap


@dataclass(frozen=True, kw_only=True)
class Blend(Objective):
    """Weighted sum of objectives, sum_i weight_i L_i, over the surrogate of the blend.

    Parameters
    ----------
    parts : tuple of (float, Objective)
        Positive weights and objectives. Parts' own surrogates are not used.

    Examples
    --------
    >>> Blend.of(0.3, BalancedError(over="class_and_group"), OddsGap()).over
    'class_and_group'
    """

    over: Over = field(default="class", init=False)
    parts: tuple[tuple[float, Objective], ...]

    def __post_init__(self) -> None:
        if not self.parts:
            raise InputError("A blend needs at least one part: (weight, objective).")
        try:
            pairs = [(weight, part) for weight, part in self.parts]
        except (TypeError, ValueError):
            raise InputError(
                f"A blend's parts are pairs (weight, objective); got {shown(self.parts)}."
            ) from None
        for weight, part in pairs:
            positive("the weight of a part", weight)
            if not isinstance(part, Objective):
                raise InputError(f"A blend's parts are objectives; got {type(part).__name__}.")
            if isinstance(part, CostMatrix):
                raise InputError(
                    "Costs are of decisions, other parts are of errors: a cost matrix stands alone. Put what "
                    "else counts into the costs."
                )
            if part.by_decision:
                raise InputError(
                    "MeanIoU is of the classes decided for, other parts are of errors: it stands alone."
                )
            if isinstance(part, BoundedGap):
                raise InputError(
                    "A bound holds for a whole objective, not for a part of a blend. Put the blend under "
                    'the bound: "0.5 * balanced_error + 0.5 * cvar_error where deo <= 0.05".'
                )
        cells = {part.over for _, part in self.parts}
        over = cells.pop() if len(cells) == 1 else "class_and_group"
        object.__setattr__(self, "over", over)

    @classmethod
    def of(cls, mix: float, first: Objective, second: Objective) -> Blend:
        """(1 - mix) first + mix second, mix in (0, 1): the paper's blend of eq. 2.3."""
        mix = fraction("mix", mix)
        return cls(parts=((1.0 - mix, first), (mix, second)))

    @property
    def linear(self) -> bool:
        """Whether both parts are linear in the risks."""
        return all(part.linear for _, part in self.parts)

    @property
    def importance(self) -> tuple[float, ...] | None:
        """The importance that all parts share; None where they differ."""
        each = {part.importance for _, part in self.parts}
        return each.pop() if len(each) == 1 else None

    def value(self, total: Tensor, mass: Tensor, *, smoothly: bool = False) -> Tensor:
        """The weighted sum of both parts' values."""
        values = [w * part.value(total, mass, smoothly=smoothly) for w, part in self.parts]
        return torch.stack(values).sum()

    def effective_size(self, counts: Any) -> float:
        """As if the parts' noises were the same noise: the deviations add up."""
        total = sum(weight for weight, _ in self.parts)
        deviation = sum(w / total / part.effective_size(counts) ** 0.5 for w, part in self.parts)
        return float(deviation**-2)


@dataclass(frozen=True, kw_only=True)
class BoundedGap(Objective):
    r"""An objective under a bound on another, min L while G <= bound, by the method of multipliers.

    .. math:: L + \frac{1}{2 \rho} (\max(0, \lambda + \rho (G - b))^2 - \lambda^2)

    With every upper step lambda moves by `rate` times the excess G - b of the 0-1 errors. The hard
    value is L where the bound holds, and L plus the excess over it elsewhere, so that candidates
    compare.

    Parameters
    ----------
    main, gap : Objective
        L and G.
    bound : float
        b, in the units of G.
    multiplier : float
        lambda, at least 0.
    rho : float
        Above 0: how hard an excess is punished at once.
    rate : float
        Above 0: how fast the multiplier follows the excess.

    References
    ----------
    Hestenes (1969), Powell (1969); Bertsekas, "Constrained Optimization and Lagrange Multiplier
    Methods", 1982, section 3.1.
    """

    over: Over = field(default="class_and_group", init=False)
    main: Objective = field(default_factory=lambda: BalancedError(over="class_and_group"))
    gap: Objective = field(default_factory=OddsGap)
    bound: float
    multiplier: float = 0.0
    rho: float = 2.0
    rate: float = 0.2

    def __post_init__(self) -> None:
        for name in ("main", "gap"):
            part = getattr(self, name)
            alone = isinstance(part, (BoundedGap, CostMatrix))
            if not isinstance(part, Objective) or alone or part.by_decision:
                raise InputError(
                    f"{name} must be an objective over errors, without a bound of its own; got {part!r}."
                )
        positive("rho", self.rho)
        positive("rate", self.rate)
        if not 0.0 <= number("bound", self.bound) < math.inf:
            raise InputError(f"bound must be a finite number of at least 0; got {self.bound}.")
        if not 0.0 <= number("multiplier", self.multiplier) < math.inf:
            raise InputError(f"multiplier must not be negative; got {self.multiplier}.")

    def value(self, total: Tensor, mass: Tensor, *, smoothly: bool = False) -> Tensor:
        """The main objective plus what the gap's excess over the bound costs."""
        main = self.main.value(total, mass, smoothly=smoothly)
        excess = self.gap.value(total, mass, smoothly=smoothly) - self.bound
        if not smoothly:
            return main + excess.clamp(min=0.0)
        force = (self.multiplier + self.rho * excess).clamp(min=0.0)
        return main + (force.square() - self.multiplier**2) / (2.0 * self.rho)

    def adapted(self, total: Tensor, mass: Tensor) -> BoundedGap:
        """The same objective with the price of the bound adapted to these sums."""
        excess = float(self.gap.value(total, mass)) - self.bound
        return replace(self, multiplier=max(0.0, self.multiplier + self.rate * excess))

    def effective_size(self, counts: Any) -> float:
        """That of the plain sum of the objective and the gap; see `Blend.effective_size`."""
        return Blend(parts=((1.0, self.main), (1.0, self.gap))).effective_size(counts)
