"""Waterbirds: land- and waterbirds on photographs of land and water (Sagawa et al., ICLR 2020).

In training 95 % of each kind of bird are before their own kind of place; in validation and testing
each kind is before either place equally often. Birds are from Caltech-UCSD Birds, places from
Places.
"""

from __future__ import annotations

from pathlib import Path

from autobalance import InputError
from autobalance.data import column, read_table
from autobalance_bench.datasets.downloads import Published, fetch_folder
from autobalance_bench.datasets.file_lists import (
    check_folder,
    describe_folder,
    read_codes,
    split_by_number,
)
from autobalance_bench.datasets.images import ImageSplits, LabelledImages

FOLDER = "waterbird_complete95_forest2water2"
# Its authors publish no checksum; this one is in the public repository GrGrie/Spur_SpLiCE.
ARCHIVE = Published(
    f"https://nlp.stanford.edu/data/dro/{FOLDER}.tar.gz",
    "sha256:56c51b77f7d17283ac97003d973e9107e8af9ceebffcb0c8be14d024f846f951",
)
BIRDS = ("landbird", "waterbird")
PLACES = ("land", "water")


def load_waterbirds(
    folder: str | Path,
    *,
    size: int = 64,
    limit: int | None = None,
    allowed_missing: int = 0,
    download: bool = False,
) -> ImageSplits:
    """Index Waterbirds' training, validation and test images: class is the bird, group the place.

    Parameters
    ----------
    folder : path
        The unpacked folder, with ``metadata.csv`` (of its columns img_filename, y, split and place
        are used) and the images; or the folder that holds it.
    size : int
        Height and width that images are scaled to. As in the authors' code, the whole image is
        scaled, whatever its shape.
    limit : int, optional
        At most so many images of each part, in proportion to class and place.
    allowed_missing : int
        At most so many images of each part may be missing; they are left out with a warning.
    download : bool
        Whether the archive (500 MB) is downloaded into the folder and unpacked there where no
        metadata is.

    Returns
    -------
    ImageSplits
        Of 4,795, 1,199 and 5,794 images, decoded when they are needed.

    Raises
    ------
    InputError
        If the folder, its metadata or more images are missing, a column is absent or has another
        value, a part has no row, or the download fails.
    """
    folder = Path(folder).expanduser()
    if not download:
        check_folder(folder, what="Waterbirds")
    if not (folder / "metadata.csv").is_file():
        if download and not (folder / FOLDER).is_dir():
            fetch_folder(ARCHIVE, folder, FOLDER)
        if (folder / FOLDER).is_dir():
            folder = folder / FOLDER
    metadata = folder / "metadata.csv"
    if not metadata.is_file():
        raise InputError(
            f"{metadata} is not there; {describe_folder(folder)}. Get Waterbirds from {ARCHIVE.url} "
            "and unpack it, or pass download=True."
        )
    table = read_table(metadata)
    files = [folder / name for name in column(table, "img_filename", "image").astype(str)]
    images = LabelledImages.of_files(
        files,
        read_codes(table, "y", "target", (0, 1), metadata),
        BIRDS,
        groups=read_codes(table, "place", "group", (0, 1), metadata),
        group_names=PLACES,
        size=size,
        square=False,
        source=ARCHIVE.url,
    )
    split = read_codes(table, "split", "split", (0, 1, 2), metadata)
    return split_by_number(images, split, where=metadata, allowed=allowed_missing, limit=limit)
