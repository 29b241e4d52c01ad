"""The library's own networks: sizes and shapes as published, gradients everywhere."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from autobalance.checks import InputError
from autobalance.demo import network
from autobalance.networks import ResNet32, SmallCNN, TableNetwork


def test_resnet32_has_the_published_number_of_weights() -> None:
    assert sum(p.numel() for p in ResNet32(10).parameters()) == 464_154
    convolutions = [m for m in ResNet32(10).modules() if isinstance(m, nn.Conv2d)]
    assert len(convolutions) + 1 == 32  # and the linear head


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize(
    ("size", "channels", "classes"), [(32, 3, 10), (28, 1, 7), (4, 3, 2)], ids=str
)
def test_resnet32_takes_small_images(
    size: int, channels: int, classes: int, training: bool
) -> None:
    model = ResNet32(classes, channels).train(training)
    logits = model(torch.randn(3, channels, size, size))
    assert logits.shape == (3, classes)
    assert torch.isfinite(logits).all()


def test_resnet32s_stages_halve_the_image_and_double_the_width() -> None:
    x, shapes = torch.randn(2, 3, 32, 32), []
    for layer in ResNet32(10).eval():
        x = layer(x)
        shapes.append(tuple(x.shape[1:]))
    assert shapes[:3] == [(16, 32, 32)] * 3
    assert shapes[3:8] == [(16, 32, 32)] * 5
    assert shapes[8:13] == [(32, 16, 16)] * 5
    assert shapes[13:18] == [(64, 8, 8)] * 5
    assert shapes[18:] == [(64, 1, 1), (64,), (10,)]


def test_resnet32s_gradient_reaches_every_parameter() -> None:
    model = ResNet32(10)
    model(torch.randn(4, 3, 16, 16)).square().sum().backward()
    for name, p in model.named_parameters():
        assert p.grad is not None, name
        assert float(p.grad.abs().max()) > 0, name


def test_resnet32s_shortcut_passes_the_input_on() -> None:
    """Where the convolutions give 0: subsampled, between channels of zeros, as in option A."""
    block = ResNet32(10)[8].eval()
    with torch.no_grad():
        for name in ("bn1", "bn2"):
            block.get_submodule(name).weight.zero_()
    x: Tensor = torch.rand(2, 16, 8, 8)
    expected = torch.zeros(2, 32, 4, 4)
    expected[:, 8:24] = x[:, :, ::2, ::2]
    torch.testing.assert_close(block(x), expected, rtol=0, atol=0)


def test_table_network_is_built_again_from_its_settings() -> None:
    model = TableNetwork(5, 3, hidden=(7, 4), dropout=0.2)
    assert model.eval()(torch.randn(6, 5)).shape == (6, 3)
    again = TableNetwork(**model.settings)
    again.load_state_dict(model.state_dict())
    x = torch.randn(6, 5)
    assert torch.equal(again.eval()(x), model(x))
    assert sum(isinstance(m, nn.Dropout) and m.p == 0.2 for m in model) == 2


def test_small_cnn_is_the_demos_network() -> None:
    """Layer by layer, drawn in the same order."""
    torch.manual_seed(3)
    expected = nn.Sequential(
        nn.Conv2d(1, 16, 5, stride=2, padding=2, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64 * 9, 10),
    )
    torch.manual_seed(3)
    model = network()
    assert isinstance(model, SmallCNN)
    assert sum(p.numel() for p in model.parameters()) == 29_434
    state, wanted = model.state_dict(), expected.state_dict()
    assert list(state) == list(wanted)
    assert all(torch.equal(state[name], wanted[name]) for name in wanted)
    x = torch.randn(2, 1, 28, 28)
    assert torch.equal(model.eval()(x), expected.eval()(x))


@pytest.mark.parametrize("size", [(7, 7), (8, 31), (32, 32), (13, 9)], ids=str)
def test_small_cnn_takes_images_of_any_size(size: tuple[int, int]) -> None:
    model = SmallCNN(5, channels=3, size=size)
    assert model(torch.randn(4, 3, *size)).shape == (4, 5)
    assert model.eval()(torch.randn(1, 3, *size)).shape == (1, 5)


def test_small_cnn_refuses_images_that_it_would_use_up() -> None:
    with pytest.raises(InputError, match="images of 7 x 7 or more; got 6 x 28"):
        SmallCNN(5, size=(6, 28))
