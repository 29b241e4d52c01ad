"""Decisions from the probabilities of a network that is already trained."""

from autobalance.posthoc.expected_errors import Evaluated, evaluate_probabilities
from autobalance.posthoc.fair_decisions import (
    CellDecision,
    CellPosterior,
    ClassLogits,
    Decided,
    MAINS,
    cell_posterior,
)

__all__ = [
    "CellDecision",
    "CellPosterior",
    "ClassLogits",
    "Decided",
    "Evaluated",
    "MAINS",
    "cell_posterior",
    "evaluate_probabilities",
]
