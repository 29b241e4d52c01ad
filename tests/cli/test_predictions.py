"""What a file of predictions holds beside the predictions: the rows' names, and the rules that decided."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from autobalance.cli.adjusted_run import AdjustedModel
from autobalance.cli.run_folder import load_run
from commands import run
from tables import table

FIT = ["fit", "train.csv", "--target", "kind", "--no-baselines", "--out", "run"]
QUICK = ["--recipe.epochs=1", "--recipe.min_steps=20", "--arms=none", "--device=cpu"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, seed in (("train", 0), ("new", 1)):
        frame = table(240, seed=seed)
        frame.insert(1, "person", [f"{name}-{i}" for i in range(len(frame))])
        frame.to_csv(tmp_path / f"{name}.csv", index=False)
    return tmp_path


def predict(folder: Path, *options: str, data: str = "new.csv") -> pd.DataFrame:
    done = run("predict", "run", data, "--out", "out.csv", "--overwrite", *options, cwd=folder)
    assert done.returncode == 0, done.stderr
    return pd.read_csv(folder / "out.csv")


@pytest.mark.parametrize("model", ["network", "lightgbm"])
def test_the_id_is_no_feature_and_stands_beside_each_prediction(folder: Path, model: str) -> None:
    more = QUICK if model == "network" else []
    done = run(*FIT, "--id", "person", "--model", model, *more, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "different values" not in done.stderr
    new = pd.read_csv(folder / "new.csv")
    found = predict(folder)
    assert found.columns[0] == "person"
    assert found["person"].tolist() == new["person"].tolist()
    assert predict(folder, "--id", "site")["site"].tolist() == new["site"].tolist()
    # Without the column predictions are the same, and the file has none.
    new.drop(columns="person").to_csv(folder / "bare.csv", index=False)
    bare = predict(folder, data="bare.csv")
    pd.testing.assert_frame_equal(bare, found.drop(columns="person"))


def test_ids_that_cannot_be_are_refused(folder: Path) -> None:
    done = run(*FIT, "--id", "kind", cwd=folder)
    assert done.returncode == 2
    assert "--id kind is the column of the labels or groups already" in done.stderr
    done = run(*FIT, "--id", "passport", cwd=folder)
    assert done.returncode == 2
    assert "The id column 'passport' is not in the table" in done.stderr
    assert run(*FIT, "--id", "person", *QUICK, cwd=folder).returncode == 0
    new = pd.read_csv(folder / "new.csv").rename(columns={"person": "prediction"})
    new.to_csv(folder / "new.csv", index=False)
    done = run("predict", "run", "new.csv", "--id", "prediction", "--out", "o.csv", cwd=folder)
    assert done.returncode == 2
    assert "has the name of a column of the predictions. Rename it" in done.stderr
    assert not (folder / "o.csv").exists()


def test_an_auditor_can_repeat_drawn_decisions_from_what_is_written(folder: Path) -> None:
    for name in ("train", "new"):  # where the groups differ no single rule keeps the bound
        frame = pd.read_csv(folder / f"{name}.csv")
        frame["x"] += 1.5 * ((frame["site"] == "south") & (frame["kind"] == "rare"))
        frame["y"] = (frame["site"] == "south") + 0.3 * frame["x"]
        frame.to_csv(folder / f"{name}.csv", index=False)
    goal = "balanced_error where deo <= 0.1"
    given = ["--id", "person", "--groups", "site", "--objective", goal, "--model", "lightgbm"]
    done = run(*FIT, *given, cwd=folder)
    assert done.returncode == 0, done.stderr
    record = json.loads((folder / "run/result.json").read_text())
    prices, shares = (np.array(record["rules"][key]) for key in ("prices", "shares"))
    assert len(shares) > 1, "choose a bound that needs a draw"
    found = predict(folder)
    model, _ = load_run(folder / "run")
    assert isinstance(model, AdjustedModel)
    cells = model.features(pd.read_csv(folder / "new.csv"))
    sums = (cells * prices[found["rule"] - 1]).sum(axis=1)
    assert (
        np.array(record["class_names"])[sums.argmax(axis=1)].tolist()
        == found["prediction"].tolist()
    )
    drawn = np.bincount(found["rule"] - 1, minlength=len(shares)) / len(found)
    np.testing.assert_allclose(drawn, shares, atol=0.15)  # 240 rows
    pd.testing.assert_frame_equal(predict(folder), found)  # nothing is drawn at random
    told = " ".join(done.stdout.split())
    assert f"{len(shares)} rules share the rows: rule 1 decides {100 * shares[0]:.1f}%" in told
    assert "fixed by the row's own features, not by chance" in told
    page = (folder / "run/report.html").read_text()
    assert "The rules of decision" in page
    assert f"Rule 2 ({100 * shares[1]:.1f}%)" in page


def test_one_rule_is_said_to_decide_every_row(folder: Path) -> None:
    done = run(*FIT, "--model", "lightgbm", "--id", "person", cwd=folder)
    assert "One rule decides every row" in " ".join(done.stdout.split())
    assert "rule" not in predict(folder).columns
