"""Hypervolumes against areas by hand and by drawing points at random."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, strategies as st

from autobalance import InputError
from autobalance_bench.fairness.hypervolume import hypervolume, non_dominated

Points = list[tuple[float, float]]
POINTS = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), min_size=1, max_size=8)


@pytest.mark.parametrize(
    ("points", "area"),
    [
        ([], 0.0),
        ([(0, 0)], 50 * 60),
        ([(20, 10)], 30 * 50),
        ([(20, 10), (20, 10)], 30 * 50),
        ([(20, 10), (30, 20)], 30 * 50),  # the second is dominated
        ([(20, 10), (10, 30)], 30 * 50 + 10 * 30),
        ([(10, 30), (20, 10), (40, 5)], 30 * 50 + 10 * 30 + 10 * 5),
        ([(50, 0), (0, 60), (70, -5)], 0.0),  # none is better than the reference in both
    ],
)
def test_by_hand(points: Points, area: float) -> None:
    assert hypervolume(np.array(points)) == pytest.approx(area)


def test_another_reference() -> None:
    assert hypervolume(np.array([(1.0, 1.0), (0.5, 1.5)]), (2.0, 2.0)) == pytest.approx(1.25)


@pytest.mark.parametrize("seed", range(3))
def test_by_monte_carlo(seed: int) -> None:
    draw = np.random.default_rng(seed)
    points = draw.uniform((0, 0), (60, 70), size=(12, 2))
    places = draw.uniform((0, 0), (50, 60), size=(40_000, 2))
    dominated = (places[:, None] >= points[None]).all(axis=2).any(axis=1)
    error = 3000 * dominated.std() / np.sqrt(len(places))
    assert hypervolume(points) == pytest.approx(3000 * dominated.mean(), abs=4 * error)


@given(POINTS)
def test_on_a_grid_it_is_the_number_of_dominated_squares(points: Points) -> None:
    squares = sum(
        any(x <= column and y <= row for x, y in points) for column in range(10) for row in range(8)
    )
    assert hypervolume(np.array(points), (10.0, 8.0)) == pytest.approx(squares)


@given(POINTS)
def test_non_dominated_by_the_definition(points: Points) -> None:
    expected = [
        not any(a <= x and b <= y and (a < x or b < y) for a, b in points) for x, y in points
    ]
    assert non_dominated(np.array(points)).tolist() == expected


@given(POINTS)
def test_dominated_points_add_nothing(points: Points) -> None:
    array = np.array(points, dtype=float)
    assert hypervolume(array[non_dominated(array)]) == pytest.approx(hypervolume(array))


@pytest.mark.parametrize("points", [[1.0, 2.0], [[1.0, 2.0, 3.0]], [[1.0, np.nan]]])
def test_bad_points_are_refused(points: list[object]) -> None:
    for function in (hypervolume, non_dominated):
        with pytest.raises(InputError, match=r"points must hold two finite costs .* got shape"):
            function(np.array(points))


def test_a_bad_reference_is_refused() -> None:
    with pytest.raises(InputError, match="reference must hold two finite costs"):
        hypervolume(np.zeros((1, 2)), (50.0, np.inf))
