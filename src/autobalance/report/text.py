"""What a run asked and found, in sentences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from autobalance.records import RacedArm
from autobalance.report.formats import duration, number, percent, phrase, points, read_words
from autobalance.report.run import Candidate, Method, Part, Run
from autobalance.report.statistics import half_width, mean_error_variance, slope

UNNAMED = "the loss it began with"  # a start that has no name of its own
_NOISE = 2.0  # standard errors
GAP_TITLES = read_words("gaps")
# The score of a method that tells whether the objective was met; where none fits, the balanced error.
_SCORE = {
    "worst_class_error": ("worst_class_error", "worst class error"),
    "worst_group_error": ("worst_group_error", "worst group error"),
}
_BALANCED = "balanced_error", "balanced error"
_SAME_SLOPE = 0.05
SAME_ERROR = 0.01  # a change of the validation error that is not worth a word


# Titles ------------------------------------------------------------------------------------------


def objective_name(run: Run) -> str:
    """The run's objective, as a sentence has it."""
    return in_words(run.objective)


def in_words(objective: str) -> str:
    """An objective's name, a blend or a bound, as a sentence has it."""
    words = read_words("objectives") | read_words("in_objectives")
    return " ".join(words.get(part, part.replace("_", " ")) for part in objective.split())


def in_sentence(title: str) -> str:
    """A title as it stands within a sentence; acronyms and names in capitals stay."""
    return title[:1].lower() + title[1:] if title[1:2].islower() else title


def heading(run: Run) -> str:
    """The page's title."""
    if run.search_status == "diverged":
        return f"Training diverged before a loss for the {objective_name(run)} was found"
    what = "A loss designed" if run.choice == "designed" else "A loss chosen"
    if run.search_status != "finished":
        what = "Unfinished search of a loss"
    elif run.decided or run.adjusted:
        what = "Decisions"
    return f"{what} for the {objective_name(run)}"


def loss_heading(run: Run) -> str:
    """The title of the section that shows the loss."""
    if run.search_status != "finished":
        end = "diverged" if run.search_status == "diverged" else "stopped"
        return f"The loss when the search {end}" if run.moved else "The loss at the start"
    return (
        "The loss designed, not taken"
        if run.choice != "designed" and run.moved
        else "The loss found"
    )


def end_label(run: Run) -> str:
    """What the loss at the end of the search is called beside its start."""
    if run.search_status != "finished":
        return "at the stop"
    return "found" if run.choice == "designed" else "designed"


def describe_arm(arm: RacedArm) -> str:
    """What an arm of a race changes, in words."""
    texts = {
        "cosine_scale": "cosine classifier of scale {:g}",
        "weight_decay": "weight decay {:g}",
        "gamma": "δ from γ = {:g}",
    }
    parts = [
        text.format(value)
        for key, text in texts.items()
        if isinstance(value := arm.settings.get(key), (int, float))
    ]
    return ", ".join(parts) or "as it is"


def candidate_title(run: Run, name: str) -> str:
    """A candidate of the final choice as tables name it."""
    if run.adjusted:
        section = "label_adjustments" if run.several_labels else "adjustments"
        return read_words(section).get(name, name)
    start = start_name(run)
    return {
        "designed": "Designed loss",
        "start": "Start" if start == UNNAMED else f"Start: {start}",
        "cross_entropy": "Plain cross-entropy",
    }.get(name, name)


# The story ---------------------------------------------------------------------------------------


def sentences(run: Run) -> list[str]:
    """What was asked, what was found, and what it brought."""
    texts: list[str | None] = [_describe_request(run), _outcome(run)]
    if run.rules:
        texts.append(describe_rules(run.rules["count"], run.rules["shares"]))
    if run.adjusted:
        tested = _on_test_data(run) if _is_measured(run) else None
        beside = baselines_sentence(run)
        return [text for text in [*texts, *adjustment_sentences(run), beside, tested] if text]
    if _is_measured(run):
        texts.append(_on_test_data(run))
    elif not run.candidates and run.search_status != "diverged":
        texts.append(_on_validation(run))
    texts += [choice_sentence(run), baselines_sentence(run)]
    if not (_is_measured(run) and run.before):  # test data of one network alone compare nothing
        texts.append(one_fold_sentence(run))
    return [text for text in texts if text]


def facts(run: Run) -> list[tuple[str, str]]:
    """The numbers that a reader looks for first, with their names."""
    key, name = _SCORE.get(run.objective, _BALANCED)
    named_values = [("Objective", objective_name(run))]
    for method in run.methods:
        if key in method.scores:
            title = f"{name.capitalize()}, {in_sentence(method.title)}"
            named_values.append((title, percent(method.scores[key])))
    taken, start = run.candidate(run.choice), run.candidate("start")
    if taken is not None and not _is_measured(run):
        start = run.other if run.adjusted else start
        after, before = ("adjusted", "before") if run.adjusted else ("loss taken", "start")
        named_values.append((f"Held-out error, {after}", percent(taken.objective)))
        if start is not None and start is not taken:
            named_values.append((f"Held-out error, {before}", percent(start.objective)))
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
    main, gap = (percent(point[axis]) for axis in ("main", "gap"))
    beside = ""
    for other in run.frontier["baselines"][:1]:
        ends = {axis: percent(other[axis]) for axis in ("main", "gap")}
        beside += phrase("story.most_probable", **ends)
    if point.get("worst_cell") is not None:
        beside += phrase("story.worst_cell", worst=percent(point["worst_cell"]))
    name = in_words(run.frontier["main"])
    return phrase("story.decision", main_name=name, main=main, gap=gap, beside=beside)


def describe_rules(count: int, shares: Sequence[float] | None = None) -> str:
    """Whether every row is decided by one rule, or which share of them by each of several."""
    if count == 1:
        return phrase("story.fixed")
    each = [f"rule {i} decides {percent(share)}" for i, share in enumerate(shares or [], 1)]
    told = f": {', '.join(each)} of them" if each else ""
    return phrase("story.drawn", rules=count, shares=told)


def _describe_request(run: Run) -> str:
    meaning = read_words("meanings").get(run.objective)
    goal = f"the {objective_name(run)}" + (f" ({meaning})" if meaning else "")
    most, least = run.order[0], run.order[-1]
    n, totals = run.class_totals.sum(), run.class_totals
    images = run.settings.get("examples")
    of_pixels = isinstance(images, int) and n > images  # a class for each pixel
    sizes = f"{n:,.0f} training examples of {len(run.classes):,} classes"
    if of_pixels:
        sizes = f"{n:,.0f} pixels of {len(run.classes):,} classes in {images:,} training images"
    if run.groups:
        sizes += f" in {len(run.groups):,} groups"
    if n == 0:
        sizes = f"{len(run.classes):,} classes"
    elif totals[most] == totals[least]:
        sizes += f", {totals[most]:,.0f} of each class"
    else:
        sizes += phrase(
            "story.from_to", most=totals[most], frequent=run.classes[most], least=totals[least],
            rare=run.classes[least],
        )  # fmt: skip
    what = "decisions that make" if run.decided or run.adjusted else "a training loss that makes"
    return phrase("story.asked", what=what, goal=goal, sizes=sizes)


def adjustment_sentences(run: Run) -> list[str]:
    """The strength tau of the adjustment and its interval, where it has one."""
    found, texts = run.adjusted, []
    if found["tau"] is not None:
        between = found["intervals"].get("tau")
        spread = "" if between is None else f" ({number(between[0])} to {number(between[1])})"
        texts.append(phrase("story.tau", tau=number(found["tau"]), spread=spread))
    return texts


def _about_adjustment(run: Run) -> str:
    found, taken, other = run.adjusted, run.candidate(run.choice), run.other
    model = phrase("story.model", model=found["model"]) if found["model"] else ""
    title = in_sentence(candidate_title(run, run.choice))
    if taken is None:
        return phrase("story.adjusted", model=model, title=title, change="")
    change = f": {percent(taken.objective)}"
    if other is not None:
        change = f": {percent(other.objective)} before, {percent(taken.objective)} after"
    gain = found["intervals"].get("gain")
    if other is not None and gain is not None:
        low, high = (number(100 * end, 1) for end in gain)
        change += f" (a gain of {low} to {high} points in nine of ten resamples)"
    return phrase("story.adjusted", model=model, title=title, change=change)


def _outcome(run: Run) -> str:
    if run.adjusted:
        return _about_adjustment(run)
    if run.decided:
        return _about_decision(run, run.decided)
    if not run.parts:
        return phrase("story.no_loss")
    if not run.moved:
        end = "never_changed" if run.search_status == "diverged" else "unmoved"
        return phrase(f"story.{end}", start=start_name(run))
    about = [_about_additive(run, p) for p in run.parts if p.key == "additive"]
    for p in run.moved:
        low, high = (number(end(p.end)) for end in (np.nanmin, np.nanmax))
        if p.key != "additive":
            about.append(phrase("story.range", title=p.title, low=low, high=high))
    subject = "The loss it found" if run.choice == "designed" else "The loss the search designed"
    if run.search_status != "finished":
        subject = "The loss so far"
    return f"{subject} {'; '.join(about)}."


def start_name(run: Run) -> str:
    """The loss that the search began with, in words."""
    parts = {p.key: p for p in run.parts}
    if run.several_labels:
        return UNNAMED
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
    return phrase(
        "story.strength", leaning=_leaning(run, before, after), what=what, after=number(after),
        before=number(before), means="; means over the groups" if run.groups else "", moved=moved,
    )  # fmt: skip


def _leaning(run: Run, before: float, after: float) -> str:
    """Whom a loss of strength `after` favours, against that of its start."""
    named = start_name(run)
    start = named + ("" if named == UNNAMED else ", where the search began")
    if after < -_SAME_SLOPE:
        if before < -_SAME_SLOPE:
            return f"favours frequent classes over rare ones, as does {start}"
        return phrase("story.reversed", start=start)
    if abs(after) <= _SAME_SLOPE < abs(before):
        return f"treats rare and frequent classes nearly alike, unlike {start}"
    gap = after - before
    degree = (
        "about as much as" if abs(gap) < _SAME_SLOPE else "more than" if gap > 0 else "less than"
    )
    return f"favours rare classes {degree} {start}"


def _is_measured(run: Run) -> bool:
    """Whether test data judged the loss."""
    after = run.method("autobalance")
    return after is not None and _SCORE.get(run.objective, _BALANCED)[0] in after.scores


def _on_test_data(run: Run) -> str:
    after = run.method("autobalance")
    assert after is not None
    key, name = _SCORE.get(run.objective, _BALANCED)
    where = f"On {run.evaluation_data}" if run.evaluation_data else "On test data"
    others = [m for m in run.methods if m is not after and key in m.scores]
    whose = "its" if run.choice == "designed" else "the network's"
    whose = "their" if run.adjusted else whose
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
    if key != "balanced_error" or after.trials is None or other.trials is None:
        return text
    reach = half_width(
        mean_error_variance(after.errors, after.trials),
        mean_error_variance(other.errors, other.trials),
    )
    verdict = "more than" if abs(gap) > 100 * reach else "within what"
    return phrase("story.compared", text=text, verdict=verdict)


def _explain_missing_test(run: Run) -> str:
    tested = run.method("autobalance")
    if tested is None:
        return "Nothing was measured on test data."
    key, name = _SCORE.get(run.objective, _BALANCED)
    if key in tested.undefined:
        return phrase("story.undefined", name=name, reason=tested.undefined[key])
    return phrase("story.unmeasured", name=name)


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
        return _explain_missing_test(run)
    begin, end = ends
    means = phrase("story.quarters")
    path = f"from {percent(begin)} to {percent(end)} ({means})"
    if abs(end - begin) <= SAME_ERROR:
        sense = "steady"
        path = f"stayed about the same: {percent(begin)}, then {percent(end)} ({means})"
    else:
        sense = "fell" if end < begin else "rose"
        path = f"{sense} {path}"
    return phrase(
        "story.on_validation", objective=objective_name(run), path=path,
        sense=phrase(f"story.{sense}"), unmeasured=_explain_missing_test(run),
    )  # fmt: skip


# The final choice --------------------------------------------------------------------------------


def choice_sentence(run: Run) -> str | None:
    """What was taken and why; None where there was no choice to be made."""
    designed, taken, start = run.candidate("designed"), run.candidate(run.choice), start_name(run)
    if designed is None or designed.difference is None or taken is None:
        return None
    of = "its start" if start == UNNAMED else f"its start, {start}"
    values = {"of": of, "gap": _format_gap(designed), "errors": _errors(run, designed)}
    if run.folds == 1:  # where augmentation was learned
        verdict = phrase(f"choice.{'both_kept' if taken.name == 'designed' else 'start_taken'}")
        return phrase("choice.one_split", verdict=verdict, **values)
    if taken.name == "start":
        end = "start_anyway" if designed.difference < 0 else "start_better"
        return phrase(f"choice.{end}", **values)
    if taken.name == "designed":
        values["gap"] = values["gap"].lstrip("+−±")
        return phrase("choice.designed", doubt=_doubt(designed), **values)
    title = candidate_title(run, taken.name)
    return phrase(
        "choice.other", title=title[:1].lower() + title[1:], gap=_format_gap(taken),
        designed=_format_gap(designed), doubt=_doubt(taken),
    )  # fmt: skip


def baselines_sentence(run: Run) -> str | None:
    """What plain training and class weights gave beside the run's own result, on the same rows."""
    key, name = _SCORE.get(run.objective, _BALANCED)
    known = [m for m in run.baselines if key in m.scores]
    if len(known) < 2:
        return None
    each = [f"{percent(m.scores[key])} with {in_sentence(m.title)}" for m in known]
    errors = f"{', '.join(each[:-1])} and {each[-1]}"
    return phrase("choice.baselines", data=run.baselines_data, name=name, errors=errors)


def one_fold_sentence(run: Run) -> str | None:
    """That nothing says how good the loss is, where that is so because of a single fold."""
    moved = run.search_status == "finished" and run.moved
    # A frontier has no final choice, with however many folds.
    if (
        run.candidates
        or run.baselines
        or not moved
        or (run.folds or 1) > 1
        or run.kind == "frontier"
    ):
        return None
    return phrase("choice.one_fold")


def _errors(run: Run, candidate: Candidate) -> str:
    start = run.candidate("start")
    against = f" against {percent(start.objective)}" if start else ""
    return f"held-out error {percent(candidate.objective)}{against}"


def _format_gap(candidate: Candidate) -> str:
    error = candidate.standard_error
    spread = "" if error is None else f" ± {100 * error:.1f}"
    return f"{points(candidate.difference or 0.0)}{spread}"


def _doubt(candidate: Candidate) -> str:
    gap, error = candidate.difference, candidate.standard_error
    if gap is None or error is None or abs(gap) > _NOISE * error:
        return ""
    return phrase("choice.doubt")
