"""Decisions from the probabilities of a classifier that is already trained."""

from autobalance.posthoc.adjustment import Adjustment, check_weights, design_adjustment
from autobalance.posthoc.adjustment_choice import JudgedCandidate
from autobalance.posthoc.cell_rule import CellRule
from autobalance.posthoc.decision_rule import DecisionRule, LabelRule
from autobalance.posthoc.expected_errors import evaluate_probabilities
from autobalance.posthoc.fair_decisions import (
    MAINS,
    CellDecision,
    CellPosterior,
    ClassLogits,
    FairDecision,
    cell_posterior,
)
from autobalance.posthoc.label_adjustment import LabelAdjustment
from autobalance.posthoc.score_input import ScoreKind
from autobalance.posthoc.tau_curve import measure_taus

__all__ = [
    "MAINS",
    "Adjustment",
    "CellDecision",
    "CellPosterior",
    "CellRule",
    "ClassLogits",
    "DecisionRule",
    "FairDecision",
    "JudgedCandidate",
    "LabelAdjustment",
    "LabelRule",
    "ScoreKind",
    "cell_posterior",
    "check_weights",
    "design_adjustment",
    "evaluate_probabilities",
    "measure_taus",
]
