"""Batches of labelled examples, and the source from which training draws them."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from autobalance._validation import InputError

if TYPE_CHECKING:
    from autobalance.data.array_data import ArrayData
    from autobalance.data.index_streams import IndexStream

Read = Callable[[], Any]
"""What waits for a batch, or for inputs, that were requested, and returns them."""


@dataclass(frozen=True)
class Batch:
    """What a loss needs of some examples.

    Attributes
    ----------
    inputs : Any
        What the network takes: a tensor ``(n, ...)``, a tuple of arguments, or a mapping of keyword
        arguments.
    target : Tensor
        Class indices, shape ``(n,)``, int64; of several labels 0, 1 and -1, shape ``(n, k)``.
    groups : Tensor or None
        Group indices, shape ``(n,)``, int64.
    sample_weight : Tensor or None
        Non-negative weights, shape ``(n,)``.
    """

    inputs: Any
    target: Tensor
    groups: Tensor | None = None
    sample_weight: Tensor | None = None


def as_batch(batch: Any) -> Batch:
    """A `Batch` from what loaders usually yield.

    A `Batch` as it is; a tuple or list ``(inputs, target[, groups[, sample_weight]])``; a mapping
    or dataclass with "inputs" and "target" and, optionally, "groups" and "sample_weight"; or a
    mapping with "labels", as Hugging Face's collators make them, whose other entries (but
    "groups" and "sample_weight") are the network's keyword arguments.
    """
    if isinstance(batch, Batch):
        return batch
    result = None
    if is_dataclass(batch) and not isinstance(batch, type):
        batch = {f.name: getattr(batch, f.name) for f in fields(batch)}
    if isinstance(batch, Mapping):
        extra = batch.get("groups"), batch.get("sample_weight")
        others = batch.keys() - {"labels", "groups", "sample_weight"}
        if {"inputs", "target"} <= batch.keys():
            result = Batch(batch["inputs"], batch["target"], *extra)
        elif "labels" in batch and others:
            result = Batch({k: batch[k] for k in batch if k in others}, batch["labels"], *extra)
    elif isinstance(batch, (tuple, list)) and 2 <= len(batch) <= 4:
        result = Batch(*batch)
    if result is None or not isinstance(result.target, Tensor):
        raise InputError(
            "A batch must be (inputs, target[, groups[, sample_weight]]) with a tensor as target, a "
            'mapping or dataclass with these names, a mapping with "labels", or a Batch; got '
            f"{type(batch).__name__}. For others give an adapter: LossTuner(..., adapter=to_batch)."
        )
    return result


def as_batches(batches: Any, adapter: Callable[[Any], Batch] = as_batch) -> list[Batch]:
    """One batch, or a list of several; a list that holds a tensor is one batch."""
    if isinstance(batches, list) and batches and not any(isinstance(b, Tensor) for b in batches):
        return [adapter(batch) for batch in batches]
    return [adapter(batches)]


def map_tensors(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """The value with `function` applied to each tensor in it; lists become tuples."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Mapping):
        return {key: map_tensors(entry, function) for key, entry in value.items()}
    if isinstance(value, (tuple, list)):
        return tuple(map_tensors(entry, function) for entry in value)
    return value


def tensors_in(value: Any) -> list[Tensor]:
    """All tensors in a value, in order."""
    tensors: list[Tensor] = []
    map_tensors(value, lambda tensor: tensors.append(tensor) or tensor)
    return tensors


def moved(inputs: Any, device: torch.device) -> Any:
    """The tensors of these inputs on a device.

    One for a GPU goes by way of pinned memory, so that the program does not wait for the copy.
    """

    def move(tensor: Tensor) -> Tensor:
        if device.type != "cuda" or tensor.device.type != "cpu":
            return tensor.to(device)
        return tensor.pin_memory().to(device, non_blocking=True)

    return map_tensors(inputs, move)


class BatchSource(Iterator[Batch]):
    """The batches that an index stream draws from labelled data.

    Where workers read the examples, some batches are requested before they are needed. The random
    transforms of a batch are seeded by `seed`, the process and the batch's number, so the result does
    not depend on how many workers there are, and a run that continues sees the same batches.

    Parameters
    ----------
    data, stream : ArrayData, IndexStream
        The labelled examples, and what decides which of them are in each batch.
    seed : int
        Seed of random transforms.
    training : bool
        Whether examples pass through the training transforms or those for evaluation.
    share : callable, optional
        Picks the part of a batch's indices for this process, which is number `rank` of several that
        train together.

    Attributes
    ----------
    latest : (int, Tensor)
        Number of the last batch, and the indices of all its examples, for all processes.
    """

    def __init__(
        self,
        data: ArrayData,
        stream: IndexStream,
        *,
        seed: int = 0,
        training: bool = False,
        share: Callable[[Tensor], Tensor] | None = None,
        rank: int = 0,
    ) -> None:
        self.data, self.stream = data, stream
        self.seed, self.training = seed, training
        self.share, self.rank = share, rank
        self.number = 0
        self.latest = (-1, torch.empty(0, dtype=torch.int64))
        self._requested: deque[tuple[Tensor, Read]] = deque()
        self._lookahead: IndexStream | None = None

    def __next__(self) -> Batch:
        ahead = self.data.read_ahead
        # `stream` stays at the batches that were delivered, which is what a checkpoint saves. A copy
        # of it draws those that are requested early.
        if ahead and self._lookahead is None:
            self._lookahead = copy.deepcopy(self.stream)
        stream = self.stream if self._lookahead is None else self._lookahead
        while len(self._requested) <= ahead:
            index = next(stream)
            number = self.number + len(self._requested)
            self._requested.append((index, self._request(number, index)))
        index, read = self._requested.popleft()
        batch = read()
        if self._lookahead is not None:
            next(self.stream)
        self.latest = (self.number, index)
        self.number += 1
        return batch

    def reread(self, number: int, index: Tensor) -> Batch:
        """An earlier batch once more, with the same random transforms."""
        return self._request(number, index)()

    def _request(self, number: int, index: Tensor) -> Read:
        own = index if self.share is None else self.share(index)
        if isinstance(self.data.inputs, Tensor):
            return lambda: self.data.batch(own)
        mixed = np.random.SeedSequence([self.seed, self.rank, number]).generate_state(1)
        return self.data.request(own, int(mixed[0]), training=self.training)

    def state_dict(self) -> dict[str, Any]:
        """What continues the source after the last batch that it delivered."""
        return {**self.stream.state_dict(), "number": self.number}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self.stream.load_state_dict(state)
        self.number = state["number"]
        self._lookahead = None
        self._requested.clear()
