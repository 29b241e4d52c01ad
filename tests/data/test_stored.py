"""Inputs in files: read as they are needed, and the same as in memory."""

from __future__ import annotations

import pickle
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from autobalance._validation import InputError
from autobalance.bilevel.network_search import search
from autobalance.bilevel.prediction import predict_logits
from autobalance.bilevel.retraining import retrain
from autobalance.data.array_data import ArrayData, concatenated
from autobalance.data.stored import StoredRows
from autobalance.heads.features import extract_features
from autobalance.heads.search import search_head
from autobalance.losses.modules import ParametricCrossEntropy
from autobalance.networks import FromBytes, SmallCNN
from autobalance.records.settings import Recipe, SearchSettings

RECIPE = Recipe(epochs=1, min_steps=30, batch_size=8, lr=0.02)


@pytest.fixture
def both(tmp_path: Path) -> tuple[ArrayData, ArrayData]:
    """Forty images of two classes, one three times as frequent: in memory, and in a file."""
    generator = np.random.default_rng(0)
    target = (np.arange(40) % 4 == 0).astype(np.int64)
    pixels = generator.integers(0, 255, (40, 3, 8, 8), dtype=np.uint8)
    pixels[target == 1] //= 2
    np.save(tmp_path / "images.npy", pixels)
    stored = StoredRows([tmp_path / "images.npy"])
    return ArrayData.of(pixels, target), ArrayData.of(stored, target)


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
    assert (rows.shape, rows.dtype) == ((10, 2), torch.uint8)
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


def test_search_and_retraining_are_the_same_bits_as_in_memory(
    both: tuple[ArrayData, ArrayData],
) -> None:
    settings = SearchSettings(folds=2, every=3, warmup=0.3)
    common: dict[str, Any] = {"recipe": RECIPE, "device": "cpu"}
    results = [search(network, data, settings=settings, **common) for data in both]
    same(results[0].loss, results[1].loss)
    assert results[0].choice == results[1].choice
    models = [retrain(network, data, results[0].loss, **common) for data in both]
    same(*models)
    logits = [predict_logits(models[0], data.inputs, 7) for data in both]
    assert torch.equal(*logits)


def test_a_run_on_stored_images_resumes_and_refuses_others(
    tmp_path: Path, both: tuple[ArrayData, ArrayData]
) -> None:
    data, loss = both[1], ParametricCrossEntropy.cross_entropy()
    run = partial(retrain, network, recipe=RECIPE, device="cpu", checkpoint=tmp_path / "c")
    same(run(data, loss), run(data, loss))
    with pytest.raises(InputError, match="data"):
        run(data.subset(torch.arange(39)), loss)


def test_what_needs_all_inputs_at_once_says_so(both: tuple[ArrayData, ArrayData]) -> None:
    inside, data = both
    with pytest.raises(InputError, match=r"these 40 are in files.*Extract features"):
        search_head(data)
    with pytest.raises(InputError, match="both be in memory, both in files"):
        concatenated(data, inside)
    features = extract_features(nn.Flatten(), data.inputs, batch_size=7)
    assert torch.equal(features, extract_features(nn.Flatten(), inside))
    assert repr(data.inputs).startswith("StoredRows((40, 3, 8, 8), torch.uint8, of ")
