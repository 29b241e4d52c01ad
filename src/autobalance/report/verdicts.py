"""Whether a bound was kept, and which results are too weak to rely on."""

from __future__ import annotations

import re

import numpy as np

from autobalance.records import ErrorTable, rates
from autobalance.report.evidence import all_evidence
from autobalance.report.formats import name_list, number, percent, points
from autobalance.report.run import Run
from autobalance.report.statistics import Z95, class_variances, half_width, mean_error_variance
from autobalance.report.text import in_words

_BOUND = re.compile(r"where\s+(\w+)\s*<=\s*([\d.eE+-]+)\s*$")
_DRAWS = 1000
_FAR_TEMPERATURE = 2.0
"""Logits that are twice too large or too small make probabilities that mislead."""


def bound_sentences(run: Run) -> list[str]:
    """The bound that was asked for, what became of it on held-out and test data, and the verdict."""
    match = _BOUND.search(run.objective)
    if match is None or not hasattr(ErrorTable, match[1]):
        return []
    measure, bound = match[1], float(match[2])
    text = f"Bound: {in_words(measure)} of at most {percent(bound)}."
    decision = run.decided
    held = None if run.held_out is None else getattr(run.held_out.table, measure)
    taken = run.candidate(run.choice)
    if run.adjusted and taken is not None and taken.table is not None:
        held = getattr(taken.table, measure)
    held = held if decision is None else decision["gap"]
    text += f" Held out: {_why_not_held_out(run, measure) if held is None else percent(held)}."
    tested = run.method("autobalance")
    table = None if tested is None or tested.by_group is None else tested.by_group.table
    value = None if table is None else getattr(table, measure)
    if table is None or value is None:
        why = "" if table is None else table.undefined(measure, run.classes, run.groups or ())
        reason = f" It is not defined, for {why}." if why else ""
        verdict = (
            "Not known on new data" if held is None or held <= bound else "Missed on held-out data"
        )
        remedy = "Evaluate it on test data with --groups."
        return [f"{text} On test data: not measured.{reason} {verdict}. {remedy}"]
    low, high = measure_interval(table, measure)
    verdict = "Kept" if value <= bound else "Missed"
    if low <= bound < high:
        verdict += ", but within the noise of these examples"
    where = run.evaluation_data or "test data"
    return [
        f"{text} On {where}: {percent(value)} (95% interval {percent(low)} to {percent(high)}). {verdict}."
    ]


def _why_not_held_out(run: Run, measure: str) -> str:
    """That a measure has no value on the search's held-out data, with the reason where it is known."""
    reason = None
    if run.decided is not None:
        reason = run.decided["undefined"].get("gap")
    elif run.held_out is not None:
        reason = run.held_out.table.undefined(measure, run.classes, run.groups or ())
    return "not measured" if reason is None else f"not defined, for {reason}"


def measure_interval(table: ErrorTable, measure: str, seed: int = 0) -> tuple[float, float]:
    """95% interval of a measure of an error table, from the choice of examples alone.

    Errors are drawn anew around those seen, each first pulled towards 1/2 by two successes and two
    failures, and the draws' distances are taken off the value (the basic bootstrap): a gap, being a
    largest difference, is larger on new draws, and that is taken off with them.

    Parameters
    ----------
    table : ErrorTable
        Errors and examples by group and class.
    measure : str
        One of its properties, such as "deo", that is defined.
    seed : int
        Seed of the draws.
    """
    trials = table.trials()
    # A cell that has examples keeps one, so that what is defined stays so in every draw.
    n = np.maximum(np.round(trials), table.mass > 0).astype(int)
    centre = (np.nan_to_num(table.errors) * trials + 2) / (trials + 4)
    wrong = np.random.default_rng(seed).binomial(n, centre, size=(_DRAWS, *n.shape))
    seen = getattr(ErrorTable.from_rates(centre, table.mass), measure)
    drawn = [getattr(ErrorTable.from_rates(rates(w, n), table.mass), measure) for w in wrong]
    low, high = np.quantile(np.array(drawn, dtype=float) - seen, [0.025, 0.975])
    value = getattr(table, measure)
    # What is taken off can be more than the whole value; an interval without it would be read as an error.
    return min(value, max(0.0, value - float(high))), max(value, value - float(low))


def doubts(run: Run) -> list[str]:
    """Results that look like results and are none, each with a remedy."""
    checks = (_near_chance, _far_temperature, _lost_while_mean_gained)
    return [text for check in checks if (text := check(run))]


def _near_chance(run: Run) -> str | None:
    """Whether the network is hardly better than a constant or random guess."""
    best = next((e for e in all_evidence(run) if e.after is not None), None)
    collapsed = run.held_out is not None and run.held_out.collapsed  # told by itself
    if best is None or best.after is None or collapsed:
        return None
    errors = best.after.errors
    k = int(np.isfinite(errors).sum())
    if k < 2:
        return None
    n = best.after.trials
    noise = 0.0 if n is None else half_width(mean_error_variance(errors, n))
    right, chance = 1.0 - float(np.nanmean(errors)), 1.0 / k
    if right > 1.1 * chance + noise:
        return None
    what, remedy = "network", "train for longer (--recipe.epochs), lower --recipe.lr, or look"
    if run.adjusted:
        what, remedy = "classifier", "look"
    return (
        f"On {best.short} the balanced error is {percent(1.0 - right)}; guessing among the {k} classes has "
        f"{percent(1.0 - chance)}. This {what} has learned next to nothing that can be told from chance: "
        f"{remedy} for features that say more."
    )


def _far_temperature(run: Run) -> str | None:
    """Whether the softmax of the raw logits is far too sure, or not nearly sure enough."""
    temperature = run.calibration.get("temperature")
    if temperature is None or 1 / _FAR_TEMPERATURE <= temperature <= _FAR_TEMPERATURE:
        return None
    sure = "far too sure of itself" if temperature > 1 else "not nearly as sure as it may be"
    return (
        f"The temperature is {number(temperature)}, far from 1: the network is {sure}. Take no softmax of "
        "its logits for a probability; use predict --prior training, and more weight decay or data."
    )


def _lost_while_mean_gained(run: Run) -> str | None:
    """Classes whose error rose by more than noise although the mean over the classes fell."""
    for evidence in all_evidence(run):
        before, after, change = evidence.before, evidence.after, evidence.change
        if evidence.kind == "baselines":
            continue  # Against plain training a balanced error always costs the frequent classes.
        if before is None or after is None or change is None:
            continue
        if before.trials is None or after.trials is None or not np.nanmean(change) < 0:
            return None
        pairs = ((before.errors, before.trials), (after.errors, after.trials))
        variance = sum(class_variances(np.nan_to_num(errors), n) for errors, n in pairs)
        clear = np.flatnonzero(np.nan_to_num(change) > Z95 * np.sqrt(variance))
        if not len(clear):
            return None
        names = [f"{run.classes[c]} ({points(change[c])} points)" for c in clear]
        return (
            f"The mean error over the classes fell by {100 * -float(np.nanmean(change)):.1f} points on "
            f"{evidence.short}, and yet this lost more than noise explains: {name_list(names)}. If that "
            "class must not pay, take worst_class_error for the objective, or give it an importance."
        )
    return None
