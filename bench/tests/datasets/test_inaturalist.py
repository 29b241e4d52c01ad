"""A tiny iNaturalist 2018: annotations as published, and images in folders."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autobalance import InputError
from autobalance_bench.datasets import inaturalist
from autobalance_bench.datasets.downloads import Published
from autobalance_bench.datasets.images import LabelledImages
from autobalance_bench.datasets.inaturalist import load_inaturalist_2018
from tiny_sets import md5, picture

TRAIN = {11: 5, 12: 5, 13: 8000, 14: 5, 15: 42}
"""Category of each image id: ids with gaps, of which 5 has three images."""

HELD = {21: 42, 22: 5}


def record(categories: dict[int, int]) -> dict[str, Any]:
    return {
        "info": {"year": 2018},
        "images": [
            {"id": i, "file_name": f"train_val2018/Aves/{c}/{i}.png", "width": 12, "height": 10}
            for i, c in sorted(categories.items(), reverse=True)
        ],
        "annotations": [
            {"id": 7 * i, "image_id": i, "category_id": c} for i, c in categories.items()
        ],
        "categories": [
            {"id": c, "name": f"Species {c}", "supercategory": "Aves"} for c in (8000, 5, 42, 99)
        ],
    }


def write(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, categories in (("train2018", TRAIN), ("val2018", HELD)):
        (folder / f"{name}.json").write_text(json.dumps(record(categories)))
        for i, c in categories.items():
            picture(folder / f"train_val2018/Aves/{c}/{i}.png", i)
    return folder


def pack(path: Path, name: str, source: Path) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        archive.add(source, name)
    return path


def check(parts: tuple[LabelledImages, LabelledImages]) -> None:
    train, held = parts
    assert train.class_names == held.class_names == ("Species 5", "Species 42", "Species 8000")
    assert train.targets.tolist() == [0, 0, 2, 0, 1]
    assert held.targets.tolist() == [1, 0]
    assert train.load()[1][:, 0, 0, 0].tolist() == list(TRAIN)
    assert held.load()[1][:, 0, 0, 0].tolist() == list(HELD)
    assert np.bincount(train.targets).tolist() == [3, 1, 1]


def test_the_annotations_are_read(tmp_path: Path) -> None:
    check(load_inaturalist_2018(write(tmp_path), size=4))
    assert [len(p) for p in load_inaturalist_2018(tmp_path, limit=2)] == [2, 2]


def test_annotations_are_read_as_they_are_packed(tmp_path: Path) -> None:
    write(tmp_path)
    for name in ("train2018.json", "val2018.json"):
        pack(tmp_path / f"{name}.tar.gz", f"./{name}", tmp_path / name)
        (tmp_path / name).unlink()
    check(load_inaturalist_2018(tmp_path, size=4))


def test_archives_are_unpacked_where_a_download_is_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write(tmp_path / "source")
    (tmp_path / "mine").mkdir()
    files = [
        pack(tmp_path / "mine" / f"{name}.tar.gz", name, source / name)
        for name in ("train2018.json", "val2018.json", "train_val2018")
    ]
    published = [
        Published(f"http://127.0.0.1:9/{p.name}", f"md5:{md5(p.read_bytes())}") for p in files
    ]
    monkeypatch.setattr(inaturalist, "ANNOTATIONS", tuple(published[:2]))
    monkeypatch.setattr(inaturalist, "IMAGES", published[2])
    check(load_inaturalist_2018(tmp_path / "mine", size=4, download=True))
    assert not list((tmp_path / "mine").glob("*.part"))
    with pytest.raises(InputError, match=r"train2018.json.tar.gz cannot be downloaded"):
        load_inaturalist_2018(tmp_path / "other", download=True)


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"The folder .* of iNaturalist 2018 is not there"):
        load_inaturalist_2018(tmp_path / "none")
    with pytest.raises(
        InputError, match=r"lacks train2018.json \(or train2018.json.tar.gz\); it is empty. Get it"
    ):
        load_inaturalist_2018(tmp_path)
    write(tmp_path)
    (tmp_path / "train_val2018").rename(tmp_path / "images")
    with pytest.raises(
        InputError,
        match=r"lacks the folder train_val2018; it has: images, .*download=True \(120 GB",
    ):
        load_inaturalist_2018(tmp_path)
    (tmp_path / "images").rename(tmp_path / "train_val2018")
    (tmp_path / "train_val2018" / "Aves" / "5" / "12.png").unlink()
    with pytest.raises(InputError, match=r"train2018.json names 1 of 5 images .*5/12.png"):
        load_inaturalist_2018(tmp_path)
    with pytest.warns(UserWarning, match="1 of 5"):
        assert len(load_inaturalist_2018(tmp_path, allowed_missing=1)[0]) == 4


def test_a_training_image_among_the_validation_images_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path)
    held = record(HELD)
    held["images"][0]["file_name"] = "train_val2018/Aves/5/12.png"
    (folder / "val2018.json").write_text(json.dumps(held))
    with pytest.raises(
        InputError,
        match=r"train2018.json and .*val2018.json both name the image .*5/12.png, but no",
    ):
        load_inaturalist_2018(folder)


def drop(key: str) -> Callable[[dict[str, Any]], Any]:
    return lambda r: r.pop(key)


def extended(key: str, **entry: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda r: r[key].append(entry)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (drop("annotations"), "not laid out as iNaturalist's .*'annotations' is missing"),
        (drop("categories"), "'categories' is missing"),
        (lambda r: r.update(images=[3]), "not laid out as iNaturalist's annotations"),
        (extended("annotations", image_id=99, category_id=5), "images that it does not list: 99"),
        (extended("images", id=30, file_name="x.png"), "no category for some images: 30"),
        (extended("annotations", image_id=21, category_id=5), "two annotations of one image"),
        (
            lambda r: r.update(categories=r["categories"][:1]),
            "categories that it does not .*: 5, 42",
        ),
        (lambda r: r.update(images=[], annotations=[]), "val2018.json has no image"),
        (
            lambda r: r["annotations"][0].update(category_id=99),
            "images of 1 categories that train2018.json has no image of: 99",
        ),
    ],
)
def test_broken_annotations_are_refused(tmp_path: Path, spoil: Any, message: str) -> None:
    folder = write(tmp_path)
    held = record(HELD)
    spoil(held)
    (folder / "val2018.json").write_text(json.dumps(held))
    with pytest.raises(InputError, match=message):
        load_inaturalist_2018(folder)


def test_unreadable_annotations_are_refused(tmp_path: Path) -> None:
    folder = write(tmp_path)
    (folder / "val2018.json").write_text("{")
    with pytest.raises(InputError, match=r"val2018.json cannot be read: .* Get it from https"):
        load_inaturalist_2018(folder)
    (folder / "val2018.json").unlink()
    (folder / "val2018.json.tar.gz").write_bytes(b"x" * 100)
    with pytest.raises(InputError, match=r"val2018.json.tar.gz cannot be read"):
        load_inaturalist_2018(folder)
    with tarfile.open(folder / "val2018.json.tar.gz", "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("readme"), io.BytesIO())
    with pytest.raises(InputError, match=r"does not hold val2018.json"):
        load_inaturalist_2018(folder)
