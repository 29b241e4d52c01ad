"""A limited-memory quasi-Newton method for few, costly, exact evaluations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

Evaluate = Callable[[Tensor], tuple[float, Tensor]]

MEMORY = 10
SUFFICIENT_DECREASE = 1e-4


@dataclass(frozen=True)
class Descent:
    """Where `descend` ended: position ``(m,)``, value, and "tolerance", "steps" or "no descent"."""

    position: Tensor
    value: float
    reason: str


def descend(
    evaluate: Evaluate,
    start: Tensor,
    *,
    max_evaluations: int,
    tolerance: float,
    first_step: float,
    max_step: float,
) -> Descent:
    """L-BFGS with a backtracking line search and bounded steps.

    Parameters
    ----------
    evaluate : callable
        From a position ``(m,)`` to the value there and its gradient ``(m,)``.
    start : Tensor
        First position, shape ``(m,)``.
    max_evaluations : int
        At most so many, the first at the start.
    tolerance : float
        Stop when a step after the first lowers the value by less than this share of it.
    first_step, max_step : float
        Largest change of any coordinate in the first step, along the gradient, and in any.
    """
    position = start
    value, gradient = evaluate(position)
    done = 1
    pairs: list[tuple[Tensor, Tensor]] = []
    while done < max_evaluations:
        if float(gradient.abs().max()) == 0.0:
            return Descent(position, value, "tolerance")
        direction = _direction(gradient, pairs)
        largest = float(direction.abs().max())
        bound = max_step if pairs else first_step
        if not pairs or largest > bound:
            direction = direction * (bound / largest)
        slope = float(direction @ gradient)
        step = 1.0
        while True:
            trial = position + step * direction
            new, new_gradient = evaluate(trial)
            done += 1
            if new <= value + SUFFICIENT_DECREASE * step * slope:
                break
            if done >= max_evaluations:
                return Descent(position, value, "steps")
            if step * abs(slope) <= tolerance * abs(value):
                return Descent(position, value, "tolerance")
            # The parabola through both values and the slope, within [0.1, 0.5] of the step.
            parabola = -slope * step / (2 * (new - value - slope * step))
            step *= min(0.5, max(0.1, parabola))
        moved, change = trial - position, new_gradient - gradient
        if float(moved @ change) > 1e-10 * float(moved @ moved):
            pairs = [*pairs, (moved, change)][-MEMORY:]
        first = position is start
        gained = value - new
        position, value, gradient = trial, new, new_gradient
        if gained <= tolerance * abs(value) and not first:
            return Descent(position, value, "tolerance")
    return Descent(position, value, "steps")


def _direction(gradient: Tensor, pairs: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Minus the inverse curvature from the pairs, times the gradient (two-loop recursion)."""
    d = -gradient
    shares = []
    for s, y in reversed(pairs):
        share = (s @ d) / (s @ y)
        d = d - share * y
        shares.append(share)
    if pairs:
        s, y = pairs[-1]
        d = d * ((s @ y) / (y @ y))
    for (s, y), share in zip(pairs, reversed(shares), strict=True):
        d = d + s * (share - (y @ d) / (s @ y))
    return d
