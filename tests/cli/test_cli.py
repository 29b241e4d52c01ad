"""The command line, as a user runs it: in a process of its own where signals or imports count."""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import safetensors.numpy
import torch

from autobalance import AutoBalanceClassifier
from autobalance.bilevel.pareto_frontier import Frontier
from autobalance.cli import main
from autobalance.cli.options import GAP_NAMES, OBJECTIVES
from autobalance.cli.run_folder import load_run
from autobalance.objectives.registry import GAPS, NAMED
from autobalance.posthoc.fair_decisions import CellDecision
from commands import run
from tables import table

pytestmark = pytest.mark.usefixtures("empty_pictures")
QUICK = ["--recipe.epochs", "5", "--recipe.min_steps", "60", "--device", "cpu"]


def run_process(code: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """The code in a process of its own, with these arguments."""
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


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
    names = {p.name for p in (fitted / "run").iterdir()} - {"evaluation.json"}
    assert names == {"result.json", "loss.json", "model.json", "model.safetensors", "report.html"}
    record = json.loads((fitted / "run/result.json").read_text())
    assert record["status"] == "finished"
    assert record["class_names"] == ["common", "rare"]
    assert record["group_names"] == ["north", "south"]
    assert len(record["search"]["loss"]["additive"]) == 2
    assert json.loads((fitted / "run/loss.json").read_text()) == record["search"]["loss"]
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
    assert report["group_errors"]["south"] == pytest.approx(wrong[fresh["site"] == "south"].mean())
    rare_north = wrong[(fresh["site"] == "north") & (fresh["kind"] == "rare")]
    assert report["class_and_group_errors"]["north"][1] == pytest.approx(rare_north.mean())
    cells = wrong.groupby([fresh["kind"], fresh["site"]]).mean()
    assert report["group_balanced_error"] == pytest.approx(cells.mean())
    assert report["worst_class_and_group_error"] == pytest.approx(cells.max())
    shown = run(*options, cwd=fitted)
    assert shown.returncode == 0
    assert shown.stderr == (
        "autobalance: column 'size': 100 % of its values are categories that training never saw\n"
    )
    worst, mean = (f"{what} error over groups and classes" for what in ("worst", "balanced"))
    for text in (worst, mean, "south", "absent"):
        assert (text in shown.stdout) == (text != "absent")


def test_probabilities_for_a_prior_leave_the_prediction(fitted: Path) -> None:
    table(seed=1).to_parquet(fitted / "labelled.parquet")
    found = {}
    for prior in ("", "training", "balanced"):
        options = ["--prior", prior] if prior else []
        done = run(
            "predict",
            "run",
            "labelled.parquet",
            "--out",
            f"prior-{prior}.csv",
            *options,
            cwd=fitted,
        )
        assert done.returncode == 0, done.stderr
        found[prior] = pd.read_csv(fitted / f"prior-{prior}.csv")
        assert found[prior]["prediction"].equals(found[""]["prediction"])
    means = {prior: f["probability_rare"].mean() for prior, f in found.items()}
    assert means["training"] == pytest.approx(0.17, abs=0.05)  # as frequent as in the table
    assert means["training"] < means["balanced"] - 0.1
    done = run(
        "predict", "run", "labelled.parquet", "--out", "prior.csv", "--prior", "x", cwd=fitted
    )
    assert done.returncode == 2
    assert "prior" in done.stderr


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


@pytest.mark.usefixtures("few_draws")
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
    assert record["search"]["settings"]["objective"]["kind"] == "WorstError"
    assert len(record["search"]["candidates"]) == 3
    assert "Final choice on held-out data: " in done.stdout
    assert "standard error" in done.stdout


def test_rows_without_a_group_are_trained_on_where_that_is_asked_for(tmp_path: Path) -> None:
    data = table()
    data.loc[::4, "site"] = None
    data.to_csv(tmp_path / "data.csv", index=False)
    options = ("--groups", "site", "--objective", "group_balanced_error", *QUICK)
    command = ("fit", "data.csv", "--target", "kind", "--missing-groups", "unknown", *options)
    done = run(*command, "--out", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "run/result.json").read_text())
    assert record["group_names"] == ["north", "south", "(unknown)"]
    assert np.sum(record["class_counts"], axis=1)[2] == 60
    assert len(record["search"]["loss"]["additive"]) == 3
    assert len(record["search"]["held_out"]["n"]) == 2
    page = (tmp_path / "run/report.html").read_text()
    assert "(unknown)" in page
    assert "By group" in page
    done = run("predict", "run", "data.csv", "--out", "out.csv", cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_a_collapsed_search_is_told_of(tmp_path: Path) -> None:
    """Unlearnable: noise, and a network that starts at logit adjustment and hardly moves."""
    generator = np.random.default_rng(0)
    kind = np.repeat(["common", "rare"], [300, 75])
    noise = pd.DataFrame({"x": generator.normal(size=375), "kind": kind})
    noise.to_csv(tmp_path / "noise.csv", index=False)
    flat = ("--recipe.lr", "1e-9", "--recipe.absorb", "0", "--recipe.min_steps", "60")
    command = ("fit", "noise.csv", "--target", "kind", "--out", "run", *flat)
    done = run(*command, "--recipe.epochs", "1", "--device", "cpu", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "run/result.json").read_text())
    predicted = np.sum(record["search"]["held_out"]["predicted"], axis=0)
    assert (predicted == 0).sum() == 1
    only = ["common", "rare"][int(np.argmax(predicted))]
    assert f"autobalance: At the end of the search its network predicts {only}" in done.stderr
    assert "UserWarning" not in done.stderr
    page = (tmp_path / "run/report.html").read_text()
    assert f"predicts {only} for every held-out example" in page


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
    "continuous target": (
        ["fit", "data.csv", "--target", "x"],
        "The target column 'x' looks continuous",
    ),
    "seed": (["fit", "data.csv", "--target", "kind", "--seed", "-1"], "seed must be at least 0"),
    "folder": (["fit", ".", "--target", "kind"], ". is a folder"),
    "device": (
        ["fit", "data.csv", "--target", "kind", "--device", "tpu"],
        "The device 'tpu' cannot be used here. Give auto, cpu, or",
    ),
    "resume": (["fit", "data.csv", "--target", "kind", "--resume"], "holds no unfinished run"),
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
    assert "has a class that training lacks: strange; training has common, rare." in done.stderr
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


@pytest.mark.processes
def test_ctrl_c_exits_130_and_keeps_what_was_found(fitted: Path) -> None:
    # A real signal, sent by the process to itself at a known moment of the search.
    code = (
        "import os, signal, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored under nohup\n"
        "from autobalance import cli\nfrom autobalance.cli import terminal\n"
        "def update(self, title, progress):\n"
        "    if progress.phase == 'search' and progress.step > 300:\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "terminal.LiveProgress.update = update\n"
        "sys.exit(cli.main(sys.argv[1:]))"
    )
    options = ["--recipe.min_steps", "500", "--arms", "none", "--device", "cpu"]
    command = ["fit", "data.csv.gz", "--target", "kind", "--out", "stopped", *options]
    done = run_process(code, *command, cwd=fitted)
    assert done.returncode == 130, done.stderr
    assert done.stderr.count("\n") == 1
    assert "Interrupted. Kept in stopped: the loss so far (loss.json)" in done.stderr
    assert "no network yet. There was no checkpoint yet: the same command with --res" in done.stderr
    record = json.loads((fitted / "stopped/result.json").read_text())
    assert record["status"] == "interrupted"
    assert record["search"]["loss"]["additive"]


def test_sigterm_is_as_ctrl_c_and_resuming_ends_at_the_same_bits(fitted: Path) -> None:
    code = (
        "import os, signal\n"
        "from autobalance import cli\nfrom autobalance.cli import terminal\n"
        "def update(self, title, progress):\n"
        "    if progress.phase == 'retrain':\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "terminal.LiveProgress.update = update\n"
        "cli.entry()"
    )
    command = [
        "fit",
        "data.csv.gz",
        "--target",
        "kind",
        "--groups",
        "site",
        "--out",
        "term",
        *QUICK,
    ]
    done = run_process(code, *command, cwd=fitted)
    assert done.returncode == 143, done.stderr
    assert "a half-trained network. To continue" in done.stderr
    record = json.loads((fitted / "term/result.json").read_text())
    assert (record["status"], record["search"]["status"]) == ("interrupted", "finished")
    assert record["progress"] == {"phase": "retrain", "step": 20, "total": 60, "objective": None}
    done = run(*command, cwd=fitted)
    assert done.returncode == 2
    assert "term holds an unfinished run. Add --resume" in done.stderr
    done = run(*command, "--resume", cwd=fitted)
    assert done.returncode == 0, done.stderr
    for name in ("model.safetensors", "loss.json", "model.json"):
        assert (fitted / "term" / name).read_bytes() == (fitted / "run" / name).read_bytes()
    written = {p.name for p in (fitted / "run").iterdir()} - {"evaluation.json"}
    assert {p.name for p in (fitted / "term").iterdir()} == written


@pytest.mark.processes
def test_ctrl_c_after_the_work_is_done_is_ignored(fitted: Path) -> None:
    code = (
        "import atexit, os, signal\n"
        "from autobalance import cli\n"
        "atexit.register(lambda: os.kill(os.getpid(), signal.SIGINT))\n"
        "cli.entry()"
    )
    done = run_process(code, "evaluate", "run", "data.csv.gz", "--target", "kind", cwd=fitted)
    assert done.returncode == 0
    [table, line] = done.stderr.splitlines()
    assert "is the table that run was trained on" in table
    assert line.startswith("autobalance: data.csv.gz was evaluated without --groups, so the report")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], r"which command\? The commands are demo, fit, .*; add --help for what"),
        (["unknown"], "there is no command unknown. The commands are demo, .*; add --help"),
        (["fot", "data.csv"], r"there is no command fot\. Did you mean fit\?"),
        (["fit", "data.csv"], "required: target, out"),
        (["fit", "x.csv", "y.csv", "--target", "y", "--out", "r"], "unrecognized .*: y.csv"),
        (["fit", "x.csv", "--recipe.epcohs", "3"], "no option recipe.epcohs. .* recipe.epochs"),
        (["fit", "x.csv", "--recipe.epochs", "abc"], "recipe.epochs must be a number; got 'abc'."),
        (["fit", "x.csv", "--seed", "1.5"], "seed must be a whole number; got '1.5'."),
        (
            ["fit", "x.csv", "--search.patience", "few"],
            "search.patience must be a whole number, or be left out; got 'few'.",
        ),
        (["fit", "x.csv", "--search.choose", "maybe"], "must be true or false; got 'maybe'."),
        (
            ["fit", "x.csv", "--recipe", "3"],
            "recipe is no single value; got '3'. Give its settings",
        ),
        (
            ["fit", "x.csv", "--recipe.optimizer", "adam"],
            r"recipe.optimizer must be sgd or adamw; got 'adam'. Did you mean adamw\?",
        ),
        (
            ["predict", "run", "x.csv", "--out", "p.csv", "--prior", "nonsense"],
            "prior must be training or balanced, or be left out; got 'nonsense'.",
        ),
        (
            ["fit", "x.csv", "--config", "a.yaml"],
            "a.yaml: .*no option recipe.epoch. .* recipe.epochs",
        ),
        (["fit", "x.csv", "--config=b.yaml"], "b.yaml: seed must be a whole number; got 'many'."),
        (["fit", "x.csv", "--config", "gone.yaml"], "there is no file .*gone.yaml"),
        (["fit", "x.csv", "--config", "c.yaml"], "c.yaml: .*line 2"),
    ],
)
def test_usage_errors_are_one_line(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.yaml").write_text("target: y\nout: r\nrecipe: {epoch: 3}\n")
    Path("b.yaml").write_text("target: y\nout: r\nseed: many\n")
    Path("c.yaml").write_text("target: y\n  out: r\n")
    assert main(arguments) == 2
    shown = capsys.readouterr().err
    assert re.fullmatch(f"autobalance: .*{message}.*\n", shown), shown


@pytest.mark.parametrize(
    ("arguments", "option", "meant"),
    [
        ("fit x.csv --target y --out r --recipe.epoch 3", "recipe.epoch", "recipe.epochs"),
        ("fit x.csv --target y --out r --recipe.epoch=3", "recipe.epoch", "recipe.epochs"),
        ("fit x.csv --targ y --out r", "targ", "target"),
        ("fit x.csv --target y --out r --search.opt sgd", "search.opt", "search.optimizer"),
        ("fit x.csv --target y --out r --search.wa 0.1", "search.wa", "search.warmup"),
        ("fit x.csv --target y --out r --mis unknown", "mis", "missing_groups"),
        ("fit x.csv --target y --out r --overw", "overw", "overwrite"),
        ("frontier x.csv --target y --groups g --out r --max-g 1", "max-g", "max_gap"),
        ("predict run x.csv --out p.csv --pri balanced", "pri", "prior"),
        ("evaluate run x.csv --target y --js", "js", "json"),
        ("explain run --hel", "hel", "help"),
        ("report run --o page.html", "o", "out or overwrite"),
        ("demo --over", "over", "overwrite"),
        ("--vers", "vers", "version"),
    ],
)
def test_abbreviations_are_refused_with_the_whole_name(
    arguments: str,
    option: str,
    meant: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments.split()) == 2
    shown = capsys.readouterr().err
    assert shown == f"autobalance: there is no option {option}. Did you mean {meant}?\n"
    assert list(tmp_path.iterdir()) == []


def test_objectives_in_the_help_are_those_there_are() -> None:
    assert set(OBJECTIVES) == set(NAMED)
    assert set(GAP_NAMES) == set(GAPS)


def test_help_is_quick_and_loads_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys, autobalance, autobalance.cli\n"
        "try:\n    autobalance.cli.main(['fit', '--help'])\n"
        "except SystemExit:\n    pass\n"
        "assert 'torch' not in sys.modules and 'pandas' not in sys.modules"
    )
    begun = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    done = run_process(code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Passes over the training data" in done.stdout  # from the docstring
    assert "worst_class_and_group_error" in done.stdout
    seconds = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - begun
    assert seconds < 5.0  # under 1 s when the machine is idle


def test_commands_under_torchrun_are_refused(
    sites: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["fit", "data.csv", "--target", "kind", "--out", "run"]) == 2
    assert (
        "only compare (run) can be started by torchrun, here as 2 processes"
        in capsys.readouterr().err
    )
    assert not Path("run").exists()


def test_a_column_that_names_the_rows_is_told_of(
    sites: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = table(400)
    given["patient"] = [f"p{i}" for i in range(400)]
    given.to_csv("named.csv", index=False)
    command = ["fit", "named.csv", "--target", "kind", "--out", "named", "--recipe.epochs", "1"]
    assert main([*command, "--recipe.min_steps", "20", "--device", "cpu"]) == 0
    err = capsys.readouterr().err
    assert "column 'patient' has 400 different values in 400 rows" in err


def test_what_the_table_told_stays_in_the_run(
    sites: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = table(400)
    given["price"] = [f"${1000 + 3 * i % 997:,}" for i in range(400)]
    given.insert(0, "Unnamed: 0", range(400))
    given.to_csv("told.csv", index=False)
    command = ["fit", "told.csv", "--target", "kind", "--out", "told", "--recipe.epochs", "1"]
    assert main([*command, "--recipe.min_steps", "20", "--device", "cpu"]) == 0
    err = capsys.readouterr().err
    told = ["'Unnamed: 0' looks like a row number", "'price' writes its numbers as '$1,"]
    assert all(err.count(text) == 1 for text in told)
    assert main(["explain", "told"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert all(f"Column {text}" in said for text in told)
    notes = json.loads(Path("told/result.json").read_text())["notes"]
    assert len(notes) == 2
    assert json.loads(Path("told/model.json").read_text())["encoder"]["notes"] == notes


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@pytest.mark.parametrize(
    ("labels", "same", "other"),
    [
        ([0, 1], [0.0, 1.0], ["0", "1"]),
        (["007", "7"], ["007", "7"], [7, 8]),
        ([True, False], [1, 0], ["yes", "no"]),
    ],
)
def test_labels_are_what_they_are_in_files(
    sites: Path, capsys: pytest.CaptureFixture[str], suffix: str, labels: Any, same: Any, other: Any
) -> None:
    def write(name: str, values: Any, suffix: str) -> str:
        given = table(200)
        given["kind"] = np.where(given["kind"] == "rare", *np.array(values)[[1, 0]])
        path = name + suffix
        given.to_csv(path, index=False) if suffix == ".csv" else given.to_parquet(path)
        return path

    fit = ["fit", write("labelled", labels, suffix), "--target", "kind", "--out", "as-labelled"]
    quick = ["--recipe.epochs", "1", "--recipe.min_steps", "20", "--device", "cpu", "--overwrite"]
    assert main([*fit, *quick]) == 0
    classifier, _ = load_run("as-labelled")
    assert classifier.classes_.tolist() == sorted(labels)
    errors = []
    for values in (labels, same):
        for kind in (".csv", ".parquet"):
            capsys.readouterr()
            path = write("asked", values, kind)
            assert main(["evaluate", "as-labelled", path, "--target", "kind", "--json"]) == 0
            errors.append(json.loads(capsys.readouterr().out)["error"])
    assert len(set(errors)) == 1
    path = write("asked", other, ".parquet")
    assert main(["evaluate", "as-labelled", path, "--target", "kind"]) == 2
    assert "that training lacks" in capsys.readouterr().err


# The frontier ---------------------------------------------------------------------------------


def test_what_would_mislead_is_refused_or_told_of(
    sites: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = ["--recipe.epochs", "1", "--recipe.min_steps", "40", "--device", "cpu"]
    fit = ["fit", "data.csv", "--target", "kind", "--groups", "site", "--out", "run", *quick]
    bound = "balanced_error where deo <= 5"
    assert main([*fit, "--objective", bound]) == 2
    assert "The bound is a share, 0.05 for 5 points; got 5." in capsys.readouterr().err
    assert main(fit) == 0
    table = Path("data.csv").read_bytes()
    capsys.readouterr()
    assert main(["predict", "run", "data.csv", "--out", "data.csv", "--overwrite"]) == 2
    assert "data.csv is the table itself" in capsys.readouterr().err
    assert Path("data.csv").read_bytes() == table
    evaluate = ["evaluate", "run", "data.csv", "--target", "kind", "--groups"]
    assert main([*evaluate, "kind"]) == 2
    assert "Target and groups are the same column" in capsys.readouterr().err
    assert main([*evaluate, "site"]) == 0
    assert "is the table that run was trained on: these are no test" in capsys.readouterr().err
    data = pd.read_csv("data.csv")
    data[data["kind"] != "rare"].to_csv("common.csv", index=False)
    evaluate[2] = "common.csv"
    assert main([*evaluate, "site"]) == 0
    err = capsys.readouterr().err
    assert "common.csv has no example of rare; means over the classes leave it out" in err
    assert "trained on" not in err
    # explain knows what was measured since, and still says that nothing was compared.
    assert main(["explain", "run"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "examples of common.csv, its balanced error is" in said
    assert "held-out rows, the balanced error was" in said
    assert "with plain training" in said

    def denied(path: Path, content: bytes) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("autobalance.cli.predict.write_atomically", denied)
    assert main(["predict", "run", "data.csv", "--out", "new.csv"]) == 2
    assert "new.csv cannot be read or written: Permission denied." in capsys.readouterr().err


SWEEP = [
    "frontier", "data.csv", "--target", "kind", "--groups", "site", "--mixes", "0,0.3,0.6",
    "--recipe.epochs", "2", "--recipe.min_steps", "60", "--device", "cpu", "--out",
]  # fmt: skip
SWEPT = {"frontier.json", "frontier.csv", "frontier.svg"}
RUN = {"result.json", "loss.json", "model.json", "model.safetensors", "report.html"}


@pytest.fixture
def sites(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    table(400).to_csv(tmp_path / "data.csv", index=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _never(*_: object, **__: object) -> None:
    raise AssertionError("nothing is to be swept again")


def test_a_frontier_is_written_shown_and_picked_from(
    sites: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main([*SWEEP, "swept", "--max-gap", "1.5"]) == 0
    out, err = capsys.readouterr()
    assert err.count("\n") == 1
    assert "The gap was measured on few: " in err
    assert "held-out examples of rare in" in err
    assert "with --search.folds 3, or take --by decisions" in err
    assert {p.name for p in Path("swept").iterdir()} == SWEPT | RUN
    record = json.loads(Path("swept/frontier.json").read_text())
    found = Frontier.from_dict(record)
    assert record["status"] == "finished"
    assert [b["title"] for b in record["baselines"]] == [
        "cross-entropy", "logit adjustment", "logit adjustment by group",
    ]  # fmt: skip
    rows = pd.read_csv("swept/frontier.csv")
    picked = found.pick(gap=1.5)
    assert rows.columns.tolist() == [
        "mix", "balanced_error", "deo", "constant", "title", "picked",
    ]  # fmt: skip
    points = rows.dropna(subset="mix")
    assert rows[rows["mix"].isna()]["title"].tolist() == [b["title"] for b in record["baselines"]]
    assert rows[rows["picked"]]["mix"].tolist() == [picked.mix]
    ends = list(zip(points["balanced_error"], points["deo"], strict=True))
    assert len(set(ends)) == len(ends)
    assert {p.mix for p in found.non_dominated()} <= set(points["mix"])
    unpicked = points[~points["picked"] & ~points["constant"]]
    assert set(unpicked["mix"]) <= {p.mix for p in found.non_dominated()}
    [line] = [line for line in out.splitlines() if "picked" in line]
    said = " ".join(out.split())
    assert re.search(r"training loss +balanced error +gap: DEO", out)
    assert (
        "Percent of 80 held-out examples, lower is better. Gap between groups: DEO (gaps in error"
        in said
    )
    assert "Mix: the gap's weight in what a loss was designed for" in said
    assert "Picked: the lowest error whose gap is at most 150.0." in said
    for value in (f"mix {picked.mix:g} ", f"{100 * picked.main:.1f}", f"{100 * picked.gap:.1f}"):
        assert value in line
    assert all(b["title"] in out for b in record["baselines"])
    assert f"RUN of mix {picked.mix:g}, its network trained on all data: swept\n" in out
    assert "Report: swept/report.html\n" in out

    # The RUN is that of this loss, and predicts without groups.
    assert json.loads(Path("swept/loss.json").read_text()) == picked.loss.to_dict()
    result = json.loads(Path("swept/result.json").read_text())
    assert result["objective"] == f"{1 - picked.mix:g} * balanced_error + {picked.mix:g} * deo"
    assert result["frontier"]["deo"] == picked.gap
    pd.read_csv("data.csv").drop(columns=["site", "kind"]).to_csv("fresh.csv", index=False)
    assert main(["predict", "swept", "fresh.csv", "--out", "predicted.csv"]) == 0
    assert len(pd.read_csv("predicted.csv")) == 400
    command = ["evaluate", "swept", "data.csv", "--target", "kind", "--groups", "site", "--json"]
    capsys.readouterr()
    assert main(command) == 0
    assert 0.0 <= json.loads(capsys.readouterr().out)["deo"] <= 2.0

    # Another bound is picked from the same sweep; other options are not taken for it.
    swept = json.loads(Path("swept/frontier.json").read_text())["points"]
    with monkeypatch.context() as patched:
        patched.setattr(AutoBalanceClassifier, "frontier", _never)
        patched.setattr(AutoBalanceClassifier, "baselines", _never)
        assert main([*SWEEP, "swept", "--max-gap", "1.9"]) == 0
        assert main([*SWEEP, "swept", "--max-gap", "1.9", "--seed", "1"]) == 2
    assert "holds a sweep of something else: --seed was 0. " in capsys.readouterr().err
    record = json.loads(Path("swept/frontier.json").read_text())
    assert record["points"] == swept
    assert record["picked"]["mix"] == found.pick(gap=1.9).mix
    again = json.loads(Path("swept/loss.json").read_text())
    assert again == found.pick(gap=1.9).loss.to_dict()

    # Another frontier in its place leaves nothing of the old network.
    assert main([*SWEEP, "swept"]) == 2
    assert "is not empty. Add --overwrite" in capsys.readouterr().err
    assert main([*SWEEP, "swept", "--overwrite", "--seed", "1"]) == 0
    assert {p.name for p in Path("swept").iterdir()} == SWEPT
    assert "picked" not in capsys.readouterr().out


def test_decisions_are_swept_kept_and_predict_without_groups(
    sites: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    at = SWEEP.index("--mixes")
    sweep = [*SWEEP[:at], "--by", "decisions", *SWEEP[at + 2 :]]
    assert main([*sweep, "swept", "--max-gap", "0.1"]) == 0
    out, err = capsys.readouterr()
    assert err.count("\n") == 1
    assert "The gap was measured on few: " in err
    assert "Leave a margin below the gap you need" in err
    # Decisions are no loss: there is none to keep.
    kept_files = SWEPT | (RUN - {"loss.json"}) | {"posterior.safetensors"}
    assert {p.name for p in Path("swept").iterdir()} == kept_files
    record = json.loads(Path("swept/frontier.json").read_text())
    rows = pd.read_csv("swept/frontier.csv").dropna(subset="bound")
    assert rows["deo"].is_monotonic_decreasing
    assert rows["balanced_error"].is_monotonic_increasing  # none is dominated
    assert rows["picked"].sum() == 1
    assert [b["title"] for b in record["baselines"]] == ["Cross-entropy"]
    [line] = [line for line in out.splitlines() if "picked" in line and "bound" in line]
    said = " ".join(out.split())
    assert "Picked: the lowest error whose gap is at most 10.0." in said
    assert re.search(r"Cross-entropy: the most probable class\.", said)
    shown = re.findall(r"bound +([\d.]+)% ", out)
    assert shown == sorted(shown, key=float, reverse=True)
    result = json.loads(Path("swept/result.json").read_text())
    assert result["objective"] == "balanced_error where deo <= 0.1"
    kept = result["frontier"]["kept"]
    assert kept["gap"] <= 0.1 + 1e-6
    assert f"{100 * kept['main']:.1f}" in line
    assert "RUN of the decision picked, which predicts without groups: swept\n" in out
    assert "Report: swept/report.html\n" in out

    pd.read_csv("data.csv").drop(columns=["site", "kind"]).to_csv("fresh.csv", index=False)
    assert main(["predict", "swept", "fresh.csv", "--out", "predicted.csv"]) == 0
    predicted = pd.read_csv("predicted.csv")
    fresh = pd.read_csv("fresh.csv")
    classifier = load_run("swept")[0]
    assert (classifier.predict(fresh) == predicted["prediction"]).all()
    decision = classifier.module_
    assert isinstance(decision, CellDecision)
    _follow_the_rules(classifier, fresh, predicted, result["rules"])
    capsys.readouterr()
    assert main(["explain", "swept"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "Decisions for the balanced error with a DEO of at most 0.1" in said
    several = kept["drawn_from"] > 1
    assert ("rules share the rows: rule 1 decides" in said) == several
    assert ("One rule decides every row" in said) == (not several)
    assert "The gap was measured on few: " in said
    assert f"a balanced error of {100 * kept['main']:.1f}% and a DEO of" in said
    page = Path("swept/report.html").read_text()
    assert "One dot per bound on the gap" in page
    assert "picked, bound" in page
    assert "The loss as code" not in page  # its cross-entropy alone decides nothing
    assert "The rules of decision" in page
    assert main([*sweep, "swept"]) == 2
    assert "is not empty" in capsys.readouterr().err

    # The same pick from the kept sweep decides alike, and nothing is trained.
    with monkeypatch.context() as patched:
        patched.setattr(AutoBalanceClassifier, "cell_posterior", _never)
        assert main([*sweep, "swept", "--max-gap", "0.1"]) == 0
        assert main(["predict", "swept", "fresh.csv", "--out", "again.csv"]) == 0
        assert Path("again.csv").read_bytes() == Path("predicted.csv").read_bytes()
        Path("swept/posterior.safetensors").write_bytes(b"altered")
        assert main([*sweep, "swept", "--max-gap", "0.1"]) == 2
    assert "posterior.safetensors is absent or altered" in capsys.readouterr().err


def _follow_the_rules(
    classifier: Any, fresh: pd.DataFrame, predicted: pd.DataFrame, rules: dict[str, Any]
) -> None:
    """What an auditor does: from cell probabilities, prices and the rule of each row to its decision."""
    inputs = torch.from_numpy(classifier.input_.transform(classifier, fresh))
    with torch.no_grad():
        cells = classifier.module_.cells(inputs).numpy()
    prices = np.array(rules["prices"])
    rule = predicted["rule"] - 1 if "rule" in predicted else np.zeros(len(fresh), dtype=int)
    assert ("rule" in predicted) == (len(prices) > 1)
    sums = (cells * prices[rule]).sum(axis=1)
    assert (classifier.classes_[sums.argmax(axis=1)] == predicted["prediction"]).all()
    drawn = np.bincount(rule, minlength=len(prices)) / len(fresh)
    np.testing.assert_allclose(drawn, rules["shares"], atol=0.12)  # 400 rows


def test_decisions_may_count_groups_alike(sites: Path, capsys: pytest.CaptureFixture[str]) -> None:
    at = SWEEP.index("--mixes")
    sweep = [*SWEEP[:at], "--by", "decisions", *SWEEP[at + 2 :]]
    asked = ["swept", "--main", "group_balanced_error", "--max-gap", "0.1"]
    assert main([*sweep, *asked]) == 0
    assert "over groups and" in capsys.readouterr().out
    columns = pd.read_csv("swept/frontier.csv").columns.tolist()
    assert columns[:4] == ["bound", "group_balanced_error", "deo", "constant"]
    kept = json.loads(Path("swept/result.json").read_text())["frontier"]["kept"]
    assert main(["explain", "swept"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "for the balanced error over groups and classes with a DEO of at most 0.1" in said
    assert f"a balanced error over groups and classes of {100 * kept['main']:.1f}%" in said


def test_a_gap_that_no_point_keeps_leaves_the_frontier(
    sites: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*SWEEP, "swept", "--max-gap", "0.0"]) == 2
    out, err = capsys.readouterr()
    assert re.search(r"autobalance: No point of the frontier has a gap of at most 0; the low", err)
    assert err.count("\n") == 2
    assert "The gap was measured on few: " in err
    assert "logit adjustment by group" in out
    assert {p.name for p in Path("swept").iterdir()} == SWEPT


def test_a_frontier_that_is_stopped_keeps_its_points(
    sites: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from autobalance.cli import terminal

    def stop_at(title: str, phase: str, step: int) -> None:
        def update(_: Any, where: str, progress: Any) -> None:
            if (where, progress.phase) == (title, phase) and progress.step > step:
                raise KeyboardInterrupt

        monkeypatch.setattr(terminal.LiveProgress, "update", update)

    stop_at("frontier", "search", 40)
    assert main([*SWEEP, "early"]) == 130
    assert capsys.readouterr().err == "autobalance: Interrupted. No point was found yet.\n"
    assert not Path("early").exists()
    stop_at("frontier", "search", 70)
    assert main([*SWEEP, "swept"]) == 130
    assert capsys.readouterr().err == (
        "autobalance: Interrupted. Kept in swept: 1 of 3 points. A frontier is not continued; fewer --mixes "
        "take less time.\n"
    )
    record = json.loads(Path("swept/frontier.json").read_text())
    assert record["status"] == "interrupted"
    assert len(Frontier.from_dict(record).points) == 1
    stop_at("baselines", "choose", 0)
    assert main([*SWEEP, "swept", "--overwrite"]) == 130
    assert "Kept in swept: 3 of 3 points." in capsys.readouterr().err
    stop_at("frontier", "retrain", 30)
    assert main([*SWEEP, "swept", "--overwrite", "--max-gap", "2"]) == 130
    assert "Kept in swept: the frontier. The network picked is not" in capsys.readouterr().err
    assert {p.name for p in Path("swept").iterdir()} == SWEPT
    before = {p.name: p.read_bytes() for p in Path("swept").iterdir()}
    stop_at("frontier", "search", 70)
    assert main([*SWEEP, "swept", "--overwrite"]) == 130
    assert "What was finished in swept before is untouched." in capsys.readouterr().err
    assert {p.name: p.read_bytes() for p in Path("swept").iterdir()} == before
    stop_at("never", "search", 0)
    fit = ["fit", "data.csv", "--target", "kind", "--out", "fitted", *QUICK]
    assert main(fit) == 0
    before = {p.name: p.read_bytes() for p in Path("fitted").iterdir()}
    stop_at("frontier", "search", 70)
    assert main([*SWEEP, "fitted", "--overwrite"]) == 130
    assert "What was finished in fitted before is untouched." in capsys.readouterr().err
    assert {p.name: p.read_bytes() for p in Path("fitted").iterdir()} == before


def test_a_frontier_that_diverges_exits_1(sites: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wild = ["--recipe.optimizer", "sgd", "--recipe.lr", "1e25", "--recipe.max_grad_norm", "1e30"]
    assert main([*SWEEP, "swept", *wild]) == 1
    assert re.search(r"non-finite at step .* No point was found yet\.\n", capsys.readouterr().err)


def test_a_group_with_nobody_held_out_is_told_of(
    sites: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = pd.read_csv("data.csv")
    data.loc[:1, "site"] = "islet"
    rare = data.index[(data["kind"] == "rare") & (data["site"] == "south")]
    data.drop(rare[2:]).to_csv("data.csv", index=False)
    assert main([*SWEEP, "swept"]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert "The gap was measured on few: " in lines[2]
    assert "the held-out data has nobody of group islet, whom the gap leaves out" in lines[0]
    assert "nobody of class rare of group south, so a gap between groups is not" in lines[1]
    record = json.loads(Path("swept/frontier.json").read_text())
    for point in (*record["points"], *record["baselines"]):
        assert point["gap"] is None
        assert "there is no example of class" in point["undefined"]["gap"]
    assert main([*SWEEP, "picked", "--max-gap", "0.1"]) == 2
    assert "no point can be picked by it" in capsys.readouterr().err
    assert Path("picked/frontier.svg").is_file()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (["--groups", "kind"], "Target and groups are the same column, 'kind'. Give two."),
        (["--groups", "x"], r"has 400 different values .* Bin a continuous column .*pandas.cut"),
        (["--groups", "none"], "'none' is not in the table"),
        (["--groups", "one"], "The gap 'deo' compares groups; sensitive_features has one only"),
        (["--main", "deo"], "main must not be a gap"),
        (["--main", "luck"], "main must be one of .*; got 'luck'"),
        (["--gap", "luck"], "gap must be one of .*; got 'luck'"),
        (["--mixes", "0.5,0.1"], r"mixes must rise within \[0, 1\); got \[0.5, 0.1\]"),
        (["--by", "decisions", "--gap", "demographic_parity_difference"], "--by decisions is for"),
        (["--by", "decisions"], "--mixes are for --by losses"),
        (["--mixes", "some"], "mixes are numbers with commas between, 0,0.3,0.6; got 'some'"),
        (["--max-gap", "5"], "max_gap is a share, 0.05 for 5 points; got 5.0"),
        (["--max-gap", "-1"], "max_gap must be at least 0; got -1.0. 0.05 is 5 points"),
        (["--max_gpa", "0.1"], "no option max_gpa. Did you mean max_gap"),
        (["--seed", "-1"], "seed must be at least 0"),
        (["--target", "x"], "The target column 'x' looks continuous"),
    ],
)
def test_a_frontier_refused(
    sites: Path, capsys: pytest.CaptureFixture[str], changed: list[str], message: str
) -> None:
    table(400).assign(one="all").to_csv("data.csv", index=False)
    assert main([*SWEEP, "swept", *changed]) == 2
    out, err = capsys.readouterr()
    assert re.fullmatch(f"autobalance: .*{message}.*\n", err), err
    assert out == ""
    assert not Path("swept").exists()
