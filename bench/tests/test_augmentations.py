"""Augmentation without a search: what it does, and that it is called as a learned one."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from math import isfinite
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils import backend_registration

from autobalance import ArrayData, InputError, Recipe, SearchSettings, search
from autobalance.augment.images import Rotation, image_operations
from autobalance.augment.policy import AugmentationPolicy
from autobalance.networks import SmallCNN
from autobalance_bench.augmentations import (
    KorniaAugmentation,
    ResizedCrop,
    StandardAugmentation,
    build_augmentation,
)

EACH: dict[str, Callable[..., nn.Module]] = {
    "standard": StandardAugmentation,
    "resized crop": lambda **options: ResizedCrop(8, colour=0.4, **options),
    "trivial": lambda **options: KorniaAugmentation("trivial", **options),
    "random": lambda **options: KorniaAugmentation("random", share=3, **options),
    "by hand": lambda **options: build_augmentation(
        {0: {"rotation": {}}, 1: {"blur": {}}}, **options
    ),
    "shared": lambda **options: AugmentationPolicy(
        [4, 2], image_operations(1), personalised=False, **options
    ),
}


def pictures(channels: int = 3, n: int = 9) -> Tensor:
    return torch.rand(n, channels, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", EACH)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("value_range", [(0.0, 1.0), (-2.0, 3.0)])
def test_all_are_called_alike(name: str, channels: int, value_range: tuple[float, float]) -> None:
    low, high = value_range
    inputs = low + (high - low) * pictures(channels)
    target = torch.arange(9) % 2
    for build in (EACH[name](value_range=value_range),):
        for module in (build, pickle.loads(pickle.dumps(build))):
            found = []
            for _ in range(2):
                torch.manual_seed(5)
                found.append(module(inputs, target, None).detach())
            assert torch.equal(*found)
            assert (found[0].shape, found[0].dtype) == (inputs.shape, inputs.dtype)
            assert low - 1e-5 <= float(found[0].min())
            assert float(found[0].max()) <= high + 1e-5
            assert torch.equal(found[0], inputs) == (name == "none")


def test_standard_crops_are_those_of_padded_images() -> None:
    x = pictures(n=60)
    found = StandardAugmentation(2, flip=True)(x, torch.zeros(60, dtype=torch.int64))
    padded = nn.functional.pad(x, [2] * 4)
    seen = set()
    for image, crop in zip(padded, found, strict=True):
        matches = [
            (top, left, turned)
            for top in range(5)
            for left in range(5)
            for turned in (False, True)
            if torch.equal(
                image[:, top : top + 8, left : left + 8].flip(-1)
                if turned
                else image[:, top : top + 8, left : left + 8],
                crop,
            )
        ]
        assert len(matches) == 1
        seen.add(matches[0])
    assert len(seen) > 25
    assert {turned for *_, turned in seen} == {False, True}


def test_standard_pads_with_black_and_can_leave_sides_alone() -> None:
    x = torch.full((50, 1, 4, 4), 2.0)
    found = StandardAugmentation(1, flip=False, value_range=(-1.0, 2.0))(x, torch.zeros(50).long())
    assert set(found.unique().tolist()) == {-1.0, 2.0}
    sides = StandardAugmentation(0, flip=False)
    assert torch.equal(sides(pictures(), torch.zeros(9).long()), pictures())


def test_resized_crops_are_parts_of_the_sizes_and_shapes_asked_for() -> None:
    """Of images whose first channel tells the column and whose second the row, 0 to 1."""
    torch.manual_seed(0)
    n, side = 200, 64
    line = torch.linspace(0.0, 1.0, side)
    column, row = line.expand(side, side), line[:, None].expand(side, side)
    x = torch.stack([column, row, torch.full((side, side), 0.5)]).expand(n, -1, -1, -1)
    found = ResizedCrop(24, scale=(0.2, 0.5), ratio=(0.5, 2.0))(x, torch.zeros(n).long())
    assert found.shape == (n, 3, 24, 24)
    assert torch.allclose(found[:, 2], torch.tensor(0.5), atol=1e-5)
    across = found[:, 0, 12, -1] - found[:, 0, 12, 0]
    down = found[:, 1, -1, 12] - found[:, 1, 0, 12]
    turned = across < 0
    assert 0.3 < float(turned.float().mean()) < 0.7
    share, shape = across.abs() * down, across.abs() / down
    assert 0.17 < float(share.min()) < 0.25
    assert 0.45 < float(share.max()) < 0.53
    assert 0.45 < float(shape.min()) < 0.6
    assert 1.7 < float(shape.max()) < 2.15
    assert float(found[:, 0, 12, 12].std()) > 0.05  # they lie anywhere
    whole = ResizedCrop(side, scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=False)
    assert torch.allclose(whole(x, torch.zeros(n).long()), x, atol=1e-4)


def test_colours_change_by_example_as_far_as_asked_for() -> None:
    torch.manual_seed(0)
    grey = torch.full((300, 3, 4, 4), 0.5)
    module = ResizedCrop(4, scale=(1.0, 1.0), ratio=(1.0, 1.0), colour=0.4)
    brightness = module(grey, torch.zeros(300).long()).mean(dim=(1, 2, 3))
    assert 0.28 < float(brightness.min()) < 0.34
    assert 0.66 < float(brightness.max()) < 0.72
    red = grey * torch.tensor([2.0, 0.0, 0.0])[:, None, None]
    hues = ResizedCrop(4, scale=(1.0, 1.0), ratio=(1.0, 1.0), hue=0.25)
    turned = hues(red, torch.zeros(300).long())[:, :, 0, 0]
    assert torch.allclose(turned.max(dim=1).values, torch.tensor(1.0), atol=1e-5)
    assert torch.allclose(turned.min(dim=1).values, torch.tensor(0.0), atol=1e-5)
    assert float(turned[:, 1].max()) > 0.9  # to yellow on the one side
    assert float(turned[:, 2].max()) > 0.9  # and to magenta on the other


def test_kornia_draws_for_each_example_unless_told_otherwise() -> None:
    """One image nine times: nine draws of one operation each are not all alike."""
    x = pictures(n=1).expand(9, -1, -1, -1)
    calls = []
    module = KorniaAugmentation("random", n=1, m=10)
    module.kornia.register_forward_pre_hook(lambda _, given: calls.append(len(given[0])))
    found = module(x, torch.zeros(9).long())
    assert calls == [1] * 9
    assert len({tuple(image.flatten().tolist()) for image in found}) > 2
    module.share = 4
    module(x, torch.zeros(9).long())
    assert calls[9:] == [4, 4, 1]


def test_build_augmentation_is_the_inverse_of_per_class() -> None:
    table = {
        "cat": {"flip": {"probability": 0.5}},
        "lynx": {
            "rotation": {"probability": 1.0, "magnitude": 0.5},
            "flip": {"probability": 0.25},
        },
    }
    found = build_augmentation(table)
    assert [o.name for o in found.operations] == ["rotation", "flip"]
    assert found.per_class(["cat", "lynx"])["lynx"] == table["lynx"]
    assert found.per_class(["cat", "lynx"])["cat"] == {
        "rotation": {"probability": 0.0, "magnitude": 0.0},
        "flip": {"probability": 0.5},
    }
    assert build_augmentation(found.per_class()).to_dict() == found.to_dict()
    part = build_augmentation({"b": {"rotation": {}}}, "abc", operations=[Rotation(10.0)])
    assert part.probability.tolist() == [[0.0], [1.0], [0.0]]
    assert part.operations == (Rotation(10.0),)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: build_augmentation({"a": {"turn": {}}, "b": {}}), "operation must be one of .* got 'turn'"),
        (lambda: build_augmentation({"a": {"flip": {}}}, ["b", "c"]), "names class 'a', which is none of"),
        (lambda: build_augmentation({"a": {"flip": {"probability": 2}}, "b": {}}), "probability must lie in"),
        (lambda: StandardAugmentation(-1), "padding must be at least 0"),
        (lambda: StandardAugmentation()(torch.rand(3, 5), torch.zeros(3)), "are for images"),
        (lambda: ResizedCrop(0), "size must be at least 1"),
        (lambda: ResizedCrop(8, scale=(0.5, 1.5)), r"scale must lie in \(0, 1\]; got \(0.5, 1.5\)"),
        (lambda: ResizedCrop(8, scale=0.5), "scale must be two numbers, the least and the largest"),
        (lambda: ResizedCrop(8, ratio=(2.0, 0.5)), "ratio must be two numbers above 0, the least"),
        (lambda: ResizedCrop(8, colour=1.5), "colour must"),
        (lambda: ResizedCrop(8, hue=0.6), r"hue must lie in \[0, 0.5\]; got 0.6"),
        (lambda: ResizedCrop(8)(torch.rand(3, 5), torch.zeros(3)), "are for images"),
        (lambda: KorniaAugmentation("best"), "name must be one of random, trivial"),
        (lambda: KorniaAugmentation("random", m=30), r"m must lie in 1\.\.29"),
        (lambda: KorniaAugmentation(share=0), "share must be at least 1"),
    ],
)  # fmt: skip
def test_refused(build: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build()


def test_without_kornia_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kornia.augmentation.auto", None)
    with pytest.raises(InputError, match=r"pip install kornia"):
        KorniaAugmentation()
    with pytest.raises(InputError, match=r"Crops of any size need Kornia. Install it"):
        ResizedCrop(8)


@pytest.mark.filterwarnings("ignore:At the end of the search")  # so short a training
def test_kornias_augmentation_serves_a_search() -> None:
    data = ArrayData.of(pictures(1, 60), torch.arange(60) % 7 // 4)
    result = search(
        lambda: SmallCNN(2, size=(8, 8)),
        data,
        augment=KorniaAugmentation("trivial", share=16),
        recipe=Recipe(epochs=1, min_steps=40, batch_size=16),
        settings=SearchSettings(every=20),
        device="cpu",
    )
    assert isinstance(result.augment, KorniaAugmentation)
    assert all(isfinite(record.objective) for record in result.history)


@pytest.mark.processes
@pytest.mark.skipif(
    not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"),
    reason="this torch cannot be told of a device that is not there",
)
def test_crop_and_flip_mixes_no_devices() -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    script = Path(__file__).parent / "support/augmentation_placement.py"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(script)],
        env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    failed = json.loads(done.stdout)
    assert "two devices, cpu and pretend:0" in failed.pop("mixed")
    assert failed == {}
