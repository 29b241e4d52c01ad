"""A tiny folder of CelebA, as torchvision lays it out."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from autobalance import InputError
from autobalance_bench.datasets.celeba import load_celeba
from tiny_sets import tiny_celeba

BLOND = [1, -1] * 6
MALE = [1, 1, -1, -1] * 3
PART = [0] * 4 + [2] * 4 + [1] * 4


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return tiny_celeba(tmp_path, monkeypatch, BLOND, MALE, PART)


@pytest.mark.parametrize("above", [False, True], ids=["celeba", "above"])
def test_the_parts_are_read_with_hair_and_sex(folder: Path, above: bool) -> None:
    parts = load_celeba(folder.parent if above else folder, size=6)
    assert parts.train.class_names == ("not blond", "blond")
    assert parts.train.group_names == ("female", "male")
    for part, rows in zip(parts, (range(4), range(8, 12), range(4, 8)), strict=True):
        assert [Path(name).name for name in part.names] == [f"{i + 1:06d}.jpg" for i in rows]
        assert part.targets.tolist() == [1, 0, 1, 0]
        assert part.groups is not None
        assert part.groups.tolist() == [1, 1, 0, 0]
        _, pixels = part.load()
        assert pixels.shape == (4, 3, 6, 6)
        expected = np.array([20 * i for i in rows])[:, None]
        np.testing.assert_allclose(pixels[:, 0, 3], np.repeat(expected, 6, axis=1), atol=4)
        assert pixels[:, 1].max() < 20  # nothing of the white above and below
    assert [len(part) for part in load_celeba(folder, limit=3)] == [3, 3, 3]


def test_lists_that_are_not_the_published_ones_are_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("list_attr_celeba.txt", "list_eval_partition.txt", "img_align_celeba"):
        (folder / name).rename(folder / "elsewhere")
        with pytest.raises(
            InputError, match=r"must be the folder celeba .*elsewhere.*from https://mm"
        ):
            load_celeba(folder)
        (folder / "elsewhere").rename(folder / name)
    (folder / "list_attr_celeba.txt").write_text("altered")
    with pytest.raises(InputError, match="corrupted"):
        load_celeba(folder)
    with pytest.raises(InputError, match=r"faces must be .*; it is not there"):
        load_celeba(folder / "faces")
    monkeypatch.setitem(sys.modules, "torchvision.datasets", None)
    with pytest.raises(InputError, match=r"needs torchvision, .*pip install torchvision"):
        load_celeba(folder)


def test_missing_images_are_named_or_left_out(folder: Path) -> None:
    for row in (5, 10):  # of the test and of the validation part: each may miss one
        (folder / "img_align_celeba" / f"{row:06d}.jpg").unlink()
    with pytest.raises(InputError, match=r"partition.txt names 1 of 4 .*000010.jpg. .*missing=1"):
        load_celeba(folder)
    with pytest.warns(UserWarning, match=r"names 1 of 4 images .*; they are left out"):
        parts = load_celeba(folder, allowed_missing=1)
    assert [len(part) for part in parts] == [4, 3, 3]
    assert parts.test.load()[1][:, 0, 30, 30].tolist() == pytest.approx([100, 120, 140], abs=4)
