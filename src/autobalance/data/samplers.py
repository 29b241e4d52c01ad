"""A sampler for data loaders of one's own, which keeps classes and groups even over all processes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import Sampler

from autobalance._validation import InputError, same_length, whole
from autobalance.data.arrays import indices
from autobalance.data.splits import members_by_cell


class BalancedSampler(Sampler[int]):
    """Every class (or pair of class and group) as often in an epoch, shared between processes.

    For ``DataLoader(dataset, batch_size, sampler=BalancedSampler(target))``, as over-sampling the
    rare classes: validation batches of a `LossTuner` in which no class is missing for long, or
    class-balanced training. A cell's examples all come once before one comes again. All
    processes draw the same order and take turns in it, so that they share no position and hold as
    many; call `set_epoch` at the start of each epoch, as with `torch.utils.data.DistributedSampler`.

    Parameters
    ----------
    target : array-like
        Class of each example of the dataset, shape ``(n,)``.
    groups : array-like, optional
        Group of each example, from 0, shape ``(n,)``.
    num_samples : int, optional
        Examples per epoch, of all processes together; by default n. Rounded up to a multiple of
        the number of processes.
    seed : int
        The same in all processes.
    num_replicas, rank : int, optional
        Number of processes, and which one this is; by default those of `torch.distributed` where
        it is initialised, else one.

    Raises
    ------
    InputError
        If there is no example, lengths differ, a label is no whole number, or rank is out of range.
    """

    def __init__(
        self,
        target: Any,
        groups: Any = None,
        *,
        num_samples: int | None = None,
        seed: int = 0,
        num_replicas: int | None = None,
        rank: int | None = None,
    ) -> None:
        same_length(target=target, groups=groups)
        cells = indices("target", target).cpu()
        if groups is not None:
            other = indices("groups", groups).cpu()
            cells = cells * (int(other.max()) + 1) + other
        together = dist.is_available() and dist.is_initialized()
        if num_replicas is None:
            num_replicas = dist.get_world_size() if together else 1
        if rank is None:
            rank = dist.get_rank() if together else 0
        self.num_replicas = whole("num_replicas", num_replicas, least=1)
        self.rank = whole("rank", rank, least=0)
        if rank >= num_replicas:
            raise InputError(f"rank must be below num_replicas, {num_replicas}; got {rank}.")
        total = whole("num_samples", len(cells) if num_samples is None else num_samples, least=1)
        self.members = members_by_cell(cells)
        self.each = -(-total // num_replicas)
        self.seed, self.epoch = whole("seed", seed, least=0), 0

    def set_epoch(self, epoch: int) -> None:
        """Draw another order; the same in all processes and, for one epoch, every time."""
        self.epoch = whole("epoch", epoch, least=0)

    def __len__(self) -> int:
        """Examples of this process in an epoch."""
        return self.each

    def __iter__(self) -> Iterator[int]:
        mixed = np.random.SeedSequence([self.seed, self.epoch]).generate_state(1)
        generator = torch.Generator().manual_seed(int(mixed[0]))
        total, cells = self.each * self.num_replicas, len(self.members)
        # Each cell's number of turns; what does not divide evenly goes to cells drawn at random.
        turns = torch.full((cells,), total // cells)
        turns[torch.randperm(cells, generator=generator)[: total % cells]] += 1
        parts = [
            _cycle(members, int(n), generator)
            for members, n in zip(self.members, turns, strict=True)
        ]
        order = torch.cat(parts)[torch.randperm(total, generator=generator)]
        yield from order[self.rank :: self.num_replicas].tolist()


def _cycle(members: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """N members, each once before one comes again."""
    rounds = [
        torch.randperm(len(members), generator=generator) for _ in range(-(-n // len(members)))
    ]
    return members[torch.cat(rounds)[:n]] if rounds else members[:0]
