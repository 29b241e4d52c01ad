"""Inputs in files: written once, read as they are needed, and the same as in memory."""

from __future__ import annotations

import hashlib
import itertools
import json
import pickle
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from autobalance._validation import InputError
from autobalance.bilevel.driver import search
from autobalance.bilevel.lower_level import predict_logits
from autobalance.bilevel.retraining import retrain
from autobalance.cli.run_folder import sample_sheet
from autobalance.data.batches import ArrayData, concatenated
from autobalance.data.stored import Part, StoredRows, written
from autobalance.heads.features import extract_features
from autobalance.heads.search import search_head
from autobalance.losses.modules import ParametricCrossEntropy
from autobalance.networks import FromBytes, SmallCNN
from autobalance.records.settings import Recipe, SearchSettings
from autobalance_bench.augmentations import StandardAugmentation

RECIPE = Recipe(epochs=1, min_steps=30, batch_size=8, lr=0.02)


@dataclass(frozen=True)
class Pictures:
    """Images as a decoder hands them over: ten at a time, with those that it could not decode."""

    array: np.ndarray
    target: np.ndarray
    bad: tuple[int, ...] = ()

    def pixels(self) -> np.ndarray:
        return self.array

    def with_inputs(self, inputs: Any) -> ArrayData:
        return ArrayData.of(inputs, self.target, num_classes=2)

    def load(self) -> ArrayData:
        return self.with_inputs(self.array / np.float32(255.0))

    def subset(self, rows: Any) -> Pictures:
        return Pictures(self.array[np.asarray(rows)], self.target[np.asarray(rows)])

    def parts(self, start: int) -> Iterator[Part]:
        for begin in range(start, len(self.array), 10):
            rows = self.array[begin : begin + 10]
            yield rows, {i: "broken" for i in self.bad if begin <= i < begin + 10}

    def stored(self, path: Path, parts: Any = None) -> ArrayData:
        identity = hashlib.sha256(self.array.tobytes()).hexdigest()
        parts = self.parts if parts is None else parts
        bad = written(path, identity=identity, shape=self.array.shape, parts=parts)
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


def network() -> nn.Module:
    return nn.Sequential(FromBytes(), SmallCNN(2, channels=3, size=(8, 8)))


def same(first: Any, second: Any) -> None:
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name


def test_rows_are_those_of_the_files_in_any_order(tmp_path: Path) -> None:
    arrays = [
        np.arange(12, dtype=np.uint8).reshape(6, 2),
        np.arange(50, 58, dtype=np.uint8).reshape(4, 2),
    ]
    files = [tmp_path / "a.npy", tmp_path / "b.npy"]
    for file, array in zip(files, arrays, strict=True):
        np.save(file, array)
    rows, whole = StoredRows(files), np.concatenate(arrays)
    assert (rows.shape, rows.ndim, rows.dtype, rows.nbytes) == ((10, 2), 2, torch.uint8, 20)
    index = torch.tensor([7, 0, 7, 3])
    assert rows[index].tolist() == whole[[7, 0, 7, 3]].tolist()
    part = rows.subset(index)
    assert len(part) == 4
    assert part[torch.tensor([2, 1])].tolist() == whole[[7, 0]].tolist()
    assert torch.cat(list(rows.split(4))).tolist() == whole.tolist()
    again = pickle.loads(pickle.dumps(part))
    assert again[slice(0, 4)].tolist() == part[slice(0, 4)].tolist()
    assert len(pickle.dumps(part)) < 1000
    both = StoredRows(files[:1]).joined(StoredRows(files[1:], [3, 1]))
    assert both[slice(0, 8)].tolist() == whole[[0, 1, 2, 3, 4, 5, 9, 7]].tolist()
    assert part.joined(rows)[slice(0, 5)].tolist() == whole[[7, 0, 7, 3, 0]].tolist()
    assert both.digest() != rows.digest() != part.digest()
    assert rows.digest() == StoredRows(files).digest()


@pytest.mark.parametrize("content", [None, b"no array", np.zeros(3), np.zeros((3, 5), np.uint8)])
def test_other_files_are_refused(tmp_path: Path, content: Any) -> None:
    np.save(tmp_path / "a.npy", np.zeros((2, 2), np.uint8))
    if isinstance(content, bytes):
        (tmp_path / "b.npy").write_bytes(content)
    elif content is not None:
        np.save(tmp_path / "b.npy", content)
    with pytest.raises(InputError, match=r"b.npy (cannot be read as|must be|has rows of shape)"):
        StoredRows([tmp_path / "a.npy", tmp_path / "b.npy"])


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


def test_search_and_retraining_are_the_same_bits_as_in_memory(
    tmp_path: Path, images: Pictures
) -> None:
    inside = images.with_inputs(torch.from_numpy(images.pixels()))
    outside = images.stored(tmp_path / "all.npy")
    settings = SearchSettings(folds=2, every=3, warmup=0.3)
    common: dict[str, Any] = {"recipe": RECIPE, "device": "cpu"}
    found = [search(network, data, settings=settings, **common) for data in (inside, outside)]
    same(found[0].loss, found[1].loss)
    assert found[0].choice == found[1].choice
    models = [retrain(network, data, found[0].loss, **common) for data in (inside, outside)]
    same(*models)
    logits = [predict_logits(models[0], data.inputs, 7) for data in (inside, outside)]
    assert torch.equal(*logits)


def test_a_run_on_stored_images_resumes_and_refuses_others(
    tmp_path: Path, images: Pictures
) -> None:
    data, loss = images.stored(tmp_path / "all.npy"), ParametricCrossEntropy.cross_entropy()
    run = partial(retrain, network, recipe=RECIPE, device="cpu", checkpoint=tmp_path / "c")
    same(run(data, loss), run(data, loss))
    with pytest.raises(InputError, match="data"):
        run(data.subset(torch.arange(39)), loss)


def test_parts_are_joined_without_being_read(tmp_path: Path, images: Pictures) -> None:
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
    with pytest.raises(InputError, match="both be in memory, or both in files"):
        concatenated(data, inside)


def test_what_needs_all_inputs_at_once_says_so(tmp_path: Path, images: Pictures) -> None:
    data = images.stored(tmp_path / "all.npy")
    with pytest.raises(InputError, match=r"these 40 are in files. Extract features"):
        search_head(data)
    features = extract_features(nn.Flatten(), data.inputs, batch_size=7)
    assert torch.equal(features, torch.from_numpy(images.pixels()).flatten(1).float())


@pytest.mark.parametrize("augment", ["shared", StandardAugmentation(1)])
def test_augmentation_learned_or_fixed_is_that_of_images_in_memory(
    tmp_path: Path, images: Pictures, augment: Any
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


def test_rows_by_arrays_and_features_of_data(tmp_path: Path, images: Pictures) -> None:
    data = images.stored(tmp_path / "all.npy")
    assert len(data.subset(np.arange(40))) == 40
    assert torch.equal(
        extract_features(nn.Flatten(), data), extract_features(nn.Flatten(), data.inputs)
    )
    assert repr(data.inputs).startswith("StoredRows((40, 3, 8, 8), torch.uint8, of ")
