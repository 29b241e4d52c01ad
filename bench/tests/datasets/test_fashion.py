"""The package's own sample, and the reader of the original files."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from autobalance import InputError
from autobalance.data import fashion as sample
from autobalance.data.fashion import CLASSES, long_tailed_sample
from autobalance_bench.datasets import fashion
from autobalance_bench.datasets.longtail import exponential_counts


def idx(values: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}i", *values.shape)
    return gzip.compress(header + values.astype(np.uint8).tobytes())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four small files in the original format: 3 training and 2 test images of 2 x 2."""
    generator = np.random.default_rng(0)
    for name, n in (("train", 3), ("t10k", 2)):
        images = generator.integers(0, 256, (n, 2, 2))
        (tmp_path / f"{name}-images-idx3-ubyte.gz").write_bytes(idx(images))
        (tmp_path / f"{name}-labels-idx1-ubyte.gz").write_bytes(idx(np.arange(n) + 7))
    return tmp_path


def test_the_sample_is_long_tailed_for_training_and_balanced_for_testing() -> None:
    train, test = long_tailed_sample()
    assert np.bincount(train.target).tolist() == exponential_counts(10, 500, 100).tolist()
    assert np.bincount(test.target).tolist() == [100] * 10
    for part in (train, test):
        assert part.images.shape == (len(part.target), 1, 28, 28)
        assert part.images.dtype == np.float32
        assert part.target.dtype == np.int64
        assert 0.0 == part.images.min() < part.images.max() <= 1.0
    assert len(CLASSES) == 10


def test_the_sample_shares_no_image_between_training_and_testing() -> None:
    train, test = long_tailed_sample()
    known = {image.tobytes() for image in train.images}
    assert not any(image.tobytes() in known for image in test.images)


def test_the_sample_is_small() -> None:
    path = Path(sample.__file__).with_name(sample.SAMPLE)
    assert path.stat().st_size <= 1.5e6


def test_original_files_are_read(folder: Path) -> None:
    train, test = fashion.load_fashion_mnist(folder)
    expected = np.random.default_rng(0).integers(0, 256, (3, 2, 2)) / 255.0
    np.testing.assert_allclose(train.images[:, 0], expected, rtol=1e-6)
    assert train.target.tolist() == [7, 8, 9]
    assert test.images.shape == (2, 1, 2, 2)
    assert test.target.tolist() == [7, 8]


def no_gzip(path: Path) -> None:
    path.write_bytes(b"not gzip")


def cut_gzip(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-12])


def wrong_magic(path: Path) -> None:
    path.write_bytes(gzip.compress(b"\0\0\x09\x03" + bytes(20)))


def empty(path: Path) -> None:
    path.write_bytes(gzip.compress(b""))


def short(path: Path) -> None:
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:-1]))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (Path.unlink, "is not there. Get Fashion-MNIST's four .gz files from https"),
        (no_gzip, r"is not a readable gzip file \(.*Get it from https"),
        (cut_gzip, r"is not a readable gzip file \(.*Get it from https"),
        (wrong_magic, "is not an IDX file of 3 dimensions. Get it from https"),
        (empty, "is not an IDX file of 3 dimensions"),
        (short, "is truncated. Get it again from https"),
    ],
)
def test_spoilt_files_are_refused(
    folder: Path, spoil: Callable[[Path], None], message: str
) -> None:
    spoil(folder / "t10k-images-idx3-ubyte.gz")
    with pytest.raises(InputError, match=f"t10k-images-idx3-ubyte.gz {message}"):
        fashion.load_fashion_mnist(folder)
