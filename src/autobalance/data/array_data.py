"""Labelled examples: labels in memory, inputs in memory or read when they are needed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, Self

import numpy as np
import torch
from torch import Tensor

from autobalance._validation import InputError, one_of, same_length, whole
from autobalance.data.arrays import UNKNOWN, as_tensor, finite, indices
from autobalance.data.batches import Batch, Read, moved
from autobalance.data.dense import (
    check_dense,
    count_by_image,
    dense_indices,
    labelled_images,
    rarest_present,
)
from autobalance.data.label_matrix import as_label_matrix, labelled_entries, rarest_labels, shape_of
from autobalance.data.lazy_inputs import LazyInputs
from autobalance.objectives import IGNORED, per_pixel
from autobalance.records import effective_counts

MissingGroups = Literal["refused", "unknown"]
_LABELS = ("target", "groups", "sample_weight")


@dataclass(frozen=True)
class ArrayData:
    """Labelled examples: labels in memory, and inputs in memory or read when they are needed.

    Build it with `ArrayData.of`, which checks and converts, or from a Dataset with `DatasetData.of`.

    Attributes
    ----------
    inputs : Tensor or LazyInputs
        Shape ``(n, ...)``. Lazy inputs are read batch by batch, and stay where they are on any device.
    target : Tensor
        Class indices in ``0..num_classes-1``, shape ``(n,)``; dense ones, of each pixel, ``(n, d1, ...)``
        in int16, with -100 for a pixel that counts for nothing; of several labels a matrix ``(n, k)`` of
        0, 1 and -1 where not labelled, int8.
    num_classes : int
        Number of classes or labels k.
    groups : Tensor or None
        Group indices in ``0..num_groups-1``, or -1 where a group is not known, shape ``(n,)``.
    num_groups : int or None
        Number of groups g.
    sample_weight : Tensor or None
        Weights above 0, shape ``(n,)``. A whole weight stands for a row that is repeated so often.
    """

    inputs: Tensor | LazyInputs
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
        dense: bool | None = None,
        ignore_index: int = IGNORED,
    ) -> ArrayData:
        """Check arrays or tensors and hold them as tensors; `LazyInputs` are taken as they are.

        A target of three dimensions or more has a class for each pixel, as in segmentation; one of two is
        of several labels, see `as_label_matrix`, and with ``dense=True`` a class for each element,
        ``(n, d1)``. A pixel of `ignore_index` counts for nothing, and an image of no other pixels is left
        out, with a warning. Groups and weights are of the images; with several labels there are no groups.

        With ``missing_groups="unknown"`` an example's group may be -1, not known. Such examples
        train the network; no objective counts them. An example of weight 0 is left out, as if it had
        not been given; the number of classes is still that of all labels.

        Raises
        ------
        InputError
            If lengths differ, there is no example, an input is not finite, class or group indices
            are not whole numbers from 0, or a weight is negative.
        """
        same_length(inputs=inputs, target=target, groups=groups, sample_weight=sample_weight)
        x = (
            inputs
            if isinstance(inputs, LazyInputs)
            else finite("inputs", as_tensor("inputs", inputs))
        )
        if len(x) == 0:
            raise InputError("There is no example: the inputs are empty.")
        y = as_target(target, num_classes, dense=dense, ignore_index=ignore_index)
        several = _is_label_matrix(y)
        if several and groups is not None:
            raise InputError("Data of several labels takes no groups. Leave groups out.")
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
        k = y.shape[1] if several else _check_count("target", "classes", y, num_classes)
        if g is not None:
            if int(g.max()) == UNKNOWN:
                raise InputError("No example's group is known. Leave groups out.")
            num_groups = _check_count("groups", "groups", g, num_groups)
        data = cls(x, y, k, g, num_groups, w)
        if w is not None and not bool((w > 0).all()):
            data = data.subset(torch.nonzero(w).squeeze(1))
        if not data.dense:
            return data
        labelled = labelled_images(data.target)
        return data if len(labelled) == len(data) else data.subset(labelled)

    def __len__(self) -> int:
        return len(self.target)

    @property
    def dense(self) -> bool:
        """Whether the target has a class for each pixel."""
        return self.target.ndim > 1 and not self.has_labels

    @property
    def has_labels(self) -> bool:
        """Whether an example has several labels, each 0 or 1, in place of one class."""
        return _is_label_matrix(self.target)

    def pixels(self) -> ArrayData:
        """The labels of all pixels that count, as those of so many examples, in the order of `rows_of`.

        Without inputs, for evaluation. Where the target is not dense these are the data themselves.
        """
        if not self.dense:
            return self
        groups, weight = (
            None if value is None else self.rows_of(per_pixel(value, self.target))
            for value in (self.groups, self.sample_weight)
        )
        target = self.rows_of(self.target).long()
        return ArrayData(torch.empty(0), target, self.num_classes, groups, self.num_groups, weight)

    def rows_of(self, values: Tensor, first: int = 0) -> Tensor:
        """Of values of pixels ``(m, d1, ...)`` those that count, flat; of examples all, as they are.

        Of logits ``(m, k, d1, ...)`` these are rows ``(pixels, k)``. `first` is the number of the image
        that the values begin with.
        """
        if not self.dense:
            return values
        kept = (self.target[first : first + len(values)] != IGNORED).to(values.device)
        return (values if values.ndim == kept.ndim else values.movedim(1, -1))[kept]

    @property
    def unknown(self) -> int:
        """Examples whose group is not known, where others' are."""
        return 0 if self.groups is None else int((self.groups == UNKNOWN).sum())

    def with_known_groups(self) -> Self:
        """The examples whose group is known; all where there are no groups."""
        if self.groups is None or not self.unknown:
            return self
        return self.subset(torch.nonzero(self.groups != UNKNOWN).squeeze(1))

    def without_groups(self) -> Self:
        """The same examples, with their groups left out."""
        return replace(self, groups=None, num_groups=None)

    def counts(self) -> np.ndarray:
        """Examples per class ``(k,)``, or per known group and class ``(g, k)``; see `masses`.

        Of dense targets they are pixels; of several labels negatives and positives of each, ``(2, k)``.
        """
        return self._sums_by_cell(None)

    def masses(self) -> np.ndarray:
        """Sums of the `row_weights`, in the shape of `counts`; without weights the `counts`.

        Class priors, and whatever starts from them, are shares of these.
        """
        return self._sums_by_cell(None if self.sample_weight is None else self._cell_weights())

    def effective_counts(self) -> np.ndarray:
        """Kish's effective number of examples of each cell, in the shape of `counts`.

        A weight does not make one example into several observations; see
        `autobalance.records.error_table.effective_counts`. Without weights these are the `counts`.

        Of dense targets it is that of the images in which there is a pixel of the cell: an image's pixels
        are alike, and are not so many observations.
        """
        if self.dense:
            image, of_class = count_by_image(self.target, self.num_classes).nonzero(as_tuple=True)
            kinds = None if self.groups is None else self.groups[image]
            weight = None if self.sample_weight is None else self.sample_weight[image]
            pairs = ArrayData(
                torch.empty(0), of_class, self.num_classes, kinds, self.num_groups, weight
            )
            return pairs.effective_counts()
        counts = self.counts()
        if self.sample_weight is None:
            return counts
        cells, weight = self.cells().cpu().numpy(), self._cell_weights().cpu().numpy()
        return effective_counts(cells, weight, counts.size).reshape(counts.shape)

    def row_weights(self) -> Tensor:
        """What each example counts for in units of rows, shape ``(n,)``, float64; 1 without weights.

        Weights that sum to less than the number of examples, such as shares that sum to 1, are scaled
        up to it: a prior worth one example would otherwise outweigh all of them.
        """
        if self.sample_weight is None:
            return torch.ones(len(self), dtype=torch.float64, device=self.target.device)
        weight = self.sample_weight.double()
        return weight * max(1.0, len(weight) / float(weight.sum()))

    def _sums_by_cell(self, values: Tensor | None) -> np.ndarray:
        """Sums of values ``(n,)``, or numbers of examples, over each class or known cell."""
        if self.dense:
            by_image = count_by_image(self.target, self.num_classes)
            by_image = by_image if values is None else by_image * values[:, None]
            rows = self.groups
            if rows is None:
                rows = torch.zeros(len(self), dtype=torch.int64, device=self.target.device)
            known = rows >= 0
            empty = by_image.new_zeros(self.num_groups or 1, self.num_classes)
            sums = empty.index_add(0, rows[known], by_image[known]).cpu().numpy()
            return sums[0] if self.groups is None else sums
        cells = self.cells()
        known = cells >= 0
        values = None if values is None else values[known]
        rows = 2 if self.has_labels else self.num_groups or 1
        table = torch.bincount(cells[known], values, minlength=rows * self.num_classes)
        table = table.cpu().numpy()
        by_row = self.groups is not None or self.has_labels
        return table.reshape(-1, self.num_classes) if by_row else table

    def _cell_weights(self) -> Tensor:
        """The `row_weights` of each of the `cells`."""
        weight = self.row_weights()
        return weight[labelled_entries(self.target)[0]] if self.has_labels else weight

    def cells(self) -> Tensor:
        """Class, or ``group * k + class``, of each example; negative where the group is unknown.

        An image with a dense target has the class of its rarest pixels, see `dense.rarest_present`:
        splits hold out whole images. Of several labels ``sign * k + label`` of each labelled entry, row
        after row.
        """
        if self.has_labels:
            return labelled_entries(self.target)[1]
        target = self.target
        if self.dense:
            target = rarest_present(count_by_image(target, self.num_classes))
        if self.groups is None:
            return target
        return self.groups * self.num_classes + target

    def cell_sample_weight(self) -> Tensor | None:
        """The `sample_weight` of each of the `cells`; None without weights."""
        weight = self.sample_weight
        if weight is None or not self.has_labels:
            return weight
        return weight[labelled_entries(self.target)[0]]

    def strata(self) -> Tensor:
        """What examples are split and drawn by ``(n,)``: the `cells`, or of several labels the rarest one."""
        return rarest_labels(self.target) if self.has_labels else self.cells()

    @property
    def read_ahead(self) -> int:
        """Number of batches that are worth requesting before they are needed; 0 in memory."""
        return 0 if isinstance(self.inputs, Tensor) else self.inputs.read_ahead

    def batch(self, index: Tensor) -> Batch:
        """The examples of these numbers ``(m,)``, from 0, as for evaluation, where the labels lie.

        Numbers for lazy inputs lie best on the CPU.
        """
        if not isinstance(self.inputs, Tensor):
            return self.request(index, 0)()
        index = moved(index, self.target.device)
        # Two to eight times as fast as by brackets on a CPU.
        return Batch(self.inputs.index_select(0, index), **self._batch_labels(index))

    def request(self, index: Tensor, seed: int, *, training: bool = False) -> Read:
        """Begin to read the batch of these numbers ``(m,)``; the function that is returned waits for it.

        Random transforms of a Dataset are seeded by `seed`; `training` says whether the examples pass
        through those for training or those for evaluation.
        """
        if isinstance(self.inputs, Tensor):
            return lambda: self.batch(index)
        device = self.target.device
        pair = self.inputs.request_labelled(index, seed, training=training) if self.dense else None
        if pair is not None:
            return lambda: self._labelled_batch(moved(pair(), device), moved(index, device))
        read = self.inputs.request(index, seed, training=training)
        return lambda: Batch(moved(read(), device), **self._batch_labels(moved(index, device)))

    def subset(self, index: Any) -> Self:
        """The examples of these numbers, a tensor or an array ``(m,)``."""
        index = torch.as_tensor(index)
        inputs = (
            self.inputs[index]
            if isinstance(self.inputs, Tensor)
            else self.inputs.subset(index.cpu())
        )
        return replace(self, inputs=inputs, **self._labels(index))

    def _labels(self, index: Tensor) -> dict[str, Any]:
        return {
            name: None if value is None else value[index]
            for name in _LABELS
            for value in [getattr(self, name)]
        }

    def _batch_labels(self, index: Tensor) -> dict[str, Any]:
        labels = self._labels(index)
        return {**labels, "target": labels["target"].long()}

    def _labelled_batch(self, pair: Any, index: Tensor) -> Batch:
        """A batch whose targets were read, and transformed, with its inputs."""
        inputs, target = pair
        return Batch(inputs, **{**self._batch_labels(index), "target": target})

    def in_memory(self) -> Tensor:
        """The inputs where they are a tensor.

        Raises
        ------
        InputError
            If they are in files or behind a Dataset.
        """
        if not isinstance(self.inputs, Tensor):
            raise InputError(
                f"This works on inputs in memory, but these {len(self)} are in files or behind a "
                "Dataset. Extract features first, extract_features(backbone, data.inputs), or load them."
            )
        return self.inputs

    def to(self, device: torch.device) -> Self:
        """The same data with labels, and inputs in memory, on a device."""
        tensors = {
            f.name: value.to(device)
            for f in fields(self)
            if isinstance(value := getattr(self, f.name), Tensor)
        }
        return replace(self, **tensors)


def as_target(
    values: Any,
    num_labels: int | None = None,
    *,
    dense: bool | None = None,
    ignore_index: int = IGNORED,
) -> Tensor:
    """Class indices, ``(n,)`` or of pixels, or of several columns `as_label_matrix`; see `ArrayData.of`."""
    shape = shape_of(values)
    if dense or (dense is None and len(shape) > 2):
        return dense_indices(values, ignore_index)
    if len(shape) == 2 and shape[1] > 1:
        return as_label_matrix("target", values, num_labels)
    return indices("target", values)


def _is_label_matrix(target: Tensor) -> bool:
    """Whether a checked target is of several labels; one of pixels is of two bytes an entry or more."""
    return target.ndim == 2 and target.dtype == torch.int8


def _check_count(name: str, what: str, indices: Tensor, count: int | None) -> int:
    """The number of classes or groups: the one given, or the largest index and one."""
    largest = int(indices.max())
    if indices.ndim > 1 and count is not None:
        check_dense(indices, whole(f"num_{what}", count, least=1))
    count = largest + 1 if count is None else whole(f"num_{what}", count, least=1)
    if largest >= count:
        noun = "has class" if what == "classes" else "has"
        raise InputError(f"{name} {noun} {largest}, but there are only {count} {what}.")
    return count


def concatenated(first: ArrayData, second: ArrayData) -> ArrayData:
    """Both sets' examples as one; classes and groups must be numbered alike.

    Where the first has no groups, those of the second are left out.
    """
    if first.groups is None:
        second = second.without_groups()

    for a, b in ((first.groups, second.groups), (first.sample_weight, second.sample_weight)):
        if (a is None) != (b is None):
            raise InputError(
                "Training and validation data must both have weights, or neither; and where training "
                "data has groups, validation data needs them too."
            )
    several = first.has_labels, second.has_labels
    if several[0] != several[1] or first.target.shape[1:] != second.target.shape[1:]:
        raise InputError(
            "Training and validation targets must have the same labels or pixels per example; got shapes "
            f"{tuple(first.target.shape[1:])} and {tuple(second.target.shape[1:])}."
        )
    if first.inputs.shape[1:] != second.inputs.shape[1:]:
        raise InputError(
            "Training and validation inputs must have the same shape per example; got "
            f"{tuple(first.inputs.shape[1:])} and {tuple(second.inputs.shape[1:])}."
        )
    if first.has_labels:
        return _joined(first, second)
    for name, numbers, known in (
        ("class", second.target, first.num_classes),
        ("group", second.groups, first.num_groups),
    ):
        if numbers is not None and known is not None and int(numbers.max()) >= known:
            raise InputError(
                f"Validation data has {name} {int(numbers.max())}, but training data is numbered "
                f"0 to {known - 1}. Number both alike."
            )
    return _joined(first, second)


def _joined(first: ArrayData, second: ArrayData) -> ArrayData:
    labels = {
        name: None if value is None else torch.cat([value, getattr(second, name)])
        for name in _LABELS
        for value in [getattr(first, name)]
    }
    return replace(first, inputs=_inputs_of_both(first.inputs, second.inputs), **labels)


def _inputs_of_both(first: Tensor | LazyInputs, second: Tensor | LazyInputs) -> Tensor | LazyInputs:
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        return torch.cat([first, second])
    if isinstance(first, Tensor) or type(first) is not type(second):
        raise InputError(
            "Training and validation inputs must both be in memory, both in files, or both come from "
            f"a Dataset; got {type(first).__name__} and {type(second).__name__}. Give both alike."
        )
    return first.joined(second)


@contextmanager
def reading(*sets: ArrayData | None) -> Iterator[None]:
    """Keep the workers of these sets running inside, and stop them at the end, whatever happens."""
    with ExitStack() as stack:
        for data in sets:
            if data is not None and not isinstance(data.inputs, Tensor):
                stack.enter_context(data.inputs.reading())
        yield
