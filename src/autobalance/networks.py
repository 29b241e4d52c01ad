"""Networks of the library's own, for tables and small images, and those of others by import path."""

from __future__ import annotations

import copy
import importlib
import inspect
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autobalance._validation import InputError, whole
from autobalance.losses import last_linear, new_layer_like

__all__ = [
    "SMALLEST_IMAGE",
    "CentralCrop",
    "FromBytes",
    "Normalize",
    "ResNet32",
    "SmallCNN",
    "TableNetwork",
    "by_path",
    "imported",
    "with_new_head",
    "without_head",
]

SMALLEST_IMAGE = 7
"""Height and width below which `SmallCNN` has nothing left to flatten."""


class TableNetwork(nn.Sequential):
    """Multilayer perceptron with ReLU and dropout, from ``(n, d)`` to logits ``(n, k)``.

    Parameters
    ----------
    num_features, num_classes : int
        d and k.
    hidden : sequence of int
        Widths of the hidden layers.
    dropout : float
        After each hidden layer, in [0, 1).

    Attributes
    ----------
    settings : dict
        These arguments, to build the same network again.
    """

    def __init__(
        self,
        num_features: int,
        num_classes: int,
        hidden: Sequence[int] = (256, 256),
        dropout: float = 0.1,
    ) -> None:
        widths, layers = [num_features, *hidden], []
        for before, after in pairwise(widths):
            layers += [nn.Linear(before, after), nn.ReLU(), nn.Dropout(dropout)]
        super().__init__(*layers, nn.Linear(widths[-1], num_classes))
        self.settings = {
            "num_features": num_features,
            "num_classes": num_classes,
            "hidden": list(hidden),
            "dropout": dropout,
        }


class SmallCNN(nn.Sequential):
    """Three convolutions with BatchNorm, for small images; 29,434 weights for 28 x 28 and 10 classes.

    From ``(n, c, h, w)`` to logits ``(n, k)``.

    Parameters
    ----------
    num_classes : int
        k.
    channels : int
        c.
    size : tuple of int
        h and w, at least 7 each.

    Raises
    ------
    InputError
        If the images are too small.
    """

    def __init__(
        self, num_classes: int, channels: int = 1, size: tuple[int, int] = (28, 28)
    ) -> None:
        if min(size) < SMALLEST_IMAGE:
            raise InputError(
                f"SmallCNN takes images of {SMALLEST_IMAGE} x {SMALLEST_IMAGE} or more; got "
                f"{size[0]} x {size[1]}. Enlarge them, or flatten them for a TableNetwork."
            )
        height, width = ((n + 1) // 2 // 2 // 2 for n in size)  # a stride and two poolings
        super().__init__(
            nn.Conv2d(channels, 16, 5, stride=2, padding=2, bias=False),
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
            nn.Linear(64 * height * width, num_classes),
        )


class _Block(nn.Module):
    """Two 3 x 3 convolutions around a shortcut without parameters (option A of He et al.)."""

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.stride, self.added = stride, width - before

    def forward(self, x: Tensor) -> Tensor:
        """The block's output for images ``(n, c, h, w)``."""
        short = x[:, :, :: self.stride, :: self.stride]
        if self.added:
            half = self.added // 2
            short = F.pad(short, (0, 0, 0, 0, half, self.added - half))
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + short)


class ResNet32(nn.Sequential):
    """ResNet-32 for small images (He et al., 2016, section 4.2), 464,154 weights for 10 classes.

    From ``(n, c, h, w)`` to logits ``(n, k)``; any h and w of at least 4.

    Parameters
    ----------
    num_classes : int
        k.
    channels : int
        c.
    """

    def __init__(self, num_classes: int, channels: int = 3) -> None:
        layers: list[nn.Module] = [
            nn.Conv2d(channels, 16, 3, padding=1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
        ]
        before = 16
        for width in (16, 32, 64):
            for block in range(5):
                stride = 2 if block == 0 and width > 16 else 1
                layers.append(_Block(before, width, stride))
                before = width
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, num_classes))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)


class Normalize(nn.Module):
    """Images in [0, 1] as networks trained on ImageNet take them: ``(x - mean) / std`` by channel.

    Put it before the network: ``torch.nn.Sequential(Normalize(), backbone)``.

    Parameters
    ----------
    mean, std : sequence of float
        One for each of the c channels of ``(n, c, h, w)``, or one for all; by default ImageNet's.
        `std` is above 0.

    Raises
    ------
    InputError
        If they differ in length, or a standard deviation is not above 0.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        mean: Sequence[float] = (0.485, 0.456, 0.406),
        std: Sequence[float] = (0.229, 0.224, 0.225),
    ) -> None:
        super().__init__()
        if len(mean) != len(std) or not all(s > 0 for s in std):
            raise InputError(
                "Normalize needs a mean and a standard deviation above 0 for each channel; got "
                f"{tuple(mean)} and {tuple(std)}."
            )
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(values)[:, None, None], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Images ``(n, c, h, w)``, standardised."""
        return (x - self.mean) / self.std


def by_path(path: str, *arguments: Any, **settings: Any) -> nn.Module:
    """A network by the import path of what builds it, such as those of torchvision and timm.

    For `search` and `retrain`, which call for new networks:
    ``functools.partial(by_path, "torchvision.models.resnet50", num_classes=10)``.

    Parameters
    ----------
    path : str
        "torchvision.models.resnet50", "timm.create_model" or "my_package.networks:Net": a function
        or class in a module that can be imported. It is imported here and nowhere else.
    *arguments, **settings
        What it is called with: ``num_classes=10, weights=None`` for torchvision's, the name of the
        network and ``num_classes=10, pretrained=False`` for timm's.

    Raises
    ------
    InputError
        If the module does not import (a torchvision that does not fit torch, for example), has no
        such name, does not take the arguments, cannot get weights that are asked for, or what it
        builds is no network.
    """
    build = imported(path)
    try:
        inspect.signature(build).bind(*arguments, **settings)
    except TypeError as error:
        raise InputError(f"{path} cannot be called like this: {error}.") from None
    except ValueError:  # some of those written in C have no signature
        pass
    try:
        network = build(*arguments, **settings)
    except OSError as error:  # URLError is one: pretrained weights are downloaded
        raise InputError(
            f"{path} could not get its weights: {error}. Where there is no network, ask for none "
            "(weights=None for torchvision, pretrained=False for timm) and load them from a file."
        ) from None
    if not isinstance(network, nn.Module):
        raise InputError(f"{path} built no torch.nn.Module, but {type(network).__name__}.")
    return network


class CentralCrop(nn.Module):
    """The central ``size x size`` pixels of images ``(n, c, h, w)``; smaller sides stay as they are.

    For networks that train on random crops, see `autobalance.augment.ResizedCrop`, and predict on whole
    images that are somewhat larger: ``torch.nn.Sequential(CentralCrop(224), network)``.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = whole("size", size, least=1)

    def forward(self, x: Tensor) -> Tensor:
        """The central part of images ``(n, c, h, w)``."""
        top, left = (max(0, (side - self.size) // 2) for side in x.shape[-2:])
        return x[..., top : top + self.size, left : left + self.size]

    def extra_repr(self) -> str:
        """The size."""
        return str(self.size)


class FromBytes(nn.Module):
    """Images of bytes (uint8) as float32 in [0, 1]; others as they are.

    Put it before a network to keep images in a quarter of the memory.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Inputs as floating-point numbers."""
        return x.float() / 255.0 if x.dtype == torch.uint8 else x


def with_new_head(network: nn.Module, num_classes: int) -> nn.Module:
    """The network with its last `torch.nn.Linear` drawn anew, for k other classes.

    For fine-tuning: build the network as it was pretrained, with its weights. It is changed in
    place, unless it is that layer alone.

    Raises
    ------
    InputError
        If it has no `torch.nn.Linear`.
    """
    name, old = last_linear(network)
    head = new_layer_like(old, num_classes)
    if not name:
        return head
    network.set_submodule(name, head)
    return network


def without_head(network: nn.Module) -> nn.Module:
    """A copy that returns what its last `torch.nn.Linear` takes, for `extract_features`.

    Raises
    ------
    InputError
        If it has no `torch.nn.Linear`.
    """
    name, _ = last_linear(network)
    if not name:
        return nn.Identity()
    network = copy.deepcopy(network)
    network.set_submodule(name, nn.Identity())
    return network


def imported(path: str) -> Any:
    """What builds a network, by its import path as for `by_path`.

    Raises
    ------
    InputError
        If the module does not import, or has nothing to call by that name.
    """
    module, _, name = path.partition(":") if ":" in path else path.rpartition(".")
    if not module or not name:
        raise InputError(
            "A network's path names a module and what builds the network in it, such as "
            f"'torchvision.models.resnet50'; got {path!r}."
        )
    try:
        found = importlib.import_module(module)
    except Exception as error:  # a library that does not fit torch can raise anything
        package = module.split(".")[0]
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].removesuffix(".")
        raise InputError(
            f"{path} cannot be imported: {reason}. Install {package}, in the version for torch "
            f"{torch.__version__.partition('+')[0]}, or bring another network."
        ) from None
    build = getattr(found, name, None)
    if not callable(build):
        raise InputError(f"The module {module} has nothing to call by the name {name!r}.")
    return build
