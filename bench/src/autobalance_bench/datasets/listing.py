"""Lists of image files: which of them are there, and what a folder holds instead."""

from __future__ import annotations

import os
import warnings
from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from autobalance._validation import InputError, whole
from autobalance.data import shortened
from autobalance_bench.datasets.photographs import MOST_NAMED, SPLITS, Photographs, PhotographSplits


def folder_of(path: str | Path, *, what: str) -> Path:
    """The path of a folder that is there.

    Raises
    ------
    InputError
        If it is not, or is a file.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        problem = "is a file" if folder.exists() else "is not there"
        raise InputError(f"The folder {folder} of {what} {problem}. Give the path of the folder.")
    return folder


def contents(folder: Path) -> str:
    """What is in a folder, for the message that something else was expected."""
    names = sorted(entry.name for entry in os.scandir(folder) if not entry.name.startswith("."))
    return f"it has: {shortened(names)}" if names else "it is empty"


def all_different(lists: Mapping[Path, Iterable[Hashable]], *, source: str) -> None:
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
    seen: dict[Hashable, Path] = {}
    for where, images in lists.items():
        for image in images:
            before = seen.get(image)
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
            seen[image] = where


def without_missing(
    images: Photographs, *, allowed: int, where: Path, stacklevel: int = 3
) -> Photographs:
    """The images whose files are there; each folder is listed once, no file is opened.

    Parameters
    ----------
    images : Photographs
        As a list names them.
    allowed : int
        At most so many may be missing; they are left out with a warning.
    where : Path
        The list that names them.
    stacklevel : int
        Of the warning: 3 where a reader calls, whose caller it names.

    Raises
    ------
    InputError
        If more are missing; up to `MOST_NAMED` are named.
    """
    whole("allowed_missing", allowed, least=0)
    absent = _absent(images.files)
    if len(absent) == 0:
        return images
    named = shortened([images.files[i] for i in absent[:MOST_NAMED]])
    more = ", ..." if len(absent) > MOST_NAMED else ""
    text = f"{where} names {len(absent)} of {len(images)} images that are not there: {named}{more}"
    if len(absent) > allowed:
        again = f" from {images.source}" if images.source else ""
        raise InputError(
            f"{text}. Check the folder, get them{again}, or leave them out with "
            f"allowed_missing={len(absent)}."
        )
    warnings.warn(f"{text}; they are left out.", stacklevel=stacklevel)
    return images.subset(np.setdiff1d(np.arange(len(images)), absent))


def splits(
    everything: Photographs, split: np.ndarray, *, where: Path, allowed: int, limit: int | None
) -> PhotographSplits:
    """The parts that `split` numbers 0, 1 and 2, each without missing images and of at most `limit`.

    Parameters
    ----------
    everything : Photographs
        n images.
    split : ndarray
        Shape ``(n,)``.
    where, allowed
        As for `without_missing`, of each part.
    limit : int, optional
        As for `Photographs.limited`.

    Raises
    ------
    InputError
        If a part has no row, or more images are missing.
    """
    parts = []
    for number, name in enumerate(SPLITS):
        rows = np.flatnonzero(split == number)
        if len(rows) == 0:
            raise InputError(
                f"{where} has no row of split {number} ({name}). Get it again from "
                f"{everything.source}."
            )
        images = everything.subset(rows)
        part = without_missing(images, allowed=allowed, where=where, stacklevel=4)
        parts.append(part if limit is None else part.limited(limit))
    return PhotographSplits(*parts)


def _absent(files: Sequence[Any]) -> np.ndarray:
    known: dict[str, set[str]] = {}
    missing = []
    for i, path in enumerate(files):
        folder, name = os.path.split(path)
        if folder not in known:
            try:
                known[folder] = {entry.name for entry in os.scandir(folder)}
            except OSError:  # not there, or not a folder
                known[folder] = set()
        if name not in known[folder]:
            missing.append(i)
    return np.array(missing, dtype=np.int64)
