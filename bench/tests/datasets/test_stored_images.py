"""Inputs in files: written once, read as they are needed, and the same as in memory."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from autobalance._validation import InputError
from autobalance.bilevel.driver import search
from autobalance.cli.run_folder import sample_sheet
from autobalance.data.array_data import ArrayData, concatenated
from autobalance.data.stored import StoredRows
from autobalance.heads.features import extract_features
from autobalance.networks import FromBytes, SmallCNN
from autobalance.records.settings import Recipe, SearchSettings
from autobalance_bench.augmentations import StandardAugmentation
from autobalance_bench.datasets import downloads, photographs
from autobalance_bench.datasets.longtail import long_tailed
from autobalance_bench.datasets.photographs import Photographs

RECIPE = Recipe(epochs=1, min_steps=30, batch_size=8, lr=0.02)


@pytest.fixture
def images(tmp_path: Path) -> Photographs:
    """Forty of two classes, one being three times as frequent; the rare one is darker."""
    generator = np.random.default_rng(0)
    files = []
    for i in range(40):
        pixels = generator.integers(0, 100 if i % 4 == 0 else 255, (8, 8, 3), dtype=np.uint8)
        files.append(tmp_path / f"{i}.png")
        Image.fromarray(pixels).save(files[-1])
    target = (np.arange(40) % 4 == 0).astype(np.int64)
    return Photographs(tuple(files), target, None, ("pale", "dark"), (), 8, False, "")


def network() -> nn.Module:
    return nn.Sequential(FromBytes(), SmallCNN(2, channels=3, size=(8, 8)))


def same(first: Any, second: Any) -> None:
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name


def test_stored_images_are_the_pixels_and_decoded_once(
    tmp_path: Path, images: Photographs, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, seen = tmp_path / "decoded" / "all.npy", []
    monkeypatch.setattr(photographs, "READ_TOGETHER", 16)
    data = images.stored(path, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(16, 40), (32, 40), (40, 40)]
    assert isinstance(data.inputs, StoredRows)
    assert torch.equal(data.inputs[slice(0, 40)], torch.from_numpy(images.pixels()))
    assert data.counts().tolist() == [30, 10]
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for file in images.files:
        assert isinstance(file, Path)
        file.rename(moved / file.name)
    there = tuple(moved / Path(str(file)).name for file in images.files)
    again = Photographs(there, images.target, None, images.class_names, (), 8, False, "")
    monkeypatch.setattr(photographs, "_decoded", None)  # would fail
    assert torch.equal(again.stored(path).inputs[torch.arange(40)], data.inputs[torch.arange(40)])


def test_writing_goes_on_where_it_broke_off(
    tmp_path: Path, images: Photographs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also over what was written but not noted."""
    monkeypatch.setattr(photographs, "READ_TOGETHER", 10)
    path, decode, decoded = tmp_path / "all.npy", photographs._decoded, []

    def counted(file: Any, *arguments: Any) -> Any:
        decoded.append(file)
        if len(decoded) == 25:
            raise KeyboardInterrupt
        return decode(file, *arguments)

    monkeypatch.setattr(photographs, "_decoded", counted)
    with pytest.raises(KeyboardInterrupt):
        images.stored(path)
    assert not path.exists()
    assert json.loads((tmp_path / "all.npy.json").read_text())["done"] == 20
    with (tmp_path / "all.npy.part").open("ab") as out:
        out.write(b"half a row")
    decoded.clear()
    monkeypatch.setattr(photographs, "_decoded", decode)
    data = images.stored(path)
    assert torch.equal(data.inputs[slice(0, 40)], torch.from_numpy(images.pixels()))


def test_broken_images_are_left_out_as_far_as_allowed(tmp_path: Path, images: Photographs) -> None:
    """What is allowed may be said after all were decoded."""
    Path(str(images.files[3])).write_bytes(b"no image")
    Path(str(images.files[8])).unlink()
    path = tmp_path / "all.npy"
    with pytest.raises(InputError, match=r"2 of 40 images cannot be used: .*3.png .*8.png"):
        images.stored(path, allowed=1)
    for _ in range(2):  # written now, and found there
        with pytest.warns(UserWarning, match="2 of 40 images are left out"):
            data = images.stored(path, allowed=2)
        kept = np.delete(np.arange(40), [3, 8])
        assert torch.equal(data.target, torch.from_numpy(images.target[kept]))
        good = images.subset(kept).pixels()
        assert torch.equal(data.inputs[slice(0, 38)], torch.from_numpy(good))


def test_a_file_of_other_images_is_refused(tmp_path: Path, images: Photographs) -> None:
    path = tmp_path / "all.npy"
    images.stored(path)
    with pytest.raises(InputError, match=r"all.npy holds other images than these"):
        images.subset(range(30)).stored(path)
    (tmp_path / "all.npy.json").unlink()
    with pytest.raises(InputError, match="holds other images"):
        images.stored(path)


def test_a_disk_without_room_is_told_before_anything_is_written(
    tmp_path: Path, images: Photographs, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"total": 1000, "free": 100})
    monkeypatch.setattr(downloads.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(InputError, match=r"takes 7.7 kB more, but 100 bytes are free. Make room"):
        images.stored(tmp_path / "all.npy")
    with pytest.raises(InputError, match="Not a directory"):
        images.stored(tmp_path / "0.png" / "all.npy")


def test_parts_are_joined_without_being_read(tmp_path: Path, images: Photographs) -> None:
    data = images.stored(tmp_path / "all.npy")
    other = images.subset(range(8)).stored(tmp_path / "few.npy")
    both = concatenated(data.subset(torch.arange(10, 20)), other)
    assert isinstance(both.inputs, StoredRows)
    expected = images.pixels()[[*range(10, 20), *range(8)]]
    assert torch.equal(both.inputs[torch.arange(18)], torch.from_numpy(expected))
    found = search(
        network,
        data,
        validation=other,
        recipe=RECIPE,
        device="cpu",
        settings=SearchSettings(every=3),
    )
    assert found.held_out is not None
    assert np.sum(found.held_out.predicted) == 8
    inside = ArrayData.of(torch.from_numpy(images.pixels()), images.target)
    with pytest.raises(InputError, match="both be in memory, both in files"):
        concatenated(data, inside)


@pytest.mark.parametrize("augment", ["shared", StandardAugmentation(1)])
def test_augmentation_learned_or_fixed_is_that_of_images_in_memory(
    tmp_path: Path, images: Photographs, augment: Any
) -> None:
    """As bytes in a file or in memory, or as floats."""
    common: dict[str, Any] = {"recipe": RECIPE, "device": "cpu"}
    settings = SearchSettings(every=3, choose=False)
    bytes_ = images.with_inputs(torch.from_numpy(images.pixels()))
    found = [
        search(network, data, augment=augment, settings=settings, **common)
        for data in (images.load(), bytes_, images.stored(tmp_path / "all.npy"))
    ]
    same(found[1].loss, found[2].loss)
    for name, value in found[0].loss.state_dict().items():  # scaled by numpy, to the last digit
        torch.testing.assert_close(found[1].loss.state_dict()[name], value, rtol=1e-3, atol=1e-3)
    sheets = [sample_sheet(found[0].augment, d) for d in (images.load(), bytes_)]
    if augment == "shared":
        assert sheets[0] is not None
        assert sheets[1] is not None
        np.testing.assert_allclose(sheets[0].images, sheets[1].images, atol=1e-5)


def test_sets_of_like_names_are_told_apart(tmp_path: Path) -> None:
    """Also where their files are of one length, as those of bitmaps are."""
    parts = []
    for part, grey in (("train", 10), ("test", 200)):
        (tmp_path / part).mkdir()
        files = tuple(tmp_path / part / f"{i}.bmp" for i in range(5))
        for file in files:
            Image.new("RGB", (8, 8), (grey,) * 3).save(file)
        parts.append(Photographs(files, np.arange(5) % 2, None, ("a", "b"), (), 8, False, ""))
    assert parts[0].identity != parts[1].identity
    assert parts[0].identity != replace(parts[0], size=4).identity
    parts[0].stored(tmp_path / "all.npy")
    with pytest.raises(InputError, match="holds other images than these, or they have changed"):
        parts[1].stored(tmp_path / "all.npy")
    before = parts[0].identity
    parts[0].files[2].rename(tmp_path / "gone")  # type: ignore[union-attr]
    assert parts[0].identity != before


def test_what_the_disk_lost_of_a_broken_off_file_is_written_again(
    tmp_path: Path, images: Photographs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(photographs, "READ_TOGETHER", 10)
    path, decode = tmp_path / "all.npy", photographs._decoded

    def broken(file: Any, *arguments: Any) -> Any:
        if file == images.files[25]:
            raise KeyboardInterrupt
        return decode(file, *arguments)

    monkeypatch.setattr(photographs, "_decoded", broken)
    with pytest.raises(KeyboardInterrupt):
        images.stored(path)
    monkeypatch.setattr(photographs, "_decoded", decode)
    part = tmp_path / "all.npy.part"
    part.write_bytes(part.read_bytes()[: -14 * 3 * 8 * 8 - 5])  # of twenty rows five are left whole
    data = images.stored(path)
    assert torch.equal(data.inputs[slice(0, 40)], torch.from_numpy(images.pixels()))


def test_a_class_that_loses_all_its_images_is_named(tmp_path: Path, images: Photographs) -> None:
    part = images.subset([0, 1, 2, 3])  # one is dark
    Path(str(images.files[0])).unlink()
    with pytest.warns(
        UserWarning, match=r"1 of 4 images are left out: .*No image is left of 'dark'\."
    ):
        part.readable(allowed=1)


def test_rows_by_arrays_and_features_of_data(tmp_path: Path, images: Photographs) -> None:
    data = images.stored(tmp_path / "all.npy")
    assert len(data.subset(long_tailed(images.target, 3.0))) == 40
    assert torch.equal(
        extract_features(nn.Flatten(), data), extract_features(nn.Flatten(), data.inputs)
    )
    assert repr(data.inputs).startswith("StoredRows((40, 3, 8, 8), torch.uint8, of ")
