"""The command line, as a user runs it: in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import safetensors.numpy

QUICK = ["--recipe.epochs", "5", "--recipe.min_steps", "60", "--device", "cpu"]


def run(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "autobalance", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, cwd=cwd, timeout=120, check=False
    )


def table(n: int = 240, seed: int = 0) -> pd.DataFrame:
    generator = np.random.default_rng(seed)
    kind = generator.choice(["common", "rare"], size=n, p=[0.85, 0.15])
    kind[:6] = "rare"
    x = generator.normal(size=n) + 2.0 * (kind == "rare")
    site = generator.choice(["north", "south"], size=n)
    size = generator.choice(["S", "M", None], size=n)
    return pd.DataFrame({"x": x, "size": size, "site": site, "kind": kind})


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data.csv.gz and a RUN fitted on it."""
    folder = tmp_path_factory.mktemp("fit")
    table().to_csv(folder / "data.csv.gz", index=False)
    done = run(
        "fit",
        "data.csv.gz",
        "--target",
        "kind",
        "--groups",
        "site",
        "--out",
        "run",
        *QUICK,
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # quiet: this is no terminal
    assert "Designed a loss for 2 classes" in done.stdout
    return folder


def test_run_folder_holds_json_and_safetensors_only(fitted: Path) -> None:
    names = {p.name for p in (fitted / "run").iterdir()}
    assert names == {"result.json", "model.json", "model.safetensors", "report.html"}
    record = json.loads((fitted / "run/result.json").read_text())
    assert record["status"] == "finished"
    assert record["class_names"] == ["common", "rare"]
    assert record["group_names"] == ["north", "south"]
    assert len(record["search"]["loss"]["additive"]) == 2
    assert safetensors.numpy.load_file(fitted / "run/model.safetensors")


def test_predict_needs_no_groups_and_evaluate_agrees(fitted: Path) -> None:
    fresh = table(seed=1).assign(size="unseen")
    fresh.drop(columns=["site", "kind"]).to_parquet(fitted / "fresh.parquet")
    done = run("predict", "run", "fresh.parquet", "--out", "out.csv", cwd=fitted)
    assert done.returncode == 0, done.stderr
    predictions = pd.read_csv(fitted / "out.csv")
    assert predictions.columns.tolist() == ["prediction", "probability_common", "probability_rare"]
    assert len(predictions) == len(fresh)

    fresh.to_csv(fitted / "fresh.csv", index=False)
    options = ("evaluate", "run", "fresh.csv", "--target", "kind", "--groups", "site")
    report = json.loads(run(*options, "--json", cwd=fitted).stdout)
    wrong = predictions["prediction"] != fresh["kind"]
    assert report["error"] == pytest.approx(wrong.mean())
    by_class = wrong.groupby(fresh["kind"]).mean()
    assert report["balanced_error"] == pytest.approx(by_class.mean())
    assert report["group_errors"]["1"] == pytest.approx(wrong[fresh["site"] == "south"].mean())
    shown = run(*options, cwd=fitted)
    assert shown.returncode == 0
    assert "balanced error" in shown.stdout
    assert "south" in shown.stdout


def test_same_seed_same_weights(fitted: Path) -> None:
    again = run(
        "fit",
        "data.csv.gz",
        "--target",
        "kind",
        "--groups",
        "site",
        "--out",
        "again",
        *QUICK,
        cwd=fitted,
    )
    assert again.returncode == 0
    first, second = ((fitted / n / "model.safetensors").read_bytes() for n in ("run", "again"))
    assert first == second


def test_config_file_sets_options(fitted: Path) -> None:
    (fitted / "config.yaml").write_text(
        "target: kind\nseed: 3\nobjective: worst_class_error\n"
        "recipe: {epochs: 5, min_steps: 60}\nsearch: {every: 10, folds: 2}\n"
    )
    done = run("fit", "data.csv.gz", "--config", "config.yaml", "--out", "configured", cwd=fitted)
    assert done.returncode == 0, done.stderr
    record = json.loads((fitted / "configured/result.json").read_text())
    assert record["seed"] == 3
    assert record["search"]["settings"]["search"]["folds"] == 2
    assert "WorstError" in record["search"]["settings"]["objective"]


BAD = {
    "target absent": (["fit", "data.csv", "--target", "label"], "'label' is not in the table"),
    "target missing": (["fit", "holes.csv", "--target", "kind"], "1 missing value"),
    "groups missing": (
        ["fit", "holes.csv", "--target", "x", "--groups", "site"],
        "'site' has 1 missing",
    ),
    "one class": (["fit", "one.csv", "--target", "kind"], "one class only"),
    "no file": (["fit", "gone.csv", "--target", "kind"], "There is no file gone.csv"),
    "empty file": (["fit", "empty.csv", "--target", "kind"], "empty.csv is empty"),
    "not a table": (["fit", "noise.parquet", "--target", "kind"], "cannot be read as a table"),
    "objective": (
        ["fit", "data.csv", "--target", "kind", "--objective", "luck"],
        "objective must be one",
    ),
    "infinite": (["fit", "infinite.csv", "--target", "kind"], "'x' has an infinite value"),
    "target and groups": (
        ["fit", "data.csv", "--target", "kind", "--groups", "kind"],
        "the same column",
    ),
    "setting": (["fit", "data.csv", "--target", "kind", "--recipe.lr", "-1"], "lr must be"),
}


@pytest.fixture(scope="module")
def bad_tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bad")
    data = table(60)
    data.to_csv(folder / "data.csv", index=False)
    holes = data.copy()
    holes.loc[3, ["kind", "site"]] = None
    holes.to_csv(folder / "holes.csv", index=False)
    data.assign(kind="only").to_csv(folder / "one.csv", index=False)
    data.assign(x=np.inf).to_csv(folder / "infinite.csv", index=False)
    (folder / "empty.csv").touch()
    (folder / "noise.parquet").write_bytes(os.urandom(64))
    return folder


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_clear_line_and_touches_no_file(bad_tables: Path, case: str) -> None:
    arguments, message = BAD[case]
    before = sorted(bad_tables.iterdir())
    done = run(*arguments, "--out", "run", cwd=bad_tables)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
    assert sorted(bad_tables.iterdir()) == before


def test_unseen_class_and_bad_run_folders(fitted: Path) -> None:
    table().assign(kind="strange").to_csv(fitted / "strange.csv", index=False)
    done = run("evaluate", "run", "strange.csv", "--target", "kind", cwd=fitted)
    assert done.returncode == 2
    assert "1 class that training lacked: strange" in done.stderr
    done = run("predict", "nowhere", "strange.csv", "--out", "p.csv", cwd=fitted)
    assert done.returncode == 2
    assert "is not a RUN folder" in done.stderr
    assert not (fitted / "p.csv").exists()


def test_nothing_is_overwritten_unasked(fitted: Path) -> None:
    before = {p.name: p.read_bytes() for p in (fitted / "run").iterdir()}
    done = run("fit", "data.csv.gz", "--target", "kind", "--out", "run", *QUICK, cwd=fitted)
    assert done.returncode == 2
    assert "is not empty. Add --overwrite" in done.stderr
    assert {p.name: p.read_bytes() for p in (fitted / "run").iterdir()} == before
    (fitted / "kept.csv").write_text("mine")
    done = run("predict", "run", "data.csv.gz", "--out", "kept.csv", cwd=fitted)
    assert done.returncode == 2
    assert (fitted / "kept.csv").read_text() == "mine"
    done = run("predict", "run", "data.csv.gz", "--out", "kept.csv", "--overwrite", cwd=fitted)
    assert done.returncode == 0
    assert (fitted / "kept.csv").read_text() != "mine"


def test_divergence_exits_1_and_keeps_the_last_good_state(fitted: Path) -> None:
    wild = ["--recipe.optimizer", "sgd", "--recipe.lr", "1e25", "--recipe.max_grad_norm", "1e30"]
    done = run("fit", "data.csv.gz", "--target", "kind", "--out", "wild", *QUICK, *wild, cwd=fitted)
    assert done.returncode == 1
    assert "non-finite at step" in done.stderr
    assert "lr=1e+25" in done.stderr
    record = json.loads((fitted / "wild/result.json").read_text())
    assert record["status"] == "diverged"
    assert np.isfinite(record["search"]["loss"]["additive"]).all()
    done = run("predict", "wild", "data.csv.gz", "--out", "w.csv", cwd=fitted)
    assert done.returncode == 2
    assert "holds no trained network" in done.stderr


def test_ctrl_c_exits_130_and_keeps_what_was_found(fitted: Path) -> None:
    # A real signal, sent by the process to itself at a known moment of the search.
    code = (
        "import os, signal, sys\n"
        "from autobalance import cli, terminal\n"
        "def update(self, title, progress):\n"
        "    if progress.phase == 'search' and progress.step > 300:\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "terminal.LiveProgress.update = update\n"
        "sys.exit(cli.main(sys.argv[1:]))"
    )
    options = ["--recipe.min_steps", "500", "--device", "cpu"]
    command = ["fit", "data.csv.gz", "--target", "kind", "--out", "stopped", *options]
    done = subprocess.run(
        [sys.executable, "-c", code, *command],
        cwd=fitted,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 130, done.stderr
    assert "Interrupted" in done.stderr
    record = json.loads((fitted / "stopped/result.json").read_text())
    assert record["status"] == "interrupted"
    assert record["search"]["loss"]["additive"]


def test_usage_errors_exit_2() -> None:
    assert run().returncode == 2
    assert run("fit", "data.csv").returncode == 2
    assert run("unknown").returncode == 2


def test_help_is_quick_and_loads_no_torch() -> None:
    code = (
        "import sys, autobalance, autobalance.cli\n"
        "try:\n    autobalance.cli.main(['fit', '--help'])\n"
        "except SystemExit:\n    pass\n"
        "assert 'torch' not in sys.modules and 'pandas' not in sys.modules"
    )
    begun = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    assert time.perf_counter() - begun < 5.0  # under 1 s when the machine is idle
