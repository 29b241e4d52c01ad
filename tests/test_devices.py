"""What must hold on every device: here on the CPU, and with `-m gpu` on a GPU of this machine."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from autobalance.augment.choice import as_batch_transform
from autobalance.bilevel import checkpoints
from autobalance.bilevel.execution import make_fabric
from autobalance.bilevel.lower_level import LowerLevel
from autobalance.bilevel.network_search import search
from autobalance.bilevel.prediction import predict_logits
from autobalance.bilevel.retraining import retrain
from autobalance.data.array_data import ArrayData
from autobalance.data.stored import StoredRows
from autobalance.heads.features import extract_features
from autobalance.heads.search import search_head
from autobalance.losses.modules import ParametricCrossEntropy
from autobalance.networks import SmallCNN
from device_toys import (
    RECIPE,
    SETTINGS,
    images,
    network,
    on_devices,
    smooth,
    steps_wait_for_nothing,
)


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


class Flip(nn.Module):
    """Mirrors every other image, at random."""

    def forward(self, inputs: Tensor, target: Tensor, groups: Tensor | None) -> Tensor:
        mirrored = torch.rand(len(inputs), 1, 1, 1, device=inputs.device) < 0.5
        return torch.where(mirrored, inputs.flip(3), inputs)


@on_devices
@pytest.mark.parametrize("augment", [None, as_batch_transform(Flip())])
def test_training_steps_wait_for_nothing(device: str, augment: nn.Module | None) -> None:
    steps_wait_for_nothing(device, augment)


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
