"""CelebA: faces with attributes (Liu et al., ICCV 2015), here hair colour by sex.

Of the blond faces few are of men, so that networks take one for the other; the usual task with
groups since Sagawa et al. (ICLR 2020). The images are for non-commercial research only.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from autobalance._validation import InputError, whole
from autobalance.data import column, read_table
from autobalance_bench.datasets.listing import contents, folder_of, splits
from autobalance_bench.datasets.photographs import Photographs, PhotographSplits, numbers

SOURCE = "https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html"
TARGET, GROUP = "Blond_Hair", "Male"
COLOURS = ("not blond", "blond")
SEXES = ("female", "male")

# As packed by Kaggle, as torchvision lays them out, as published, and as the code of group DRO does.
ATTRIBUTES = (
    "list_attr_celeba.csv",
    "list_attr_celeba.txt",
    "Anno/list_attr_celeba.txt",
    "data/list_attr_celeba.csv",
)
PARTITION = (
    "list_eval_partition.csv",
    "list_eval_partition.txt",
    "Eval/list_eval_partition.txt",
    "data/list_eval_partition.csv",
)
IMAGES = (
    "img_align_celeba/img_align_celeba",
    "img_align_celeba",
    "Img/img_align_celeba",
    "data/img_align_celeba/img_align_celeba",  # Kaggle's archive unpacked there
    "data/img_align_celeba",
)


def celeba(
    folder: str | Path, *, size: int = 64, limit: int | None = None, allowed_missing: int = 0
) -> PhotographSplits:
    """Training, validation and test photographs: class is Blond_Hair, group is Male.

    Parameters
    ----------
    folder : path
        With the lists of attributes and of the partition, as .csv or .txt, and the folder
        ``img_align_celeba``; in its subfolders Anno, Eval and Img, as published, or in ``data``, as
        the code of group DRO has them, will do.
    size : int
        Height and width, at least 1, that the central square of each 178 x 218 image is scaled to.
    limit : int, optional
        At most so many images of each part, in proportion to class and group. All 202,599 images
        take 10 GB at size 64 if loaded.
    allowed_missing : int
        At most so many images of each part may be missing; they are left out with a warning.

    Returns
    -------
    PhotographSplits
        Of 162,770, 19,867 and 19,962 images, read when they are needed: `load` and `batches`.

    Raises
    ------
    InputError
        If the folder, a list or more images are missing, a list lacks a column or an image or has
        another value, or a part has no row.
    """
    whole("size", size, least=1)
    folder = folder_of(folder, what="CelebA")
    listed, divided = _first(folder, ATTRIBUTES), _first(folder, PARTITION)
    place = _first(folder, IMAGES)
    attributes = _attributes(listed)
    table = pd.DataFrame(
        {
            "image_id": column(attributes, "image_id", "image"),
            TARGET: numbers(attributes, TARGET, "target", (-1, 1), listed),
            GROUP: numbers(attributes, GROUP, "group", (-1, 1), listed),
        }
    )
    partition = _partition(divided)
    split = pd.Series(
        numbers(partition, "partition", "split", (0, 1, 2), divided),
        index=column(partition, "image_id", "image"),
    )
    absent = ~table["image_id"].isin(split.index).to_numpy()
    if absent.any() or split.index.has_duplicates:
        which = (
            f"does not have the image {table['image_id'][int(np.argmax(absent))]}"
            if absent.any()
            else f"has the image {split.index[split.index.duplicated()][0]} twice"
        )
        raise InputError(f"{divided} {which}. Get both lists again from {SOURCE}.")
    everything = Photographs(
        files=tuple(place / str(name) for name in table["image_id"]),
        target=(table[TARGET].to_numpy() > 0).astype(np.int64),
        groups=(table[GROUP].to_numpy() > 0).astype(np.int64),
        class_names=COLOURS,
        group_names=SEXES,
        size=size,
        square=True,
        source=SOURCE,
    )
    rows = split.loc[table["image_id"]].to_numpy()
    return splits(everything, rows, where=divided, allowed=allowed_missing, limit=limit)


def _first(folder: Path, names: Sequence[str]) -> Path:
    """The first of these files or folders that is there."""
    for name in names:
        if (folder / name).exists():
            return folder / name
    raise InputError(
        f"{folder} has none of {', '.join(names)}; {contents(folder)}. Get CelebA's aligned and "
        f"cropped images and its lists from {SOURCE}."
    )


def _attributes(path: Path) -> pd.DataFrame:
    """One row per image; the .txt file starts with their number and a header without "image_id"."""
    if path.suffix == ".csv":
        return read_table(path)
    with path.open(encoding="utf-8") as stream:
        stream.readline()
        names = stream.readline().split()
    return _delimited(path, ["image_id", *names], skip=2)


def _partition(path: Path) -> pd.DataFrame:
    """One row per image; the .txt file has no header."""
    return (
        read_table(path) if path.suffix == ".csv" else _delimited(path, ["image_id", "partition"])
    )


def _delimited(path: Path, names: list[str], skip: int = 0) -> pd.DataFrame:
    """A list whose fields are separated by spaces, one or more."""
    try:
        table = pd.read_csv(path, sep=r"\s+", header=None, skiprows=skip)
    except (ValueError, UnicodeDecodeError) as error:  # pandas' own errors are ValueErrors
        reason = str(error).splitlines()[0].removesuffix(".")
        raise InputError(f"{path} cannot be read: {reason}. Get it again from {SOURCE}.") from None
    if table.shape[1] != len(names):
        raise InputError(
            f"{path} has {table.shape[1]} fields in a row, but {len(names)} were expected. Get it "
            f"again from {SOURCE}."
        )
    return table.set_axis(names, axis=1)
