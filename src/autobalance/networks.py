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
    "CategoryLinear",
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


class _SumOfRows(torch.autograd.Function):
    """Of each example the sum of some rows of a table: what its one-hot columns times the table are.

    From rows ``(f, h)``, their numbers ``(n, c)`` and factors ``(n, c)``, 0 or 1, to ``(n, h)``. torch's own
    `embedding_bag` has neither a forward-mode nor a second derivative; the function is linear, so that its
    derivatives are itself and `_SumOfExamples`, its transpose.
    """

    @staticmethod
    def forward(rows: Tensor, index: Tensor, factor: Tensor) -> Tensor:
        return F.embedding_bag(index, rows, mode="sum", per_sample_weights=factor)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        rows, index, factor = inputs
        ctx.size = len(rows)
        ctx.save_for_backward(index, factor)
        ctx.save_for_forward(index, factor)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        index, factor = ctx.saved_tensors
        return _SumOfExamples.apply(grad_outputs[0], index, factor, ctx.size), None, None

    @staticmethod
    def jvp(ctx: Any, *grad_inputs: Any) -> Any:
        return _SumOfRows.apply(grad_inputs[0], *ctx.saved_tensors)


class _SumOfExamples(torch.autograd.Function):
    """Of each row ``(f, h)`` the sum of what the examples ``(n, h)`` that take it have: see `_SumOfRows`."""

    @staticmethod
    def forward(examples: Tensor, index: Tensor, factor: Tensor, size: int) -> Tensor:
        rows = examples.new_zeros(size, examples.shape[1])
        # Column by column there is no copy of the examples for each of their categories.
        for column, known in zip(index.unbind(1), factor.bool().unbind(1), strict=True):
            if known.all():
                rows.index_add_(0, column, examples)
            else:
                rows.index_add_(0, column[known], examples[known])
        return rows

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, index, factor, ctx.size = inputs
        ctx.save_for_backward(index, factor)
        ctx.save_for_forward(index, factor)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        return _SumOfRows.apply(grad_outputs[0], *ctx.saved_tensors), None, None, None

    @staticmethod
    def jvp(ctx: Any, *grad_inputs: Any) -> Any:
        return _SumOfExamples.apply(grad_inputs[0], *ctx.saved_tensors, ctx.size)


class CategoryLinear(nn.Module):
    """`torch.nn.Linear` of numbers and one-hot categories that are given as codes.

    From ``(n, m + c)``, m numbers and the codes of c columns of categories, to ``(n, out_features)``. It
    starts where the `torch.nn.Linear` of the one-hot columns would, draws as many random numbers, and
    gives the same up to rounding, but its time does not grow with the number of categories.

    Parameters
    ----------
    numbers : int
        m.
    categories : sequence of int
        Number of categories of each of the c columns; codes run from 0, and -1 stands for none of them.
    out_features : int
        Width of what it returns.
    """

    offsets: Tensor

    def __init__(self, numbers: int, categories: Sequence[int], out_features: int) -> None:
        super().__init__()
        dense = nn.Linear(numbers + sum(categories), out_features)
        weight, rows = dense.weight.detach().split([numbers, sum(categories)], dim=1)
        self.weight = nn.Parameter(weight.clone())
        self.rows = nn.Parameter(rows.t().contiguous())
        self.bias = dense.bias
        offsets = torch.tensor([0, *categories[:-1]]).cumsum(0)
        self.register_buffer("offsets", offsets, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """What the layer makes of numbers and codes ``(n, m + c)``."""
        codes = x[:, self.weight.shape[1] :]
        factor = (codes >= 0).to(self.rows.dtype)
        index = codes.clamp(min=0).long() + self.offsets
        if torch.compiler.is_compiling() or self.rows.device.type != "cpu":
            # Operations that every exporter knows; on a GPU the copy of the rows costs nothing.
            chosen = F.embedding(index, self.rows) * factor.unsqueeze(2)
            of_categories = chosen.sum(dim=1)
        else:
            of_categories = _SumOfRows.apply(self.rows, index, factor)
        return F.linear(x[:, : self.weight.shape[1]], self.weight, self.bias) + of_categories


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
    categories : sequence of int
        Where the last of the d features are codes of categories, see `CategoryLinear`, the number of
        categories of each.

    Attributes
    ----------
    settings : dict
        These arguments, to build the same network again.

    Raises
    ------
    InputError
        If there are categories, but more than features, or no hidden layer.
    """

    def __init__(
        self,
        num_features: int,
        num_classes: int,
        hidden: Sequence[int] = (256, 256),
        dropout: float = 0.1,
        categories: Sequence[int] = (),
    ) -> None:
        if categories and (len(categories) > num_features or not hidden):
            raise InputError(
                f"{len(categories)} columns of categories need as many features and a hidden layer; got "
                f"num_features={num_features} and hidden={tuple(hidden)}."
            )
        widths, layers = [num_features, *hidden], []
        for before, after in pairwise(widths):
            if categories and not layers:
                layer: nn.Module = CategoryLinear(before - len(categories), categories, after)
            else:
                layer = nn.Linear(before, after)
            layers += [layer, nn.ReLU(), nn.Dropout(dropout)]
        super().__init__(*layers, nn.Linear(widths[-1], num_classes))
        self.settings = {
            "num_features": num_features,
            "num_classes": num_classes,
            "hidden": list(hidden),
            "dropout": dropout,
            "categories": list(categories),
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
