"""Endless streams of index batches: shuffled, class-balanced, and even over validation cells."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from autobalance.data.batches import moved
from autobalance.data.splits import members_by_cell


class IndexStream(Iterator[Tensor]):
    """Endless stream of index batches, drawn by a generator, whose state can be saved."""

    generator: torch.Generator

    def state_dict(self) -> dict[str, Any]:
        """What continues the stream elsewhere."""
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self.generator.set_state(state["generator"])


class ShuffledBatches(IndexStream):
    """Endless stream of index batches, each of exactly ``min(size, examples)``.

    One permutation follows the other and a batch may span two of them, so that no batch is
    short: a short last batch would be noisy, and of a single example unfit for BatchNorm. On a GPU
    a permutation is sent there as a whole.

    With `weight` ``(n,)`` a pass holds each example about n w / sum w times, rounded up or down at
    random, so that what is drawn need not be weighted again.
    """

    def __init__(
        self,
        examples: int,
        size: int,
        generator: torch.Generator,
        device: torch.device | str = "cpu",
        weight: Tensor | None = None,
    ) -> None:
        self.examples, self.size, self.generator = examples, min(size, examples), generator
        self.bounds = None if weight is None else weight.cpu().double().cumsum(0)
        self.left = torch.empty(0, dtype=torch.int64, device=device)

    def __next__(self) -> Tensor:
        while len(self.left) < self.size:
            more = torch.randperm(self.examples, generator=self.generator)
            if self.bounds is not None:
                more = self._by_weight()[more]
            self.left = torch.cat([self.left, moved(more, self.left.device)])
        batch, self.left = self.left[: self.size], self.left[self.size :]
        return batch

    def _by_weight(self) -> Tensor:
        """As many examples as there are, each about as often as its weight says: systematic sampling."""
        assert self.bounds is not None
        offset = torch.rand((), generator=self.generator, dtype=torch.float64)
        grid = (torch.arange(self.examples) + offset) * (self.bounds[-1] / self.examples)
        return torch.searchsorted(self.bounds, grid, right=True).clamp(max=self.examples - 1)

    def state_dict(self) -> dict[str, Any]:
        """What continues the stream elsewhere."""
        return {**super().state_dict(), "left": self.left}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        super().load_state_dict(state)
        self.left = state["left"].to(self.left.device)


class ResampledBatches(IndexStream):
    """Endless stream of index batches of `size`, every cell as likely, with replacement.

    Class-balanced sampling, as over-sampling the rare classes does: for training. Each place of a
    batch draws a cell, then a member of it, by its `weight` ``(n,)`` where there are weights, which
    are then not to be applied again.
    """

    def __init__(
        self,
        cells: Tensor,
        size: int,
        generator: torch.Generator,
        weight: Tensor | None = None,
    ) -> None:
        _, inverse = torch.unique(cells.cpu(), return_inverse=True)
        own = torch.ones(len(inverse)) if weight is None else weight.cpu()
        masses = torch.bincount(inverse, own.double())
        self.weights, self.size, self.generator = own / masses[inverse], size, generator

    def __next__(self) -> Tensor:
        return torch.multinomial(self.weights, self.size, True, generator=self.generator)


class BalancedBatches(IndexStream):
    """Endless stream of index batches of at most `size`, drawn evenly over the cells.

    Where everything fits into one batch, that is every batch. Otherwise each cell gives the same
    number (a small one all it has), each cell in its own shuffled order; where there are more
    cells than places, cells take turns.

    Within a cell examples are drawn by their `weight` ``(n,)``, where there are weights, which are then
    not to be applied again; only a batch of everything is to be weighted.
    """

    def __init__(
        self,
        cells: Tensor,
        size: int,
        generator: torch.Generator,
        weight: Tensor | None = None,
    ) -> None:
        self.everything = torch.arange(len(cells)) if len(cells) <= size else None
        self.generator = generator
        self.members = members_by_cell(cells)
        each = max(1, size // len(self.members))
        weights = [None if weight is None else weight[m] for m in self.members]
        self.draws = [
            ShuffledBatches(len(m), each, generator, weight=w)
            for m, w in zip(self.members, weights, strict=True)
        ]
        self.turns = ShuffledBatches(len(self.members), size, generator)

    def __next__(self) -> Tensor:
        if self.everything is not None:
            return self.everything
        chosen = next(self.turns).tolist()
        return torch.cat([self.members[i][next(self.draws[i])] for i in chosen])

    def state_dict(self) -> dict[str, Any]:
        """What continues the stream elsewhere."""
        left = [stream.left for stream in (*self.draws, self.turns)]
        return {**super().state_dict(), "left": left}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        super().load_state_dict(state)
        for stream, left in zip((*self.draws, self.turns), state["left"], strict=True):
            stream.left = left
