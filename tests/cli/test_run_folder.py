"""RUN folders: what a run that stops leaves there, and what replaces what."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from autobalance import cli
from autobalance.cli import terminal

pytestmark = pytest.mark.usefixtures("empty_pictures")
QUICK = ["--recipe.epochs", "2", "--recipe.min_steps", "60", "--device", "cpu"]
FIT = ["fit", "data.csv", "--target", "kind", "--out", "run", "--no-baselines", *QUICK]
FILES = {"result.json", "loss.json", "model.json", "model.safetensors", "report.html"}
RACE = "search.checkpoint.race"


@pytest.fixture(autouse=True)
def _folder_with_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    kind = generator.choice(["common", "rare"], size=200, p=[0.8, 0.2])
    x = generator.normal(size=200) + 2.0 * (kind == "rare")
    pd.DataFrame({"x": x, "kind": kind}).to_csv("data.csv", index=False)


@pytest.fixture
def interrupt(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Interrupt the next runs where their phase is first heard of."""

    def at(moment: str) -> None:
        def update(_: Any, title: str, progress: Any) -> None:
            if moment in (title, progress.phase):
                raise KeyboardInterrupt

        monkeypatch.setattr(terminal.LiveProgress, "update", update)

    return at


def contents(folder: str = "run") -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in Path(folder).iterdir()}


def status() -> str:
    return json.loads(Path("run/result.json").read_text())["status"]


def test_a_finished_run_outlives_an_interrupted_overwrite(
    interrupt: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(FIT) == 0
    before = contents()
    assert before.keys() == FILES
    again = [*FIT, "--seed", "1"]
    interrupt("search")
    assert cli.main([*again, "--overwrite"]) == 130
    assert contents().keys() == FILES | {RACE}
    assert {n: c for n, c in contents().items() if n in FILES} == before
    assert "untouched. To continue, give the same command with --resume" in capsys.readouterr().err
    interrupt("retrain")
    assert cli.main([*again, "--overwrite"]) == 130
    assert {n: c for n, c in contents().items() if n in FILES} == before
    assert "untouched. To continue, give the same command with --resume" in capsys.readouterr().err
    interrupt("never")
    assert cli.main([*again, "--resume"]) == 0
    assert contents().keys() == FILES
    assert contents()["model.safetensors"] != before["model.safetensors"]


def test_a_finished_run_removes_what_a_killed_one_left_half_written() -> None:
    Path("run").mkdir()
    Path("run/.loss.json.7.part").write_bytes(b"{")
    assert cli.main([*FIT, "--overwrite"]) == 0
    assert contents().keys() == FILES


def test_a_failed_overwrite_leaves_the_finished_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(FIT) == 0
    before = contents()
    wild = ["--recipe.optimizer", "sgd", "--recipe.lr", "1e25", "--recipe.max_grad_norm", "1e30"]
    assert cli.main([*FIT, *wild, "--overwrite"]) == 1
    assert contents() == before
    assert "non-finite at step" in (shown := capsys.readouterr().err)
    assert shown.endswith("The earlier run in run is untouched.\n")
    assert cli.main([*FIT, "--target", "x", "--overwrite"]) == 2
    assert contents() == before


def test_a_full_disk_loses_neither_the_old_run_nor_the_new_ones_training(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from autobalance.cli import run_folder as runs

    assert cli.main(FIT) == 0
    before = contents()
    again = [*FIT, "--seed", "1"]

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(runs, "write_together", full)
        assert cli.main([*again, "--overwrite"]) == 1
    assert {n: c for n, c in contents().items() if n in FILES} == before
    with monkeypatch.context() as patched:
        patched.setattr(
            "autobalance.bilevel.lower_level.LowerLevel.step", full
        )  # no step is left to take
        assert cli.main([*again, "--resume"]) == 0
    assert contents().keys() == FILES


def test_a_half_trained_network_serves_with_a_warning(
    interrupt: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    interrupt("retrain")
    assert cli.main(FIT) == 130
    assert "report, a half-trained network. To continue" in capsys.readouterr().err
    assert status() == "interrupted"
    assert contents().keys() == FILES | {"search.checkpoint", RACE}
    for command in (
        ["predict", "run", "data.csv", "--out", "out.csv"],
        ["evaluate", "run", "data.csv", "--target", "kind"],
    ):
        assert cli.main(command) == 0
        first, *others = capsys.readouterr().err.splitlines()
        assert first == (
            "autobalance: the network of run is half trained: its run was interrupted at step 20 of "
            "60; continue with `autobalance fit ... --resume`"
        )
        trained_on = (
            "autobalance: data.csv is the table that run was trained on: these are no test errors"
        )
        assert others == [trained_on] * (command[0] == "evaluate")
    interrupt("never")
    assert cli.main([*FIT, "--resume"]) == 0
    assert status() == "finished"
    # The record has the command that begins such a run, and no time that leaves the first part out.
    record = json.loads(Path("run/result.json").read_text())
    assert record["command"] == "autobalance " + shlex.join(FIT)
    assert record["seconds"]["total"] is None
    capsys.readouterr()
    assert cli.main([*FIT, "--resume"]) == 2
    assert "The run in run is finished: there is nothing to continue." in capsys.readouterr().err
    assert cli.main(["predict", "run", "data.csv", "--out", "out.csv", "--overwrite"]) == 0
    assert capsys.readouterr().err == ""


def test_an_interrupt_before_the_first_checkpoint_can_be_resumed_too(
    interrupt: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    interrupt("search")
    assert cli.main(FIT) == 130
    assert contents().keys() == {"result.json", "loss.json", "report.html", RACE}
    assert cli.main(["predict", "run", "data.csv", "--out", "out.csv"]) == 2
    assert "holds no trained network: its run is 'interrupted'" in capsys.readouterr().err
    interrupt("never")
    assert cli.main([*FIT, "--resume"]) == 0
    assert contents().keys() == FILES
    assert cli.main([*FIT, "--resume"]) == 2
    assert cli.main([*FIT, "--resume", "--overwrite"]) == 2
    assert "Give one of them" in capsys.readouterr().err


def test_a_run_begun_with_other_options_is_refused_by_their_names(
    interrupt: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    table = pd.read_csv("data.csv")
    table.assign(side=["a", "b"] * (len(table) // 2)).to_csv("data.csv", index=False)
    interrupt("retrain")
    assert cli.main(FIT) == 130
    before = contents()
    interrupt("never")
    aims = "then balanced_error, now worst_class_error"
    cases = {
        "--seed 1": "--seed. It",
        "--recipe.epochs 3": "--recipe.epochs (then 2, now 3). It",
        "--search.patience 9": "--search.patience (then none, now 9). It",
        "--objective worst_class_error": f"--objective ({aims}). It",
        "--augment shared": "--augment; the data of the table, or --target, --groups or",
        "--test data.csv": "--test. It",
        "--seed 1 --groups side": "--seed; the data of the table, or --target, --groups or",
    }
    for changed, said in cases.items():
        capsys.readouterr()
        assert cli.main([*FIT, "--resume", *changed.split()]) == 2
        err = capsys.readouterr().err
        assert err.startswith(f"autobalance: The run in run was begun with other options: {said}")
        assert f" It was begun by: autobalance {' '.join(FIT)}. Resume with those, or" in err
        assert err.count("\n") == 1
        assert not re.search(r"[0-9a-f]{16}|[0-9]{6}", err), err
        assert contents() == before
    Path("run/result.json").unlink()  # as where it was killed
    assert cli.main([*FIT, "--resume", "--seed", "1"]) == 2
    assert "begun by" not in capsys.readouterr().err
