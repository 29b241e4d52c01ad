"""Any map-style Dataset as labelled data: labels in memory, inputs read by index."""

from __future__ import annotations

import copy
import hashlib
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    Subset,
    TensorDataset,
)

from autobalance._validation import InputError, whole
from autobalance.data.array_data import ArrayData, MissingGroups, as_target
from autobalance.data.arrays import as_tensor
from autobalance.data.batches import Read, tensors_in
from autobalance.data.dataset_reader import DenseLabels, ExampleReader, Request, WorkerPool
from autobalance.data.label_matrix import shape_of
from autobalance.data.lazy_inputs import LazyInputs, sampled
from autobalance.objectives import IGNORED

_ATTRIBUTES = ("targets", "labels", "y")
_COLUMNS = ("label", "labels")
_MOST_VALUES = 2**22
"""Most input values of a batch in a pass over all examples: 16 MB in float32."""
_TARGETS = 16
"""Examples whose dense targets are read at once."""


class DatasetInputs(LazyInputs):
    """The examples of a Dataset whose numbers are `rows`, read by a pool that all its parts share.

    Reading by index, and passes over all of them, use the transforms for evaluation. Only training
    batches, which `request` asks for, go through those for training.
    """

    def __init__(self, pool: WorkerPool, rows: np.ndarray) -> None:
        self.pool, self.rows = pool, rows

    @classmethod
    def of(
        cls,
        dataset: Any,
        target: Tensor | None = None,
        *,
        evaluation: Any = None,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        dense: DenseLabels | None = None,
        **workers: Any,
    ) -> DatasetInputs:
        """Those of all examples; see `DatasetData.of`, which has the parameters and errors."""
        n = _length(dataset)
        labels = None if target is None else target.cpu().numpy()
        view = _evaluation_view(dataset, evaluation, n)
        examples = ExampleReader(dataset, view, collate_fn, labels, dense)
        _check_examples(examples, n, told=evaluation is not None)
        return cls(WorkerPool(examples, **workers), np.arange(n))

    def __repr__(self) -> str:
        return f"DatasetInputs({len(self)} of {type(self.pool.examples.training).__name__})"

    @property
    def shape(self) -> torch.Size:
        """Number of examples, and the shape of each where the inputs are one stacked tensor."""
        return torch.Size((len(self), *self.pool.examples.example_shape))

    @property
    def read_ahead(self) -> int:  # type: ignore[override]
        """Number of batches that are worth requesting before they are needed."""
        return self.pool.read_ahead

    def request(self, index: Tensor, seed: int, *, training: bool) -> Read:
        """Begin to read the examples of these numbers ``(m,)``; what is returned waits for them."""
        if (pair := self.request_labelled(index, seed, training=training)) is not None:
            return lambda: pair().inputs
        rows = self.rows[index.cpu().numpy()].tolist()
        return self.pool.request(Request(rows, seed, training))

    def request_labelled(self, index: Tensor, seed: int, *, training: bool) -> Read | None:
        """Same as in `LazyInputs`; there are targets where these are dense."""
        if self.pool.examples.dense is None:
            return None
        rows = self.rows[index.cpu().numpy()].tolist()
        return self.pool.request(Request(rows, seed, training))

    def read_targets(self) -> Tensor:
        """Dense targets of all examples, as for evaluation, in one pass: int16 or int32, -100 if ignored."""
        parts: list[Tensor] = []
        requested: deque[Read] = deque()
        with self.reading():
            for index in torch.arange(len(self)).split(_TARGETS):
                read = self.request_labelled(index, 0, training=False)
                assert read is not None
                requested.append(read)
                while len(requested) > (self.read_ahead if index[-1] + 1 < len(self) else 0):
                    target = requested.popleft()().target
                    kind = torch.int16 if int(target.max()) < 2**15 else torch.int32
                    parts.append(target.to(kind))
        shapes = {tuple(part.shape[1:]) for part in parts}
        if len(shapes) > 1:
            raise InputError(
                f"Held-out targets must have one shape; the examples' are {sorted(shapes)[:3]}. Give "
                "evaluation= transforms that resize or crop both the inputs and the target."
            )
        return torch.cat(parts)

    def split(self, size: int) -> Iterator[Any]:
        """All inputs in order, as for evaluation, at most `size` examples at a time."""
        values = max(1, self.shape[1:].numel())
        return super().split(max(1, min(size, _MOST_VALUES // values)))

    def subset(self, index: Any) -> DatasetInputs:
        """These examples ``(m,)`` of the same Dataset; none is read."""
        return DatasetInputs(self.pool, self.rows[np.asarray(index)])

    def joined(self, other: DatasetInputs) -> DatasetInputs:
        """The examples of both, read with the first one's options."""
        if other.pool is self.pool:
            return DatasetInputs(self.pool, np.concatenate([self.rows, other.rows]))
        first, second = self.pool.examples, other.pool.examples
        targets = [t for t in (first.target, second.target) if t is not None]
        examples = ExampleReader(
            ConcatDataset([first.training, second.training]),
            ConcatDataset([first.evaluation, second.evaluation]),
            first.collate_fn,
            np.concatenate(targets) if len(targets) == 2 else None,
            first.dense,
        )
        pool = WorkerPool(
            examples, self.pool.num_workers, self.pool.pin_memory, self.pool.multiprocessing_context
        )
        more = other.rows + len(first.training)
        return DatasetInputs(pool, np.concatenate([self.rows, more]))

    def digest(self) -> str:
        """Tells these inputs from others: by type, numbers, and some examples' values.

        An example that differs from one reading to the next although its transforms were seeded is
        told by its shapes alone.
        """
        examples = self.pool.examples
        digest = hashlib.sha256(self.rows.tobytes())
        digest.update(type(examples.evaluation).__name__.encode())
        for row in self.rows[sampled(len(self))[::8]].tolist():
            first, again = (examples.read(Request([row], 0, False)) for _ in range(2))
            tensors = tensors_in(first)
            digest.update(str([(tuple(t.shape), t.dtype) for t in tensors]).encode())
            if _same(first, again):
                digest.update(b"".join(t.contiguous().numpy().tobytes() for t in tensors))
        return digest.hexdigest()

    def reading(self) -> AbstractContextManager[None]:
        """Keep workers running inside, and stop them when the outermost such block ends."""
        return self.pool.reading()


class DatasetData(ArrayData):
    """Labelled examples of a map-style Dataset: labels in memory, inputs read batch by batch.

    `search`, `retrain` and others take a Dataset that has its targets as it is; build this where it
    needs options. Everything that takes an `ArrayData` takes it.

    Examples
    --------
    >>> train = CIFAR10(root, transform=augment_and_normalize)  # doctest: +SKIP
    >>> data = DatasetData.of(train, evaluation=normalize, num_workers=4)  # doctest: +SKIP
    >>> loss = search(network, data).loss  # doctest: +SKIP
    """

    @classmethod
    def of(  # pyright: ignore[reportIncompatibleMethodOverride]
        cls,
        dataset: Any,
        target: Any = None,
        *,
        groups: Any = None,
        sample_weight: Any = None,
        evaluation: Any = None,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        num_workers: int = 0,
        pin_memory: bool = False,
        multiprocessing_context: str | None = None,
        num_classes: int | None = None,
        num_groups: int | None = None,
        missing_groups: MissingGroups = "refused",
        dense: bool | None = None,
        ignore_index: int = IGNORED,
    ) -> DatasetData:
        """Find the labels of a Dataset, look at some of its examples, and wrap it.

        Random transforms are seeded for each batch by the run's seed, so that one seed gives one
        result with any number of workers, as long as they draw from the global random states of
        Python, NumPy or torch.

        Parameters
        ----------
        dataset : torch.utils.data.Dataset or datasets.Dataset
            With a length, and items by number: a pair ``(inputs, target)``, of which further entries
            are ignored, or a mapping. In a mapping the label is called label, labels, target, targets
            or y, or is missing; a single further entry is the network's argument, several are its
            keyword arguments. Inputs in float64 become float32.
        target : array-like, str or callable, optional
            Class of each example ``(n,)``, or 0 and 1 of several labels ``(n, k)``; the name of an
            attribute or column that holds them; or a function from the Dataset to them. By default
            `targets`, `labels` or `y`, or the column "label" or "labels", also within `Subset`,
            `ConcatDataset` and `TensorDataset` (its last tensor). Integer labels in the items must agree
            with them.
        groups, sample_weight : array-like, str or callable, optional
            Given as `target` is.
        evaluation : callable or Dataset, optional
            How held-out examples, predictions and features see the data: a transform in place of the
            Dataset's `transform`, in a shallow copy of it, or a second Dataset of the same examples
            in the same order. By default the Dataset as it is, with a warning if it is random.
        collate_fn : callable, optional
            From a list of items to one batch, as a `DataLoader` takes it: for examples of different
            lengths, or to leave out entries.
        num_workers : int
            Processes that read and transform; 0 does it in this one.
        pin_memory : bool
            Whether workers' batches come in pinned memory, for a GPU.
        multiprocessing_context : str, optional
            "fork", "forkserver" or "spawn". By default "fork" where no other Python thread runs, else
            "forkserver", for which the Dataset must be picklable.
        num_classes, num_groups, missing_groups
            As for `ArrayData.of`.
        dense : bool, optional
            Whether an item's target has a class for each pixel, ``(d1, ...)``; by default so where the
            targets found have three dimensions or more. Training takes it from the item, transformed with
            the inputs; those for evaluation are read once, at the start, and held in memory, at two bytes a
            pixel. Classes are counted on these.
        ignore_index : int
            Value of pixels that count for nothing.

        Raises
        ------
        InputError
            If it is an IterableDataset, has no length, example or labels; if an item is no pair or
            mapping, is a PIL image, or cannot be stacked with others; or as for `ArrayData.of`.
        ExampleError
            If the Dataset raises for an example.

        Warns
        -----
        UserWarning
            If held-out examples would be augmented, or transforms cannot be seeded.
        """
        n = _length(dataset)
        found = find_labels(dataset) if target is None and dense is None else None
        if dense or len(shape_of(found)) > 2:
            if target is not None:
                raise InputError(
                    "Dense targets are read from the Dataset's items: leave target out."
                )
            labels, masks = None, DenseLabels(ignore_index, num_classes)
        else:
            masks = None
            labels = as_target(_labels(dataset, "target", target if found is None else found))
            if len(labels) != n:
                raise InputError(
                    f"target has {len(labels)} labels, but the Dataset has {n} examples. Give one for each."
                )
        inputs = DatasetInputs.of(
            dataset,
            labels,
            evaluation=evaluation,
            collate_fn=collate_fn,
            dense=masks,
            num_workers=whole("num_workers", num_workers, least=0),
            pin_memory=pin_memory,
            multiprocessing_context=multiprocessing_context,
        )
        data = ArrayData.of(
            inputs,
            inputs.read_targets() if labels is None else labels,
            groups=_labels(dataset, "groups", groups),
            sample_weight=_labels(dataset, "sample_weight", sample_weight),
            num_classes=num_classes,
            num_groups=num_groups,
            missing_groups=missing_groups,
            dense=labels is None,
        )
        if masks is not None:  # known from here on, so that training's targets are checked by it
            inputs.pool.examples.dense = replace(masks, num_classes=data.num_classes)
        return cls(**vars(data))


def as_data(data: Any, name: str = "data") -> ArrayData:
    """An `ArrayData` as it is, or a Dataset that has its targets as a `DatasetData`.

    Raises
    ------
    InputError
        If it is neither, or as for `DatasetData.of`.
    """
    if isinstance(data, ArrayData):
        return data
    if isinstance(data, DataLoader):
        raise InputError(
            f"{name} must be an ArrayData or a Dataset; got a DataLoader. Give its dataset: "
            "DatasetData.of(loader.dataset, num_workers=..., collate_fn=...)."
        )
    if is_dataset(data):
        return DatasetData.of(data)
    raise InputError(
        f"{name} must be an ArrayData or a Dataset; got {type(data).__name__}. "
        "Build one: ArrayData.of(inputs, target), or DatasetData.of(dataset)."
    )


def as_inputs(inputs: Any) -> Tensor | LazyInputs:
    """What a network predicts for: inputs of data, of a Dataset, lazy inputs, or an array as a tensor."""
    if isinstance(inputs, ArrayData):
        return inputs.inputs
    if isinstance(inputs, (Tensor, LazyInputs)):
        return inputs
    return DatasetInputs.of(inputs) if is_dataset(inputs) else as_tensor("inputs", inputs)


def is_dataset(value: Any) -> bool:
    """Whether this is a torch Dataset, or one of Hugging Face's."""
    return isinstance(value, Dataset) or (
        hasattr(value, "column_names") and callable(getattr(value, "with_format", None))
    )


def _length(dataset: Any) -> int:
    """Number of examples of a map-style Dataset; anything else is refused."""
    kind = type(dataset).__name__
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__getitem__"):
        raise InputError(
            f"{kind} gives its examples only in order, but a held-out part and balanced batches need them "
            "by number. Write a map-style Dataset with __getitem__ and __len__, or load it into one; "
            "LossTuner takes the batches of any loop."
        )
    if isinstance(dataset, dict):
        raise InputError(
            f"{kind} holds several splits ({', '.join(map(str, dataset))}). Give one of them."
        )
    try:
        n = len(dataset)
    except (TypeError, NotImplementedError):
        raise InputError(
            f"The Dataset {kind} has no length. Define __len__, the number of its examples."
        ) from None
    if n == 0:
        raise InputError(f"There is no example: the Dataset {kind} is empty.")
    return n


def _labels(dataset: Any, what: str, given: Any) -> Any:
    """Values that were given as an array, by name or by a function; of the target also by default."""
    if callable(given):
        return given(dataset)
    if not isinstance(given, str) and (given is not None or what != "target"):
        return given
    values = find_labels(dataset, given)
    if values is None:
        sought = f'named "{given}"' if given else "in .targets, .labels, .y or a column label"
        raise InputError(
            f"The Dataset {type(dataset).__name__} has no {what} {sought}. Give {what}= as an array of one "
            f"whole number per example, the name of an attribute or column, or a function of the Dataset, "
            f"such as DatasetData.of(dataset, {what}=lambda d: [y for _, y in d.samples])."
        )
    return values


def find_labels(dataset: Any, name: str | None = None) -> Any:
    """The labels that a Dataset holds, by the name given or the usual ones; None without any."""
    if isinstance(dataset, Subset):
        inner = find_labels(dataset.dataset, name)
        return None if inner is None else torch.as_tensor(np.asarray(inner))[list(dataset.indices)]
    if isinstance(dataset, ConcatDataset):
        parts = [find_labels(part, name) for part in dataset.datasets]
        return None if any(p is None for p in parts) else np.concatenate([*map(np.asarray, parts)])
    tensors = dataset.tensors if isinstance(dataset, TensorDataset) else ()
    if name is None and len(tensors) > 1:
        return tensors[-1]
    for column in (name,) if name else _COLUMNS:
        if column in (getattr(dataset, "column_names", None) or ()):
            return np.asarray(dataset.with_format("numpy")[column][:])  # type: ignore[union-attr]
    for attribute in (name,) if name else _ATTRIBUTES:
        values = getattr(dataset, attribute, None)
        if values is not None and not callable(values):
            return values
    return None


def _evaluation_view(dataset: Any, evaluation: Any, n: int) -> Any:
    """The Dataset through the transforms for evaluation."""
    if evaluation is None:
        return dataset
    if callable(evaluation):
        return _with_transform(dataset, evaluation)
    if _length(evaluation) != n:
        raise InputError(
            f"evaluation must hold the same examples in the same order; it has {len(evaluation)}, the "
            f"Dataset {n}."
        )
    return evaluation


def _with_transform(dataset: Any, transform: Callable[..., Any]) -> Any:
    """A shallow copy of the Dataset, within subsets too, whose `transform` is this one."""
    view = copy.copy(dataset)
    if isinstance(dataset, Subset):
        view.dataset = _with_transform(dataset.dataset, transform)
    elif isinstance(dataset, ConcatDataset):
        view.datasets = [_with_transform(part, transform) for part in dataset.datasets]
    elif hasattr(dataset, "transform"):
        view.transform = transform
        if hasattr(getattr(dataset, "transforms", None), "transform"):  # torchvision's pair of both
            view.transforms = copy.copy(dataset.transforms)
            view.transforms.transform = transform
    else:
        raise InputError(
            f"The Dataset {type(dataset).__name__} has no attribute transform to be replaced. Give "
            "evaluation= as a second Dataset of the same examples, with the transforms for evaluation."
        )
    return view


def _check_examples(examples: ExampleReader, n: int, *, told: bool) -> None:
    """Read a few examples both ways, so that what is wrong is told before any training."""
    rows = sorted({0, n // 3, 2 * n // 3, n - 1})

    def read(seed: int, training: bool) -> Any:
        return examples.read(Request(rows, seed, training))

    if not _same(read(0, True), read(0, True)):
        warnings.warn(
            "The Dataset's examples differ from one reading to the next although Python's, NumPy's and "
            "torch's random states were the same, so its transforms draw from a generator of their own. "
            "Results cannot be repeated. Let them draw from the global state.",
            stacklevel=5,
        )
    elif not told and any(not _same(read(0, False), read(seed, False)) for seed in (1, 2, 3)):
        if examples.dense is not None:
            raise InputError(
                "The Dataset's transforms are random, so that held-out targets would not belong to their "
                "inputs. Give DatasetData.of(dataset, evaluation=...) a Dataset of the same examples with "
                "fixed transforms."
            )
        warnings.warn(
            "The Dataset's transforms are random, so held-out examples are augmented as well, and "
            "objectives measured on augmented examples. Give DatasetData.of(dataset, evaluation=...) the "
            "transform, or a Dataset of the same examples, without augmentation.",
            stacklevel=5,
        )
    if told:
        read(0, False)


def _same(first: Any, second: Any) -> bool:
    pairs = zip(tensors_in(first), tensors_in(second), strict=False)
    return all(a.shape == b.shape and torch.equal(a, b) for a, b in pairs)
