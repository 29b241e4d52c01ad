"""What the report's figures have in common."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from autobalance.report.svg import RAMP

CELL = 0.5  # opacity of the strongest cell of a table, so that its number can be read
WIDTH = 380.0  # units of the SVG; a phone shows it a little smaller, a desktop a little larger


def new_figure(height: float) -> Figure:
    """A figure of the page's width, and so many points high."""
    return Figure(figsize=(WIDTH / 72, height / 72), layout="constrained")


def dots(
    axes: Axes,
    x: np.ndarray,
    y: np.ndarray,
    colour: str,
    label: str,
    *,
    hollow: bool,
    size: float = 6.0,
) -> None:
    """Hollow or filled circles, so that colour is not all that tells them apart."""
    axes.plot(
        x,
        y,
        "o",
        color=colour,
        markerfacecolor="none" if hollow else colour,
        markeredgewidth=1.5 if size > 4 else 0.8,
        markersize=size,
        label=short(label.lstrip("_"), 26),  # matplotlib hides labels that begin with one
        clip_on=False,
    )


def dashes(low: np.ndarray, high: np.ndarray, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Segments from `low` to `high` at each `at`, as one line with gaps: far smaller than many."""
    gap = np.full(len(at), np.nan)
    return np.stack([low, high, gap], axis=1).ravel(), np.repeat(at, 3)


def legend(figure: Figure) -> None:
    """Above the axes, where there is more than one thing to tell apart."""
    handles, labels = figure.axes[0].get_legend_handles_labels()
    if len(handles) > 1:
        first = handles[0]
        small = (
            isinstance(first, Line2D) and first.get_marker() == "o" and first.get_markersize() < 4
        )
        figure.legend(
            handles, labels, loc="outside upper left", ncols=2, markerscale=2.2 if small else 1
        )


def evenly_spaced(count: int, most: int) -> np.ndarray:
    """At most `most` of ``range(count)``, evenly spaced, with both ends."""
    return np.unique(np.round(np.linspace(0, count - 1, min(count, most))).astype(int))


def ramp(place: int, count: int) -> str:
    """Colour of the class at `place` of `count`, from frequent to rare."""
    return RAMP[round(place / max(1, count - 1) * (len(RAMP) - 1))]


def short(name: str, length: int) -> str:
    """The name, or its beginning."""
    return name if len(name) <= length else name[: length - 1] + "…"
