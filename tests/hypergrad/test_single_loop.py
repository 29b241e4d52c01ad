"""The single loop: by hand over many calls, and to the solution of a system that stays."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import numpy as np
import pytest
import torch
from torch import Tensor

from autobalance._validation import InputError
from autobalance.hypergrad.curvature import TrainingSystem
from autobalance.hypergrad.solvers import Exact, SingleLoop, Solution
from helpers import SPECTRUM, MatrixSystem, matrix, vector

PRECONDITIONER = torch.linspace(0.2, 3.0, 6, dtype=torch.float64)


def solve(
    solver: SingleLoop,
    system: MatrixSystem,
    b: Tensor,
    solver_state: dict[str, Tensor] | None = None,
) -> Solution:
    return solver.solve(cast(TrainingSystem, system), b, solver_state)


@dataclass
class Call:
    """What one call should do."""

    q: np.ndarray  # kept for the next
    used: np.ndarray  # by the mixed product
    residual: float  # at the start
    searched: bool


def by_hand(
    A: np.ndarray, right_hand_sides: list[np.ndarray], every: int, P: np.ndarray
) -> Iterator[Call]:
    q, length, since, first = np.zeros(len(A)), math.inf, math.inf, True
    for b in right_hand_sides:
        r = b - A @ q
        residual = float(np.linalg.norm(r) / np.linalg.norm(b))
        searched = since >= every or residual > 2.0
        step = length
        if searched:
            step = float(r @ (P * r) / ((P * r) @ A @ (P * r)))
            length, since = min(step, 1.2 * length), 0
        old, q = q, q + step * P * r
        since, first = math.inf if first else since + 1, False
        yield Call(q, q if searched else old, residual, searched)


@pytest.mark.parametrize("preconditioned", [False, True], ids=["plain", "preconditioned"])
@pytest.mark.parametrize("every", [1, 2, 3, 4])
def test_equals_the_recursion_by_hand(every: int, preconditioned: bool) -> None:
    """The right-hand side moves as in training, and once jumps so that the residual is large."""
    J = torch.randn(4, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    system = MatrixSystem(matrix(SPECTRUM), J)
    system.preconditioner = PRECONDITIONER
    scales = [1.0, 1.1, 0.9, 1.0, 1.0, 1.0, 0.1, 1.0, 1.0, 1.0, 1.0, 1.0]
    sides = [s * (vector(6) + 0.2 * vector(6, seed=10 + i)) for i, s in enumerate(scales)]
    P = PRECONDITIONER.numpy() if preconditioned else np.ones(6)
    calls = list(by_hand(system.A.numpy(), [b.numpy() for b in sides], every, P))
    assert any(c.residual > 2.0 for c in calls)  # the jump
    solver_state: dict[str, Tensor] = {}
    solver = SingleLoop(line_search_every=every, preconditioned=preconditioned)
    for i, (b, call) in enumerate(zip(sides, calls, strict=True)):
        system.products = system.tangents = 0
        found = solve(solver, system, b, solver_state)
        solver_state = found.solver_state
        np.testing.assert_allclose(found.direction.numpy(), call.q, rtol=1e-10)
        # J q of the very q that serves, not of the one kept for the next call.
        np.testing.assert_allclose(found.tangent.numpy(), J.numpy() @ call.used, rtol=1e-10)
        assert found.residual == pytest.approx(call.residual, rel=1e-10)
        assert found.iterations == system.products == (i > 0)  # the first q is 0
        assert system.tangents == call.searched  # a line search costs one forward-mode pass
        assert found.reason == "iterations"


def test_the_first_call_is_a_line_search_along_b() -> None:
    system, b = MatrixSystem(matrix(SPECTRUM)), vector(6)
    found = solve(SingleLoop(), system, b)
    step = (b @ b) / (b @ system.A @ b)
    torch.testing.assert_close(found.direction, step * b)
    torch.testing.assert_close(found.tangent, 2 * step * b)


@pytest.mark.parametrize("preconditioned", [False, True], ids=["plain", "preconditioned"])
@pytest.mark.parametrize("every", [1, 4, 10])
def test_converges_to_the_solution_of_a_system_that_stays(every: int, preconditioned: bool) -> None:
    system, b = MatrixSystem(matrix(SPECTRUM)), vector(6)
    system.preconditioner = PRECONDITIONER
    solver = SingleLoop(line_search_every=every, preconditioned=preconditioned)
    solver_state: dict[str, Tensor] = {}
    for _ in range(2500):
        found = solve(solver, system, b, solver_state)
        solver_state = found.solver_state
    exact = Exact().solve(cast(TrainingSystem, system), b)
    torch.testing.assert_close(found.direction, exact.direction, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.tangent, exact.tangent, rtol=1e-6, atol=1e-6)


def test_the_preconditioner_helps_where_it_fits() -> None:
    """A diagonal of very different sizes, as of Adam's weights: solved at once by its inverse."""
    diagonal = torch.tensor([1e-3, 1e-1, 1.0, 1e2], dtype=torch.float64)
    system, b = MatrixSystem(torch.diag(diagonal)), vector(4)
    system.preconditioner = 1 / diagonal
    found = solve(SingleLoop(preconditioned=True), system, b)
    torch.testing.assert_close(found.direction, b / diagonal)
    plain = solve(SingleLoop(), system, b)
    assert not torch.allclose(plain.direction, b / diagonal, rtol=0.1)


def test_what_is_carried_is_all_that_is_needed() -> None:
    """A copy of it, given to another solver of the same settings, continues bit for bit."""
    system = MatrixSystem(matrix(SPECTRUM))
    one: dict[str, Tensor] = {}
    for i in range(3):
        one = solve(SingleLoop(), system, vector(6, seed=i), one).solver_state
    other = copy.deepcopy(one)
    for i in range(3, 9):
        a = solve(SingleLoop(), system, vector(6, seed=i), one)
        b = solve(SingleLoop(), system, vector(6, seed=i), other)
        assert torch.equal(a.direction, b.direction)
        assert torch.equal(a.tangent, b.tangent)
        one, other = a.solver_state, b.solver_state
    assert all(isinstance(kept, Tensor) for kept in one.values())


def test_a_call_does_not_write_to_what_the_last_one_carried() -> None:
    system, b = MatrixSystem(matrix(SPECTRUM)), vector(6)
    solver_state = solve(SingleLoop(), system, b).solver_state
    before = copy.deepcopy(solver_state)
    solve(SingleLoop(), system, b, solver_state)
    assert all(torch.equal(solver_state[name], before[name]) for name in before)


def test_a_zero_right_hand_side_gives_zero_and_carries_nothing() -> None:
    system, b = MatrixSystem(matrix(SPECTRUM)), vector(6)
    solver_state = solve(SingleLoop(), system, b).solver_state
    found = solve(SingleLoop(), system, torch.zeros_like(b), solver_state)
    assert not found.direction.any()
    assert (found.reason, found.solver_state) == ("zero", {})


def test_refuses_the_exact_hessian() -> None:
    """At negative curvature it would grow without bound, and stay finite for hundreds of steps."""
    with pytest.raises(InputError, match=r"negative curvature.* use ConjugateGradient"):
        SingleLoop(curvature="hessian")


def test_what_was_carried_for_other_weights_is_not_taken_up() -> None:
    """As when a layer is unfrozen between two upper steps."""
    solver_state = solve(SingleLoop(), MatrixSystem(matrix(SPECTRUM[1:])), vector(5)).solver_state
    system, b = MatrixSystem(matrix(SPECTRUM)), vector(6)
    assert torch.equal(
        solve(SingleLoop(), system, b, solver_state).direction,
        solve(SingleLoop(), system, b).direction,
    )


@pytest.mark.parametrize("given", [0, -1])
def test_settings_refused(given: int) -> None:
    with pytest.raises(InputError, match=f"line_search_every must be at least 1; got {given}"):
        SingleLoop(line_search_every=given)


def test_a_solution_for_other_weights_is_forgotten_with_its_step_length() -> None:
    """Some weights were frozen or freed: the calls that follow are those of a new beginning."""
    old = solve(SingleLoop(), MatrixSystem(matrix([0.5, 2.0])), vector(2)).solver_state
    system, b = MatrixSystem(matrix(SPECTRUM)), vector(6)
    after, anew = old, {}
    for _ in range(5):
        after = solve(SingleLoop(), system, b, after).solver_state
        anew = solve(SingleLoop(), system, b, anew).solver_state
        assert float(after["length"]) > 0.0
        assert all(torch.equal(after[name], anew[name]) for name in anew)
