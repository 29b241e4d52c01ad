"""A designed adjustment in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from autobalance.objectives import CostMatrix
from autobalance.posthoc.cell_rule import CellRule
from autobalance.posthoc.decision_rule import DecisionRule, LabelRule

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
    "thresholds": "a threshold for each label, tuned on the 0-1 error near tau times the log prior odds",
}
OF_LABELS = {
    "none": "the thresholds as they are",
    "post_hoc": "the log prior odds as thresholds",
    "tuned_tau": "tau times the log prior odds, with tau tuned on the 0-1 error",
    "cross_entropy": "a calibration for labels that are as often present as not",
}
MOST_CLASSES = 30


def explain_adjustment(adjustment: Adjustment, class_names: Sequence[Any] | None) -> str:
    """Objective, choice, tau, and a table of the classes; see `Adjustment.explain`."""
    from autobalance.report import describe_rules  # it loads matplotlib, which few callers need

    rule = adjustment.rule
    titles = TITLES | (OF_LABELS if isinstance(rule, LabelRule) else {})
    lines = [_outcome(adjustment), f"Chosen: {titles[adjustment.chosen]}."]
    lines += _candidates(adjustment, titles)
    if not isinstance(rule, CellRule) and rule.tau is not None:
        interval = adjustment.intervals.get("tau")
        between = "" if interval is None else f" ({interval[0]:.2f} to {interval[1]:.2f})"
        lines.append(f"tau = {rule.tau:.2f}{between}; 1 is post hoc logit adjustment, 0 none.")
    if isinstance(rule, LabelRule):
        return "\n".join([*lines, "", *_labels(adjustment, class_names)])
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


def _candidates(adjustment: Adjustment, titles: Mapping[str, str]) -> list[str]:
    lines = []
    unit = 100.0
    if isinstance(adjustment.objective, CostMatrix):
        unit = adjustment.objective.largest
    for each in sorted(adjustment.candidates, key=lambda candidate: candidate.value):
        text = f"  {unit * each.value:7.2f}  {titles[each.name]}"
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


def _labels(adjustment: Adjustment, names: Sequence[Any] | None) -> list[str]:
    """Of each label its positives, its false positives and negatives before and after, and l."""
    known = [*map(str, range(len(adjustment.l)) if names is None else names)]
    positives = adjustment.class_counts[1]
    order = np.argsort(-positives, kind="stable")[:MOST_CLASSES]
    width = max(5, *(len(known[j]) for j in order))
    mass = np.maximum(adjustment.by_cell["mass"], 1e-300)
    before, after = (adjustment.by_cell[key] / mass for key in ("wrong_before", "wrong"))
    lines = [
        "Of each label the rates of false positives and of false negatives, before and after:",
        f"{'label':<{width}}  {'positives':>9}  {'before':>15}  {'after':>15}        l",
    ]
    for j in order:
        rates = (f"{_percent(t[0, j]):>7} {_percent(t[1, j]):>7}" for t in (before, after))
        text = f"{known[j]:<{width}}  {positives[j]:9g}  {'  '.join(rates)}"
        lines.append(f"{text}  {adjustment.l[j]:7.2f}")
    if len(known) > len(order):
        lines.append(f"... and {len(known) - len(order)} more labels")
    return lines


def _percent(value: Any) -> str:
    return "–" if np.isnan(value) else f"{100 * value:.1f} %"
