"""What a report shows of a run of several labels: each label's errors of both signs, before and after."""

from __future__ import annotations

from typing import Any

import numpy as np

from autobalance.report.formats import name_list, number, percent, phrase, points
from autobalance.report.label_run import LabelEvidence, LabelRun
from autobalance.report.tables import (
    Table,
    change_cell,
    choice_table,
    cost_table,
    cut_note,
    number_cell,
    parameter_cell,
    rate_cell,
    settings_table,
    versions_table,
)
from autobalance.report.text import (
    candidate_title,
    choice_sentence,
    facts,
    in_sentence,
    objective_name,
)

FEW = 10
"""Positives of a label below which its errors say little."""


# In words ----------------------------------------------------------------------------------------


def label_heading(run: LabelRun) -> str:
    """The page's title."""
    what = "Decisions" if run.adjusted else "A loss designed"
    if run.search_status != "finished":
        what = "Unfinished search of a loss"
    return f"{what} for the {objective_name(run)} of {len(run.classes):,} labels"


def label_story(run: LabelRun) -> list[str]:
    """What was asked, and how the errors of the labels changed."""
    positives = run.counts[0]
    most, least = run.order[0], run.order[-1]
    texts = [
        phrase(
            "labels.asked",
            what="decisions that make" if run.adjusted else "a training loss that makes",
            objective=objective_name(run),
            k=len(run.classes),
            n=float((positives + run.negatives).max()),
            frequent=run.classes[most],
            most=positives[most],
            rare=run.classes[least],
            least=positives[least],
        )
    ]
    if run.adjusted:
        title = in_sentence(candidate_title(run, run.choice))
        texts.append(phrase("labels.taken", title=title))
        if run.adjusted["tau"] is not None:
            texts.append(phrase("labels.tau", tau=number(run.adjusted["tau"])))
    elif isinstance(run.design.get("tau"), (int, float)):
        texts.append(phrase("labels.strength", tau=number(float(run.design["tau"]))))
    texts += [_describe(evidence) for evidence in run.evidence]
    choice = None if run.adjusted else choice_sentence(run)
    return texts if choice is None else [*texts, choice]


def _describe(evidence: LabelEvidence) -> str:
    ends = [
        np.nanmean(m.balanced) if np.isfinite(m.balanced).any() else np.nan
        for m in evidence.methods
    ]
    worst = [np.nanmax(m.balanced, initial=0.0) for m in evidence.methods]
    text = phrase(
        "labels.measured",
        data=evidence.data,
        mean=percent(float(ends[-1])),
        worst=percent(float(worst[-1])),
    )
    if len(ends) < 2:
        return text + "."
    other = in_sentence(evidence.methods[0].title)
    before = (percent(float(ends[0])), percent(float(worst[0])))
    return text + phrase("labels.compared", other=other, mean=before[0], worst=before[1])


def label_changes(run: LabelRun) -> list[str]:
    """Which labels gained and lost most, or err most where nothing is known of before."""
    if not run.evidence:
        return []
    evidence = run.evidence[0]
    change, after = evidence.change, evidence.methods[-1].balanced
    if change is None:
        order = [j for j in np.argsort(-np.nan_to_num(after, nan=-1.0)) if np.isfinite(after[j])]
        return [phrase("labels.worst", names=name_list([_rate(run, j, after) for j in order]))]
    order = [j for j in np.argsort(change) if np.isfinite(change[j])]
    clauses = []
    for verb, some in (("gained", order), ("lost", order[::-1])):
        sign = -1 if verb == "gained" else 1
        names = [
            f"{run.classes[j]} ({points(float(change[j]))} points)"
            for j in some
            if sign * change[j] > 5e-4
        ]
        clauses.append(f"{verb}: {name_list(names)}" if names else f"none {verb}")
    return [f"Balanced errors of labels on {evidence.data}, {'; '.join(clauses)}."]


def _rate(run: LabelRun, j: int, errors: np.ndarray) -> str:
    return f"{run.classes[j]} ({percent(float(errors[j]))})"


def label_cautions(run: LabelRun) -> list[str]:
    """What to be careful about."""
    texts = []
    for evidence in run.evidence[:1]:
        positives = evidence.methods[-1].table.mass[1]
        absent = [run.classes[j] for j in np.flatnonzero(positives == 0)]
        few = [run.classes[j] for j in np.flatnonzero((positives > 0) & (positives < FEW))]
        if absent:
            texts.append(phrase("labels.absent", data=evidence.data, names=name_list(absent)))
        if few:
            texts.append(phrase("labels.few", data=evidence.data, few=FEW, names=name_list(few)))
    if not any(evidence.key == "test" for evidence in run.evidence):
        texts.append(phrase("labels.untested"))
    return texts


# Tables ------------------------------------------------------------------------------------------


def label_tables(run: LabelRun) -> list[Table]:
    """False positives, false negatives and balanced error of each label, most frequent first."""
    return [_label_table(run, evidence) for evidence in run.evidence]


def _label_table(run: LabelRun, evidence: LabelEvidence) -> Table:
    order = run.order[: run.rows].tolist()
    columns: list[tuple[str, list[Any]]] = [
        ("Label", [run.classes[j] for j in order]),
        ("Positives in training", [number_cell(float(run.counts[0, j])) for j in order]),
        (
            "Positives here",
            [number_cell(float(evidence.methods[-1].table.mass[1, j])) for j in order],
        ),
    ]
    for method in evidence.methods:
        errors = method.table.errors
        for what, values in (
            ("false positives", errors[0]),
            ("false negatives", errors[1]),
            ("balanced error", method.balanced),
        ):
            cells = [rate_cell(float(values[j])) for j in order]
            columns.append((f"{method.title}: {what}", cells))
    if evidence.change is not None:
        columns.append(("Change, points", [change_cell(float(evidence.change[j])) for j in order]))
    caption = phrase("labels.table", data=evidence.data) + cut_note(run.rows, len(run.order))
    return Table.of_columns(f"{run.place}errors-{evidence.key}", caption, columns)


def label_parameters_table(run: LabelRun) -> Table | None:
    """The l of each label: of the loss, or the threshold of its log odds; beside its log prior odds."""
    if run.additive is None:
        return None
    order = run.order[: run.rows].tolist()
    with np.errstate(divide="ignore"):
        odds = np.log(run.counts[0]) - np.log(run.negatives)
    columns = [
        ("Label", [run.classes[j] for j in order]),
        ("Positives in training", [number_cell(float(run.counts[0, j])) for j in order]),
        ("Log prior odds", [parameter_cell(float(odds[j])) for j in order]),
        ("ℓ", [parameter_cell(float(run.additive[j])) for j in order]),
    ]
    caption = phrase(f"labels.{'thresholds' if run.adjusted else 'parameters'}")
    caption += cut_note(run.rows, len(run.order))
    return Table.of_columns(f"{run.place}parameters", caption, columns)


def view_labels(run: LabelRun) -> dict[str, Any]:
    """All that the page of a run of several labels shows."""
    parameters = label_parameters_table(run)
    return {
        "run": run,
        "heading": label_heading(run),
        "sentences": label_story(run),
        "facts": [
            fact for fact in facts(run) if "class" not in fact[0] and "examples" not in fact[0]
        ],
        "cautions": [*label_changes(run), *label_cautions(run), *run.notes],
        "tables": [*label_tables(run), *([] if parameters is None else [parameters])],
        "choice": choice_table(run),
        "cost": cost_table(run),
        "versions": versions_table(run),
        "settings": settings_table(run),
    }
