"""Tables and figures that hold several runs side by side."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.ticker import FuncFormatter, MaxNLocator

from autobalance.report.choice import candidate_title
from autobalance.report.drawing import dashes, dots, legend, new_figure, short
from autobalance.report.figures import MAX_LABELLED, Picture
from autobalance.report.formats import duration, number, percent
from autobalance.report.readable import readable
from autobalance.report.record import TITLES, Method, Run, safe_text
from autobalance.report.statistics import half_width, mean_error_variance, wilson
from autobalance.report.svg import INK, MUTED, RAMP, house_style, inline_svg
from autobalance.report.tables import Cell, Table, flat_settings
from autobalance.report.text import in_sentence, objective_name, sentences, start_name

if TYPE_CHECKING:
    from autobalance.report.multi_run_page import Named

MAX_DRAWN = 6
_MARKERS = ("o", "s", "^", "D", "v", "P")
_BINS = 10


def words(run: Run) -> str:
    """What a run was asked for and what it found, in a few sentences."""
    return f"Asked for the {objective_name(run)}. {sentences(run)[1]} {_taken(run)}"


def _taken(run: Run) -> str:
    """What the final choice took, or that there was none."""
    if run.status != "finished":
        return f"The run is not finished: {run.status}."
    if not run.candidates:
        return "There was no final choice."
    title = in_sentence(candidate_title(run.choice, start_name(run)))
    return f"The final choice took the {title.removeprefix('the ')}."


def runs_table(runs: list[Named]) -> Table:
    """Errors and cost, one run a row."""
    rows = []
    for n in runs:
        after = n.judged.after if n.judged else None
        run, row = n.run, [Cell(n.name)]
        row.append(Cell("nothing" if n.judged is None else n.judged.short))
        row += _scores(after)
        row.append(_number(run.class_totals.sum(), "{:,.0f}"))
        row += [
            Cell(duration(s), value=s)
            for s in (
                run.seconds.get("search", run.search_seconds.get("wall")),
                run.seconds.get("total"),
            )
        ]
        row.append(_number(run.training_runs, "{:.3g}"))
        rows.append(row)
    columns = [
        "Run", "Errors on", "Balanced error", "Worst class", "Worst group", "Training examples",
        "Search", "In all", "Search, in training runs",
    ]  # fmt: skip
    caption = "Of the loss that each run took. ±: 95% interval for the choice of examples."
    return Table("runs", caption, columns, rows, folded=1)


def _scores(after: Method | None) -> list[Cell]:
    """Balanced, worst class and worst group error."""
    if after is None or not np.isfinite(after.errors).any():
        return [Cell("–") for _ in range(3)]
    balanced = after.scores.get("balanced_error", float(np.nanmean(after.errors)))
    worst = after.scores.get("worst_class_error", float(np.nanmax(after.errors)))
    note = ""
    if after.n is not None:
        note = f"± {100 * half_width(mean_error_variance(after.errors, after.n)):.1f}"
    group = after.scores.get("worst_group_error")
    if group is None and after.by_group is not None:
        by = after.by_group
        wrong = np.nansum(np.nan_to_num(by.errors) * by.n, axis=1)
        group = float(np.max(wrong / by.n.sum(axis=1)))
    return [
        Cell(percent(balanced), note, balanced),
        Cell(percent(worst), value=worst),
        Cell(percent(group), value=group),
    ]


def _number(value: float | None, form: str) -> Cell:
    return Cell("–" if value is None else form.format(value), value=value)


def classes_in_common(runs: list[Named]) -> list[str]:
    """Names that stand for one class in all runs, by the first one's frequency."""
    first = runs[0].run
    names = [{c for c, times in Counter(n.run.classes).items() if times == 1} for n in runs]
    return [first.classes[c] for c in first.order if all(first.classes[c] in s for s in names)]


def _places(run: Run, classes: list[str]) -> np.ndarray:
    position = {name: i for i, name in enumerate(run.classes)}
    return np.array([position[name] for name in classes], dtype=int)


def errors_beside_table(runs: list[Named], classes: list[str]) -> Table | None:
    """Error of each class that all runs have, one run a column."""
    shown = [(n, n.judged.after) for n in runs if n.judged and n.judged.after]
    if not shown or not classes:
        return None
    most = max(n.run.rows for n in runs)
    totals = [n.run.class_totals[_places(n.run, classes)] for n in runs]
    same = all((t == totals[0]).all() for t in totals)
    columns = ["Class", "Training examples" if same else f"Training examples, {runs[0].name}"]
    cells = [
        [Cell(c), Cell(f"{t:,.0f}", value=float(t))]
        for c, t in zip(classes, totals[0], strict=True)
    ]
    for n, method in shown:
        at = _places(n.run, classes)
        errors = method.errors[at]
        ends = None if method.n is None else wilson(errors, method.n[at])
        columns.append(n.name)
        for i, row in enumerate(cells):
            note = ""
            if ends is not None and np.isfinite(errors[i]):
                note = f"{100 * ends[0][i]:.0f}–{100 * ends[1][i]:.0f}"
            value = float(errors[i]) if np.isfinite(errors[i]) else None
            row.append(Cell(percent(value), note, value))
    caption = "Error per class of the loss that each run took, most frequent class first."
    if any(m.n is not None for _, m in shown):
        caption += " Beside each: its 95% Wilson interval in percent."
    return Table("errors", caption + _cut(most, len(cells)), columns, cells[:most], folded=1)


def parameters_beside_table(runs: list[Named], classes: list[str]) -> Table | None:
    """ℓ, δ and w found, of each class that all runs have; means over the groups."""
    found = [(n, part) for key in TITLES for n in runs for part in n.run.parts if part.key == key]
    found = [(n, p) for n, p in found if p.changed or p.key == "additive"]
    if not found or not classes:
        return None
    most = max(n.run.rows for n in runs)
    columns = ["Class"]
    rows = [[Cell(c)] for c in classes]
    for n, part in found:
        columns.append(f"{part.symbol}, {n.name}")
        values = np.nanmean(part.found, axis=0)[_places(n.run, classes)]
        for row, value in zip(rows, values.tolist(), strict=True):
            row.append(Cell(number(value), value=value if np.isfinite(value) else None))
    caption = "Parameters of the loss that each search designed, most frequent class first; ℓ with mean 0."
    if any(n.run.groups for n, _ in found):
        caption += " Means over the groups."
    return Table("parameters", caption + _cut(most, len(rows)), columns, rows[:most])


def differing_settings_table(runs: list[Named]) -> Table | None:
    """Settings that are not the same in all runs."""
    settings = [dict(flat_settings(n.run)) for n in runs]
    names = list(dict.fromkeys(name for each in settings for name in each))
    absent = object()
    rows = []
    for name in names:
        values = [each.get(name, absent) for each in settings]
        if all(v == values[0] for v in values):
            continue
        shown = ["–" if v is absent else safe_text(readable(name, v), 300) for v in values]
        rows.append([Cell(name), *map(Cell, shown)])
    for title, values in (
        ("seed", [n.run.seed for n in runs]),
        ("autobalance", [n.run.versions.get("autobalance") for n in runs]),
    ):
        if any(v != values[0] for v in values):
            shown = ["–" if v is None else safe_text(str(v), 80) for v in values]
            rows.append([Cell(title), *map(Cell, shown)])
    if not rows:
        return None
    columns = ["Setting", *(n.name for n in runs)]
    return Table("differing", "All others are the same.", columns, rows[:200], False, False)


# Figures --------------------------------------------------------------------------------------


def errors_beside_picture(runs: list[Named], classes: list[str]) -> list[Picture]:
    """Error per class of the runs; nothing where there are not two with errors."""
    shown = [(n, n.judged.after) for n in runs if n.judged and n.judged.after][:MAX_DRAWN]
    if len(shown) < 2 or not classes:
        return []
    values = [(n.name, m.errors[_places(n.run, classes)], m.n, n.run) for n, m in shown]
    spans = "; ".join(
        f"{name}: from {percent(float(np.nanmin(e)))} to {percent(float(np.nanmax(e)))}"
        for name, e, _, _ in values
        if np.isfinite(e).any()
    )
    title = "Error per class, side by side"
    few = len(classes) <= MAX_LABELLED
    with house_style():
        step = 27.0 + 7.0 * max(0, len(shown) - 2)
        figure = new_figure(
            70.0 + 22.0 * -(-len(shown) // 2) + (step * max(3, len(classes)) if few else 240.0)
        )
        axes = figure.add_subplot()
        for i, (name, errors, n, run) in enumerate(values):
            shift = (i - (len(values) - 1) / 2) / (len(values) + 0.5)
            counts = None if n is None else n[_places(run, classes)]
            if few:
                at = np.arange(len(classes)) + shift
                if counts is not None:
                    low, high = wilson(errors, counts)
                    axes.plot(*dashes(100 * low, 100 * high, at), color=_colour(i), linewidth=1.2)
                _marked(axes, 100 * errors, at, i, name)
            else:
                _sliced(axes, errors, counts, i, name, shift)
        percents = FuncFormatter(lambda x, _: f"{x:g}%")
        if few:
            _named_rows(axes, classes)
            axes.set_xlim(left=0)
            axes.xaxis.set_major_formatter(percents)
        else:
            axes.yaxis.set_major_formatter(percents)
            axes.set_ylim(bottom=-2)
            axes.set_xlabel("class, from the most to the least frequent")
            axes.grid(axis="x", visible=False)
        legend(figure)
        described = (
            f"Error of {len(classes):,} classes by frequency, for {len(shown)} runs. {spans}."
        )
        svg = inline_svg(figure, "fig-errors-beside", title, described)
    caption = "Classes from the most to the least frequent."
    if not few:
        caption += f" Means over {_BINS} equal slices of the classes."
    if any(n is not None for _, _, n, _ in values):
        caption += " Bars: 95% Wilson intervals."
    return [Picture(title, svg, caption + _left_out(runs))]


def _named_rows(axes: Any, classes: list[str]) -> None:
    """A row of the picture for each class, under its name."""
    axes.set_yticks(range(len(classes)), [short(c, 20) for c in classes], color=INK)
    axes.set_ylim(len(classes) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_visible(False)


def _sliced(
    axes: Any, errors: np.ndarray, counts: np.ndarray | None, i: int, name: str, shift: float
) -> None:
    """Means over slices of the classes, with intervals of the pooled errors."""
    slices = np.array_split(np.arange(len(errors)), _BINS)
    at = np.array([s.mean() + 1 for s in slices]) + shift * 0.06 * len(errors)
    n = np.ones(len(errors)) if counts is None else counts
    n = np.where(np.isfinite(errors), n, 0.0)
    trials = np.array([n[s].sum() for s in slices])
    wrong = np.array([np.nansum(errors[s] * n[s]) for s in slices])
    means = np.divide(wrong, trials, out=np.full(len(slices), np.nan), where=trials > 0)
    if counts is not None:
        low, high = wilson(means, trials)
        ends, places = dashes(100 * low, 100 * high, at)
        axes.plot(places, ends, color=_colour(i), linewidth=1.2)
    _marked(axes, at, 100 * means, i, name)


def added_pictures(runs: list[Named], classes: list[str]) -> list[Picture]:
    """ℓ, δ and w of the runs against the rank of the class; those that a run moved, and ℓ."""
    pictures = []
    for key, (symbol, name) in TITLES.items():
        parts = [(n, p) for n in runs for p in n.run.parts if p.key == key]
        parts = [(n, p) for n, p in parts if key == "additive" or p.changed][:MAX_DRAWN]
        if len(parts) < 2 or not classes:
            continue
        few = len(classes) <= MAX_LABELLED
        rank = np.arange(len(classes)) + (0 if few else 1)
        title = f"{name[:1].upper()}{name[1:]}, side by side"
        neutral = 0.0 if key == "additive" else 1.0
        with house_style():
            height = 20.0 * max(3, len(classes)) + 60.0 if few else 280.0
            figure = new_figure(height + 22.0 * -(-len(parts) // 2))
            axes = figure.add_subplot()
            for i, (n, part) in enumerate(parts):
                values = np.nanmean(part.found, axis=0)[_places(n.run, classes)]
                if few:
                    _marked(axes, values, rank, i, n.name, line=True)
                else:
                    dots(axes, rank, values, _colour(i), n.name, hollow=False, size=2.5)
            if few:
                _named_rows(axes, classes)
                axes.axvline(neutral, color=MUTED, linewidth=0.75)
            else:
                axes.axhline(neutral, color=MUTED, linewidth=0.75)
                axes.set_xlabel("class, from the most to the least frequent")
                axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
            axes.set_title(f"{symbol} (mean 0)" if key == "additive" else symbol, color=INK)
            legend(figure)
            described = f"{name} of {len(classes):,} classes by frequency, for " + ", ".join(
                f"{n.name} (from {np.nanmin(p.found):.2f} to {np.nanmax(p.found):.2f})"
                for n, p in parts
            )
            svg = inline_svg(figure, f"fig-{key}-beside", title, f"{described}.")
        caption = "As each search designed it, whether or not the final choice took it."
        if few:
            caption += " Classes from the most to the least frequent."
        if any(n.run.groups for n, _ in parts):
            caption += " Means over the groups."
        pictures.append(Picture(title, svg, caption + _left_out(runs)))
    return pictures


def _marked(axes: Any, x: Any, y: Any, i: int, name: str, *, line: bool = False) -> None:
    axes.plot(
        x,
        y,
        _MARKERS[i % len(_MARKERS)] + ("-" if line else ""),
        color=_colour(i),
        markerfacecolor="none" if i % 2 else _colour(i),
        markeredgewidth=1.5,
        markersize=6,
        linewidth=0.9,
        label=short(name.lstrip("_"), 26) or f"run {i + 1}",
        clip_on=False,
    )


def _colour(i: int) -> str:
    """Neighbours as far apart as the ramp has them."""
    return RAMP[(0, 5, 2, 4, 1, 3)[i % len(RAMP)]]


def _left_out(runs: list[Named]) -> str:
    return f" The first {MAX_DRAWN} of {len(runs)} runs." if len(runs) > MAX_DRAWN else ""


def _cut(most: int, count: int) -> str:
    return "" if count <= most else f" The first {most:,} of {count:,} rows."
