"""A table that stays in its file gives the classifier that the whole table gives, and leaves no trace."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from autobalance import AutoBalanceClassifier, Recipe
from autobalance.bilevel.types import Progress
from autobalance.cli import main
from autobalance.cli.run_folder import load_run
from autobalance.data import table_file
from autobalance.data.table_file import TableFile, open_table
from autobalance.data.tables import read_table

RECIPE = Recipe(epochs=1, min_steps=40, batch_size=32)


def mixed(rows: int = 300) -> pd.DataFrame:
    draw = np.random.default_rng(0)
    kind = draw.choice(["a", "b", "c"], rows, p=[0.6, 0.3, 0.1])
    table = pd.DataFrame({"x": draw.normal(size=rows) + (kind == "b"), "kind": kind})
    table["town"] = np.where(draw.random(rows) < 0.3, None, "t" + table["kind"].str.upper())
    return table


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(table_file, "LARGE_TABLE", 1)
    mixed().to_csv(tmp_path / "table.csv", index=False)
    return tmp_path / "table.csv"


def test_the_network_is_that_of_the_whole_table_to_the_bit(path: Path) -> None:
    table, whole = open_table(path, folder=path.parent / "run"), read_table(path)
    assert isinstance(table, TableFile)
    told: list[Progress] = []
    models = [
        AutoBalanceClassifier(recipe=RECIPE, device="cpu", random_state=0, progress=listener).fit(
            given.drop(columns=["kind"]), given["kind"]
        )
        for given, listener in ((table, told.append), (whole, None))
    ]
    weights = [model.module_.state_dict() for model in models]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1])
    assert [model.feature_names_in_.tolist() for model in models] == [["x", "town"]] * 2
    np.testing.assert_array_equal(*[model.input_.rows for model in models])
    np.testing.assert_array_equal(*[m.predict(whole.drop(columns="kind")) for m in models])
    np.testing.assert_array_equal(
        models[0].predict(table.drop(columns=["kind"])), models[0].predict(whole[["x", "town"]])
    )
    assert [p for p in told if p.phase == "encode"] == [Progress("encode", i, 3) for i in (1, 2, 3)]


def test_the_command_finds_the_same_and_leaves_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = ["--recipe.epochs=1", "--recipe.min_steps=40", "--device=cpu"]
    runs = [path.parent / name for name in ("parts", "whole")]
    for run, least in zip(runs, (1, 2**40), strict=True):
        monkeypatch.setattr(table_file, "LARGE_TABLE", least)
        command = ["fit", str(path), "--target", "kind", "--test", str(path), "--out", str(run)]
        assert main([*command, *quick]) == 0
    assert not list(runs[0].glob("parts-*"))
    parts, whole = (load_run(run)[0].module_.state_dict() for run in runs)
    assert all(torch.equal(parts[name], whole[name]) for name in whole)


def test_there_may_be_more_categories_than_rows() -> None:
    """Each row has its own in every column, and a type that names others, of no row, makes none of these."""
    rows = 60
    table = pd.DataFrame({f"c{i}": [f"{i} {j}" for j in range(rows)] for i in range(5)})
    known = pd.CategoricalDtype([f"k{j}" for j in range(1000)])
    table["known"] = pd.Series([f"k{j % 2}" for j in range(rows)], dtype=known)
    y = np.arange(rows) % 2
    model = AutoBalanceClassifier(recipe=RECIPE, device="cpu", random_state=0)
    with pytest.warns(UserWarning, match="alone decides the target"):
        model.fit(table, y)
    assert model.encoder_ is not None
    assert model.encoder_.code_sizes == [60] * 5 + [2]
    assert (model.predict(table) == y).all()


@pytest.mark.usefixtures("path")
def test_a_column_of_many_values_and_a_batch_above_the_data(tmp_path: Path) -> None:
    """From a file, too: 100,000 values, of which the 100 most frequent are features."""
    rows = 100_000
    draw = np.random.default_rng(0)
    x = draw.normal(size=rows)
    table = pd.DataFrame({"x": x, "name": [f"n{i}" for i in range(rows)], "kind": x > 0.0})
    table.to_parquet(tmp_path / "t.parquet")
    large = open_table(tmp_path / "t.parquet", folder=tmp_path / "run")
    recipe = Recipe(epochs=1, min_steps=3, batch_size=10**6, lr=0.02)
    model = AutoBalanceClassifier(recipe=recipe, arms=None, device="cpu", random_state=0)
    with pytest.warns(UserWarning, match=r"'name' has 100,000 different values in 100,000 rows"):
        model.fit(large.drop(columns=["kind"]), large["kind"])
    assert model.encoder_ is not None
    assert model.encoder_.code_sizes == [100]
    assert model.recipe_.steps(rows) == 3
