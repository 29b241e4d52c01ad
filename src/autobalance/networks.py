"""The network used where the user brings none."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import nn


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
