"""The long-tailed sample of Fashion-MNIST that ships with the package."""

from __future__ import annotations

from importlib.resources import files
from typing import NamedTuple

import numpy as np

CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
    "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
SAMPLE = "fashion_lt.npz"


class ImageSet(NamedTuple):
    """Images ``(n, 1, 28, 28)`` in [0, 1], float32, and class indices ``(n,)``."""

    images: np.ndarray
    target: np.ndarray


def long_tailed_sample() -> tuple[ImageSet, ImageSet]:
    """The package's own sample: training, 500 to 5 images per class; test, 100 of each."""
    with files("autobalance.data").joinpath(SAMPLE).open("rb") as stream:
        arrays = np.load(stream, allow_pickle=False)
        return (
            as_image_set(arrays["train_images"], arrays["train_target"]),
            as_image_set(arrays["test_images"], arrays["test_target"]),
        )


def as_image_set(pixels: np.ndarray, target: np.ndarray) -> ImageSet:
    """Bytes ``(n, 28, 28)`` as an `ImageSet`."""
    return ImageSet((pixels[:, None] / 255.0).astype(np.float32), target.astype(np.int64))
