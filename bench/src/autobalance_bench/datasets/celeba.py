"""CelebA: faces with attributes (Liu et al., ICCV 2015), here hair colour by sex.

Few of the blond faces are of men, so networks take one attribute for the other; this has been a
usual task with groups since Sagawa et al. (ICLR 2020). The images are for non-commercial research
only.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from autobalance import InputError
from autobalance_bench.datasets._optional import import_optional
from autobalance_bench.datasets.file_lists import describe_folder, drop_missing
from autobalance_bench.datasets.images import ImageSplits, LabelledImages

SOURCE = "https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html"
HAIR_COLOURS = ("not blond", "blond")
SEXES = ("female", "male")


def load_celeba(
    folder: str | Path,
    *,
    size: int = 64,
    limit: int | None = None,
    allowed_missing: int = 0,
    download: bool = False,
) -> ImageSplits:
    """Index CelebA's training, validation and test images: class is Blond_Hair, group is Male.

    Parameters
    ----------
    folder : path
        The folder ``celeba`` as torchvision lays it out, or the one that holds it: the five
        published lists (``list_attr_celeba.txt`` and others) and the folder ``img_align_celeba``.
    size : int
        Height and width that the central square of each 178 x 218 image is scaled to.
    limit : int, optional
        At most so many images of each part, in proportion to class and group.
    allowed_missing : int
        At most so many images of each part may be missing; they are left out with a warning.
    download : bool
        Whether torchvision downloads what is not there, for which it needs gdown.

    Returns
    -------
    ImageSplits
        Of 162,770, 19,867 and 19,962 images, decoded when they are needed.

    Raises
    ------
    InputError
        If torchvision is not installed, a list is missing or is not the published one, or more
        images are missing.
    """
    datasets = import_optional("torchvision.datasets", "Reading CelebA")
    folder = Path(folder).expanduser()
    inside = folder.name == "celeba" and not (folder / "celeba").is_dir()
    root = folder.parent if inside else folder
    parts = []
    for split in ("train", "valid", "test"):
        try:
            faces = datasets.CelebA(root, split=split, download=download)
        except (OSError, RuntimeError, ImportError) as error:
            raise InputError(
                f"{folder} must be the folder celeba of torchvision's layout, or hold it; "
                f"{describe_folder(folder)} ({error}). Get the aligned and cropped images and the "
                f"lists from {SOURCE}."
            ) from None
        attributes = {
            name: faces.attr[:, faces.attr_names.index(name)].numpy().astype(np.int64)
            for name in ("Blond_Hair", "Male")
        }
        place = Path(root) / faces.base_folder
        images = LabelledImages(
            images=faces,
            names=tuple(str(place / "img_align_celeba" / name) for name in faces.filename),
            targets=attributes["Blond_Hair"],
            class_names=HAIR_COLOURS,
            groups=attributes["Male"],
            group_names=SEXES,
            size=size,
            source=SOURCE,
        )
        where = place / "list_eval_partition.txt"
        images = drop_missing(images, allowed=allowed_missing, where=where)
        parts.append(images.limited(limit))
    return ImageSplits(*parts)
