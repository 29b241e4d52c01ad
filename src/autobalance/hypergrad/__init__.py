"""Hypergradients: curvature products, solvers of the linear system, and the mixed product."""

from autobalance.hypergrad.curvature import TrainingSystem
from autobalance.hypergrad.implicit import Hypergradient, hypergradient
from autobalance.hypergrad.solvers import (
    ConjugateGradient,
    Exact,
    Identity,
    Neumann,
    Nystrom,
    SingleLoop,
    Solution,
    Solver,
)

__all__ = [
    "ConjugateGradient",
    "Exact",
    "Hypergradient",
    "Identity",
    "Neumann",
    "Nystrom",
    "SingleLoop",
    "Solution",
    "Solver",
    "TrainingSystem",
    "hypergradient",
]
