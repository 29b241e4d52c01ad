"""Fashion-MNIST: the long-tailed sample in the package, and the original files from a folder."""

from __future__ import annotations

import gzip
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import numpy as np

from autobalance.checks import InputError
from autobalance.data.downloads import Published, fetch

CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
    "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
SAMPLE = "fashion_lt.npz"
SOURCE = "https://github.com/zalandoresearch/fashion-mnist"
_ADDRESS = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
FILES = tuple(
    Published(_ADDRESS + name, md5)
    for name, md5 in (
        ("train-images-idx3-ubyte.gz", "8d4fb7e6c68d591d4c3dfef9ec88bf0d"),
        ("train-labels-idx1-ubyte.gz", "25c81989df183df01b3e8a0aad5dffbe"),
        ("t10k-images-idx3-ubyte.gz", "bef4ecab320f06d8554ea6380940ec79"),
        ("t10k-labels-idx1-ubyte.gz", "bb300cfdad3c16e7a12a480ee83cd310"),
    )
)


class ImageSet(NamedTuple):
    """Images ``(n, 1, 28, 28)`` in [0, 1], float32, and class indices ``(n,)``."""

    images: np.ndarray
    target: np.ndarray


def long_tailed_sample() -> tuple[ImageSet, ImageSet]:
    """The package's own sample: training, 500 to 5 images per class; test, 100 of each."""
    with files("autobalance.data").joinpath(SAMPLE).open("rb") as stream:
        arrays = np.load(stream, allow_pickle=False)
        return (
            _images(arrays["train_images"], arrays["train_target"]),
            _images(arrays["test_images"], arrays["test_target"]),
        )


def original(folder: str | Path, *, download: bool = False) -> tuple[ImageSet, ImageSet]:
    """All of Fashion-MNIST, training and test, from a folder with its four IDX files.

    Parameters
    ----------
    folder : path
        Where the files are.
    download : bool
        Whether those that are not there are downloaded into the folder, 30 MB in all.

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
        sets.append(_images(images, target))
    return sets[0], sets[1]


def _images(pixels: np.ndarray, target: np.ndarray) -> ImageSet:
    return ImageSet((pixels[:, None] / 255.0).astype(np.float32), target.astype(np.int64))


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
