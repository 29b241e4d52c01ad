"""What a run asked and found, in sentences."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from autobalance.report.choice import UNNAMED, choice_sentence, one_fold_sentence
from autobalance.report.formats import duration, number, percent
from autobalance.report.record import Method, Part, Run
from autobalance.report.statistics import half_width, mean_error_variance, slope

OBJECTIVES = {
    "balanced_error": (
        "balanced error",
        "the mean error over classes, each class counting the same",
    ),
    "worst_class_error": ("worst class error", "the error of the class that fares worst"),
    "group_balanced_error": (
        "balanced error over groups and classes",
        "the mean error over all pairs of group and class, each pair counting the same",
    ),
    "worst_group_error": ("worst group error", "the error of the group that fares worst"),
    "worst_class_and_group_error": (
        "worst error over groups and classes",
        "the error of the pair of group and class that fares worst",
    ),
}
# The score of a method that tells whether the objective was met; where none fits, the balanced error.
_SCORE = {
    "worst_class_error": ("worst_class_error", "worst class error"),
    "worst_group_error": ("worst_group_error", "worst group error"),
}
_SAME_SLOPE = 0.05
SAME_ERROR = 0.01  # a change of the validation error that is not worth a word


_WORDS = {
    "cvar_error": "CVaR of the errors",
    "deo": "DEO",
    "where": "with a",
    "<=": "of at most",
    "*": "×",
}


def objective_name(run: Run) -> str:
    """The run's objective, as a sentence has it."""
    return in_words(run.objective)


def in_words(objective: str) -> str:
    """An objective's name, a blend or a bound, as a sentence has it."""
    if objective in OBJECTIVES:
        return OBJECTIVES[objective][0]
    parts = [
        OBJECTIVES[part][0] if part in OBJECTIVES else _WORDS.get(part, part.replace("_", " "))
        for part in objective.split()
    ]
    return " ".join(parts)


def sentences(run: Run) -> list[str]:
    """What was asked, what was found, and what it brought."""
    texts: list[str | None] = [_asked(run), _outcome(run)]
    if _measured(run):
        texts.append(_on_test_data(run))
    elif not run.candidates and run.search_status != "diverged":
        texts.append(_on_validation(run))
    texts.append(choice_sentence(run, start_name(run)))
    if not (_measured(run) and run.before):  # test data of one network alone compare nothing
        texts.append(one_fold_sentence(run))
    return [text for text in texts if text]


def facts(run: Run) -> list[tuple[str, str]]:
    """The numbers that a reader looks for first, with their names."""
    key, name = _score(run)
    named_values = [("Objective", objective_name(run))]
    for method in run.methods:
        if key in method.scores:
            title = f"{name.capitalize()}, {in_sentence(method.title)}"
            named_values.append((title, percent(method.scores[key])))
    taken, start = run.candidate(run.choice), run.candidate("start")
    if taken is not None and not _measured(run):
        named_values.append(("Held-out error, loss taken", percent(taken.objective)))
        if start is not None and start is not taken:
            named_values.append(("Held-out error, start", percent(start.objective)))
    totals = run.class_totals
    if totals.any():
        named_values.append(("Training examples", f"{totals.sum():,.0f}"))
        rarest = totals[run.order[-1]]
        if rarest > 0:
            ratio = f"{totals[run.order[0]] / rarest:,.0f} to 1"
            named_values.append(("Most frequent to rarest class", ratio))
    if run.seconds.get("total") is not None:
        named_values.append(("Time in all", duration(run.seconds["total"])))
    return named_values


def _about_decision(run: Run, point: dict[str, Any]) -> str:
    text = (
        "One network was trained by cross-entropy for the probability of each class and group; no "
        f"group is needed to predict. On held-out examples its decisions have a "
        f"{in_words(run.frontier['main'])} of {percent(point['main'])} and a DEO of {percent(point['gap'])}"
    )
    for other in run.frontier["baselines"][:1]:
        text += f", its most probable classes {percent(other['main'])} and {percent(other['gap'])}"
    worst = point.get("worst_cell")
    if worst is not None:
        text += f"; the worst class within a group errs in {percent(worst)} of cases"
    text += "."
    if (point.get("drawn_from") or 1) > 1:
        text += (
            f" For each row it is drawn which of {point['drawn_from']:.0f} rules decides. The draw is a "
            "function of the features: the same row always gets the same decision, similar ones may not."
        )
    return text


def _asked(run: Run) -> str:
    name, meaning = OBJECTIVES.get(run.objective, (in_words(run.objective), ""))
    goal = f"the {name} ({meaning})" if meaning else f"the {name}"
    most, least = run.order[0], run.order[-1]
    n, totals = run.class_totals.sum(), run.class_totals
    sizes = f"{n:,.0f} training examples of {len(run.classes):,} classes"
    if run.groups:
        sizes += f" in {len(run.groups):,} groups"
    if n == 0:
        sizes = f"{len(run.classes):,} classes"
    elif totals[most] == totals[least]:
        sizes += f", {totals[most]:,.0f} of each class"
    else:
        sizes += (
            f", from {totals[most]:,.0f} of the most frequent class ({run.classes[most]}) "
            f"down to {totals[least]:,.0f} of the rarest ({run.classes[least]})"
        )
    what = "decisions that make" if run.decided else "a training loss that makes"
    return f"autobalance was asked for {what} {goal} small, given {sizes}."


def _outcome(run: Run) -> str:
    if run.decided:
        return _about_decision(run, run.decided)
    if not run.parts:
        return "The record holds no designed loss: training uses plain cross-entropy."
    if not any(part.changed for part in run.parts):
        if run.search_status == "diverged":
            return (
                f"The search never changed the loss: what is shown is its start, {start_name(run)}."
            )
        return f"The search left the loss where it began, at {start_name(run)}."
    about = [_about_additive(run, p) if p.key == "additive" else _about_range(p) for p in run.parts]
    subject = "The loss it found" if run.choice == "designed" else "The loss the search designed"
    if run.search_status != "finished":
        subject = "The loss so far"
    return f"{subject} {'; '.join(text for text in about if text)}."


def end_label(run: Run) -> str:
    """What the loss at the end of the search is called beside its start."""
    if run.search_status != "finished":
        return "at the stop"
    return "found" if run.choice == "designed" else "designed"


def start_name(run: Run) -> str:
    """The loss that the search began with, in words."""
    parts = {p.key: p for p in run.parts}
    if "multiplicative" in parts and np.ptp(parts["multiplicative"].start) > 1e-6:
        return UNNAMED
    start = _correction(run, "start")
    if not np.abs(start).max(initial=0.0) > 1e-6:
        return "plain cross-entropy"
    slopes = _slopes(run, start)
    if not slopes or not np.allclose(slopes, 1.0, atol=0.02):
        return UNNAMED
    weighs = "weight" in parts and np.ptp(parts["weight"].start) > 1e-6
    return "logit adjustment shared with class weights" if weighs else "logit adjustment"


def _correction(run: Run, when: Literal["start", "end"]) -> np.ndarray:
    """ℓ - log w per row and class: by how much the loss corrects the classes' odds."""
    parts = {p.key: getattr(p, when) for p in run.parts}
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(parts.get("additive", 0.0) - np.log(parts.get("weight", np.ones((1, 1)))))


def _slopes(run: Run, rows: np.ndarray) -> list[float]:
    """Per row, how a correction changes with the logarithm of the class's frequency."""
    with np.errstate(divide="ignore"):
        logs = np.where(run.counts > 0, np.log(run.counts), np.nan)
    slopes = [slope(row, log) for row, log in zip(rows, logs, strict=True)]
    return [s for s in slopes if s is not None]


def _about_additive(run: Run, part: Part) -> str:
    if not part.changed:
        return "keeps the additive adjustment ℓ of its start"
    start, end = (_slopes(run, _correction(run, when)) for when in ("start", "end"))
    group, k = np.unravel_index(np.nanargmax(np.abs(part.end - part.start)), part.end.shape)
    shift = part.end[group, k] - part.start[group, k]
    whom = run.classes[k] + (f" in {run.groups[group]}" if run.groups else "")
    moved = f"ℓ of {whom} moved most, by {number(shift)}"
    if not start or not end:
        return f"shifts the classes' logits in training; {moved}"
    before, after = float(np.mean(start)), float(np.mean(end))
    what = "ℓ - log w" if any(p.key == "weight" for p in run.parts) else "ℓ"
    return (
        f"{_leaning(run, before, after)}. Its strength, the growth of {what} with log class "
        f"frequency, is {number(after)}, at the start {number(before)} (0 is plain cross-entropy, 1 "
        f"logit adjustment{'; means over the groups' if run.groups else ''}); {moved}"
    )


def _leaning(run: Run, before: float, after: float) -> str:
    """Whom a loss of strength `after` favours, against that of its start."""
    named = start_name(run)
    start = named + ("" if named == UNNAMED else ", where the search began")
    if after < -_SAME_SLOPE:
        if before < -_SAME_SLOPE:
            return f"favours frequent classes over rare ones, as does {start}"
        return (
            "is the other way round from what is usual: it favours frequent classes over rare ones, "
            f"unlike {start}. Check it on test data before using it"
        )
    if abs(after) <= _SAME_SLOPE < abs(before):
        return f"treats rare and frequent classes nearly alike, unlike {start}"
    gap = after - before
    degree = (
        "about as much as" if abs(gap) < _SAME_SLOPE else "more than" if gap > 0 else "less than"
    )
    return f"favours rare classes {degree} {start}"


def _about_range(part: Part) -> str:
    if not part.changed:
        return ""
    low, high = np.nanmin(part.end), np.nanmax(part.end)
    return f"its {part.title} runs from {number(low)} to {number(high)}"


def _score(run: Run) -> tuple[str, str]:
    return _SCORE.get(run.objective, ("balanced_error", "balanced error"))


def _measured(run: Run) -> bool:
    """Whether test data judged the loss."""
    after = run.method("autobalance")
    return after is not None and _score(run)[0] in after.scores


def _on_test_data(run: Run) -> str:
    after = run.method("autobalance")
    assert after is not None
    key, name = _score(run)
    where = f"On {run.evaluation_data}" if run.evaluation_data else "On test data"
    others = [m for m in run.methods if m is not after and key in m.scores]
    whose = "its" if run.choice == "designed" else "the network's"
    text = f"{where}, {whose} {name} is {percent(after.scores[key])}"
    clauses = [_against(after, m, key) for m in others]
    return text + (": " + "; ".join(clauses) if clauses else "") + "."


def _against(after: Method, other: Method, key: str) -> str:
    """The loss found against one other method, and whether the test data can tell them apart."""
    gap = round(100 * (after.scores[key] - other.scores[key]), 1)
    title = in_sentence(other.title)
    if gap == 0:
        return f"as much as {title}"
    text = f"{abs(gap):.1f} points {'less' if gap < 0 else 'more'} than {title}"
    reach = gap_half_width(after, other) if key == "balanced_error" else None
    if reach is None:
        return text
    verdict = "more than" if abs(gap) > 100 * reach else "within what"
    return f"{text}, {verdict} the choice of test examples explains"


def in_sentence(title: str) -> str:
    """A title as it stands within a sentence; acronyms and names in capitals stay."""
    return title[:1].lower() + title[1:] if title[1:2].islower() else title


def gap_half_width(a: Method, b: Method) -> float | None:
    """Half of the 95% interval of the difference of two balanced errors, or None."""
    if a.n is None or b.n is None:
        return None
    return half_width(mean_error_variance(a.errors, a.n), mean_error_variance(b.errors, b.n))


def _unmeasured(run: Run) -> str:
    tested = run.method("autobalance")
    if tested is None:
        return "Nothing was measured on test data."
    key, name = _score(run)
    if key in tested.undefined:
        return f"On test data the {name} is not defined, for {tested.undefined[key]}."
    return f"On test data the {_score(run)[1]} was not measured; for that of groups give --groups."


def objective_then_and_now(run: Run) -> tuple[float, float] | None:
    """The objective's 0-1 form on validation data, means over the search's first and last quarter."""
    hard = run.curves["hard_objective"]
    hard = hard[np.isfinite(hard)]
    if len(hard) < 2:
        return None
    few = max(1, len(hard) // 4)
    return float(hard[:few].mean()), float(hard[-few:].mean())


def _on_validation(run: Run) -> str:
    ends = objective_then_and_now(run)
    if ends is None:
        return _unmeasured(run)
    begin, end = ends
    means = "means over the first and the last quarter of the search"
    where = (
        f"On the validation data that guided the search, the {objective_name(run)} of the network "
        "in training"
    )
    if abs(end - begin) <= SAME_ERROR:
        return (
            f"{where} stayed about the same: {percent(begin)}, then {percent(end)} ({means}). By this "
            f"measure the search gained nothing. {_unmeasured(run)}"
        )
    path = f"from {percent(begin)} to {percent(end)} ({means})"
    if end < begin:
        return (
            f"{where} fell {path}. Some of that is the network learning, so it does not say what the "
            f"loss brings. {_unmeasured(run)}"
        )
    return f"{where} rose {path}. By this measure the search did not help. {_unmeasured(run)}"
