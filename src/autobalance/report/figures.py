"""The report's figures, as inline SVG strings."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from autobalance.records import Reliability
from autobalance.report.drawing import (
    CELL,
    dashes,
    dots,
    evenly_spaced,
    legend,
    new_figure,
    ramp,
    short,
)
from autobalance.report.evidence import Judged, judged, shown_evidence, with_confusions
from autobalance.report.formats import percent
from autobalance.report.record import Method, Part, Run
from autobalance.report.statistics import smoothed, wilson
from autobalance.report.svg import AFTER, BEFORE, INK, MUTED, house_style, inline_svg
from autobalance.report.tables import found_label
from autobalance.report.text import objective_name

MAX_LABELLED = 30
MAX_LINES = 40
MAX_PATH_POINTS = 80
MAX_CURVE_POINTS = 300
MAX_PANELS = 4
MAX_DOTS = 1000
MAX_CONFUSED = 8  # classes of a confusion matrix
_BINS = 10
LABEL_GAP = 16.0  # points between the middles of two names


@dataclass(frozen=True)
class Picture:
    """A figure of the page: its heading, its SVG and the words below it."""

    title: str
    svg: str
    caption: str


def pictures(run: Run) -> dict[str, list[Picture]]:
    """All figures that the record allows, by the section they belong to."""
    with house_style():
        return {
            "errors": list(_error_pictures(run)),
            "parameters": [_parameter_picture(run, part) for part in run.parts],
            "path": [_path_picture(run, p) for p in run.parts if p.changed and len(p.path) > 1],
            "curves": list(_curve_pictures(run)),
            "calibration": list(_calibration_pictures(run)),
            "confusion": list(_confusion_pictures(run)),
        }


# Error per class -------------------------------------------------------------------------------


def _error_pictures(run: Run) -> Iterator[Picture]:
    for found in shown_evidence(run):
        if found.pair:
            yield _error_picture(run, found)


def _error_picture(run: Run, found: Judged) -> Picture:
    shown = found.pair
    few = len(run.classes) <= MAX_LABELLED
    figure = _forest(run, shown) if few else _scatter(run, shown)
    title = "Error per class" + (", before and after" if len(shown) == 2 else "")
    spans = "; ".join(
        f"{m.title}: from {percent(np.nanmin(m.errors))} to {percent(np.nanmax(m.errors))}"
        for m in shown
    )
    kind = "Dot chart" if few else "Scatter plot"
    described = f"{kind} of the error of {len(run.classes):,} classes by frequency. {spans}."
    if few:
        caption = (
            "Classes from the most to the least frequent, with their number of training examples."
        )
        if all(m.n is not None for m in shown):
            caption += " Bars: 95% Wilson intervals."
    else:
        caption = (
            f"One faint dot per class, from the most frequent (left) to the rarest. Large dots: means "
            f"over {_BINS} equal slices of the classes."
        )
        if all(m.n is not None for m in shown):
            caption += " Bars: 95% Wilson intervals of the pooled errors."
    caption += f" On {found.data}."
    name = f"{run.place}fig-errors-{found.kind}"
    return Picture(title, inline_svg(figure, name, title, described), caption)


def _forest(run: Run, methods: list[Method]) -> Figure:
    k = len(run.classes)
    figure = new_figure(70.0 + 27.0 * max(k, 3))
    axes = figure.add_subplot()
    rows = np.arange(k)
    for i, (method, colour) in enumerate(zip(methods, _colours(methods), strict=True)):
        at = rows + (0.17 * (2 * i - 1) if len(methods) == 2 else 0.0)
        errors = 100 * method.errors[run.order]
        if method.n is not None:
            low, high = wilson(method.errors[run.order], method.n[run.order])
            axes.plot(*dashes(100 * low, 100 * high, at), color=colour, linewidth=1.5)
        dots(axes, errors, at, colour, method.title, hollow=colour == BEFORE)
    totals = run.class_totals
    names = [
        short(run.classes[c], 20) + (f" · {totals[c]:,.0f}" if totals.any() else "")
        for c in run.order
    ]
    axes.set_yticks(rows, names, color=INK)
    axes.set_ylim(k - 0.4, -0.6)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}%"))
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_visible(False)
    legend(figure)
    return figure


def _scatter(run: Run, methods: list[Method]) -> Figure:
    figure = new_figure(300.0)
    axes = figure.add_subplot()
    k = len(run.classes)
    rank = np.arange(1, k + 1)
    thin = evenly_spaced(k, MAX_DOTS)
    slices = np.array_split(np.arange(k), _BINS)
    for i, (method, colour) in enumerate(zip(methods, _colours(methods), strict=True)):
        errors = method.errors[run.order]
        axes.plot(rank[thin], 100 * errors[thin], ".", color=colour, alpha=0.25, markersize=3)
        at = np.array([rank[s].mean() for s in slices]) + (i - 0.5) * 0.015 * k * (len(methods) - 1)
        if method.n is None:
            means = np.array([_mean(errors[s]) for s in slices])
        else:
            n = np.where(np.isfinite(errors), method.n[run.order], 0.0)
            trials = np.array([n[s].sum() for s in slices])
            wrong = np.array([np.nansum(errors[s] * n[s]) for s in slices])
            means = np.divide(wrong, trials, out=np.full(_BINS, np.nan), where=trials > 0)
            low, high = wilson(means, trials)
            ends, places = dashes(100 * low, 100 * high, at)
            axes.plot(places, ends, color=colour, linewidth=1.5)
        dots(axes, at, 100 * means, colour, method.title, hollow=colour == BEFORE)
    axes.set_ylim(bottom=-2)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}%"))
    axes.set_xlabel("class, from the most to the least frequent")
    axes.grid(axis="x", visible=False)
    legend(figure)
    return figure


def _colours(methods: list[Method]) -> list[str]:
    return [BEFORE, AFTER] if len(methods) == 2 else [AFTER]


# Calibration and confusion ---------------------------------------------------------------------


def _calibration_pictures(run: Run) -> Iterator[Picture]:
    after = judged(run)
    found, data = run.reliability, "held-out examples of the search, by its network"
    tested = None if after is None else after.after
    if tested is not None and {"raw", "corrected"} <= tested.reliability.keys():
        found, data = tested.reliability, run.evaluation_data or "test data"
    if not {"raw", "corrected"} <= found.keys():
        return
    title = "Reliability"
    errors = {key: percent(found[key].error) for key in ("raw", "corrected")}
    described = (
        "Reliability diagram: share predicted rightly against confidence, raw and corrected, with the "
        f"share of examples below. Expected calibration error {errors['raw']} raw, "
        f"{errors['corrected']} corrected."
    )
    figure = _reliability(found)
    caption = (
        f"How often predictions are right against how sure they are, on {data}. On the diagonal "
        f"confidence is what it says; below it, too high. Expected calibration error: {errors['raw']} "
        f"raw, {errors['corrected']} corrected. Bars: 95% Wilson intervals. Below: the share of the "
        "examples in each bin."
    )
    svg = inline_svg(figure, f"{run.place}fig-calibration", title, described)
    yield Picture(title, svg, caption)


def _reliability(found: dict[str, Reliability]) -> Figure:
    figure = new_figure(400.0)
    axes, below = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    axes.plot([0, 100], [0, 100], "--", color=MUTED, linewidth=1)
    pairs = (("raw", "raw softmax", BEFORE), ("corrected", "corrected", AFTER))
    for i, (key, label, colour) in enumerate(pairs):
        n, right, sure = (np.array(v, float) for v in vars(found[key]).values())
        full = n > 0
        share = np.divide(right, n, out=np.full(len(n), np.nan), where=full)
        low, high = wilson(share, n)
        at = 100 * sure + (0.5 if i else -0.5)
        ends, places = dashes(100 * low[full], 100 * high[full], at[full])
        axes.plot(places, ends, color=colour, linewidth=1.2)
        dots(axes, at[full], 100 * share[full], colour, label, hollow=colour == BEFORE)
        width = 100 / len(n)
        left = width * (np.arange(len(n)) + 0.08 + 0.42 * i)
        face = "none" if colour == BEFORE else colour
        below.bar(
            left, 100 * n / n.sum(), 0.42 * width, align="edge", facecolor=face, edgecolor=colour
        )
    axes.set_ylim(0, 100)
    axes.set_xlim(0, 100)
    axes.set_ylabel("predicted rightly")
    below.set_ylabel("examples")
    below.set_xlabel("confidence")
    for axis in (axes.yaxis, below.yaxis, below.xaxis):
        axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}%"))
    below.yaxis.set_major_locator(MaxNLocator(2))
    legend(figure)
    return figure


def _confusion_pictures(run: Run) -> Iterator[Picture]:
    found = with_confusions(run)
    if found is None:
        return
    shown = found.pair
    classes = _most_changed(run, shown)
    if not len(classes):
        return
    both = len(shown) == 2
    title = "Confusion" + (", before and after" if both else "")
    tables = [_confusions(m, classes) for m in shown]
    figure = new_figure((len(classes) * 23.0 + 30.0) * len(shown) + 110.0)
    all_axes = figure.subplots(len(shown), 1, sharex=True, squeeze=False)[:, 0]
    columns = [run.classes[c] for c in classes]
    if len(classes) < len(run.classes):
        columns.append("(other)")
    for axes, method, table in zip(all_axes, shown, tables, strict=True):
        colour = BEFORE if both and method is shown[0] else AFTER
        _cells(axes, table[:, : len(columns)], colour)
        axes.set_yticks(np.arange(len(classes)) + 0.5, [short(run.classes[c], 15) for c in classes])
        axes.set_title(short(method.title, 40), color=INK)
    all_axes[-1].set_xticks(
        np.arange(len(columns)) + 0.5, [short(c, 15) for c in columns], rotation=90
    )
    all_axes[-1].set_xlabel("predicted")
    worst = max(
        ((table[i, j], classes[i], columns[j]) for table in tables[-1:]
         for i in range(len(classes)) for j in range(len(columns)) if i != j),
        key=lambda cell: cell[0],
    )  # fmt: skip
    described = (
        f"Confusion matrix of {len(classes)} classes{', before and after' if both else ''}. Most often "
        f"confused{' after' if both else ''}: {run.classes[worst[1]]} predicted as {worst[2]}, "
        f"{worst[0]:.0f}% of the class."
    )
    chosen = f"the {len(classes)} classes whose error changed most" if both else (
        f"the {len(classes)} classes with most errors"
    )  # fmt: skip
    if len(classes) == len(run.classes):
        chosen = "all classes"
    caption = (
        f"Of each class (row), the percentage predicted as each: {chosen}, most frequent first. On "
        f"{found.data}."
    )
    svg = inline_svg(figure, f"{run.place}fig-confusion", title, described)
    yield Picture(title, svg, caption)


def _most_changed(run: Run, shown: list[Method]) -> list[int]:
    """Up to `MAX_CONFUSED` classes, the most frequent first."""
    errors = np.array([np.nan_to_num(m.errors) for m in shown])
    moved = np.abs(errors[-1] - errors[0])
    if len(shown) == 1:
        assert shown[0].n is not None
        moved = errors[0] * shown[0].n
    measured = np.all([np.isfinite(m.errors) for m in shown], axis=0)
    chosen = [c for c in np.argsort(-moved, kind="stable").tolist() if measured[c]]
    kept = set(chosen[:MAX_CONFUSED])
    return [c for c in run.order.tolist() if c in kept]


def _confusions(method: Method, classes: list[int]) -> np.ndarray:
    """Percentages of each class predicted as each, and in the last column as another."""
    assert method.confused is not None
    assert method.n is not None
    place = {c: i for i, c in enumerate(classes)}
    table = np.zeros((len(classes), len(classes) + 1))
    for t, guess, n in method.confused[np.isin(method.confused[:, 0], classes)].tolist():
        table[place[t], place.get(guess, len(classes))] += n
    n = method.n[classes]
    right = (1 - method.errors[classes]) * n
    table[np.arange(len(classes)), np.arange(len(classes))] = right
    return 100 * table / n[:, None]


def _cells(axes: Axes, table: np.ndarray, colour: str) -> None:
    """Cells as opaque as their share is large, with the share where it is not 0."""
    for (r, c), value in np.ndenumerate(table):
        if value <= 0:
            continue
        share = min(value / 100, 1.0)
        axes.add_patch(Rectangle((c, r), 1, 1, facecolor=colour, alpha=CELL * share, linewidth=0))
        text = f"{value:.0f}" if value >= 0.5 else "<1"
        axes.text(c + 0.5, r + 0.5, text, ha="center", va="center", fontsize=11, color=INK)
        if r == c:
            axes.add_patch(
                Rectangle((c, r), 1, 1, facecolor="none", edgecolor=MUTED, linewidth=0.75)
            )
    axes.set_xlim(0, table.shape[1])
    axes.set_ylim(len(table), 0)
    axes.tick_params(length=0, labelcolor=INK, labelsize=11)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)


# The loss's parameters -------------------------------------------------------------------------


def _parameter_picture(run: Run, part: Part) -> Picture:
    panels = _panels(run)
    height = 280.0 if len(panels) == 1 else 60.0 + 190.0 * len(panels)
    figure = new_figure(height)
    all_axes = figure.subplots(len(panels), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    for axes, g in zip(all_axes, panels, strict=True):
        _against_frequency(axes, run, part, g, (height - 60.0) / len(panels) - 30.0)
        axes.set_title(_panel_title(run, part, g), color=INK)
    all_axes[-1].set_xlabel(
        "training examples of the class" + (" in the group" if run.groups else "")
    )
    legend(figure)
    title = f"{part.title[:1].upper()}{part.title[1:]} against class frequency"
    low, high = np.nanmin(part.found), np.nanmax(part.found)
    described = (
        f"Scatter plot. The values found run from {low:.2f} to {high:.2f}, at the start from "
        f"{np.nanmin(part.start):.2f} to {np.nanmax(part.start):.2f}."
    )
    caption = {
        "additive": "Added to the logits in training only; shown with mean 0, as only differences act. "
        "The steeper it rises, the larger the margin asked of rare classes.",
        "multiplicative": "Multiplies the logits in training only. 1 leaves them as they are.",
        "weight": "Weight of a class's examples, with mean 1 over the training examples.",
    }[part.key]
    if not part.changed and run.search_status == "finished":
        caption += " The search left it as it was."
    caption += _left_out(run)
    return Picture(
        title, inline_svg(figure, f"{run.place}fig-{part.key}", title, described), caption
    )


def _against_frequency(axes: Axes, run: Run, part: Part, g: int, height: float) -> None:
    """One panel; its axes are about `height` points high."""
    counts = np.maximum(run.counts[g], 0.5)  # a class that a group lacks stands left of 1
    start, found = part.start[g], part.found[g]
    thin = evenly_spaced(len(counts), MAX_DOTS // len(_panels(run)))
    size = 5.5 if len(counts) <= MAX_LABELLED else 2.5
    if part.changed:
        if len(counts) <= MAX_LABELLED:
            ends, places = dashes(start, found, counts)
            axes.plot(places, ends, color=MUTED, linewidth=0.75)
        dots(axes, counts[thin], start[thin], BEFORE, "start", hollow=True, size=size)
    dots(axes, counts[thin], found[thin], AFTER, found_label(run), hollow=False, size=size)
    if counts.max() / counts.min() > 3:
        axes.set_xscale("log")
        wide = counts.max() / counts.min() > 100
        axes.xaxis.set_major_locator(
            LogLocator(subs=(1.0,) if wide else (1.0, 2.0, 5.0), numticks=8)
        )
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.grid(which="minor", visible=False)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,g}"))
    axes.margins(0.08)
    if len(counts) <= MAX_LABELLED:
        _name_the_moved(axes, run, counts, start, found, height)


def _name_the_moved(
    axes: Axes, run: Run, counts: np.ndarray, start: np.ndarray, found: np.ndarray, height: float
) -> None:
    """Name the three classes that moved most, on the side where there is room, pushed apart."""
    moved = np.nan_to_num(np.abs(found - start))
    named = [c for c in np.argsort(-moved, kind="stable")[:3] if moved[c] > 1e-6]
    middle = np.sqrt(counts.max() * counts.min())
    low, high = axes.get_ylim()
    for left in (True, False):
        side = [c for c in named if (counts[c] <= middle) == left]
        if not side:
            continue
        at = (found[side] - low) / (high - low)
        for c, own, place in zip(side, at, _apart(at, LABEL_GAP / height), strict=True):
            axes.annotate(
                short(run.classes[c], 16),
                (counts[c], found[c]),
                xytext=(9 if left else -9, (place - own) * height),
                textcoords="offset points",
                ha="left" if left else "right",
                va="center",
                color=INK,
            )


def _path_picture(run: Run, part: Part) -> Picture:
    panels = _panels(run)
    height = 420.0 if len(panels) == 1 else 50.0 + 210.0 * len(panels)
    figure = new_figure(height)
    all_axes = figure.subplots(len(panels), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    order = run.order[evenly_spaced(len(run.order), MAX_LINES)]
    for axes, g in zip(all_axes, panels, strict=True):
        _lines(axes, run, part, g, order)
    for axes, g in zip(all_axes, panels, strict=True):  # once the shared axes are settled
        _label_ends(axes, run, part.path[-1, g], order, height / len(panels) - 50)
        axes.set_title(_panel_title(run, part, g), color=INK)
    all_axes[-1].set_xlabel("training step")
    title = f"Path of {part.symbol} over the search"
    described = (
        f"Line chart of {part.title} for {len(run.classes):,} classes over "
        f"{part.steps[-1]:,.0f} training steps, with {len(part.path):,} points noted."
    )
    caption = "One line per class, from frequent (blue) to rare (orange)."
    if len(run.classes) > MAX_LINES:
        caption = f"{MAX_LINES} of {len(run.classes):,} classes, evenly spaced by frequency, " + (
            "from frequent (blue) to rare (orange)."
        )
    if part.key == "additive":
        caption += " Mean 0 over the classes at every step."
    svg = inline_svg(figure, f"{run.place}fig-path-{part.key}", title, described)
    return Picture(
        title, svg, caption + " The result is an average over the last steps." + _left_out(run)
    )


def _lines(axes: Axes, run: Run, part: Part, g: int, order: np.ndarray) -> None:
    points = evenly_spaced(len(part.steps), MAX_PATH_POINTS)
    steps, path = part.steps[points], part.path[points, g]
    first = run.curves["step"][:1]
    if len(first) and steps[0] < first[0] <= steps[1]:  # held fixed while warming up
        steps, path = np.insert(steps, 1, first[0]), np.insert(path, 1, path[0], axis=0)
    width = 1.6 if len(order) <= MAX_LABELLED else 0.9
    for i, c in enumerate(order):
        axes.plot(steps, path[:, c], color=ramp(i, len(order)), linewidth=width)
    axes.set_xlim(0, steps[-1] if steps[-1] > 0 else 1)
    axes.margins(y=0.06)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))


def _label_ends(axes: Axes, run: Run, last: np.ndarray, order: np.ndarray, height: float) -> None:
    """Write lines' names at their right ends, pushed apart; the axes are `height` points high."""
    if len(order) <= 12:
        labels = {i: short(run.classes[c], 14) for i, c in enumerate(order)}
    else:
        labels = {0: "most frequent", len(order) - 1: "rarest"}
    labels = {i: label for i, label in labels.items() if np.isfinite(last[order[i]])}
    if not labels:
        return
    low, high = axes.get_ylim()
    ends = np.array([last[order[i]] for i in labels])
    spread = _apart((ends - low) / (high - low), LABEL_GAP / height)
    for at, (i, label) in zip(spread, labels.items(), strict=True):
        axes.annotate(
            label,
            (1, at),
            xycoords="axes fraction",
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            color=ramp(i, len(order)),
            annotation_clip=False,
        )


def _apart(values: np.ndarray, gap: float) -> np.ndarray:
    """Nearest positions in the same order, at least `gap` apart, about the same centre."""
    order = np.argsort(values, kind="stable")
    places = values[order] - gap * np.arange(len(values))
    # Pool adjacent violators: isotonic regression of the positions less their rank's offset.
    blocks: list[list[float]] = []
    for place in places:
        blocks.append([place])
        while len(blocks) > 1 and np.mean(blocks[-2]) > np.mean(blocks[-1]):
            last = blocks.pop()
            blocks[-1].extend(last)
    level = np.concatenate([np.full(len(b), np.mean(b)) for b in blocks])
    result = np.empty(len(values))
    result[order] = level + gap * np.arange(len(values))
    return result


# Curves ----------------------------------------------------------------------------------------


def _curve_pictures(run: Run) -> Iterator[Picture]:
    steps = run.curves["step"]
    if len(steps) < 2:
        return
    name = objective_name(run)
    smooth, hard, test, training = (
        run.curves[key]
        for key in ("objective", "hard_objective", "test_objective", "training_loss")
    )
    if np.isfinite(smooth).any() or np.isfinite(hard).any():
        title = "Objective on validation data"
        series = [("differentiable form", smooth, BEFORE), ("0-1 error", hard, AFTER)]
        described = f"Line chart of the {name} on validation data over the search. {_ends('0-1 error', hard)}"
        caption = (
            f"The {name} in the differentiable form that guides the search, and over the 0-1 error. "
            "Faint: as measured. Strong: moving average."
        )
        if np.isfinite(test).any():
            title = "Objective on validation and test data"
            series.append(("0-1 error, test data", test, INK))
            described += f" {_ends('0-1 error on test data', test)}"
            caption += " The test data guided nothing; dashed, of the network in training."
        figure = _curves(steps, series)
        yield Picture(
            title, inline_svg(figure, f"{run.place}fig-objective", title, described), caption
        )
    if np.isfinite(training).any():
        title = "Training loss"
        figure = _curves(steps, [("training loss", training, AFTER)])
        described = (
            f"Line chart of the training loss over the search. {_ends('training loss', training)}"
        )
        caption = "The designed loss on training batches; its form changes as the search goes on."
        yield Picture(
            title, inline_svg(figure, f"{run.place}fig-training", title, described), caption
        )


def _curves(steps: np.ndarray, series: list[tuple[str, np.ndarray, str]]) -> Figure:
    figure = new_figure(260.0)
    axes = figure.add_subplot()
    thin = evenly_spaced(len(steps), MAX_CURVE_POINTS)
    for label, values, colour in series:
        known = np.isfinite(values)
        if not known.any():
            continue
        if colour == INK:  # measured now and then
            axes.plot(steps[known], values[known], "--", color=colour, linewidth=1.5, label=label)
            continue
        if len(steps) >= 15:
            axes.plot(steps[thin], values[thin], color=colour, linewidth=0.75, alpha=0.4)
            values = smoothed(values, max(3, len(steps) // 8))
        axes.plot(steps[thin], values[thin], color=colour, linewidth=2, label=label)
    axes.set_xlabel("training step")
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    if len(series) > 1:
        legend(figure)
    return figure


def _ends(label: str, values: np.ndarray) -> str:
    finite = values[np.isfinite(values)]
    return (
        f"The {label} starts at {finite[0]:.3g} and ends at {finite[-1]:.3g}."
        if len(finite)
        else ""
    )


def _panels(run: Run) -> list[int]:
    return list(range(min(len(run.counts), MAX_PANELS)))


def _left_out(run: Run) -> str:
    more = len(run.counts) - MAX_PANELS
    return f" The first {MAX_PANELS} of {len(run.counts):,} groups." if more > 0 else ""


def _panel_title(run: Run, part: Part, g: int) -> str:
    symbol = "ℓ (mean 0)" if part.key == "additive" else part.symbol
    return f"{symbol}, {short(run.groups[g], 30)}" if run.groups else symbol


def _mean(values: np.ndarray) -> float:
    return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")
