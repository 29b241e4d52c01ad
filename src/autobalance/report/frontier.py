"""A frontier as pictures and as tables, from its record. Imports no torch."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

from autobalance.report.drawing import Picture, dots, format_axis, legend, new_figure, picture
from autobalance.report.formats import percent
from autobalance.report.record import Run
from autobalance.report.svg import AFTER, BEFORE, INK, house_style, standalone_svg
from autobalance.report.tables import Cell, Table, rate_cell
from autobalance.report.text import OBJECTIVES

# Okabe and Ito's colours, which colour-blind readers tell apart; each has a marker of its own.
_LINE = "#0072B2"
_MARKERS = {"s": "#D55E00", "^": "#009E73", "D": "#CC79A7", "v": "#E69F00"}
_INK, _MUTED, _RULE = "#222222", "#555555", "#dddddd"
GAP_TITLES = {
    "deo": "difference of equal opportunity (DEO)",
    "equalized_odds_difference": "equalized odds difference",
    "equal_opportunity_difference": "equal opportunity difference",
    "demographic_parity_difference": "demographic parity difference",
}


@dataclass(frozen=True)
class _Style:
    """What the picture of a file and that of the page do not share."""

    line: str
    colours: tuple[str, ...]  # of the baselines
    hollow: str  # face of hollow markers
    label: str  # of the points, and of those with a class that is always wrong
    constant: str


def _labelled(by: str, point: Mapping[str, Any]) -> str:
    return f"mix {point['mix']:g}" if by == "mix" else f"bound {percent(point['bound'])}"


def _name(objective: str) -> str:
    """In words, as the report has them."""
    known = GAP_TITLES | {key: name for key, (name, _) in OBJECTIVES.items()}
    return known.get(objective, objective.replace("_", " "))


def as_csv(record: Mapping[str, Any]) -> str:
    """The points, one a line: mix or bound, main, gap (as shares, not percent), whether constant.

    Parameters
    ----------
    record : dict
        `autobalance.Frontier.to_dict`, or the command's of decisions, with "by": "bound".
    """
    by = record.get("by", "mix")
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow([by, record["main"], record["gap"], "constant"])
    for point in record["points"]:
        writer.writerow([point[by], point["main"], point["gap"], str(point["constant"]).lower()])
    return stream.getvalue()


def as_svg(record: Mapping[str, Any]) -> str:
    """The points' main objective against their gap, in percent, with the baselines.

    Points are joined in their order; mixes stand beside them. Hollow ones have a class that is always
    wrong. The same record gives the same text.

    Parameters
    ----------
    record : dict
        Same as in `as_csv`, and "baselines", a list of mappings with "title", "main",
        "gap" and "constant", where there are any.
    """
    return standalone_svg(lambda: _file_figure(record))


def _file_figure(record: Mapping[str, Any]) -> Figure:
    figure = Figure(figsize=(6.6, 4.6), layout="constrained", facecolor="white")
    axes = figure.add_subplot()
    by = record.get("by", "mix")
    what = "designed" if by == "mix" else "decisions"
    labels = (f"{what}, by {by}", f"{what}, one class always wrong")
    colours = tuple(_MARKERS.values())
    _draw(axes, record, _Style(_LINE, colours, "white", *labels))
    # A bound is where the point is.
    for i, point in enumerate(record["points"] if by == "mix" else []):
        axes.annotate(
            f"{point['mix']:g}", (100 * point["gap"], 100 * point["main"]),
            xytext=(0, 9 if i % 2 == 0 else -14), textcoords="offset points", ha="center",
            fontsize=8, color=_MUTED, zorder=2.5,  # above the line, below all markers
            path_effects=[withStroke(linewidth=2.5, foreground="white")],
        )  # fmt: skip
    axes.set_xlabel(f"{_name(record['gap'])}, percent", color=_INK)
    axes.set_ylabel(f"{_name(record['main'])}, percent", color=_INK)
    axes.set_xlim(left=-0.03 * max(axes.get_xlim()[1], 1.0))  # room for a gap of 0
    axes.margins(y=0.12)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(6))
    axes.grid(color=_RULE, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_RULE)
    axes.tick_params(length=0, colors=_MUTED)
    axes.set_title("On held-out data: lower and further left is better", loc="left", fontsize=10)
    figure.legend(loc="outside lower left", ncols=2, frameon=False, fontsize=9)
    return figure


def _draw(axes: Axes, record: Mapping[str, Any], style: _Style) -> None:
    """The points, joined in their order, and the baselines."""
    points = record["points"]
    x, y = (np.array([100 * p[axis] for p in points]) for axis in ("gap", "main"))
    constant = np.array([p["constant"] for p in points], dtype=bool)
    axes.plot(x, y, color=style.line, linewidth=1.1, zorder=2)
    for at, label, hollow in ((~constant, style.label, False), (constant, style.constant, True)):
        if at.any():
            dots(axes, x[at], y[at], style.line, label, hollow=hollow)
            axes.lines[-1].set(zorder=3, markerfacecolor=style.hollow if hollow else style.line)
    others = zip(record.get("baselines", []), _MARKERS, style.colours, strict=False)
    for baseline, marker, colour in others:
        face = style.hollow if baseline["constant"] else colour
        place = [100 * baseline["gap"]], [100 * baseline["main"]]
        dots(axes, *place, colour, baseline["title"], hollow=False, size=7, marker=marker)
        axes.lines[-1].set(zorder=3, markerfacecolor=face, linestyle="none")


def frontier_picture(run: Run) -> Picture:
    """The points of the run's frontier in the report's style."""
    points, others, by = (run.frontier[key] for key in ("points", "baselines", "by"))
    names = {axis: _name(run.frontier[axis]) for axis in ("gap", "main")}
    x, y = ([100 * p[axis] for p in points] for axis in ("gap", "main"))
    with house_style():
        figure = new_figure(330.0 + 20.0 * -(-len(others) // 2))
        axes = figure.add_subplot()
        labels = "designed", "one class always wrong"
        _draw(axes, run.frontier, _Style(AFTER, (BEFORE,) * len(_MARKERS), "none", *labels))
        for point in [p for p in points if p[by] == run.frontier[by]][:1]:
            axes.annotate(
                f"picked, {_labelled(by, point)}", (100 * point["gap"], 100 * point["main"]),
                xytext=(8, 8), textcoords="offset points", color=INK,
            )  # fmt: skip
        axes.set_xlabel(names["gap"])
        axes.set_ylabel(names["main"])
        axes.margins(0.1)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(5))
            format_axis(axis, percent=True)
        legend(figure)
        what = {"mix": "designed losses", "bound": "decisions"}[by]
        described = (
            f"{names['main']} against {names['gap']} of {len(points)} {what} and "
            f"{len(others)} baselines on held-out data. The gap runs from {min(x):.1f}% to "
            f"{max(x):.1f}%, the error from {min(y):.1f}% to {max(y):.1f}%."
        )
        each = "mix of the two" if by == "mix" else "bound on the gap"
        caption = f"One dot per {each}, joined in that order, on held-out data: lower and further left is better."
        return picture(figure, f"{run.place}fig-frontier", "Frontier", described, caption)


def frontier_table(run: Run) -> Table | None:
    """The points and the baselines of the run's frontier."""
    if not run.frontier:
        return None
    rows = []
    by = run.frontier["by"]
    for point in [*run.frontier["points"], *run.frontier["baselines"]]:
        at = point.get(by)
        note = "a class always wrong" if point["constant"] else ""
        if at is not None and at == run.frontier[by]:
            note = "picked"
        title = point["title"] if at is None else _labelled(by, point)
        rows.append([Cell(title), rate_cell(point["main"]), rate_cell(point["gap"]), Cell(note)])
    what = "Loss" if by == "mix" else "Decision"
    columns = [what, *(_name(run.frontier[axis]) for axis in ("main", "gap")), "Note"]
    caption = "On the held-out data that guided the search; the mix is the weight of the gap."
    if by == "bound":
        caption = "On the held-out examples that the bounds were kept on; no point but the first was trained."
    return Table(f"{run.place}frontier", caption, columns, rows)
