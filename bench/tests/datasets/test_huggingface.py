"""Objects that behave as those of Hugging Face's `datasets`: features, rows and columns."""

from __future__ import annotations

import sys
from io import BytesIO
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from autobalance._validation import InputError
from autobalance_bench.datasets.huggingface import from_hugging_face, hugging_face_images


class Rows:
    """The part of `datasets.Dataset` that is used."""

    def __init__(self, columns: dict[str, list[Any]], **names: list[str]) -> None:
        self.columns = columns
        self.features = {
            name: SimpleNamespace(names=names[name])
            if name in names
            else SimpleNamespace(dtype="x")
            for name in columns
        }

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, key: str | int) -> Any:
        if isinstance(key, str):
            return self.columns[key]
        return {name: values[key] for name, values in self.columns.items()}

    def select_columns(self, names: list[str]) -> Rows:
        return Rows({name: self.columns[name] for name in names})


def picture(red: int) -> Image.Image:
    return Image.new("RGB", (12, 8), (red, 0, 0))


def encoded(red: int) -> bytes:
    out = BytesIO()
    picture(red).save(out, "PNG")
    return out.getvalue()


NAMES = ["cat", "ant", "bee"]  # a ClassLabel keeps its order
REDS = [10, 20, 30, 40]


def images(cells: list[Any] | None = None) -> Rows:
    return Rows(
        {
            "image": cells or [picture(r) for r in REDS],
            "label": [0, 2, 0, 1],
            "place": ["sea", "land", "sea", "sea"],
        },
        label=NAMES,
    )


def test_images_and_class_labels() -> None:
    found = from_hugging_face(images(), groups="place", size=4)
    assert found.data.inputs.shape == (4, 3, 4, 4)
    np.testing.assert_allclose(found.data.inputs[:, 0, 1, 1].numpy() * 255, REDS, rtol=1e-6)
    assert found.class_names == tuple(NAMES)
    assert found.data.target.tolist() == [0, 2, 0, 1]
    assert found.group_names == ("land", "sea")
    assert found.data.groups is not None
    assert found.data.groups.tolist() == [1, 0, 1, 1]


@pytest.mark.parametrize("kind", ["bytes", "path", "array", "grey"])
def test_images_in_other_forms(tmp_path: Path, kind: str) -> None:
    def cell(red: int) -> Any:
        if kind == "bytes":
            return {"bytes": encoded(red), "path": None}
        if kind == "path":
            (tmp_path / f"{red}.png").write_bytes(encoded(red))
            return {"bytes": None, "path": str(tmp_path / f"{red}.png")}
        array = np.asarray(picture(red))
        return array if kind == "array" else array[..., 0].tolist()

    found = from_hugging_face(images([cell(r) for r in REDS]), size=2)
    np.testing.assert_allclose(found.data.inputs[:, 0, 0, 0].numpy() * 255, REDS, rtol=1e-6)


def test_many_images_are_decoded_as_they_are_needed(tmp_path: Path) -> None:
    """From their bytes, a broken one being told then; other columns stay undecoded."""
    read: list[list[str]] = []

    class Undecoded(Rows):
        def __getitem__(self, key: str | int) -> Any:
            row = super().__getitem__(key)
            if not isinstance(key, str):
                read.append(list(row))
            return row

        def select_columns(self, names: list[str]) -> Rows:
            return Undecoded({name: self.columns[name] for name in names})

    cells = [{"bytes": encoded(r), "path": None} for r in REDS]
    rows = images(cells)
    lazy = hugging_face_images(Undecoded(rows.columns, label=NAMES), groups="place", size=4)
    assert len(read) == 1  # whether it is an image
    in_memory = from_hugging_face(rows, groups="place", size=4).data
    data = lazy.load()
    assert torch.equal(data.inputs, in_memory.inputs)
    assert data.counts().tolist() == in_memory.counts().tolist()
    assert read == [["image"]] * 5
    stored = lazy.stored(tmp_path / "all.npy")
    assert torch.equal(stored.inputs[slice(0, 4)].float() / 255, data.inputs)
    cells[2]["bytes"] = b"no image"
    with pytest.warns(
        UserWarning, match="1 of 4 images are left out: in row 3 of the column 'image'"
    ):
        assert len(hugging_face_images(rows, size=4).readable(allowed=1)) == 3
    vectors = Rows({"image": [[0.5]] * 2, "label": [0, 1]}, label=NAMES)
    with pytest.raises(
        InputError, match=r"holds no images\. Read its numbers by from_hugging_face"
    ):
        hugging_face_images(vectors)


def test_embeddings_and_labels_by_name() -> None:
    rows = Rows({"vector": [[1.0, 2.0], [3.0, 4.0]], "kind": ["b", "a"]})
    found = from_hugging_face(rows, inputs="vector", target="kind")
    assert found.data.inputs.tolist() == [[1.0, 2.0], [3.0, 4.0]]
    assert found.class_names == ("a", "b")
    assert found.data.target.tolist() == [1, 0]
    again = from_hugging_face(rows, inputs="vector", target="kind", class_names=["b", "a", "c"])
    assert again.data.target.tolist() == [0, 1]
    assert again.data.num_classes == 3


def test_a_class_without_an_example_keeps_its_number() -> None:
    rows = Rows({"image": [[1.0], [2.0]], "label": [0, 2]}, label=NAMES)
    assert from_hugging_face(rows).data.counts().tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    ("dataset", "options", "message"),
    [
        (
            {"train": 1, "test": 2},
            {},
            r"has splits: train, test. Give one, such as dataset\['train'\]",
        ),
        ([1, 2], {}, "with features, length and columns was expected; got list"),
        (SimpleNamespace(features={"a": 1}), {}, "A streaming dataset must be taken into memory"),
        (images(), {"inputs": "img"}, "no column 'img'; it has: image, label, place"),
        (images(), {"groups": "sex"}, "no column 'sex'"),
        (
            images(),
            {"class_names": ["a"]},
            "classes of its own, cat, ant, bee; class_names must be",
        ),
        (images(), {"size": 0}, "size must be at least 1"),
        (Rows({"image": [], "label": []}, label=NAMES), {}, "has no row"),
        (
            Rows({"image": [[1.0]], "label": [-1]}, label=NAMES),
            {},
            "has -1 in row 1, but .* 0 to 2",
        ),
        (Rows({"image": [[1.0]], "label": [None]}, label=NAMES), {}, "has None in row 1"),
        (Rows({"image": [[1.0], [1.0, 2.0]], "label": [0, 1]}, label=NAMES), {}, "row 2 does not"),
        (Rows({"image": ["text", "b"], "label": [0, 1]}, label=NAMES), {}, "row 1 does not"),
        (images([picture(1), {"bytes": b"x"}, 1, 2]), {}, "in row 2 .* cannot be read"),
        (images([picture(1), {"bytes": None, "path": "no.png"}, 1, 2]), {}, "row 2 .*No such file"),
    ],
)
def test_refused(dataset: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        from_hugging_face(dataset, **options)


def test_a_row_that_does_not_decode_is_named() -> None:
    class Broken(Rows):
        def __getitem__(self, key: str | int) -> Any:
            if key == 2:
                raise OSError("cannot identify image file")
            return super().__getitem__(key)

        def select_columns(self, names: list[str]) -> Rows:
            return self

    broken = Broken(images().columns, label=NAMES)
    with pytest.raises(
        InputError, match="in row 3 of the column 'image' cannot be read: cannot id"
    ):
        from_hugging_face(broken)


def test_a_folder_is_read_by_the_library_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def load_from_disk(folder: str) -> Rows:
        asked.append(folder)
        if folder.endswith("none"):
            raise FileNotFoundError("Directory none not found")
        return images()

    library = ModuleType("datasets")
    library.load_from_disk = load_from_disk  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setitem(sys.modules, "datasets", library)
    assert len(from_hugging_face(tmp_path, size=2).data) == 4
    assert asked == [str(tmp_path)]
    with pytest.raises(InputError, match=r"none cannot be read as a dataset .* not found"):
        from_hugging_face(tmp_path / "none")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match=r"datasets must be installed: pip install datasets"):
        from_hugging_face(tmp_path)
