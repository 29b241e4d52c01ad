"""Labelled photographs in folders, with groups: their files, and their pixels as they are needed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from PIL import Image

from autobalance.checks import InputError, whole
from autobalance.data.batches import ArrayData, Batch
from autobalance.data.tables import column

SPLITS = ("train", "validation", "test")
"""What the numbers 0, 1 and 2 of a split column mean, in Waterbirds and in CelebA."""


@dataclass(frozen=True)
class Photographs:
    """Image files with classes and groups; nothing is decoded before it is asked for.

    Attributes
    ----------
    files : tuple of Path
        Of n images, in any format that Pillow reads.
    target, groups : ndarray
        Class and group indices, shape ``(n,)``, int64.
    class_names, group_names : tuple of str
        By index.
    size : int
        Height and width that images are scaled to (bilinear, antialiased).
    square : bool
        Whether the largest square around the centre is scaled, or all of the image.
    source : str
        Where the images come from, for the message that one is missing.
    """

    files: tuple[Path, ...]
    target: np.ndarray
    groups: np.ndarray
    class_names: tuple[str, ...]
    group_names: tuple[str, ...]
    size: int
    square: bool
    source: str

    def __len__(self) -> int:
        return len(self.files)

    def limited(self, limit: int, *, seed: int = 0) -> Photographs:
        """At most `limit` of the images, drawn in proportion to the cells to within one image.

        A cell (class and group) of fewer than one image in proportion may lose all it has.
        """
        whole("limit", limit, least=1)
        n = len(self)
        if n <= limit:
            return self
        shuffled = np.random.default_rng(seed).permutation(n)
        cells = self.groups * len(self.class_names) + self.target
        by_cell = shuffled[np.argsort(cells[shuffled], kind="stable")]
        kept = np.sort(by_cell[(2 * np.arange(limit) + 1) * n // (2 * limit)])
        return replace(
            self,
            files=tuple(self.files[i] for i in kept),
            target=self.target[kept],
            groups=self.groups[kept],
        )

    def pixels(self) -> np.ndarray:
        """All images, shape ``(n, 3, size, size)``, uint8: a quarter of what `load` takes.

        Raises
        ------
        InputError
            If an image is missing or cannot be decoded.
        """
        return self._decoded(0, len(self))

    def load(self) -> ArrayData:
        """All images in memory, float32 in [0, 1]: ``12 * n * size * size`` bytes.

        Raises
        ------
        InputError
            As for `pixels`.
        """
        inputs = np.empty((len(self), 3, self.size, self.size), dtype=np.float32)
        for i in range(len(self)):
            np.divide(self._decoded(i, i + 1)[0], np.float32(255.0), out=inputs[i])
        return ArrayData.of(
            inputs,
            self.target,
            groups=self.groups,
            num_classes=len(self.class_names),
            num_groups=len(self.group_names),
        )

    def batches(self, size: int = 256) -> Iterator[Batch]:
        """The images in order, `size` at a time (the last batch may be smaller).

        Only one batch is in memory at a time. Inputs are as those of `load`.

        Raises
        ------
        InputError
            As for `pixels`.
        """
        whole("size", size, least=1)
        for start in range(0, len(self), size):
            part = slice(start, start + size)
            yield Batch(
                torch.from_numpy(self._decoded(start, start + size)).float() / 255.0,
                torch.from_numpy(self.target[part]),
                torch.from_numpy(self.groups[part]),
            )

    def _decoded(self, start: int, stop: int) -> np.ndarray:
        files = self.files[start:stop]
        pixels = np.empty((len(files), 3, self.size, self.size), dtype=np.uint8)
        for i, path in enumerate(files):
            pixels[i] = self._decode(path)
        return pixels

    def _decode(self, path: Path) -> np.ndarray:
        """One image, shape ``(3, size, size)``, uint8."""
        if not path.is_file():
            raise InputError(f"The image {path} is not there. Get it again from {self.source}.")
        try:
            with Image.open(path) as image:
                cut = image.crop(_central_square(*image.size)) if self.square else image
                scaled = cut.convert("RGB").resize(
                    (self.size, self.size), Image.Resampling.BILINEAR
                )
        except (OSError, SyntaxError) as error:  # Pillow raises the latter for broken PNG files
            raise InputError(
                f"The image {path} cannot be read: {error}. Get it again from {self.source}."
            ) from None
        return np.asarray(scaled).transpose(2, 0, 1)


class PhotographSplits(NamedTuple):
    """The three parts that a data set is published in."""

    train: Photographs
    validation: Photographs
    test: Photographs


def _central_square(width: int, height: int) -> tuple[int, int, int, int]:
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    return left, top, left + side, top + side


def splits(
    everything: Photographs, split: np.ndarray, *, limit: int | None, where: Path
) -> PhotographSplits:
    """The parts that `split` numbers 0, 1 and 2, each limited to `limit` images.

    Raises
    ------
    InputError
        If a part has no row.
    """
    parts = []
    for number, name in enumerate(SPLITS):
        rows = np.flatnonzero(split == number)
        if len(rows) == 0:
            raise InputError(
                f"{where} has no row of split {number} ({name}). Get it again from "
                f"{everything.source}."
            )
        part = replace(
            everything,
            files=tuple(everything.files[i] for i in rows),
            target=everything.target[rows],
            groups=everything.groups[rows],
        )
        parts.append(part if limit is None else part.limited(limit))
    return PhotographSplits(*parts)


def numbers(
    table: pd.DataFrame, name: str, role: str, allowed: tuple[int, ...], where: Path
) -> np.ndarray:
    """A column of whole numbers, each one of `allowed`, shape ``(n,)``, int64.

    Raises
    ------
    InputError
        If the column is absent, or has a missing or another value.
    """
    values = column(table, name, role)
    bad = ~values.isin(allowed).to_numpy()
    if bad.any():
        row = int(np.argmax(bad))
        raise InputError(
            f"{where}: {name} must be one of {', '.join(map(str, allowed))}; got "
            f"{values.iloc[row]!r} in row {row + 1}."
        )
    return values.to_numpy().astype(np.int64)
