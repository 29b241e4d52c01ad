"""Several runs side by side on one page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from markupsafe import Markup

from autobalance._validation import InputError
from autobalance.report import compare_runs as compare
from autobalance.report.cautions import warning
from autobalance.report.compare_runs import NamedRun, classes_in_common
from autobalance.report.drawing import Picture
from autobalance.report.evidence import all_evidence
from autobalance.report.formats import phrase
from autobalance.report.html import render_sections, view
from autobalance.report.record import MAX_NAME, read_run, safe_text
from autobalance.report.run import Run
from autobalance.report.templates import render_page
from autobalance.report.text import objective_name, sentences

MAX_BYTES = 1_900_000
"""Of the page; the sections of runs that would make it larger are left out."""
_LEAST_ROWS = 50


def render_runs(records: Mapping[str, dict[str, Any]]) -> str:
    """Several runs side by side on one page, then each by itself, as HTML.

    Parameters
    ----------
    records : mapping
        By the runs' names, at least two; each as for `write_report`. Runs of other data or classes
        stand beside each other too, and the page says what of them cannot be compared.

    Raises
    ------
    InputError
        If there are fewer than two, or one is no run's record.
    """
    if len(records) < 2:
        raise InputError(f"Runs side by side need at least two; got {len(records)}.")
    rows = max(_LEAST_ROWS, 1000 // len(records))
    given_runs = []
    for i, (name, record) in enumerate(records.items(), 1):
        try:
            run = replace(read_run(record), place=f"run-{i}-", rows=rows)
            if run.several_labels:
                raise InputError("A run of several labels has a page of its own. Leave it out.")
        except InputError as error:
            raise InputError(f"{name}: {error}") from None
        given_runs.append((safe_text(" ".join(name.split()), MAX_NAME) or f"run {i}", run))
    runs = _with_evidence(given_runs)
    classes = classes_in_common(runs)
    title = f"{len(runs)} runs side by side"
    content: dict[str, Any] = {
        "heading": title,
        "sentences": _story(runs, classes),
        "limits": limits(runs, classes),
        "summaries": [(n.name, compare.summary(n.run)) for n in runs],
        "parts": _parts(runs, classes),
    }
    pages = [
        {"name": n.name, "warning": warning(n.run), "sentences": sentences(n.run), "body": Markup()}
        for n in runs
    ]
    size = len(render_page("runs.html.j2", title, pages=pages, **content).encode())
    for i, named in enumerate(runs):
        body = render_sections(view(named.run), 4)
        size += len(body.encode())
        if size > MAX_BYTES:
            break
        pages[i]["body"] = body
    return render_page("runs.html.j2", title, pages=pages, **content)


def _with_evidence(given: list[tuple[str, Run]]) -> list[NamedRun]:
    """Each with the best evidence of a kind that all have, or else with its own best."""
    kinds = [{e.kind: e for e in all_evidence(run)} for _, run in given]
    common = [kind for kind in ("test", "folds", "search") if all(kind in k for k in kinds)]
    return [
        NamedRun(name, run, k[common[0]] if common else next(iter(k.values()), None))
        for (name, run), k in zip(given, kinds, strict=True)
    ]


def _parts(runs: list[NamedRun], classes: list[str]) -> list[tuple[str, str, Any, list[Picture]]]:
    """Sections that hold all runs: identifier, heading, table and pictures."""
    both = (runs, classes)
    parts = [
        ("runs", "Errors and cost", compare.runs_table(runs), []),
        ("errors", "Error per class", compare.errors_table(*both), compare.error_pictures(*both)),
        ("learned", "What was learned", compare.parameters_table(*both),
         compare.parameter_pictures(*both)),
        ("settings", "Settings that differ", compare.settings_table(runs), []),
    ]  # fmt: skip
    return [part for part in parts if part[2] or part[3]]


def _story(runs: list[NamedRun], classes: list[str]) -> list[str]:
    """What stands beside what, and which has the lowest error where that can be said."""
    story = [phrase("runs.story", names=_listed([n.name for n in runs]))]
    scores = [float(np.nanmean(n.after.errors)) for n in runs if n.after]
    if len(scores) == len(runs) and not limits(runs, classes):
        best = int(np.argmin(scores))
        others = [100 * s for i, s in enumerate(scores) if i != best]
        values = {"name": runs[best].name, "best": 100 * scores[best], "least": min(others)}
        story.append(phrase("runs.lowest", **values))
    return story


def limits(runs: list[NamedRun], classes: list[str]) -> list[str]:
    """What of these runs cannot be compared, and why."""
    texts = []
    sets = [set(n.run.classes) for n in runs]
    if any(s != sets[0] for s in sets):
        key = "some_classes" if classes else "no_classes"
        sizes = ", ".join(f"{n.name}: {len(n.run.classes):,}" for n in runs)
        texts.append(phrase(f"runs.{key}", count=len(classes), sizes=sizes))
    elif any(_by_name(n) != _by_name(runs[0]) for n in runs):
        texts.append(phrase("runs.numbers"))
    kinds = {n.evidence.kind for n in runs if n.evidence}
    missing = [n.name for n in runs if n.evidence is None]
    if missing:
        texts.append(phrase("runs.nothing", names=_listed(missing)))
    data = "; ".join(f"{n.name}: {n.evidence.data if n.evidence else 'nothing'}" for n in runs)
    if len(kinds) > 1:
        texts.append(phrase("runs.kinds", data=data))
    elif kinds == {"test"} and len({n.evidence.data for n in runs if n.evidence}) > 1:
        texts.append(phrase("runs.test_data", data=data))
    aims = {objective_name(n.run) for n in runs}
    if len(aims) > 1:
        texts.append(phrase("runs.aims", aims=", ".join(sorted(aims))))
    stopped = [n.name for n in runs if n.run.status != "finished"]
    if stopped:
        texts.append(phrase("runs.unfinished", names=_listed(stopped)))
    return texts


def _by_name(named: NamedRun) -> dict[str, float]:
    return dict(zip(named.run.classes, named.run.class_totals.tolist(), strict=True))


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
