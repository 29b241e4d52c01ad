"""Images, networks and checks for tests that run on the CPU and, with `-m gpu`, on a GPU."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch import nn

from autobalance.bilevel import execution
from autobalance.bilevel.execution import make_fabric, seed_random_state
from autobalance.bilevel.lower_level import LowerLevel, TrainingOptions
from autobalance.data.array_data import ArrayData
from autobalance.losses.modules import ParametricCrossEntropy
from autobalance.networks import FromBytes, SmallCNN
from autobalance.records.settings import Recipe, SearchSettings

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


def steps_wait_for_nothing(device: str, augment: nn.Module | None) -> None:
    """Check that no training step waits for the device, but when the losses are looked at."""
    data = images()
    if augment is not None:
        data = ArrayData.of(data.in_memory().float() / 255.0, data.target)
    fabric = make_fabric(device)
    with seed_random_state(0):
        lower = LowerLevel(
            network, data.to(fabric.device), TrainingOptions(RECIPE), fabric,
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
