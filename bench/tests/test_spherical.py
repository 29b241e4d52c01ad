"""Class-wise noise and the designed loss find one boundary on separable data."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

from autobalance import InputError
from autobalance.losses.modules import ParametricCrossEntropy
from autobalance_bench.spherical import (
    Separation,
    equal_delta,
    loss_margins,
    noise_margins,
    noise_radii,
    separation,
)

Pair = tuple[float, float]
BIAS = 4.0  # as a feature: its step is then 16 times the weights', so that it is nearly free


def points() -> tuple[np.ndarray, np.ndarray]:
    """Eight of class 0, four of class 1, turned by half a radian."""
    first = [[-1, 0], [-1.3, 0.9], [-1.6, -1.1], [-2, 0.2], [-1.8, 1.5], [-2.4, -0.6]]
    second = [[-1.5, -0.5], [-2.2, -1.6], [1, 0.1], [1.4, -1], [1.5, 0.9], [2, 0.3]]
    x = np.array([*first, *second])
    cos, sin = math.cos(0.5), math.sin(0.5)
    return x @ np.array([[cos, sin], [-sin, cos]]), np.repeat([0, 1], [8, 4])


def ring(x: np.ndarray, y: np.ndarray, radii: Pair) -> tuple[np.ndarray, np.ndarray]:
    """Each example in 48 directions."""
    angle = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    circle = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return (x[:, None] + np.array(radii)[y][:, None, None] * circle).reshape(-1, 2), np.repeat(
        y, 48
    )


def loss_of(h: np.ndarray, y: np.ndarray, delta: Pair, additive: Pair = (0, 0)) -> np.ndarray:
    """Slope of the loss in h = f_1 - f_0, and the loss, by the docstring's formula."""
    side = 2 * y - 1
    delta_y = np.array(delta)[y]
    margin = side * (delta_y * h + additive[1] - additive[0])
    return np.stack([-side * delta_y * np.exp(-np.logaddexp(0, margin)), np.logaddexp(0, -margin)])


def descended(
    x: np.ndarray,
    y: np.ndarray,
    delta: Pair = (1.0, 1.0),
    additive: Pair = (0.0, 0.0),
    *,
    steps: int = 10_000,
    rate: float = 0.05,
    norm: float | None = None,
) -> tuple[np.ndarray, float]:
    """Unit normal and offset after gradient descent whose step divides by the loss.

    With `norm`, the weights are scaled back to it after each step.
    """
    features = np.column_stack([x, np.full(len(x), BIAS)])
    theta = np.zeros(3)
    for _ in range(steps):
        slope, loss = loss_of(features @ theta, y, delta, additive)
        theta = theta - rate * (slope @ features) / max(loss.sum(), 1e-300)
        if norm is not None:
            theta[:2] *= norm / np.linalg.norm(theta[:2])
    length = float(np.linalg.norm(theta[:2]))
    return theta[:2] / length, float(theta[2]) * BIAS / length


def degrees_between(one: np.ndarray, two: np.ndarray) -> float:
    return math.degrees(math.acos(min(1.0, float(one @ two))))


def test_the_slope_is_that_of_the_librarys_loss() -> None:
    rng = np.random.default_rng(0)
    h, y = rng.normal(size=9) * 3, np.arange(9) % 2
    delta, additive = (0.6, 2.0), (0.3, -0.8)
    loss = ParametricCrossEntropy(
        additive=torch.tensor([additive] * 2, dtype=torch.float64),
        multiplicative=torch.tensor([[d, d] for d in delta], dtype=torch.float64),
        reduction="none",
    )
    leaf = torch.tensor(h, requires_grad=True)
    target = torch.tensor(y)
    logits = torch.stack([-0.3 * leaf, 0.7 * leaf], dim=1)  # f_1 - f_0 = h
    value = loss(logits, target, groups=target)
    # a counts for class 1 and against class 0, whatever delta is
    expected = loss_of(h, y, delta, additive)
    np.testing.assert_allclose(value.detach(), expected[1], rtol=1e-9)
    np.testing.assert_allclose(torch.autograd.grad(value.sum(), leaf)[0], expected[0], rtol=1e-9)


@pytest.mark.parametrize("delta", [(1.0, 1.0), (3.0, 1.0), (1.0, 4.0)])
def test_noise_and_loss_train_to_one_boundary(delta: Pair) -> None:
    """Within half a degree and 0.5 % of the gap of the theory, 0.2 s each."""
    x, y = points()
    found = separation(x, y)
    radii = noise_radii(found.gap, delta)
    offset = found.offset(loss_margins(found.gap, delta))
    by_loss, by_noise = descended(x, y, delta), descended(*ring(x, y, radii))
    for normal, b in (by_loss, by_noise):
        assert degrees_between(normal, found.normal) < 0.5
        assert b == pytest.approx(offset, abs=0.005 * found.gap)
    plain = found.offset(loss_margins(found.gap))
    assert (abs(offset - plain) > 0.2 * found.gap) == (delta != (1.0, 1.0))


def test_additive_adjustments_act_through_a_bounded_norm() -> None:
    x, y = points()
    found = separation(x, y)
    norm, additive = 60.0, (0.0, -30.0)
    offset = found.offset(loss_margins(found.gap, additive=additive, norm=norm))
    normal, b = descended(x, y, additive=additive, norm=norm, steps=4000, rate=0.02)
    assert degrees_between(normal, found.normal) < 1.0
    assert b == pytest.approx(offset, abs=0.02 * found.gap)
    radii = noise_radii(found.gap, additive=additive, norm=norm)
    normal, b = descended(*ring(x, y, radii))
    assert degrees_between(normal, found.normal) < 0.5
    assert b == pytest.approx(offset, abs=0.005 * found.gap)


def test_delta_of_the_logits_alone_leaves_the_boundary_where_it_is() -> None:
    """As the docstring says: two linear logits share one direction all the way."""
    x, y = points()
    features = torch.tensor(np.column_stack([x, np.ones(len(x))]))
    target = torch.tensor(y)
    found = []
    # the difference z that the loss sees moves 1 + 1 or 3^2 + 1 as fast
    for delta, rate in (((1.0, 1.0), 0.1), ((3.0, 1.0), 0.1 * 2 / 10)):
        loss = ParametricCrossEntropy(multiplicative=torch.tensor(delta, dtype=torch.float64))
        theta = torch.zeros(3, 2, dtype=torch.float64, requires_grad=True)
        for _ in range(50):
            (gradient,) = torch.autograd.grad(loss(features @ theta, target), theta)
            with torch.no_grad():
                theta -= rate * gradient
        h = (theta[:, 1] - theta[:, 0]).detach()
        found.append(h / h.norm())
    torch.testing.assert_close(*found)


deltas = st.tuples(st.floats(0.1, 10), st.floats(0.1, 10))


@given(gap=st.floats(0.01, 100), delta=deltas)
def test_radii_reproduce_the_margins_and_the_ratio_of_delta(gap: float, delta: Pair) -> None:
    margins = loss_margins(gap, delta)
    assert sum(margins) == pytest.approx(gap)
    assert margins[1] / margins[0] == pytest.approx(delta[0] / delta[1])
    radii = noise_radii(gap, delta)
    assert min(radii) == 0.0
    assert noise_margins(gap, radii) == pytest.approx(margins)
    found = equal_delta(gap, radii)
    assert found[0] / found[1] == pytest.approx(delta[0] / delta[1])
    assert found[0] * found[1] == pytest.approx(1.0)


@given(seed=st.integers(0, 200), delta=deltas, shift=st.floats(-0.3, 0.3))
def test_the_formulas_solve_the_problems_they_come_from(
    seed: int, delta: Pair, shift: float
) -> None:
    """Best smallest margin over normals and offsets, by trying 720 normals."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(9, 2))
    y = np.repeat([0, 1], [6, 3])
    x[:, 0] += 2.0 * (2 * y - 1) * (1 + np.abs(x[:, 0]).max())
    gap = separation(x, y).gap
    norm, additive = 5.0, (0.0, shift * gap)
    angle = np.linspace(0, 2 * np.pi, 720, endpoint=False)
    along = x @ np.stack([np.cos(angle), np.sin(angle)])
    low, high = along[y == 0].max(axis=0), along[y == 1].min(axis=0)
    widest = int(np.argmax(high - low))
    assert high[widest] - low[widest] == pytest.approx(gap, rel=1e-3)
    t = np.linspace(0, 1, 2001)[:, None] * np.maximum(high - low, 0)  # class 1's distance
    rest = np.maximum(high - low, 0) - t
    value = np.minimum(norm * delta[1] * t + additive[1], norm * delta[0] * rest - additive[1])
    value[:, high < low] = -np.inf
    best = np.unravel_index(int(np.argmax(value)), value.shape)
    expected = loss_margins(gap, delta, additive, norm=norm)
    assert t[best] == pytest.approx(expected[1], abs=3e-3 * gap)
    assert (high - low)[best[1]] == pytest.approx(gap, rel=1e-3)


def test_separation_by_hand() -> None:
    found = separation([[0.0, 0.0], [0.0, 5.0], [3.0, 0.0], [4.0, 7.0]], [0, 0, 1, 1])
    np.testing.assert_allclose(found.normal, [1.0, 0.0], atol=1e-4)
    assert found.gap == pytest.approx(3.0, rel=1e-4)
    assert found.offset((1.0, found.gap - 1.0)) == pytest.approx(-1.0, abs=1e-3)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: separation([[0.0], [2.0], [1.0]], [0, 0, 1]), "No hyperplane separates"),
        (lambda: separation([[0.0], [2.0]], [0, 2]), "some 0, some 1 and no other"),
        (lambda: separation([0.0, 2.0], [0, 1]), r"got shapes \(2,\)"),
        (lambda: noise_margins(1.0, (0.6, 0.5)), "moved examples overlap; got 0.6 and 0.5"),
        (lambda: noise_margins(1.0, (-0.1, 0.5)), "must not be negative"),
        (lambda: loss_margins(0.0), "gap must be a finite number above 0"),
        (lambda: loss_margins(1.0, (0.0, 1.0)), "delta must be a finite number above 0"),
        (lambda: loss_margins(1.0, additive=(0, -9), norm=2.0), "boundary outside of the gap"),
        (lambda: loss_margins(1.0, norm=0.0), "norm must be a finite number above 0"),
        (lambda: Separation(np.ones(1), (0.0, 1.0)).offset((0.2, 0.3)), "must sum to the gap, 1"),
    ],
)  # fmt: skip
def test_refused(build: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build()


def test_spherical_noise_draws_one_boundary_twice(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1]))
    import spherical_noise as example  # pyright: ignore[reportMissingImports]

    output = tmp_path / "noise.svg"
    example.main(["--output", str(output), "--steps", "1500"])
    assert output.read_text().count('<g id="axes_') == 3
    rows = capsys.readouterr().out.splitlines()[1:5]
    angle, *distances = np.array(
        [[float(v.rstrip("°")) for v in row.split()[-3:]] for row in rows]
    ).T
    assert angle.max() < 5.0
    for found in distances:
        assert found[1:3] == pytest.approx(found[3], abs=0.06)
    assert distances[0][0] == pytest.approx(distances[1][0], abs=0.02)
