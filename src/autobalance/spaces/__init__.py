"""Design spaces: few free parameters that make the loss parameters (w, l, delta), and the tunable loss."""

from autobalance.spaces.attribute_space import AttributeSpace, class_attributes
from autobalance.spaces.base import DesignSpace, prior_strength
from autobalance.spaces.class_space import ClassSpace, ClusterSpace
from autobalance.spaces.default_space import SpaceFactory, build_space
from autobalance.spaces.group_space import GroupSpace, WithUnknownGroup
from autobalance.spaces.hierarchical_space import HierarchicalSpace, gamma_bound
from autobalance.spaces.tunable_loss import LossSnapshot, TunableCrossEntropy

__all__ = [
    "AttributeSpace",
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
    "class_attributes",
    "gamma_bound",
    "prior_strength",
]
