"""Training losses: per-example formulas, and modules that hold their parameters."""

from autobalance.losses.functional import LossParameters, adjusted_logits, parametric_cross_entropy
from autobalance.losses.modules import (
    ParametricCrossEntropy,
    effective_number_weights,
    reduced_loss,
)
from autobalance.losses.published import (
    DeferredLoss,
    FocalLoss,
    GroupDROLoss,
    LDAMLoss,
    NormalizedLinear,
    last_linear,
    with_normalized_head,
)

__all__ = [
    "DeferredLoss",
    "FocalLoss",
    "GroupDROLoss",
    "LDAMLoss",
    "LossParameters",
    "NormalizedLinear",
    "ParametricCrossEntropy",
    "adjusted_logits",
    "effective_number_weights",
    "last_linear",
    "parametric_cross_entropy",
    "reduced_loss",
    "with_normalized_head",
]
