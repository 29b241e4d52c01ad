"""Tables and figures that hold several runs side by side."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from autobalance.report import drawing, tables, text
from autobalance.report.drawing import BINS, MAX_LABELLED, Picture, Series, picture
from autobalance.report.evidence import Evidence
from autobalance.report.formats import phrase, setting_text, short
from autobalance.report.record import TITLES, safe_text
from autobalance.report.run import Method, Part, Run
from autobalance.report.svg import INK, MUTED, RAMP, house_style
from autobalance.report.tables import Cell, Table

MAX_DRAWN = 6
_MARKERS = ("o", "s", "^", "D", "v", "P")
# Neighbours as far apart as the ramp has them.
_COLOURS = tuple(RAMP[i] for i in (0, 5, 2, 4, 1, 3))


@dataclass(frozen=True, eq=False)
class NamedRun:
    """A run beside others, under the name that the page gives it, with what judged it."""

    name: str
    run: Run
    evidence: Evidence | None

    @property
    def after(self) -> Method | None:
        """The errors of the loss it took, where they were measured."""
        return None if self.evidence is None else self.evidence.after

    def places(self, classes: list[str]) -> np.ndarray:
        """Indices of these classes in the run."""
        position = {name: i for i, name in enumerate(self.run.classes)}
        return np.array([position[name] for name in classes], dtype=int)

    def errors(self, classes: list[str]) -> tuple[np.ndarray, np.ndarray | None]:
        """Errors of these classes, and their effective numbers where known, each of shape ``(k,)``."""
        at, after = self.places(classes), self.after
        assert after is not None
        return after.errors[at], None if after.trials is None else after.trials[at]


def summary(run: Run) -> str:
    """What a run was asked for and what it found, in a few sentences."""
    if run.status != "finished":
        end = f"The run is not finished: {run.status}."
    elif not run.candidates:
        end = "There was no final choice."
    else:
        title = text.in_sentence(text.candidate_title(run, run.choice))
        end = f"The final choice took the {title.removeprefix('the ')}."
    return f"Asked for the {text.objective_name(run)}. {text.sentences(run)[1]} {end}"


def classes_in_common(runs: list[NamedRun]) -> list[str]:
    """Names that stand for one class in all runs, by the first one's frequency."""
    first = runs[0].run
    names = [{c for c, times in Counter(n.run.classes).items() if times == 1} for n in runs]
    return [first.classes[c] for c in first.order if all(first.classes[c] in s for s in names)]


# Tables ---------------------------------------------------------------------------------------


def runs_table(runs: list[NamedRun]) -> Table:
    """Errors and cost, one run a row."""
    scores = zip(*(_scores(n.after) for n in runs), strict=True)
    columns = [
        ("Run", [n.name for n in runs]),
        ("Errors on", ["nothing" if n.evidence is None else n.evidence.short for n in runs]),
        *zip(tables.SCORE_TITLES.values(), scores, strict=True),
        ("Training examples", [tables.number_cell(n.run.class_totals.sum()) for n in runs]),
        ("Search", [tables.time_cell(n.run.search_time) for n in runs]),
        ("In all", [tables.time_cell(n.run.seconds.get("total")) for n in runs]),
        (
            "Search, in training runs",
            [tables.number_cell(n.run.training_runs, "{:.3g}") for n in runs],
        ),
    ]
    return Table.of_columns("runs", phrase("runs.interval"), columns, folded=1)


def _scores(after: Method | None) -> list[Cell]:
    """Balanced, worst class and worst group error."""
    if after is None or not np.isfinite(after.errors).any():
        return [Cell("–") for _ in range(3)]
    balanced = after.scores.get("balanced_error", float(np.nanmean(after.errors)))
    # Not a number, and so a dash, where a class has no example.
    worst = after.scores.get("worst_class_error", float(np.max(after.errors)))
    group = after.scores.get("worst_group_error")
    if group is None and after.by_group is not None:
        group = after.by_group.table.worst_group_error
    return [
        tables.rate_cell(balanced, tables.balanced_error_note(after)),
        tables.rate_cell(worst),
        tables.rate_cell(group),
    ]


def errors_table(runs: list[NamedRun], classes: list[str]) -> Table | None:
    """Error of each class that all runs have, one run a column."""
    measured = [n for n in runs if n.after]
    if not measured or not classes:
        return None
    most = max(n.run.rows for n in runs)
    totals = [n.run.class_totals[n.places(classes)] for n in runs]
    same = all((t == totals[0]).all() for t in totals)
    caption = phrase("runs.errors")
    if any(n.after and n.after.n is not None for n in measured):
        caption += phrase("table.wilson")
    counts = [tables.number_cell(float(t)) for t in totals[0][:most]]
    columns: list[tuple[str, Any]] = [
        ("Class", classes[:most]),
        ("Training examples" if same else f"Training examples, {runs[0].name}", counts),
        *((n.name, tables.error_cells(*n.errors(classes[:most]))) for n in measured),
    ]
    return Table.of_columns(
        "errors", caption + tables.cut_note(most, len(classes)), columns, folded=1
    )


def parameters_table(runs: list[NamedRun], classes: list[str]) -> Table | None:
    """ℓ, δ and w found, of each class that all runs have; means over the groups."""
    parts = [pair for key in TITLES for pair in _parts(runs, key)]
    if not parts or not classes:
        return None
    most = max(n.run.rows for n in runs)
    columns: list[tuple[str, Any]] = [("Class", classes[:most])]
    for n, part in parts:
        means = _group_means(n, part, classes[:most])
        columns.append((f"{part.symbol}, {n.name}", [tables.parameter_cell(v, 2) for v in means]))
    caption = phrase("runs.parameters") + _means_note(parts) + tables.cut_note(most, len(classes))
    return Table.of_columns("parameters", caption, columns)


def _parts(runs: list[NamedRun], key: str) -> list[tuple[NamedRun, Part]]:
    """One of ℓ, δ and w of the runs that moved it; ℓ of all."""
    parts = [(n, part) for n in runs for part in n.run.parts if part.key == key]
    return [(n, part) for n, part in parts if part.changed or key == "additive"]


def _group_means(named: NamedRun, part: Part, classes: list[str]) -> np.ndarray:
    return np.nanmean(part.end, axis=0)[named.places(classes)]


def _means_note(parts: list[tuple[NamedRun, Part]]) -> str:
    return " Means over the groups." if any(n.run.groups for n, _ in parts) else ""


def settings_table(runs: list[NamedRun]) -> Table | None:
    """Settings that are not the same in all runs."""
    settings = [dict(tables.flat_settings(n.run)) for n in runs]
    last = ("seed", "autobalance")
    for each, n in zip(settings, runs, strict=True):
        each |= {"seed": n.run.seed, "autobalance": n.run.versions.get("autobalance")}
    names = dict.fromkeys(name for each in settings for name in each)
    absent = object()
    rows = []
    for name in sorted(names, key=last.count):
        values = [each.get(name, absent) for each in settings]
        missing = (absent, None) if name in last else (absent,)
        if any(v != values[0] for v in values):
            texts = ["–" if v in missing else safe_text(setting_text(v), 300) for v in values]
            rows.append([Cell(name), *map(Cell, texts)])
    columns = ["Setting", *(n.name for n in runs)]
    return tables.words_table(
        "differing", "All others are the same.", columns, rows[: tables.MAX_SETTINGS]
    )


# Figures --------------------------------------------------------------------------------------


def error_pictures(runs: list[NamedRun], classes: list[str]) -> list[Picture]:
    """Error per class of the runs; nothing where there are not two with errors."""
    measured = [n for n in runs if n.after][:MAX_DRAWN]
    if len(measured) < 2 or not classes:
        return []
    series = [
        Series(_label(n, i), *n.errors(classes), _COLOURS[i], _MARKERS[i], bool(i % 2))
        for i, n in enumerate(measured)
    ]
    title = "Error per class, side by side"
    ends = drawing.spans([(n.name, s.errors) for n, s in zip(measured, series, strict=True)])
    described = f"Error of {len(classes):,} classes by frequency, for {len(series)} runs. {ends}."
    caption = "Classes from the most to the least frequent."
    if len(classes) > MAX_LABELLED:
        caption += f" Means over {BINS} equal slices of the classes."
    if any(s.n is not None for s in series):
        caption += " Bars: 95% Wilson intervals."
    caption += _left_out(runs)
    with house_style():
        figure = drawing.error_figure([short(c, 20) for c in classes], series)
        return [picture(figure, "fig-errors-beside", title, described, caption)]


def parameter_pictures(runs: list[NamedRun], classes: list[str]) -> list[Picture]:
    """ℓ, δ and w of the runs against the rank of the class; those that a run moved, and ℓ."""
    drawn = {key: _parts(runs, key)[:MAX_DRAWN] for key in TITLES}
    with house_style():
        return [
            _parameter_picture(runs, parts, classes)
            for parts in drawn.values()
            if len(parts) > 1 and classes
        ]


def _parameter_picture(
    runs: list[NamedRun], parts: list[tuple[NamedRun, Part]], classes: list[str]
) -> Picture:
    few = len(classes) <= MAX_LABELLED
    key, symbol, name = (getattr(parts[0][1], a) for a in ("key", "symbol", "title"))
    neutral = {"color": MUTED, "linewidth": 0.75}
    height = 20.0 * max(3, len(classes)) + 60.0 if few else 280.0
    figure = drawing.new_figure(height + 22.0 * -(-len(parts) // 2))
    axes = figure.add_subplot()
    rank = np.arange(len(classes)) + (0 if few else 1)
    for i, (n, part) in enumerate(parts):
        values = _group_means(n, part, classes)
        if few:
            look: dict[str, Any] = {"hollow": bool(i % 2), "marker": _MARKERS[i], "line": 0.9}
            drawing.dots(axes, values, rank, _COLOURS[i], _label(n, i), **look)
        else:
            drawing.dots(axes, rank, values, _COLOURS[i], _label(n, i), hollow=False, size=2.5)
    if few:
        drawing.class_rows(axes, [short(c, 20) for c in classes])
        axes.axvline(0.0 if key == "additive" else 1.0, **neutral)
    else:
        axes.axhline(0.0 if key == "additive" else 1.0, **neutral)
        axes.set_xlabel(drawing.BY_FREQUENCY)
    axes.set_title(f"{symbol} (mean 0)" if key == "additive" else symbol, color=INK)
    drawing.legend(figure)
    described = f"{name} of {len(classes):,} classes by frequency, for " + ", ".join(
        f"{n.name} (from {np.nanmin(p.end):.2f} to {np.nanmax(p.end):.2f})" for n, p in parts
    )
    caption = phrase("runs.designed")
    if few:
        caption += " Classes from the most to the least frequent."
    caption += _means_note(parts) + _left_out(runs)
    title = f"{name[:1].upper()}{name[1:]}, side by side"
    return picture(figure, f"fig-{key}-beside", title, f"{described}.", caption)


def _label(named: NamedRun, i: int) -> str:
    return short(named.name.lstrip("_"), 26) or f"run {i + 1}"


def _left_out(runs: list[NamedRun]) -> str:
    return f" The first {MAX_DRAWN} of {len(runs)} runs." if len(runs) > MAX_DRAWN else ""
