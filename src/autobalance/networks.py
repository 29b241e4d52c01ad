"""Networks of the library's own: for tables where the user brings none, and for small images."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

from autobalance.checks import InputError

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
        widths = [num_features, *hidden]
        layers: list[nn.Module] = []
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
