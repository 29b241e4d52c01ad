"""Images of one's own: a folder per class, or a table of paths and labels."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from autobalance._validation import InputError, whole
from autobalance.data import column, numbered, read_table, shortened
from autobalance_bench.datasets.listing import contents, folder_of, without_missing
from autobalance_bench.datasets.photographs import Photographs

ENDINGS = (
    ".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".pbm",
)  # fmt: skip
"""Of the files that `class_folders` takes for images, in any case."""

SPLIT_NAMES = {"train", "training", "val", "valid", "validation", "test", "testing"}


def class_folders(
    folder: str | Path,
    *,
    size: int = 224,
    square: bool = True,
    class_names: Sequence[str] | None = None,
    limit: int | None = None,
) -> Photographs:
    """Images in one folder per class, ``folder/class/.../image.jpg``.

    Parameters
    ----------
    folder : path
        Its subfolders are the classes, numbered in the order of their names; an image may lie any
        deeper. Hidden folders and files of other `ENDINGS` are passed over.
    size : int
        Height and width that images are scaled to, at least 1.
    square : bool
        Whether the largest square around the centre is scaled, or all of the image.
    class_names : sequence of str, optional
        How to number the classes, for a test folder the `class_names` of the training folder.
        A class without a folder is then in order.
    limit : int, optional
        At most so many images, in proportion to the classes.

    Returns
    -------
    Photographs
        Read when they are needed: `load`, `batches`, or `extract_features` of it.

    Raises
    ------
    InputError
        If the folder is missing or has another layout, a class has no image or is none of
        `class_names`, or there is only one class.
    """
    whole("size", size, least=1)
    folder = folder_of(folder, what="class folders")
    with os.scandir(folder) as entries:
        found = sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))
    if not found:
        raise InputError(
            f"{folder} has no folder in it, but one per class was expected; {contents(folder)}. "
            "Sort the images into folders, or list them in a CSV for image_table."
        )
    if set(map(str.lower, found)) <= SPLIT_NAMES:
        raise InputError(
            f"The folders in {folder} are parts of a data set, not classes: {', '.join(found)}. "
            f"Give one of them, such as {folder / found[0]}."
        )
    members = {name: _images(folder / name) for name in found}
    empty = [name for name in found if not members[name]]
    if empty:
        raise InputError(
            f"{len(empty)} of {len(found)} class folders in {folder} hold no image: "
            f"{shortened(empty)}. Fill or remove them; images end in {', '.join(ENDINGS)}."
        )
    labels = [name for name in found for _ in members[name]]
    target, names = numbered(labels, class_names, what="class", where=str(folder))
    images = Photographs(
        files=tuple(path for name in found for path in members[name]),
        target=target,
        groups=None,
        class_names=names,
        group_names=(),
        size=size,
        square=square,
        source="",
    )
    return images if limit is None else images.limited(limit)


def image_table(
    table: str | Path | pd.DataFrame,
    *,
    folder: str | Path | None = None,
    path: str = "path",
    target: str = "target",
    groups: str | None = None,
    size: int = 224,
    square: bool = True,
    class_names: Sequence[str] | None = None,
    group_names: Sequence[str] | None = None,
    allowed_missing: int = 0,
    limit: int | None = None,
) -> Photographs:
    """Images that a table lists, one in a row, with their class and maybe their group.

    Parameters
    ----------
    table : path or DataFrame
        A CSV or Parquet file, or rows of one, those of a split for example.
    folder : path, optional
        What relative paths start from; by default the table's own folder.
    path, target, groups : str
        Names of the columns. Labels are names or whole numbers, with gaps or without.
    size, square, limit
        As for `class_folders`.
    class_names, group_names : sequence of str, optional
        How to number them, for test data those of the training data. By default those that occur
        are numbered in order.
    allowed_missing : int
        At most so many images may be missing; they are left out with a warning.

    Returns
    -------
    Photographs
        Read when they are needed. An image in several rows is told by a warning, and kept.

    Raises
    ------
    InputError
        If the table cannot be read or lacks a column or value, more images are missing, a label is
        none of the names given, or there is only one class or group.
    """
    whole("size", size, least=1)
    if isinstance(table, pd.DataFrame):
        where, rows = Path("The table"), table.reset_index(drop=True)
        base = Path.cwd() if folder is None else folder_of(folder, what="images")
    else:
        where = Path(table).expanduser()
        rows = read_table(where)
        base = where.parent if folder is None else folder_of(folder, what="images")
    files = column(rows, path, "image").astype(str)
    classes, names = numbered(
        column(rows, target, "target"), class_names, what="class", where=str(where)
    )
    cells: np.ndarray | None = None
    sets: tuple[str, ...] = ()
    if groups is not None:
        cells, sets = numbered(
            column(rows, groups, "group"), group_names, what="group", where=str(where)
        )
    paths = tuple(base / name for name in files)
    repeated = pd.Index(paths).duplicated()
    if repeated.any():
        warnings.warn(
            f"{where} names {repeated.sum()} of {len(paths)} images again, the first "
            f"{paths[int(np.argmax(repeated))]}. Drop these rows, unless they are to weigh more: of a "
            "split, one may be for training and the same one for testing.",
            stacklevel=2,
        )
    images = Photographs(
        files=paths,
        target=classes,
        groups=cells,
        class_names=names,
        group_names=sets,
        size=size,
        square=square,
        source="",
    )
    images = without_missing(images, allowed=allowed_missing, where=where)
    return images if limit is None else images.limited(limit)


def _images(folder: Path) -> list[Path]:
    found = []
    for inside, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [
            Path(inside, name)
            for name in sorted(names)
            if name.lower().endswith(ENDINGS) and not name.startswith(".")
        ]
    return found
