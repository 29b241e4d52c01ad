"""The configurations of the paper's benchmarks: what they name is there, and one runs."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pytest
from torch import nn

from autobalance.cli import main
from autobalance.networks import imported
from autobalance_bench.comparison.cells import cells_of, objective_of, run_cell
from autobalance_bench.comparison.configuration import Configuration, read_configuration, resolved
from autobalance_bench.comparison.dataset_definitions import LAYOUTS
from autobalance_bench.comparison.datasets import load_problem
from autobalance_bench.comparison.methods import METHODS, augmentation_of
from autobalance_bench.datasets.images import LabelledImages
from tiny_sets import picture, tiny_cifar

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
    # The released code's: from epoch 40 of 150 on, and from 120 of 300 for CIFAR.
    expected = 0.27 if name in ("imagenet_lt", "inaturalist18") else 0.4
    assert (whole.recipe.momentum, whole.search.warmup) == (0.9, expected)


def test_both_cifars_have_one_recipe() -> None:
    ten, hundred = (read_configuration(FOLDER / f"cifar{n}_lt.yaml") for n in (10, 100))
    assert (ten.recipe, ten.search, ten.augment) == (
        hundred.recipe,
        hundred.search,
        hundred.augment,
    )
    assert (ten.methods, ten.seeds) == (hundred.methods, hundred.seeds)
    assert ten.recipe.epochs * ten.search.warmup == pytest.approx(120)


def test_cifar10_lt_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_cifar(tmp_path / "data", monkeypatch, each=10, test=4)
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
    assert "must hold cifar-10-batches-py" in capsys.readouterr().err


# Those for photographs, with a network that takes torchvision's place ------------------------


class Small(nn.Sequential):
    """Called as torchvision's resnet50; with weights it has the classes of ImageNet."""

    def __init__(self, *, weights: str | None = None, **settings: Any) -> None:
        num_classes = settings.pop("num_classes", 1000)
        assert not settings
        assert weights is None or num_classes == 1000
        pool = nn.AdaptiveAvgPool2d(1)
        super().__init__(pool, nn.Flatten(), nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, num_classes))


@pytest.fixture
def torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    package, models = ModuleType("torchvision"), ModuleType("torchvision.models")
    models.__dict__["resnet50"] = Small
    monkeypatch.setitem(sys.modules, "torchvision", package)
    monkeypatch.setitem(sys.modules, "torchvision.models", models)


def tiny_waterbirds(folder: Path) -> None:
    rows = pd.DataFrame({"img_filename": [f"b/{i:03d}.png" for i in range(120)]})
    rows = rows.assign(y=rows.index % 2, place=rows.index // 2 % 2, split=rows.index // 40)
    for i, name in enumerate(rows["img_filename"]):
        picture(folder / "waterbird_complete95_forest2water2" / name, 2 * i)
    rows.to_csv(folder / "waterbird_complete95_forest2water2" / "metadata.csv", index=False)


@pytest.mark.usefixtures("torchvision")
@pytest.mark.parametrize("name", ["waterbirds", "modern_frozen"])
def test_configurations_with_groups_run(tmp_path: Path, name: str) -> None:
    """On tiny images, in a few steps."""
    tiny_waterbirds(tmp_path)
    whole = read_configuration(FOLDER / f"{name}.yaml")
    first = resolved(whole.datasets[0])
    network = first.network
    if isinstance(network, dict):
        network = {**network, "crop": 24}
    small = replace(first, image_size=32, network=network)
    recipe = replace(whole.recipe, epochs=1, min_steps=20)
    augment = whole.augment and {**whole.augment, "size": 24}
    few = replace(whole, datasets=(small,), recipe=recipe, augment=augment, seeds=(0,))
    for cell in cells_of(few, str(tmp_path), "cpu"):
        record = run_cell(cell)
        assert record["status"] == "finished", record.get("reason")
        assert record["sizes"] == {"train": 40, "test": 40}
        assert set(record["objectives"]) == set(whole.objectives)


def tiny_imagenet(folder: Path) -> None:
    """Of two classes, 60 and 20; the lists' validation part has 10 and 10 images, the test set 8 and 8."""
    for name, inside, counts in (
        ("train", "train", (60, 20)),
        ("val", "val", (10, 10)),
        ("test", "val", (8, 8)),
    ):
        lines = []
        for k, n in enumerate(counts):
            for i in range(n):
                file = f"{inside}/n0{k}/{name}{i}.png"
                picture(folder / "imagenet" / file, 60 + 100 * k + i)
                lines.append(f"{file} {k}")
        (folder / "ImageNet_LT").mkdir(exist_ok=True)
        (folder / f"ImageNet_LT/ImageNet_LT_{name}.txt").write_text("\n".join(lines))


@pytest.mark.usefixtures("torchvision")
@pytest.mark.parametrize("subset", [None, "released"])
def test_imagenet_lt_runs_on_images_in_files(
    tmp_path: Path, subset: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the file says but for the sizes and the compiler; each image is decoded once for all cells."""
    tiny_imagenet(tmp_path)
    whole = read_configuration(FOLDER / "imagenet_lt.yaml")
    whole = whole if subset is None else whole.subset(subset)
    first = resolved(whole.datasets[0])
    assert isinstance(first.network, dict)
    small = replace(first, image_size=20, network={**first.network, "crop": 16})
    recipe = replace(whole.recipe, epochs=1, min_steps=60, batch_size=16)
    few = replace(
        whole, datasets=(small,), recipe=recipe, compiled=False,
        augment={**(whole.augment or {}), "size": 16},
    )  # fmt: skip
    assert (few.precision, few.channels_last, whole.compiled) == ("bf16-mixed", True, True)
    decode, decoded = LabelledImages._decode, []

    def record(self: LabelledImages, row: int) -> Any:
        decoded.append(self.names[row])
        return decode(self, row)

    monkeypatch.setattr(LabelledImages, "_decode", record)
    held = []
    for cell in cells_of(few, str(tmp_path), "cpu"):
        record = run_cell(cell)
        assert record["status"] == "finished", record.get("reason")
        assert record["sizes"] == {"train": 80, "test": 16}
        held.append(load_problem(small, 0, tmp_path).validation)
    assert len(decoded) == len(set(decoded)) == (96 if subset is None else 116)
    for part in held:
        assert (None if part is None else part.counts().tolist()) == (
            None if subset is None else [10, 10]
        )
