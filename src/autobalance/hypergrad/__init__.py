"""Hypergradients: curvature products, solvers of the linear system, and the mixed product."""

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
from autobalance.hypergrad.system import TrainingSystem

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
