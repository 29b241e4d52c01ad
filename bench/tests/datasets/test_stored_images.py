"""Rows written once into a file: continued where a run was killed, and told apart."""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from autobalance import InputError, Recipe, SearchSettings, search
from autobalance.data.array_data import ArrayData
from autobalance.data.stored import StoredRows
from autobalance.networks import FromBytes, SmallCNN
from autobalance_bench.augmentations import StandardAugmentation
from autobalance_bench.datasets.stored_images import Part, write_rows


@dataclass(frozen=True)
class Pictures:
    """Images as a decoder hands them over: ten at a time, with those that it could not decode."""

    array: np.ndarray
    target: np.ndarray
    bad: tuple[int, ...] = ()

    def pixels(self) -> np.ndarray:
        return self.array

    def subset(self, rows: Any) -> Pictures:
        return Pictures(self.array[np.asarray(rows)], self.target[np.asarray(rows)])

    def parts(self, start: int) -> Iterator[Part]:
        for begin in range(start, len(self.array), 10):
            rows = self.array[begin : begin + 10]
            yield rows, {i: "broken" for i in self.bad if begin <= i < begin + 10}

    def stored(self, path: Path, parts: Any = None) -> ArrayData:
        identity = hashlib.sha256(self.array.tobytes()).hexdigest()
        parts = self.parts if parts is None else parts
        bad = write_rows(path, identity=identity, shape=self.array.shape, parts=parts)
        assert bad == dict.fromkeys(self.bad, "broken")
        good = np.delete(np.arange(len(self.array)), list(bad))
        return ArrayData.of(StoredRows([path], good), self.target[good], num_classes=2)


@pytest.fixture
def images() -> Pictures:
    """Forty of two classes, one being three times as frequent; the rare one is darker."""
    generator = np.random.default_rng(0)
    pixels = [
        generator.integers(0, 100 if i % 4 == 0 else 255, (8, 8, 3), dtype=np.uint8)
        for i in range(40)
    ]
    target = (np.arange(40) % 4 == 0).astype(np.int64)
    return Pictures(np.ascontiguousarray(np.stack(pixels).transpose(0, 3, 1, 2)), target)


def test_stored_images_are_the_pixels_and_written_once(tmp_path: Path, images: Pictures) -> None:
    path = tmp_path / "decoded" / "all.npy"
    data = images.stored(path)
    assert isinstance(data.inputs, StoredRows)
    assert torch.equal(data.inputs[slice(0, 40)], torch.from_numpy(images.pixels()))
    assert data.counts().tolist() == [30, 10]
    again = images.stored(path, parts=lambda start: pytest.fail("it is there"))
    assert torch.equal(again.inputs[torch.arange(40)], data.inputs[torch.arange(40)])


def stop_after(images: Pictures, parts: int) -> Callable[[int], Iterator[Part]]:
    """Decodes so many parts, and is killed."""

    def read(start: int) -> Iterator[Part]:
        yield from itertools.islice(images.parts(start), parts)
        raise KeyboardInterrupt

    return read


def test_writing_goes_on_where_it_broke_off(tmp_path: Path, images: Pictures) -> None:
    """Also over what was written but not noted."""
    path, starts = tmp_path / "all.npy", []
    with pytest.raises(KeyboardInterrupt):
        images.stored(path, parts=stop_after(images, 2))
    assert not path.exists()
    assert json.loads((tmp_path / "all.npy.json").read_text())["done"] == 20
    with (tmp_path / "all.npy.part").open("ab") as out:
        out.write(b"half a row")
    data = images.stored(path, parts=lambda start: (starts.append(start), images.parts(start))[1])
    assert starts == [20]
    assert torch.equal(data.inputs[slice(0, 40)], torch.from_numpy(images.pixels()))


def test_rows_that_are_not_good_are_noted(tmp_path: Path, images: Pictures) -> None:
    part = replace(images, bad=(3, 8, 31))
    with pytest.raises(KeyboardInterrupt):
        part.stored(tmp_path / "all.npy", parts=stop_after(part, 2))
    for _ in range(2):  # written now, and found there
        data = part.stored(tmp_path / "all.npy")
        good = np.delete(np.arange(40), [3, 8, 31])
        assert torch.equal(data.target, torch.from_numpy(images.target[good]))
        assert torch.equal(data.inputs[slice(0, 37)], torch.from_numpy(images.pixels()[good]))


def test_a_file_of_other_images_is_refused(tmp_path: Path, images: Pictures) -> None:
    path = tmp_path / "all.npy"
    images.stored(path)
    with pytest.raises(InputError, match=r"all.npy holds other images than these"):
        images.subset(range(30)).stored(path)
    (tmp_path / "all.npy.json").unlink()
    with pytest.raises(InputError, match="holds other images"):
        images.stored(path)


def test_a_disk_without_room_is_told_before_anything_is_written(
    tmp_path: Path, images: Pictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"total": 1000, "free": 100})
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(InputError, match=r"takes 7.7 kB more, but 100 bytes are free. Make room"):
        images.stored(tmp_path / "all.npy")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"Not a directory|File exists"):
        images.stored(tmp_path / "file" / "all.npy")


def test_what_the_disk_lost_of_a_broken_off_file_is_written_again(
    tmp_path: Path, images: Pictures
) -> None:
    path = tmp_path / "all.npy"
    with pytest.raises(KeyboardInterrupt):
        images.stored(path, parts=stop_after(images, 2))
    part = tmp_path / "all.npy.part"
    part.write_bytes(part.read_bytes()[: -14 * 3 * 8 * 8 - 5])  # of twenty rows five are left whole
    data = images.stored(path)
    assert torch.equal(data.inputs[slice(0, 40)], torch.from_numpy(images.pixels()))


def network() -> nn.Module:
    return nn.Sequential(FromBytes(), SmallCNN(2, channels=3, size=(8, 8)))


@pytest.mark.parametrize("augment", ["shared", StandardAugmentation(1)])
def test_augmentation_is_that_of_images_in_memory(
    tmp_path: Path, images: Pictures, augment: Any
) -> None:
    """Learned or fixed, of bytes in a file or in memory."""
    data = (
        ArrayData.of(torch.from_numpy(images.array), images.target),
        images.stored(tmp_path / "all.npy"),
    )
    recipe = Recipe(epochs=1, min_steps=30, batch_size=8, lr=0.02)
    settings = SearchSettings(every=3, choose=False)
    losses = [
        search(network, d, augment=augment, settings=settings, recipe=recipe, device="cpu").loss
        for d in data
    ]
    for name, value in losses[0].state_dict().items():
        assert torch.equal(losses[1].state_dict()[name], value), name
