"""ImageNet-LT: ImageNet's 1,000 classes with 1,280 down to 5 images (Liu et al., CVPR 2019).

ImageNet itself needs an account, so nothing is downloaded: get its images from image-net.org, and
the three lists from the authors of ImageNet-LT.
"""

from __future__ import annotations

import warnings
from pathlib import Path, PurePosixPath

import numpy as np

from autobalance import InputError
from autobalance.data import shortened
from autobalance_bench.datasets.file_lists import (
    check_disjoint,
    check_folder,
    describe_folder,
    drop_missing,
)
from autobalance_bench.datasets.images import ImageSplits, LabelledImages

SOURCE = "https://github.com/zhmiao/OpenLongTailRecognition-OLTR"
IMAGES = "https://image-net.org"
LISTS = ("ImageNet_LT_train.txt", "ImageNet_LT_val.txt", "ImageNet_LT_test.txt")
NUM_CLASSES = 1_000
LENGTHS = (115_846, 20_000, 50_000)
"""Number of images in each list as published."""

INSIDE = ("", "ILSVRC/Data/CLS-LOC", "Data/CLS-LOC")
"""Where the folders train and val are below the folder given: as unpacked, or as Kaggle packs it."""


def load_imagenet_lt(
    folder: str | Path,
    *,
    lists: str | Path | None = None,
    size: int = 224,
    limit: int | None = None,
    allowed_missing: int = 0,
) -> ImageSplits:
    """Index ImageNet-LT's training, validation and test images.

    Parameters
    ----------
    folder : path
        ImageNet: ``train/n01440764/x.JPEG`` and ``val/n01440764/x.JPEG``. Validation images that
        lie in ``val`` itself, as published, are found too.
    lists : path, optional
        The folder of ``ImageNet_LT_train.txt``, ``..._val.txt`` and ``..._test.txt``, with lines
        ``train/n01440764/x.JPEG 0``. By default the images' own.
    size : int
        Height and width that the central square of each image is scaled to.
    limit : int, optional
        At most so many images of each part, in proportion to the classes; small classes can lose
        all of their images.
    allowed_missing : int
        At most so many images of each part may be missing; they are left out with a warning.

    Returns
    -------
    ImageSplits
        Of 115,846, 20,000 and 50,000 images, decoded when they are needed; the latter two are
        balanced. Classes are named by their folders (WordNet's numbers).

    Raises
    ------
    InputError
        If a folder, a list or more images are missing, a line is not a path and a class, class
        numbers have gaps or do not go with the folders, or an image is listed twice, in one list
        or in two. Lists of all 1,000 classes with other numbers of images bring a warning.
    """
    folder = check_folder(folder, what="ImageNet")
    place = folder if lists is None else check_folder(lists, what="ImageNet-LT's lists")
    paths = [place / name for name in LISTS]
    absent = [path.name for path in paths if not path.is_file()]
    if absent:
        raise InputError(
            f"{place} lacks {', '.join(absent)}; {describe_folder(place)}. Get the lists from "
            f"{SOURCE}, or name their folder with lists=."
        )
    root = next((folder / name for name in INSIDE if (folder / name / "train").is_dir()), None)
    if root is None:
        raise InputError(
            f"{folder} must hold ImageNet's folder train; {describe_folder(folder)}. Get it from "
            f"{IMAGES}."
        )
    listed = [_read_list(path) for path in paths]
    names = _name_classes(*listed[0], paths[0])
    flat = not any(entry.is_dir() for entry in _entries(root / "val"))
    files = [[root / _published(path, flat) for path in images] for images, _ in listed]
    check_disjoint(dict(zip(paths, files, strict=True)), source=SOURCE)
    parts = []
    for path, part, (_, targets), length in zip(paths, files, listed, LENGTHS, strict=True):
        if len(names) == NUM_CLASSES and len(part) != length:
            warnings.warn(
                f"{path} has {len(part):,} images; the published list has {length:,}. If it is not "
                f"your own, it may be cut: get it again from {SOURCE}.",
                stacklevel=2,
            )
        if targets.max() >= len(names):
            raise InputError(
                f"{path} has class {targets.max()}, but {LISTS[0]} only 0 to {len(names) - 1}. Get "
                f"the lists together, from {SOURCE}."
            )
        images = LabelledImages.of_files(part, targets, names, size=size, source=IMAGES)
        images = drop_missing(images, allowed=allowed_missing, where=path)
        parts.append(images.limited(limit))
    return ImageSplits(*parts)


def _entries(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


def _published(path: str, flat: bool) -> str:
    """Where an image is, if the validation images were not sorted into folders of classes."""
    parts = PurePosixPath(path).parts
    return f"val/{parts[-1]}" if flat and parts[0] == "val" else path


def _read_list(path: Path) -> tuple[list[str], np.ndarray]:
    """Paths and class indices ``(n,)`` of a list."""
    paths, target = [], []
    # As the published readers split; a byte that is no UTF-8 stays what it is in a file's name.
    with path.open(encoding="utf-8", errors="surrogateescape") as stream:
        for number, line in enumerate(stream, 1):
            if not line.strip():
                continue
            *name, label = line.strip().rsplit(maxsplit=1)
            if not name or not label.isdecimal():
                raise InputError(
                    f"{path}, line {number}: expected a path and a class number, such as "
                    f"'train/n01440764/x.JPEG 0'; got {line.strip()[:80]!r}. Get it from {SOURCE}."
                )
            paths.append(name[0])
            target.append(int(label))
    if not paths:
        raise InputError(f"{path} is empty. Get it from {SOURCE}.")
    return paths, np.array(target, dtype=np.int64)


def _name_classes(paths: list[str], target: np.ndarray, where: Path) -> tuple[str, ...]:
    """The folder of each class; every class has one, and it has images."""
    folders: dict[int, str] = {}
    for path, k in zip(paths, target.tolist(), strict=True):
        name = PurePosixPath(path).parent.name
        if folders.setdefault(k, name) != name:
            raise InputError(
                f"{where} gives class {k} to the folders {folders[k]} and {name}. Get it from "
                f"{SOURCE}."
            )
    gaps = sorted(set(range(max(folders) + 1)) - folders.keys())
    if gaps:
        raise InputError(
            f"{where} has classes up to {max(folders)}, but no image of {len(gaps)} of them: "
            f"{shortened(gaps)}. Get all of the list from {SOURCE}."
        )
    return tuple(folders[k] for k in range(len(folders)))
