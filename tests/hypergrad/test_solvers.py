"""Each solver against numpy's dense solution, and its diagnostics against the truth."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from autobalance.checks import InputError
from autobalance.hypergrad import (
    ConjugateGradient,
    Exact,
    Identity,
    Neumann,
    Solution,
    Solver,
    TrainingSystem,
)
from autobalance.spaces import ClassSpace
from autobalance.tunable import TunableCrossEntropy
from helpers import COUNTS, images, network, scatter


class MatrixSystem:
    """A system given by its matrix A; the "logits" are J q with J known as well."""

    def __init__(self, A: Tensor, J: Tensor | None = None) -> None:
        self.A = A
        self.J = 2 * torch.eye(len(A), dtype=A.dtype) if J is None else J
        self.products = 0
        self.shift = 0.0
        self.preconditioner: Tensor | None = None

    def tangent(self, vector: Tensor) -> Tensor:
        return self.J @ vector

    def product(self, vector: Tensor) -> tuple[Tensor, Tensor]:
        self.products += 1
        return self.A @ vector, self.tangent(vector)

    def quadratic(self, vector: Tensor, tangent: Tensor) -> float:
        torch.testing.assert_close(tangent, self.tangent(vector))
        return float(vector @ self.A @ vector)


def solve(solver: Solver, system: MatrixSystem, b: Tensor, start: Tensor | None = None) -> Solution:
    carried = None if start is None else {"q": start}
    return solver.solve(cast(TrainingSystem, system), b, carried)


def matrix(eigenvalues: list[float], seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    n = len(eigenvalues)
    Q, _ = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))
    return Q @ torch.diag(torch.tensor(eigenvalues, dtype=torch.float64)) @ Q.T


def vector(n: int, seed: int = 1) -> Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def true_residual(system: MatrixSystem, b: Tensor, q: Tensor) -> float:
    return float((b - system.A @ q).norm() / b.norm())


SPECTRUM = [0.05, 0.3, 0.5, 1.0, 1.7, 2.5]
SOLVERS: list[Solver] = [
    Identity(),
    ConjugateGradient(iterations=3, tolerance=0.0),
    Neumann(terms=3),
    Exact(),
]


def test_exact_equals_numpy() -> None:
    system, b = MatrixSystem(matrix(SPECTRUM)), vector(6)
    found = solve(Exact(), system, b)
    expected = np.linalg.solve(system.A.numpy(), b.numpy())
    np.testing.assert_allclose(found.direction.numpy(), expected, rtol=1e-12)
    assert found.residual < 1e-13
    assert (found.reason, found.iterations) == ("exact", 6)


def test_exact_says_so_where_the_curvature_is_singular() -> None:
    system, b = MatrixSystem(torch.zeros(6, 6, dtype=torch.float64)), vector(6)
    with pytest.raises(InputError, match=r"singular .* Give Exact a damping above 0"):
        solve(Exact(), system, b)


def test_conjugate_gradient_of_many_iterations_equals_exact() -> None:
    system, b = MatrixSystem(matrix(SPECTRUM)), vector(6)
    found = solve(ConjugateGradient(iterations=100, tolerance=1e-13), system, b)
    expected = solve(Exact(), system, b)
    torch.testing.assert_close(found.direction, expected.direction, rtol=1e-10, atol=1e-11)
    assert found.reason == "tolerance"
    assert found.iterations <= 10  # 6 in exact arithmetic


def test_conjugate_gradient_equals_exact_on_a_networks_own_system() -> None:
    """With train-mode BatchNorm, at the damping that both are given as part of A."""
    model, batch = network("batch_norm"), images(12)
    space = ClassSpace(COUNTS, learn=("weight", "additive", "multiplicative")).double()
    scatter(space)
    loss = TunableCrossEntropy(space)
    design = space()
    system = TrainingSystem(
        model,
        [(batch.inputs, lambda f: loss.at(design, f, batch.target))],
        list(space.parameters()),
        0.02,
    )
    b = vector(sum(p.numel() for p in model.parameters()))
    expected = Exact().solve(system, b)
    found = ConjugateGradient(iterations=200, tolerance=1e-12).solve(system, b)
    torch.testing.assert_close(found.direction, expected.direction, rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(found.tangent, expected.tangent, rtol=1e-8, atol=1e-9)


def test_neumann_of_many_terms_equals_exact() -> None:
    system, b = MatrixSystem(matrix(SPECTRUM)), vector(6)
    found = solve(Neumann(terms=1500), system, b)
    expected = solve(Exact(), system, b)
    torch.testing.assert_close(found.direction, expected.direction, rtol=1e-9, atol=1e-9)


def test_neumann_is_the_series_where_the_series_converges() -> None:
    """With all eigenvalues below 1, no step is bounded: q = sum_j (I - A)^j b."""
    system, b = MatrixSystem(matrix([0.2, 0.5, 0.9])), vector(3)
    found = solve(Neumann(terms=4), system, b)
    rest = torch.eye(3, dtype=torch.float64) - system.A
    expected = sum(torch.linalg.matrix_power(rest, j) @ b for j in range(4))
    torch.testing.assert_close(found.direction, expected, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("terms", [1, 2, 5, 20])
@pytest.mark.parametrize("largest", [3.0, 1e3, 1e8])
def test_neumann_does_not_diverge_where_the_curvature_is_large(largest: float, terms: int) -> None:
    """The plain series of step 1 grows by a factor `largest` each term."""
    system, b = MatrixSystem(matrix([0.1, 1.0, largest])), vector(3)
    found = solve(Neumann(terms=terms), system, b)
    assert true_residual(system, b, found.direction) <= 1.0
    exact = solve(Exact(), system, b)
    assert float(found.direction.norm()) <= 1.01 * float(exact.direction.norm())


def test_neumanns_first_step_does_not_overshoot_either() -> None:
    """|A b| / |b| far below the largest eigenvalue: the bound from it is too bold a step."""
    system = MatrixSystem(torch.diag(torch.tensor([1.0, 1000.0], dtype=torch.float64)))
    b = torch.tensor([1.0, 0.01], dtype=torch.float64)
    found = solve(Neumann(terms=1, power_iterations=1), system, b)
    assert true_residual(system, b, found.direction) < 1.0
    assert system.products == 1


def test_neumanns_residual_falls_with_the_terms() -> None:
    system, b = MatrixSystem(matrix([0.1, 1.0, 500.0])), vector(3)
    residuals = [solve(Neumann(terms=t), system, b).residual for t in (1, 2, 4, 8, 16)]
    assert residuals == sorted(residuals, reverse=True)
    assert residuals[-1] < residuals[0]


def test_neumann_keeps_to_its_largest_step() -> None:
    system, b = MatrixSystem(matrix([0.01, 0.02, 0.03])), vector(3)
    found = solve(Neumann(terms=1, max_step=0.5), system, b)
    torch.testing.assert_close(found.direction, 0.5 * b)


def test_identity_is_b() -> None:
    system, b = MatrixSystem(matrix(SPECTRUM)), vector(6)
    found = solve(Identity(), system, b)
    assert torch.equal(found.direction, b)
    assert torch.equal(found.tangent, 2 * b)
    assert (found.reason, found.iterations, system.products) == ("identity", 0, 0)
    assert math.isnan(found.residual)  # it does not look


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: type(s).__name__)
def test_a_zero_right_hand_side_gives_zero(solver: Solver) -> None:
    system, b = MatrixSystem(matrix(SPECTRUM)), torch.zeros(6, dtype=torch.float64)
    found = solve(solver, system, b)
    assert not found.direction.any()
    assert not found.tangent.any()
    if isinstance(solver, (ConjugateGradient, Neumann)):
        assert (found.reason, found.residual, found.iterations) == ("zero", 0.0, 0)


@pytest.mark.parametrize("start", [False, True], ids=["cold", "warm"])
@pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: type(s).__name__)
def test_tangent_residual_and_products_reported_are_true(solver: Solver, start: bool) -> None:
    J = torch.randn(4, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    system, b = MatrixSystem(matrix(SPECTRUM), J), vector(6)
    found = solve(solver, system, b, vector(6, seed=8) if start else None)
    torch.testing.assert_close(found.tangent, J @ found.direction, rtol=1e-12, atol=1e-12)
    assert found.iterations == system.products
    if not isinstance(solver, Identity):
        truth = true_residual(system, b, found.direction)
        assert found.residual == pytest.approx(truth, rel=1e-9, abs=1e-13)


def test_a_warm_start_goes_on_from_where_it_is() -> None:
    """One iteration is one exact line search along the residual: the error in A's norm falls."""
    system, b = MatrixSystem(matrix(SPECTRUM)), vector(6)
    solution = solve(Exact(), system, b).direction
    solver = ConjugateGradient(iterations=1, tolerance=0.0, warm_start=True)

    def error(q: Tensor) -> float:
        return float((q - solution) @ system.A @ (q - solution))

    q, errors = torch.zeros(6, dtype=torch.float64), []
    for _ in range(100):
        residual = b - system.A @ q
        step = (residual @ residual) / (residual @ system.A @ residual)
        by_hand = q + step * residual
        q = solve(solver, system, b, q).direction
        torch.testing.assert_close(q, by_hand, rtol=1e-11, atol=1e-12)
        errors.append(error(q))
    assert all(a > b for a, b in pairwise(errors))
    assert errors[-1] < 1e-2 * errors[0]


def test_starting_at_the_solution_stops_at_once() -> None:
    system, b = MatrixSystem(matrix(SPECTRUM)), vector(6)
    solution = solve(Exact(), system, b).direction
    system.products = 0
    found = solve(ConjugateGradient(iterations=5, warm_start=True), system, b, solution)
    assert (found.reason, found.iterations, system.products) == ("tolerance", 1, 1)
    assert torch.equal(found.direction, solution)


def test_conjugate_gradient_stops_at_its_tolerance() -> None:
    system, b = MatrixSystem(matrix(SPECTRUM)), vector(6)
    loose = solve(ConjugateGradient(iterations=50, tolerance=0.3), system, b)
    tight = solve(ConjugateGradient(iterations=50, tolerance=1e-6), system, b)
    assert loose.residual <= 0.3
    assert tight.residual <= 1e-6
    assert loose.iterations < tight.iterations
    out = solve(ConjugateGradient(iterations=2, tolerance=1e-6), system, b)
    assert (out.reason, out.iterations) == ("iterations", 2)


def test_conjugate_gradient_survives_a_singular_matrix() -> None:
    """All of b in the null space: no curvature to step along, so it stays where it is."""
    system = MatrixSystem(torch.diag(torch.tensor([1.0, 0.0], dtype=torch.float64)))
    found = solve(ConjugateGradient(), system, torch.tensor([0.0, 1.0], dtype=torch.float64))
    assert found.direction.tolist() == [0.0, 0.0]
    assert found.tangent.tolist() == [0.0, 0.0]
    assert (found.residual, found.reason) == (1.0, "iterations")


def test_exact_refuses_what_does_not_fit() -> None:
    with pytest.raises(InputError, match="at most 5 trainable weights; this network has 6"):
        solve(Exact(max_parameters=5), MatrixSystem(matrix(SPECTRUM)), vector(6))


@pytest.mark.parametrize(
    ("kind", "given", "message"),
    [
        (ConjugateGradient, {"iterations": 0}, "iterations must be at least 1; got 0"),
        (ConjugateGradient, {"damping": -1.0}, "damping must not be negative; got -1.0"),
        (ConjugateGradient, {"tolerance": -1.0}, "tolerance must not be negative; got -1.0"),
        (Neumann, {"terms": 0}, "terms must be at least 1; got 0"),
        (Exact, {"damping": -1.0}, "damping must not be negative; got -1.0"),
        (Neumann, {"damping": -1.0}, "damping must not be negative; got -1.0"),
        (Neumann, {"max_step": 0.0}, "max_step must be a finite number above 0; got 0.0"),
    ],
)
def test_settings_refused(kind: Any, given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        kind(**given)
