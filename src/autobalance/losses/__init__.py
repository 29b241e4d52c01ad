"""Training losses: per-example formulas, and modules that hold their parameters."""

from autobalance.losses.binary import (
    check_label_values,
    check_labels,
    is_known,
    parametric_binary_cross_entropy,
    reduced_binary_loss,
)
from autobalance.losses.label_losses import (
    BINARY_FORMAT,
    AsymmetricLoss,
    DistributionBalancedLoss,
    ParametricBinaryCrossEntropy,
    sign_counts,
)
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
    "BINARY_FORMAT",
    "COSINE_SCALE",
    "AsymmetricLoss",
    "DeferredLoss",
    "DistributionBalancedLoss",
    "FocalLoss",
    "GroupDROLoss",
    "LDAMLoss",
    "LossParameters",
    "NormalizedLinear",
    "ParametricBinaryCrossEntropy",
    "ParametricCrossEntropy",
    "Reduction",
    "adjusted_logits",
    "check_label_values",
    "check_labels",
    "check_width",
    "describe_outside",
    "effective_number_weights",
    "is_known",
    "last_linear",
    "new_layer_like",
    "parametric_binary_cross_entropy",
    "parametric_cross_entropy",
    "reduced_binary_loss",
    "reduced_loss",
    "sign_counts",
    "target_weight",
    "with_normalized_head",
]
