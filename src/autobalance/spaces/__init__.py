"""Design spaces: few free parameters that make the loss parameters (w, l, delta), and the tunable loss."""

from autobalance.spaces.spaces import (
    ClassSpace,
    ClusterSpace,
    DesignSpace,
    GroupSpace,
    HierarchicalSpace,
    SpaceFactory,
    WithUnknownGroup,
    made_space,
    prior_strength,
)
from autobalance.spaces.tunable_loss import TunableCrossEntropy

__all__ = [
    "ClassSpace",
    "ClusterSpace",
    "DesignSpace",
    "GroupSpace",
    "HierarchicalSpace",
    "SpaceFactory",
    "TunableCrossEntropy",
    "WithUnknownGroup",
    "made_space",
    "prior_strength",
]
