"""Embeddings in Parquet and .npz: the ways to lay them out, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from pyarrow import parquet

from autobalance import InputError
from autobalance_bench.datasets.embeddings import read_embeddings

X = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
LABELS = ["cat", "ant", "cat", "bee", "bee", "ant"]
PLACES = [10, 2, 10, 2, 2, 10]


def write(path: Path, **columns: Any) -> Path:
    table = {
        name: pa.array(list(v)) if not isinstance(v, pa.Array) else v for name, v in columns.items()
    }
    parquet.write_table(pa.table(table), path, row_group_size=4)
    return path


def fixed(values: np.ndarray) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])


@pytest.mark.parametrize(
    "columns",
    [
        {"embedding": X.tolist()},
        {"embedding": X.astype(np.float64).tolist()},
        {"embedding": fixed(X)},
        {f"x{i}": X[:, i] for i in (0, 1, 2, 3)},
    ],
    ids=["lists", "float64", "fixed-size", "columns"],
)
def test_parquet(tmp_path: Path, columns: dict[str, Any]) -> None:
    path = write(
        tmp_path / "a.parquet", label=LABELS, place=PLACES, w=np.arange(1.0, 7.0), **columns
    )
    found = read_embeddings(path, target="label", groups="place", sample_weight="w")
    np.testing.assert_array_equal(found.data.inputs.numpy(), X)
    assert found.data.inputs.dtype == torch.float32
    assert found.class_names == ("ant", "bee", "cat")
    assert found.data.target.tolist() == [2, 0, 2, 1, 1, 0]
    assert found.group_names == ("2", "10")
    assert found.data.groups is not None
    assert found.data.groups.tolist() == [1, 0, 1, 0, 0, 1]
    assert found.data.sample_weight is not None
    assert found.data.sample_weight.tolist() == list(range(1, 7))
    assert found.data.counts().tolist() == [[1, 2, 0], [1, 0, 2]]


def test_npz(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, features=X, target=[5, 0, 5, 9, 9, 0], place=np.array(list("abbaab")))
    found = read_embeddings(path, groups="place")
    np.testing.assert_array_equal(found.data.inputs.numpy(), X)
    assert found.class_names == ("0", "5", "9")
    assert found.data.target.tolist() == [1, 0, 1, 2, 2, 0]
    assert found.group_names == ("a", "b")
    assert read_embeddings(path).group_names == ()
    np.savez(path, other=X.astype(np.float64), target=[0, 9, 0, 9, 9, 0])
    test = read_embeddings(path, inputs="other", class_names=found.class_names)
    assert test.data.target.tolist() == [0, 2, 0, 2, 2, 0]
    assert test.data.num_classes == 3


def test_categories_and_nullable_integers_are_labels(tmp_path: Path) -> None:
    frame = pd.DataFrame({"embedding": X.tolist(), "target": pd.Categorical(LABELS)})
    frame["group"] = pd.array(PLACES, dtype="Int64")
    frame.to_parquet(tmp_path / "a.parquet")
    found = read_embeddings(tmp_path / "a.parquet", groups="group")
    assert found.class_names == ("ant", "bee", "cat")
    assert found.group_names == ("2", "10")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"embedding": X.tolist()}, r"has no 'target'; it has: embedding"),
        (
            {"embedding": [[1.0], [1.0, 2.0]], "target": [0, 1]},
            r"equally long .* have 1 to 2 numbers",
        ),
        ({"embedding": [[], []], "target": [0, 1]}, "'embedding' holds null, no numbers"),
        ({"embedding": [[1.0], None], "target": [0, 1]}, "'embedding' has 1 missing values"),
        ({"embedding": [[1.0], [None]], "target": [0, 1]}, "'embedding' has 1 missing values"),
        ({"embedding": [[1.0], [np.nan]], "target": [0, 1]}, "inputs must be finite"),
        ({"embedding": [["a"], ["b"]], "target": [0, 1]}, "'embedding' holds string, no numbers"),
        ({"embedding": [1.0, 2.0], "target": [0, 1]}, "must hold lists of numbers; got double"),
        (
            {"x": [1.0, 2.0], "note": ["a", "b"], "target": [0, 1]},
            "'note' holds string, no numbers",
        ),
        ({"x": [1.0, None], "target": [0, 1]}, "'x' has 1 missing values"),
        ({"target": [0, 1]}, "has no column of numbers"),
        ({"x": pa.array([], pa.float32()), "target": pa.array([], pa.int8())}, "has no row"),
        ({"x": [1.0, 2.0], "target": [0, None]}, r"the class of row 2 is missing"),
        ({"x": [1.0, 2.0], "target": [0.5, 1]}, "a name or a whole number; got 0.5"),
        ({"x": [1.0, 2.0], "target": [1, 1]}, "there must be two classes; got only 1"),
    ],
)
def test_parquet_refused(tmp_path: Path, columns: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_embeddings(write(tmp_path / "a.parquet", **columns))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": X, "target": LABELS}, "has no 'inputs'; it has: x, target"),
        ({"inputs": X}, "has no 'target'; it has: inputs"),
        ({"inputs": X[0], "target": [0] * 4}, r"shape \(n, d\); got float32 of shape \(4,\)"),
        ({"inputs": X.astype(str), "target": LABELS}, r"must hold numbers, .*got <U"),
        ({"inputs": X, "target": LABELS[:5]}, r"'target' must have shape \(6,\).*; got \(5,\)"),
        (
            {"inputs": X, "target": np.array(LABELS, object)},
            r"cannot be read as .npz: Object arrays",
        ),
    ],
)
def test_npz_refused(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(InputError, match=message):
        read_embeddings(tmp_path / "a.npz")


def test_files_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"There is no file .*a.npz"):
        read_embeddings(tmp_path / "a.npz")
    for name, message in (
        ("a.npz", "cannot be read as .npz"),
        ("a.parquet", "cannot be read as Parquet"),
        ("a.csv", r"a.csv must end in .parquet or .npz"),
    ):
        (tmp_path / name).write_bytes(b"x" * 40)
        with pytest.raises(InputError, match=message):
            read_embeddings(tmp_path / name)
