"""The figures of one run, as inline SVG."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from autobalance.records import Reliability
from autobalance.report import drawing
from autobalance.report.drawing import MAX_DOTS, MAX_LABELLED, Picture, Series, dots, picture
from autobalance.report.evidence import Evidence, confusion_evidence, error_evidence
from autobalance.report.formats import percent, phrase, short
from autobalance.report.run import Method, Part, Run
from autobalance.report.statistics import Z90, smooth
from autobalance.report.svg import AFTER, BEFORE, INK, MUTED, house_style
from autobalance.report.text import end_label, objective_name

MAX_LINES = 40
MAX_PATH_POINTS = 80
MAX_CURVE_POINTS = 300
MAX_PANELS = 4
MAX_CONFUSED = 8  # classes of a confusion matrix
LABEL_GAP = 16.0  # points between the middles of two names


def pictures(run: Run) -> dict[str, list[Picture]]:
    """All figures that the record allows, by the section they belong to."""
    with house_style():
        return {
            "errors": [_error_picture(run, e) for e in error_evidence(run) if e.pair],
            "parameters": [_parameter_picture(run, part) for part in run.parts],
            "path": [_path_picture(run, p) for p in run.parts if p.changed and len(p.path) > 1],
            "curves": list(_curve_pictures(run)),
            "adjustment": list(_tau_pictures(run)),
            "calibration": list(_calibration_pictures(run)),
            "confusion": list(_confusion_pictures(run)),
        }


# Error per class -------------------------------------------------------------------------------


def _error_picture(run: Run, evidence: Evidence) -> Picture:
    methods, totals = evidence.pair, run.class_totals
    few = len(run.classes) <= MAX_LABELLED
    series = [
        Series(
            m.title, m.errors[run.order], None if m.trials is None else m.trials[run.order], colour,
            hollow=colour == BEFORE,
        )
        for m, colour in zip(methods, [BEFORE, AFTER][-len(methods) :], strict=True)
    ]  # fmt: skip
    sizes = [f" · {totals[c]:,.0f}" if totals.any() else "" for c in run.order]
    names = [short(run.classes[c], 20) + size for c, size in zip(run.order, sizes, strict=True)]
    title = "Error per class" + (", before and after" if len(methods) == 2 else "")
    described = phrase(
        "figure.errors", kind="Dot chart" if few else "Scatter plot", count=len(run.classes),
        spans=drawing.spans([(m.title, m.errors) for m in methods]),
    )  # fmt: skip
    caption = phrase(f"figure.{'labelled' if few else 'sliced'}", bins=drawing.BINS)
    if all(m.n is not None for m in methods):
        caption += f" Bars: 95% Wilson intervals{'' if few else ' of the pooled errors'}."
    name = f"{run.place}fig-errors-{evidence.kind}"
    figure = drawing.error_figure(names, series)
    return picture(figure, name, title, described, f"{caption} On {evidence.data}.")


# Calibration and confusion ---------------------------------------------------------------------


def _calibration_pictures(run: Run) -> Iterator[Picture]:
    evidence = next(iter(error_evidence(run)), None)
    tested = None if evidence is None else evidence.after
    diagrams, data = run.reliability, "held-out examples of the search, by its network"
    if tested is not None and {"raw", "corrected"} <= tested.reliability.keys():
        diagrams, data = tested.reliability, run.data
    if not {"raw", "corrected"} <= diagrams.keys():
        return
    errors = {key: percent(diagrams[key].error) for key in ("raw", "corrected")}
    described = phrase("figure.reliability_alt", **errors)
    caption = phrase("figure.reliability", data=data, **errors)
    figure = _reliability_figure(diagrams)
    yield picture(figure, f"{run.place}fig-calibration", "Reliability", described, caption)


def _reliability_figure(diagrams: dict[str, Reliability]) -> Figure:
    figure = drawing.new_figure(400.0)
    axes, below = drawing.stacked_axes(figure, 2, height_ratios=(4, 1))
    axes.plot([0, 100], [0, 100], "--", color=MUTED, linewidth=1)
    pairs = (("raw", "raw softmax", BEFORE), ("corrected", "corrected", AFTER))
    for i, (key, label, colour) in enumerate(pairs):
        bins = diagrams[key]
        n, right, sure = (np.array(v, float) for v in (bins.n, bins.right, bins.confidence))
        trials = n if bins.effective is None else np.array(bins.effective, float)
        full = n > 0
        share = np.divide(right, n, out=np.full(len(n), np.nan), where=full)
        at = 100 * sure + (0.5 if i else -0.5)
        drawing.intervals(axes, share[full], trials[full], at[full], colour)
        dots(axes, at[full], 100 * share[full], colour, label, hollow=colour == BEFORE)
        width = 100 / len(n)
        left = width * (np.arange(len(n)) + 0.08 + 0.42 * i)
        face = "none" if colour == BEFORE else colour
        look: dict[str, Any] = {"align": "edge", "facecolor": face, "edgecolor": colour}
        below.bar(left, 100 * n / n.sum(), 0.42 * width, **look)
    axes.set_ylim(0, 100)
    axes.set_xlim(0, 100)
    axes.set_ylabel("predicted rightly")
    below.set_ylabel("examples")
    below.set_xlabel("confidence")
    for axis in (axes.yaxis, below.yaxis, below.xaxis):
        drawing.format_axis(axis, percent=True)
    below.yaxis.set_major_locator(MaxNLocator(2))
    drawing.legend(figure)
    return figure


def _confusion_pictures(run: Run) -> Iterator[Picture]:
    evidence = confusion_evidence(run)
    classes = [] if evidence is None else _most_changed(run, evidence.pair)
    if evidence is None or not classes:
        return
    methods = evidence.pair
    both = len(methods) == 2
    columns = [run.classes[c] for c in classes]
    if len(classes) < len(run.classes):
        columns.append("(other)")
    tables = [_confusions(m, classes)[:, : len(columns)] for m in methods]
    figure = drawing.new_figure((len(classes) * 23.0 + 30.0) * len(methods) + 110.0)
    all_axes = drawing.stacked_axes(figure, len(methods))
    for axes, method, table in zip(all_axes, methods, tables, strict=True):
        _draw_confusions(axes, table, BEFORE if both and method is methods[0] else AFTER)
        axes.set_yticks(np.arange(len(classes)) + 0.5, [short(run.classes[c], 15) for c in classes])
        axes.set_title(short(method.title, 40), color=INK)
    places = np.arange(len(columns)) + 0.5
    all_axes[-1].set_xticks(places, [short(c, 15) for c in columns], rotation=90)
    all_axes[-1].set_xlabel("predicted")
    apart = np.where(np.eye(*tables[-1].shape, dtype=bool), -1.0, tables[-1])
    i, j = np.unravel_index(int(apart.argmax()), apart.shape)
    described = phrase(
        "figure.confusion_alt", count=len(classes), pair=", before and after" if both else "",
        after=" after" if both else "", name=columns[i], guess=columns[j], share=apart[i, j],
    )  # fmt: skip
    chosen = "whose error changed most" if both else "with most errors"
    chosen = f"the {len(classes)} classes {chosen}"
    if len(classes) == len(run.classes):
        chosen = "all classes"
    caption = phrase("figure.confusion", chosen=chosen, data=evidence.data)
    title = "Confusion" + (", before and after" if both else "")
    yield picture(figure, f"{run.place}fig-confusion", title, described, caption)


def _most_changed(run: Run, methods: list[Method]) -> list[int]:
    """Up to `MAX_CONFUSED` classes, the most frequent first."""
    errors = np.array([np.nan_to_num(m.errors) for m in methods])
    moved = np.abs(errors[-1] - errors[0])
    if len(methods) == 1:
        assert methods[0].n is not None
        moved = errors[0] * methods[0].n
    measured = np.all([np.isfinite(m.errors) for m in methods], axis=0)
    chosen = [c for c in np.argsort(-moved, kind="stable").tolist() if measured[c]]
    return [c for c in run.order.tolist() if c in chosen[:MAX_CONFUSED]]


def _confusions(method: Method, classes: list[int]) -> np.ndarray:
    """Percentages of each class predicted as each, and in the last column as another."""
    assert method.confused is not None
    assert method.n is not None
    place = {c: i for i, c in enumerate(classes)}
    table = np.zeros((len(classes), len(classes) + 1))
    for t, guess, n in method.confused[np.isin(method.confused[:, 0], classes)].tolist():
        table[place[t], place.get(guess, len(classes))] += n
    n = method.n[classes]
    table[np.arange(len(classes)), np.arange(len(classes))] = (1 - method.errors[classes]) * n
    return 100 * table / n[:, None]


def _draw_confusions(axes: Axes, table: np.ndarray, colour: str) -> None:
    """Cells with the share where it is not 0, those of right predictions framed."""
    texts = [["" if v <= 0 else f"{v:.0f}" if v >= 0.5 else "<1" for v in row] for row in table]
    drawing.heat_map(axes, table / 100, colour, texts, 11)
    for i in np.flatnonzero(np.diagonal(table) > 0).tolist():
        frame = {"facecolor": "none", "edgecolor": MUTED, "linewidth": 0.75}
        axes.add_patch(Rectangle((i, i), 1, 1, **frame))
    axes.tick_params(labelsize=11)


# The loss's parameters -------------------------------------------------------------------------


def _parameter_picture(run: Run, part: Part) -> Picture:
    panels = _panels(run)
    height = 280.0 if len(panels) == 1 else 60.0 + 190.0 * len(panels)
    figure = drawing.new_figure(height)
    all_axes = drawing.stacked_axes(figure, len(panels), sharey=True)
    for axes, g in zip(all_axes, panels, strict=True):
        _against_frequency(axes, run, part, g, (height - 60.0) / len(panels) - 30.0)
        axes.set_title(_panel_title(run, part, g), color=INK)
    where = " in the group" if run.groups else ""
    all_axes[-1].set_xlabel(f"training examples of the class{where}")
    drawing.legend(figure)
    title = f"{part.title[:1].upper()}{part.title[1:]} against class frequency"
    ends = {"start_low": np.nanmin(part.start), "start_high": np.nanmax(part.start)}
    ends |= {"low": np.nanmin(part.end), "high": np.nanmax(part.end)}
    described = phrase("figure.parameter_alt", **ends)
    caption = phrase(f"figure.{part.key}")
    if not part.changed and run.search_status == "finished":
        caption += " The search left it as it was."
    name = f"{run.place}fig-{part.key}"
    return picture(figure, name, title, described, caption + _groups_left_out(run))


def _against_frequency(axes: Axes, run: Run, part: Part, g: int, height: float) -> None:
    """One panel; its axes are about `height` points high."""
    counts = np.maximum(run.counts[g], 0.5)  # a class that a group lacks stands left of 1
    start, end = part.start[g], part.end[g]
    thin = drawing.evenly_spaced(len(counts), MAX_DOTS // len(_panels(run)))
    few = len(counts) <= MAX_LABELLED
    size = 5.5 if few else 2.5
    if part.changed:
        if few:
            ends, places = drawing.dashes(start, end, counts)
            axes.plot(places, ends, color=MUTED, linewidth=0.75)
        dots(axes, counts[thin], start[thin], BEFORE, "start", hollow=True, size=size)
    dots(axes, counts[thin], end[thin], AFTER, end_label(run), hollow=False, size=size)
    if counts.max() / counts.min() > 3:
        axes.set_xscale("log")
        subs = (1.0,) if counts.max() / counts.min() > 100 else (1.0, 2.0, 5.0)
        axes.xaxis.set_major_locator(LogLocator(subs=subs, numticks=8))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.grid(which="minor", visible=False)
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:,g}")
    axes.margins(0.08)
    if few:
        _name_the_moved(axes, run, counts, start, end, height)


def _name_the_moved(
    axes: Axes, run: Run, counts: np.ndarray, start: np.ndarray, end: np.ndarray, height: float
) -> None:
    """Name the three classes that moved most, on the side where there is room, pushed apart."""
    moved = np.nan_to_num(np.abs(end - start))
    most = [c for c in np.argsort(-moved, kind="stable")[:3] if moved[c] > 1e-6]
    middle = np.sqrt(counts.max() * counts.min())
    low, high = axes.get_ylim()
    for left in (True, False):
        side = [c for c in most if (counts[c] <= middle) == left]
        if not side:
            continue
        at = (end[side] - low) / (high - low)
        for c, own, place in zip(side, at, _apart(at, LABEL_GAP / height), strict=True):
            offset = (9 if left else -9, (place - own) * height)
            axes.annotate(
                short(run.classes[c], 16), (counts[c], end[c]), xytext=offset,
                textcoords="offset points", ha="left" if left else "right", va="center", color=INK,
            )  # fmt: skip


def _path_picture(run: Run, part: Part) -> Picture:
    panels = _panels(run)
    height = 420.0 if len(panels) == 1 else 50.0 + 210.0 * len(panels)
    figure = drawing.new_figure(height)
    all_axes = drawing.stacked_axes(figure, len(panels), sharey=True)
    order = run.order[drawing.evenly_spaced(len(run.order), MAX_LINES)]
    for axes, g in zip(all_axes, panels, strict=True):
        _draw_path(axes, run, part, g, order)
    for axes, g in zip(all_axes, panels, strict=True):  # once the shared axes are settled
        _label_ends(axes, run, part.path[-1, g], order, height / len(panels) - 50)
        axes.set_title(_panel_title(run, part, g), color=INK)
    all_axes[-1].set_xlabel("training step")
    described = phrase(
        "figure.path_alt", title=part.title, count=len(run.classes), steps=part.steps[-1],
        points=len(part.path),
    )  # fmt: skip
    which = f"{MAX_LINES} of {len(run.classes):,} classes, evenly spaced by frequency"
    which = which if len(run.classes) > MAX_LINES else "One line per class"
    mean = " Mean 0 over the classes at every step." if part.key == "additive" else ""
    caption = phrase("figure.path", which=which, mean=mean, groups=_groups_left_out(run))
    title = f"Path of {part.symbol} over the search"
    return picture(figure, f"{run.place}fig-path-{part.key}", title, described, caption)


def _draw_path(axes: Axes, run: Run, part: Part, g: int, order: np.ndarray) -> None:
    points = drawing.evenly_spaced(len(part.steps), MAX_PATH_POINTS)
    steps, path = part.steps[points], part.path[points, g]
    first = run.curves["step"][:1]
    if len(first) and steps[0] < first[0] <= steps[1]:  # held fixed while warming up
        steps, path = np.insert(steps, 1, first[0]), np.insert(path, 1, path[0], axis=0)
    width = 1.6 if len(order) <= MAX_LABELLED else 0.9
    for i, c in enumerate(order):
        axes.plot(steps, path[:, c], color=drawing.ramp(i, len(order)), linewidth=width)
    axes.set_xlim(0, steps[-1] if steps[-1] > 0 else 1)
    axes.margins(y=0.06)
    drawing.format_axis(axes.xaxis, integer=True)


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
            label, (1, at), xycoords="axes fraction", xytext=(6, 0), textcoords="offset points",
            va="center", color=drawing.ramp(i, len(order)), annotation_clip=False,
        )  # fmt: skip


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
    steps, curves = run.curves["step"], run.curves
    if len(steps) < 2:
        return
    name = objective_name(run)
    smooth, hard, test = (curves[k] for k in ("objective", "hard_objective", "test_objective"))
    training = curves["training_loss"]
    if np.isfinite(smooth).any() or np.isfinite(hard).any():
        title = "Objective on validation data"
        series = [("differentiable form", smooth, BEFORE), ("0-1 error", hard, AFTER)]
        ends = _ends("0-1 error", hard)
        caption = phrase("figure.objective", objective=name)
        if np.isfinite(test).any():
            title = "Objective on validation and test data"
            series.append(("0-1 error, test data", test, INK))
            ends += f" {_ends('0-1 error on test data', test)}"
            caption += phrase("figure.watched")
        described = phrase("figure.objective_alt", objective=name, ends=ends)
        figure = _curve_figure(steps, series)
        yield picture(figure, f"{run.place}fig-objective", title, described, caption)
    if np.isfinite(training).any():
        figure = _curve_figure(steps, [("training loss", training, AFTER)])
        described = phrase("figure.training_alt", ends=_ends("training loss", training))
        caption = phrase("figure.training")
        yield picture(figure, f"{run.place}fig-training", "Training loss", described, caption)


def _curve_figure(steps: np.ndarray, series: list[tuple[str, np.ndarray, str]]) -> Figure:
    figure = drawing.new_figure(260.0)
    axes = figure.add_subplot()
    thin = drawing.evenly_spaced(len(steps), MAX_CURVE_POINTS)
    for label, values, colour in series:
        known = np.isfinite(values)
        if not known.any():
            continue
        if colour == INK:  # measured now and then
            axes.plot(steps[known], values[known], "--", color=colour, linewidth=1.5, label=label)
            continue
        if len(steps) >= 15:
            axes.plot(steps[thin], values[thin], color=colour, linewidth=0.75, alpha=0.4)
            values = smooth(values, max(3, len(steps) // 8))
        axes.plot(steps[thin], values[thin], color=colour, linewidth=2, label=label)
    axes.set_xlabel("training step")
    drawing.format_axis(axes.xaxis, integer=True)
    drawing.format_axis(axes.yaxis)
    drawing.legend(figure)
    return figure


def _tau_pictures(run: Run) -> Iterator[Picture]:
    """The objective against the strength of logit adjustment, beside the decisions taken."""
    curve, taken = run.adjusted.get("curve"), run.candidate(run.choice)
    if curve is None or taken is None or not np.isfinite(curve).all():
        return
    taus, values, errors = curve.T
    figure = drawing.new_figure(280.0)
    axes = figure.add_subplot()
    low, high = (100 * np.clip(values + side * Z90 * errors, 0, 1) for side in (-1, 1))
    axes.fill_between(taus, low, high, color=BEFORE, alpha=0.2, linewidth=0)
    axes.plot(taus, 100 * values, color=BEFORE, linewidth=2, label="ℓ = tau log π")
    label = "decisions taken"
    if run.adjusted["tau"] is None:
        axes.axhline(100 * taken.objective, color=AFTER, linewidth=1.5, label=label)
    else:
        spread = run.adjusted["intervals"].get("tau")
        if spread is not None:
            axes.plot(spread, [100 * taken.objective] * 2, color=AFTER, linewidth=1.5)
        dots(axes, [run.adjusted["tau"]], [100 * taken.objective], AFTER, label, hollow=False)
    axes.set_xlabel("tau")
    drawing.format_axis(axes.xaxis)
    drawing.format_axis(axes.yaxis, percent=True)
    drawing.legend(figure)
    best = int(values.argmin())
    described = phrase(
        "figure.tau_alt", none=percent(values[0]), best=percent(values[best]), at=taus[best],
        taken=percent(taken.objective),
    )  # fmt: skip
    caption = phrase("figure.tau", objective=objective_name(run))
    title = "Objective against the strength of logit adjustment"
    yield picture(figure, f"{run.place}fig-tau", title, described, caption)


def _ends(label: str, values: np.ndarray) -> str:
    finite = values[np.isfinite(values)]
    if not len(finite):
        return ""
    return f"The {label} starts at {finite[0]:.3g} and ends at {finite[-1]:.3g}."


def _panels(run: Run) -> list[int]:
    return list(range(min(len(run.counts), MAX_PANELS)))


def _groups_left_out(run: Run) -> str:
    more = len(run.counts) - MAX_PANELS
    return f" The first {MAX_PANELS} of {len(run.counts):,} groups." if more > 0 else ""


def _panel_title(run: Run, part: Part, g: int) -> str:
    symbol = "ℓ (mean 0)" if part.key == "additive" else part.symbol
    return f"{symbol}, {short(run.groups[g], 30)}" if run.groups else symbol
