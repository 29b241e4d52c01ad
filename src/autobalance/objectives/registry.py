"""Objectives by name."""

from __future__ import annotations

import re

from autobalance._validation import InputError, gap_bound, one_of
from autobalance.objectives.aggregates import (
    BalancedError,
    CVaRError,
    ErrorDeviation,
    QuantileError,
    WorstError,
)
from autobalance.objectives.base import Objective
from autobalance.objectives.combined import Blend, BoundedGap
from autobalance.objectives.gaps import Gap, OddsGap, OpportunityGap, ParityGap
from autobalance.objectives.iou import MeanIoU
from autobalance.objectives.label_objectives import MacroF1Error
from autobalance.objectives.surrogates import SmoothError

# The error of a group's examples is mostly that of its frequent classes. A wide surrogate, nearly
# linear in the margin, pays for widening their margins even at the price of rare classes' errors.
SHARP = SmoothError(relative=0.2)

NAMED = {
    "balanced_error": BalancedError(),
    "worst_class_error": WorstError(),
    "cvar_error": CVaRError(),
    "quantile_error": QuantileError(),
    "balanced_error_and_deviation": Blend(parts=((0.5, BalancedError()), (0.5, ErrorDeviation()))),
    "group_balanced_error": BalancedError(over="class_and_group"),
    "worst_group_error": WorstError(over="group", surrogate=SHARP),
    "worst_class_and_group_error": WorstError(over="class_and_group"),
}
"""Objectives by their names."""


OF_LABELS = {"macro_f1": MacroF1Error()}
"""By name too, for data of several labels."""

GAPS = {
    "deo": OddsGap(),
    "equalized_odds_difference": OddsGap(over_classes="max"),
    "equal_opportunity_difference": OpportunityGap(),
    "demographic_parity_difference": ParityGap(),
}
"""By name too, but only as parts of a blend or under a bound."""

DENSE: dict[str, Objective] = {"mean_iou": MeanIoU()}
"""By name alone, for dense data: neither blended nor bounded, and of no table of errors by class."""

_BLEND = "A blend is written as weight * name + weight * name"
_BOUND = re.compile(r"\s*(?P<main>.+?)\s+where\s+(?P<gap>\w+)\s*<=\s*(?P<bound>\S+)\s*")
_PARAMETER = re.compile(r"(?P<name>cvar_error|quantile_error)\((?P<value>[\d.]+)\)")


def as_objective(objective: str | Objective) -> Objective:
    """An objective by its name, or as it is.

    Beside the names of `NAMED`, `DENSE` and `OF_LABELS`: "cvar_error(0.1)" and "quantile_error(0.9)" with a
    parameter; a blend such as "0.7 * balanced_error + 0.3 * deo" of these and of `GAPS`; and a bound such as
    "balanced_error where deo <= 0.05", all in the units of the objectives, from 0.

    Raises
    ------
    InputError
        If the name is unknown; the message lists the known ones. If it is a gap between groups
        alone: a constant classifier has none.
    """
    if not isinstance(objective, (str, Objective)):
        raise InputError(
            f"objective must be a name or an Objective; got {type(objective).__name__}."
        )
    goal = _parse(objective) if isinstance(objective, str) else objective
    if _is_gap(goal):
        raise InputError(
            f"{objective!r} alone is won by a classifier that predicts one class for everyone. Blend "
            'it, "0.7 * balanced_error + 0.3 * deo", or bound it, "balanced_error where deo <= 0.05".'
        )
    return goal


def _is_gap(objective: Objective) -> bool:
    """Whether a constant classifier is the best that there is for it."""
    if isinstance(objective, Blend):
        return all(_is_gap(part) for _, part in objective.parts)
    return isinstance(objective, Gap) or (
        isinstance(objective, BoundedGap) and _is_gap(objective.main)
    )


def _parse(text: str) -> Objective:
    bounded = _BOUND.fullmatch(text)
    if bounded:
        gap = GAPS[one_of("the gap after where", bounded["gap"], GAPS)]
        bound = _number(
            bounded["bound"], "A bound is written as: objective where gap <= number", text
        )
        bound = gap_bound("The bound", bound)
        return BoundedGap(main=as_objective(bounded["main"]), gap=gap, bound=bound)
    if "*" in text:
        parts = []
        for term in text.split("+"):
            weight, _, name = term.partition("*")
            parts.append((_number(weight, _BLEND, text), _parse(name.strip())))
        return Blend(parts=tuple(parts))
    with_value = _PARAMETER.fullmatch(text)
    if with_value:
        what = f"The parameter of {with_value['name']} must be a number"
        value = _number(with_value["value"], what, with_value["value"])
        if with_value["name"] == "cvar_error":
            return CVaRError(fraction=value)
        return QuantileError(q=value)
    known = NAMED | DENSE | GAPS | OF_LABELS
    return known[one_of("objective", text, known)]


def _number(text: str, rule: str, given: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InputError(f"{rule}; got {given!r}.") from None
