"""Train/validation splits that keep every class in training."""

from __future__ import annotations

import torch
from torch import Tensor

MIN_FOR_VALIDATION = 3
"""A class (or cell) of fewer members gives none to validation: training would lose half of it."""


def members_by_cell(cells: Tensor) -> list[Tensor]:
    """Ascending indices of each cell's examples, in the order of the cells that there are."""
    _, counts = torch.unique(cells, return_counts=True)
    return list(torch.argsort(cells, stable=True).split(counts.tolist()))


def stratified_folds(
    cells: Tensor, fraction: float, folds: int, generator: torch.Generator
) -> list[tuple[Tensor, Tensor]]:
    """Split each cell into training and validation, `folds` times.

    Parameters
    ----------
    cells : Tensor
        Class (or (class, group) cell) of each example, shape ``(n,)``.
    fraction : float
        Share of each cell's members held out per fold, rounded, but at least 1 where the cell has
        `MIN_FOR_VALIDATION` members or more, and never so many that folds overlap needlessly or
        nothing is left for training.
    folds : int
        Number of splits. Their validation parts are disjoint as far as a cell's members allow.
    generator : torch.Generator
        Decides who is held out.

    Returns
    -------
    list of (Tensor, Tensor)
        Sorted indices of training and of validation examples, for each fold.
    """
    held_out: list[list[Tensor]] = [[] for _ in range(folds)]
    for members in members_by_cell(cells):
        n = len(members)
        if n < MIN_FOR_VALIDATION:
            continue
        members = members[torch.randperm(n, generator=generator)]
        size = max(1, min(round(fraction * n), n // folds, n - 1))
        for fold in range(folds):
            held_out[fold].append(members[(torch.arange(size) + fold * size) % n])
    splits = []
    for parts in held_out:
        mask = torch.zeros(len(cells), dtype=torch.bool)
        if parts:
            mask[torch.cat(parts)] = True
        splits.append((torch.nonzero(~mask).squeeze(1), torch.nonzero(mask).squeeze(1)))
    return splits
