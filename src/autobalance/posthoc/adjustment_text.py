"""A designed adjustment in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from autobalance.objectives import CostMatrix
from autobalance.posthoc.decision_rule import DecisionRule

if TYPE_CHECKING:
    from autobalance.posthoc.adjustment import Adjustment

TITLES = {
    "none": "no adjustment",
    "most_probable": "the most probable class, whatever it costs",
    "post_hoc": "post hoc logit adjustment, l = log pi",
    "tuned_tau": "l = tau log pi with tau tuned on the 0-1 error",
    "cross_entropy": "a calibration for the objective's class weights",
    "smooth_error": "the smooth error, relative to the mean margin",
    "unit_smooth_error": "the smooth error, in units of the log-probabilities",
    "program": "the linear program over decisions",
}
MOST_CLASSES = 30


def explain_adjustment(adjustment: Adjustment, class_names: Sequence[Any] | None) -> str:
    """Objective, choice, tau, and a table of the classes; see `Adjustment.explain`."""
    from autobalance.report import describe_rules  # it loads matplotlib, which few callers need

    lines = [_outcome(adjustment), f"Chosen: {TITLES[adjustment.chosen]}."]
    lines += _candidates(adjustment)
    rule = adjustment.rule
    if isinstance(rule, DecisionRule) and rule.tau is not None:
        interval = adjustment.intervals.get("tau")
        between = "" if interval is None else f" ({interval[0]:.2f} to {interval[1]:.2f})"
        lines.append(f"tau = {rule.tau:.2f}{between}; 1 is post hoc logit adjustment, 0 none.")
    lines.append(describe_rules(len(rule.shares), rule.shares.tolist()))
    return "\n".join([*lines, "", *_classes(adjustment, class_names)])


def _outcome(adjustment: Adjustment) -> str:
    goal, unit, percent = adjustment.objective, 100.0, " %"
    if isinstance(goal, CostMatrix):
        unit, percent = goal.largest, ""
    interval = adjustment.intervals.get("gain")
    gain = f"{unit * adjustment.gain:.2f}"
    if interval is not None:
        gain += f" ({unit * interval[0]:.2f} to {unit * interval[1]:.2f})"
    return (
        f"{type(goal).__name__} on examples the design did not see: {unit * adjustment.value_before:.2f}"
        f"{percent} before, {unit * adjustment.value:.2f}{percent} after; lower by {gain}."
    )


def _candidates(adjustment: Adjustment) -> list[str]:
    lines = []
    unit = 100.0
    if isinstance(adjustment.objective, CostMatrix):
        unit = adjustment.objective.largest
    for each in sorted(adjustment.candidates, key=lambda candidate: candidate.value):
        text = f"  {unit * each.value:7.2f}  {TITLES[each.name]}"
        if each.standard_error > 0:
            text += f" ({unit * each.difference:+.2f} ± {unit * each.standard_error:.2f})"
        lines.append(text)
    return lines


def _classes(adjustment: Adjustment, class_names: Sequence[Any] | None) -> list[str]:
    k = len(adjustment.class_counts)
    names = [str(name) for name in (range(k) if class_names is None else class_names)]
    order = np.argsort(-adjustment.class_counts, kind="stable")[:MOST_CLASSES]
    width = max(5, *(len(names[i]) for i in order))
    has_l = isinstance(adjustment.rule, DecisionRule)
    what = "cost" if isinstance(adjustment.objective, CostMatrix) else "error"
    lines = [
        f"{'class':<{width}}  {'n':>8}  {what + ' before':>13}  {'after':>7}"
        + ("        l" if has_l else "")
    ]
    for i in order:
        text = f"{names[i]:<{width}}  {adjustment.class_counts[i]:8g}"
        before, after = float(adjustment.errors_before[i]), float(adjustment.errors[i])
        text += f"  {_percent(before):>13}  {_percent(after):>7}"
        lines.append(text + (f"  {adjustment.l[i]:7.2f}" if has_l else ""))
    if k > len(order):
        lines.append(f"... and {k - len(order)} more classes")
    return lines


def _percent(value: Any) -> str:
    return "–" if np.isnan(value) else f"{100 * value:.1f} %"
