"""A tiny ImageNet-LT: three lists, and images in folders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from autobalance import InputError
from autobalance_bench.datasets import imagenet_lt
from autobalance_bench.datasets.imagenet_lt import LISTS, load_imagenet_lt
from autobalance_bench.datasets.images import ImageSplits
from tiny_sets import picture

FOLDERS = ("n01440764", "n01443537", "n01484850")


def lines() -> list[list[str]]:
    """The long tail 4, 2, 1 for training, one of each class for validation (of train) and test."""
    train = [
        f"train/{FOLDERS[k]}/{FOLDERS[k]}_{i}.JPEG {k}"
        for k, n in enumerate((4, 2, 1))
        for i in range(n)
    ]
    held = [f"train/{FOLDERS[k]}/{FOLDERS[k]}_9{k}.JPEG {k}" for k in range(3)]
    test = [f"val/{FOLDERS[k]}/ILSVRC2012_val_0000000{k}.JPEG {k}" for k in (2, 0, 1)]
    return [train, held, test]


def write(folder: Path, listed: list[list[str]], root: str = "", flat: bool = False) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in zip(LISTS, listed, strict=True):
        (folder / name).write_text("\n".join(part) + "\n")
        for line in part:
            path = line.split()[0]
            if flat and path.startswith("val/"):
                path = f"val/{path.rpartition('/')[2]}"
            picture(folder / root / path, 60)
    return folder


def check(parts: ImageSplits) -> None:
    assert [len(p) for p in parts] == [7, 3, 3]
    assert np.bincount(parts.train.targets).tolist() == [4, 2, 1]
    assert parts.test.targets.tolist() == [2, 0, 1]
    for part in parts:
        assert part.class_names == FOLDERS
        assert part.load()[1].shape == (len(part), 3, 8, 8)


@pytest.mark.parametrize("flat", [False, True], ids=["sorted", "as published"])
@pytest.mark.parametrize("root", ["", "ILSVRC/Data/CLS-LOC"], ids=["plain", "kaggle"])
def test_the_lists_are_read(tmp_path: Path, root: str, flat: bool) -> None:
    write(tmp_path, lines(), root, flat)
    check(load_imagenet_lt(tmp_path, size=8))
    images = write(tmp_path / "b", lines(), root, flat)
    lists = tmp_path / "lists"
    lists.mkdir()
    for name in LISTS:
        (images / name).rename(lists / name)
    check(load_imagenet_lt(images, lists=lists, size=8))
    assert [len(p) for p in load_imagenet_lt(images, lists=lists, limit=2)] == [2, 2, 2]


def test_a_tab_separates_too_and_names_may_be_of_another_encoding(tmp_path: Path) -> None:
    write(tmp_path, [[line.replace(" ", "\t") for line in part] for part in lines()])
    listed = tmp_path / LISTS[0]
    odd = b"train/n01440764/caf\xe9.JPEG\t0\n"
    listed.write_bytes(listed.read_bytes() + odd)
    with pytest.raises(InputError, match="caf"):
        load_imagenet_lt(tmp_path, size=8)  # which is not there
    with pytest.warns(UserWarning, match="caf"):
        check(load_imagenet_lt(tmp_path, size=8, allowed_missing=1))


def whole_set(folder: Path) -> Path:
    """An image of each of 1,000 classes in each list; nothing opens them."""
    for name, inside in zip(LISTS, ("train", "train", "val"), strict=True):
        paths = [f"{inside}/n{k:08d}/{name}.JPEG" for k in range(1000)]
        for path in paths:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).touch()
        (folder / name).write_text("".join(f"{path} {k}\n" for k, path in enumerate(paths)))
    return folder


def test_lists_of_all_classes_say_where_they_differ_from_the_published_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = whole_set(tmp_path)
    with pytest.warns(UserWarning, match="the published list has") as caught:
        assert len(load_imagenet_lt(folder).train) == 1000
    assert caught[0].filename == __file__
    for warning, name, n in zip(caught, LISTS, ("115,846", "20,000", "50,000"), strict=True):
        text = f"{name} has 1,000 images; the published list has {n}. If it is not your own, it may"
        assert text in str(warning.message)
    monkeypatch.setattr(imagenet_lt, "LENGTHS", (1000, 1000, 1000))
    load_imagenet_lt(folder)


@pytest.mark.parametrize(
    ("add", "message"),
    [
        (
            (0, "train/n01440764/n01440764_1.JPEG 0"),
            r"LT_train.txt names the image .*n01440764_1.JPEG twice. Take one line out",
        ),
        (
            (0, "train/./n01440764/n01440764_1.JPEG 0"),
            r"LT_train.txt names the image .*n01440764_1.JPEG twice",
        ),
        (
            (1, "train/n01443537/n01443537_0.JPEG 1"),
            r"LT_train.txt and .*LT_val.txt both name the image .*n01443537_0.JPEG, but no image",
        ),
        (
            (0, "val/n01440764/ILSVRC2012_val_00000000.JPEG 0"),
            r"LT_train.txt and .*LT_test.txt both name the image .*val_00000000.JPEG.* from http",
        ),
    ],
)
@pytest.mark.parametrize("flat", [False, True], ids=["sorted", "as published"])
def test_an_image_listed_twice_is_refused(
    tmp_path: Path, add: tuple[int, str], message: str, flat: bool
) -> None:
    listed = lines()
    listed[add[0]].append(add[1])
    with pytest.raises(InputError, match=message):
        load_imagenet_lt(write(tmp_path, listed, flat=flat))


def test_missing_images_are_named_or_left_out(tmp_path: Path) -> None:
    folder = write(tmp_path, lines())
    (folder / "train" / FOLDERS[0] / f"{FOLDERS[0]}_2.JPEG").unlink()
    with pytest.raises(
        InputError, match=r"LT_train.txt names 1 of 7 images .*_2.JPEG. Check .*net.org"
    ):
        load_imagenet_lt(folder)
    with pytest.warns(UserWarning, match="1 of 7 images"):
        assert len(load_imagenet_lt(folder, allowed_missing=1).train) == 6


def test_a_folder_of_another_layout_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"The folder .* of ImageNet is not there"):
        load_imagenet_lt(tmp_path / "none")
    picture(tmp_path / "images" / "x.jpg")
    with pytest.raises(
        InputError,
        match=r"lacks ImageNet_LT_train.txt, .*; it has: images. Get the lists from http",
    ):
        load_imagenet_lt(tmp_path)
    for name in LISTS:
        (tmp_path / name).write_text("train/a/x.JPEG 0\n")
    with pytest.raises(InputError, match=r"must hold ImageNet's folder train; it has: ImageNet_LT"):
        load_imagenet_lt(tmp_path)


@pytest.mark.parametrize(
    ("part", "content", "message"),
    [
        (
            0,
            "train/a/x.JPEG",
            r"train.txt, line 1: expected a path and a class number, .*got 'train/a",
        ),
        (0, "train/a/x.JPEG 0\ntrain/b/x.JPEG one", "line 2: expected a path"),
        (0, "\n\n", "LT_train.txt is empty"),
        (0, "train/a/x.JPEG 0\ntrain/b/x.JPEG 3", "classes up to 3, but no image of 2 .*: 1, 2"),
        (0, "train/a/x.JPEG 0\ntrain/b/x.JPEG 0", "gives class 0 to the folders a and b"),
        (2, "val/a/x.JPEG 3", "LT_test.txt has class 3, but ImageNet_LT_train.txt only 0 to 2"),
    ],
)
def test_broken_lists_are_refused(tmp_path: Path, part: int, content: str, message: str) -> None:
    folder = write(tmp_path, lines())
    (folder / LISTS[part]).write_text(content)
    with pytest.raises(InputError, match=message):
        load_imagenet_lt(folder)
