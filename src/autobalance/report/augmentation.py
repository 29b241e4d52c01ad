"""A learned augmentation policy as pictures, from its record. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes

from autobalance._validation import InputError
from autobalance.report.drawing import (
    BY_FREQUENCY,
    CELL,
    MAX_LABELLED,
    Picture,
    heat_map,
    new_figure,
    picture,
)
from autobalance.report.formats import phrase, short
from autobalance.report.run import Run
from autobalance.report.samples import samples_picture, unpack_sheet
from autobalance.report.svg import AFTER, house_style

Policy = Mapping[str, Mapping[str, Mapping[str, float]]]
"""Class, then operation, then "probability" and "magnitude": `Augmentation.per_class`."""


def augmentation_pictures(run: Run) -> list[Picture]:
    """The policy, and where the run kept some images what it does to them."""
    if not run.policy:
        return []
    # Training examples of each row, unless the rows are not those of the counts.
    counts = run.counts.ravel() if len(run.policy) == run.counts.size else run.class_totals
    known = len(counts) == len(run.policy)
    figures = [policy_picture(run.policy, counts.tolist() if known else None, run.place)]
    sheet = unpack_sheet(run.samples)
    if sheet is not None:
        names = run.samples["names"]
        figures.append(samples_picture(sheet, names, len(run.policy), run.place))
    return figures


def strengths(policy: Policy) -> tuple[list[str], list[str], np.ndarray]:
    """Classes, operations and probability times magnitude, ``(classes, operations)``.

    Operations without a magnitude count with their probability.

    Raises
    ------
    InputError
        If the table is empty, or classes name other operations than the first one does.
    """
    rows = list(policy.values())
    operations = list(rows[0]) if rows else []
    if not operations or any(list(row) != operations for row in rows):
        raise InputError(
            "The policy must give every class the same operations, at least one; "
            "Augmentation.per_class makes such a table."
        )
    table = [[row[o]["probability"] * row[o].get("magnitude", 1.0) for o in row] for row in rows]
    return [str(name) for name in policy], operations, np.array(table, dtype=np.float64)


def policy_picture(
    policy: Policy, counts: Sequence[float] | None = None, place: str = ""
) -> Picture:
    """The heat map of class against operation, the most frequent class first where `counts` says so.

    `counts` are the training examples of each row, `place` is `Run.place`.
    """
    classes, operations, table = strengths(policy)
    sizes = [f" · {n:,.0f}" for n in counts or []] or [""] * len(classes)
    if counts is not None:
        order = np.argsort(-np.asarray(counts, dtype=float), kind="stable")
        classes, sizes = ([texts[i] for i in order] for texts in (classes, sizes))
        table = table[order]
    row = 22.0 if len(classes) <= MAX_LABELLED else max(3.0, 660.0 / len(classes))
    height = 30.0 + 7.5 * max(map(len, operations)) + row * max(3, len(classes))
    strongest = np.unravel_index(int(table.argmax()), table.shape)
    described = phrase(
        "figure.augmentation_alt", rows=len(classes), count=len(operations),
        operation=operations[strongest[1]], name=classes[strongest[0]], most=table.max(),
    )  # fmt: skip
    caption = phrase(f"figure.augmentation{'' if counts is None else '_sorted'}")
    with house_style():
        figure = new_figure(height)
        names = [short(name, 20) + size for name, size in zip(classes, sizes, strict=True)]
        axes = figure.add_subplot()
        _draw_heat_map(axes, names, operations, table)
        if len(classes) > MAX_LABELLED:
            axes.set_yticks([])
            axes.set_ylabel("class" if counts is None else BY_FREQUENCY)
        name = f"{place}fig-augmentation"
        return picture(figure, name, "Augmentation by class", described, caption)


def _draw_heat_map(
    axes: Axes, names: Sequence[str], operations: Sequence[str], table: np.ndarray
) -> None:
    """Strong cells are opaque; numbers stand in them where they fit."""
    few = len(names) <= MAX_LABELLED
    numbered = few and len(operations) <= 16
    texts = [
        [(f"{v:.2f}".lstrip("0") if v < 1 else "1") if numbered else "" for v in row]
        for row in table
    ]
    heat_map(axes, table, AFTER, texts, 8, CELL if few else 1.0)
    axes.set_xticks(np.arange(len(operations)) + 0.5, [o.replace("_", " ") for o in operations])
    axes.set_yticks(np.arange(len(names)) + 0.5, names)
    axes.xaxis.tick_top()
    axes.tick_params(axis="x", rotation=90)
    axes.tick_params(labelsize=10)
