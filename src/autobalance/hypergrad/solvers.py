r"""Solvers of A q = b for a hypergradient, b the validation gradient.

Each is a frozen bundle of its settings. Since A v always comes together with J v, a solver
carries J q along with q, and the mixed product that follows costs no further pass.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from autobalance.checks import InputError, positive
from autobalance.hypergrad.system import TrainingSystem


@dataclass(frozen=True)
class Solution:
    """What a solver found, and how.

    Attributes
    ----------
    direction : Tensor
        q, flat over the trainable parameters.
    tangent : Tensor
        J q, shape ``(n, k)``.
    residual : float
        ``|b - A q| / |b|``; NaN where the solver does not look at it.
    iterations : int
        Products with A.
    reason : str
        Why it stopped: "tolerance", "iterations", "exact", "zero" (b = 0) or "identity".
    """

    direction: Tensor
    tangent: Tensor
    residual: float
    iterations: int
    reason: str


class Solver(ABC):
    """Base of all solvers."""

    damping: float = 0.0
    warm_start: bool = False

    @abstractmethod
    def solve(self, system: TrainingSystem, b: Tensor, start: Tensor | None = None) -> Solution:
        """Solve ``A q = b``, from `start` where the solver makes use of one."""


def _zero(system: TrainingSystem, b: Tensor) -> Solution:
    return Solution(b, system.tangent(b), 0.0, 0, "zero")


@dataclass(frozen=True)
class Identity(Solver):
    """q = b: the inverse curvature taken as the identity (as in DARTS and T1-T2). Cheapest.

    It has the right zero where the loss's parameters act alike on all weights, and a scale that
    can be off by orders of magnitude; Adam on the upper level hides the scale.
    """

    def solve(self, system: TrainingSystem, b: Tensor, start: Tensor | None = None) -> Solution:
        return Solution(b, system.tangent(b), float("nan"), 0, "identity")


@dataclass(frozen=True)
class ConjugateGradient(Solver):
    """Conjugate gradients on the damped Gauss-Newton system.

    Parameters
    ----------
    iterations : int
        At most so many; each costs one product.
    damping : float
        Added to the curvature's diagonal, in the units of the loss per squared weight.
    tolerance : float
        Stop when ``|b - A q| <= tolerance |b|``.
    warm_start : bool
        Start from the last upper step's q, at the cost of one more product. With one iteration
        this is the single-loop method with an exact line search (Dagreou et al., NeurIPS 2022).
    """

    iterations: int = 5
    damping: float = 1e-2
    tolerance: float = 1e-3
    warm_start: bool = False

    def __post_init__(self) -> None:
        if self.iterations < 1:
            raise InputError(f"iterations must be at least 1; got {self.iterations}.")
        if self.damping < 0 or self.tolerance < 0:
            raise InputError("damping and tolerance must not be negative.")

    def solve(self, system: TrainingSystem, b: Tensor, start: Tensor | None = None) -> Solution:
        norm = float(b.norm())
        if norm == 0.0:
            return _zero(system, b)
        products = 0
        if start is None:
            q, tangent, residual = torch.zeros_like(b), None, b.clone()
        else:
            applied, tangent = system.product(start)
            q, residual, products = start.clone(), b - applied, 1
        p, squared = residual, float(residual @ residual)
        for _ in range(self.iterations):
            if squared**0.5 <= self.tolerance * norm:
                break
            applied, p_tangent = system.product(p)
            products += 1
            curvature = float(p @ applied)
            if curvature <= 0:  # only by rounding, A being positive semi-definite
                break
            step = squared / curvature
            q = q + step * p
            tangent = step * p_tangent if tangent is None else tangent + step * p_tangent
            residual = residual - step * applied
            last, squared = squared, float(residual @ residual)
            p = residual + (squared / last) * p
        if tangent is None:
            tangent = system.tangent(q)
        relative = squared**0.5 / norm
        reason = "tolerance" if relative <= self.tolerance else "iterations"
        return Solution(q, tangent, relative, products, reason)


@dataclass(frozen=True)
class Neumann(Solver):
    """Truncated Neumann series, q = step * sum_j (I - step A)^j b, its step bounded.

    Run as the Richardson iteration that the series is. With the step of 1 that is usual in
    published code the series diverges where the curvature exceeds 2; here the first step is
    bounded by the curvature along b, and halved whenever the residual grows.

    Parameters
    ----------
    terms : int
        Products with A.
    damping : float
        As for `ConjugateGradient`.
    max_step : float
        Upper bound of the step.
    """

    terms: int = 5
    damping: float = 1e-2
    max_step: float = 1.0

    def __post_init__(self) -> None:
        if self.terms < 1:
            raise InputError(f"terms must be at least 1; got {self.terms}.")
        if self.damping < 0:
            raise InputError(f"damping must not be negative; got {self.damping}.")
        positive("max_step", self.max_step)

    def solve(self, system: TrainingSystem, b: Tensor, start: Tensor | None = None) -> Solution:
        norm = float(b.norm())
        if norm == 0.0:
            return _zero(system, b)
        applied, tangent_b = system.product(b)
        # |A b| / |b| is at most the largest eigenvalue; the halving below corrects a low guess.
        step = min(self.max_step, norm / max(float(applied.norm()), 1e-30))
        q, tangent, residual = torch.zeros_like(b), torch.zeros_like(tangent_b), b
        for term in range(self.terms):
            residual_tangent = tangent_b
            if term > 0:
                applied, residual_tangent = system.product(residual)
            while float((residual - step * applied).norm()) > float(residual.norm()):
                step /= 2
            q, tangent = q + step * residual, tangent + step * residual_tangent
            residual = residual - step * applied
        return Solution(q, tangent, float(residual.norm()) / norm, self.terms, "iterations")


@dataclass(frozen=True)
class Exact(Solver):
    """Dense solve, one product per weight: the oracle, and for small heads.

    Parameters
    ----------
    damping : float
        As for `ConjugateGradient`; 0 where weight decay makes A invertible.
    max_parameters : int
        Refuse larger networks, whose matrix would not fit.
    """

    damping: float = 0.0
    max_parameters: int = 5000

    def __post_init__(self) -> None:
        if self.damping < 0:
            raise InputError(f"damping must not be negative; got {self.damping}.")

    def solve(self, system: TrainingSystem, b: Tensor, start: Tensor | None = None) -> Solution:
        n = b.numel()
        if n > self.max_parameters:
            raise InputError(
                f"Exact solves for at most {self.max_parameters} trainable weights; this network has "
                f"{n}. Use ConjugateGradient."
            )
        unit = torch.eye(n, dtype=b.dtype, device=b.device)
        matrix = torch.stack([system.product(row)[0] for row in unit])
        q, info = torch.linalg.solve_ex(matrix, b)
        if int(info) != 0:
            raise InputError(
                "The training loss's curvature is singular at these weights, so the exact system "
                "has no solution. Give Exact a damping above 0, or train with weight decay."
            )
        residual = float((b - matrix @ q).norm() / b.norm().clamp(min=torch.finfo(b.dtype).tiny))
        return Solution(q, system.tangent(q), residual, n, "exact")
