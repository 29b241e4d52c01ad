"""Design spaces: few free parameters that make the loss parameters (w, l, delta), and the tunable loss."""

from autobalance.spaces.spaces import (
    ClassSpace,
    ClusterSpace,
    DesignSpace,
    GroupSpace,
    HierarchicalSpace,
    SpaceFactory,
    WithUnknownGroup,
    build_space,
    prior_strength,
)
from autobalance.spaces.tunable_loss import LossSnapshot, TunableCrossEntropy

__all__ = [
    "ClassSpace",
    "ClusterSpace",
    "DesignSpace",
    "GroupSpace",
    "HierarchicalSpace",
    "LossSnapshot",
    "SpaceFactory",
    "TunableCrossEntropy",
    "WithUnknownGroup",
    "build_space",
    "prior_strength",
]
