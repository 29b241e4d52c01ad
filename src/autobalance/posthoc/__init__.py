"""Decisions from the probabilities of a network that is already trained."""

from autobalance.posthoc.expected_errors import evaluate_probabilities
from autobalance.posthoc.fair_decisions import (
    MAINS,
    CellDecision,
    CellPosterior,
    ClassLogits,
    Decided,
    cell_posterior,
)

__all__ = [
    "MAINS",
    "CellDecision",
    "CellPosterior",
    "ClassLogits",
    "Decided",
    "cell_posterior",
    "evaluate_probabilities",
]
