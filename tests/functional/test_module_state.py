"""A preserve_module_state network comes back to the bit, and what it returns is looked at."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from autobalance._validation import InputError
from autobalance.bilevel.loss_tuner import LossTuner
from autobalance.functional import module_state
from autobalance.functional.model import FunctionalModel
from autobalance.functional.module_state import (
    TensorSnapshot,
    evaluation_mode,
    has_known_forward,
    preserve_module_state,
    traits_of,
)
from autobalance.functional.outputs import warn_if_probabilities
from autobalance.functional.processes import unwrap
from helpers import class_loss, images


class Watched(nn.Linear):
    """Not torch's own class, so that it may do anything."""


class WatchedSequential(nn.Sequential):
    """Likewise."""


def test_every_kind_of_write_is_undone() -> None:
    model = WatchedSequential(
        nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 2).requires_grad_(False)
    )
    before = [t.clone() for t in model.state_dict().values()]
    memory = [t.data_ptr() for t in model.state_dict().values()]
    gradient = model[0].weight.grad = torch.ones(3, 3)
    with preserve_module_state(model) as loan:
        model.eval()
        model[0].weight.data.mul_(2)
        with torch.no_grad():
            model[2].bias.add_(1)
        model[2].weight.data = torch.zeros(2, 3)
        model[1](torch.zeros(2, 3))
        model[1].train()(torch.ones(2, 3))
        model[0].weight.grad = None
        random.random()
    assert {"0.weight", "2.bias", "2.weight", "1.running_mean"} <= set(loan.written)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), before, strict=True))
    assert [t.data_ptr() for t in model.state_dict().values()] == memory
    assert model[0].weight.grad is gradient
    assert all(m.training for m in model.modules())


def test_writing_the_same_values_is_noticed() -> None:
    model = Watched(2, 2)
    with preserve_module_state(model) as loan, torch.no_grad():
        model.weight.mul_(1.0)
    assert loan.touched
    assert loan.written == []


def test_a_frozen_weight_too_large_to_copy_is_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module_state, "FROZEN_COPY_LIMIT", 3)
    model = Watched(2, 2).requires_grad_(False)
    with preserve_module_state(model):
        pass
    with pytest.raises(InputError, match="frozen weight 'weight'"), preserve_module_state(model):
        model.weight.data.add_(1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64, torch.complex64, torch.complex128])
def test_a_snapshot_compares_bits_of_any_dtype(dtype: torch.dtype) -> None:
    model = nn.Module()
    model.register_buffer("b", torch.arange(4).to(dtype).view(2, 2))
    model.register_buffer("n", torch.tensor([float("nan")]))
    snapshot = TensorSnapshot([], list(model.named_buffers()))
    assert snapshot.restore() == []
    model.b.mul_(3)
    assert snapshot.restore() == ["b"]
    assert torch.equal(model.b, torch.arange(4).to(dtype).view(2, 2))


def hooked() -> nn.Module:
    layer = nn.Linear(2, 2)
    layer.register_forward_hook(lambda *_: None)
    return layer


def patched() -> nn.Module:
    layer = nn.Linear(2, 2)
    layer.forward = lambda x: x  # pyright: ignore[reportAttributeAccessIssue]
    return layer


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (nn.BatchNorm2d(3), True),
        (nn.Embedding(3, 2), True),
        (nn.Embedding(3, 2, max_norm=1.0), False),
        (nn.EmbeddingBag(3, 2, max_norm=1.0), False),
        (nn.LSTM(2, 2), False),
        (Watched(2, 2), False),
        (hooked(), False),
        (patched(), False),
    ],
)
def test_only_layers_whose_forward_pass_is_known_go_unwatched(
    layer: nn.Module, expected: bool
) -> None:
    assert has_known_forward(layer) is expected


class Fading(nn.Module):
    """Its `eval` writes to the weight, and its `train` undoes it but for rounding."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(16, 4, dtype=torch.float64)
        self.calls: list[bool] = []

    def train(self, mode: bool = True) -> Fading:
        self.calls.append(mode)
        self.head.weight.data.mul_(3.0 if mode else 1 / 3.0)
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.flatten(1))


def test_eval_and_train_are_called_in_order_and_their_rounding_is_undone() -> None:
    model = Fading()
    before = model.head.weight.detach().clone()
    with evaluation_mode(model):
        assert not model.training
    assert model.calls == [False, True]
    assert torch.equal(model.head.weight, before)


class ClippedLater(nn.Module):
    """Writes to its weight only once that is large, so that the first look sees nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(16, 4, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            if self.head.weight.norm() > 2:
                self.head.weight.data.div_(self.head.weight.norm() / 2)
        return self.head(x.flatten(1))


def test_a_network_that_begins_to_write_later_gets_copies_and_the_same_result() -> None:
    model, twin = ClippedLater(), ClippedLater()
    tuner, other = LossTuner(class_loss()), LossTuner(class_loss())
    tuner.step(model, images(10), images(15))
    other.step(model, images(10), images(15))
    assert not traits_of(model).needs_copies
    with torch.no_grad():
        model.head.weight.mul_(100)
    twin.load_state_dict(model.state_dict())
    twin(images(10).inputs)  # clipped for good
    before = model.head.weight.detach().clone()
    found = tuner.step(model, images(10), images(15))
    assert torch.equal(model.head.weight, before)
    assert traits_of(model).needs_copies
    assert found.norm == pytest.approx(other.step(twin, images(10), images(15)).norm, rel=1e-9)


class Hidden(nn.Module):
    """Writes to its weight by a reference that no copy can stand in for."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(16, 4, dtype=torch.float64)
        weight = self.head.weight
        self.write: Any = lambda: weight.data.add_(0.1)

    def forward(self, x: Tensor) -> Tensor:
        self.write()
        return self.head(x.flatten(1))


def test_a_writer_that_cannot_be_turned_aside_is_an_error() -> None:
    model = Hidden()
    before = model.head.weight.detach().clone()
    with pytest.raises(InputError, match=r"wrote to head.weight"):
        LossTuner(class_loss()).step(model, images(10), images(15))
    assert torch.equal(model.head.weight, before)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_scripted_and_unbuilt_modules_are_refused() -> None:
    with pytest.raises(InputError, match="Pass one batch through it first"):
        FunctionalModel(nn.LazyLinear(3))
    scripted = torch.jit.script(nn.Linear(3, 2))
    with pytest.raises(InputError, match="Give the Python module"):
        FunctionalModel(nn.Sequential(scripted))


def test_data_parallel_is_unwrapped() -> None:
    inner = nn.Linear(3, 2)
    assert unwrap(nn.DataParallel(inner)) is inner


@pytest.mark.parametrize("layer", ["softmax", "sigmoid"])
def test_outputs_that_are_probabilities_are_told(layer: str) -> None:
    logits = torch.randn(32, 4, generator=torch.Generator().manual_seed(0))
    outputs = logits.softmax(1) if layer == "softmax" else logits.sigmoid()
    with pytest.warns(UserWarning, match=f"end in a {layer}"):
        warn_if_probabilities(outputs)
    for fine in (logits, logits.log_softmax(1), torch.zeros(32, 4), logits[:, :1].sigmoid()):
        warn_if_probabilities(fine)


def test_a_tuner_tells_of_a_softmax_once() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 4), nn.Softmax(1)).double()
    tuner = LossTuner(class_loss())
    with pytest.warns(UserWarning, match="end in a softmax"):
        tuner.step(model, images(10), images(15))
    tuner.step(model, images(10), images(15))
