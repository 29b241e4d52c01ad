"""A learned augmentation policy as pictures, from its record. Imports no torch."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from autobalance._validation import InputError
from autobalance.records import write_atomically
from autobalance.report.drawing import CELL, MAX_LABELLED, WIDTH, Picture, cell, picture
from autobalance.report.formats import short
from autobalance.report.svg import AFTER, INK, house_style, standalone_svg

Policy = Mapping[str, Mapping[str, Mapping[str, float]]]
"""Class, then operation, then "probability" and "magnitude": `Augmentation.per_class`."""

_STRONG, _TEXT = "#0072B2", "#222222"


def strengths(policy: Policy) -> tuple[list[str], list[str], np.ndarray]:
    """Classes, operations and probability times magnitude, ``(classes, operations)``.

    Operations without a magnitude count with their probability.

    Raises
    ------
    InputError
        If the table is empty, or classes name other operations than the first one does.
    """
    classes = [str(name) for name in policy]
    rows = list(policy.values())
    operations = list(rows[0]) if rows else []
    if not operations or any(list(row) != operations for row in rows):
        raise InputError(
            "The policy must give every class the same operations, at least one; "
            "Augmentation.per_class makes such a table."
        )
    table = [[row[o]["probability"] * row[o].get("magnitude", 1.0) for o in row] for row in rows]
    return classes, operations, np.array(table, dtype=np.float64)


def policy_picture(
    policy: Policy, counts: Sequence[float] | None = None, place: str = ""
) -> Picture:
    """The heat map of class against operation, for the report's page.

    Parameters
    ----------
    policy : mapping
        See `Policy`.
    counts : sequence of float, optional
        Training examples of each row, to sort rows by, the most frequent first.
    place : str
        In front of the picture's identifiers; see `autobalance.report.record.Run`.
    """
    classes, operations, table, sizes = _sorted(policy, counts)
    with house_style():
        figure = Figure(figsize=(WIDTH / 72, _height(classes, operations)), layout="constrained")
        _heat_map(figure.add_subplot(), classes, operations, table, sizes, AFTER, INK)
        strongest = np.unravel_index(int(table.argmax()), table.shape)
        title = "Augmentation by class"
        described = (
            f"Heat map of {len(classes)} classes and {len(operations)} operations. Strongest: "
            f"{operations[strongest[1]]} of {classes[strongest[0]]}, {table.max():.2f}."
        )
        caption = "Probability times magnitude, the expected strength as a share of each operation's largest."
        if sizes is not None:
            caption += " Classes from the most to the least frequent."
        return picture(figure, f"{place}fig-augmentation", title, described, caption)


def policy_svg(policy: Policy, counts: Sequence[float] | None = None) -> str:
    """Same as `policy_picture`, as an SVG file's text on a white ground."""
    classes, operations, table, sizes = _sorted(policy, counts)
    width = max(4.0, 2.0 + 0.5 * len(operations))
    height = _height(classes, operations)

    def draw() -> Figure:
        figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
        _heat_map(figure.add_subplot(), classes, operations, table, sizes, _STRONG, _TEXT)
        return figure

    return standalone_svg(draw)


def save_samples(images: np.ndarray, names: Sequence[Any], path: str | Path) -> None:
    """Write a sheet of images, one row per class and one column per draw.

    Parameters
    ----------
    images : ndarray
        Shape ``(rows, columns, c, h, w)`` with c = 1 or 3, in [0, 1]; in each row the first is the
        original: `autobalance.augment.samples`.
    names : sequence
        Of the rows.
    path : str or Path
        A .png, .svg or .pdf file, replaced as a whole.

    Raises
    ------
    InputError
        If the shape is another, or names are more or fewer than rows.
    """
    images = np.asarray(images, dtype=np.float64)
    if images.ndim != 5 or images.shape[2] not in (1, 3) or len(names) != len(images):
        raise InputError(
            "A sheet needs images (rows, columns, c, h, w) with c = 1 or 3, and a name for each "
            f"row; got shape {images.shape} and {len(names)} names."
        )
    path = Path(path)
    rows, columns = sheet_size(images)
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update({"text.parse_math": False, "svg.hashsalt": "autobalance"})
        size = (9.0, 8.0 * rows / columns + 0.4)
        figure = Figure(figsize=size, layout="constrained", facecolor="white")
        draw_sheet(figure.add_subplot(), images, names)
        stream = io.BytesIO()
        kind = path.suffix.lstrip(".").lower() or "png"
        figure.savefig(stream, format=kind, dpi=150, bbox_inches="tight")
    write_atomically(path, stream.getvalue())


def sheet_size(images: np.ndarray, examples: int = 1) -> tuple[int, int]:
    """Pixels of the sheet, height and width."""
    rows, _, _, height, _ = images.shape
    gap, left = _columns(images, examples)
    return gap + rows * (height + gap), left[-1] + images.shape[-1] + gap


def _columns(images: np.ndarray, examples: int) -> tuple[int, list[int]]:
    """The gap between images, and where each column begins; draws stand apart from their original."""
    columns, width = images.shape[1], images.shape[-1]
    gap = max(1, width // 16)
    each = columns // examples
    left = [
        gap + c * (width + gap) + 2 * gap * ((c % each > 0) + 3 * (c // each))
        for c in range(columns)
    ]
    return gap, left


def draw_sheet(
    axes: Axes,
    images: np.ndarray,
    names: Sequence[Any],
    examples: int = 1,
    *,
    interpolation: str = "nearest",
    length: int = 24,
) -> None:
    """Draw images ``(rows, columns, c, h, w)``, with nothing between them.

    Parameters
    ----------
    axes : Axes
        Nothing else stands there.
    images, names
        Same as in `save_samples`.
    examples : int
        Originals in a row, each followed by its own draws.
    interpolation : str
        Matplotlib's.
    length : int
        Of the longest name.
    """
    rows, columns, _, height, width = images.shape
    gap, left = _columns(images, examples)
    sheet = np.zeros((*sheet_size(images, examples), 4))
    for r in range(rows):
        for c in range(columns):
            y = gap + r * (height + gap)
            tile = images[r, c].transpose(1, 2, 0).clip(0, 1)
            sheet[y : y + height, left[c] : left[c] + width, :3] = tile
            sheet[y : y + height, left[c] : left[c] + width, 3] = 1.0
    axes.imshow(sheet, interpolation=interpolation)
    middle = [gap + r * (height + gap) + height / 2 for r in range(rows)]
    axes.set_yticks(middle, [short(str(name), length) for name in names])
    originals = [left[c] + width / 2 for c in range(0, columns, columns // examples)]
    axes.set_xticks(originals, ["original"] * examples)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)


def _sorted(
    policy: Policy, counts: Sequence[float] | None
) -> tuple[list[str], list[str], np.ndarray, np.ndarray | None]:
    classes, operations, table = strengths(policy)
    if counts is None:
        return classes, operations, table, None
    sizes = np.asarray(counts, dtype=np.float64).ravel()
    if len(sizes) != len(classes):
        raise InputError(
            f"counts must hold one number for each of {len(classes)} rows; got {len(sizes)}."
        )
    order = np.argsort(-sizes, kind="stable")
    return [classes[i] for i in order], operations, table[order], sizes[order]


def _height(classes: Sequence[str], operations: Sequence[str]) -> float:
    """Inches: the cells, and the operations' names written upwards."""
    row = 22.0 if len(classes) <= MAX_LABELLED else max(3.0, 660.0 / len(classes))
    return (30.0 + 7.5 * max(map(len, operations)) + row * max(3, len(classes))) / 72


def _heat_map(
    axes: Axes,
    classes: Sequence[str],
    operations: Sequence[str],
    table: np.ndarray,
    sizes: np.ndarray | None,
    fill: str,
    ink: str,
) -> None:
    """Cells as opaque as they are strong, which suits light and dark pages; numbers where they fit."""
    few = len(classes) <= MAX_LABELLED
    numbered = few and len(operations) <= 16
    for (r, c), value in np.ndenumerate(table):
        share = float(np.clip(value, 0.0, 1.0)) * (CELL if few else 1.0)
        text = f"{value:.2f}".lstrip("0") if value < 1 else "1"
        cell(axes, r, c, fill, share, text if numbered else "", 8, ink)
    axes.set_xlim(0, len(operations))
    axes.set_ylim(len(classes), 0)
    axes.set_xticks(np.arange(len(operations)) + 0.5, [o.replace("_", " ") for o in operations])
    axes.xaxis.tick_top()
    axes.tick_params(axis="x", rotation=90, length=0, labelcolor=ink, labelsize=10)
    axes.tick_params(axis="y", length=0, labelcolor=ink, labelsize=10)
    if few:
        names = [
            short(name, 20) + ("" if sizes is None else f" · {sizes[i]:,.0f}")
            for i, name in enumerate(classes)
        ]
        axes.set_yticks(np.arange(len(classes)) + 0.5, names)
    else:
        axes.set_yticks([])
        axes.set_ylabel(
            "class" + ("" if sizes is None else ", from the most to the least frequent")
        )
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
