"""Arms from the command line to the RUN folder and back."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from autobalance import cli
from autobalance._validation import InputError
from autobalance.bilevel.arms import Arm
from autobalance.bilevel.types import Progress
from autobalance.cli import fit
from autobalance.cli.fit import fit_record
from autobalance.cli.options import training_options
from autobalance.cli.parsers import command_parser
from autobalance.cli.run_folder import load_run, save_run
from autobalance.cli.terminal import LiveProgress
from autobalance.losses.published import NormalizedLinear, last_linear
from autobalance.records.settings import Recipe
from autobalance.sklearn.classifier import AutoBalanceClassifier

QUICK = ["--recipe.epochs=1", "--recipe.min_steps=20", "--device=cpu"]


@pytest.fixture
def table(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    target = np.repeat([0, 1, 2], [60, 25, 12])
    features = generator.normal(size=(len(target), 3)) + target[:, None]
    frame = pd.DataFrame(features, columns=["u", "v", "w"]).assign(kind=target)
    frame.to_csv(tmp_path / "table.csv", index=False)
    return tmp_path / "table.csv"


def test_a_cosine_classifier_comes_back_from_its_folder(table: Path, tmp_path: Path) -> None:
    frame = pd.read_csv(table)
    model = AutoBalanceClassifier(
        arms=[Arm(name="cosine", cosine_scale=8.0)],
        recipe=Recipe(epochs=1, min_steps=20),
        random_state=0,
        device="cpu",
    )
    model.fit(frame[["u", "v", "w"]], frame["kind"])
    options: Any = command_parser().parse_args(
        ["fit", str(table), "--target", "kind", "--out", str(tmp_path / "run")]
    )["fit"]
    record = fit_record(model, "autobalance fit", "finished", 0.0, options)
    save_run(tmp_path / "run", model, record, target="kind")
    again, _ = load_run(tmp_path / "run")
    head = last_linear(again.module_)[1]
    assert isinstance(head, NormalizedLinear)
    assert head.scale == 8.0
    features = frame[["u", "v", "w"]]
    np.testing.assert_array_equal(
        again.decision_function(features), model.decision_function(features)
    )


@pytest.mark.parametrize("arms", ["default", "none"])
def test_a_fit_races_unless_told_not_to(
    arms: str, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    code = cli.main(
        ["fit", str(table), "--target", "kind", "--out", str(out), "--arms", arms, *QUICK]
    )
    assert code == 0
    said = capsys.readouterr().out
    assert ("2 ways to train, each tried" in said) == (arms == "default")
    _, record = load_run(out)
    assert len(record["search"]["race"]) == (3 if arms == "default" else 0)
    assert record["options"]["arms"] == arms


@pytest.mark.parametrize("given", [[], ["--recipe.epochs=60"]])
def test_a_recipe_that_is_given_wins_over_what_follows_from_the_rows(
    given: list[str], table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it gives the default of small tables."""
    asked: list[Recipe | None] = []
    stop = InputError("far enough")

    def build(options: Any, out: Path | None) -> Any:
        asked.append(training_options(options)[0])
        raise stop

    monkeypatch.setattr(fit, "build_classifier", build)
    command = ["fit", str(table), "--target", "kind", "--out", str(tmp_path / "run"), *given]
    assert cli.main(command) == 2
    assert asked == ([Recipe()] if given else [None])


def test_progress_tells_rows_per_second_and_the_share_of_a_race() -> None:
    with LiveProgress() as live:
        for step in (20, 40):
            live.update("autobalance", Progress("race", step, 100, rows=512))
            time.sleep(0.01)
        live.update("autobalance", Progress("race", 50, 100))
        [task] = live._bars.tasks
    assert (task.completed, task.total) == (50, 100)
    speed = re.fullmatch(r"([\d,]+) rows/s", task.fields["speed"])
    assert speed is not None
    assert 0 < int(speed[1].replace(",", "")) <= 20 * 512 / 0.01
