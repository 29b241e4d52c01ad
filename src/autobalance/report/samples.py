"""Training images beside their augmented versions: the file that keeps them, and the page's picture.

Imports no torch.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib.image
import numpy as np

from autobalance.records import to_json
from autobalance.report.augmentation import draw_sheet, sheet_size
from autobalance.report.drawing import WIDTH, Picture, new_figure, picture
from autobalance.report.formats import short
from autobalance.report.svg import INK, house_style

FORMAT = "autobalance-samples"
MOST_ROWS, LARGEST = 12, 48
MOST_BYTES = 400_000
"""Of the pixels, which a page holds in a third more at worst."""


@dataclass(frozen=True, eq=False)
class Sheet:
    """Images of a few classes, each beside its augmented versions.

    Attributes
    ----------
    rows : list of (int, int or None)
        Class, and group where the augmentation has rows per group.
    images : ndarray
        Shape ``(rows, columns, c, h, w)``, in [0, 1].
    examples : int
        Training images in a row; each stands before its own draws.
    """

    rows: list[tuple[int, int | None]]
    images: np.ndarray
    examples: int


def rows_that_fit(count: int, columns: int, channels: int, size: int) -> int:
    """How many rows of images, `size` pixels wide and high, a page has room for."""
    return max(1, min(count, MOST_ROWS, MOST_BYTES // (columns * channels * size * size)))


def packed(sheet: Sheet) -> bytes:
    """``samples.json``: the images as one PNG, without gaps, and what its rows are."""
    rows, columns, channels, height, width = sheet.images.shape
    tiles = sheet.images.transpose(0, 3, 1, 4, 2).reshape(rows * height, columns * width, channels)
    pixels = np.round(255 * tiles.clip(0, 1)).astype(np.uint8)
    stream = io.BytesIO()
    matplotlib.image.imsave(stream, np.repeat(pixels, 4 - channels, 2)[..., :3], format="png")
    record = {
        "format": FORMAT,
        "version": 1,
        "rows": [list(row) for row in sheet.rows],
        "columns": columns,
        "examples": sheet.examples,
        "png": base64.b64encode(stream.getvalue()).decode(),
    }
    return to_json(record).encode()


def unpacked(record: Any) -> Sheet | None:
    """Inverse of `packed`, from the parsed file; None where it is none, or altered."""
    if not isinstance(record, dict) or record.get("format") != FORMAT or record.get("version") != 1:
        return None
    try:
        columns, examples = int(record["columns"]), int(record["examples"])
        rows = [(int(y), None if g is None else int(g)) for y, g in record["rows"]]
        content = base64.b64decode(record["png"], validate=True)
        pixels = matplotlib.image.imread(io.BytesIO(content), format="png")
        height, width = pixels.shape[0] // len(rows), pixels.shape[1] // columns
        tiles = pixels[..., :3].reshape(len(rows), height, columns, width, 3)
    except (LookupError, TypeError, ValueError, ArithmeticError, OSError, SyntaxError):
        return None
    whole = 0 < examples < columns and columns % examples == 0
    if not whole or tiles.size > 4 * MOST_BYTES or min(y for y, _ in rows) < 0:
        return None
    return Sheet(rows, tiles.transpose(0, 2, 4, 1, 3).astype(np.float64), examples)


def samples_picture(
    sheet: Sheet, names: Sequence[str], classes: int | None = None, place: str = ""
) -> Picture:
    """The sheet for the report's page.

    Parameters
    ----------
    sheet : Sheet
        What to draw.
    names : sequence of str
        Of its rows.
    classes : int, optional
        How many rows there are in all, to say that others are left out.
    place : str
        In front of the picture's identifiers; see `autobalance.report.record.Run`.
    """
    draws = sheet.images.shape[1] // sheet.examples - 1
    many = f"{sheet.examples} training images" if sheet.examples > 1 else "a training image"
    described = (
        f"Of each of {len(names)} classes {many}, each followed by {draws} versions as training "
        f"saw them. From the top: {', '.join(short(name, 40) for name in names)}."
    )
    caption = (
        f"{many[:1].upper()}{many[1:]} of each class, and {draws} random draws of the augmentation at the "
        "strength learned. A column has the same random numbers in every row, so rows differ by what was "
        "learned."
    )
    if classes is not None and classes > len(names):
        caption += f" {len(names)} of {classes:,} classes, from the most to the least frequent."
    with house_style():
        rows, across = sheet_size(sheet.images, sheet.examples)
        axes = new_figure(40.0 + (WIDTH - 100.0) * rows / across).add_subplot()
        # "none" leaves the pixels to the browser, which "nearest" would draw anew.
        draw_sheet(axes, sheet.images, names, sheet.examples, interpolation="none", length=14)
        axes.tick_params(labelcolor=INK, labelsize=10)
        title = "Training images, augmented"
        return picture(axes.get_figure(True), f"{place}fig-samples", title, described, caption)
