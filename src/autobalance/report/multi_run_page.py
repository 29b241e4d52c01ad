"""Several runs side by side on one page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from markupsafe import Markup

from autobalance._validation import InputError
from autobalance.report.compare_runs import (
    added_pictures,
    classes_in_common,
    differing_settings_table,
    errors_beside_picture,
    errors_beside_table,
    parameters_beside_table,
    runs_table,
    words,
)
from autobalance.report.evidence import Judged, evidence
from autobalance.report.record import MAX_NAME, Run, read_run, safe_text
from autobalance.report.status import warning
from autobalance.report.tables import Table
from autobalance.report.text import objective_name, sentences
from autobalance.report.view import inlined, page, sections, view

MAX_BYTES = 1_900_000
"""Of the page; the sections of runs that would make it larger are left out."""
_LEAST_ROWS = 50


@dataclass(frozen=True, eq=False)
class Named:
    """A run beside others, under the name that the page gives it."""

    name: str
    run: Run
    judged: Judged | None


def several_runs(records: Mapping[str, dict[str, Any]]) -> str:
    """The page; see `autobalance.report.render_runs`."""
    if len(records) < 2:
        raise InputError(f"Runs side by side need at least two; got {len(records)}.")
    rows = max(_LEAST_ROWS, 1000 // len(records))
    given_runs = []
    for i, (name, record) in enumerate(records.items(), 1):
        try:
            run = replace(read_run(record), place=f"run-{i}-", rows=rows)
        except InputError as error:
            raise InputError(f"{name}: {error}") from None
        shown = safe_text(" ".join(name.split()), MAX_NAME) or f"run {i}"
        given_runs.append((shown, run))
    runs = _named(given_runs)
    classes = classes_in_common(runs)
    parts = _parts(runs, classes)
    given: dict[str, Any] = {
        "heading": f"{len(runs)} runs side by side",
        "sentences": _story(runs),
        "limits": limits(runs, classes),
        "found": [(n.name, words(n.run)) for n in runs],
        "parts": parts,
    }
    title = f"{len(runs)} runs side by side"
    pages = [_page(named, Markup()) for named in runs]
    size = len(page("runs.html.j2", title, pages=pages, **given).encode())
    for i, named in enumerate(runs):
        body = sections(view(named.run), 4)
        size += len(body.encode())
        if size > MAX_BYTES:
            break
        pages[i]["body"] = body
    return page("runs.html.j2", title, pages=pages, **given)


def _named(given: list[tuple[str, Run]]) -> list[Named]:
    """Each with the best evidence of a kind that all have, or else with its own best."""
    found = [{e.kind: e for e in evidence(run)} for _, run in given]
    common = [kind for kind in ("test", "folds", "search") if all(kind in f for f in found)]
    kinds = [common[0] if common else next(iter(f), None) for f in found]
    return [
        Named(name, run, f[kind] if kind else None)
        for (name, run), f, kind in zip(given, found, kinds, strict=True)
    ]


def _page(named: Named, body: Markup) -> dict[str, Any]:
    return {
        "name": named.name,
        "warning": warning(named.run),
        "sentences": sentences(named.run),
        "body": body,
    }


def _parts(runs: list[Named], classes: list[str]) -> list[tuple[str, str, list[Table], list[Any]]]:
    """Sections that hold all runs: identifier, heading, tables and pictures."""
    errors, parameters = errors_beside_table(runs, classes), parameters_beside_table(runs, classes)
    differing = differing_settings_table(runs)
    errors_drawn = errors_beside_picture(runs, classes)
    found = [
        ("runs", "Errors and cost", [runs_table(runs)], []),
        ("errors", "Error per class", [errors] if errors else [], errors_drawn),
        ("learned", "What was learned", [parameters] if parameters else [],
         added_pictures(runs, classes)),
        ("settings", "Settings that differ", [differing] if differing else [], []),
    ]  # fmt: skip
    return [(i, name, shown, inlined(drawn)) for i, name, shown, drawn in found if shown or drawn]


def _story(runs: list[Named]) -> list[str]:
    """What stands beside what, and which has the lowest error where that can be said."""
    said = [
        f"{_listed([n.name for n in runs])}: what each was asked for, what it found and its cost."
    ]
    measured = [(n, n.judged.after) for n in runs if n.judged and n.judged.after]
    scores = [float(np.nanmean(m.errors)) for _, m in measured]
    if len(measured) == len(runs) and not limits(runs, classes_in_common(runs)):
        best = int(np.argmin(scores))
        others = [100 * s for i, s in enumerate(scores) if i != best]
        said.append(
            f"On the same kind of data the balanced error is lowest for {runs[best].name}, "
            f"{100 * scores[best]:.1f}%; of the others {min(others):.1f}% or more. One run each says "
            "nothing of other seeds: autobalance compare measures that."
        )
    return said


def limits(runs: list[Named], classes: list[str]) -> list[str]:
    """What of these runs cannot be compared, and why."""
    said = []
    sets = [set(n.run.classes) for n in runs]
    if any(s != sets[0] for s in sets):
        said.append(
            f"The runs are of different classes: {len(classes):,} have the same name in all of them, "
            f"and only these stand side by side ({_sizes(runs)}). Balanced and worst errors are over "
            "each run's own classes."
            if classes
            else f"The runs have no class in common ({_sizes(runs)}): their errors and losses cannot be "
            "compared class by class, nor their balanced and worst errors."
        )
    elif any(_by_name(n) != _by_name(runs[0]) for n in runs):
        said.append(
            "The runs were trained on different numbers of examples, so that a difference need not be "
            "that of the losses."
        )
    kinds = {_kind(n) for n in runs}
    if "nothing" in kinds:
        missing = [n.name for n in runs if n.judged is None]
        said.append(f"Nothing measured the error per class of {_listed(missing)}.")
    if len(kinds - {"nothing"}) > 1:
        told = "; ".join(f"{n.name}: {n.judged.data if n.judged else 'nothing'}" for n in runs)
        said.append(f"The errors are of different kinds of data: {told}.")
    elif kinds == {"test"} and len({n.judged.data for n in runs if n.judged}) > 1:
        told = "; ".join(f"{n.name}: {n.judged.data if n.judged else ''}" for n in runs)
        said.append(f"The errors are on different test data: {told}.")
    aims = {objective_name(n.run) for n in runs}
    if len(aims) > 1:
        said.append(
            f"The runs were asked for different things ({', '.join(sorted(aims))}): each is best judged "
            "by its own."
        )
    stopped = [n.name for n in runs if n.run.status != "finished"]
    if stopped:
        said.append(f"Not finished: {_listed(stopped)}.")
    return said


def _kind(named: Named) -> str:
    return "nothing" if named.judged is None else named.judged.kind


def _by_name(named: Named) -> dict[str, float]:
    return dict(zip(named.run.classes, named.run.class_totals.tolist(), strict=True))


def _sizes(runs: list[Named]) -> str:
    return ", ".join(f"{n.name}: {len(n.run.classes):,}" for n in runs)


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
