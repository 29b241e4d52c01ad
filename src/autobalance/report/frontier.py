"""A frontier as a picture and as CSV, from its record. Imports no torch."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from autobalance.report.drawing import Picture, dots, format_axis, legend, new_figure, picture
from autobalance.report.formats import phrase
from autobalance.report.pareto import frontier_points
from autobalance.report.run import Run
from autobalance.report.svg import AFTER, BEFORE, INK, MUTED, RAMP, house_style, standalone_svg
from autobalance.report.tables import measure_name, point_title

# Of the baselines: a shape and a colour each.
_MARKERS = {"s": BEFORE, "^": RAMP[5], "D": RAMP[2], "v": INK}


def as_csv(record: Mapping[str, Any]) -> str:
    """The points and the baselines, one a line: what `frontier_points` leaves, and which is picked.

    The columns are mix or bound, main and gap (as shares, not percent), whether constant, the title, and
    whether it is picked. Baselines have no mix or bound. `record` is `autobalance.Frontier.to_dict`, or the
    command's of decisions, with "by": "bound".
    """
    by = record.get("by", "mix")
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow([by, record["main"], record["gap"], "constant", "title", "picked"])
    for point in [*frontier_points(record), *record.get("baselines", [])]:
        flags = (str(bool(point.get(key))).lower() for key in ("constant", "picked"))
        constant, picked = flags
        ends = point["main"], point["gap"]
        writer.writerow([point.get(by), *ends, constant, point_title(by, point), picked])
    return stream.getvalue()


def as_svg(record: Mapping[str, Any]) -> str:
    """The points' main objective against their gap, in percent, with the baselines, as an SVG file.

    Points are those of `frontier_points`, joined in their order; mixes stand beside them, and the one that
    was picked is named. Hollow ones have a class that is always
    wrong. The same record gives the same text. `record` is that of `as_csv`, with "baselines", a list of
    mappings with "title", "main", "gap" and "constant", where there are any.
    """
    return standalone_svg(_picture(record, "fig-frontier", mixes=True).svg)


def frontier_picture(run: Run) -> Picture:
    """The points of the run's frontier for the page."""
    return _picture(run.frontier, f"{run.place}fig-frontier")


def drawable(points: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The points of which both objectives are defined."""
    return [p for p in points if p["main"] is not None and p["gap"] is not None]


def _picture(record: Mapping[str, Any], name: str, *, mixes: bool = False) -> Picture:
    points, others = map(drawable, (frontier_points(record), record.get("baselines", [])))
    by = record.get("by", "mix")
    gap, main = (measure_name(record[axis]) for axis in ("gap", "main"))
    with house_style():
        figure = new_figure(330.0 + 20.0 * -(-len(others) // 2))
        axes = figure.add_subplot()
        _draw(axes, points, others)
        for i, point in enumerate(points):
            picked = bool(point.get("picked"))
            text = f"picked, {point_title(by, point)}"
            look: dict[str, Any] = {"xytext": (8, 8)}
            if mixes and by == "mix" and not picked:  # a bound is where the point is
                text, above = f"{point[by]:g}", i % 2 == 0
                look = {"xytext": (0, 8 if above else -16), "ha": "center", "fontsize": 10}
            if picked or (mixes and by == "mix"):
                axes.annotate(
                    text, (100 * point["gap"], 100 * point["main"]), textcoords="offset points",
                    color=INK if picked else MUTED, **look,
                )  # fmt: skip
        axes.set_xlabel(gap)
        axes.set_ylabel(main)
        axes.margins(0.1)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(5))
            format_axis(axis, percent=True)
        legend(figure)
        if not points:
            text = "No point has both objectives: one is not defined on the held-out data."
            axes.text(0.5, 0.5, text, ha="center", transform=axes.transAxes, wrap=True)
            return picture(figure, name, "Frontier", text, text)
        x, y = ([100 * p[axis] for p in points] for axis in ("gap", "main"))
        what = "designed losses" if by == "mix" else "decisions"
        described = phrase(
            "figure.frontier_alt", main=main, gap=gap, points=len(points), what=what,
            others=len(others), left=min(x), right=max(x), low=min(y), high=max(y),
        )  # fmt: skip
        each = "mix of the two" if by == "mix" else "bound on the gap"
        return picture(figure, name, "Frontier", described, phrase("figure.frontier", each=each))


def _draw(axes: Axes, points: list[dict[str, Any]], baselines: list[dict[str, Any]]) -> None:
    """The points, joined in their order, and the baselines."""
    x, y = (np.array([100 * p[axis] for p in points]) for axis in ("gap", "main"))
    constant = np.array([p["constant"] for p in points], dtype=bool)
    axes.plot(x, y, color=AFTER, linewidth=1.1, zorder=2)
    for at, label in ((~constant, "designed"), (constant, "one class always wrong")):
        if at.any():
            dots(axes, x[at], y[at], AFTER, label, hollow=at is constant)
    for baseline, (marker, colour) in zip(baselines, _MARKERS.items(), strict=False):
        place = [100 * baseline["gap"]], [100 * baseline["main"]]
        hollow = bool(baseline["constant"])
        dots(axes, *place, colour, baseline["title"], hollow=hollow, size=7, marker=marker)
