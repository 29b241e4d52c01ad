"""Each solver against numpy's dense solution, and its diagnostics against the truth."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from autobalance._validation import InputError
from autobalance.hypergrad.curvature import TrainingSystem
from autobalance.hypergrad.implicit import hypergradient
from autobalance.hypergrad.solvers import (
    ConjugateGradient,
    Exact,
    Identity,
    Neumann,
    Nystrom,
    Solution,
    Solver,
)
from autobalance.objectives.aggregates import BalancedError
from autobalance.spaces.class_space import ClassSpace
from autobalance.spaces.tunable_loss import TunableCrossEntropy
from helpers import (
    COUNTS,
    SPECTRUM,
    MatrixSystem,
    class_loss,
    images,
    matrix,
    network,
    scatter,
    validation_gradient,
    vector,
)


def solve(solver: Solver, system: MatrixSystem, b: Tensor, start: Tensor | None = None) -> Solution:
    solver_state = None if start is None else {"q": start}
    return solver.solve(cast(TrainingSystem, system), b, solver_state)


def true_residual(system: MatrixSystem, b: Tensor, q: Tensor) -> float:
    return float((b - system.A @ q).norm() / b.norm())


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


# Indefinite matrices --------------------------------------------------------------------------


@pytest.mark.parametrize("damping", [0.0, 0.1])
@pytest.mark.parametrize("iterations", [2, 5, 30])
@pytest.mark.parametrize("seed", range(4))
def test_conjugate_gradient_damps_negative_curvature_away(
    seed: int, iterations: int, damping: float
) -> None:
    """Plain conjugate gradients would step to a saddle, uphill along the negative directions."""
    system, b = MatrixSystem(matrix([-1.0, -0.3, 0.2, 0.5, 1.0, 3.0])), vector(6, seed)
    solver = ConjugateGradient(iterations=iterations, damping=damping, tolerance=1e-10)
    found = solve(solver, system, b, vector(6, seed=9) if seed % 2 else None)
    assert torch.isfinite(found.direction).all()
    assert float(found.direction @ b) > 0
    torch.testing.assert_close(found.tangent, system.tangent(found.direction))
    assert found.iterations == system.products
    if iterations >= 5:
        assert found.reason == "indefinite"
    if iterations == 30:  # the solution of A + extra I for one extra
        q = found.direction
        extra = (b - system.A @ q) / q
        torch.testing.assert_close(extra, extra.mean().expand(6), rtol=1e-5, atol=0)
        assert float(extra.mean()) > 1.0  # more than the most negative eigenvalue


def test_conjugate_gradient_leaves_a_definite_matrix_alone() -> None:
    system, b = MatrixSystem(matrix(SPECTRUM)), vector(6)
    assert solve(ConjugateGradient(damping=5.0), system, b).reason == "iterations"


@pytest.mark.parametrize("name", ["mlp", "batch_norm", "cnn", "dropout"])
def test_conjugate_gradient_on_the_exact_hessian_at_random_weights(name: str) -> None:
    model, held = network(name), images(15, seed=5)
    solver = ConjugateGradient(curvature="hessian", iterations=20)
    found = hypergradient(model, class_loss(), BalancedError(), images(10), held, solver=solver)
    b = validation_gradient(model, BalancedError(), held)
    assert found.solution.reason == "indefinite"
    assert found.finite
    assert float(found.solution.direction @ b) > 0


# Preconditioned -------------------------------------------------------------------------------


def test_preconditioned_identity_scales_b() -> None:
    J = torch.randn(4, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    system, b = MatrixSystem(matrix(SPECTRUM), J), vector(6)
    system.preconditioner = torch.linspace(0.1, 2.0, 6, dtype=torch.float64)
    found = solve(Identity(preconditioned=True), system, b)
    torch.testing.assert_close(found.direction, system.preconditioner * b, rtol=0, atol=0)
    torch.testing.assert_close(found.tangent, J @ (system.preconditioner * b))
    assert torch.equal(solve(Identity(), system, b).direction, b)
    system.preconditioner = None
    assert torch.equal(solve(Identity(preconditioned=True), system, b).direction, b)


# Nystrom --------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [6, 9])
@pytest.mark.parametrize("by_weight", [False, True], ids=["one-shift", "by-weight"])
def test_nystrom_of_full_rank_equals_exact(by_weight: bool, rank: int) -> None:
    shift = torch.linspace(0.02, 0.5, 6, dtype=torch.float64) if by_weight else 0.02
    system, b = MatrixSystem(matrix([0.0, 0.1, 0.3, 1.0, 5.0, 40.0]), shift=shift), vector(6)
    found = solve(Nystrom(rank=rank), system, b)
    expected = solve(Exact(), system, b)
    torch.testing.assert_close(found.direction, expected.direction, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(found.tangent, expected.tangent, rtol=1e-7, atol=1e-7)
    assert found.iterations == rank


def test_nystrom_of_full_rank_equals_exact_on_a_network() -> None:
    given = (network("tied"), class_loss(), BalancedError(), images(10), images(15, seed=5))
    exact = hypergradient(*given, solver=Exact(damping=0.05), weight_decay=0.1)
    found = hypergradient(*given, solver=Nystrom(damping=0.05, rank=64), weight_decay=0.1)
    torch.testing.assert_close(found.gradients, exact.gradients, rtol=1e-7, atol=1e-9)


def test_nystroms_error_falls_with_the_rank() -> None:
    """By orders of magnitude once the rank is that of the curvature."""
    low = matrix([0.0] * 20 + [0.5, 2.0, 10.0, 50.0])
    system, b = MatrixSystem(low, shift=0.01), vector(24)
    exact = solve(Exact(), system, b).direction
    errors = [
        float((solve(Nystrom(rank=r), system, b).direction - exact).norm() / exact.norm())
        for r in (1, 2, 3, 4)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 1e-2
    assert errors[3] < 1e-9


def test_nystrom_solves_by_its_own_approximation_of_the_matrix() -> None:
    """Woodbury's identity against the dense C W^-1 C' + shift, with the same Omega."""
    system, b = MatrixSystem(matrix([0.1, 0.3, 1.0, 2.0, 5.0, 40.0]), shift=0.3), vector(6)
    found = solve(Nystrom(rank=3, seed=4), system, b)
    generator = torch.Generator().manual_seed(4)
    Omega = torch.randn(3, 6, generator=generator, dtype=torch.float64).numpy().T
    K = system.A.numpy() - 0.3 * np.eye(6)
    C = K @ Omega
    approximate = C @ np.linalg.inv(Omega.T @ C) @ C.T + 0.3 * np.eye(6)
    expected = np.linalg.solve(approximate, b.numpy())
    np.testing.assert_allclose(found.direction.numpy(), expected, rtol=1e-9)


# Neumann's step -------------------------------------------------------------------------------


@pytest.mark.parametrize("power_iterations", [1, 2, 3])
def test_neumanns_step_is_one_over_the_power_iterations_estimate(power_iterations: int) -> None:
    """B hardly sees the largest eigenvalue; each power iteration sees it 1e6 times better."""
    eigenvalues = np.array([0.5, 1.0, 1e6])
    system = MatrixSystem(torch.diag(torch.from_numpy(eigenvalues)))
    b = torch.tensor([1.0, 1.0, 1e-9], dtype=torch.float64)
    v, largest = b.numpy(), 0.0
    for _ in range(power_iterations):
        v = eigenvalues * v / np.linalg.norm(v)
        largest = max(largest, float(np.linalg.norm(v)))
    found = solve(Neumann(terms=1, power_iterations=power_iterations), system, b)
    torch.testing.assert_close(found.direction, b * min(1.0, 1 / largest), rtol=1e-12, atol=0)
    many = solve(Neumann(terms=200, power_iterations=power_iterations), system, b)
    assert true_residual(system, b, many.direction) < 1.0
    assert (power_iterations == 3) == (largest > 0.99e6)


@pytest.mark.parametrize(
    ("kind", "given", "message"),
    [
        (ConjugateGradient, {"iterations": 0}, "iterations must be at least 1; got 0"),
        (ConjugateGradient, {"damping": -1.0}, "damping must not be negative; got -1.0"),
        (ConjugateGradient, {"tolerance": -1.0}, "tolerance must not be negative; got -1.0"),
        (Nystrom, {"rank": 0}, "rank must be at least 1; got 0"),
        (Nystrom, {"damping": 0.0}, "damping must be a finite number above 0; got 0.0"),
        (Identity, {"curvature": "newton"}, "curvature must be one of"),
        (Neumann, {"power_iterations": 0}, "power_iterations must be at least 1; got 0"),
        (Neumann, {"terms": 0}, "terms must be at least 1; got 0"),
        (Exact, {"damping": -1.0}, "damping must not be negative; got -1.0"),
        (Neumann, {"damping": -1.0}, "damping must not be negative; got -1.0"),
        (Neumann, {"max_step": 0.0}, "max_step must be a finite number above 0; got 0.0"),
    ],
)
def test_settings_refused(kind: Any, given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        kind(**given)
