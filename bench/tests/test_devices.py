"""What configurations may ask for, on every device: with `-m gpu` on a GPU of this machine."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from autobalance.bilevel.network_search import search
from autobalance.bilevel.prediction import predict_logits
from autobalance.bilevel.retraining import retrain
from autobalance.data.array_data import ArrayData
from autobalance.networks import SmallCNN
from autobalance_bench.augmentations import ResizedCrop, StandardAugmentation
from autobalance_bench.comparison.methods import ExecutionOptions
from device_toys import RECIPE, SETTINGS, images, on_devices, smooth, steps_wait_for_nothing


@on_devices
def test_crop_and_flip_waits_for_nothing(device: str) -> None:
    steps_wait_for_nothing(device, StandardAugmentation(1))


@on_devices
def test_bfloat16_channels_last_and_crops(device: str) -> None:
    """All that a configuration may ask for at once, but the compiler; the loss found stays float32."""
    data = images(side=12)
    scaled = ArrayData.of(data.in_memory().float() / 255.0, data.target)
    options = ExecutionOptions(precision="bf16-mixed", channels_last=True)
    common: dict[str, Any] = {"recipe": RECIPE, "device": device, "precision": options.precision}
    factory = options.apply(partial(SmallCNN, 4, channels=3, size=(8, 8)))
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
        factory = ExecutionOptions(compiled=compiled, channels_last=compiled).apply(smooth)
        found.append(
            search(factory, images(), recipe=RECIPE, settings=SETTINGS, device=device).loss
        )
    for name, value in found[0].state_dict().items():
        torch.testing.assert_close(found[1].state_dict()[name], value, rtol=0.05, atol=0.05)
