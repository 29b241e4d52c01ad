"""Decisions from p(class, group | x): the program against grids and brute force, and what they reach."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from torch import nn

from autobalance._validation import InputError
from autobalance.data.array_data import ArrayData
from autobalance.posthoc import decision_program, fair_decisions as decisions
from autobalance.posthoc.expected_errors import evaluate_model
from autobalance.posthoc.fair_decisions import (
    CellDecision,
    CellPosterior,
    DecisionShares,
    cell_posterior,
)
from autobalance.records.settings import Recipe, SearchSettings


def unfair(n: int, seed: int, groups: int = 2) -> ArrayData:
    """Groups told apart by the last feature; the classes of the later ones overlap more."""
    draw = np.random.default_rng(seed)
    target, group = draw.integers(0, 2, n), draw.integers(0, groups, n)
    sign = np.where(target == 1, 1.0, -1.0)
    signal = sign * np.where(group == 0, 2.0, 0.6) + draw.normal(size=n)
    inputs = np.stack([signal, 2.0 * group - 1.0 + 0.3 * draw.normal(size=n)], axis=1)
    return ArrayData.of(
        torch.from_numpy(inputs.astype(np.float32)), torch.from_numpy(target),
        groups=torch.from_numpy(group),
    )  # fmt: skip


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 2))


COMMON: dict[str, Any] = {
    "recipe": Recipe(epochs=1, min_steps=200, lr=0.02),
    "settings": SearchSettings(folds=2),
    "device": "cpu",
}


@pytest.mark.parametrize("main", decisions.MAINS)
@pytest.mark.parametrize("gap", [0.0, 0.05, 0.2, 2.0])
def test_no_decision_of_x_does_better(gap: float, main: str) -> None:
    # Six kinds of people; all 64 decisions, and all draws between them, by brute force.
    draw = np.random.default_rng(2)
    counts = draw.integers(5, 60, size=(6, 2, 2))  # kind, group, class
    kinds, cells = [], []
    for kind, g, k in np.ndindex(6, 2, 2):
        kinds += [kind] * counts[kind, g, k]
        cells += [2 * g + k] * counts[kind, g, k]
    joint = counts / counts.sum(axis=(1, 2), keepdims=True)
    learned = CellPosterior(nn.Identity(), joint[kinds], np.array(cells), 1.0, {}, 0, {}, main)
    decided = learned.within(gap)
    assert decided.objective.startswith(f"{main} where deo <= ")
    found = decided.held_out
    mass = counts.sum(axis=0)
    tables = []
    for choice in product((0, 1), repeat=6):
        wrong = np.zeros((2, 2))
        for kind, g, k in np.ndindex(6, 2, 2):
            wrong[g, k] += counts[kind, g, k] * (choice[kind] != k)
        tables.append(wrong / mass)
    every = np.stack(tables)
    weights = mass / mass.sum(axis=0) / 2 if main == "balanced_error" else np.full((2, 2), 0.25)
    cost = (every * weights).sum(axis=(1, 2))
    signed = (every[:, 0] - every[:, 1]).T  # class, decision
    # |difference| of each class by its own variable
    rows = [np.r_[s * signed[j], -np.eye(2)[j]] for j in range(2) for s in (1, -1)]
    rows.append(np.r_[np.zeros(64), 1.0, 1.0])
    best = linprog(
        np.r_[cost, 0, 0], A_ub=np.stack(rows), b_ub=[0, 0, 0, 0, gap],
        A_eq=np.r_[np.ones(64), 0, 0][None], b_eq=[1.0],
    )  # fmt: skip
    assert found.deo <= gap + 0.01
    assert getattr(found, main) == pytest.approx(best.fun, abs=2e-3)


def test_half_the_gap_costs_little_and_holds_on_new_data() -> None:
    train, test = unfair(4000, 0), unfair(8000, 1)
    learned = cell_posterior(network, train, **COMMON)
    assert learned.training_runs == pytest.approx(2.6, abs=0.01)  # two folds of a fifth
    free = learned.within(2.0)
    assert learned.settings["class_counts"] == train.counts().tolist()
    plain = learned.most_probable()
    probable = plain.network.probabilities(test.inputs).argmax(dim=1)
    assert torch.equal(plain.network(test.inputs).argmax(dim=1), probable)
    assert plain.held_out.error <= free.held_out.error
    half = learned.within(0.5 * free.held_out.deo)
    assert (half.network.weights < 0).any()  # an error on the better-served group is welcome
    assert half.held_out.deo <= 0.5 * free.held_out.deo + 0.01
    plain, ours = evaluate_model(free.network, test), evaluate_model(half.network, test)
    assert ours.deo < 0.65 * plain.deo
    assert ours.balanced_error < plain.balanced_error + 0.12


def test_groups_count_alike_where_that_is_asked() -> None:
    # Class and group agree nine times in ten in training, and not at all where the model is used.
    draw = np.random.default_rng(3)

    def drawn(n: int, agreement: float) -> ArrayData:
        target = draw.integers(0, 2, n)
        group = np.where(draw.random(n) < agreement, target, 1 - target)
        inputs = np.stack([target + draw.normal(size=n), group + 0.1 * draw.normal(size=n)], axis=1)
        return ArrayData.of(
            torch.from_numpy(inputs.astype(np.float32)), torch.from_numpy(target),
            groups=torch.from_numpy(group),
        )  # fmt: skip

    train, even = drawn(3000, 0.9), drawn(6000, 0.5)
    mixed, alike = (cell_posterior(network, train, main=m, **COMMON) for m in decisions.MAINS)
    assert alike.main == "group_balanced_error"
    free = [evaluate_model(learned.within(2.0).network, even) for learned in (mixed, alike)]
    assert free[1].balanced_error < free[0].balanced_error - 0.05
    assert free[1].deo < 0.3 * free[0].deo


@pytest.mark.parametrize("gap", [0.0, 1e-4, 0.05])
def test_every_bound_is_kept_also_by_a_poor_network(gap: float) -> None:
    # What it says of class and group is noise, so only constant decisions close the gap.
    draw = np.random.default_rng(0)
    cells = draw.integers(0, 4, 300)
    said = draw.dirichlet(np.ones(4), 300).reshape(-1, 2, 2)
    found = CellPosterior(nn.Identity(), said, cells, 1.0, {}, 0, {}).within(gap)
    assert found.held_out.deo <= gap + 0.02  # decisions drawn more rarely than 0.5 % are left out


def test_what_a_frontier_has_solved_is_not_solved_again(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(1)
    cells = draw.integers(0, 4, 300)
    said = (
        draw.dirichlet(np.ones(4), 300) + np.where(cells < 2, 2.0, 0.2)[:, None] * np.eye(4)[cells]
    )
    said = (said / said.sum(axis=1, keepdims=True)).reshape(-1, 2, 2)
    solved: list[float | None] = []

    solve = decision_program.solve_program

    def counted(errors: Any, goal: decision_program.DecisionGoal) -> Any:
        solved.append(goal.gap)
        return solve(errors, goal)

    monkeypatch.setattr(decision_program, "solve_program", counted)
    fresh, known = (CellPosterior(nn.Identity(), said, cells, 1.0, {}, 0, {}) for _ in range(2))
    expected, alone = fresh.within(0.123), len(solved)
    known.frontier()
    solved.clear()
    for _ in range(2):
        found = known.within(0.123)
        assert torch.equal(found.network.weights, expected.network.weights)
        assert torch.equal(found.network.shares, expected.network.shares)
        np.testing.assert_array_equal(found.held_out.errors, expected.held_out.errors)
    assert set(solved) == {0.123, 2.0}
    assert 4 < len(solved) < alone / 2


def test_no_decision_of_a_frontier_is_better_within_the_bound() -> None:
    # A network that is wrong about its own probabilities: logit adjustment of it is no best decision.
    draw = np.random.default_rng(4)
    cells = draw.integers(0, 4, 400)
    said = draw.dirichlet(np.ones(4), 400) + 0.6 * np.eye(4)[cells]
    said = (said * [3.0, 1.0, 1.0, 1.0]) ** 2
    said = (said / said.sum(axis=1, keepdims=True)).reshape(-1, 2, 2)
    learned = CellPosterior(nn.Identity(), said, cells, 1.0, {}, 0, {})
    points = [point.held_out for point in learned.frontier()]
    assert points[0].balanced_error > min(p.balanced_error for p in points) + 0.01
    for gap in (0.1, points[0].deo, points[0].deo + 0.1, 1.9):
        found = learned.within(gap).held_out
        assert found.deo <= gap + 0.01
        possible = [p.balanced_error for p in points if p.deo <= gap]
        assert found.balanced_error <= min(possible) + 1e-3


def test_the_worst_cell_and_the_frontier() -> None:
    learned = cell_posterior(network, unfair(3000, 0, groups=3), **COMMON)
    points = [point.held_out for point in learned.frontier(5)]
    gaps, errors = [p.deo for p in points], [p.balanced_error for p in points]
    assert gaps == sorted(gaps, reverse=True)
    assert errors == sorted(errors)
    assert gaps[-1] < 0.02
    worst = learned.with_lowest_worst_cell().held_out
    assert worst.worst_class_and_group_error < points[0].worst_class_and_group_error
    assert all(
        worst.worst_class_and_group_error <= p.worst_class_and_group_error + 1e-3 for p in points
    )


def test_without_a_bound_it_is_logit_adjustment() -> None:
    learned = cell_posterior(network, unfair(1500, 3), **COMMON)
    free = learned.within(2.0).network
    inputs = torch.randn(200, 2)
    counts = torch.from_numpy(np.bincount(learned.cells % 2, minlength=2)).double()
    adjusted = free.probabilities(inputs) / counts
    assert torch.equal(free(inputs).argmax(dim=1), adjusted.argmax(dim=1))


def test_an_empty_cell_and_an_absent_class_are_left_out() -> None:
    data = unfair(1500, 0)
    kept = (data.groups != 1) | (data.target != 1)
    some = ArrayData.of(
        data.inputs[kept],
        data.target[kept],
        groups=data.groups[kept],
        num_classes=3,  # type: ignore[index]
    )
    learned = cell_posterior(
        lambda: nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 3)), some, **COMMON
    )
    with pytest.warns(UserWarning, match="The gap is not known on held-out data"):
        found = learned.within(0.0)
    assert np.isnan(found.held_out.errors[1, 1])
    assert np.isnan(found.held_out.errors[:, 2]).all()
    assert np.isfinite(found.held_out.balanced_error)
    assert not (found.network(data.inputs).argmax(dim=1) == 2).any()


def test_the_draw_is_even_and_a_function_of_the_features() -> None:
    inputs = torch.randn(20_000, 3)
    weights = np.random.default_rng(0).normal(size=(3, 2, 2))
    model = CellDecision(nn.Linear(3, 4), weights, [0.5, 0.3, 0.2])
    drawn = model.draw(inputs)
    shares = torch.bincount(drawn, minlength=3) / len(inputs)
    torch.testing.assert_close(shares, torch.tensor([0.5, 0.3, 0.2]), atol=0.015, rtol=0)
    order = torch.randperm(len(inputs))
    assert torch.equal(model.draw(inputs[order]), drawn[order])
    assert torch.equal(model.draw(inputs[:7]), drawn[:7])
    with torch.no_grad():
        scores = model(inputs)
        for i in range(3):
            alone = CellDecision(model.network, weights[i : i + 1])
            torch.testing.assert_close(scores[drawn == i], alone(inputs[drawn == i]))


def test_decision_shares_are_how_often_each_class_is_decided() -> None:
    weights = np.random.default_rng(0).normal(size=(3, 2, 4))
    shares = [0.5, 0.3, 0.2]
    inputs, network = torch.randn(50, 3), nn.Linear(3, 8)
    with torch.no_grad():
        found = DecisionShares(CellDecision(network, weights, shares))(inputs)
        by_hand = sum(
            p
            * nn.functional.one_hot(
                CellDecision(network, a[None])(inputs).argmax(dim=1), 4
            ).double()
            for a, p in zip(weights, shares, strict=True)
        )
        one = DecisionShares(CellDecision(network, weights[:1]))(inputs)
    torch.testing.assert_close(found, by_hand)
    assert (found.max(dim=1).values < 1.0).any()  # the three do not always agree
    assert set(one.unique().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize("shares", [[0.5, 0.6], [1.0], [-0.5, 1.5], [float("nan"), 1.0]])
def test_shares_that_are_none_are_refused(shares: list[float]) -> None:
    with pytest.raises(InputError, match="summing to 1"):
        CellDecision(nn.Linear(2, 4), np.ones((2, 2, 2)), shares)


def test_weights_that_are_none_are_refused() -> None:
    with pytest.raises(InputError, match=r"shape \(m, g, k\); got shape \(2, 2\)"):
        CellDecision(nn.Linear(2, 4), np.ones((2, 2)))
    with pytest.raises(InputError, match="finite"):
        CellDecision(nn.Linear(2, 4), np.full((1, 2, 2), np.inf))


def test_what_cannot_be_decided_is_refused() -> None:
    data = unfair(300, 0)
    with pytest.raises(InputError, match="two groups"):
        cell_posterior(network, ArrayData.of(data.inputs, data.target))
    with pytest.raises(InputError, match="balanced_error or group_balanced_error; got 'deo'"):
        cell_posterior(network, data, main="deo")
    learned = CellPosterior(nn.Identity(), np.full((4, 2, 2), 0.25), np.arange(4), 1.0, {}, 0, {})
    for gap in (-0.1, float("nan")):
        with pytest.raises(InputError, match="gap"):
            learned.within(gap)
    with pytest.raises(InputError, match="points"):
        learned.frontier(1)
