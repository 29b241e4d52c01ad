"""The linear programs over decisions against grids, and their column generation against brute force."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from autobalance.posthoc.decision_program import (
    DecisionColumn,
    DecisionGoal,
    generate_columns,
    select_draw,
    solve_program,
)


def test_the_program_finds_what_a_grid_finds() -> None:
    errors = np.random.default_rng(0).uniform(0.1, 0.6, size=(3, 2, 2))
    weights = np.array([[0.3, 0.15], [0.2, 0.35]])  # of the cells in the main error
    grid = [np.array([a, b, 100 - a - b]) / 100 for a in range(101) for b in range(101 - a)]
    tables = [np.tensordot(p, errors, axes=1) for p in grid]
    deo = np.array([np.ptp(t, axis=0).sum() for t in tables])
    main = np.array([(t * weights).sum() for t in tables])
    worst = np.array([t.max() for t in tables])
    for gap in (deo.min() + 0.01, deo.min() + 0.05, deo.max()):
        found = np.tensordot(
            solve_program(errors, DecisionGoal(weights, float(gap)))[0], errors, axes=1
        )
        assert np.ptp(found, axis=0).sum() <= gap + 1e-6
        value = (found * weights).sum()
        best = main[deo <= gap].min()
        assert best - 0.02 <= value <= best + 1e-6
    found = np.tensordot(solve_program(errors, DecisionGoal(weights))[0], errors, axes=1)
    assert worst.min() - 0.01 <= found.max() <= worst.min() + 0.01


def test_prices_are_the_derivatives_of_the_optimum() -> None:
    # What a new decision must beat: its errors at the prices, against the level.
    draw = np.random.default_rng(1)
    errors, weights = draw.uniform(0.1, 0.6, size=(4, 2, 3)), draw.uniform(0.05, 0.4, size=(2, 3))
    for gap in (0.2, None):
        shares, prices, level = solve_program(errors, DecisionGoal(weights, gap))
        costs = (prices * errors).sum(axis=(1, 2)) - level
        assert (costs > -1e-9).all()
        np.testing.assert_allclose(costs[shares > 1e-9], 0.0, atol=1e-9)


def test_the_mean_of_the_worst_classes_is_what_a_grid_finds() -> None:
    draw = np.random.default_rng(3)
    errors, main = draw.uniform(0.1, 0.6, size=(3, 1, 5)), np.full((1, 5), 0.2)
    goal = DecisionGoal(main, tail=2.5)
    grid = [np.array([a, b, 100 - a - b]) / 100 for a in range(101) for b in range(101 - a)]
    values = [goal.value(np.tensordot(p, errors, axes=1)) for p in grid]
    shares, prices, level = solve_program(errors, goal)
    value = goal.value(np.tensordot(shares, errors, axes=1))
    assert min(values) - 0.01 <= value <= min(values) + 1e-9
    costs = (prices * errors).sum(axis=(1, 2)) - level
    assert (costs > -1e-9).all()


def test_the_mean_of_the_worst_is_written_out() -> None:
    goal = DecisionGoal(np.full((1, 4), 0.25), tail=1.5)
    errors = np.array([[0.1, 0.4, 0.2, 0.3]])
    assert goal.value(errors) == pytest.approx((0.4 + 0.5 * 0.3) / 1.5 + 0.05 * errors.mean())


@pytest.mark.parametrize("randomised", [True, False])
def test_column_generation_finds_the_best_of_all_decisions(randomised: bool) -> None:
    # Five kinds of people with known probabilities of three classes: all 243 decisions by brute force.
    draw = np.random.default_rng(5)
    share, p = draw.dirichlet(np.ones(5)), draw.dirichlet(np.ones(3), 5)
    mass = (share @ p)[None]

    def errors_of_choice(choice: np.ndarray) -> np.ndarray:
        right = np.zeros(3)
        np.add.at(right, choice, share * p[np.arange(5), choice])
        return 1.0 - right[None] / mass

    goal = DecisionGoal(np.full((1, 3), 1 / 3))
    every = [errors_of_choice(np.array(c)) for c in product(range(3), repeat=5)]
    constant = [DecisionColumn(np.eye(3)[[j]], errors_of_choice(np.full(5, j))) for j in range(3)]
    columns = generate_columns(
        lambda a: errors_of_choice((p * a).argmax(axis=1)), mass, goal, constant
    )
    _, shares, errors = select_draw([*constant, *columns], goal, randomised=randomised)
    best, _, _ = solve_program(np.stack(every), goal)
    optimum = goal.value(np.tensordot(best, np.stack(every), axes=1))
    assert goal.value(errors) >= optimum - 1e-9
    if randomised:
        assert goal.value(errors) <= optimum + 0.005
    else:
        assert shares.tolist() == [1.0]
        found = [goal.value(column.errors) for column in [*constant, *columns]]
        assert goal.value(errors) == min(found)
