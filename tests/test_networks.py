"""The library's own networks: sizes and shapes as published, gradients everywhere."""

from __future__ import annotations

import copy
import pickle
import sys
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call

from autobalance._validation import InputError
from autobalance.bilevel.loss_tuner import LossTuner
from autobalance.cli.demo import network
from autobalance.networks import (
    CategoryLinear,
    CentralCrop,
    FromBytes,
    Normalize,
    ResNet32,
    SmallCNN,
    TableNetwork,
    by_path,
    with_new_head,
    without_head,
)
from autobalance.spaces.hierarchical_space import HierarchicalSpace
from autobalance.spaces.tunable_loss import TunableCrossEntropy


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


CATEGORIES = (3, 5, 1)


def coded_and_one_hot(rows: int = 40) -> tuple[Tensor, Tensor]:
    """The same rows, two numbers and three categories (some unknown), as codes and as one-hot columns."""
    numbers = torch.randn(rows, 2)
    codes = torch.stack([torch.randint(-1, size, (rows,)) for size in CATEGORIES], dim=1)
    columns = [codes[:, i, None] == torch.arange(size) for i, size in enumerate(CATEGORIES)]
    one_hot = torch.cat([numbers, *(c.float() for c in columns)], dim=1)
    return torch.cat([numbers, codes.float()], dim=1), one_hot


def test_categories_given_as_codes_train_as_one_hot_columns_do() -> None:
    torch.manual_seed(0)
    codes, one_hot = coded_and_one_hot()
    target = torch.randint(0, 3, (len(codes),))
    trained = []
    for inputs, categories in ((codes, CATEGORIES), (one_hot, ())):
        torch.manual_seed(1)
        model = TableNetwork(inputs.shape[1], 3, hidden=(8, 6), categories=categories)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        for _ in range(20):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs), target).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
        trained.append(model.eval()(inputs))
    torch.testing.assert_close(trained[0], trained[1], rtol=1e-4, atol=1e-5)
    assert TableNetwork(5, 3, categories=CATEGORIES).settings["categories"] == [3, 5, 1]


def test_the_layer_of_categories_has_all_derivatives() -> None:
    torch.manual_seed(0)
    codes, _ = coded_and_one_hot(7)
    layer = CategoryLinear(2, CATEGORIES, 4).double()
    weights = tuple(p.detach().clone().requires_grad_() for p in layer.parameters())

    def call(*values: Tensor) -> Tensor:
        names = (name for name, _ in layer.named_parameters())
        return functional_call(layer, dict(zip(names, values, strict=True)), (codes.double(),))

    assert gradcheck(call, weights, check_forward_ad=True)
    assert gradgradcheck(call, weights, check_fwd_over_rev=True)


def test_hypergradients_of_a_network_with_categories_go_by_forward_mode() -> None:
    torch.manual_seed(0)
    codes, _ = coded_and_one_hot(64)
    batch = codes, torch.arange(64) % 3
    model = TableNetwork(5, 3, hidden=(8, 6), categories=CATEGORIES)
    loss = TunableCrossEntropy(HierarchicalSpace(np.array([30, 20, 10])))
    step = LossTuner(loss, "balanced_error").step(model, batch, batch)
    assert not step.skipped
    assert step.derivative == "forward"


def test_categories_without_a_hidden_layer_are_refused() -> None:
    with pytest.raises(InputError, match="need as many features and a hidden layer"):
        TableNetwork(5, 3, hidden=(), categories=CATEGORIES)


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


def test_normalize_takes_the_mean_off_each_channel() -> None:
    x = torch.rand(2, 3, 4, 4)
    y = Normalize()(x)
    for channel, (mean, std) in enumerate(((0.485, 0.229), (0.456, 0.224), (0.406, 0.225))):
        torch.testing.assert_close(y[:, channel] * std + mean, x[:, channel])
    grey = Normalize([0.5], [0.25])
    assert torch.equal(grey(x[:, :1]), (x[:, :1] - 0.5) / 0.25)
    assert not grey.state_dict()
    assert grey.double()(x[:, :1].double()).dtype == torch.float64
    for mean, std in (([0.5], [0.0]), ([0.5], [1.0, 1.0])):
        with pytest.raises(InputError, match="a mean and a standard deviation above 0 for each"):
            Normalize(mean, std)


def test_without_its_head_a_network_gives_what_the_head_took() -> None:
    model = ResNet32(10).eval()
    before = copy.deepcopy(model.state_dict())
    x = torch.randn(2, 3, 8, 8)
    features = without_head(model)(x)
    assert features.shape == (2, 64)
    assert torch.equal(model[-1](features), model(x))
    assert list(model.state_dict()) == list(before)
    assert torch.equal(without_head(nn.Linear(3, 2))(x), x)
    with pytest.raises(InputError, match=r"has no torch.nn.Linear"):
        without_head(nn.Flatten())


def test_a_new_head_is_for_other_classes_and_leaves_the_rest() -> None:
    model = ResNet32(10).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    changed = with_new_head(model, 3)
    assert changed is model
    assert changed(torch.randn(2, 3, 8, 8)).shape == (2, 3)
    after = changed.state_dict()
    assert list(after) == list(before)
    different = [n for n in before if not torch.equal(before[n], after[n])]
    assert different == list(before)[-2:]
    assert with_new_head(nn.Sequential(nn.Linear(4, 5, bias=False)), 2)[0].bias is None  # pyright: ignore[reportIndexIssue]
    alone = with_new_head(nn.Linear(4, 5), 2)
    assert (alone.in_features, alone.out_features) == (4, 2)
    with pytest.raises(InputError, match=r"has no torch.nn.Linear"):
        with_new_head(nn.Flatten(), 2)


def test_bytes_become_images_in_0_to_1() -> None:
    images = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    found = FromBytes()(images)
    assert found.dtype == torch.float32
    np.testing.assert_array_equal(
        found.numpy(), images.numpy().astype(np.float32) / np.float32(255.0)
    )
    assert FromBytes()(found) is found


class Backbone(nn.Sequential):
    """What a library's function builds."""

    def __init__(self, num_classes: int, weights: str | None = None) -> None:
        if weights is not None:
            raise URLError("Name or service not known")
        super().__init__(nn.Flatten(), nn.Linear(12, num_classes))


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A package that looks like torchvision: fake_vision.models.resnet50."""
    package, models = ModuleType("fake_vision"), ModuleType("fake_vision.models")
    contents: dict[str, Any] = {
        "resnet50": Backbone,
        "create_model": lambda name, **settings: Backbone(**settings),
        "number": lambda: 3,
        "constant": 3,
    }
    for name, value in contents.items():
        setattr(models, name, value)
    monkeypatch.setitem(sys.modules, "fake_vision", package)
    monkeypatch.setitem(sys.modules, "fake_vision.models", models)
    return models


@pytest.mark.usefixtures("library")
def test_networks_of_others_are_built_by_their_path() -> None:
    model = by_path("fake_vision.models.resnet50", num_classes=7, weights=None)
    assert isinstance(model, Backbone)
    assert model(torch.randn(2, 3, 2, 2)).shape == (2, 7)
    assert isinstance(by_path("fake_vision.models:resnet50", 7), Backbone)
    assert isinstance(by_path("fake_vision.models.create_model", "any", num_classes=2), Backbone)
    assert isinstance(by_path("torch.nn.Identity"), nn.Identity)
    own = by_path("autobalance.networks.ResNet32", num_classes=4)
    assert sum(p.numel() for p in own.parameters()) == 464_154 - 6 * 65
    factory = pickle.loads(pickle.dumps(partial(by_path, "torch.nn.Linear", 2, 3)))
    assert factory() is not factory()


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize(
    ("path", "settings", "message"),
    [
        ("resnet50", {}, r"names a module and what builds .* got 'resnet50'"),
        ("fake_vision.models:", {}, "names a module and what builds"),
        (
            "fake_vision.models.resnet5",
            {},
            "module fake_vision.models has nothing to call .*'resnet5'",
        ),
        ("fake_vision.models.constant", {}, "nothing to call by the name 'constant'"),
        ("fake_vision.models.resnet50", {"classes": 3}, "cannot be called like this: .*argument"),
        ("fake_vision.models.resnet50", {}, "cannot be called like this: .*'num_classes'"),
        ("fake_vision.models.number", {}, r"built no torch.nn.Module, but int"),
        (
            "fake_vision.models.resnet50",
            {"num_classes": 3, "weights": "DEFAULT"},
            r"could not get its weights: .*not known.*ask for none \(weights=None",
        ),
        (
            "fake_torchvision.models.resnet50",
            {},
            r"No module named 'fake_torchvision'. Install fake_t",
        ),
    ],
)
def test_what_cannot_be_built_by_its_path(
    path: str, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        by_path(path, **settings)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("raise RuntimeError('operator vision::nms does not exist\\nmore')", "nms does not exist"),
        ("raise OSError('libcudart.so: cannot open')", "libcudart.so: cannot open"),
        ("raise AttributeError", "AttributeError"),
    ],
)
def test_a_library_that_does_not_fit_torch_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, reason: str
) -> None:
    """As a torchvision does that was built for another torch; nothing else is touched."""
    (tmp_path / "unfit_vision.py").write_text(line)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError) as raised:
        by_path("unfit_vision.resnet50", num_classes=3)
    assert f"{reason}. Install unfit_vision, in the version for torch 2." in str(raised.value)
    assert "\n" not in str(raised.value)
    assert raised.value.__cause__ is None
    assert isinstance(by_path("autobalance.networks.SmallCNN", 3), SmallCNN)


def test_central_crops_are_of_whole_pixels_and_leave_smaller_images() -> None:
    x = torch.arange(49.0).view(1, 1, 7, 7)
    assert torch.equal(CentralCrop(3)(x), x[..., 2:5, 2:5])
    assert torch.equal(CentralCrop(4)(x), x[..., 1:5, 1:5])
    assert torch.equal(CentralCrop(7)(x), x)
    assert torch.equal(CentralCrop(5)(x[..., :3]), x[..., 1:6, :3])
    with pytest.raises(InputError, match="size must be at least 1"):
        CentralCrop(0)
