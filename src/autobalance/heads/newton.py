"""Preconditioned conjugate gradients, and Newton's method for a head's weights."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from autobalance.heads.problem import HeadProblem, KroneckerPreconditioner, divergence_error

MAX_NEWTON_STEPS = 60
MAX_HALVINGS = 30
MAX_RESTARTS = 2
REBUILD_AFTER = 15
"""Products after which Newton's method builds its preconditioner anew; building costs about four."""


@dataclass(frozen=True)
class Solved:
    """What `conjugate_gradients` found: q, shape ``(k, d + 1)``, float64, as `direction`.

    `residual` is ``|b - A q| / |b|``, computed from q and not from the recurrence alone where `verify`;
    `iterations` counts products with A; `reason` is "tolerance", "iterations" or "zero" (b = 0).
    """

    direction: Tensor
    residual: float
    iterations: int
    reason: str


@dataclass(frozen=True)
class Minimum:
    """What `minimise` found: weights ``(k, d + 1)`` in the features' dtype.

    `loss` is the training loss without weight decay, `residual` the gradient's norm relative to that at
    zero weights, `steps` counts Newton steps, `products` those with A; `preconditioner` is the last built.
    """

    weights: Tensor
    loss: float
    residual: float
    steps: int
    products: int
    preconditioner: KroneckerPreconditioner


def conjugate_gradients(
    problem: HeadProblem,
    precondition: KroneckerPreconditioner,
    b: Tensor,
    *,
    tolerance: float,
    iterations: int,
    start: Tensor | None = None,
    verify: bool = False,
) -> Solved:
    """Solve ``A q = b`` at the weights last evaluated.

    q and the residual are held in float64, search directions in the features' dtype, so that in
    float32 q is not rounded and only the products' own rounding is left.

    Parameters
    ----------
    problem, precondition
        Give the products, and approximate A^-1.
    b : Tensor
        Shape ``(k, d + 1)``.
    tolerance : float
        Stop when ``|b - A q| <= tolerance |b|``.
    iterations : int
        At most so many products, without those that verify.
    start : Tensor, optional
        A q to start from, at the cost of one product.
    verify : bool
        Compute the residual anew at the end and go on from it where rounding has let the
        recurrence drift, at most `MAX_RESTARTS` times. Costs one product each.
    """
    b = b.double()
    norm = float(b.norm())
    if norm == 0.0:
        return Solved(torch.zeros_like(b), 0.0, 0, "zero")
    products = 0
    q, r = torch.zeros_like(b), b
    if start is not None:
        q = start.to(problem.like).double()
        r, products = b - problem.product(q), 1
    relative = float(r.norm()) / norm
    for attempt in range(MAX_RESTARTS + 1):
        p, last = None, math.inf
        while relative > tolerance and products < iterations:
            z = precondition(r.to(problem.like))
            now = float((r * z).sum())
            p = z if p is None else z + (now / last) * p
            applied = problem.product(p)
            products += 1
            step = now / float((p * applied).sum())
            q = q + step * p.double()
            r = r - step * applied
            last, relative = now, float(r.norm()) / norm
        if not verify or products == 0:
            break
        r = b - problem.product(q, exact=True)
        products += 1
        relative = float(r.norm()) / norm
        if relative <= tolerance or products >= iterations or attempt == MAX_RESTARTS:
            break
    return Solved(q, relative, products, "tolerance" if relative <= tolerance else "iterations")


def minimise(
    problem: HeadProblem,
    weights: Tensor,
    *,
    tolerance: float,
    reference: float,
    preconditioner: KroneckerPreconditioner | None = None,
) -> Minimum:
    """Newton's method with a line search; each system is solved only as far as it pays.

    Parameters
    ----------
    problem : HeadProblem
        With its loss set.
    weights : Tensor
        Where to start, shape ``(k, d + 1)``.
    tolerance : float
        Stop when the gradient's norm is at most this share of `reference`.
    reference : float
        The gradient's norm at zero weights.
    preconditioner : KroneckerPreconditioner, optional
        One of an earlier call at similar weights. It is then kept, else built as needed.

    Raises
    ------
    TrainingDiverged
        If the loss, its gradient or its curvature is not finite.
    """
    is_given = preconditioner is not None
    value, gradient = problem.evaluate(weights)
    products = age = steps = 0
    for steps in range(MAX_NEWTON_STEPS + 1):
        relative = float(gradient.norm()) / reference
        if not (math.isfinite(value) and math.isfinite(relative)):
            raise divergence_error("value or gradient")
        if relative <= tolerance or steps == MAX_NEWTON_STEPS:
            break
        if preconditioner is None or (not is_given and age >= REBUILD_AFTER):
            preconditioner, age = problem.kronecker(), 0
        # As exact as superlinear convergence needs, and no more than the tolerance asks for.
        forcing = max(min(0.1, relative**0.5), 0.3 * tolerance / relative)
        solved = conjugate_gradients(
            problem, preconditioner, -gradient, tolerance=forcing, iterations=500
        )
        if not bool(torch.isfinite(solved.direction).all()):
            raise divergence_error("curvature")
        products += solved.iterations
        age += solved.iterations
        better = _line_search(problem, weights, value, gradient, solved.direction)
        if better is None:  # no lower value can be told apart in this precision
            problem.evaluate(weights)
            break
        weights, value, gradient = better
    if preconditioner is None or not is_given:
        preconditioner = problem.kronecker()
    relative = float(gradient.norm()) / reference
    return Minimum(weights, problem.data_loss, relative, steps, products, preconditioner)


def _line_search(
    problem: HeadProblem, weights: Tensor, value: float, gradient: Tensor, direction: Tensor
) -> tuple[Tensor, float, Tensor] | None:
    slope = float((gradient * direction).sum())
    noise = torch.finfo(weights.dtype).eps * abs(value)
    step = 1.0
    for _ in range(MAX_HALVINGS):
        trial = (weights + step * direction).to(weights.dtype)
        new, new_gradient = problem.evaluate(trial)
        if new <= value + 1e-4 * step * slope + noise:
            return trial, new, new_gradient
        step /= 2
    return None
