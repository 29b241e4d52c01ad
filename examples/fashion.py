"""What the examples on images share: long-tailed images, split into parts, and the error of a network."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from autobalance.data import long_tailed_sample


class Images(NamedTuple):
    """Fashion-MNIST, with 500 to 5 images per class in `everything`.

    `held` is the fifth of each class that is held out for the tuner, and `train` is the rest. They have
    `held_counts` and `counts` images per class. `test` has 100 images of each class.
    """

    train: TensorDataset
    held: TensorDataset
    everything: TensorDataset
    test: TensorDataset
    counts: Tensor
    held_counts: Tensor


def images() -> Images:
    everything, test = (
        TensorDataset(torch.from_numpy(part.images), torch.from_numpy(part.target))
        for part in long_tailed_sample()
    )
    target = everything.tensors[1]
    parts = train_test_split(range(len(target)), test_size=0.2, stratify=target, random_state=0)
    train, held = (TensorDataset(*everything[part]) for part in parts)
    counts = [torch.bincount(part.tensors[1], minlength=10) for part in (train, held)]
    return Images(train, held, everything, test, *counts)


def small_network() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(784, 128), nn.ReLU(), nn.Dropout(0.2), nn.Linear(128, 10)
    )


def endless(loader: Iterable[Any]) -> Iterator[Any]:
    """Yield the batches of a loader again and again."""
    while True:
        yield from loader


@torch.no_grad()
def balanced_error(model: nn.Module, data: TensorDataset) -> float:
    """Return the mean of the classes' errors, in percent."""
    inputs, target = data.tensors
    wrong = (model.eval()(inputs).argmax(dim=1) != target).double()
    model.train()
    return 100 * float(torch.stack([wrong[target == k].mean() for k in target.unique()]).mean())
