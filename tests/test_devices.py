"""What must hold on every device: here on the CPU, and with `-m gpu` on a GPU of this machine."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from autobalance.bilevel import checkpoints, execution
from autobalance.bilevel.driver import search
from autobalance.bilevel.execution import make_fabric, seeded
from autobalance.bilevel.lower_level import LowerLevel
from autobalance.bilevel.prediction import predict_logits
from autobalance.bilevel.retraining import retrain
from autobalance.data.array_data import ArrayData
from autobalance.data.stored import StoredRows
from autobalance.heads.features import extract_features
from autobalance.heads.search import search_head
from autobalance.losses.modules import ParametricCrossEntropy
from autobalance.networks import FromBytes, SmallCNN
from autobalance.records.settings import Recipe, SearchSettings
from autobalance_bench.augmentations import ResizedCrop, StandardAugmentation
from autobalance_bench.comparison.methods import Computing

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
RECIPE = Recipe(epochs=1, min_steps=60, batch_size=32, lr=0.02)
SETTINGS = SearchSettings(every=4, validation_batch_size=64)

on_devices = pytest.mark.parametrize("device", DEVICES)


def images(n: int = 160, side: int = 8) -> ArrayData:
    """Of four classes, 8:4:2:1, as bytes; brighter from class to class."""
    generator = np.random.default_rng(0)
    target = np.repeat(np.arange(4), np.array([8, 4, 2, 1]) * n // 15 + 1)
    noise = generator.integers(0, 150, (len(target), 3, side, side))
    return ArrayData.of((noise + 25 * target[:, None, None, None]).astype(np.uint8), target)


def network() -> nn.Module:
    return nn.Sequential(FromBytes(), SmallCNN(4, channels=3, size=(8, 8)))


def smooth() -> nn.Module:
    """Draws nothing and has no kinks, so that rounding, which differs between devices, does not grow."""
    return nn.Sequential(
        FromBytes(), nn.Conv2d(3, 8, 3), nn.Tanh(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(72, 4)
    )


@contextmanager
def waits_refused(device: str) -> Iterator[None]:
    """On a GPU whatever waits for it is an error."""
    if device == "cpu":
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@on_devices
def test_a_device_finds_what_the_cpu_finds(device: str) -> None:
    """But for rounding, which a short training does not let grow far."""
    found = {}
    for name in ("cpu", device):
        common: dict[str, Any] = {"recipe": RECIPE, "device": name}
        result = search(smooth, images(), settings=SETTINGS, **common)
        model = retrain(smooth, images(), result.loss, **common)
        assert next(model.parameters()).device.type == "cpu"
        assert all(value.device.type == "cpu" for value in result.loss.state_dict().values())
        found[name] = result.loss.state_dict(), predict_logits(model, images().inputs)
    for name, value in found["cpu"][0].items():
        torch.testing.assert_close(found[device][0][name], value, rtol=0.05, atol=0.05)
    agree = (found["cpu"][1].argmax(1) == found[device][1].argmax(1)).double().mean()
    assert float(agree) > 0.9


@on_devices
def test_one_seed_repeats(device: str) -> None:
    """On a GPU to rounding: some of its sums have no fixed order."""
    runs = [
        search(network, images(), recipe=RECIPE, settings=SETTINGS, device=device) for _ in range(2)
    ]
    for name, value in runs[0].loss.state_dict().items():
        tolerance = 0.0 if device == "cpu" else 0.1
        torch.testing.assert_close(
            runs[1].loss.state_dict()[name], value, rtol=tolerance, atol=tolerance
        )


@on_devices
@pytest.mark.parametrize("augment", [None, StandardAugmentation(1)])
def test_training_steps_wait_for_nothing(device: str, augment: nn.Module | None) -> None:
    data = images()
    if augment is not None:
        data = ArrayData.of(data.in_memory().float() / 255.0, data.target)
    fabric = make_fabric(device)
    with seeded(0):
        lower = LowerLevel(
            network, data.to(fabric.device), RECIPE, fabric, 0,
            augment=None if augment is None else copy.deepcopy(augment).to(fabric.device),
        )  # fmt: skip
    loss = ParametricCrossEntropy.logit_adjusted(data.counts()).to(fabric.device)
    for _ in range(
        execution.CHECK_EVERY
    ):  # what is allocated and tuned once, and the look at the end
        lower.step(loss)
    with waits_refused(device):
        for _ in range(execution.CHECK_EVERY - 1):
            lower.step(loss)
    assert lower.done == 2 * execution.CHECK_EVERY - 1


@on_devices
def test_images_in_files_train_as_those_in_memory(device: str, tmp_path: Path) -> None:
    inside = images()
    np.save(tmp_path / "images.npy", inside.in_memory().numpy())
    outside = ArrayData.of(StoredRows([tmp_path / "images.npy"]), inside.target)
    for data in (inside, outside):
        batch = data.to(make_fabric(device).device).batch(torch.tensor([3, 1]))
        assert {batch.inputs.device.type, batch.target.device.type} == {device}
        assert torch.equal(batch.inputs.cpu(), inside.in_memory()[[3, 1]])
    loss = ParametricCrossEntropy.cross_entropy()
    models = [retrain(smooth, d, loss, recipe=RECIPE, device=device) for d in (inside, outside)]
    logits = [predict_logits(model, inside.inputs) for model in models]
    torch.testing.assert_close(*logits, rtol=1e-2, atol=1e-2)


@on_devices
def test_bfloat16_channels_last_and_crops(device: str) -> None:
    """All that a configuration may ask for at once, but the compiler; the loss found stays float32."""
    data = images(side=12)
    scaled = ArrayData.of(data.in_memory().float() / 255.0, data.target)
    how = Computing(precision="bf16-mixed", channels_last=True)
    common: dict[str, Any] = {"recipe": RECIPE, "device": device, "precision": how.precision}
    factory = how.prepared(partial(SmallCNN, 4, channels=3, size=(8, 8)))
    crops = ResizedCrop(8, colour=0.2)

    def either_size() -> nn.Module:
        return nn.Sequential(nn.AdaptiveAvgPool2d(8), factory())

    result = search(either_size, scaled, settings=SETTINGS, augment=crops, **common)
    assert not result.collapsed
    assert all(
        v.dtype == torch.float32 for v in result.loss.state_dict().values() if v.is_floating_point()
    )
    model = retrain(either_size, scaled, result.loss, augment=crops, **common)
    logits = predict_logits(model, scaled.inputs)
    assert logits.dtype == torch.float32
    error = (logits.argmax(1) != scaled.target).double().mean()
    assert float(error) < 0.5


@pytest.mark.slow
@on_devices
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled_networks_find_what_others_find(device: str) -> None:
    found = []
    for compiled in (False, True):
        factory = Computing(compiled=compiled, channels_last=compiled).prepared(smooth)
        found.append(
            search(factory, images(), recipe=RECIPE, settings=SETTINGS, device=device).loss
        )
    for name, value in found[0].state_dict().items():
        torch.testing.assert_close(found[1].state_dict()[name], value, rtol=0.05, atol=0.05)


@on_devices
def test_a_learned_augmentation_works(device: str) -> None:
    data = images()
    scaled = ArrayData.of(data.in_memory().float() / 255.0, data.target)
    factory = partial(SmallCNN, 4, channels=3, size=(8, 8))
    result = search(
        factory, scaled, augment="personalised", recipe=RECIPE, settings=SETTINGS, device=device
    )
    model = retrain(
        factory, scaled, result.loss, augment=result.augment, recipe=RECIPE, device=device
    )
    assert torch.isfinite(predict_logits(model, scaled.inputs)).all()


@on_devices
def test_a_stopped_run_goes_on(
    device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "CHECKPOINT_SECONDS", 0.0)
    run = partial(
        search, smooth, images(), recipe=RECIPE, settings=SETTINGS, device=device,
        checkpoint=tmp_path / "state",
    )  # fmt: skip
    step = LowerLevel.step

    def interrupted(self: LowerLevel, loss: Any) -> Any:
        if self.done == 37:
            raise KeyboardInterrupt
        return step(self, loss)

    monkeypatch.setattr(LowerLevel, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run()
    monkeypatch.setattr(LowerLevel, "step", step)
    resumed = run()
    (tmp_path / "state").unlink()
    whole = run()
    for name, value in whole.loss.state_dict().items():
        tolerance = 0.0 if device == "cpu" else 0.05
        torch.testing.assert_close(
            resumed.loss.state_dict()[name], value, rtol=tolerance, atol=tolerance
        )


@on_devices
def test_exact_heads_on_features(device: str) -> None:
    features = extract_features(nn.Flatten(), images().inputs, device=device)
    assert features.device.type == "cpu"
    data = ArrayData.of(features, images().target)
    found = [search_head(data, device=name).loss.state_dict() for name in ("cpu", device)]
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=1e-2, atol=1e-2)
