"""Splits: every class stays in training, folds are disjoint, the draw is the generator's."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, strategies as st
from torch import Tensor

from autobalance.data.splits import MIN_FOR_VALIDATION, stratified_folds


def split(
    counts: list[int], fraction: float, folds: int, seed: int = 0
) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    cells = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    cells = cells[torch.randperm(len(cells), generator=torch.Generator().manual_seed(99))]
    return cells, stratified_folds(cells, fraction, folds, torch.Generator().manual_seed(seed))


COUNTS = st.lists(st.integers(1, 40), min_size=1, max_size=6)
FRACTIONS = st.floats(0.01, 0.99)
FOLDS = st.integers(1, 6)


@given(counts=COUNTS, fraction=FRACTIONS, folds=FOLDS)
def test_each_split_parts_all_examples_and_keeps_every_class_in_training(
    counts: list[int], fraction: float, folds: int
) -> None:
    cells, splits = split(counts, fraction, folds)
    assert len(splits) == folds
    for train, held in splits:
        assert sorted([*train.tolist(), *held.tolist()]) == list(range(len(cells)))
        assert train.tolist() == sorted(train.tolist())
        assert held.tolist() == sorted(held.tolist())
        assert set(cells[train].tolist()) == set(range(len(counts)))


@given(counts=COUNTS, fraction=FRACTIONS, folds=FOLDS)
def test_folds_of_a_cell_are_disjoint_where_it_has_a_member_for_each(
    counts: list[int], fraction: float, folds: int
) -> None:
    cells, splits = split(counts, fraction, folds)
    for cell, n in enumerate(counts):
        if n < MIN_FOR_VALIDATION or n < folds:
            continue
        served = [i for _, held in splits for i in held.tolist() if cells[i] == cell]
        assert len(served) == len(set(served))


@given(counts=COUNTS, fraction=FRACTIONS)
def test_held_out_share(counts: list[int], fraction: float) -> None:
    """The rounded share of each cell, at least 1 from `MIN_FOR_VALIDATION` members on."""
    cells, [(_, held)] = split(counts, fraction, 1)
    found = torch.bincount(cells[held], minlength=len(counts)).tolist()
    expected = [
        min(max(1, round(fraction * n)), n - 1) if n >= MIN_FOR_VALIDATION else 0 for n in counts
    ]
    assert found == expected


def test_tiny_classes_give_nothing_and_do_not_crash() -> None:
    cells, splits = split([1, 2, 3, 50], 0.2, 3)
    for _, held in splits:
        assert torch.bincount(cells[held], minlength=4).tolist() == [0, 0, 1, 10]


@pytest.mark.parametrize("folds", [1, 4])
def test_classes_of_one_member_alone_leave_validation_empty(folds: int) -> None:
    _, splits = split([1, 1, 1], 0.2, folds)
    assert [(len(train), len(held)) for train, held in splits] == [(3, 0)] * folds


def test_the_generator_decides() -> None:
    def held(seed: int) -> list[list[int]]:
        return [h.tolist() for _, h in split([30, 10], 0.2, 2, seed)[1]]

    assert held(1) == held(1)
    assert held(1) != held(2)
