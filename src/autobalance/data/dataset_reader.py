"""Examples of a map-style Dataset, read a batch at a time, in this process or in worker processes."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import random
import re
import sys
import threading
import traceback
import warnings
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate, get_worker_info

from autobalance._validation import InputError, shown
from autobalance.data.batches import map_tensors, tensors_in
from autobalance.objectives import IGNORED

LABEL_KEYS = ("label", "labels", "target", "targets", "y")
_EXTRA_KEYS = ("groups", "sample_weight")
_PREFETCH = 2  # batches that each worker has been asked for


class ExampleError(RuntimeError):
    """An example could not be read.

    Attributes
    ----------
    index : int or None
        Its number in the Dataset; None where a worker died and the batch alone is known.
    """

    def __init__(self, message: str, index: int | None = None) -> None:
        super().__init__(message)
        self.index = index


class Request(NamedTuple):
    """Which examples to read, through which transforms, and the seed of those that are random."""

    rows: Sequence[int]
    seed: int
    training: bool


class Labelled(NamedTuple):
    """Inputs of a batch, and its dense targets, which transforms change alike."""

    inputs: Any
    target: Tensor


@dataclass(frozen=True)
class DenseLabels:
    """How the items' dense targets are read: which pixels are ignored, and how many classes there are."""

    ignore_index: int = IGNORED
    num_classes: int | None = None

    def read(self, labels: Any, rows: Sequence[int]) -> Tensor:
        """The targets of a batch ``(n, d1, ...)`` as int64, refused where they are none."""
        if not isinstance(labels, Tensor) or labels.ndim < 2 or len(labels) != len(rows):
            came = tuple(labels.shape) if isinstance(labels, Tensor) else type(labels).__name__
            raise InputError(
                f"A dense target has one class per pixel; the batch that begins with example {rows[0]} has "
                f"{came}. Let the Dataset return pairs (inputs, target) of tensors, the target (d1, ...)."
            )
        if labels.is_floating_point():
            raise InputError(
                f"A dense target must hold whole numbers, one class per pixel; example {rows[0]} has "
                f"{labels.dtype}. Soft targets are not supported: give their argmax."
            )
        labels = labels.long()
        labels = labels.where(labels != self.ignore_index, IGNORED)
        bad = (labels < 0) & (labels != IGNORED)
        if self.num_classes is not None:
            bad |= labels >= self.num_classes
        if bool(bad.any()):
            first, *place = bad.nonzero()[0].tolist()
            upto = "" if self.num_classes is None else f"{self.num_classes - 1}"
            raise InputError(
                f"{int(bad.sum())} pixels of a batch have no class in 0..{upto}, such as "
                f"{int(labels[bad][0])} at {place} of example {rows[first]}. Where that marks pixels to "
                "ignore, give ignore_index=."
            )
        return labels


class _Failure(NamedTuple):
    """What comes from a worker in place of a batch, since pickling an exception may fail itself."""

    error: ExampleError | InputError
    details: str


@contextmanager
def seeded_transforms(seed: int) -> Iterator[None]:
    """Seed the global random states that transforms draw from, and give them back as they were.

    These are Python's, NumPy's and torch's on the CPU. `torch.manual_seed` would also seed the GPUs.
    """
    states = random.getstate(), np.random.get_state(), torch.random.get_rng_state()
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.random.set_rng_state(states[2])


class ExampleReader(Dataset[Any]):
    """From a `Request` to the inputs of its batch; what a `DataLoader` and its workers call.

    `training` and `evaluation` are the same examples through different transforms. The items' own labels
    must agree with the class indices `target` ``(n,)``, where these are given. With `dense` the items' labels
    are the targets, and come with the inputs.
    """

    def __init__(
        self,
        training: Any,
        evaluation: Any,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        target: np.ndarray | None = None,
        dense: DenseLabels | None = None,
    ) -> None:
        self.training, self.evaluation = training, evaluation
        self.collate_fn, self.target, self.dense = collate_fn, target, dense
        # Each worker's process and the example it is at, shape (w, 2), in memory shared with them: of a
        # worker that dies nothing else remains.
        self.places: Tensor | None = None

    @cached_property
    def example_shape(self) -> torch.Size:
        """Shape of each example's inputs for evaluation, where they are one stacked tensor, else ()."""
        inputs = self.read(Request([0], 0, training=False))
        inputs = inputs.inputs if isinstance(inputs, Labelled) else inputs
        stacked = isinstance(inputs, Tensor) and self.collate_fn is None
        return inputs.shape[1:] if stacked else torch.Size()

    def read(self, request: Request) -> Any:
        """The inputs of these examples: a tensor, a tuple of arguments or a mapping of them.

        With `dense` they are `Labelled`.

        Raises
        ------
        ExampleError
            If the Dataset raises for one of them.
        InputError
            If an item is no pair or mapping, items do not stack, an input is not finite, or an item's
            label is not the one in `target`.
        """
        dataset = self.training if request.training else self.evaluation
        with seeded_transforms(request.seed):
            items = self._items(dataset, request.rows)
            batch = self._collated(items, request.rows)
        labelled = self.target is not None or self.dense is not None
        inputs, labels = _inputs_and_labels(batch, request.rows, labelled=labelled)
        if self.target is not None:
            self._check_labels(labels, request.rows)
        inputs = map_tensors(inputs, lambda t: t.float() if t.dtype == torch.float64 else t)
        for tensor in tensors_in(inputs):
            _check_finite(tensor, request.rows)
        return (
            inputs
            if self.dense is None
            else Labelled(inputs, self.dense.read(labels, request.rows))
        )

    def __getitem__(self, request: Request) -> Any:
        """As `read`, with a failure returned where one would be raised."""
        try:
            return self.read(request)
        except (ExampleError, InputError) as error:
            return _Failure(error, traceback.format_exc())

    def _items(self, dataset: Any, rows: Sequence[int]) -> list[Any]:
        worker = get_worker_info()
        place = (
            np.empty(2) if worker is None or self.places is None else self.places[worker.id].numpy()
        )
        place[:] = os.getpid(), -1
        whole = getattr(dataset, "__getitems__", None)
        if whole is not None:
            with suppress(Exception):  # one by one, to name the example
                return list(whole(list(rows)))
        items = []
        for row in rows:
            place[1] = row
            try:
                items.append(dataset[row])
            except Exception as error:
                raise ExampleError(
                    f"Example {row} of the Dataset could not be read: {type(error).__name__}: {error}. "
                    "Repair or leave out that example; a run with a checkpoint then continues.",
                    row,
                ) from error
        return items

    def _collated(self, items: list[Any], rows: Sequence[int]) -> Any:
        for row, item in zip(rows, items, strict=True):
            self._check_item(item, row)
        try:
            return (self.collate_fn or default_collate)(items)
        except Exception as error:
            remedy = "Resize or pad them to one shape, or give a collate_fn that does."
            if self.collate_fn:
                remedy = "Check your collate_fn with these items."
            reason = f"{type(error).__name__}: {shown(str(error))}"
            raise InputError(f"{_odd_one_out(items, rows)} ({reason}). {remedy}") from error

    def _check_item(self, item: Any, row: int) -> None:
        pair = isinstance(item, (tuple, list)) and len(item) >= 2
        unlabelled = self.target is None and self.dense is None
        alone = isinstance(item, Tensor) and unlabelled  # enough to predict for
        if not (pair or alone or isinstance(item, Mapping)):
            raise InputError(
                "Each item of the Dataset must be a pair (inputs, target) or a mapping such as "
                f'{{"image": ..., "label": ...}}; example {row} is {type(item).__name__}. Wrap the '
                "Dataset in one that returns pairs."
            )
        if alone or self.collate_fn is not None:
            return
        for value in item.values() if isinstance(item, Mapping) else item[:1]:
            if type(value).__module__.startswith("PIL."):
                raise InputError(
                    f"Example {row} is a PIL image, not a tensor. Add ToTensor() at the end of the "
                    "Dataset's transforms."
                )
            if isinstance(value, list):
                raise InputError(
                    f"Example {row} has a list where a tensor is needed. Let the Dataset return tensors "
                    '(a Hugging Face dataset by with_format("torch")), or give a collate_fn.'
                )

    def _check_labels(self, labels: Any, rows: Sequence[int]) -> None:
        """Refuse integer labels that are not those the search counts on; others are not compared."""
        if not isinstance(labels, Tensor) or labels.ndim != 1 or labels.is_floating_point():
            return
        assert self.target is not None
        expected = self.target[list(rows)]
        other = np.flatnonzero(labels.cpu().numpy() != expected)
        if len(other):
            at = int(other[0])
            raise InputError(
                f"Example {rows[at]} has label {int(labels[at])} in its item, but {expected[at]} in the "
                "target. Give the target that the items have (after any target_transform), or items "
                "without a label, such as {'image': image}."
            )


def _odd_one_out(items: list[Any], rows: Sequence[int]) -> str:
    """Names the first item whose tensors have other shapes than the first one's."""
    shapes = [[tuple(tensor.shape) for tensor in tensors_in(item)] for item in items]
    for row, own in zip(rows, shapes, strict=True):
        if own != shapes[0]:
            return (
                f"The examples of a batch do not stack: example {row} has tensors of shapes {own}, "
                f"example {rows[0]} of {shapes[0]}"
            )
    return f"The items of a batch cannot be collated; the first is example {rows[0]}"


def _inputs_and_labels(batch: Any, rows: Sequence[int], *, labelled: bool) -> tuple[Any, Any]:
    """What the network takes of a collated batch, and the labels in it, if there are any."""
    if isinstance(batch, Mapping):
        inputs = {k: v for k, v in batch.items() if k not in (*LABEL_KEYS, *_EXTRA_KEYS)}
        labels = next((batch[key] for key in LABEL_KEYS if key in batch), None)
        if len(inputs) == 1:  # one argument, whatever the network calls it
            [inputs] = inputs.values()
    elif isinstance(batch, (tuple, list)) and len(batch) >= 2:
        inputs, labels = batch[0], batch[1]
    elif isinstance(batch, Tensor) and not labelled:
        inputs, labels = batch, None
    else:
        raise InputError(
            "collate_fn must return a pair (inputs, target) or a mapping; got "
            f"{type(batch).__name__} for a batch that begins with example {rows[0]}."
        )
    entries = inputs.items() if isinstance(inputs, Mapping) else [("inputs", inputs)]
    for name, entry in entries:
        parts = entry if isinstance(entry, (tuple, list)) and entry else [entry]
        if not all(isinstance(part, (Tensor, Mapping)) for part in parts):
            raise InputError(
                f"The network's {name} must be tensors; the batch that begins with example {rows[0]} has "
                f"{type(parts[0]).__name__}. Convert it, or leave it out in a collate_fn (of a Hugging "
                'Face dataset by with_format("torch", columns=[...])).'
            )
    return inputs, labels


def _check_finite(tensor: Tensor, rows: Sequence[int]) -> None:
    # A sum is finite only if its terms are, and costs a fraction of a look at each of them.
    if not tensor.is_floating_point() or bool(torch.isfinite(tensor.sum())):
        return
    bad = (~torch.isfinite(tensor)).nonzero()
    if len(bad):
        row = rows[int(bad[0, 0])] if len(tensor) == len(rows) else rows[0]
        raise InputError(
            f"The inputs of example {row} are not finite (NaN or infinite in float32). Repair or "
            "leave out that example."
        )


class PendingBatch:
    """A batch that was requested; calling it waits for it."""

    def __init__(self, pool: WorkerPool, request: Request) -> None:
        self.pool, self.request = pool, request
        self.value: Any = None
        self.arrived = self.queued = False

    def __call__(self) -> Any:
        """The inputs; raises an `ExampleError` or `InputError` where they cannot be had."""
        while self.queued and not self.arrived:
            self.pool.receive(self.request)
        # Workers that were stopped meanwhile leave the reading to this process.
        value = self.value if self.arrived else self.pool.examples[self.request]
        if isinstance(value, _Failure):
            if value.error.__cause__ is None:  # it comes from a worker
                value.error.add_note(value.details)
            raise value.error
        return value


_Queue = deque[weakref.ref[PendingBatch]]


class WorkerPool:
    """Worker processes that read batches in the order in which they are requested.

    One `DataLoader` with persistent workers serves all readers of a Dataset: training, validation and
    evaluation. Its sampler is the queue of requests. Without workers this process reads.
    """

    def __init__(
        self,
        examples: ExampleReader,
        num_workers: int = 0,
        pin_memory: bool = False,
        multiprocessing_context: str | None = None,
    ) -> None:
        self.examples, self.num_workers = examples, num_workers
        self.pin_memory = pin_memory
        self.multiprocessing_context = multiprocessing_context
        self._waiting: _Queue = deque()
        self._sent: _Queue = deque()
        self._loader: DataLoader[Any] | None = None
        self._batches: Iterator[Any] | None = None
        self._users = 0

    @property
    def read_ahead(self) -> int:
        """Number of batches to request early: as many as the workers hold, and one that waits."""
        return self.num_workers * _PREFETCH + 1 if self.num_workers else 0

    def request(self, request: Request) -> PendingBatch:
        """Ask for a batch; one that nobody holds on to is not kept when it arrives."""
        pending = PendingBatch(self, request)
        if self.num_workers:
            self._start()
            pending.queued = True
            self._waiting.append(weakref.ref(pending))
        return pending

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Keep the workers inside, and stop them when the outermost such block ends."""
        self._users += 1
        try:
            yield
        except RuntimeError as error:
            # torch raises it from a signal's handler, wherever this process is at that moment.
            if isinstance(error, ExampleError) or "DataLoader worker" not in str(error):
                raise
            raise self._death(error) from error
        finally:
            self._users -= 1
            if self._users == 0:
                self.stop()

    def receive(self, awaited: Request) -> None:
        """Take the next batch from the workers and give it to whoever asked for it."""
        assert self._loader is not None
        try:
            value = None if self._batches is None else next(self._batches, None)
            if value is None:  # the queue was empty for a while; the workers are still there
                self._batches = iter(self._loader)
                value = next(self._batches)
        except (RuntimeError, OSError, EOFError) as error:
            self.stop()
            raise self._death(error, awaited) from error
        except BaseException:  # Ctrl-C
            self.stop()
            raise
        pending = self._sent.popleft()()
        if pending is not None:
            pending.value, pending.arrived = value, True

    def _death(self, error: Exception, awaited: Request | None = None) -> ExampleError:
        """The error for a worker that died, with the example that it was at where that is known."""
        process = re.search(r"pid\D*(\d+)", str(error))
        places = {} if self.examples.places is None else dict(self.examples.places.tolist())
        row = places.get(int(process[1]), -1) if process else -1
        which = f" {row}" if row >= 0 else f"s {shown(awaited.rows)}" if awaited else "s"
        return ExampleError(
            f"A worker process died while it read example{which}: {error} Often memory ran out, or a "
            "library crashed. Give fewer workers, or num_workers=0 to see the error itself; a run "
            "with a checkpoint then continues.",
            row if row >= 0 else None,
        )

    def stop(self) -> None:
        """Stop the workers; what they have not delivered is read in this process if it is needed."""
        # Without this call they stop when the iterator is collected, which a traceback may put off.
        shutdown = getattr(self._batches, "_shutdown_workers", None)
        self._batches = self._loader = None
        for queue in (self._waiting, self._sent):
            for pending in filter(None, (reference() for reference in queue)):
                pending.queued = False
            queue.clear()
        if shutdown is not None:
            shutdown()

    def _start(self) -> None:
        if self._loader is not None:
            return
        self.examples.places = torch.zeros(self.num_workers, 2, dtype=torch.int64).share_memory_()
        self._loader = DataLoader(
            self.examples,
            batch_size=None,
            sampler=_RequestQueue(self._waiting, self._sent),  # type: ignore[arg-type]
            num_workers=self.num_workers,
            collate_fn=_unchanged,
            pin_memory=self.pin_memory and torch.cuda.is_available(),
            multiprocessing_context=self.multiprocessing_context or start_method(self.examples),
            prefetch_factor=_PREFETCH,
            worker_init_fn=_share_by_name,
            persistent_workers=True,
            generator=torch.Generator(),  # else the loader draws its seed from the global one
        )

    def __reduce__(self) -> tuple[Any, ...]:
        """Only the settings: running workers stay with the process that started them."""
        options = (self.num_workers, self.pin_memory, self.multiprocessing_context)
        return type(self), (self.examples, *options)


class _RequestQueue:
    """Hands waiting requests to the loader, which asks again after each batch that it delivers."""

    def __init__(self, waiting: _Queue, sent: _Queue) -> None:
        self.waiting, self.sent = waiting, sent

    def __iter__(self) -> Iterator[Request]:
        return self

    def __next__(self) -> Request:
        while self.waiting:
            reference = self.waiting.popleft()
            pending = reference()
            if pending is not None:
                self.sent.append(reference)
                return pending.request
        raise StopIteration


def _share_by_name(worker: int) -> None:
    """Let this worker pass batches on by the name of shared memory.

    By default torch hands over a file descriptor, for which the main process waits until a thread of the
    busy worker answers.
    """
    torch.multiprocessing.set_sharing_strategy("file_system")


def _unchanged(batch: Any) -> Any:
    return batch


def start_method(examples: ExampleReader) -> str | None:
    """How to start workers: by fork where no other Python thread runs, else by a fresh process.

    A fork copies locks that other threads may hold at that moment, so that the worker can hang. A fresh
    process needs a Dataset that can be pickled.

    Warns
    -----
    UserWarning
        If other threads run and the Dataset cannot be pickled, so that a fork it has to be.
    """
    if "fork" not in multiprocessing.get_all_start_methods():
        return None
    # tqdm's monitor only sleeps and redraws bars, which workers do not.
    threads = sum(thread.name != "tqdm_monitor" for thread in threading.enumerate())
    if threads == 1:
        return "fork"
    if hasattr(sys.modules["__main__"], "__file__"):  # a notebook's classes cannot be imported
        with suppress(Exception):
            pickle.dumps(examples)
            # Imported once, by the server, in place of once by each worker, which takes seconds.
            context = multiprocessing.get_context("forkserver")
            context.set_forkserver_preload(["__main__", "autobalance.data"])
            return "forkserver"
    warnings.warn(
        f"Workers are forked while {threads} Python threads run, because the Dataset cannot be sent to a "
        "fresh process (it is defined in a notebook, or cannot be pickled). If they hang, define it in a "
        "module without lambdas, or give num_workers=0.",
        stacklevel=2,
    )
    return "fork"
