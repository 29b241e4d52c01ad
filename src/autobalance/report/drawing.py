"""What the report's figures have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator

from autobalance.report.formats import percent, short
from autobalance.report.statistics import wilson
from autobalance.report.svg import INK, RAMP, inline_svg

CELL = 0.5  # opacity of the strongest cell of a table, so that its number can be read
WIDTH = 380.0  # units of the SVG; a phone shows it a little smaller, a desktop a little larger
MAX_LABELLED = 30  # classes that a figure names
MAX_DOTS = 1000
BINS = 10  # slices of the classes
BY_FREQUENCY = "class, from the most to the least frequent"


@dataclass(frozen=True)
class Picture:
    """A figure of the page: its heading, its SVG and the words below it."""

    title: str
    svg: Markup  # goes into the page as it is
    caption: str


@dataclass(frozen=True, eq=False)
class Series:
    """Errors per class of one method or run, and how they are drawn."""

    label: str
    errors: np.ndarray
    n: np.ndarray | None
    colour: str
    marker: str = "o"
    hollow: bool = False

    @property
    def look(self) -> dict[str, Any]:
        """How `dots` draws it."""
        return {"hollow": self.hollow, "marker": self.marker}


def spans(errors: Sequence[tuple[str, np.ndarray]]) -> str:
    """From where to where errors of classes run, by name, for an alternative text."""
    return "; ".join(
        f"{name}: from {percent(np.nanmin(e))} to {percent(np.nanmax(e))}"
        for name, e in errors
        if np.isfinite(e).any()
    )


def picture(figure: Figure, name: str, title: str, description: str, caption: str) -> Picture:
    """The figure with its words; `description` is its alternative text. Within `house_style`."""
    return Picture(title, Markup(inline_svg(figure, name, title, description)), caption)


def new_figure(height: float) -> Figure:
    """A figure of the page's width, and so many points high."""
    return Figure(figsize=(WIDTH / 72, height / 72), layout="constrained")


def stacked_axes(figure: Figure, count: int, **options: Any) -> list[Axes]:
    """So many axes below each other that share their x axis."""
    return figure.subplots(count, 1, sharex=True, squeeze=False, **options)[:, 0].tolist()


def error_figure(names: Sequence[str], series: Sequence[Series]) -> Figure:
    """Errors per class: a row each where the classes can be named, else means of slices."""
    k, m = len(series[0].errors), len(series)
    few = k <= MAX_LABELLED
    legend_height = 22.0 * -(-m // 2) if m > 2 else 0.0
    row = 27.0 + 7.0 * max(0, m - 2)
    figure = new_figure((70.0 + row * max(k, 3) if few else 300.0) + legend_height)
    axes = figure.add_subplot()
    for i, each in enumerate(series):
        shift = (i - (m - 1) / 2) / (m + 0.5)
        if few:
            at = np.arange(k) + shift
            if each.n is not None:
                intervals(axes, each.errors, each.n, at, each.colour, across=True)
            dots(axes, 100 * each.errors, at, each.colour, each.label, **each.look)
        else:
            _draw_slices(axes, each, shift, faint=m <= 2)
    if few:
        class_rows(axes, names)
        axes.set_xlim(left=0)
        format_axis(axes.xaxis, percent=True)
    else:
        axes.set_ylim(bottom=-2)
        format_axis(axes.yaxis, percent=True)
        axes.set_xlabel(BY_FREQUENCY)
        axes.grid(axis="x", visible=False)
    legend(figure)
    return figure


def _draw_slices(axes: Axes, series: Series, shift: float, *, faint: bool) -> None:
    """Means over slices of the classes, with intervals of the pooled errors."""
    errors, k = series.errors, len(series.errors)
    rank = np.arange(1, k + 1)
    if faint:
        thin = evenly_spaced(k, MAX_DOTS)
        look = {"color": series.colour, "alpha": 0.25, "markersize": 3}
        axes.plot(rank[thin], 100 * errors[thin], ".", **look)
    slices = np.array_split(np.arange(k), BINS)
    at = np.array([rank[s].mean() for s in slices]) + shift * 0.06 * k
    n = np.where(np.isfinite(errors), np.ones(k) if series.n is None else series.n, 0.0)
    trials = np.array([n[s].sum() for s in slices])
    wrong = np.array([np.nansum(errors[s] * n[s]) for s in slices])
    means = np.divide(wrong, trials, out=np.full(BINS, np.nan), where=trials > 0)
    if series.n is not None:
        intervals(axes, means, trials, at, series.colour)
    dots(axes, at, 100 * means, series.colour, series.label, **series.look)


def class_rows(axes: Axes, names: Sequence[str]) -> None:
    """A row of the figure for each class, under its name."""
    axes.set_yticks(range(len(names)), list(names), color=INK)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_visible(False)


def format_axis(axis: Axis, *, percent: bool = False, integer: bool = False) -> None:
    """Numbers of an axis as percentages, or as whole numbers such as steps, or short."""
    form = "{:g}%" if percent else "{:,.0f}" if integer else "{:g}"
    axis.set_major_formatter(FuncFormatter(lambda v, _: form.format(v)))
    if integer:
        axis.set_major_locator(MaxNLocator(5, integer=True))


def dots(
    axes: Axes,
    x: Any,
    y: Any,
    colour: str,
    label: str,
    *,
    hollow: bool,
    size: float = 6.0,
    marker: str = "o",
    line: float = 0.0,
) -> None:
    """Hollow or filled markers, so that colour is not all that tells them apart."""
    axes.plot(
        x,
        y,
        marker + ("-" if line else ""),
        color=colour,
        markerfacecolor="none" if hollow else colour,
        markeredgewidth=1.5 if size > 4 else 0.8,
        markersize=size,
        linewidth=line,
        label=short(label.lstrip("_"), 26),  # matplotlib hides labels that begin with one
        clip_on=False,
    )


def heat_map(
    axes: Axes,
    shares: np.ndarray,
    colour: str,
    texts: list[list[str]],
    size: float,
    most: float = CELL,
) -> None:
    """Cells as opaque as their share, at most `most`, which suits light and dark pages.

    Each holds its text in `size` points; the first row is on top, and titles are the caller's.
    """
    for (r, c), share in np.ndenumerate(np.clip(shares, 0.0, 1.0)):
        look = {"facecolor": colour, "alpha": most * float(share), "linewidth": 0}
        if share > 0 or texts[r][c]:
            axes.add_patch(Rectangle((c, r), 1, 1, **look))
        if texts[r][c]:
            place = {"ha": "center", "va": "center", "fontsize": size, "color": INK}
            axes.text(c + 0.5, r + 0.5, texts[r][c], **place)
    axes.set_xlim(0, shares.shape[1])
    axes.set_ylim(len(shares), 0)
    axes.tick_params(length=0, labelcolor=INK)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)


def intervals(
    axes: Axes,
    shares: np.ndarray,
    n: np.ndarray,
    at: np.ndarray,
    colour: str,
    *,
    across: bool = False,
) -> None:
    """Bars of the shares' 95% Wilson intervals in percent; `across` draws them along the x axis."""
    low, high = wilson(shares, n)
    ends, places = dashes(100 * low, 100 * high, at)
    axes.plot(*((ends, places) if across else (places, ends)), color=colour, linewidth=1.5)


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
        scale = 2.2 if small else 1
        figure.legend(handles, labels, loc="outside upper left", ncols=2, markerscale=scale)


def evenly_spaced(count: int, most: int) -> np.ndarray:
    """At most `most` of ``range(count)``, evenly spaced, with both ends."""
    return np.unique(np.round(np.linspace(0, count - 1, min(count, most))).astype(int))


def ramp(place: int, count: int) -> str:
    """Colour of the class at `place` of `count`, from frequent to rare."""
    return RAMP[round(place / max(1, count - 1) * (len(RAMP) - 1))]
