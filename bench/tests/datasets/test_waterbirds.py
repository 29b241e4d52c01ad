"""A tiny folder of Waterbirds' layout."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from autobalance import InputError
from autobalance_bench.datasets import waterbirds as module
from autobalance_bench.datasets.downloads import Published
from autobalance_bench.datasets.waterbirds import FOLDER, load_waterbirds
from tiny_sets import md5, pack


def metadata(parts: tuple[int, int, int] = (8, 4, 4)) -> pd.DataFrame:
    """Rows as published: birds in folders by kind, img_id from 1, bird and place in turns."""
    n = sum(parts)
    return pd.DataFrame(
        {
            "img_id": np.arange(n) + 1,
            "img_filename": [f"001.Black_footed_Albatross/Bird_{i:04d}.jpg" for i in range(n)],
            "y": np.arange(n) % 2,
            "split": np.repeat([0, 1, 2], parts),
            "place": np.arange(n) // 2 % 2,
            "place_filename": [f"/o/ocean/{i:08d}.jpg" for i in range(n)],
        }
    )


def write(folder: Path, table: pd.DataFrame) -> Path:
    """The folder, with the metadata and images whose red tells their row."""
    folder.mkdir(parents=True, exist_ok=True)
    table.to_csv(folder / "metadata.csv", index=False)
    for row, name in enumerate(table.get("img_filename", [])):
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (30, 20), (10 * row, 0, 0)).save(path, quality=95)
    return folder


def test_the_parts_are_read_with_bird_and_place(tmp_path: Path) -> None:
    train, validation, test = load_waterbirds(write(tmp_path, metadata()), size=8)
    assert [len(part) for part in (train, validation, test)] == [8, 4, 4]
    assert train.class_names == ("landbird", "waterbird")
    assert train.group_names == ("land", "water")
    images, pixels = test.load()
    assert pixels.shape == (4, 3, 8, 8)
    assert images.targets.tolist() == [0, 1, 0, 1]
    assert images.groups is not None
    assert images.groups.tolist() == [0, 0, 1, 1]
    np.testing.assert_allclose(pixels[:, 0, 4, 4], [120, 130, 140, 150], atol=3)


def test_rows_in_any_order_go_to_their_part(tmp_path: Path) -> None:
    table = metadata().sample(frac=1.0, random_state=0)
    parts = load_waterbirds(write(tmp_path, table))
    for number, part in enumerate(parts):
        rows = table[table["split"] == number]
        names = [f"{path.parent.name}/{path.name}" for path in map(Path, part.names)]
        assert names == list(rows["img_filename"])
        assert part.targets.tolist() == list(rows["y"])
        assert part.groups is not None
        assert part.groups.tolist() == list(rows["place"])


def test_the_folder_above_will_do(tmp_path: Path) -> None:
    write(tmp_path / FOLDER, metadata())
    assert load_waterbirds(tmp_path).train.load()[1].shape == (8, 3, 64, 64)


def test_a_limit_holds_for_each_part(tmp_path: Path) -> None:
    parts = load_waterbirds(write(tmp_path, metadata()), limit=4)
    assert [len(part) for part in parts] == [4, 4, 4]
    assert parts.train.groups is not None
    assert sorted(zip(parts.train.targets, parts.train.groups, strict=True)) == [
        (0, 0), (0, 1), (1, 0), (1, 1),
    ]  # fmt: skip


SOURCE = r"from https://nlp.stanford.edu/data/dro/waterbird_complete95_forest2water2.tar.gz"


def test_a_missing_folder_or_its_metadata_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"The folder .*/absent of Waterbirds is not there. Give"):
        load_waterbirds(tmp_path / "absent")
    (tmp_path / "birds").mkdir()
    with pytest.raises(
        InputError,
        match=rf"metadata.csv is not there; it has: birds. Get .* {SOURCE} .*download=True",
    ):
        load_waterbirds(tmp_path)


def test_the_archive_is_downloaded_and_unpacked_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a file that is there already as of one that has to come; test_downloads has the rest."""
    source = write(tmp_path / FOLDER, metadata())
    mine = tmp_path / "mine"
    files = {str(p.relative_to(tmp_path)): p.read_bytes() for p in source.rglob("*") if p.is_file()}
    archive = pack(mine / f"{FOLDER}.tar.gz", files)
    url = f"http://127.0.0.1:9/{archive.name}"
    monkeypatch.setattr(module, "ARCHIVE", Published(url, f"md5:{md5(archive.read_bytes())}"))
    assert load_waterbirds(mine, size=8, download=True).train.load()[1].shape == (8, 3, 8, 8)
    assert sorted(path.name for path in mine.iterdir() if path.suffix != ".lock") == [
        FOLDER, archive.name,
    ]  # fmt: skip
    archive.unlink()
    for there in (mine, mine / FOLDER):
        assert len(load_waterbirds(there, download=True).test) == 4
    with pytest.raises(InputError, match=r"cannot be downloaded: "):
        load_waterbirds(tmp_path / "other", download=True)


def test_a_folder_may_start_from_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "birds", metadata())
    assert len(load_waterbirds("~/birds").train) == 8


def test_missing_images_are_named_or_left_out_before_the_limit(tmp_path: Path) -> None:
    folder = write(tmp_path, metadata())
    for row in (3, 9):  # of training and of validation: each part may miss one
        next(folder.glob(f"*/Bird_000{row}.jpg")).unlink()
    with pytest.raises(
        InputError,
        match=rf"metadata.csv names 1 of 8 images .*Bird_0003.jpg. Check .*{SOURCE}.*missing=1",
    ):
        load_waterbirds(folder)
    with pytest.warns(UserWarning, match=r"names 1 of . images .*; they are left out") as caught:
        parts = load_waterbirds(folder, limit=7, allowed_missing=1)
    assert [len(part) for part in parts] == [7, 3, 4]
    assert len(caught) == 2
    assert parts.train.load()[1].shape == (7, 3, 64, 64)
    with pytest.raises(InputError, match="allowed_missing must be at least 0; got -1"):
        load_waterbirds(folder, allowed_missing=-1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: t.drop(columns="place"),
            "The group column 'place' is not in the table, which has",
        ),
        (lambda t: t.drop(columns="img_filename"), "The image column 'img_filename' is not in"),
        (lambda t: t.assign(y=t["y"] * 2), r"metadata.csv: y must be one of 0, 1; got .*2.* row 2"),
        (lambda t: t.assign(split=3), r"split must be one of 0, 1, 2; got .*3"),
        (lambda t: t[t["split"] != 1], r"metadata.csv has no row of split 1 \(validation\)"),
        (lambda t: t.head(0), "has no rows"),
    ],
)
def test_spoilt_metadata_is_refused(tmp_path: Path, change: object, message: str) -> None:
    assert callable(change)
    folder = write(tmp_path, change(metadata()))
    with pytest.raises(InputError, match=message):
        load_waterbirds(folder)


def test_a_bad_size_or_limit_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path, metadata())
    with pytest.raises(InputError, match="size must be at least 1; got 0"):
        load_waterbirds(folder, size=0)
    with pytest.raises(InputError, match="limit must be at least 1; got 0"):
        load_waterbirds(folder, limit=0)
