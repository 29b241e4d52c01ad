"""What a run asked and found, in sentences, and numbers as a reader wants them."""

from __future__ import annotations

import numpy as np

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


def percent(share: float | None, digits: int = 1) -> str:
    """A share in [0, 1] as a percentage, or a dash."""
    return "–" if share is None or not np.isfinite(share) else f"{100 * share:.{digits}f}%"


def points(difference: float) -> str:
    """A difference of shares in percentage points, with its sign."""
    value = round(100 * difference, 1)
    return f"{'+' if value > 0 else '−' if value < 0 else '±'}{abs(value):.1f}"


def number(value: float, digits: int = 2) -> str:
    """A number with a real minus sign, or a dash."""
    if not np.isfinite(value):
        return "–"
    text = f"{value:.{digits}f}"
    return text.replace("-", "−") if float(text) else f"{0:.{digits}f}"


def duration(seconds: float | None) -> str:
    """Seconds as a reader says them, or a dash."""
    if seconds is None or not np.isfinite(seconds):
        return "–"
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes} min" if hours else f"{minutes} min {rest} s"


def objective_name(run: Run) -> str:
    return OBJECTIVES.get(run.objective, (run.objective, ""))[0]


def sentences(run: Run) -> list[str]:
    """What was asked, what was found, and what it brought."""
    return [_asked(run), _found(run), _brought(run)]


def warning(run: Run) -> str | None:
    """What the reader must know before anything else, or None."""
    return {
        "finished": None,
        "interrupted": "The search was interrupted. The loss shown is the best estimate up to then.",
        "diverged": "Training diverged: its loss became infinite or NaN. The loss shown is that of "
        "the steps before. Lower the learning rate, then search again.",
    }.get(run.status, f"The search ended with the status “{run.status}”.")


def _asked(run: Run) -> str:
    name, meaning = OBJECTIVES.get(run.objective, (run.objective, ""))
    goal = f"the {name} ({meaning})" if meaning else name
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
    return f"autobalance was asked for a training loss that makes {goal} small, given {sizes}."


def _found(run: Run) -> str:
    if not run.parts:
        return "The record holds no designed loss: training uses plain cross-entropy."
    if not any(part.changed for part in run.parts):
        return f"The search left the loss where it began, at {_start_name(run)}."
    said = [_about_additive(run, p) if p.key == "additive" else _about_range(p) for p in run.parts]
    return " ".join(["The loss it found", "; ".join(s for s in said if s) + "."])


def _start_name(run: Run) -> str:
    parts = {p.key: p for p in run.parts}
    if any(np.ptp(p.start) > 1e-6 for key, p in parts.items() if key != "additive"):
        return "the loss it began with"
    slopes = _slopes(run, parts["additive"].start) if "additive" in parts else [0.0]
    if "additive" not in parts or not np.abs(parts["additive"].start).max() > 1e-6:
        return "plain cross-entropy"
    return (
        "logit adjustment"
        if slopes and np.allclose(slopes, 1.0, atol=0.02)
        else "the loss it began with"
    )


def _slopes(run: Run, rows: np.ndarray) -> list[float]:
    """Per row, how l changes with the logarithm of the class's frequency."""
    with np.errstate(divide="ignore"):
        logs = np.where(run.counts > 0, np.log(run.counts), np.nan)
    found = [slope(row, log) for row, log in zip(rows, logs, strict=True)]
    return [s for s in found if s is not None]


def _about_additive(run: Run, part: Part) -> str:
    if not part.changed:
        return "keeps the additive adjustment l of its start"
    start, found = (_slopes(run, rows) for rows in (part.start, part.found))
    group, k = np.unravel_index(np.nanargmax(np.abs(part.found - part.start)), part.found.shape)
    shift = part.found[group, k] - part.start[group, k]
    whom = run.classes[k] + (f" in {run.groups[group]}" if run.groups else "")
    moved = f"it moves {whom} most, by {number(shift)}"
    if not start or not found:
        return f"shifts the classes' logits in training ({moved})"
    before, after = float(np.mean(start)), float(np.mean(found))
    gap = after - before
    degree = (
        "about as much as" if abs(gap) < _SAME_SLOPE else "more than" if gap > 0 else "less than"
    )
    unit = "each unit of log class frequency" + (
        " within a group, on average" if run.groups else ""
    )
    return (
        f"favours rare classes {degree} {_start_name(run)}, where the search began: the adjustment l "
        f"grows by {number(after)} for {unit}, at the start by {number(before)} ({moved})"
    )


def _about_range(part: Part) -> str:
    if not part.changed:
        return ""
    low, high = np.nanmin(part.found), np.nanmax(part.found)
    return f"its {part.title} runs from {number(low)} to {number(high)}"


def _brought(run: Run) -> str:
    after = run.method("autobalance")
    key, name = _SCORE.get(run.objective, ("balanced_error", "balanced error"))
    if after is None or key not in after.scores:
        return _on_validation(run)
    where = f"On {run.evaluation_data}" if run.evaluation_data else "On test data"
    others = [m for m in run.methods if m is not after and key in m.scores]
    text = f"{where}, its {name} is {percent(after.scores[key])}"
    clauses = [_against(after, m, key) for m in others]
    return text + (": " + "; ".join(clauses) if clauses else "") + "."


def _against(after: Method, other: Method, key: str) -> str:
    """The loss found against one other method, and whether the test data can tell them apart."""
    gap = round(100 * (after.scores[key] - other.scores[key]), 1)
    title = _in_sentence(other.title)
    if gap == 0:
        return f"as much as {title}"
    said = f"{abs(gap):.1f} points {'less' if gap < 0 else 'more'} than {title}"
    reach = gap_half_width(after, other) if key == "balanced_error" else None
    if reach is None:
        return said
    verdict = "more than" if abs(gap) > 100 * reach else "within what"
    return f"{said}, {verdict} the choice of test examples explains"


def _in_sentence(title: str) -> str:
    """A title as it stands within a sentence; acronyms and names in capitals stay."""
    return title[:1].lower() + title[1:] if title[1:2].islower() else title


def gap_half_width(a: Method, b: Method) -> float | None:
    """Half of the 95% interval of the difference of two balanced errors, or None."""
    if a.n is None or b.n is None:
        return None
    return half_width(mean_error_variance(a.errors, a.n), mean_error_variance(b.errors, b.n))


def _on_validation(run: Run) -> str:
    hard = run.curves["hard_objective"]
    hard = hard[np.isfinite(hard)]
    if len(hard) < 2:
        return "Nothing was measured on test data."
    few = max(1, len(hard) // 4)
    return (
        f"On the validation data that guided the search, the {objective_name(run)} of the network in "
        f"training went from {percent(float(hard[:few].mean()))} to {percent(float(hard[-few:].mean()))} "
        "(means over the first and the last quarter of the search); much of that is the network "
        "learning, and nothing was measured on test data."
    )
