"""Layouts of published image sets and of images of one's own; backbones; networks by path."""

from __future__ import annotations

import json
import pickle
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

import datasets
from autobalance import InputError
from autobalance.data.stored import StoredRows
from autobalance.networks import FromBytes, Normalize, ResNet32
from autobalance_bench.comparison import dataset_readers
from autobalance_bench.comparison.dataset_definitions import (
    LAYOUTS,
    DatasetDefinition,
    packaged_definitions,
)
from autobalance_bench.comparison.datasets import Problem, load_problem
from autobalance_bench.datasets.cifar import load_cifar_lt
from autobalance_bench.datasets.images import LabelledImages
from tiny_sets import picture, tiny_celeba, tiny_cifar


def define(**values: Any) -> DatasetDefinition:
    given = {"name": "small", "path": ".", "target": "class", "image_size": 8, "network": "cnn"}
    return DatasetDefinition(**{**given, **values})


def reds(problem: Problem) -> tuple[list[float], list[float]]:
    """One pixel of every image, of training and of testing."""
    sides = [
        (part.inputs[:, 0, 4, 4] * 255).round().tolist() for part in (problem.train, problem.test)
    ]
    return sides[0], sides[1]


def test_every_layout_has_a_reader() -> None:
    assert set(LAYOUTS) == set(dataset_readers.READERS)


# Published sets -----------------------------------------------------------------------------


def test_cifar_lt_is_the_readers_draw_whatever_the_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_cifar(tmp_path, monkeypatch)
    definition = define(layout="cifar10_lt", options={"imbalance": 10, "seed": 3})
    train, test, names = load_cifar_lt(tmp_path, imbalance=10, seed=3)
    for seed in (0, 1):
        problem = load_problem(definition, seed, tmp_path)
        assert problem.class_names == names
        assert torch.equal(problem.train.inputs, train.inputs)
        assert torch.equal(problem.test.inputs, test.inputs)
        assert problem.train.counts().tolist() == train.counts().tolist()
        assert problem.test.target.tolist() == test.target.tolist()
    balanced = load_problem(define(layout="cifar10"), 0, tmp_path)
    assert balanced.train.counts().tolist() == [20] * 10


def test_cifar_100_is_read_from_the_folder_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_cifar(tmp_path, monkeypatch, classes=100, each=4, test=1)
    definition = define(path="cifar-100-python", layout="cifar100_lt", options={"imbalance": 4})
    problem = load_problem(definition, 0, tmp_path)
    counts = problem.train.counts()
    assert (counts.max(), counts.min(), len(problem.test)) == (4, 1, 100)


def test_celeba_is_published_with_a_validation_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_celeba(tmp_path, monkeypatch, [1, -1] * 6, [1, 1, -1, -1] * 3, [0] * 4 + [2] * 4 + [1] * 4)
    definition = replace(packaged_definitions()["celeba"], validation="published")
    problem = load_problem(definition, 0, tmp_path)
    assert (problem.class_names, problem.group_names) == (
        ("blond", "not blond"),
        ("female", "male"),
    )
    assert problem.train.target.tolist() == problem.test.target.tolist() == [0, 1, 0, 1]
    assert reds(problem)[1] == pytest.approx([80, 100, 120, 140], abs=4)
    assert problem.validation is not None
    assert problem.validation.counts().tolist() == [[1, 1], [1, 1]]


def write_imagenet(folder: Path) -> None:
    lists = {
        "train": [("a", 0, 10), ("a", 1, 20), ("b", 0, 30)],
        "val": [("a", 7, 0)],
        "test": [("b", 8, 40), ("a", 9, 50)],
    }
    (folder / "lists").mkdir()
    for name, images in lists.items():
        inside = "train" if name == "train" else "val"
        lines = []
        for kind, number, red in images:
            file = picture(folder / f"imagenet/{inside}/{kind}/{number}.png", red)
            lines.append(f"{inside}/{kind}/{file} {'ab'.index(kind)}")
        (folder / f"lists/ImageNet_LT_{name}.txt").write_text("\n".join(lines))


def test_imagenet_lt_with_its_lists_beside_it(tmp_path: Path) -> None:
    write_imagenet(tmp_path)
    definition = define(path="imagenet", layout="imagenet_lt", options={"lists": "lists"})
    problem = load_problem(definition, 0, tmp_path)
    assert problem.class_names == ("a", "b")
    assert reds(problem) == ([10, 20, 30], [40, 50])
    assert problem.test.target.tolist() == [1, 0]
    (tmp_path / "lists").rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=r"small needs .*/lists, which is not there"):
        load_problem(definition, 0, tmp_path)


def test_the_published_validation_part_guides_and_trains_nothing(tmp_path: Path) -> None:
    write_imagenet(tmp_path)
    values: dict[str, Any] = {
        "path": "imagenet",
        "layout": "imagenet_lt",
        "options": {"lists": "lists"},
    }
    problem = load_problem(define(**values, validation="published"), 0, tmp_path)
    assert reds(problem) == ([10, 20, 30], [40, 50])
    assert problem.validation is not None
    assert problem.validation.counts().tolist() == [1, 0]
    assert float(problem.validation.inputs[0, 0, 4, 4]) == 0.0
    assert load_problem(define(**values), 0, tmp_path).validation is None
    with pytest.raises(
        InputError, match="layout cifar10 comes with no validation part; these do: wat"
    ):
        define(layout="cifar10", validation="published")


def test_decoded_photographs_are_kept_and_read_from_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_imagenet(tmp_path)
    values: dict[str, Any] = {
        "path": "imagenet",
        "layout": "imagenet_lt",
        "options": {"lists": "lists"},
    }
    values |= {"as_bytes": True, "validation": "published"}
    inside = load_problem(define(**values), 0, tmp_path)
    outside = load_problem(define(**values, store="decoded"), 0, tmp_path)
    assert len(list((tmp_path / "decoded").glob("*.npy"))) == 3
    for name in ("train", "validation", "test"):
        there, here = getattr(outside, name), getattr(inside, name)
        assert isinstance(there.inputs, StoredRows)
        assert torch.equal(there.inputs[slice(0, len(there))], here.inputs)
        assert torch.equal(there.target, here.target)
    monkeypatch.setattr(LabelledImages, "_decode", None)  # would fail
    again = define(**values, store=str(tmp_path / "decoded"), train_size=2)
    assert len(load_problem(again, 1, tmp_path).train) == 2
    with pytest.raises(InputError, match=r"store keeps images as bytes\. Add as_bytes: true"):
        define(**{**values, "as_bytes": False}, store="decoded")
    with pytest.raises(InputError, match="store is for photographs, the layouts waterbirds, "):
        define(layout="cifar10", as_bytes=True, store="decoded")


@pytest.mark.parametrize("store", [None, "decoded"])
def test_broken_photographs_are_left_out_as_far_as_allowed(
    tmp_path: Path, store: str | None
) -> None:
    write_imagenet(tmp_path)
    (tmp_path / "imagenet/train/a/1.png").write_bytes(b"no image")
    values: dict[str, Any] = {
        "path": "imagenet",
        "layout": "imagenet_lt",
        "options": {"lists": "lists"},
    }
    values |= {"as_bytes": True, "store": store}
    with pytest.raises(InputError, match=r"small: .*1.png cannot be read"):
        load_problem(define(**values), 0, tmp_path)
    with pytest.warns(UserWarning, match="1 of 3 images are left out"):
        problem = load_problem(define(**values, allowed_broken=1), 0, tmp_path)
    assert problem.train.inputs[slice(0, 2)][:, 0, 4, 4].tolist() == [10, 30]
    assert problem.train.target.tolist() == [0, 1]
    assert problem.test.target.tolist() == [1, 0]


def test_inaturalists_validation_part_is_the_test_set(tmp_path: Path) -> None:
    """Two of its species are called alike."""
    species = [{"id": i, "name": name} for i, name in ((3, "Corvus"), (4, "Pica"), (9, "Corvus"))]
    for name, content in (("train2018", {1: 9, 2: 4, 3: 3}), ("val2018", {5: 9})):
        images = [{"id": i, "file_name": f"train_val2018/{i}.png"} for i in content]
        labels = [{"image_id": i, "category_id": c} for i, c in content.items()]
        record = {"images": images, "annotations": labels, "categories": species}
        (tmp_path / f"{name}.json").write_text(json.dumps(record))
        for i in content:
            picture(tmp_path / f"train_val2018/{i}.png", 10 * i)
    problem = load_problem(define(layout="inaturalist_2018"), 0, tmp_path)
    assert problem.class_names == ("Corvus (0)", "Corvus (2)", "Pica")
    assert reds(problem) == ([10, 20, 30], [50])
    assert problem.train.target.tolist() == [1, 2, 0]
    assert problem.test.target.tolist() == [1]


# One's own ----------------------------------------------------------------------------------


def test_folders_of_classes_are_split_or_come_with_a_test_folder(tmp_path: Path) -> None:
    for part, start in (("train", 0), ("test", 100)):
        for k, name in enumerate(("cat", "lynx")):
            for i in range(6):
                picture(tmp_path / part / name / f"{i}.png", start + 10 * k + i)
    alone = load_problem(define(path="train", layout="class_folders"), 0, tmp_path)
    assert alone.class_names == ("cat", "lynx")
    assert sorted(red for side in reds(alone) for red in side) == [*range(6), *range(10, 16)]
    assert len(alone.test) == 6
    given = define(path="train", test_path="test", layout="class_folders")
    assert reds(load_problem(given, 0, tmp_path)) == (
        [*range(6), *range(10, 16)],
        [*range(100, 106), *range(110, 116)],
    )


def image_table(folder: Path, name: str = "images.csv") -> pd.DataFrame:
    rows = pd.DataFrame({"file": [f"{i}.png" for i in range(24)]})
    rows = rows.assign(kind=rows.index % 2, site=np.where(rows.index % 4 < 2, "north", "south"))
    for i, file in enumerate(rows["file"]):
        picture(folder / "pictures" / file, 8 * i)
    rows.to_csv(folder / name, index=False)
    return rows


def test_a_table_of_images_with_groups(tmp_path: Path) -> None:
    rows = image_table(tmp_path)
    values: dict[str, Any] = {
        "path": "images.csv",
        "layout": "image_table",
        "options": {"path": "file", "folder": "pictures"},
        "target": "kind",
        "groups": ["site"],
    }
    problem = load_problem(define(**values), 0, tmp_path)
    assert problem.group_names == ("north", "south")
    assert problem.train.counts().tolist() == [[3, 3], [3, 3]]
    for part, red in zip((problem.train, problem.test), reds(problem), strict=True):
        index = [round(r / 8) for r in red]
        assert part.target.tolist() == rows["kind"].iloc[index].tolist()
    with pytest.raises(InputError, match="small: This layout reads one column of groups; got a, b"):
        load_problem(define(**{**values, "groups": ["a", "b"]}), 0, tmp_path)
    with pytest.raises(InputError, match=r"small: .*pictures is a folder, but a CSV or Parquet"):
        load_problem(define(**{**values, "path": "pictures"}), 0, tmp_path)


def test_a_dataset_of_hugging_face(tmp_path: Path) -> None:
    """Of images, decoded when they are asked for, or of numbers."""
    columns = {
        "image": [str(tmp_path / picture(tmp_path / f"{i}.png", 10 * i)) for i in range(16)],
        "kind": [f"k{i % 2}" for i in range(16)],
        "site": ["north" if i % 4 < 2 else "south" for i in range(16)],
        "x": [[float(i), 1.0] for i in range(16)],
    }
    rows = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())
    datasets.DatasetDict({"all": rows}).save_to_disk(str(tmp_path / "saved"))
    values: dict[str, Any] = {
        "path": "saved",
        "layout": "hugging_face",
        "target": "kind",
        "groups": ["site"],
    }
    options = {"split": "all"}
    stored = define(**values, options=options, as_bytes=True, store="decoded")
    problem = load_problem(stored, 0, tmp_path)
    assert problem.group_names == ("north", "south")
    assert problem.train.counts().tolist() == [[2, 2], [2, 2]]
    for part in (problem.train, problem.test):
        red = part.inputs[slice(0, len(part))][:, 0, 4, 4]
        assert (red // 10 % 2).tolist() == part.target.tolist()
    numbers = define(**values, options={**options, "inputs": "x"}, network="linear")
    assert load_problem(numbers, 0, tmp_path).train.inputs.shape == (8, 2)


def test_embeddings(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    features = generator.normal(size=(40, 5)).astype(np.float32)
    table = pd.DataFrame({"embedding": list(features), "kind": np.arange(40) % 2 + 3})
    table.assign(site=["n", "n", "s", "s"] * 10).to_parquet(tmp_path / "e.parquet")
    values: dict[str, Any] = {"path": "e.parquet", "layout": "embeddings", "target": "kind"}
    problem = load_problem(define(**values, groups=["site"], network="linear"), 0, tmp_path)
    assert problem.class_names == ("3", "4")
    assert problem.train.counts().tolist() == [[5, 5], [5, 5]]
    assert problem.train.inputs.shape == (20, 5)
    with pytest.raises(InputError, match=r"the network cnn takes images, but .* 5 numbers"):
        load_problem(define(**values, network="cnn"), 0, tmp_path)
    with pytest.raises(InputError, match="embeddings are features already"):
        load_problem(define(**values, network="linear", backbone={"path": "a.b"}), 0, tmp_path)
    named = define(**values, network="linear", options={"inputs": "vector"})
    with pytest.raises(InputError, match=r"small: .*e.parquet has no 'vector'; it has: embedding"):
        load_problem(named, 0, tmp_path)


# What is not there --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"path": "gone", "layout": "cifar10"},
            r"needs .*/gone, which is not there. It comes from: ",
        ),
        ({"layout": "cifar10_lt"}, r"must hold cifar-10-batches-py as published; it has: other"),
        ({"layout": "imagenet_lt"}, r"lacks ImageNet_LT_train.txt, .*it has: other"),
        ({"layout": "inaturalist_2018"}, "lacks train2018.json"),
        ({"layout": "class_folders"}, "hold no image: other"),
        ({"layout": "waterbirds"}, "metadata.csv is not there"),
        ({"layout": "celeba"}, "must be the folder celeba of torchvision's layout, or hold it"),
        ({"layout": "embeddings"}, "is a folder, but a Parquet or .npz file"),
    ],
)
def test_a_folder_of_another_layout_is_refused_by_name(
    tmp_path: Path, values: dict[str, Any], message: str
) -> None:
    (tmp_path / "other").mkdir()
    with pytest.raises(InputError, match=message) as raised:
        load_problem(define(**values, source="a shelf"), 0, tmp_path)
    assert str(raised.value).startswith("small")
    assert "\n" not in str(raised.value)


# Networks and backbones ---------------------------------------------------------------------


class Pretrained(nn.Module):
    """As torchvision's: five classes with its weights, and keywords that are handed on."""

    def __init__(self, *, weights: str | None = None, **settings: Any) -> None:
        super().__init__()
        num_classes = settings.pop("num_classes", 5)
        assert not settings, settings
        if weights is not None and num_classes != 5:
            raise ValueError("the number of classes is that of the weights")
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.body = nn.Linear(3, 4)
        self.fc = nn.Linear(4, num_classes)
        if weights is not None:
            nn.init.constant_(self.body.weight, 0.5)
            nn.init.constant_(self.body.bias, 1.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.body(self.pool(x).flatten(1)))


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> None:
    package, models = ModuleType("fake_vision"), ModuleType("fake_vision.models")
    models.__dict__["small"] = Pretrained
    models.__dict__["create_model"] = lambda model_name, **settings: Pretrained(**settings)
    monkeypatch.setitem(sys.modules, "fake_vision", package)
    monkeypatch.setitem(sys.modules, "fake_vision.models", models)


def network_of(tmp_path: Path, network: Any, **values: Any) -> nn.Module:
    if not (tmp_path / "images.npz").exists():
        images = np.random.default_rng(0).random((80, 3, 32, 32), dtype=np.float32)
        np.savez(tmp_path / "images.npz", X=images, y=np.arange(80) % 10)
    definition = define(path="images.npz", target="y", network=network, **values)
    problem = load_problem(definition, 0, tmp_path)
    model = pickle.loads(pickle.dumps(problem.network))().eval()
    assert model(problem.test.inputs).shape == (40, 10)
    return model


@pytest.mark.usefixtures("library")
def test_networks_by_name_and_by_path(tmp_path: Path) -> None:
    path = "fake_vision.models.small"
    assert isinstance(network_of(tmp_path, "resnet32"), ResNet32)
    assert isinstance(network_of(tmp_path, path), Pretrained)
    assert isinstance(network_of(tmp_path, {"path": path, "weights": None}), Pretrained)
    made = network_of(tmp_path, {"path": "fake_vision.models.create_model", "model_name": "any"})
    assert isinstance(made, Pretrained)
    mean = {"mean": [0.5] * 3, "std": [0.25] * 3}
    for normalize, expected in ((True, Normalize()), (mean, Normalize(**mean))):
        model = network_of(tmp_path, {"path": path, "normalize": normalize})
        x = torch.rand(2, 3, 4, 4)
        assert torch.equal(model[0](x), expected(x))  # pyright: ignore[reportIndexIssue]


@pytest.mark.usefixtures("library")
def test_images_are_cut_to_what_the_network_is_trained_on(tmp_path: Path) -> None:
    spec = {"path": "fake_vision.models.small", "crop": 4, "normalize": True}
    model = network_of(tmp_path, spec)
    x = torch.rand(2, 3, 7, 4)
    assert torch.equal(model[0](x), x[:, :, 1:5])  # pyright: ignore[reportIndexIssue]
    assert isinstance(model[1], Normalize)  # pyright: ignore[reportIndexIssue]
    with pytest.raises(InputError, match="network: crop must be"):
        define(layout="cifar10", network={**spec, "crop": 0})


@pytest.mark.usefixtures("library")
def test_a_pretrained_network_gets_a_new_head(tmp_path: Path) -> None:
    spec = {"path": "fake_vision.models.small", "weights": "V1", "new_head": True}
    model = network_of(tmp_path, spec)
    assert isinstance(model, Pretrained)
    assert model.fc.out_features == 10
    assert bool((model.body.weight == 0.5).all())
    with pytest.raises(ValueError, match="the number of classes is that of the weights"):
        network_of(tmp_path, {**spec, "new_head": False})


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize(
    ("network", "message"),
    [
        ("no_such_module.net", "small: no_such_module.net cannot be imported"),
        ({"path": "fake_vision.models.large"}, "small: .* nothing to call by the name 'large'"),
        (
            {"path": "fake_vision.models.create_model"},
            "small: The network fake_vision.models.create_model needs model_name, but only num_feat",
        ),
    ],
)
def test_a_network_that_is_not_there(tmp_path: Path, network: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        network_of(tmp_path, network)


@pytest.mark.usefixtures("library")
def test_features_of_a_frozen_backbone_are_computed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_imagenet(tmp_path)
    backbone = {"path": "fake_vision.models.small", "weights": "V1", "normalize": True}
    values: dict[str, Any] = {"path": "imagenet", "layout": "imagenet_lt", "network": "linear"}
    definition = define(**values, options={"lists": "lists"}, backbone=backbone)
    passes: list[int] = []
    forward = Pretrained.forward

    def counted(self: Pretrained, x: Tensor) -> Tensor:
        passes.append(len(x))
        return forward(self, x)

    monkeypatch.setattr(Pretrained, "forward", counted)
    problems = [load_problem(definition, seed, tmp_path) for seed in (0, 1)]
    assert passes == [3, 2]  # training and test images, each once for both seeds
    images = load_problem(
        define(**{**values, "network": "cnn"}, options={"lists": "lists"}), 0, tmp_path
    )
    raw = [
        Normalize()(part.inputs).mean(dim=(2, 3)).sum(1) / 2 + 1
        for part in (images.train, images.test)
    ]
    scale, mean = raw[0].std(correction=0), raw[0].mean()
    for problem in problems:
        assert problem.train.inputs.shape == (3, 4)
        for part, expected in zip((problem.train, problem.test), raw, strict=True):
            torch.testing.assert_close(part.inputs[:, 0], (expected - mean) / scale)
        assert isinstance(problem.network(), nn.Linear)


@pytest.mark.usefixtures("library")
def test_a_backbone_takes_arrays_of_images_and_no_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_cifar(tmp_path, monkeypatch)
    backbone = {"path": "fake_vision.models.small"}
    cifar = define(layout="cifar10", backbone=backbone, network="linear")
    assert load_problem(cifar, 0, tmp_path).test.inputs.shape == (40, 4)
    pd.DataFrame({"x": [1.0, 2.0], "class": ["a", "b"]}).to_csv(tmp_path / "t.csv")
    table = define(path="t.csv", backbone=backbone, network="linear")
    with pytest.raises(InputError, match="small: A backbone is for images in one of the layouts"):
        load_problem(table, 0, tmp_path)


def test_images_kept_as_bytes(tmp_path: Path) -> None:
    write_imagenet(tmp_path)
    values: dict[str, Any] = {"path": "imagenet", "layout": "imagenet_lt"}
    floats, kept = (
        load_problem(define(**values, options={"lists": "lists"}, as_bytes=b), 0, tmp_path)
        for b in (False, True)
    )
    assert kept.train.inputs.dtype == torch.uint8
    assert torch.equal(FromBytes()(kept.train.inputs), floats.train.inputs)
    model = kept.network().eval()
    assert torch.equal(model(kept.test.inputs), model(floats.test.inputs))
