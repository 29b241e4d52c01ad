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
from autobalance.report.drawing import WIDTH, Picture, new_figure, picture
from autobalance.report.formats import phrase, short
from autobalance.report.svg import INK, house_style

FORMAT = "autobalance-samples"
MOST_ROWS, LARGEST = 12, 48
MOST_BYTES = 400_000
"""Of the pixels, which a page holds in a third more at worst."""


@dataclass(frozen=True, eq=False)
class Sheet:
    """Images of a few classes, each beside its augmented versions."""

    rows: list[tuple[int, int | None]]  # class, and group where the augmentation has rows per group
    images: np.ndarray  # shape (rows, columns, c, h, w), in [0, 1]
    examples: int  # training images in a row; each stands before its own draws


def rows_that_fit(count: int, columns: int, channels: int, size: int) -> int:
    """How many rows of images, `size` pixels wide and high, a page has room for."""
    return max(1, min(count, MOST_ROWS, MOST_BYTES // (columns * channels * size * size)))


def pack_sheet(sheet: Sheet) -> bytes:
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


def unpack_sheet(record: Any) -> Sheet | None:
    """Inverse of `pack_sheet`, from the parsed file; None where it is none, or altered."""
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


def samples_picture(sheet: Sheet, names: Sequence[str], classes: int, place: str = "") -> Picture:
    """The sheet for the report's page, its rows by `names`; `classes` is how many there are in all."""
    draws = sheet.images.shape[1] // sheet.examples - 1
    many = f"{sheet.examples} training images" if sheet.examples > 1 else "a training image"
    above = ", ".join(short(name, 40) for name in names)
    described = phrase("figure.samples_alt", rows=len(names), many=many, draws=draws, names=above)
    caption = phrase("figure.samples", many=many[:1].upper() + many[1:], draws=draws)
    if classes > len(names):
        caption += f" {len(names)} of {classes:,} classes, from the most to the least frequent."
    pixels, left, top = _tile(sheet)
    height, width = sheet.images.shape[-2:]
    with house_style():
        figure = new_figure(40.0 + (WIDTH - 100.0) * pixels.shape[0] / pixels.shape[1])
        axes = figure.add_subplot()
        # "none" leaves the pixels to the browser, which "nearest" would draw anew.
        axes.imshow(pixels, interpolation="none")
        middle = [y + height / 2 for y in top]
        axes.set_yticks(middle, [short(str(name), 14) for name in names])
        originals = [x + width / 2 for x in left[:: draws + 1]]
        axes.set_xticks(originals, ["original"] * sheet.examples)
        axes.xaxis.tick_top()
        axes.tick_params(length=0, labelcolor=INK, labelsize=10)
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        title = "Training images, augmented"
        return picture(figure, f"{place}fig-samples", title, described, caption)


def _tile(sheet: Sheet) -> tuple[np.ndarray, list[int], list[int]]:
    """All images as one, with nothing between them, and where each column and row begins.

    The draws stand apart from their original.
    """
    rows, columns, _, height, width = sheet.images.shape
    gap, each = max(1, width // 16), columns // sheet.examples
    left = [
        gap + c * (width + gap) + 2 * gap * ((c % each > 0) + 3 * (c // each))
        for c in range(columns)
    ]
    top = [gap + r * (height + gap) for r in range(rows)]
    pixels = np.zeros((top[-1] + height + gap, left[-1] + width + gap, 4))
    for r, y in enumerate(top):
        for c, x in enumerate(left):
            image = sheet.images[r, c].transpose(1, 2, 0).clip(0, 1)
            pixels[y : y + height, x : x + width, :3] = image
            pixels[y : y + height, x : x + width, 3] = 1.0
    return pixels, left, top
