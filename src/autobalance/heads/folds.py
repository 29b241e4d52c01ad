"""One standardised copy of the features, and folds that are weights over its rows."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from autobalance._validation import InputError
from autobalance.bilevel import split_rows
from autobalance.data import ArrayData, Batch, concatenated
from autobalance.heads.features import Scaling, as_floating
from autobalance.heads.problem import HeadProblem
from autobalance.records import SearchSettings


@dataclass(frozen=True)
class Standardised:
    """Data whose features ``(n, d)`` are standardised, on the device, and how they were."""

    data: ArrayData
    scaling: Scaling

    def problem(self, weight_decay: float, held: Tensor | None = None) -> HeadProblem:
        """The lower level on all rows but those `held` out."""
        features = self.data.in_memory()
        weight = self.data.sample_weight
        weight = features.new_ones(len(features)) if weight is None else weight.to(features)
        if held is not None:
            weight = weight.clone()
            weight[held] = 0.0
        if not bool(weight.any()):
            raise InputError(
                "No training example has a sample_weight above 0. Give some weight to each class."
            )
        target, classes, groups = self.data.target, self.data.num_classes, self.data.groups
        return HeadProblem(
            features,
            target,
            classes,
            sample_weight=weight,
            weight_decay=weight_decay,
            groups=groups,
        )


@dataclass(frozen=True)
class Split:
    """One fold: its lower level, and its validation rows."""

    problem: HeadProblem
    validation: Batch


def standardise(
    data: ArrayData,
    device: torch.device,
    *,
    order: Tensor | None = None,
    validation: ArrayData | None = None,
) -> Standardised:
    """A standardised copy of the data in `order`, followed by `validation`.

    Mean and scale are those of `data`, by weight, whichever rows are held out later: labels have no
    part in them, folds share one copy, and weight decay means the same in search and retraining.
    """
    if data.unknown or (validation is not None and validation.unknown):
        raise InputError(
            "Heads take no unknown groups (-1). Leave these examples out: data.with_known_groups()."
        )
    features = as_floating(data.in_memory().flatten(1))
    if validation is not None:
        # Without features first, which only checks that both belong together.
        labels = concatenated(*(replace(d, inputs=d.inputs[:0]) for d in (data, validation)))
        features = torch.cat([features, validation.in_memory().flatten(1).to(features)])
    elif order is not None:
        labels = replace(data, inputs=data.target).subset(order)
        features = features[order]
    else:
        labels, features = data, features.clone()
    features = features.to(device)
    weight = labels.sample_weight
    weight = None if weight is None else weight[: len(data)].to(device)
    scaling = Scaling.of(features[: len(data)], weight)
    scaling.apply_(features)
    return Standardised(replace(labels, inputs=features).to(device), scaling)


def split(
    data: ArrayData,
    validation: ArrayData | None,
    settings: SearchSettings,
    *,
    weight_decay: float,
    seed: int,
    device: torch.device,
) -> tuple[list[Split], tuple[np.ndarray, np.ndarray]]:
    """Folds over one copy of the features, and the validation examples by cell over all folds.

    The second is a pair: their numbers, and their effective numbers, see `ArrayData.effective_counts`.

    Raises
    ------
    InputError
        If the folds exceed the data, a validation set of the user's own is to be folded or does
        not belong to the data, or no class has enough examples.
    """
    folds = settings.folds
    if validation is not None:
        if folds != 1:
            raise InputError("A validation set of your own leaves nothing to fold: set folds to 1.")
        whole = standardise(data, device, validation=validation)
        held = [torch.arange(len(data), len(data) + len(validation), device=device)]
    else:
        parts = [rows for _, rows in split_rows(data, settings, seed)]
        # Rows in the order of the fold that holds them out, so that a fold's training skips
        # most of its validation rows, and reads them without a copy.
        first = torch.full((len(data),), folds)
        for i in reversed(range(folds)):
            first[parts[i]] = i
        order = torch.argsort(first, stable=True)
        place = torch.empty_like(order)
        place[order] = torch.arange(len(order))
        whole = standardise(data, device, order=order)
        held = [place[rows].sort().values.to(device) for rows in parts]
    labels = replace(whole.data, inputs=whole.data.target)
    parts = [labels.subset(rows) for rows in held]
    counts = np.sum([part.counts() for part in parts], axis=0)
    effective = np.sum([part.effective_counts() for part in parts], axis=0)
    splits = [Split(whole.problem(weight_decay, rows), _batch(whole.data, rows)) for rows in held]
    return splits, (counts, effective)


def _batch(data: ArrayData, rows: Tensor) -> Batch:
    """These rows, as views where they are in succession."""
    first, last = int(rows[0]), int(rows[-1])
    if last - first + 1 != len(rows):
        return data.batch(rows)
    part = slice(first, last + 1)
    groups, weight = (None if x is None else x[part] for x in (data.groups, data.sample_weight))
    return Batch(data.inputs[part], data.target[part], groups, weight)
