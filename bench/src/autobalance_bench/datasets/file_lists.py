"""Published lists of image files: the images that they name, and checks of them."""

from __future__ import annotations

import os
import warnings
from collections.abc import Hashable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from autobalance import InputError
from autobalance.data import column, shortened
from autobalance_bench._checks import check_int
from autobalance_bench.datasets.images import MOST_NAMED, ImageSplits, LabelledImages

if TYPE_CHECKING:
    import pandas as pd

SPLITS = ("train", "validation", "test")
"""What the numbers 0, 1 and 2 of a split column mean."""


def check_folder(path: str | Path, *, what: str) -> Path:
    """Return the path of a folder that is there, with ``~`` expanded.

    Raises
    ------
    InputError
        If it is not there, or is a file.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        problem = "is a file" if folder.exists() else "is not there"
        raise InputError(f"The folder {folder} of {what} {problem}. Give the path of the folder.")
    return folder


def describe_folder(folder: Path) -> str:
    """Say what is in a folder, for the message that something else was expected."""
    if not folder.is_dir():
        return "it is not there"
    names = sorted(entry.name for entry in os.scandir(folder) if not entry.name.startswith("."))
    return f"it has: {shortened(names)}" if names else "it is empty"


def drop_missing(images: LabelledImages, *, allowed: int, where: Path) -> LabelledImages:
    """Leave out images whose files are not there; each folder is listed once, no file is opened.

    Parameters
    ----------
    images : LabelledImages
        As a list names them; their names are paths.
    allowed : int
        At most so many may be missing; they are left out with a warning.
    where : Path
        The list that names them, for messages.

    Raises
    ------
    InputError
        If more are missing; up to ten are named.
    """
    check_int("allowed_missing", allowed, least=0)
    contents: dict[str, set[str]] = {}
    absent = []
    for row, path in enumerate(images.names):
        folder, name = os.path.split(path)
        if folder not in contents:
            contents[folder] = set(os.listdir(folder)) if os.path.isdir(folder) else set()
        if name not in contents[folder]:
            absent.append(row)
    if not absent:
        return images
    named = shortened([images.names[row] for row in absent[:MOST_NAMED]])
    more = ", ..." if len(absent) > MOST_NAMED else ""
    text = f"{where} names {len(absent)} of {len(images)} images that are not there: {named}{more}"
    if len(absent) > allowed:
        again = f" from {images.source}" if images.source else ""
        raise InputError(
            f"{text}. Check the folder, get them{again}, or leave them out with "
            f"allowed_missing={len(absent)}."
        )
    warnings.warn(f"{text}; they are left out.", stacklevel=2)
    return images.subset(np.setdiff1d(np.arange(len(images)), absent))


def split_by_number(
    images: LabelledImages, split: np.ndarray, *, where: Path, allowed: int, limit: int | None
) -> ImageSplits:
    """Divide images into training, validation and test by the numbers 0, 1 and 2.

    Parameters
    ----------
    images : LabelledImages
        n images.
    split : ndarray
        Shape ``(n,)``.
    where, allowed
        As for `drop_missing`, of each part.
    limit : int, optional
        As for `LabelledImages.limited`, of each part.

    Raises
    ------
    InputError
        If a part has no image, or more images than allowed are missing.
    """
    parts = []
    for number, name in enumerate(SPLITS):
        rows = np.flatnonzero(split == number)
        if len(rows) == 0:
            raise InputError(
                f"{where} has no row of split {number} ({name}). Get it again from {images.source}."
            )
        part = drop_missing(images.subset(rows), allowed=allowed, where=where)
        parts.append(part.limited(limit))
    return ImageSplits(*parts)


def check_disjoint(lists: Mapping[Path, Iterable[Hashable]], *, source: str) -> None:
    """Check that no image is in two lists, for training and for testing, or in one list twice.

    Parameters
    ----------
    lists : mapping of Path to iterable
        The file of each list, and the images that it names, as paths or as text.
    source : str
        Where to get the lists, for the message.

    Raises
    ------
    InputError
        If an image is; the first is named.
    """
    list_of: dict[Hashable, Path] = {}
    for where, images in lists.items():
        for image in images:
            before = list_of.get(image)
            if before == where:
                raise InputError(
                    f"{where} names the image {image} twice. Take one line out, or get it again from "
                    f"{source}."
                )
            if before is not None:
                raise InputError(
                    f"{before} and {where} both name the image {image}, but no image may be in two "
                    f"parts: tested on what it learned from, a network looks better than it is. Take "
                    f"it out of one, or get both again from {source}."
                )
            list_of[image] = where


def read_codes(
    table: pd.DataFrame, name: str, role: str, allowed: tuple[int, ...], where: Path
) -> np.ndarray:
    """Return a column of whole numbers, each one of `allowed`, shape ``(n,)``, int64.

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
