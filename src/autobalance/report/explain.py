"""A run in words: what the loss does, whom it helped, what to be careful about, what it cost."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass

import numpy as np

from autobalance.report.cautions import cautions, warning
from autobalance.report.evidence import all_evidence
from autobalance.report.formats import name_list, number, percent, phrase, points
from autobalance.report.label_run import LabelRun
from autobalance.report.labels import (
    label_cautions,
    label_changes,
    label_heading,
    label_story,
)
from autobalance.report.run import Method, Run
from autobalance.report.statistics import Z95, class_variances
from autobalance.report.tables import cost_table, parameters_table
from autobalance.report.templates import environment
from autobalance.report.text import describe_arm, heading, in_sentence, sentences
from autobalance.report.verdicts import bound_sentences, doubts

WIDTH = 88
_ROWS = 10  # of the table in a notebook


@dataclass(frozen=True)
class Explanation:
    """What there is to say of a run, one or more sentences each."""

    heading: str  # what it is
    story: list[str]  # what was asked and found
    classes: list[str]  # which classes gained and lost
    warnings: list[str]  # what to be careful about, each with a remedy
    cost: list[tuple[str, str]]  # names and values
    parts: str = "Classes"  # what `classes` is about


def explanation(run: Run) -> Explanation:
    """What there is to say of a run, from its record alone."""
    cost = cost_table(run)
    costs = [] if cost is None else [(row[0].text, row[1].text) for row in cost.rows]
    if isinstance(run, LabelRun):
        changes, cautioned = label_changes(run), [*run.notes, *label_cautions(run)]
        return Explanation(
            label_heading(run), label_story(run), changes, cautioned, costs, "Labels"
        )
    first = warning(run)
    notes = [f"{note[0].upper()}{note[1:]}." for note in run.notes if note]
    return Explanation(
        heading=heading(run),
        story=[
            *bound_sentences(run),
            *sentences(run),
            *describe_race(run),
            *describe_augmentation(run),
            *describe_calibration(run),
        ],
        classes=[*describe_favoured_classes(run), *describe_class_changes(run)],
        warnings=[*([] if first is None else [first]), *notes, *cautions(run), *doubts(run)],
        cost=costs,
    )


def as_text(content: Explanation, width: int = WIDTH) -> str:
    """Paragraphs of plain text, lines of at most `width` characters."""

    def wrapped(text: str, lead: str = "") -> str:
        return textwrap.fill(
            text, width, initial_indent=lead, subsequent_indent=" " * len(lead),
            break_long_words=False, break_on_hyphens=False,
        )  # fmt: skip

    parts = [content.heading, *map(wrapped, content.story)]
    for title, texts in ((content.parts, content.classes), ("Take care", content.warnings)):
        if texts:
            parts.append("\n".join([title, *(wrapped(text, "  - ") for text in texts)]))
    if content.cost:
        widest = max(len(name) for name, _ in content.cost)
        rows = [f"  {name:<{widest}}  {value}" for name, value in content.cost]
        parts.append("\n".join(["Cost", *rows]))
    return "\n\n".join(parts)


def as_html(run: Run) -> str:
    """The heading, what was found, warnings and a small table, for a notebook; all escaped."""
    content, table = explanation(run), parameters_table(run)
    outcomes = [s for s in content.story if s.startswith(("The loss", "The search"))]
    outcome, rows, gap = (outcomes or content.story[-1:])[0], [], 0
    if table is not None:
        gap, half = max(0, len(table.rows) - _ROWS), _ROWS // 2
        rows = [*table.rows[:half], None, *table.rows[-half:]] if gap else table.rows
    template = environment().get_template("notebook.html.j2")
    return template.render(content=content, outcome=outcome, table=table, rows=rows, gap=gap)


def describe_favoured_classes(run: Run) -> list[str]:
    """Which classes the loss favours more than its start did, where ℓ alone says so."""
    if [part.key for part in run.moved] != ["additive"]:
        return []
    # A lower ℓ in training is a higher raw logit afterwards.
    shift = np.nanmean(run.moved[0].start - run.moved[0].end, axis=0)
    up, down = (
        [f"{run.classes[c]} ({number(sign * shift[c])})" for c in order if sign * shift[c] > 0.05]
        for sign, order in ((1, np.argsort(-shift)), (-1, np.argsort(shift)))
    )
    if not up and not down:
        return []
    clauses = [f"favours {name_list(up)} more"] if up else []
    if down:
        clauses.append(f"{'favours ' if not up else ''}{name_list(down)} less")
    means = ", means over the groups" if run.groups else ""
    return [phrase("explain.favoured", clauses=", and ".join(clauses), means=means)]


def describe_class_changes(run: Run) -> list[str]:
    """Which classes gained and which lost, as far as the record says."""
    for evidence in all_evidence(run):
        if evidence.before is None or evidence.after is None:
            continue
        where = f"On {run.data}"
        if evidence.kind == "folds":
            where = "On held-out data" if run.folds == 1 else "On the held-out folds"
        after, before = (in_sentence(m.title) for m in (evidence.after, evidence.before))
        lead = f"{where}, {after} against {before}"
        return [_changes(run, evidence.before, evidence.after, lead)]
    # A frontier has no final choice, with however many folds; decisions that stayed changed nothing.
    return [] if run.kind == "frontier" or run.adjusted else [phrase("explain.unknown_changes")]


def _changes(run: Run, before: Method, after: Method, lead: str) -> str:
    change = after.errors - before.errors
    known = np.flatnonzero(np.isfinite(change))
    order = known[np.argsort(change[known], kind="stable")]

    def describe(c: int) -> str:
        ends = f"{percent(before.errors[c])} to {percent(after.errors[c])}"
        return f"{run.classes[c]} ({points(change[c])} points, {ends})"

    gained = [describe(c) for c in order if change[c] < -5e-4]
    lost = [describe(c) for c in order[::-1] if change[c] > 5e-4]
    if not gained and not lost:
        return f"{lead}: no class's error changed."
    clauses = [f"gained: {name_list(gained)}" if gained else "no class gained"]
    clauses.append(f"lost: {name_list(lost)}" if lost else "none lost")
    text = f"{lead}, {'; '.join(clauses)}."
    if before.trials is None or after.trials is None:
        return text
    ends = ((before.errors, before.trials), (after.errors, after.trials))
    variance = sum(class_variances(np.nan_to_num(errors), n) for errors, n in ends)
    clear = int((np.abs(change[known]) > Z95 * np.sqrt(variance)[known]).sum())
    sure = f"{clear} of the {len(gained) + len(lost)} changes" if clear else "No change"
    verb = "are" if clear > 1 else "is"
    return phrase("explain.clear", text=text, sure=sure, verb=verb)


def describe_race(run: Run) -> list[str]:
    """Which way to train was taken, and what the others gave on the held-out examples."""
    taken = next((arm for arm in run.race if arm.outcome == "taken"), None)
    if taken is None or len(run.race) < 2:
        return []
    others = []
    for arm in run.race:
        if arm.outcome == "passed over" and arm.criterion is not None:
            gap = arm.criterion - (taken.criterion or 0.0)
            others.append(f"{arm.name} ({describe_arm(arm)}) by {gap:+.3f}")
        elif arm.outcome in ("left out", "diverged"):
            others.append(f"{arm.name} {arm.outcome}")
    what = f"{taken.name} ({describe_arm(taken)})"
    return [phrase("explain.race", n=len(run.race), taken=what, others="; ".join(others))]


def describe_augmentation(run: Run) -> list[str]:
    """What was learned of the augmentation, means over the classes."""
    rows = [row for row in run.policy.values() if row]
    clauses = []
    for name in rows[0] if rows else []:
        values = [row[name] for row in rows if name in row]
        often = np.mean([each["probability"] for each in values])
        size = [each["magnitude"] for each in values if "magnitude" in each]
        upto = f", by up to {percent(float(np.mean(size)))} of its limit" if size else ""
        clauses.append(f"{name.replace('_', ' ')} {percent(float(often))} of the time{upto}")
    return [phrase("explain.augmentation", clauses="; ".join(clauses))] if clauses else []


def describe_calibration(run: Run) -> list[str]:
    """How far off the probabilities are."""
    calibration = run.calibration
    if not {"raw_error", "error", "temperature"} <= calibration.keys():
        return []
    values = calibration | {"temperature": number(calibration["temperature"])}
    return [phrase("explain.calibration", **values)]
