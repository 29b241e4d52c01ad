"""What a search holds out, and how well its networks do on it at the end."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from autobalance._validation import InputError
from autobalance.calibration import class_masses, fit_temperature, subsample_stride
from autobalance.data import ArrayData, concatenated, labels_without_both, stratified_folds
from autobalance.losses import ParametricCrossEntropy
from autobalance.objectives import Objective, group_class_sums, per_pixel
from autobalance.records import (
    Calibration,
    HeldOut,
    SearchSettings,
    as_counts,
    confused_pairs,
    effective_counts,
)

Splits = Sequence[tuple[ArrayData, ArrayData]]
"""Training and held-out data of each fold."""


def splits_of(
    data: ArrayData, validation: ArrayData | None, settings: SearchSettings, seed: int
) -> list[tuple[ArrayData, ArrayData]]:
    """Training and validation data of each fold, as a search with this seed takes them.

    Examples of unknown group are in no validation data.

    Raises
    ------
    InputError
        If there are folds beside a validation set, the two sets do not belong together, or no
        class has an example to hold out.
    """
    if validation is not None:
        if settings.folds != 1:
            raise InputError("A validation set of your own leaves nothing to fold: set folds to 1.")
        concatenated(data, validation)  # refuses sets that do not belong together
        groups = validation.num_groups if data.groups is None else data.num_groups
        held = replace(validation, num_classes=data.num_classes, num_groups=groups)
        return [(data, held.with_known_groups())]
    return [
        (data.subset(train), data.subset(held)) for train, held in split_rows(data, settings, seed)
    ]


def split_rows(data: ArrayData, settings: SearchSettings, seed: int) -> list[tuple[Tensor, Tensor]]:
    """Indices of each fold's training and validation examples; errors as for `splits_of`."""
    generator = torch.Generator().manual_seed(seed)
    cells = data.strata().cpu()
    known = torch.nonzero(cells >= 0).squeeze(1)
    folds = stratified_folds(cells[known], settings.validation_fraction, settings.folds, generator)
    unknown = torch.nonzero(cells < 0).squeeze(1)
    rows = [
        (torch.cat([known[train], unknown]).sort().values, known[held]) for train, held in folds
    ]
    if any(len(held) == 0 for _, held in rows):
        raise InputError(
            f"No class has enough examples for validation among {len(data)}: the search needs at "
            "least 3 in some class. Add data, or train with ParametricCrossEntropy.logit_adjusted."
        )
    return rows


def absent_cells(counts: Sequence[Any] | np.ndarray) -> str | None:
    """Which pairs of group and class have no held-out example, of counts ``(g, k)``; None without any.

    A gap between groups, or a worst cell, is not known where a cell is empty: what `Objective.value`
    gives there leaves the cell out, as if it were as good as the others.
    """
    table = np.asarray(counts)
    empty = np.argwhere(table == 0) if table.ndim == 2 else []
    if not len(empty):
        return None
    names = ", ".join(f"group {g}, class {c}" for g, c in empty[:5])
    return (
        f"The held-out data lacks {len(empty)} of {table.size} pairs of group and class ({names})."
    )


def undefined_objective(objective: Objective, counts: Sequence[Any] | np.ndarray) -> str | None:
    """Why an objective over pairs is not defined on held-out data with these counts; None where it is.

    Means over pairs are those over the pairs that have examples; a gap and a worst case could be anything.
    """
    if objective.over != "class_and_group" or objective.linear:
        return None
    return absent_cells(counts)


def table_shape(held: ArrayData) -> tuple[int, int]:
    """Rows and columns of the table of `ArrayData.cells`: groups, or of several labels signs, and classes."""
    return (2 if held.has_labels else held.num_groups or 1, held.num_classes)


def evaluate_held_out_labels(splits: Splits, wrong: Sequence[Tensor]) -> HeldOut:
    """As `evaluate_held_out`, of what `decide` says of labels; ``(2, k)``, negatives in the first row."""
    cells = torch.cat([held.cells().cpu() for _, held in splits]).numpy()
    weights = [held.cell_sample_weight() for _, held in splits]
    given = [w.cpu().double() for w in weights if w is not None]
    weight = torch.cat(given).numpy() if given else np.ones(len(cells))
    shape = table_shape(splits[0][1])
    size = shape[0] * shape[1]
    n = np.bincount(cells, weight, size).reshape(shape)
    errors = np.bincount(cells, weight * torch.cat([*wrong]).numpy(), size).reshape(shape)
    predicted = n - errors + errors[::-1]
    effective = None
    if given:
        effective = effective_counts(cells, weight, size).reshape(shape).tolist()
    n, errors, predicted = (as_counts(table).tolist() for table in (n, errors, predicted))
    return HeldOut(n, errors, predicted, [], effective)


def warn_of_absent_labels(counts: Any) -> None:
    """Warn where labels lack positives or negatives among held-out examples ``(2, k)``."""
    absent = labels_without_both(counts)
    if absent:
        warnings.warn(
            f"Validation says nothing of some labels: {absent}. The objective leaves them out, and their "
            "loss follows the shared strengths alone. Give more examples, or leave these labels out.",
            stacklevel=4,
        )


def count_errors(splits: Splits, predictions: Sequence[Tensor]) -> Tensor:
    """Counts over all folds' held-out data, shape ``(3, g, k)``.

    They are examples predicted wrongly and all examples, by group and class, and examples by group
    and the class predicted; each counts by its weight. `predictions` has for each fold the classes
    predicted, on the CPU.
    """
    totals = []
    for (_, whole), predicted in zip(splits, predictions, strict=True):
        held = whole.pixels()
        target = held.target.cpu()
        wrong = (predicted != target).double()
        groups = None if held.groups is None else held.groups.cpu()
        weight = None if held.sample_weight is None else held.sample_weight.cpu()
        tables = (
            *group_class_sums(wrong, target, groups, held.num_classes, weight),
            group_class_sums(wrong, predicted, groups, held.num_classes, weight)[1],
        )
        rows = (held.num_groups or 1) - len(tables[0])
        totals.append(torch.stack([F.pad(t, (0, 0, 0, rows)) for t in tables]))
    return torch.stack(totals).sum(dim=0)


def evaluate_held_out(splits: Splits, predictions: Sequence[Tensor]) -> HeldOut:
    """Errors, examples and predictions on all folds' held-out data; as for `count_errors`."""
    wrong, n, by_class = as_counts(count_errors(splits, predictions).numpy())
    effective = image_counts(splits)
    splits = [(train, held.pixels()) for train, held in splits]
    target = torch.cat([held.target.cpu() for _, held in splits])
    weight = None
    weights = [held.sample_weight for _, held in splits if held.sample_weight is not None]
    if weights:
        weight = torch.cat(weights).cpu().double().numpy()
        cells = torch.cat([held.cells() for _, held in splits]).cpu().numpy()
        if effective is None:
            effective = effective_counts(cells, weight, n.size).reshape(n.shape)
    predicted = torch.cat([*predictions])
    confused = confused_pairs(target, predicted, n.shape[1], sample_weight=weight)
    known = None if effective is None else effective.tolist()
    return HeldOut(n.tolist(), wrong.tolist(), by_class.tolist(), confused, known)


def image_counts(splits: Splits) -> np.ndarray | None:
    """Of dense held-out data how many images have each cell, ``(g, k)``, as `effective_counts`; else None."""
    if not splits[0][1].dense:
        return None
    return np.sum([np.atleast_2d(held.effective_counts()) for _, held in splits], axis=0)


def images_of(splits: Splits) -> Tensor | None:
    """Of dense held-out data the image of each pixel that counts, over all folds; else None."""
    if not splits[0][1].dense:
        return None
    images, first = [], 0
    for _, held in splits:
        numbers = torch.arange(first, first + len(held), device=held.target.device)
        images.append(held.rows_of(per_pixel(numbers, held.target)).cpu())
        first += len(held)
    return torch.cat(images)


def calibration_stride(splits: Splits) -> int:
    """Every how manyth held-out example's logits `calibrate` looks at."""
    return subsample_stride(sum(len(held.pixels()) * held.num_classes for _, held in splits))


def calibrate(
    splits: Splits, logits: Sequence[Tensor], designed: ParametricCrossEntropy
) -> Calibration | None:
    """Temperature and calibration errors of the networks searched with.

    `logits` has for each fold those of every `calibration_stride`-th held-out example; `designed` is
    the loss that the networks were lately trained with, or about so. None where all training examples
    of some class have weight 0.
    """
    masses = np.sum([class_masses(train) for train, _ in splits], axis=0)
    if not np.atleast_2d(masses).sum(axis=0).all():
        return None
    step = calibration_stride(splits)
    parts = [held.pixels() for _, held in splits]
    labels = [(held.target, held.groups, held.sample_weight) for held in parts]
    target, groups, weight = (
        None if parts[0] is None else torch.cat([part[::step].cpu() for part in parts])
        for parts in zip(*labels, strict=True)
    )
    return fit_temperature(
        torch.cat([*logits]), target, designed, masses, groups=groups, sample_weight=weight
    )
