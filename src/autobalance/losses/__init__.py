"""Training losses: per-example formulas, and modules that hold their parameters."""

from autobalance.losses.modules import ParametricCrossEntropy, effective_number_weights
from autobalance.losses.parametric import (
    LossParameters,
    Reduction,
    adjusted_logits,
    check_width,
    describe_outside,
    parametric_cross_entropy,
    reduced_loss,
    target_weight,
)
from autobalance.losses.published import (
    COSINE_SCALE,
    DeferredLoss,
    FocalLoss,
    GroupDROLoss,
    LDAMLoss,
    NormalizedLinear,
    last_linear,
    new_layer_like,
    with_normalized_head,
)

__all__ = [
    "COSINE_SCALE",
    "DeferredLoss",
    "FocalLoss",
    "GroupDROLoss",
    "LDAMLoss",
    "LossParameters",
    "NormalizedLinear",
    "ParametricCrossEntropy",
    "Reduction",
    "adjusted_logits",
    "check_width",
    "describe_outside",
    "effective_number_weights",
    "last_linear",
    "new_layer_like",
    "parametric_cross_entropy",
    "reduced_loss",
    "target_weight",
    "with_normalized_head",
]
