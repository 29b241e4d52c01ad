"""The configurations of the paper's benchmarks: what they name is there, and one runs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from autobalance.cli import main
from autobalance.comparison.cells import cells_of, objective_of
from autobalance.comparison.configuration import Configuration, read_configuration, resolved
from autobalance.comparison.dataset_definitions import LAYOUTS
from autobalance.comparison.methods import METHODS, augmentation_of
from autobalance.networks import imported
from tiny_sets import tiny_cifar

FOLDER = Path(__file__).parents[1] / "configs"
NAMES = ["cifar100_lt", "cifar10_lt", "imagenet_lt", "inaturalist18", "modern_frozen", "waterbirds"]
PUBLISHED = {"autobalance_published", "autobalance_published_la", "autobalance_short"}


def parts_of(path: Path) -> list[Configuration]:
    whole = read_configuration(path)
    return [whole, *(whole.subset(name) for name in whole.subsets)]


def test_these_are_all() -> None:
    assert sorted(path.stem for path in FOLDER.glob("*.yaml")) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_what_a_configuration_names_is_there(name: str) -> None:
    for part in parts_of(FOLDER / f"{name}.yaml"):
        assert set(part.methods) <= set(METHODS)
        for objective in part.objectives:
            assert objective_of(objective, np.array([5, 3])).over
        augment = augmentation_of(part.augment)
        assert (augment is None) == (name == "modern_frozen")
        cells = cells_of(part, "data", "cpu")
        assert len({cell.identity() for cell in cells}) == len(cells)
        for dataset in map(resolved, part.datasets):
            assert dataset.layout in LAYOUTS
            assert "https://" in dataset.source
            assert not Path(dataset.path).is_absolute()
            needs_groups = [o for o in part.objectives if "group" in o]
            assert bool(dataset.groups) == bool(needs_groups)
            network = dataset.backbone or dataset.network
            assert not isinstance(network, str)
            if network["path"].startswith("autobalance."):
                assert callable(imported(network["path"]))
            else:  # not installed for the tests
                assert network["path"] == "torchvision.models.resnet50"


@pytest.mark.parametrize("name", [name for name in NAMES if name != "modern_frozen"])
def test_the_published_procedure_stands_beside_ours(name: str) -> None:
    whole = read_configuration(FOLDER / f"{name}.yaml")
    assert {"cross_entropy", "logit_adjustment", "vs", "autobalance"} <= set(whole.methods)
    assert PUBLISHED & set(whole.methods)
    assert whole.recipe.optimizer == "sgd"
    assert (whole.recipe.momentum, whole.search.warmup) == (0.9, 0.4)


def test_both_cifars_have_one_recipe() -> None:
    ten, hundred = (read_configuration(FOLDER / f"cifar{n}_lt.yaml") for n in (10, 100))
    assert (ten.recipe, ten.search, ten.augment) == (
        hundred.recipe,
        hundred.search,
        hundred.augment,
    )
    assert (ten.methods, ten.seeds) == (hundred.methods, hundred.seeds)
    assert ten.recipe.epochs * ten.search.warmup == pytest.approx(120)


def test_cifar10_lt_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_cifar(tmp_path / "data", each=10, test=4)
    path = str(FOLDER / "cifar10_lt.yaml")
    out = tmp_path / "out"
    command = [
        "run",
        path,
        "--subset",
        "quick",
        "--data",
        str(tmp_path / "data"),
        "--out",
        str(out),
    ]
    assert main(command) == 0, capsys.readouterr().err
    lines = (out / "cells.jsonl").read_text().splitlines()
    records = {r["method"]: r for r in map(json.loads, lines)}
    assert list(records) == ["cross_entropy", "logit_adjustment", "autobalance"]
    for record in records.values():
        assert record["status"] == "finished"
        assert record["class_counts"][0] == 10
        assert record["class_counts"][-1] == 1
        assert 0.0 < record["objectives"]["balanced_error"] <= 1.0
    assert records["autobalance"]["details"]["augment"] == {
        "module": "StandardAugmentation(padding=4, flip=True)"
    }
    assert "autobalance run" in (out / "BENCHMARKS.md").read_text()
    before = (out / "cells.jsonl").read_bytes()
    assert main(["compare", *command[1:]]) == 0  # the same, and nothing is left to run
    assert (out / "cells.jsonl").read_bytes() == before


def test_a_folder_without_cifar(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(FOLDER / "cifar10_lt.yaml")
    command = ["run", path, "--subset", "quick", "--data", str(tmp_path)]
    assert main([*command, "--out", str(tmp_path / "out")]) == 1
    assert "must hold cifar-10-batches-bin" in capsys.readouterr().err
