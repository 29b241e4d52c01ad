"""Training losses: per-example formulas, and modules that hold their parameters."""

from autobalance.losses.functional import LossParameters, adjusted_logits, parametric_cross_entropy
from autobalance.losses.modules import ParametricCrossEntropy, reduced_loss

__all__ = [
    "LossParameters",
    "ParametricCrossEntropy",
    "adjusted_logits",
    "parametric_cross_entropy",
    "reduced_loss",
]
