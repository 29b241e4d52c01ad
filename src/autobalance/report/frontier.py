"""A frontier as pictures and as tables, from its record. Imports no torch."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, MaxNLocator

from autobalance.report.drawing import dots, legend, new_figure, short
from autobalance.report.figures import Picture
from autobalance.report.formats import percent
from autobalance.report.record import Run
from autobalance.report.svg import AFTER, BEFORE, INK, house_style, inline_svg
from autobalance.report.tables import Cell, Table
from autobalance.report.text import OBJECTIVES

# Okabe and Ito's colours, which colour-blind readers tell apart; each has a marker of its own.
_LINE = "#0072B2"
_MARKERS = (("s", "#D55E00"), ("^", "#009E73"), ("D", "#CC79A7"), ("v", "#E69F00"))
_INK, _MUTED, _RULE = "#222222", "#555555", "#dddddd"
GAP_TITLES = {
    "deo": "difference of equal opportunity (DEO)",
    "equalized_odds_difference": "equalized odds difference",
    "equal_opportunity_difference": "equal opportunity difference",
    "demographic_parity_difference": "demographic parity difference",
}


_WHAT = {"mix": "designed losses", "bound": "decisions"}


def _labelled(by: str, point: Mapping[str, Any]) -> str:
    return f"mix {point['mix']:g}" if by == "mix" else f"bound {percent(point['bound'])}"


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
        As for `as_csv`, and "baselines", a list of mappings with "title", "main",
        "gap" and "constant", where there are any.
    """
    settings: dict[Any, Any] = {"svg.hashsalt": "autobalance", "text.parse_math": False}
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(settings)
        figure = _drawn(record)
        stream = io.StringIO()
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    return stream.getvalue()


def _drawn(record: Mapping[str, Any]) -> Figure:
    figure = Figure(figsize=(6.6, 4.6), layout="constrained", facecolor="white")
    FigureCanvasSVG(figure)
    axes = figure.add_subplot()
    points = record["points"]
    by = record.get("by", "mix")
    what = "designed" if by == "mix" else "decisions"
    x, y = ([100 * p[key] for p in points] for key in ("gap", "main"))
    axes.plot(x, y, "-", color=_LINE, linewidth=1.2, zorder=2)
    for constant, label in (
        (False, f"{what}, by {by}"),
        (True, f"{what}, one class always wrong"),
    ):
        chosen = [i for i, p in enumerate(points) if p["constant"] == constant]
        if chosen:
            axes.plot(
                [x[i] for i in chosen],
                [y[i] for i in chosen],
                "o",
                color=_LINE,
                markerfacecolor="white" if constant else _LINE,
                markersize=6,
                label=label,
                zorder=3,
            )
    # A bound is where the point is.
    for i, point in enumerate(points if by == "mix" else []):
        axes.annotate(
            f"{point['mix']:g}",
            (x[i], y[i]),
            xytext=(0, 7 if i % 2 == 0 else -13),
            textcoords="offset points",
            ha="center",
            fontsize=8,
            color=_MUTED,
            zorder=2.5,  # above the line, below all markers
            path_effects=[withStroke(linewidth=2.5, foreground="white")],
        )
    for baseline, (marker, colour) in zip(record.get("baselines", []), _MARKERS, strict=False):
        _mark(axes, baseline, marker, colour, baseline["title"], hollow="white", zorder=3)
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


def _name(objective: str) -> str:
    """In words, as the report has them."""
    known = GAP_TITLES | {key: name for key, (name, _) in OBJECTIVES.items()}
    return known.get(objective, objective.replace("_", " "))


def _mark(
    axes: Any,
    baseline: Mapping[str, Any],
    marker: str,
    colour: str,
    title: str,
    *,
    hollow: str,
    **style: Any,
) -> None:
    """A baseline's point, hollow where a class is always wrong."""
    axes.plot(
        [100 * baseline["gap"]],
        [100 * baseline["main"]],
        marker,
        color=colour,
        markerfacecolor=hollow if baseline["constant"] else colour,
        markersize=7,
        linestyle="none",
        label=title,
        **style,
    )


def frontier_picture(run: Run) -> Picture:
    """The points of the run's frontier in the report's style."""
    points, others = run.frontier["points"], run.frontier["baselines"]
    names = {axis: _name(run.frontier[axis]) for axis in ("gap", "main")}
    with house_style():
        figure = new_figure(330.0 + 20.0 * -(-len(others) // 2))
        axes = figure.add_subplot()
        x, y = ([100 * p[axis] for p in points] for axis in ("gap", "main"))
        axes.plot(x, y, color=AFTER, linewidth=1)
        for constant, label in ((False, "designed"), (True, "one class always wrong")):
            at = [i for i, p in enumerate(points) if p["constant"] == constant]
            if at:
                gaps, mains = (np.array([v[i] for i in at]) for v in (x, y))
                dots(axes, gaps, mains, AFTER, label, hollow=constant)
        by = run.frontier["by"]
        picked = [i for i, p in enumerate(points) if p[by] == run.frontier[by]]
        for i in picked[:1]:
            axes.annotate(
                f"picked, {_labelled(by, points[i])}",
                (x[i], y[i]),
                xytext=(8, 8),
                textcoords="offset points",
                color=INK,
            )
        for baseline, (marker, _) in zip(others, _MARKERS, strict=False):
            title = short(baseline["title"].lstrip("_"), 26)
            _mark(axes, baseline, marker, BEFORE, title, hollow="none")
        axes.set_xlabel(names["gap"])
        axes.set_ylabel(names["main"])
        axes.margins(0.1)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(5))
            axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}%"))
        legend(figure)
        title = "Frontier"
        described = (
            f"{names['main']} against {names['gap']} of {len(points)} {_WHAT[by]} and "
            f"{len(others)} baselines on held-out data. The gap runs from {min(x):.1f}% to "
            f"{max(x):.1f}%, the error from {min(y):.1f}% to {max(y):.1f}%."
        )
        svg = inline_svg(figure, f"{run.place}fig-frontier", title, described)
    each = "mix of the two" if by == "mix" else "bound on the gap"
    caption = f"One dot per {each}, joined in that order, on held-out data: lower and further left is better."
    return Picture(title, svg, caption)


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
        rows.append(
            [
                Cell(point["title"] if at is None else _labelled(by, point)),
                *(Cell(percent(point[axis]), value=point[axis]) for axis in ("main", "gap")),
                Cell(note),
            ]
        )
    what = "Loss" if by == "mix" else "Decision"
    columns = [what, *(_name(run.frontier[axis]) for axis in ("main", "gap")), "Note"]
    caption = "On the held-out data that guided the search; the mix is the weight of the gap."
    if by == "bound":
        caption = "On the held-out examples that the bounds were kept on; no point but the first was trained."
    return Table(f"{run.place}frontier", caption, columns, rows)
