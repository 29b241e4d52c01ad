"""Fashion-MNIST's original files, from a folder; read here so that the suite needs no torchvision."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np

from autobalance import InputError
from autobalance.data import ImageSet, as_image_set
from autobalance_bench.datasets.downloads import Published, fetch

SOURCE = "https://github.com/zalandoresearch/fashion-mnist"
_ADDRESS = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
FILES = tuple(
    Published(_ADDRESS + name, f"md5:{md5}")
    for name, md5 in (
        ("train-images-idx3-ubyte.gz", "8d4fb7e6c68d591d4c3dfef9ec88bf0d"),
        ("train-labels-idx1-ubyte.gz", "25c81989df183df01b3e8a0aad5dffbe"),
        ("t10k-images-idx3-ubyte.gz", "bef4ecab320f06d8554ea6380940ec79"),
        ("t10k-labels-idx1-ubyte.gz", "bb300cfdad3c16e7a12a480ee83cd310"),
    )
)


def load_fashion_mnist(folder: str | Path, *, download: bool = False) -> tuple[ImageSet, ImageSet]:
    """Load all of Fashion-MNIST, training and test, from a folder with its four IDX files.

    Parameters
    ----------
    folder : path
        Where the files are.
    download : bool
        Whether those that are not there are downloaded into the folder, 30 MB in all, by pooch.

    Raises
    ------
    InputError
        If a file is missing or is not an IDX file, or the download fails; the message says where
        to get it.
    """
    folder = Path(folder).expanduser()
    if download:
        for file in FILES:
            if not (folder / file.name).exists():
                fetch(file, folder)
    sets = []
    for name in ("train", "t10k"):
        images = _read_idx(folder / f"{name}-images-idx3-ubyte.gz", dimensions=3)
        target = _read_idx(folder / f"{name}-labels-idx1-ubyte.gz", dimensions=1)
        sets.append(as_image_set(images, target))
    return sets[0], sets[1]


def _read_idx(path: Path, dimensions: int) -> np.ndarray:
    if not path.is_file():
        raise InputError(f"{path} is not there. Get Fashion-MNIST's four .gz files from {SOURCE}.")
    try:
        raw = gzip.decompress(path.read_bytes())
    except (OSError, EOFError) as error:
        raise InputError(
            f"{path} is not a readable gzip file ({error}). Get it from {SOURCE}."
        ) from None
    header = 4 + 4 * dimensions
    if len(raw) < header or raw[:4] != bytes([0, 0, 8, dimensions]):
        raise InputError(
            f"{path} is not an IDX file of {dimensions} dimensions. Get it from {SOURCE}."
        )
    shape = np.frombuffer(raw, ">i4", count=dimensions, offset=4)
    if len(raw) != header + int(np.prod(shape)):
        raise InputError(f"{path} is truncated. Get it again from {SOURCE}.")
    return np.frombuffer(raw, np.uint8, offset=header).reshape(shape)
