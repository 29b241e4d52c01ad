"""Waterbirds: land- and waterbirds on photographs of land and water (Sagawa et al., ICLR 2020).

In training 95 % of each kind of bird are before its own kind of place; in validation and testing
each bird is before either as often. Birds are from Caltech-UCSD Birds, places from Places.
"""

from __future__ import annotations

from pathlib import Path

from autobalance._validation import InputError, whole
from autobalance.data import column, read_table
from autobalance_bench.datasets.downloads import Published, fetch_folder
from autobalance_bench.datasets.listing import contents, folder_of, splits
from autobalance_bench.datasets.photographs import Photographs, PhotographSplits, numbers

FOLDER = "waterbird_complete95_forest2water2"
# Its authors publish no checksum; this one is in the public repository GrGrie/Spur_SpLiCE.
ARCHIVE = Published(
    f"https://nlp.stanford.edu/data/dro/{FOLDER}.tar.gz",
    "56c51b77f7d17283ac97003d973e9107e8af9ceebffcb0c8be14d024f846f951",
)
SOURCE = ARCHIVE.url
BIRDS = ("landbird", "waterbird")
PLACES = ("land", "water")


def waterbirds(
    folder: str | Path,
    *,
    size: int = 64,
    limit: int | None = None,
    allowed_missing: int = 0,
    download: bool = False,
) -> PhotographSplits:
    """Training, validation and test photographs: class is the bird, group is the place.

    Parameters
    ----------
    folder : path
        The unpacked folder, with ``metadata.csv`` (of its columns img_filename, y, split and place
        are used) and the images; or the folder that it is in.
    size : int
        Height and width that images are scaled to, at least 1. As in the authors' code, the whole
        image is, whatever its shape.
    limit : int, optional
        At most so many images of each part, in proportion to class and place.
    allowed_missing : int
        At most so many images of each part may be missing; they are left out with a warning.
    download : bool
        Whether the archive is downloaded into the folder and unpacked there where no metadata is.

    Returns
    -------
    PhotographSplits
        Of 4,795, 1,199 and 5,794 images, read when they are needed: `load` and `batches`.

    Raises
    ------
    InputError
        If the folder, its metadata or more images are missing, a column is absent or has another
        value, a part has no row, or the download fails.
    """
    whole("size", size, least=1)
    folder = Path(folder).expanduser()
    if not download:
        folder_of(folder, what="Waterbirds")
    if not (folder / "metadata.csv").is_file():
        if download and not (folder / FOLDER).is_dir():
            fetch_folder(ARCHIVE, folder, FOLDER)
        if (folder / FOLDER).is_dir():
            folder = folder / FOLDER
    metadata = folder / "metadata.csv"
    if not metadata.is_file():
        raise InputError(
            f"{metadata} is not there; {contents(folder)}. Get Waterbirds from {SOURCE} and unpack "
            "it, or pass download=True."
        )
    table = read_table(metadata)
    everything = Photographs(
        files=tuple(folder / name for name in column(table, "img_filename", "image").astype(str)),
        target=numbers(table, "y", "target", (0, 1), metadata),
        groups=numbers(table, "place", "group", (0, 1), metadata),
        class_names=BIRDS,
        group_names=PLACES,
        size=size,
        square=False,
        source=SOURCE,
    )
    split = numbers(table, "split", "split", (0, 1, 2), metadata)
    return splits(everything, split, where=metadata, allowed=allowed_missing, limit=limit)
