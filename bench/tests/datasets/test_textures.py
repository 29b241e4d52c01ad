"""Small objects on textures that go with their class in training and with neither in testing."""

from __future__ import annotations

import gzip
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autobalance import InputError
from autobalance.data.fashion import CLASSES
from autobalance_bench.datasets import textures

PER_CLASS = 60
KINDS = [CLASSES.index(name) for name in textures.OBJECTS]


def idx(values: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}i", *values.shape)
    return gzip.compress(header + values.astype(np.uint8).tobytes())


def write(folder: Path, draw: Any) -> Path:
    """Files in Fashion-MNIST's format with images of both classes, and of another one."""
    target = np.repeat([*KINDS, 0], PER_CLASS)
    for name in ("train", "t10k"):
        (folder / f"{name}-images-idx3-ubyte.gz").write_bytes(idx(draw(name, target)))
        (folder / f"{name}-labels-idx1-ubyte.gz").write_bytes(idx(target))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Objects that tell their class: white in the upper, or the lower, half; other ones all white."""

    def draw(_: str, target: np.ndarray) -> np.ndarray:
        images = np.full((len(target), 28, 28), 255)
        images[target == KINDS[0], 14:] = 0
        images[target == KINDS[1], :14] = 0
        return images

    return write(tmp_path, draw)


def build(folder: Path, **changes: Any) -> tuple[textures.TexturedImages, textures.TexturedImages]:
    return textures.build_fashion_textures(folder, **{"train_size": 80, "test_size": 40, **changes})


def cells(part: textures.TexturedImages) -> list[list[int]]:
    return np.bincount(part.groups * 2 + part.target, minlength=4).reshape(2, 2).tolist()


def test_background_goes_with_class_in_training_only(folder: Path) -> None:
    train, test = build(folder)
    assert cells(train) == [[38, 2], [2, 38]]
    assert cells(test) == [[10, 10], [10, 10]]
    for part in (train, test):
        assert part.images.shape == (len(part.target), 1, 32, 32)
        assert part.images.dtype == np.float32
        assert part.images.min() >= 0.0
        assert part.images.max() <= 1.0


@pytest.mark.parametrize(
    ("sizes", "train_cells", "test_cells"),
    [
        ({"aligned": 0.5}, [[20, 20], [20, 20]], [[10, 10], [10, 10]]),
        ({"aligned": 0.999}, [[39, 1], [1, 39]], [[10, 10], [10, 10]]),
        ({"aligned": 0.001}, [[1, 39], [39, 1]], [[10, 10], [10, 10]]),
        ({"train_size": 5, "test_size": 7}, [[1, 1], [1, 1]], [[1, 1], [1, 1]]),
    ],
)
def test_every_cell_has_an_image(
    folder: Path, sizes: dict[str, Any], train_cells: list[Any], test_cells: list[Any]
) -> None:
    train, test = build(folder, **sizes)
    assert cells(train) == train_cells
    assert cells(test) == test_cells


def test_the_object_is_that_of_the_class_whole_and_somewhere(folder: Path) -> None:
    """White rows: 7 of an object's 14, 14 wide, in any place where all of it is in the image."""
    tops, lefts = [], []
    for part in build(folder):
        white = part.images[:, 0] == 1.0
        assert (white.sum(axis=(1, 2)) == 7 * 14).all()
        top, left = white.any(axis=2).argmax(axis=1), white.any(axis=1).argmax(axis=1)
        tops += (top - 7 * part.target).tolist()  # the upper half of class 1 is transparent
        lefts += left.tolist()
    for offsets in (tops, lefts):
        assert (min(offsets), max(offsets)) == (0, textures.SIDE - textures.OBJECT_SIDE)
    assert len(set(zip(tops, lefts, strict=True))) > 60


def test_textures_are_alike_in_brightness_and_differ_in_grain(tmp_path: Path) -> None:
    """Without objects, all objects being black and so transparent."""
    folder = write(tmp_path, lambda _, target: np.zeros((len(target), 28, 28)))
    train, _ = build(folder, train_size=120)
    images, groups = train.images[:, 0], train.groups
    means = [images[groups == g].mean() for g in (0, 1)]
    assert means == pytest.approx([textures.BRIGHTNESS] * 2, abs=0.02)
    grain = [np.abs(np.diff(images[groups == g], axis=2)).mean() for g in (0, 1)]
    assert abs(grain[0] - grain[1]) > 0.2 * max(grain)


def test_training_and_testing_share_neither_object_nor_background(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training objects are white and test objects absent; left halves are 0.1, right ones 0.3."""

    def draw(name: str, target: np.ndarray) -> np.ndarray:
        return np.full((len(target), 28, 28), 255 if name == "train" else 0)

    halves = np.full((256, 128), 0.1, np.float32), np.full((256, 128), 0.3, np.float32)
    monkeypatch.setattr(textures, "_load_photographs", lambda: [halves, halves])
    train, test = build(write(tmp_path, draw))
    assert set(np.unique(train.images)) == {np.float32(0.1), np.float32(1.0)}
    assert set(np.unique(test.images)) == {np.float32(0.3)}


def test_no_object_is_used_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On black, the sum of an object's pixels tells it: of each class, image i has brightness i."""

    def draw(_: str, target: np.ndarray) -> np.ndarray:
        brightness = np.tile(np.arange(1, PER_CLASS + 1), 3)
        return np.broadcast_to(brightness[:, None, None], (len(target), 28, 28))

    black = np.zeros((256, 128), np.float32)
    monkeypatch.setattr(textures, "_load_photographs", lambda: [(black, black), (black, black)])
    train, _ = build(write(tmp_path, draw), train_size=2 * PER_CLASS)
    shown = np.round(train.images.max(axis=(1, 2, 3)) * 255).astype(int)
    for kind in (0, 1):
        assert sorted(shown[train.target == kind]) == list(range(1, PER_CLASS + 1))


def test_the_photographs_are_halves_of_different_textures() -> None:
    (a, b), (c, d) = textures._load_photographs()
    for part in (a, b, c, d):
        assert part.shape == (256, 128)
        assert part.mean() == pytest.approx(textures.BRIGHTNESS, abs=1e-3)
    for first, second in ((a, b), (a, c), (b, d)):
        assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 0.2


def test_the_seed_alone_decides(folder: Path) -> None:
    first = build(folder, seed=3)
    np.random.default_rng(0).random()
    for a, b in zip(first, build(folder, seed=3), strict=True):
        assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))
    assert not np.array_equal(first[0].images, build(folder, seed=4)[0].images)


def test_classes_are_in_random_order(folder: Path) -> None:
    train, _ = build(folder)
    assert 10 < train.target[:40].sum() < 30


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_size": 3}, "train_size must be at least 4; got 3"),
        ({"test_size": 2.5}, "test_size must be a whole number; got 2.5"),
        ({"aligned": 1.0}, "aligned must lie strictly between 0 and 1; got 1.0"),
        ({"seed": -1}, "seed must be at least 0; got -1"),
        (
            {"train_size": 2 * PER_CLASS + 2},
            "have 60 images of the class 'Sneaker', but 61 were asked for. Lower train_size",
        ),
    ],
)
def test_bad_arguments_are_refused(folder: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build(folder, **changes)


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is not there. Get Fashion-MNIST's four .gz files from"):
        build(tmp_path)


def test_without_scikit_image_the_message_says_what_to_install(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "skimage.data", None)
    with pytest.raises(InputError, match=r"needs skimage, .* Install it: pip install scikit-image"):
        build(folder)
