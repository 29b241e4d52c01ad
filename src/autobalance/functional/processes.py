"""Processes that train one network together, each on rows of its own.

An upper step must give what one process would on the union of the processes' batches, whatever the
loss and the objective are: worst classes, quantiles and gaps are no means over processes. So each
process sees the logits and labels of all rows, ``(n, k)`` numbers, and every sum over rows of the
size of the weights is reduced.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed as dist, nn
from torch.nn.parallel import DistributedDataParallel

from autobalance._validation import InputError
from autobalance.data import Batch

T = TypeVar("T")

SHARDED = {"FullyShardedDataParallel", "FSDPModule", "DTensor"}
"""FSDP's classes of both generations and its weights', by name: importing them takes time."""


@dataclass(frozen=True)
class Processes:
    """Those that train one network together; by default this one alone.

    Attributes
    ----------
    group : process group of torch.distributed, or None
        None: this process alone.
    """

    group: Any = None

    @classmethod
    def of(cls, model: nn.Module) -> Processes:
        """Those that share the model: DistributedDataParallel's, below Fabric's and compile's wrappers.

        Raises
        ------
        InputError
            If a part of the model is sharded, by FSDP or as a DTensor: such weights have no
            forward-mode derivative.
        """
        kinds = {type(part) for part in (*model.modules(), *model.parameters())}
        if SHARDED & {c.__name__ for kind in kinds for c in kind.__mro__}:
            raise InputError(
                "Hypergradients need forward-mode derivatives, which sharded weights (FSDP, DTensor) do "
                "not have. Train with DDP, or search on frozen features; the loss found can then "
                "train the sharded network."
            )
        for wrapper in _wrappers(model):
            if isinstance(wrapper, DistributedDataParallel):
                return cls(wrapper.process_group)
        return cls()

    @classmethod
    def all(cls) -> Processes:
        """All that torch.distributed knows of; this one alone where it knows of none."""
        started = dist.is_available() and dist.is_initialized()
        return cls(dist.group.WORLD) if started else cls()

    @property
    def overlooked(self) -> bool:
        """Whether there are other processes that this one does not know to share the model."""
        started = dist.is_available() and dist.is_initialized()
        return self.group is None and started and dist.get_world_size() > 1

    @property
    def size(self) -> int:
        """Number of processes."""
        return 1 if self.group is None else dist.get_world_size(self.group)

    @property
    def rank(self) -> int:
        """Index of this process, from 0."""
        return 0 if self.group is None else dist.get_rank(self.group)

    def rows(self, own: Tensor, sizes: Sequence[int] | None = None) -> slice:
        """Where this process's rows lie in the union; `sizes` as for `all_gather_rows`."""
        begin = sum((self.sizes_of(own) if sizes is None else sizes)[: self.rank])
        return slice(begin, begin + len(own))

    def all_gather_rows(self, own: Tensor, sizes: Sequence[int] | None = None) -> Tensor:
        """Rows of all processes, in their order; this one's with their graph, the others' without.

        The processes may bring different numbers of rows, `sizes`, and the same of everything else. Where
        these are not given the processes tell each other, for which a GPU must be waited.
        """
        if self.group is None:
            return own
        sizes = self.sizes_of(own) if sizes is None else sizes
        padded = own.detach().new_zeros((max(sizes), *own.shape[1:]))
        padded[: len(own)] = own.detach()
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded, group=self.group)
        rows = [part[:size] for part, size in zip(parts, sizes, strict=True)]
        rows[self.rank] = own
        return torch.cat(rows)

    def labels(self, batch: Batch, sizes: Sequence[int] | None = None) -> Batch:
        """The batch with its own inputs and the union's labels, groups and weights."""
        if self.group is None:
            return batch
        sizes = self.sizes_of(batch.target) if sizes is None else sizes
        return replace(
            batch,
            **{
                name: None if value is None else self.all_gather_rows(value, sizes)
                for name in ("target", "groups", "sample_weight")
                for value in [getattr(batch, name)]
            },
        )

    def share(self, index: Tensor) -> Tensor:
        """Of a batch's indices, the same in all processes, those that this one takes."""
        return index[self.rank :: self.size]

    def sizes(self, examples: int) -> list[int]:
        """How many each process takes of a batch of so many, by `share`."""
        return [len(range(rank, examples, self.size)) for rank in range(self.size)]

    def all_reduce(self, own: Tensor) -> Tensor:
        """The sum over processes, without a graph."""
        if self.group is None:
            return own
        total = own.detach().clone()
        dist.all_reduce(total, group=self.group)
        return total

    def all_gather_objects(self, own: Any) -> list[Any]:
        """Something that can be pickled, of each process. To be called by all at the same place."""
        found = [own] * self.size
        if self.group is not None:
            dist.all_gather_object(found, own, group=self.group)
        return found

    def run_on_rank_zero(self, make: Callable[[], T]) -> T:
        """What a function returns in the first process, where alone it is called, in all of them.

        To be called by all at the same place. An InputError there is raised in all.
        """
        if self.group is None:
            return make()
        found: list[Any] = [None]
        if self.rank == 0:
            try:
                found = [(make(), None)]
            except InputError as error:
                found = [(None, error)]
        first = dist.get_global_rank(self.group, 0)
        dist.broadcast_object_list(found, first, group=self.group)
        [(value, error)] = found
        if error is not None:
            raise error
        return value

    def seed_per_rank(self, seed: int) -> None:
        """Let dropout and augmentation differ between processes: seed the global random state by each.

        To be called once all networks are made, whose weights must be the same in every process and
        those of one process alone.
        """
        if self.size > 1:
            torch.manual_seed(seed + self.rank)

    def broadcast_buffers(self, model: nn.Module) -> None:
        """Give all processes the first one's buffers: BatchNorm's statistics are of the rows that each saw.

        To be called by all at the same place.
        """
        if self.group is None:
            return
        first = dist.get_global_rank(self.group, 0)
        for buffer in model.buffers():
            dist.broadcast(buffer, first, group=self.group)

    def sizes_of(self, own: Tensor) -> list[int]:
        """Rows of each process, which they tell each other; a GPU is waited for."""
        if self.group is None:
            return [len(own)]
        mine = torch.tensor([len(own)], device=own.device)
        found = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(found, mine, group=self.group)
        return torch.cat(found).tolist()


ALONE = Processes()


def first_process() -> bool:
    """Whether this is the first of all processes, or the only one."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank() == 0
    return processes_started() == 1 or os.environ.get("RANK", "0") == "0"


def processes_started() -> int:
    """How many processes `torchrun` (or `fabric run`) started to train together; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "TORCHELASTIC_RUN_ID" in os.environ else 1


def unwrap(model: nn.Module) -> nn.Module:
    """The network within the wrappers of DDP, `nn.DataParallel`, Fabric and `torch.compile`."""
    *_, inner = _wrappers(model)
    return inner


def _wrappers(model: nn.Module) -> Iterator[nn.Module]:
    """The model, what it wraps, and so on down to the network."""
    while True:
        yield model
        if isinstance(model, (DistributedDataParallel, nn.DataParallel)):
            model = model.module
        elif type(model).__name__ == "_FabricModule":
            model = model._forward_module  # type: ignore[assignment]
        elif "_orig_mod" in model._modules:
            model = model._modules["_orig_mod"]  # type: ignore[assignment]
        else:
            return
