"""Networks used where the user brings none: a table network, and the demo's small CNN."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn


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


class SmallConvNet(nn.Module):
    """Three convolutions with BatchNorm and a linear head, for small images.

    Parameters
    ----------
    channels, num_classes : int
        Channels of the images ``(n, c, h, w)``, and k.
    width : int
        Channels of the first convolution; the others have twice and four times as many.
    """

    def __init__(self, channels: int, num_classes: int, width: int = 16) -> None:
        super().__init__()

        def block(before: int, after: int) -> list[nn.Module]:
            return [
                nn.Conv2d(before, after, 3, padding=1, bias=False),
                nn.BatchNorm2d(after),
                nn.ReLU(),
                nn.MaxPool2d(2),
            ]

        self.features = nn.Sequential(
            *block(channels, width), *block(width, 2 * width), *block(2 * width, 4 * width)
        )
        self.head = nn.Sequential(nn.Flatten(), nn.LazyLinear(num_classes))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images))
