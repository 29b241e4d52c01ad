"""A built set with group shift: objects of Fashion-MNIST on photographs of gravel and grass.

Two classes of small objects are pasted on crops of two photographed textures. In training almost
all objects of a class lie on that class's own texture, which is easier to tell than the object is;
in testing every class lies as often on either. So what a network learns of the background fails
on the rare cells, as for Waterbirds (Sagawa et al., ICLR 2020), at a size that trains in seconds.

The textures come with scikit-image (`skimage.data.gravel` and `grass`, both CC0).
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from autobalance import InputError
from autobalance.data import CLASSES, ImageSet
from autobalance_bench._checks import check_fraction, check_int
from autobalance_bench.datasets._optional import import_optional
from autobalance_bench.datasets.fashion import load_fashion_mnist

OBJECTS = ("Sneaker", "Ankle boot")
"""Fashion-MNIST's class of each class index."""

TEXTURES = ("gravel", "grass")
"""Background of each group index; that of class k in training is mostly texture k."""

SIDE = 32
"""Height and width of an image."""

OBJECT_SIDE = 14
"""Height and width of an object: half of Fashion-MNIST's."""

BRIGHTNESS = 0.25
"""Mean of each texture: alike, so that only its grain tells it, and dark under white objects."""


class TexturedImages(NamedTuple):
    """Images ``(n, 1, 32, 32)`` in [0, 1], float32; class and texture (group) indices ``(n,)``."""

    images: np.ndarray
    target: np.ndarray
    groups: np.ndarray


def build_fashion_textures(
    folder: str | Path,
    *,
    train_size: int = 8000,
    test_size: int = 2000,
    aligned: float = 0.95,
    seed: int = 0,
) -> tuple[TexturedImages, TexturedImages]:
    """Build training and test images from a folder with Fashion-MNIST's four IDX files.

    Training objects are Fashion-MNIST's training images on the left halves of the photographs,
    test objects its test images on the right halves. No object is used twice.

    Parameters
    ----------
    folder : path
        With the files of `load_fashion_mnist`.
    train_size : int
        Training images, half of each class, at least 4; an odd one out is left away.
    test_size : int
        Test images, a quarter in each cell (class and texture), at least 4; rounded down to that.
    aligned : float
        Share of a class's training images on its own texture, in (0, 1), rounded, but at least
        one image is on either.
    seed : int
        Decides objects, crops and places.

    Raises
    ------
    InputError
        If scikit-image is not installed, a file is missing, a size or share is out of range, or
        more objects are asked for than there are.
    """
    check_int("train_size", train_size, least=4)
    check_int("test_size", test_size, least=4)
    check_fraction("aligned", aligned)
    photographs = _load_photographs()
    generator = np.random.default_rng(check_int("seed", seed, least=0))
    train, test = load_fashion_mnist(folder)
    skewed, even = _count_cells(train_size // 2, aligned), np.full((2, 2), test_size // 4)
    return (
        _compose(train, skewed, [left for left, _ in photographs], generator),
        _compose(test, even, [right for _, right in photographs], generator),
    )


def _load_photographs() -> list[tuple[np.ndarray, np.ndarray]]:
    """Load the left and right half of each texture, in [0, 1], at half the photograph's resolution."""
    data = import_optional(
        "skimage.data", "The set of textures", install="pip install scikit-image"
    )
    photographs = [_halve(getattr(data, name)().astype(np.float32)) for name in TEXTURES]
    return [
        (_even_brightness(left), _even_brightness(right))
        for left, right in map(_split_middle, photographs)
    ]


def _split_middle(photograph: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    middle = photograph.shape[1] // 2
    return photograph[:, :middle], photograph[:, middle:]


def _even_brightness(photograph: np.ndarray) -> np.ndarray:
    """Scale a photograph to the mean brightness of all."""
    return np.clip(photograph * (BRIGHTNESS / photograph.mean()), 0.0, 1.0)


def _halve(images: np.ndarray) -> np.ndarray:
    """Average over 2 x 2 pixels of images ``(..., h, w)``."""
    *rest, height, width = images.shape
    return images.reshape(*rest, height // 2, 2, width // 2, 2).mean(axis=(-3, -1))


def _count_cells(per_class: int, share: float) -> np.ndarray:
    """Count images of each class (row) on each texture (column), shape ``(2, 2)``."""
    own = min(max(1, round(share * per_class)), per_class - 1)
    return np.array([[own, per_class - own], [per_class - own, own]])


def _compose(
    objects: ImageSet,
    cells: np.ndarray,
    photographs: list[np.ndarray],
    generator: np.random.Generator,
) -> TexturedImages:
    """Compose the images of all cells, in random order."""
    target = np.repeat([0, 0, 1, 1], cells.ravel())
    groups = np.repeat([0, 1, 0, 1], cells.ravel())
    images = np.empty((len(target), SIDE, SIDE), dtype=np.float32)
    for texture, photograph in enumerate(photographs):
        members = groups == texture
        images[members] = _draw_crops(photograph, int(members.sum()), generator)
    chosen = np.empty(len(target), dtype=np.int64)
    for index, name in enumerate(OBJECTS):
        candidates = np.flatnonzero(objects.target == CLASSES.index(name))
        wanted = int(cells[index].sum())
        if len(candidates) < wanted:
            raise InputError(
                f"The files have {len(candidates)} images of the class {name!r}, but {wanted} were "
                "asked for. Lower train_size or test_size."
            )
        chosen[target == index] = generator.choice(candidates, wanted, replace=False)
    _paste(images, _halve(objects.images[chosen, 0]), generator)
    order = generator.permutation(len(target))
    return TexturedImages(images[order, None], target[order], groups[order])


def _draw_crops(photograph: np.ndarray, count: int, generator: np.random.Generator) -> np.ndarray:
    """Cut random windows from a photograph, every other one mirrored, shape ``(count, 32, 32)``."""
    windows = np.lib.stride_tricks.sliding_window_view(photograph, (SIDE, SIDE))
    crops = windows[
        generator.integers(windows.shape[0], size=count),
        generator.integers(windows.shape[1], size=count),
    ]
    mirrored = generator.random(count) < 0.5
    crops[mirrored] = crops[mirrored, :, ::-1]
    return crops


def _paste(images: np.ndarray, opacity: np.ndarray, generator: np.random.Generator) -> None:
    """Paint each object ``(n, s, s)`` in white, as opaque as it is bright, at a random place."""
    top, left = generator.integers(SIDE - OBJECT_SIDE + 1, size=(2, len(images), 1, 1))
    rows = top + np.arange(OBJECT_SIDE)[:, None]
    columns = left + np.arange(OBJECT_SIDE)
    places = np.arange(len(images))[:, None, None], rows, columns
    images[places] += opacity * (1.0 - images[places])
