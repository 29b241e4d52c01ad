"""ImageNet-LT: ImageNet's 1,000 classes with 1,280 down to 5 images (Liu et al., CVPR 2019).

ImageNet itself needs an account, so nothing is downloaded: get its images from image-net.org, and
the three lists from the authors of ImageNet-LT.
"""

from __future__ import annotations

import warnings
from pathlib import Path, PurePosixPath

import numpy as np

from autobalance._validation import InputError, whole
from autobalance.data import shortened
from autobalance_bench.datasets.listing import all_different, contents, folder_of, without_missing
from autobalance_bench.datasets.photographs import Photographs, PhotographSplits

SOURCE = "https://github.com/zhmiao/OpenLongTailRecognition-OLTR"
IMAGES = "https://image-net.org"
LISTS = ("ImageNet_LT_train.txt", "ImageNet_LT_val.txt", "ImageNet_LT_test.txt")
PUBLISHED, CLASSES = (115_846, 20_000, 50_000), 1_000
"""Images of each list as published, and classes of each."""

INSIDE = ("", "ILSVRC/Data/CLS-LOC", "Data/CLS-LOC")
"""Where the folders train and val are below the folder given: as unpacked, or as Kaggle packs it."""


def imagenet_lt(
    folder: str | Path,
    *,
    lists: str | Path | None = None,
    size: int = 224,
    limit: int | None = None,
    allowed_missing: int = 0,
) -> PhotographSplits:
    """Training, validation and test photographs of ImageNet-LT, an index that is read when needed.

    At size 224 all 115,846 training images would take 70 GB as float32, so load a part (`limit`),
    a smaller size, or extract features of a frozen network: `extract_features(backbone, train)`.

    Parameters
    ----------
    folder : path
        ImageNet: ``train/n01440764/x.JPEG`` and ``val/n01440764/x.JPEG``. Validation images that
        lie in ``val`` itself, as published, will do.
    lists : path, optional
        The folder of ``ImageNet_LT_train.txt``, ``..._val.txt`` and ``..._test.txt``, with lines
        ``train/n01440764/x.JPEG 0``. By default the images' own.
    size : int
        Height and width, at least 1, that the central square of each image is scaled to.
    limit : int, optional
        At most so many images of each part, in proportion to the classes; small classes can lose
        all of their images.
    allowed_missing : int
        At most so many images of each part may be missing; they are left out with a warning.

    Returns
    -------
    PhotographSplits
        Of 115,846, 20,000 and 50,000 images; the latter two are balanced. Classes are named by
        their folders (WordNet's numbers).

    Raises
    ------
    InputError
        If a folder, a list or more images are missing, a line is not a path and a class, class
        numbers have gaps or do not go with the folders, or an image is listed twice, in one list
        or in two. Lists of all 1,000 classes with other numbers of images are told by a warning.
    """
    whole("size", size, least=1)
    folder = folder_of(folder, what="ImageNet")
    place = folder if lists is None else folder_of(lists, what="ImageNet-LT's lists")
    absent = [name for name in LISTS if not (place / name).is_file()]
    if absent:
        raise InputError(
            f"{place} lacks {', '.join(absent)}; {contents(place)}. Get the lists from {SOURCE}, "
            "or name their folder with lists=."
        )
    root = next(
        (folder / inside for inside in INSIDE if (folder / inside / "train").is_dir()), None
    )
    if root is None:
        raise InputError(
            f"{folder} must hold ImageNet's folder train; {contents(folder)}. Get it from {IMAGES}."
        )
    listed = [_listed(place / name) for name in LISTS]
    names = _class_names(*listed[0], place / LISTS[0])
    flat = not any(entry.is_dir() for entry in _entries(root / "val"))
    files = [tuple(root / _published(path, flat) for path in paths) for paths, _ in listed]
    all_different(
        {place / name: part for name, part in zip(LISTS, files, strict=True)}, source=SOURCE
    )
    parts = []
    for name, part, (_, target), published in zip(LISTS, files, listed, PUBLISHED, strict=True):
        if len(names) == CLASSES and len(part) != published:
            warnings.warn(
                f"{place / name} has {len(part):,} images; the published list has {published:,}. If it "
                f"is not your own, it may be cut: get it again from {SOURCE}.",
                stacklevel=2,
            )
        if target.max() >= len(names):
            raise InputError(
                f"{place / name} has class {target.max()}, but {LISTS[0]} only 0 to "
                f"{len(names) - 1}. Get the lists together, from {SOURCE}."
            )
        images = Photographs(
            files=part,
            target=target,
            groups=None,
            class_names=names,
            group_names=(),
            size=size,
            square=True,
            source=IMAGES,
        )
        images = without_missing(images, allowed=allowed_missing, where=place / name)
        parts.append(images if limit is None else images.limited(limit))
    return PhotographSplits(*parts)


def _entries(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


def _published(path: str, flat: bool) -> str:
    """Where an image is, if the validation images were not sorted into folders of classes."""
    parts = PurePosixPath(path).parts
    return f"val/{parts[-1]}" if flat and parts[0] == "val" else path


def _listed(path: Path) -> tuple[list[str], np.ndarray]:
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


def _class_names(paths: list[str], target: np.ndarray, where: Path) -> tuple[str, ...]:
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
