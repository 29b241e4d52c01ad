"""Datasets of Hugging Face, in memory and in folders: images or numbers, and their labels."""

from __future__ import annotations

import sys
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import datasets
from autobalance import InputError
from autobalance_bench.datasets.hugging_face import read_hugging_face, read_hugging_face_vectors
from tiny_sets import picture

NAMES = ["cat", "ant", "bee"]  # a ClassLabel keeps its order
REDS = [10, 20, 30, 40]
LABELS = datasets.ClassLabel(names=NAMES)


def encoded(red: int) -> bytes:
    out = BytesIO()
    Image.new("RGB", (12, 8), (red, 0, 0)).save(out, "PNG")
    return out.getvalue()


def images(cells: list[Any] | None = None, labels: list[int | None] | None = None) -> Any:
    return datasets.Dataset.from_dict(
        {
            "image": cells or [{"bytes": encoded(r), "path": None} for r in REDS],
            "label": labels or [0, 2, 0, 1],
            "place": ["sea", "land", "sea", "sea"],
        },
        features=datasets.Features(
            {"image": datasets.Image(), "label": LABELS, "place": datasets.Value("string")}
        ),
    )


def vectors(cells: list[Any], labels: list[Any], declared: bool = True) -> Any:
    rows = datasets.Dataset.from_dict({"x": cells, "label": labels})
    return rows.cast_column("label", LABELS) if declared else rows


@pytest.mark.parametrize("form", ["none", "torch", "numpy"])
def test_images_and_class_labels(form: str) -> None:
    dataset = images() if form == "none" else images().with_format(form)
    found = read_hugging_face(dataset, groups="place", size=4)
    assert found.load()[1][:, 0, 1, 1].tolist() == REDS
    assert found.class_names == tuple(NAMES)
    assert found.targets.tolist() == [0, 2, 0, 1]
    assert found.group_names == ("land", "sea")
    assert found.groups is not None
    assert found.groups.tolist() == [1, 0, 1, 1]
    assert found[3][0][0, 1, 1] == 40


def test_images_in_files(tmp_path: Path) -> None:
    paths = [str(tmp_path / picture(tmp_path / f"{red}.png", red)) for red in REDS]
    found = read_hugging_face(images(paths), size=2)
    assert found.load()[1][:, 0, 0, 0].tolist() == REDS
    Path(paths[1]).unlink()
    with pytest.raises(InputError, match="The image in row 2 of the column 'image' is not there"):
        found.load()


def test_a_broken_image_is_told_when_it_is_decoded(tmp_path: Path) -> None:
    cells = [{"bytes": encoded(r), "path": None} for r in REDS]
    cells[2]["bytes"] = b"no image"
    broken = read_hugging_face(images(cells), size=4)
    with pytest.raises(
        InputError, match="in row 3 of the column 'image' cannot be read: cannot id"
    ):
        broken.load()
    with pytest.warns(UserWarning, match="1 of 4 images are left out: in row 3 of the column"):
        good, stored = broken.store(tmp_path / "all.npy", allowed=1)
    assert stored[slice(0, 3)][:, 0, 0, 0].tolist() == [10, 20, 40]
    assert good.targets.tolist() == [0, 2, 1]
    assert read_hugging_face(images(), size=4).identity != broken.identity


def test_folders_are_read_by_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of save_to_disk, of one split or several, and those of images by class."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    images().save_to_disk(str(tmp_path / "one"))
    both = datasets.DatasetDict({"train": images(), "test": images().select([1, 3])})
    both.save_to_disk(str(tmp_path / "several"))
    for red, name in ((50, "ant"), (60, "bee")):
        picture(tmp_path / "plain" / name / f"{red}.png", red)
    assert read_hugging_face(tmp_path / "one", size=2).load()[1][:, 0, 0, 0].tolist() == REDS
    assert len(read_hugging_face(tmp_path / "several")) == 4
    assert len(read_hugging_face(tmp_path / "several", split="test")) == 2
    plain = read_hugging_face(tmp_path / "plain", size=2)
    assert plain.load()[1][:, 0, 0, 0].tolist() == [50, 60]
    assert plain.class_names == ("ant", "bee")
    with pytest.raises(InputError, match="no split 'other'; there are: train, test"):
        read_hugging_face(tmp_path / "several", split="other")
    with pytest.raises(InputError, match="none cannot be read as a dataset of Hugging Face"):
        read_hugging_face(tmp_path / "none")


def test_vectors_and_labels_by_name() -> None:
    rows = vectors([[1.0, 2.0], [3.0, 4.0]], ["b", "a"], declared=False)
    found = read_hugging_face_vectors(rows, inputs="x")
    assert found.data.in_memory().dtype.is_floating_point
    assert found.data.in_memory().tolist() == [[1.0, 2.0], [3.0, 4.0]]
    assert found.class_names == ("a", "b")
    assert found.data.target.tolist() == [1, 0]
    fixed = datasets.Sequence(datasets.Value("int8"), length=2)
    again = read_hugging_face_vectors(rows.cast_column("x", fixed), inputs="x")
    np.testing.assert_array_equal(again.data.in_memory(), found.data.in_memory())
    gaps = read_hugging_face_vectors(vectors([[1.0], [2.0]], [0, 2]), inputs="x")
    assert gaps.data.counts().tolist() == [1, 0, 1]  # a class without an example keeps its number


@pytest.mark.parametrize(
    ("dataset", "options", "message"),
    [
        ([1, 2], {}, "A datasets.Dataset was expected; got list"),
        (images().to_iterable_dataset(), {}, "A streaming dataset must be taken into memory"),
        (images(), {"image": "img"}, "no column 'img'; it has: image, label, place"),
        (images(), {"groups": "sex"}, "no column 'sex'"),
        (images(), {"image": "place"}, "The column 'place' holds no images"),
        (images(), {"size": 0}, "size must be at least 1"),
        (images().select([]), {}, "has no row"),
        (images(labels=[-1, 0, 1, 2]), {}, "has -1 in row 1, but .* 0 to 2"),
        (images(labels=[None, 0, 1, 2]), {}, "has None in row 1"),
    ],
)
def test_refused(dataset: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_hugging_face(dataset, **options)


@pytest.mark.parametrize("cells", [[[1.0], [1.0, 2.0]], ["text", "b"], [1.0, 2.0], [[], []]])
def test_what_is_no_vector_is_refused(cells: list[Any]) -> None:
    with pytest.raises(InputError, match="'x' must hold lists of numbers of one length"):
        read_hugging_face_vectors(vectors(cells, [0, 1]), inputs="x")


def test_without_the_library_the_message_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match=r"needs datasets, .*pip install datasets"):
        read_hugging_face(tmp_path)
