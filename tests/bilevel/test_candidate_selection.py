"""The final choice: who is compared with whom, how sure it is, and what wins."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from autobalance.bilevel import candidate_selection as choosing
from autobalance.bilevel.candidate_selection import _standard_error, best, compare, train_candidates
from autobalance.bilevel.held_out import absent_cells
from autobalance.bilevel.result import Candidate
from autobalance.bilevel.search_spec import SearchSpec
from autobalance.data.array_data import ArrayData
from autobalance.losses.modules import ParametricCrossEntropy
from autobalance.objectives.aggregates import BalancedError, WeightedError, WorstError
from autobalance.objectives.base import Objective
from autobalance.records.settings import Recipe
from helpers import blobs, linear_factory

LOSS = ParametricCrossEntropy.cross_entropy()
LOSSES = {"designed": LOSS, "start": LOSS, "cross_entropy": LOSS}


def held(target: list[int], groups: list[int] | None = None) -> ArrayData:
    inputs = torch.zeros(len(target), 1)
    return ArrayData.of(
        inputs, target, groups=groups, num_classes=3, num_groups=2 if groups else None
    )


def wrong(*pattern: str) -> list[Tensor]:
    """One string per fold; x is wrong."""
    return [torch.tensor([c == "x" for c in fold]) for fold in pattern]


def compared(
    losses: dict[str, ParametricCrossEntropy],
    outcomes: dict[str, list[Tensor]],
    folds: list[ArrayData],
    objective: Objective,
) -> list[Candidate]:
    cells = torch.cat([fold.cells() for fold in folds])
    shape = (folds[0].num_groups or 1, folds[0].num_classes)
    return compare(losses, outcomes, cells, shape, objective, seed=0)


FOLDS = [held([0, 0, 0, 1]), held([0, 0, 1, 1])]
OUTCOMES = {
    "designed": wrong("x...", "....",),
    "start": wrong("...x", "...x"),
    "cross_entropy": wrong("...x", "..xx"),
}  # fmt: skip


def test_objectives_and_differences_by_hand() -> None:
    """Class 0 has five examples over the folds, class 1 three, class 2 none."""
    found = {c.name: c for c in compared(LOSSES, OUTCOMES, FOLDS, BalancedError())}
    assert found["designed"].objective == pytest.approx((1 / 5 + 0) / 2)
    assert found["start"].objective == pytest.approx((0 + 2 / 3) / 2)
    assert found["cross_entropy"].objective == pytest.approx((0 + 1) / 2)
    assert found["designed"].difference == pytest.approx(0.1 - 1 / 3)
    assert (found["start"].difference, found["start"].standard_error) == (0.0, 0.0)
    assert found["designed"].standard_error > 0.05


@pytest.mark.parametrize(
    "objective",
    [
        BalancedError(over="group"),
        BalancedError(over="class_and_group"),
        WorstError(over="class_and_group"),
        WorstError(),
        WeightedError(weights=(1.0, 3.0, 2.0)),
    ],
)
def test_the_objective_is_its_hard_value_on_all_folds(objective: Objective) -> None:
    target, groups = [0, 0, 1, 1, 2, 0, 1, 2], [0, 1, 0, 1, 1, 0, 1, 1]
    missed = torch.tensor([1, 0, 0, 1, 1, 0, 0, 0]).bool()
    outcomes = {"start": [missed[:4], missed[4:]], "designed": wrong("....", "....")}
    folds = [held(target[:4], groups[:4]), held(target[4:], groups[4:])]
    found = compared({"start": LOSS, "designed": LOSS}, outcomes, folds, objective)
    logits = torch.zeros(8, 3)
    shown = torch.where(missed, (torch.tensor(target) + 1) % 3, torch.tensor(target))
    logits[torch.arange(8), shown] = 1.0
    expected = objective.hard(logits, torch.tensor(target), groups=torch.tensor(groups))
    assert found[0].objective == pytest.approx(expected)


def test_the_standard_error_is_that_of_paired_sampling() -> None:
    """Many examples, where the prior does not matter: sqrt(sum_c var_c / n_c) / classes."""
    n = 4000
    generator = torch.Generator().manual_seed(0)
    target = torch.arange(n) % 3
    a = torch.rand(n, generator=generator) < 0.3
    b = torch.where(torch.rand(n, generator=generator) < 0.8, a, ~a)
    outcomes = {"designed": [a], "start": [b]}
    fold = ArrayData.of(torch.zeros(n, 1), target)
    losses = {"designed": LOSS, "start": LOSS}
    found = compared(losses, outcomes, [fold], BalancedError())[0]
    d = a.double() - b.double()
    variance = sum(float(d[target == c].var() / (target == c).sum()) for c in range(3)) / 9
    assert found.standard_error == pytest.approx(math.sqrt(variance), rel=0.08)


def test_the_standard_error_is_that_of_dirichlet_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cell by cell, to the same bits; in blocks the same up to noise, 2.3 %."""
    generator = np.random.default_rng(0)
    pairs = generator.integers(0, 5, (40, 2, 2)).astype(float)
    draws = np.random.default_rng(7)
    shares = np.stack([draws.dirichlet(cell + 0.25, 2000) for cell in pairs.reshape(-1, 4)], axis=1)
    own, other = shares[..., 2] + shares[..., 3], shares[..., 1] + shares[..., 3]
    sizes = torch.from_numpy(pairs.sum(axis=(1, 2))).view(1, -1)
    expected = [
        float(BalancedError().value(torch.from_numpy(a) * sizes, sizes))
        - float(BalancedError().value(torch.from_numpy(b) * sizes, sizes))
        for a, b in zip(own, other, strict=True)
    ]
    assert _standard_error(BalancedError(), pairs, (1, 40), 7) == np.std(expected)
    monkeypatch.setattr(choosing, "AT_ONCE", 5000)  # 125 draws of 40 cells
    found = _standard_error(BalancedError(), pairs, (1, 40), 7)
    assert found != np.std(expected)
    assert found == pytest.approx(np.std(expected), rel=0.07)


def test_one_example_is_never_certain() -> None:
    outcomes = {"designed": wrong("."), "start": wrong("x")}
    losses = {"designed": LOSS, "start": LOSS}
    found = compared(losses, outcomes, [held([0])], BalancedError())[0]
    assert found.difference == -1.0
    assert found.standard_error > 0.2


def candidate(name: str, objective: float) -> Candidate:
    return Candidate(name, LOSS, objective, objective - 0.2, 0.1)


@pytest.mark.parametrize(
    ("designed", "cross_entropy", "expected"),
    [
        (0.1, 0.3, "designed"),
        (0.3, 0.4, "start"),
        (0.3, 0.1, "cross_entropy"),
        (0.2, 0.2, "start"),
    ],
)
def test_the_lowest_wins_and_the_start_wins_ties(
    designed: float, cross_entropy: float, expected: str
) -> None:
    given = [
        candidate("designed", designed),
        candidate("start", 0.2),
        candidate("cross_entropy", cross_entropy),
    ]
    assert best(given).name == expected


def test_training_goes_on_from_the_outcomes_there_are() -> None:
    data = blobs((30, 20, 10))
    index = torch.arange(60)
    splits = [
        (data.subset(index[index % 3 != i]), data.subset(index[index % 3 == i])) for i in (0, 1)
    ]
    losses = {"a": LOSS, "b": ParametricCrossEntropy.logit_adjusted([30, 20, 10])}
    recipe = Recipe(epochs=1, min_steps=20, lr=0.1)
    spec = SearchSpec(
        model_factory=linear_factory(), data=data, recipe=recipe, seed=1, device="cpu"
    )
    whole: dict[str, list[Tensor]] = {}
    runs: list[int] = []

    def count() -> None:
        runs.append(1)

    train_candidates(spec, splits, losses, {}, outcomes=whole, after_each=count)
    assert len(runs) == 4
    part = {"a": whole["a"][:1], "b": []}
    train_candidates(spec, splits, losses, {}, outcomes=part, after_each=count)
    assert len(runs) == 7
    for name in losses:
        assert all(torch.equal(x, y) for x, y in zip(part[name], whole[name], strict=True))
        assert [len(x) for x in part[name]] == [20, 20]


@pytest.mark.parametrize(
    ("objectives", "collapsed", "expected"),
    [
        ((0.1, 0.2, 0.4), "designed", "start"),
        ((0.0, 0.2, 0.1), "designed", "cross_entropy"),
        ((0.5, 0.2, 0.4), "start", "cross_entropy"),
        ((0.5, 0.2, 0.4), "designed start cross_entropy", "start"),
        ((0.1, 0.2, 0.4), "start", "designed"),
        ((0.1, 0.2, 0.4), "", "designed"),
    ],
)
def test_a_collapsed_candidate_is_not_chosen_where_there_is_another(
    objectives: tuple[float, float, float], collapsed: str, expected: str
) -> None:
    found = [
        replace(candidate(name, value), collapsed=name in collapsed.split())
        for name, value in zip(LOSSES, objectives, strict=True)
    ]
    assert best(found).name == expected


@pytest.mark.parametrize(
    ("pattern", "collapsed"),
    [
        (("...x", "x..."), True),  # class 0 for everyone on the first fold
        (("xxxx", "...."), True),
        (("xxx.", "...."), True),
        (("x..x", "...."), False),  # class 1 all wrong, but another class than 0 predicted, too
        (("....", "...."), False),
    ],
)
def test_which_candidates_are_collapsed(pattern: tuple[str, str], collapsed: bool) -> None:
    outcomes = {**OUTCOMES, "designed": wrong(*pattern)}
    found = {c.name: c for c in compared(LOSSES, outcomes, FOLDS, BalancedError())}
    assert found["designed"].collapsed == collapsed


def test_absent_cells_are_named() -> None:
    assert absent_cells([[3, 1], [2, 1]]) is None
    assert absent_cells([3, 0]) is None  # classes alone: no gap between groups
    assert absent_cells([[3, 0], [2, 1]]) == (
        "The held-out data lacks 1 of 4 pairs of group and class (group 0, class 1)."
    )
