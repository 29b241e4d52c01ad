"""Train/validation splits that keep every class in training."""

from __future__ import annotations

import numpy as np
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


def assign_folds(cells: np.ndarray, folds: int, generator: np.random.Generator) -> np.ndarray:
    """Fold that holds each example out, such that every cell stays in the training of every fold.

    Each cell's members are dealt to the folds in a random order, one after the other, and the next
    cell goes on where the last one stopped, so that the folds are alike in size. A cell of fewer
    members than folds is thus held out by as many folds as it has members. The only member of a cell
    is never held out: no classifier trained on the rest knows its cell.

    Parameters
    ----------
    cells : ndarray
        Class (or (class, group) cell) of each example, shape ``(n,)``.
    folds : int
        Number of folds, at least 2.
    generator : numpy.random.Generator
        Decides the order within each cell, and the fold of the first example.

    Returns
    -------
    ndarray
        Fold of each example, shape ``(n,)``; -1 for the only member of a cell.
    """
    fold = np.full(len(cells), -1)
    next_fold = int(generator.integers(folds))
    for cell in np.unique(cells):
        members = generator.permutation(np.flatnonzero(cells == cell))
        if len(members) > 1:
            fold[members] = (next_fold + np.arange(len(members))) % folds
            next_fold = (next_fold + len(members)) % folds
    return fold
