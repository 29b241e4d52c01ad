"""Inputs that are read batch by batch, in place of a tensor that holds them all."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from autobalance.data.batches import Read

_SAMPLED = 64


class LazyInputs(ABC):
    """Inputs that are read by index; what they return lies on the CPU.

    `StoredRows` reads files that are mapped into memory, `DatasetInputs` a Dataset.
    """

    rows: np.ndarray
    """Numbers of the examples in what holds them all, shape ``(n,)``."""
    read_ahead: int = 0
    """Number of batches that are worth requesting before they are needed."""

    @property
    @abstractmethod
    def shape(self) -> torch.Size:
        """Number of examples, and the shape of each where they share one."""

    @abstractmethod
    def request(self, index: Tensor, seed: int, *, training: bool) -> Read:
        """Begin to read the examples of these numbers ``(m,)``; what is returned waits for them.

        Random transforms are seeded by `seed`; `training` says whether the examples pass through
        those for training or those for evaluation.
        """

    def request_labelled(self, index: Tensor, seed: int, *, training: bool) -> Read | None:
        """As `request`, of inputs with the targets that belong to them, as `Labelled`; None without any."""
        return None

    @abstractmethod
    def subset(self, index: Any, /) -> Self:
        """These examples ``(m,)`` alone; nothing is read."""

    @abstractmethod
    def joined(self, other: Any, /) -> Self:
        """The examples of both, read as the first are."""

    @abstractmethod
    def digest(self) -> str:
        """Tells these inputs from others."""

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Tensor | slice) -> Any:
        """Inputs of these examples, as for evaluation."""
        if isinstance(index, slice):
            index = torch.arange(len(self))[index]
        return self.request(index, 0, training=False)()

    def split(self, size: int) -> Iterator[Any]:
        """All inputs in order, as for evaluation, at most `size` examples at a time."""
        requested: deque[Callable[[], Any]] = deque()
        with self.reading():
            for index in torch.arange(len(self)).split(size):
                requested.append(self.request(index, 0, training=False))
                if len(requested) > self.read_ahead:
                    yield requested.popleft()()
            while requested:
                yield requested.popleft()()

    def reading(self) -> AbstractContextManager[None]:
        """Keep workers running inside, and stop them when the outermost such block ends."""
        return nullcontext()


def sampled(n: int) -> np.ndarray:
    """At most 64 numbers below n, evenly spaced, each once: they tell one set from another."""
    return np.unique(np.linspace(0, n - 1, min(_SAMPLED, n)).astype(np.int64))
