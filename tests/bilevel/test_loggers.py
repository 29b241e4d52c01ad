"""Loggers: the same numbers in each, nothing changed by them, and no network."""

from __future__ import annotations

import csv
import functools
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_fabric.loggers import CSVLogger
from torch import nn

from autobalance import (
    AutoBalanceClassifier,
    HierarchicalSpace,
    LossTuner,
    ParametricCrossEntropy,
    Recipe,
    SearchSettings,
    TunableCrossEntropy,
    frontier,
    retrain,
    search,
    search_head,
)
from autobalance._validation import InputError, TrainingDiverged
from autobalance.bilevel.loggers import MAX_LOSS_NUMBERS, LoggerAdapter, local_logger
from autobalance.cli import main
from autobalance.losses.parametric import LossParameters
from helpers import blobs, linear_factory

pytestmark = pytest.mark.usefixtures("few_draws")
RECIPE = Recipe(epochs=1, min_steps=45, lr=0.05)
SETTINGS = SearchSettings(every=5, warmup=0.2, folds=2, validation_fraction=0.3)


class Kept:
    """In memory."""

    def __init__(self) -> None:
        self.entries: list[tuple[int, dict[str, float]]] = []
        self.saved = 0

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        assert step is not None
        self.entries.append((step, dict(metrics)))

    def save(self) -> None:
        self.saved += 1

    def series(self, name: str) -> dict[int, float]:
        return {step: values[name] for step, values in self.entries if name in values}


def searched(logger: Any = None, **given: Any) -> Any:
    options = {"recipe": RECIPE, "settings": SETTINGS, "seed": 3, "device": "cpu", **given}
    return search(linear_factory(), blobs(), logger=logger, **options)


@functools.cache
def plain() -> Any:
    """What the search finds without a logger."""
    return searched()


@functools.cache
def logged() -> tuple[Any, Kept]:
    """What it finds with one, and what the logger was told."""
    kept = Kept()
    return searched(kept), kept


def retrained(logger: Any = None) -> torch.nn.Module:
    fixed = ParametricCrossEntropy.logit_adjusted([120, 40, 12])
    return retrain(
        linear_factory(), blobs(), fixed, recipe=RECIPE, seed=3, device="cpu", logger=logger
    )


def timeless(result: Any) -> dict[str, Any]:
    return {key: value for key, value in result.to_dict().items() if key != "seconds"}


def test_a_run_is_the_same_bit_for_bit_with_a_logger_and_without() -> None:
    assert json.dumps(timeless(plain())) == json.dumps(timeless(logged()[0]))
    one, other = retrained(), retrained(Kept())
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


def test_what_is_logged_is_what_the_result_holds() -> None:
    result, kept = logged()
    for key, name in (
        ("objective", "objective"),
        ("hard_objective", "hard_objective"),
        ("training_loss", "training_loss"),
        ("norm", "hypergradient_norm"),
    ):
        expected = {r.step: getattr(r, key) for r in result.history}
        assert kept.series(f"search/{name}") == expected
    for c in range(3):
        path = {p.step: p.additive[c] for p in result.path if p.step > 0}
        assert kept.series(f"loss/additive/{c}") == path
    chosen = {c.name: c.objective for c in result.candidates}
    assert len(chosen) == 3
    assert kept.entries[-1] == (45, {f"choose/{name}": v for name, v in chosen.items()})
    assert kept.saved == 1

    kept = Kept()
    retrained(kept)
    assert list(kept.series("retrain/training_loss")) == [20, 40, 45]
    assert kept.series("retrain/lr")[45] < kept.series("retrain/lr")[20] <= RECIPE.lr


def test_search_on_frozen_features_logs_its_evaluations() -> None:
    kept, data = Kept(), blobs()
    result = search_head(data, max_steps=4, device="cpu", logger=kept)
    expected = {r.step: r.objective for r in result.history}
    assert kept.series("search/objective") == expected
    assert timeless(search_head(data, max_steps=4, device="cpu")) == timeless(result)


def batch(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(32, 2, generator=generator), torch.arange(32) % 3


def test_a_loop_of_ones_own_logs_its_upper_steps() -> None:
    """And goes on counting where its state was loaded."""

    def tuned(logger: Any, steps: range, state: Any = None) -> tuple[LossTuner, list[Any]]:
        torch.manual_seed(0)
        model, loss = nn.Linear(2, 3), TunableCrossEntropy(HierarchicalSpace([120, 40, 12]))
        tuner = LossTuner(loss, logger=logger)
        if state is not None:
            tuner.load_state_dict(state)
        seen = []
        for i in steps:
            seen.append(
                (tuner.step(model, batch(i), batch(100 + i)), loss.space().additive.tolist())
            )
        return tuner, seen

    kept = Kept()
    tuner, seen = tuned(kept, range(4))
    assert tuned(None, range(4))[1] == seen
    for key, name in (
        ("objective", "objective"),
        ("hard_objective", "hard_objective"),
        ("norm", "hypergradient_norm"),
        ("residual", "residual"),
    ):
        expected = {i: getattr(step, key) for i, (step, _) in enumerate(seen, start=1)}
        assert kept.series(f"search/{name}") == expected
    for c in range(3):
        series = {i: additive[c] for i, (_, additive) in enumerate(seen, start=1)}
        assert kept.series(f"loss/additive/{c}") == series
    assert not kept.series("search/training_loss")
    assert kept.saved == 0
    later = Kept()
    assert tuned(later, range(4, 6), tuner.state_dict())[0].steps == 6
    assert list(later.series("search/objective")) == [5, 6]
    older = tuner.state_dict()
    del older["steps"]
    assert tuned(None, range(4, 5), older)[0].steps == 1


def test_a_search_does_not_log_twice() -> None:
    result, kept = logged()
    assert sum("search/objective" in values for _, values in kept.entries) == len(result.history)


def test_a_frontier_logs_its_points_on_one_axis() -> None:
    data = blobs((60, 30), groups=True)
    settings = SearchSettings(every=5, warmup=0.2, validation_fraction=0.3)
    given: dict[str, Any] = {"recipe": RECIPE, "settings": settings, "seed": 3, "device": "cpu"}
    kept = Kept()
    found = frontier(linear_factory(2), data, mixes=(0.0, 0.4, 0.8), logger=kept, **given)
    without = frontier(linear_factory(2), data, mixes=(0.0, 0.4, 0.8), **given)
    assert timeless(found) == timeless(without)
    ends = [45, 67, 89]  # a run, and twice half of one
    for name in ("mix", "main", "gap"):
        points = [getattr(p, name) for p in found.points]
        assert kept.series(f"frontier/{name}") == dict(zip(ends, points, strict=True))
    steps = [step for step, values in kept.entries if "search/objective" in values]
    assert steps == sorted(set(steps))
    assert len([s for s in steps if 45 < s <= 67]) == len([s for s in steps if 67 < s <= 89]) == 4
    assert kept.saved == 1


def test_a_logger_is_flushed_where_the_run_fails() -> None:
    kept = Kept()
    with pytest.raises(TrainingDiverged):
        searched(kept, recipe=Recipe(epochs=1, min_steps=45, lr=1e30, max_grad_norm=1e30))
    assert kept.saved == 1


def test_numbers_that_are_not_finite_and_other_processes_are_left_out() -> None:
    kept = Kept()
    LoggerAdapter(kept).write({"a": math.nan, "b": 1.0, "c": math.inf}, 2)
    LoggerAdapter(kept).write({"a": math.nan}, 3)
    LoggerAdapter(kept, writes=False).write({"b": 1.0}, 4)
    assert kept.entries == [(2, {"b": 1.0})]


@pytest.mark.parametrize(("classes", "logged"), [(MAX_LOSS_NUMBERS, 100), (101, 0)])
def test_a_loss_of_many_numbers_is_not_logged(classes: int, logged: int) -> None:
    kept = Kept()
    record = plain().history[0]
    LoggerAdapter(kept).log_upper_step(record, LossParameters(None, torch.zeros(classes), None), 1)
    [(_, values)] = kept.entries
    assert sum(name.startswith("loss/") for name in values) == logged


def test_rows_of_groups_have_names_of_their_own() -> None:
    kept = Kept()
    additive = torch.arange(4.0).view(2, 2)
    loss = LossParameters(None, additive, None)
    LoggerAdapter(kept).log_upper_step(plain().history[0], loss, 1)
    [(_, values)] = kept.entries
    found = {k: v for k, v in values.items() if k.startswith("loss/")}
    assert found == {f"loss/additive/{g}/{c}": 2.0 * g + c for g in (0, 1) for c in (0, 1)}


def test_what_is_no_logger_is_refused() -> None:
    with pytest.raises(InputError, match=r"logger must have log_metrics.*got str.*CSVLogger"):
        searched("csv")
    with pytest.raises(InputError, match=r"logger must have log_metrics.*got int"):
        LossTuner(TunableCrossEntropy(HierarchicalSpace([3, 2])), logger=3)  # type: ignore[arg-type]


# Loggers of others ----------------------------------------------------------------------------


def rows(path: Path) -> dict[str, dict[int, float]]:
    """What a CSVLogger wrote: by name, then by step."""
    found: dict[str, dict[int, float]] = {}
    with path.open(newline="") as stream:
        for row in csv.DictReader(stream):
            for name, value in row.items():
                if value and name != "step":
                    found.setdefault(name, {})[int(row["step"])] = float(value)
    return found


def test_csv(tmp_path: Path) -> None:
    result = searched(local_logger("csv", tmp_path))
    found = rows(tmp_path / "logs/version_0/metrics.csv")
    assert found["search/objective"] == {r.step: r.objective for r in result.history}
    assert found["choose/start"].keys() == {45}


def test_tensorboard(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = local_logger("tensorboard", tmp_path)
    result = searched(logger)
    logger.finalize("success")
    read = EventAccumulator(str(tmp_path / "logs/version_0"))
    read.Reload()
    found = {event.step: event.value for event in read.Scalars("search/objective")}
    assert found == pytest.approx({r.step: r.objective for r in result.history})
    assert "loss/additive/2" in read.Tags()["scalars"]


BEGIN = """
import sys, torch
sys.path.insert(0, sys.argv[2])
from torchvision_operators import define_missing_operators
define_missing_operators()  # Lightning imports torchvision
"""

MLFLOW = """
from helpers import blobs, linear_factory
from lightning.pytorch.loggers import MLFlowLogger
from autobalance import Recipe, SearchSettings, search
logger = MLFlowLogger("mine", tracking_uri="file://" + sys.argv[1] + "/store")
recipe, settings = Recipe(epochs=1, min_steps=45), SearchSettings(every=5)
result = search(linear_factory(), blobs(), recipe=recipe, settings=settings, device="cpu", logger=logger)
logger.finalize("success")
client = logger.experiment
assert client.get_run(logger.run_id).info.status == "FINISHED"
found = {m.step: m.value for m in client.get_metric_history(logger.run_id, "search/objective")}
assert found == {r.step: r.objective for r in result.history}, found
"""

WANDB = """
from helpers import blobs, linear_factory
from lightning.pytorch.loggers import WandbLogger
from autobalance import Recipe, SearchSettings, search, retrain
logger = WandbLogger(project="mine", offline=True, save_dir=sys.argv[1])
recipe, settings = Recipe(epochs=1, min_steps=45), SearchSettings(every=5)
given = {"recipe": recipe, "device": "cpu", "logger": logger}
result = search(linear_factory(), blobs(), settings=settings, **given)
retrain(linear_factory(), blobs(), result.loss, **given)
summary = dict(logger.experiment.summary)
assert summary["search/objective"] == result.history[-1].objective, summary
assert summary["trainer/global_step"] == 45 and "retrain/lr" in summary, summary
logger.experiment.finish()
"""


def alone(code: str, folder: Path, **environment: str) -> None:
    """In a process of its own: these clients set threads, hooks and warnings for the whole process."""
    source = {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    # No proxy and no name server leads anywhere: a client that asked for the network would fail.
    nowhere = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), "http://127.0.0.1:9")
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder), str(Path(__file__).parents[1] / "support")],
        env={**os.environ, **source, **nowhere, "HOME": str(folder), **environment},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.slow
def test_mlflow_in_a_local_folder(tmp_path: Path) -> None:
    alone(BEGIN + MLFLOW, tmp_path, MLFLOW_ALLOW_FILE_STORE="true")


@pytest.mark.slow
def test_wandb_offline(tmp_path: Path) -> None:
    alone(BEGIN + WANDB, tmp_path, WANDB_MODE="offline", WANDB_SILENT="true")
    assert list(tmp_path.glob("wandb/offline-run-*/run-*.wandb"))


def test_a_client_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning_fabric.loggers import tensorboard

    for name in ("tensorboard", "torch.utils.tensorboard"):
        monkeypatch.setitem(sys.modules, name, None)
    for name in ("_TENSORBOARD_AVAILABLE", "_TENSORBOARDX_AVAILABLE"):
        monkeypatch.setattr(tensorboard, name, False)
    with pytest.raises(InputError, match=r"pip install tensorboard"):
        local_logger("tensorboard", tmp_path)


# Where they are given -------------------------------------------------------------------------


def test_the_estimator_logs_search_and_retraining(tmp_path: Path) -> None:
    data = blobs()
    logger = CSVLogger(root_dir=str(tmp_path), name="mine")
    model = AutoBalanceClassifier(
        recipe=RECIPE, settings=SETTINGS, random_state=0, device="cpu", logger=logger
    )
    model.fit(data.inputs.numpy(), data.target.numpy())
    found = rows(tmp_path / "mine/version_0/metrics.csv")
    assert {"search/objective", "choose/designed", "retrain/training_loss"} <= found.keys()


@pytest.mark.usefixtures("empty_pictures")
def test_fit_logs_into_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data = blobs()
    lines = [
        f"{x:.4f},{y:.4f},{'abc'[t]}"
        for (x, y), t in zip(data.inputs.tolist(), data.target.tolist(), strict=True)
    ]
    Path("data.csv").write_text("x,y,kind\n" + "\n".join(lines))
    command = ["fit", "data.csv", "--target", "kind", "--out", "run", "--device", "cpu"]
    command += ["--recipe.epochs", "1", "--recipe.min_steps", "40"]
    assert main([*command, "--log", "csv"]) == 0
    found = rows(Path("run/logs/version_0/metrics.csv"))
    history = json.loads(Path("run/result.json").read_text())["search"]["history"]
    assert found["search/objective"] == {r["step"]: r["objective"] for r in history}
    loss = Path("run/loss.json").read_bytes()
    assert main([*command, "--overwrite"]) == 0
    assert Path("run/loss.json").read_bytes() == loss
