"""Tiny folders of CelebA's layouts: as published, and as Kaggle, torchvision and group DRO have them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from autobalance._validation import InputError
from autobalance_bench.datasets.celeba import celeba

N = 12
NAMES = [f"{i + 1:06d}.jpg" for i in range(N)]
BLOND = [1, -1] * (N // 2)
MALE = [1, 1, -1, -1] * (N // 4)
PART = [0] * 4 + [2] * 4 + [1] * 4


def faces(folder: Path) -> None:
    """178 x 218, white but for the central square, which is as red as the row says."""
    folder.mkdir(parents=True, exist_ok=True)
    for row, name in enumerate(NAMES):
        canvas = np.full((218, 178, 3), 255, np.uint8)
        canvas[20:198] = (20 * row, 0, 0)
        Image.fromarray(canvas).save(folder / name, quality=95)


def kaggle(folder: Path) -> Path:
    faces(folder / "img_align_celeba" / "img_align_celeba")
    rows = zip(NAMES, BLOND, MALE, strict=True)
    lines = ["image_id,Bald,Blond_Hair,Male", *(f"{n},-1,{b},{m}" for n, b, m in rows)]
    (folder / "list_attr_celeba.csv").write_text("\n".join(lines) + "\n")
    lines = ["image_id,partition", *(f"{n},{p}" for n, p in zip(NAMES, PART, strict=True))]
    (folder / "list_eval_partition.csv").write_text("\n".join(lines) + "\n")
    return folder


def texts(attributes: Path, partition: Path) -> None:
    rows = zip(NAMES, BLOND, MALE, strict=True)
    lines = [str(N), "Bald Blond_Hair Male ", *(f"{n} -1 {b:2d} {m:2d}" for n, b, m in rows)]
    attributes.write_text("\n".join(lines) + "\n")
    partition.write_text("".join(f"{n} {p}\n" for n, p in zip(NAMES, PART, strict=True)))


def torchvision(folder: Path) -> Path:
    faces(folder / "img_align_celeba")
    texts(folder / "list_attr_celeba.txt", folder / "list_eval_partition.txt")
    return folder


def published(folder: Path) -> Path:
    faces(folder / "Img" / "img_align_celeba")
    for name in ("Anno", "Eval"):
        (folder / name).mkdir()
    texts(folder / "Anno/list_attr_celeba.txt", folder / "Eval/list_eval_partition.txt")
    return folder


def group_dro(folder: Path) -> Path:
    kaggle(folder / "data")
    nested = folder / "data" / "img_align_celeba"
    (nested / "img_align_celeba").rename(folder / "data" / "images")
    nested.rmdir()
    (folder / "data" / "images").rename(nested)
    return folder


def unpacked_in_data(folder: Path) -> Path:
    kaggle(folder / "data")
    return folder


@pytest.mark.parametrize("layout", [kaggle, torchvision, published, group_dro, unpacked_in_data])
def test_each_layout_is_read(tmp_path: Path, layout: Callable[[Path], Path]) -> None:
    parts = celeba(layout(tmp_path), size=6)
    assert parts.train.class_names == ("not blond", "blond")
    assert parts.train.group_names == ("female", "male")
    for part, rows in zip(parts, (range(4), range(8, 12), range(4, 8)), strict=True):
        assert [path.name for path in part.files] == [NAMES[i] for i in rows]
        assert part.target.tolist() == [1, 0, 1, 0]
        assert part.groups.tolist() == [1, 1, 0, 0]
        pixels = part.pixels()
        assert pixels.shape == (4, 3, 6, 6)
        expected = np.array([20 * i for i in rows])[:, None]
        np.testing.assert_allclose(pixels[:, 0, 3], np.repeat(expected, 6, axis=1), atol=4)
        assert pixels[:, 1].max() < 20  # nothing of the white above and below


def test_a_partition_in_another_order_is_matched_by_name(tmp_path: Path) -> None:
    folder = torchvision(tmp_path)
    path = folder / "list_eval_partition.txt"
    path.write_text("\n".join(reversed(path.read_text().splitlines())))
    assert [p.name for p in celeba(folder).test.files] == NAMES[4:8]


def test_a_limit_holds_for_each_part(tmp_path: Path) -> None:
    assert [len(part) for part in celeba(torchvision(tmp_path), limit=3)] == [3, 3, 3]


def replaced(name: str, old: str, new: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new, 1))

    return spoil


def removed(name: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        (folder / name).rename(folder / "elsewhere")

    return spoil


SOURCE = r"from https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (removed("list_attr_celeba.txt"), rf"has none of list_attr_celeba.csv, .*{SOURCE}"),
        (removed("list_eval_partition.txt"), rf"has none of list_eval_partition.csv, .*{SOURCE}"),
        (removed("img_align_celeba"), rf"has none of img_align_celeba/img_align.*{SOURCE}"),
        (replaced("list_attr_celeba.txt", "Male", "Mail"), "The group column 'Male' is not in"),
        (
            replaced("list_attr_celeba.txt", " Male", ""),
            "has 4 fields in a row, but 3 were expected",
        ),
        (
            replaced("list_attr_celeba.txt", "000002.jpg -1 -1", "000002.jpg -1  0"),
            r"list_attr_celeba.txt: Blond_Hair must be one of -1, 1; got .*0.* in row 2",
        ),
        (
            replaced("list_eval_partition.txt", "000003.jpg 0\n", ""),
            rf"list_eval_partition.txt does not have the image 000003.jpg. Get both .*{SOURCE}",
        ),
        (
            replaced("list_eval_partition.txt", "000003.jpg 0", "000003.jpg 0\n000002.jpg 1"),
            "list_eval_partition.txt has the image 000002.jpg twice",
        ),
        (
            replaced("list_eval_partition.txt", "000003.jpg 0", "000003.jpg 0 0"),
            r"list_eval_partition.txt cannot be read: .*Get it again",
        ),
        (
            replaced("list_eval_partition.txt", "000003.jpg 0", "000003.jpg 7"),
            "partition must be one of 0, 1, 2; got .*7.* in row 3",
        ),
    ],
)
def test_spoilt_folders_are_refused(
    tmp_path: Path, spoil: Callable[[Path], None], message: str
) -> None:
    folder = torchvision(tmp_path)
    spoil(folder)
    with pytest.raises(InputError, match=message):
        celeba(folder)


def test_a_missing_folder_is_told_and_may_start_from_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(InputError, match=rf"The folder {tmp_path}/faces of CelebA is not there"):
        celeba("~/faces")
    torchvision(tmp_path / "faces")
    assert len(celeba("~/faces").train) == 4


def test_missing_images_are_named_or_left_out(tmp_path: Path) -> None:
    folder = torchvision(tmp_path)
    for row in (4, 9):  # of the test and of the validation part: each may miss one
        (folder / "img_align_celeba" / NAMES[row]).unlink()
    with pytest.raises(
        InputError,
        match=rf"eval_partition.txt names 1 of 4 images .*000010.jpg. .*{SOURCE}.*missing=1",
    ):
        celeba(folder)
    with pytest.warns(UserWarning, match=r"names 1 of 4 images .*; they are left out") as caught:
        parts = celeba(folder, allowed_missing=1)
    assert [len(part) for part in parts] == [4, 3, 3]
    assert caught[0].filename == __file__
    assert NAMES[4] not in [path.name for path in parts.test.files]


def test_a_part_without_rows_is_refused(tmp_path: Path) -> None:
    folder = torchvision(tmp_path)
    path = folder / "list_eval_partition.txt"
    path.write_text(path.read_text().replace(" 2", " 1"))
    with pytest.raises(InputError, match=r"has no row of split 2 \(test\)"):
        celeba(folder)
