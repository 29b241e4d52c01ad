r"""Solvers of A q = b for a hypergradient, b the validation gradient.

Each is a frozen bundle of its settings. Since A v always comes together with J v, a solver
carries J q along with q, and the mixed product that follows costs no further pass. What a solver
wants to know at the next upper step it leaves in `Solution.solver_state`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from autobalance._validation import InputError, not_negative, one_of, positive, seed_number, whole
from autobalance.hypergrad.curvature import Curvature, TrainingSystem
from autobalance.records import PlainSettings

SolverState = Mapping[str, Tensor]

MAX_RESTARTS = 4

GROWTH = 1.2
"""Between searches the shortest length found serves, grown by this factor with each search. The last
one taken again and again would overshoot along directions of higher curvature."""

RESIDUAL_LIMIT = 2.0
"""A relative residual above this says that the single loop's last step was too long. On a batch of
its own, a good q leaves a residual of about 1."""


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
        Why it stopped: "tolerance", "iterations", "exact", "zero" (b = 0), "identity" or
        "indefinite" (negative curvature was met, and damped away).
    solver_state : dict of Tensor
        For the solver's next call; empty where it starts anew each time.
    """

    direction: Tensor
    tangent: Tensor
    residual: float
    iterations: int
    reason: str
    solver_state: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Solver(PlainSettings, ABC):
    """Base of all solvers.

    Parameters
    ----------
    damping : float
        Added to the curvature's diagonal, in the units of the loss per squared weight.
    curvature : {"gauss_newton", "hessian"}
        What A is, beside weight decay and damping; see `TrainingSystem`.
    """

    damping: float = 0.0
    curvature: Curvature = "gauss_newton"

    def __post_init__(self) -> None:
        not_negative("damping", self.damping)
        one_of("curvature", self.curvature, ("gauss_newton", "hessian"))

    @abstractmethod
    def solve(
        self, system: TrainingSystem, b: Tensor, solver_state: SolverState | None = None
    ) -> Solution:
        """Solve ``A q = b``, given the `solver_state` of the last call's solution, if there was one."""


def _zero(system: TrainingSystem, b: Tensor) -> Solution:
    return Solution(b, system.tangent(b), 0.0, 0, "zero")


@dataclass(frozen=True, kw_only=True)
class Identity(Solver):
    """q = b: the inverse curvature taken as the identity (as in DARTS and T1-T2). Cheapest.

    It has the right zero where the loss's parameters act alike on all weights, and a scale that
    can be off by orders of magnitude; Adam on the upper level hides the scale.

    Parameters
    ----------
    preconditioned : bool
        Take the lower optimiser's preconditioner in place of the identity (as in SAMA, Choe et
        al., NeurIPS 2023): Adam's 1 / (sqrt(v) + eps); for SGD it changes nothing.
    """

    preconditioned: bool = False

    def solve(
        self, system: TrainingSystem, b: Tensor, solver_state: SolverState | None = None
    ) -> Solution:
        """Q = b, or the preconditioner times b."""
        q = _preconditioned(system, b) if self.preconditioned else b
        return Solution(q, system.tangent(q), float("nan"), 0, "identity")


@dataclass(frozen=True, kw_only=True)
class SingleLoop(Solver):
    """One step on the system per upper step, from the last q (SOBA; Dagreou et al., NeurIPS 2022).

    The product that gives the residual ``r = b - A q`` gives J q as well, so a step costs one
    product, and the mixed product is that of q before the step. Now and then the step's length is
    found by an exact line search along r, at the cost of one forward-mode pass more; between, the
    shortest of late serves. The moving average of MA-SOBA (Chen et al., 2023) is Adam's first moment on
    the upper level.

    Parameters
    ----------
    line_search_every : int
        Upper steps between two line searches; 1 searches always.
    preconditioned : bool
        Step along the lower optimiser's preconditioner times r.
    """

    damping: float = 3e-3
    line_search_every: int = 8
    preconditioned: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("line_search_every", self.line_search_every, least=1)
        if self.curvature == "hessian":
            raise InputError(
                "SingleLoop has no bound where it meets negative curvature, as the exact Hessian's "
                "may be. Keep curvature='gauss_newton', or use ConjugateGradient."
            )

    def solve(
        self, system: TrainingSystem, b: Tensor, solver_state: SolverState | None = None
    ) -> Solution:
        """One step from the last q, or from 0 at the first call."""
        start = _last(solver_state, b)
        if solver_state and start is not None:
            q, length, age = start, float(solver_state["length"]), int(solver_state["age"])
            applied, tangent = system.product(q)
            residual, products = b - applied, 1
        else:
            q, length, age = torch.zeros_like(b), 0.0, 0
            residual, tangent, products = b, None, 0
        norm, left = torch.stack([b.norm(), residual.norm()]).tolist()  # one wait for a GPU
        if norm == 0.0:
            return _zero(system, b)
        relative = left / norm
        p = _preconditioned(system, residual) if self.preconditioned else residual
        step = length
        if age % self.line_search_every == 0 or relative > RESIDUAL_LIMIT:
            p_tangent = system.tangent(p)
            wanted = system.quadratic(p, p_tangent), (residual @ p).double()
            curvature, slope = torch.stack(wanted).tolist()
            if curvature > 0:
                step, age = slope / curvature, 0
                length = min(step, GROWTH * length) if length > 0 else step
            refined = step * p_tangent
            tangent = refined if tangent is None else tangent + refined
        assert tangent is not None  # without q the line search has run
        q = q + step * p
        kept = {
            "q": q,
            "length": torch.tensor(length, dtype=torch.float64),
            "age": torch.tensor(age + 1 if products else 0),  # the first two steps search
        }
        return Solution(q, tangent, relative, products, "iterations", kept)


@dataclass(frozen=True, kw_only=True)
class ConjugateGradient(Solver):
    """Conjugate gradients on the damped system.

    Parameters
    ----------
    iterations : int
        At most so many; each costs one product.
    tolerance : float
        Stop when ``|b - A q| <= tolerance |b|``.
    warm_start : bool
        Start from the last upper step's q, at the cost of one more product.

    Notes
    -----
    Where the curvature is not positive along a direction, as may be with the exact Hessian, the
    damping is raised, at least fourfold each time, the solve begins anew, and the solution's reason
    is "indefinite". After `MAX_RESTARTS` it is left where it met the last such direction. The
    residual is that of the system as damped.
    """

    damping: float = 1e-2
    iterations: int = 5
    tolerance: float = 1e-3
    warm_start: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("iterations", self.iterations, least=1)
        not_negative("tolerance", self.tolerance)

    def solve(
        self, system: TrainingSystem, b: Tensor, solver_state: SolverState | None = None
    ) -> Solution:
        """At most `iterations` steps, restarted with more damping at negative curvature."""
        norm, own = torch.stack([b.norm(), b @ b]).tolist()  # read together: each waits for a GPU
        if norm == 0.0:
            return _zero(system, b)
        products, extra, restarts = 0, 0.0, 0
        start = _last(solver_state, b)
        while True:  # until no direction of negative curvature is met
            if start is None:
                q, tangent, residual, squared = torch.zeros_like(b), None, b, own
            else:
                applied, tangent = system.product(start)
                q, residual = start.clone(), b - applied - extra * start
                products, squared = products + 1, float(residual @ residual)
            p, indefinite = residual, 0.0
            for _ in range(self.iterations):
                if squared**0.5 <= self.tolerance * norm:
                    break
                applied, p_tangent = system.product(p)
                applied = applied + extra * p
                products += 1
                curvature = float(p @ applied)
                if curvature <= 0:
                    indefinite = -curvature / float(p @ p)
                    break
                step = squared / curvature
                q = q + step * p
                tangent = step * p_tangent if tangent is None else tangent + step * p_tangent
                residual = residual - step * applied
                last, squared = squared, float(residual @ residual)
                p = residual + (squared / last) * p
            if indefinite <= 0.0 or restarts == MAX_RESTARTS:
                break
            extra = max(2.0 * indefinite, 4.0 * extra, self.damping)
            start, restarts = None, restarts + 1
        if tangent is None:
            tangent = system.tangent(q)
        relative = squared**0.5 / norm
        reason = "tolerance" if relative <= self.tolerance else "iterations"
        kept = {"q": q} if self.warm_start else {}
        return Solution(q, tangent, relative, products, "indefinite" if extra else reason, kept)


@dataclass(frozen=True, kw_only=True)
class Neumann(Solver):
    """Truncated Neumann series, q = step * sum_j (I - step A)^j b, its step bounded.

    Run as the Richardson iteration that the series is. With the step of 1 that is usual in
    published code the series diverges where the curvature exceeds 2. Here the step is one over an
    estimate of the largest eigenvalue, by power iteration, and halved whenever the residual grows.

    Parameters
    ----------
    terms : int
        Products with A, beside those of the power iteration.
    power_iterations : int
        Products spent on the estimate, from b.
    max_step : float
        Upper bound of the step.
    """

    damping: float = 1e-2
    terms: int = 5
    power_iterations: int = 2
    max_step: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("terms", "power_iterations"):
            whole(name, getattr(self, name), least=1)
        positive("max_step", self.max_step)

    def solve(
        self, system: TrainingSystem, b: Tensor, solver_state: SolverState | None = None
    ) -> Solution:
        """`terms` Richardson steps of bounded length."""
        norm = float(b.norm())
        if norm == 0.0:
            return _zero(system, b)
        first = system.product(b)  # the power iteration's, and the series' second term
        vector, length = first[0], float(first[0].norm())
        largest = length / norm
        for _ in range(1, self.power_iterations):
            if length == 0.0:
                break
            vector = system.product(vector / length)[0]
            length = float(vector.norm())
            largest = max(largest, length)
        step = min(self.max_step, 1.0 / max(largest, 1e-30))
        q, residual, left = torch.zeros_like(b), b, norm
        tangent = torch.zeros_like(first[1])
        for term in range(self.terms):
            applied, residual_tangent = first if term == 0 else system.product(residual)
            while True:
                after = residual - step * applied
                size = float(after.norm())
                if not size > left:  # also where it is NaN
                    break
                step /= 2
            q, tangent = q + step * residual, tangent + step * residual_tangent
            residual, left = after, size
        products = self.terms + self.power_iterations - 1
        return Solution(q, tangent, left / norm, products, "iterations")


@dataclass(frozen=True, kw_only=True)
class Nystrom(Solver):
    r"""Low-rank inverse by the Nystrom approximation (Hataya and Yamada, AISTATS 2023).

    .. math:: A \approx \rho I + C W^{-1} C^T, \qquad C = (A - \rho I) \Omega, \quad W = \Omega^T C

    for Gaussian Omega of `rank` columns, inverted by Woodbury's identity; rho is weight decay plus
    damping. Without iterations, and without a step length; the damping must be of the size of the
    eigenvalues left out.

    Parameters
    ----------
    rank : int
        Columns, and products.
    seed : int
        Of Omega.
    """

    damping: float = 1e-2
    rank: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        positive("damping", self.damping)
        whole("rank", self.rank, least=1)
        seed_number(self.seed)

    def solve(
        self, system: TrainingSystem, b: Tensor, solver_state: SolverState | None = None
    ) -> Solution:
        """The damped low-rank system, solved by the Woodbury identity."""
        norm = float(b.norm())
        if norm == 0.0:
            return _zero(system, b)
        generator = torch.Generator().manual_seed(self.seed)
        # In float64 for all, or float32 weights would have another Omega than float64 ones.
        omega = torch.randn(self.rank, b.numel(), generator=generator, dtype=torch.float64).to(b)
        shift = system.shift + torch.zeros_like(b)
        columns = torch.stack([system.product(row)[0] for row in omega]) - omega * shift
        small = omega @ columns.T
        # (D + C W^-1 C')^-1 b = D^-1 b - D^-1 C (W + C' D^-1 C)^-1 C' D^-1 b, D the shift.
        scaled = b / shift
        core = (small + small.T) / 2 + (columns / shift) @ columns.T
        both = torch.cat([core, (columns @ scaled)[None]]).double().cpu()  # one wait for a GPU
        correction = torch.linalg.pinv(both[:-1], hermitian=True) @ both[-1]
        q = scaled - (correction.to(b) @ columns) / shift
        return Solution(q, system.tangent(q), float("nan"), self.rank, "iterations")


@dataclass(frozen=True, kw_only=True)
class Exact(Solver):
    """Dense solve, one product per weight: the oracle, and for small heads.

    Parameters
    ----------
    damping : float
        0 where weight decay makes A invertible.
    max_parameters : int
        Refuse larger networks, whose matrix would not fit.
    """

    max_parameters: int = 5000

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("max_parameters", self.max_parameters, least=1)

    def solve(
        self, system: TrainingSystem, b: Tensor, solver_state: SolverState | None = None
    ) -> Solution:
        """The dense matrix, column by column, and a direct solve."""
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


def _last(solver_state: SolverState | None, b: Tensor) -> Tensor | None:
    """The last q, unless it was for other weights: some may have been frozen or freed since."""
    if not solver_state or solver_state["q"].shape != b.shape:
        return None
    return solver_state["q"].to(b)  # a checkpoint's may lie on another device


def _preconditioned(system: TrainingSystem, vector: Tensor) -> Tensor:
    return vector if system.preconditioner is None else system.preconditioner * vector
