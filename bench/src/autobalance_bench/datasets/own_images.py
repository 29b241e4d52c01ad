"""Images of one's own: a folder per class, or a table of paths and labels."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pandas as pd

from autobalance import InputError
from autobalance.data import column, read_table, shortened
from autobalance_bench.datasets._optional import import_optional
from autobalance_bench.datasets.file_lists import check_folder, describe_folder, drop_missing
from autobalance_bench.datasets.images import LabelledImages
from autobalance_bench.datasets.numbering import numbered

SPLIT_NAMES = {"train", "training", "val", "valid", "validation", "test", "testing"}


def read_class_folders(
    folder: str | Path, *, size: int = 224, square: bool = True, limit: int | None = None
) -> LabelledImages:
    """Index images in one folder per class, ``folder/class/.../image.jpg``.

    Parameters
    ----------
    folder : path
        Its subfolders are the classes, numbered in the order of their names; an image may lie any
        deeper. Hidden folders and files are passed over.
    size : int
        Height and width that images are scaled to.
    square : bool
        Whether the largest square around the centre is scaled, or all of the image.
    limit : int, optional
        At most so many images, in proportion to the classes.

    Raises
    ------
    InputError
        If torchvision is not installed, the folder is missing, has no folder in it or those of
        training and testing, or a class has no image.
    """
    folder = check_folder(folder, what="class folders")
    datasets = import_optional("torchvision.datasets", "Reading class folders")
    try:
        listed = datasets.ImageFolder(folder, allow_empty=True)
    except FileNotFoundError:
        raise InputError(
            f"{folder} has no folder in it, but one per class was expected; "
            f"{describe_folder(folder)}. Sort the images into folders, or list them in a table."
        ) from None
    names = [name for name in listed.classes if not name.startswith(".")]
    if set(map(str.lower, names)) <= SPLIT_NAMES:
        raise InputError(
            f"The folders in {folder} are parts of a data set, not classes: {', '.join(names)}. "
            f"Give one of them, such as {folder / names[0]}."
        )
    # torchvision counts hidden folders and files in, such as .ipynb_checkpoints and macOS's ._x.jpg.
    paths = [Path(path) for path, _ in listed.samples]
    paths = [p for p in paths if not any(n.startswith(".") for n in p.relative_to(folder).parts)]
    index = {name: k for k, name in enumerate(names)}
    targets = np.array([index[p.relative_to(folder).parts[0]] for p in paths], dtype=np.int64)
    empty = [names[k] for k in np.setdiff1d(np.arange(len(names)), targets)]
    if empty:
        raise InputError(
            f"{len(empty)} of {len(names)} class folders in {folder} hold no image: "
            f"{shortened(empty)}. Fill or remove them; images end in "
            f"{', '.join(datasets.folder.IMG_EXTENSIONS)}."
        )
    return LabelledImages.of_files(paths, targets, names, size=size, square=square).limited(limit)


def read_image_table(
    table: str | Path,
    *,
    folder: str | Path | None = None,
    path: str = "path",
    target: str = "target",
    groups: str | None = None,
    size: int = 224,
    square: bool = True,
    allowed_missing: int = 0,
    limit: int | None = None,
) -> LabelledImages:
    """Index images that a table lists, one in a row, with their class and perhaps their group.

    Parameters
    ----------
    table : path
        A CSV or Parquet file.
    folder : path, optional
        What relative paths start from; by default the table's own folder.
    path, target, groups : str
        Names of the columns. Labels are names or whole numbers, with gaps or without; they are
        numbered in order.
    size, square, limit
        As for `read_class_folders`.
    allowed_missing : int
        At most so many images may be missing; they are left out with a warning.

    Returns
    -------
    LabelledImages
        Decoded when they are needed. An image in several rows brings a warning, and stays.

    Raises
    ------
    InputError
        If the table cannot be read or lacks a column or value, more images are missing, or there is
        only one class or group.
    """
    where = Path(table).expanduser()
    rows = read_table(where)
    base = where.parent if folder is None else check_folder(folder, what="images")
    files = [base / name for name in column(rows, path, "image").astype(str)]
    targets, names = numbered(column(rows, target, "target"), None, what="class", where=str(where))
    cells: np.ndarray | None = None
    group_names: tuple[str, ...] = ()
    if groups is not None:
        values = column(rows, groups, "group")
        cells, group_names = numbered(values, None, what="group", where=str(where))
    repeated = pd.Index(files).duplicated()
    if repeated.any():
        warnings.warn(
            f"{where} names {repeated.sum()} of {len(files)} images again, the first "
            f"{files[int(np.argmax(repeated))]}. Drop these rows, unless they are to weigh more: of a "
            "split, one may be for training and the same one for testing.",
            stacklevel=2,
        )
    images = LabelledImages.of_files(
        files,
        targets,
        names,
        groups=cells,
        group_names=group_names,
        size=size,
        square=square,
    )
    return drop_missing(images, allowed=allowed_missing, where=where).limited(limit)
