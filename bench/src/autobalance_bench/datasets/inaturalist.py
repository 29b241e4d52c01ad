"""iNaturalist 2018: 8,142 species, 1,000 down to 2 training images each (Van Horn et al., 2018).

torchvision's `INaturalist` reads the images of this year without their division into training and
validation, so the published annotations are read here.
"""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np

from autobalance import InputError
from autobalance.data import shortened
from autobalance_bench.datasets.downloads import BROKEN_ARCHIVE, Published, fetch, fetch_folder
from autobalance_bench.datasets.file_lists import (
    check_disjoint,
    check_folder,
    describe_folder,
    drop_missing,
)
from autobalance_bench.datasets.images import LabelledImages

SOURCE = "https://github.com/visipedia/inat_comp/tree/master/2018"
_ADDRESS = "https://ml-inat-competition-datasets.s3.amazonaws.com/2018/"
ANNOTATIONS = (
    Published(f"{_ADDRESS}train2018.json.tar.gz", "md5:bfa29d89d629cbf04d826a720c0a68b0"),
    Published(f"{_ADDRESS}val2018.json.tar.gz", "md5:f2ed8bfe3e9901cdefceb4e53cd3775d"),
)
IMAGES = Published(f"{_ADDRESS}train_val2018.tar.gz", "md5:b1c6952ce38f31868cc50ea72d066cc3")
FOLDER = "train_val2018"


def load_inaturalist_2018(
    folder: str | Path,
    *,
    size: int = 224,
    limit: int | None = None,
    allowed_missing: int = 0,
    download: bool = False,
) -> tuple[LabelledImages, LabelledImages]:
    """Index the training and validation images of iNaturalist 2018.

    The published test images have no labels; long-tail papers test on the validation images.

    Parameters
    ----------
    folder : path
        With ``train2018.json`` and ``val2018.json``, or their .tar.gz, and ``train_val2018``.
    size, limit, allowed_missing
        As for `load_imagenet_lt`.
    download : bool
        Whether what is not there is downloaded into the folder: 50 MB of annotations and 120 GB of
        images, which unpacked take as much again. A download that breaks off starts again. The
        images are for non-commercial research and education only.

    Returns
    -------
    tuple of LabelledImages
        Of 437,513 and 24,426 images, decoded when they are needed. Classes are the categories that
        have a training image, in the order of their ids, by name.

    Raises
    ------
    InputError
        If a file or more images are missing, the annotations are of another layout, an annotation
        names an unknown image or category, an image has none or two, a validation image is one of
        the training images or of a category without any, or the download fails.
    """
    folder = Path(folder).expanduser()
    if not download:
        check_folder(folder, what="iNaturalist 2018")
    records = [_read_annotations(folder, file, download) for file in ANNOTATIONS]
    if not (folder / FOLDER).is_dir():
        if not download:
            raise InputError(
                f"{folder} lacks the folder {FOLDER}; {describe_folder(folder)}. Unpack "
                f"{IMAGES.name} there, from {SOURCE}, or pass download=True (120 GB)."
            )
        fetch_folder(IMAGES, folder, FOLDER)
    # Within one part ids tell images apart already.
    check_disjoint(
        {record.where: dict.fromkeys(name for name, _ in record.pairs) for record in records},
        source=SOURCE,
    )
    training = records[0]
    ids = sorted({category for _, category in training.pairs})
    index = {category: i for i, category in enumerate(ids)}
    parts = []
    for record in records:
        strange = sorted({category for _, category in record.pairs} - index.keys())
        if strange:
            raise InputError(
                f"{record.where} has images of {len(strange)} categories that "
                f"{training.where.name} has no image of: {shortened(strange)}. Get both from "
                f"{SOURCE}."
            )
        files = [folder / name for name, _ in record.pairs]
        targets = np.array([index[category] for _, category in record.pairs], dtype=np.int64)
        names = [training.names[category] for category in ids]
        images = LabelledImages.of_files(files, targets, names, size=size, source=SOURCE)
        images = drop_missing(images, allowed=allowed_missing, where=record.where)
        parts.append(images.limited(limit))
    return parts[0], parts[1]


class _Annotations:
    """File name and category id of each image, sorted by the image's id, and categories' names."""

    def __init__(self, where: Path, record: Any) -> None:
        self.where = where
        try:
            files = {image["id"]: str(image["file_name"]) for image in record["images"]}
            labels = [(a["image_id"], a["category_id"]) for a in record["annotations"]]
            self.names = {c["id"]: str(c["name"]) for c in record["categories"]}
        except (KeyError, TypeError) as error:
            problem = f"{error} is missing" if isinstance(error, KeyError) else str(error)
            raise InputError(
                f"{where} is not laid out as iNaturalist's annotations, with images, annotations "
                f"and categories: {problem}. Get it from {SOURCE}."
            ) from None
        categories = dict(labels)
        for what, strange in (
            ("images that it does not list", categories.keys() - files.keys()),
            ("categories that it does not list", set(categories.values()) - self.names.keys()),
            ("no category for some images", files.keys() - categories.keys()),
        ):
            if strange:
                raise InputError(
                    f"{where} has {what}: {shortened(sorted(strange))}. Get it from {SOURCE}."
                )
        if len(categories) < len(labels) or not labels:
            problem = "two annotations of one image" if labels else "no image"
            raise InputError(f"{where} has {problem}. Get it from {SOURCE}.")
        self.pairs = [(files[i], categories[i]) for i in sorted(files)]


def _read_annotations(folder: Path, file: Published, download: bool) -> _Annotations:
    plain = file.name.removesuffix(".tar.gz")
    path = next((p for p in (folder / plain, folder / file.name) if p.is_file()), None)
    if path is None:
        if not download:
            raise InputError(
                f"{folder} lacks {plain} (or {file.name}); {describe_folder(folder)}. Get it from "
                f"{SOURCE}, or pass download=True."
            )
        path = fetch(file, folder)
    try:
        if path.name == plain:
            return _Annotations(path, json.loads(path.read_bytes()))
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:
                content = archive.extractfile(member)
                if content is not None and Path(member.name).name == plain:
                    return _Annotations(path, json.load(content))
    except InputError:
        raise
    except (ValueError, *BROKEN_ARCHIVE) as error:
        raise InputError(f"{path} cannot be read: {error}. Get it from {SOURCE}.") from None
    raise InputError(f"{path} does not hold {plain}. Get it from {SOURCE}.")
