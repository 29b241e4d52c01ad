"""Labelled examples, batches of them, and the streams that draw batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from autobalance._validation import InputError, one_of, same_length, shown, whole
from autobalance.data.splits import members_by_cell
from autobalance.data.stored import StoredRows

MissingGroups = Literal["refused", "unknown"]
UNKNOWN = -1
"""Index of a group that is not known."""


@dataclass(frozen=True)
class Batch:
    """What a loss needs of some examples.

    Attributes
    ----------
    inputs : Any
        What the network takes: a tensor ``(n, ...)``, as in all of the library's own data, or a
        mapping of keyword arguments.
    target : Tensor
        Class indices, shape ``(n,)``, int64.
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
    found = None
    if is_dataclass(batch) and not isinstance(batch, type):
        batch = {f.name: getattr(batch, f.name) for f in fields(batch)}
    if isinstance(batch, Mapping):
        extra = batch.get("groups"), batch.get("sample_weight")
        others = batch.keys() - {"labels", "groups", "sample_weight"}
        if {"inputs", "target"} <= batch.keys():
            found = Batch(batch["inputs"], batch["target"], *extra)
        elif "labels" in batch and others:
            found = Batch({k: batch[k] for k in batch if k in others}, batch["labels"], *extra)
    elif isinstance(batch, (tuple, list)) and 2 <= len(batch) <= 4:
        found = Batch(*batch)
    if found is None or not isinstance(found.target, Tensor):
        raise InputError(
            "A batch must be (inputs, target[, groups[, sample_weight]]) with a tensor as target, a "
            'mapping or dataclass with these names, a mapping with "labels", or a Batch; got '
            f"{type(batch).__name__}. For others give an adapter: LossTuner(..., adapter=to_batch)."
        )
    return found


def as_batches(batches: Any, adapter: Callable[[Any], Batch] = as_batch) -> list[Batch]:
    """One batch, or a list of several; a list that holds a tensor is one batch."""
    if isinstance(batches, list) and batches and not any(isinstance(b, Tensor) for b in batches):
        return [adapter(batch) for batch in batches]
    return [adapter(batches)]


@dataclass(frozen=True)
class ArrayData:
    """Labelled examples, held in memory, or their inputs in files.

    Build it with `ArrayData.of`, which checks and converts.

    Attributes
    ----------
    inputs : Tensor or StoredRows
        Shape ``(n, ...)``. Those in files are read batch by batch, and stay there on any device.
    target : Tensor
        Class indices in ``0..num_classes-1``, shape ``(n,)``.
    num_classes : int
        Number of classes k.
    groups : Tensor or None
        Group indices in ``0..num_groups-1``, or -1 where a group is not known, shape ``(n,)``.
    num_groups : int or None
        Number of groups g.
    sample_weight : Tensor or None
        Non-negative weights, shape ``(n,)``.
    """

    inputs: Tensor | StoredRows
    target: Tensor
    num_classes: int
    groups: Tensor | None = None
    num_groups: int | None = None
    sample_weight: Tensor | None = None

    @classmethod
    def of(
        cls,
        inputs: Any,
        target: Any,
        *,
        groups: Any = None,
        sample_weight: Any = None,
        num_classes: int | None = None,
        num_groups: int | None = None,
        missing_groups: MissingGroups = "refused",
    ) -> ArrayData:
        """Check arrays or tensors and hold them as tensors; `StoredRows` are taken as they are.

        With ``missing_groups="unknown"`` an example's group may be -1, not known. Such examples
        train the network; no objective counts them.

        Raises
        ------
        InputError
            If lengths differ, there is no example, an input is not finite, class or group indices
            are not whole numbers from 0, or a weight is negative.
        """
        same_length(inputs=inputs, target=target, groups=groups, sample_weight=sample_weight)
        stored = isinstance(inputs, StoredRows)
        x = inputs if stored else finite("inputs", as_tensor("inputs", inputs))
        if len(x) == 0:
            raise InputError("There is no example: the inputs are empty.")
        y = indices("target", target)
        one_of("missing_groups", missing_groups, ("refused", "unknown"))
        least = UNKNOWN if missing_groups == "unknown" else 0
        g = None if groups is None else indices("groups", groups, least)
        w = None
        if sample_weight is not None:
            w = finite("sample_weight", as_tensor("sample_weight", sample_weight).float())
            if w.ndim != 1 or bool((w < 0).any()) or float(w.sum()) == 0.0:
                raise InputError(
                    "sample_weight must be one-dimensional, never negative and not all zero."
                )
        classes = int(y.max()) + 1
        if num_classes is not None:
            classes = whole("num_classes", num_classes, least=1)
        if int(y.max()) >= classes:
            raise InputError(
                f"target has class {int(y.max())}, but there are only {classes} classes."
            )
        if g is not None:
            if int(g.max()) == UNKNOWN:
                raise InputError("No example's group is known. Leave groups out.")
            found = int(g.max()) + 1
            num_groups = found if num_groups is None else whole("num_groups", num_groups, least=1)
            if int(g.max()) >= num_groups:
                raise InputError(
                    f"groups has {int(g.max())}, but there are only {num_groups} groups."
                )
        return cls(x, y, classes, g, num_groups, w)

    def __len__(self) -> int:
        return len(self.target)

    @property
    def unknown(self) -> int:
        """Examples whose group is not known, where others' are."""
        return 0 if self.groups is None else int((self.groups == UNKNOWN).sum())

    def with_known_groups(self) -> ArrayData:
        """The examples whose group is known; all where there are no groups."""
        if self.groups is None or not self.unknown:
            return self
        return self.subset(torch.nonzero(self.groups != UNKNOWN).squeeze(1))

    def counts(self) -> np.ndarray:
        """Examples per class ``(k,)``, or per known group and class ``(g, k)``."""
        cells = self.cells()
        cells = cells[cells >= 0]
        cells = torch.bincount(cells, minlength=(self.num_groups or 1) * self.num_classes)
        table = cells.cpu().numpy()
        return table if self.groups is None else table.reshape(-1, self.num_classes)

    def cells(self) -> Tensor:
        """Class, or ``group * k + class``, of each example; negative where the group is unknown."""
        if self.groups is None:
            return self.target
        return self.groups * self.num_classes + self.target

    def batch(self, index: Tensor) -> Batch:
        """The examples of these numbers ``(m,)``, from 0, where the labels lie.

        Numbers for inputs in files lie best on the CPU.
        """
        device = self.target.device
        part = self._labels(moved(index, device))
        if isinstance(self.inputs, StoredRows):
            return Batch(moved(self.inputs[index], device), **part)
        # Two to eight times as fast as by brackets on a CPU.
        return Batch(self.inputs.index_select(0, moved(index, device)), **part)

    def subset(self, index: Any) -> ArrayData:
        """The examples of these numbers, a tensor or an array ``(m,)``."""
        index = torch.as_tensor(index)
        if isinstance(self.inputs, StoredRows):
            return replace(self, inputs=self.inputs.subset(index.cpu()), **self._labels(index))
        return replace(self, inputs=self.inputs[index], **self._labels(index))

    def _labels(self, index: Tensor) -> dict[str, Any]:
        return {
            name: None if value is None else value[index]
            for name in ("target", "groups", "sample_weight")
            for value in [getattr(self, name)]
        }

    def in_memory(self) -> Tensor:
        """The inputs where they are a tensor.

        Raises
        ------
        InputError
            If they are in files.
        """
        if isinstance(self.inputs, StoredRows):
            raise InputError(
                f"This works on inputs in memory, but these {len(self)} are in files. Extract features "
                "first, extract_features(backbone, data.inputs), or load them."
            )
        return self.inputs

    def to(self, device: torch.device) -> ArrayData:
        moved = {
            f.name: value.to(device)
            for f in fields(self)
            if isinstance(value := getattr(self, f.name), Tensor)
        }
        return replace(self, **moved)


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device. One for a GPU goes by pinned memory, so that nothing waits for it."""
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def concatenated(first: ArrayData, second: ArrayData) -> ArrayData:
    """Both sets' examples as one; classes and groups must be numbered alike.

    Where the first has no groups, those of the second are left out.
    """
    if first.groups is None:
        second = replace(second, groups=None, num_groups=None)

    def joined(a: Tensor | None, b: Tensor | None) -> Tensor | None:
        if a is None and b is None:
            return None
        if a is None or b is None:
            raise InputError(
                "Training and validation data must both have weights, or neither; and where training "
                "data has groups, validation data needs them too."
            )
        return torch.cat([a, b])

    if first.inputs.shape[1:] != second.inputs.shape[1:]:
        raise InputError(
            "Training and validation inputs must have the same shape per example; got "
            f"{tuple(first.inputs.shape[1:])} and {tuple(second.inputs.shape[1:])}."
        )
    for name, indices, known in (
        ("class", second.target, first.num_classes),
        ("group", second.groups, first.num_groups),
    ):
        if indices is not None and known is not None and int(indices.max()) >= known:
            raise InputError(
                f"Validation data has {name} {int(indices.max())}, but training data is numbered "
                f"0 to {known - 1}. Number both alike."
            )
    return replace(
        first,
        inputs=_inputs_of_both(first.inputs, second.inputs),
        target=torch.cat([first.target, second.target]),
        groups=joined(first.groups, second.groups),
        sample_weight=joined(first.sample_weight, second.sample_weight),
    )


def _inputs_of_both(first: Tensor | StoredRows, second: Tensor | StoredRows) -> Tensor | StoredRows:
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        return torch.cat([first, second])
    if isinstance(first, Tensor) or isinstance(second, Tensor):
        raise InputError(
            "Training and validation inputs must both be in memory, or both in files. Store both."
        )
    return first.joined(second)


class ShuffledBatches(Iterator[Tensor]):
    """Endless stream of index batches, each of exactly ``min(size, examples)``.

    One permutation follows the other and a batch may span two of them, so that no batch is
    short: a short last batch would be noisy, and of a single example unfit for BatchNorm. On a GPU
    a permutation is sent there as a whole.
    """

    def __init__(
        self,
        examples: int,
        size: int,
        generator: torch.Generator,
        device: torch.device | str = "cpu",
    ) -> None:
        self.examples, self.size, self.generator = examples, min(size, examples), generator
        self.left = torch.empty(0, dtype=torch.int64, device=device)

    def __next__(self) -> Tensor:
        while len(self.left) < self.size:
            more = torch.randperm(self.examples, generator=self.generator)
            self.left = torch.cat([self.left, moved(more, self.left.device)])
        batch, self.left = self.left[: self.size], self.left[self.size :]
        return batch

    def state_dict(self) -> dict[str, Any]:
        return {"generator": self.generator.get_state(), "left": self.left}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.generator.set_state(state["generator"])
        self.left = state["left"].to(self.left.device)


class ResampledBatches(Iterator[Tensor]):
    """Endless stream of index batches of `size`, every cell as likely, with replacement.

    Class-balanced sampling, as over-sampling the rare classes does: for training. Each place of a
    batch draws a cell, then a member of it.
    """

    def __init__(self, cells: Tensor, size: int, generator: torch.Generator) -> None:
        _, inverse, counts = torch.unique(cells.cpu(), return_inverse=True, return_counts=True)
        self.weights, self.size, self.generator = 1.0 / counts[inverse].double(), size, generator

    def __next__(self) -> Tensor:
        return torch.multinomial(self.weights, self.size, True, generator=self.generator)

    def state_dict(self) -> dict[str, Any]:
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.generator.set_state(state["generator"])


class BalancedBatches(Iterator[Tensor]):
    """Endless stream of index batches of at most `size`, drawn evenly over the cells.

    Where everything fits into one batch, that is every batch. Otherwise each cell gives the same
    number (a small one all it has), each cell in its own shuffled order; where there are more
    cells than places, cells take turns.
    """

    def __init__(self, cells: Tensor, size: int, generator: torch.Generator) -> None:
        self.everything = torch.arange(len(cells)) if len(cells) <= size else None
        self.generator = generator
        self.members = members_by_cell(cells)
        each = max(1, size // len(self.members))
        self.draws = [ShuffledBatches(len(m), each, generator) for m in self.members]
        self.turns = ShuffledBatches(len(self.members), size, generator)

    def __next__(self) -> Tensor:
        if self.everything is not None:
            return self.everything
        chosen = next(self.turns).tolist()
        return torch.cat([self.members[i][next(self.draws[i])] for i in chosen])

    def state_dict(self) -> dict[str, Any]:
        left = [stream.left for stream in (*self.draws, self.turns)]
        return {"generator": self.generator.get_state(), "left": left}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.generator.set_state(state["generator"])
        for stream, left in zip((*self.draws, self.turns), state["left"], strict=True):
            stream.left = left


def _writable(values: Any) -> Any:
    """A copy of an array that must not be written to, as pandas gives them; torch would warn."""
    if isinstance(values, np.ndarray) and not values.flags.writeable:
        return values.copy()
    return values


def as_tensor(name: str, values: Any) -> Tensor:
    """The values as a tensor, refused where they are no array of real numbers."""
    try:
        tensor = torch.as_tensor(_writable(values))
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{name} must be an array of numbers: {shown(str(error))}.") from None
    if tensor.is_complex() or tensor.ndim == 0:
        raise InputError(
            f"{name} must be an array of real numbers, one entry per example; got {tensor.dtype} of "
            f"shape {tuple(tensor.shape)}."
        )
    return tensor


def finite(name: str, values: Tensor) -> Tensor:
    """The values, float64 as float32; refused where one is not finite then."""
    if values.dtype == torch.float64:
        values = values.float()  # first, or a number beyond float32's range would pass for finite
    if values.is_floating_point() and not bool(torch.isfinite(values).all()):
        bad = int((~torch.isfinite(values)).sum())
        raise InputError(
            f"{name} must be finite in float32; found {bad} NaN or infinite value{'s' * (bad > 1)}. "
            "Fill or drop them first."
        )
    return values


def indices(name: str, values: Any, least: int = 0, count: int | None = None) -> Tensor:
    """The values as indices from `least` to below `count`, int64, refused where they are none."""
    remedy = "Number the labels first, with numpy.unique(return_inverse=True)."
    try:
        tensor = torch.as_tensor(_writable(values))
    except (TypeError, ValueError, RuntimeError):  # strings and other objects
        raise InputError(f"{name} must hold whole numbers from 0, shape (n,). {remedy}") from None
    if tensor.ndim != 1 or tensor.is_floating_point() or tensor.is_complex():
        raise InputError(
            f"{name} must hold whole numbers from 0, shape (n,); got {tensor.dtype} of shape "
            f"{tuple(tensor.shape)}. {remedy}"
        )
    tensor = tensor.long()  # first, for torch knows no extremes of most unsigned kinds
    if not len(tensor):
        return tensor
    lowest, highest = torch.stack(torch.aminmax(tensor)).tolist()
    if count is not None and not least <= lowest <= highest < count:
        raise InputError(
            f"{name} must lie in {least}..{count - 1}; got numbers from {lowest} to {highest}."
        )
    if lowest < least:
        hint = ""
        if name == "groups" and lowest == UNKNOWN:
            hint = ' Where -1 is a group that is not known, give missing_groups="unknown".'
        raise InputError(f"{name} must be numbered from 0; its smallest is {lowest}.{hint}")
    return tensor
