"""A folder per class, and a table of paths and labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from autobalance import InputError
from autobalance_bench.datasets.own_images import read_class_folders, read_image_table
from tiny_sets import picture


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three classes of 4, 2 and 1 images; the last lies a folder deeper."""
    for i in range(4):
        picture(tmp_path / "cat" / f"{i}.png", 10 * i)
    picture(tmp_path / "ant" / "a.JPG", 100)
    picture(tmp_path / "ant" / "b.jpeg", 110)
    picture(tmp_path / "bee" / "more" / "c.bmp", 200)
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    picture(tmp_path / "cat" / ".hidden.png")
    picture(tmp_path / ".cache" / "x.png")
    return tmp_path


def reds(pixels: np.ndarray) -> list[int]:
    return pixels[:, 0, 0, 0].tolist()


def test_classes_are_folders_in_order_of_their_names(folder: Path) -> None:
    images = read_class_folders(folder, size=4)
    assert images.class_names == ("ant", "bee", "cat")
    assert images.targets.tolist() == [0, 0, 1, 2, 2, 2, 2]
    np.testing.assert_allclose(reds(images.load()[1]), [100, 110, 200, 0, 10, 20, 30], atol=3)
    assert images.load()[1].shape == (7, 3, 4, 4)
    assert images.groups is None
    assert len(read_class_folders(folder, limit=3)) == 3


def test_links_to_folders_are_followed(folder: Path, tmp_path: Path) -> None:
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / "a").symlink_to(folder / "ant")
    (linked / "b").symlink_to(folder / "bee")
    assert read_class_folders(linked).targets.tolist() == [0, 0, 1]


def test_other_layouts_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"The folder .*none of class folders is not there"):
        read_class_folders(folder / "none")
    with pytest.raises(InputError, match=r"The folder .*0.png of class folders is a file"):
        read_class_folders(folder / "cat" / "0.png")
    with pytest.raises(InputError, match=r"no folder in it, .*; it has: 0.png, 1.png.*in a table"):
        read_class_folders(folder / "cat")
    for name in ("train", "val"):
        picture(tmp_path / ".splits" / name / "ant" / "x.png")
    with pytest.raises(
        InputError, match=r"not classes: train, val. Give one of them, such as .*tra"
    ):
        read_class_folders(tmp_path / ".splits")
    with pytest.raises(InputError, match="size must be at least 1; got 0"):
        read_class_folders(folder, size=0)
    (folder / "dog").mkdir()
    (folder / "eel").mkdir()
    with pytest.raises(InputError, match=r"2 of 5 class folders .* hold no image: dog, eel. Fill"):
        read_class_folders(folder)


@pytest.fixture
def table(tmp_path: Path) -> pd.DataFrame:
    """Class ids with gaps, groups by name; the paths start from the table's folder."""
    for i in range(6):
        picture(tmp_path / "images" / f"{i}.png", 30 * i)
    return pd.DataFrame(
        {
            "path": [f"images/{i}.png" for i in range(6)],
            "target": [10, 2, 10, 2, 7, 7],
            "place": ["sea", "land", "land", "sea", "sea", "land"],
        }
    )


def write_table(table: pd.DataFrame, folder: Path) -> Path:
    table.to_csv(folder / "list.csv", index=False)
    return folder / "list.csv"


def test_a_table_gives_labels_with_gaps_and_groups(tmp_path: Path, table: pd.DataFrame) -> None:
    path = tmp_path / "list.csv"
    table.to_csv(path, index=False)
    images = read_image_table(path, groups="place", size=2)
    assert images.class_names == ("2", "7", "10")  # as numbers, not as text
    assert images.targets.tolist() == [2, 0, 2, 0, 1, 1]
    assert images.group_names == ("land", "sea")
    assert images.groups is not None
    assert images.groups.tolist() == [1, 0, 0, 1, 1, 0]
    assert reds(images.load()[1]) == [0, 30, 60, 90, 120, 150]
    assert read_image_table(path).groups is None


def test_a_table_may_start_from_home(
    tmp_path: Path, table: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    table.to_csv(tmp_path / "list.csv", index=False)
    assert read_image_table("~/list.csv").names[0] == str(tmp_path / "images" / "0.png")


def test_missing_files_are_named_counted_and_may_be_allowed(
    tmp_path: Path, table: pd.DataFrame
) -> None:
    path = tmp_path / "list.csv"
    table.loc[len(table)] = ["elsewhere/x.png", 2, "sea"]
    table.to_csv(path, index=False)
    (tmp_path / "images" / "4.png").unlink()
    with pytest.raises(
        InputError,
        match=r"list.csv names 2 of 7 images that are not there: .*images/4.png, .*elsewhere/x.png. "
        r"Check the folder, get them, or leave them out with allowed_missing=2",
    ):
        read_image_table(path, allowed_missing=1)
    with pytest.warns(UserWarning, match=r"2 of 7 images .*they are left out"):
        images = read_image_table(path, groups="place", allowed_missing=2)
    assert [Path(name).name for name in images.names] == [
        "0.png",
        "1.png",
        "2.png",
        "3.png",
        "5.png",
    ]
    assert images.targets.tolist() == [2, 0, 2, 0, 1]
    assert images.groups is not None
    assert len(images.groups) == 5


def test_images_in_several_rows_are_told_and_kept(tmp_path: Path, table: pd.DataFrame) -> None:
    table.loc[6] = ["images/./1.png", 2, "sea"]
    table.loc[7] = ["images/0.png", 10, "sea"]
    with pytest.warns(
        UserWarning,
        match=r"list.csv names 2 of 8 images again, the first .*images/1.png. Drop these",
    ):
        images = read_image_table(write_table(table, tmp_path), folder=tmp_path)
    assert len(images) == 8


def test_many_missing_files_are_cut_short(tmp_path: Path) -> None:
    table = pd.DataFrame({"path": [f"{i}.png" for i in range(30)], "target": np.arange(30) % 2})
    with pytest.raises(
        InputError, match=r"names 30 of 30 images .*9.png, \.\.\.\. Check"
    ) as raised:
        read_image_table(write_table(table, tmp_path), folder=tmp_path)
    assert str(raised.value).count(".png") == 10


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path": "file"}, "The image column 'file' is not in the table"),
        ({"target": "class"}, "The target column 'class' is not in the table"),
        ({"groups": "sex"}, "The group column 'sex' is not in the table"),
        ({"target": "share"}, r"the class must be a name or a whole number; got 0.5"),
        ({"target": "one"}, "there must be two classes; got only x"),
        ({"target": "part"}, r"The target column 'part' has 1 missing value \(the first in row 1"),
    ],
)
def test_tables_refused(
    tmp_path: Path, table: pd.DataFrame, options: dict[str, str], message: str
) -> None:
    table = table.assign(share=0.5, one="x", part=[None, *"ababa"])
    with pytest.raises(InputError, match=message):
        read_image_table(write_table(table, tmp_path), folder=tmp_path, **options)  # pyright: ignore[reportArgumentType]
