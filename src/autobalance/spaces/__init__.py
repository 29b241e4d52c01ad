"""Design spaces: few free parameters that make the loss parameters (w, l, delta), and the tunable loss."""

from autobalance.spaces.attribute_space import AttributeSpace, class_attributes
from autobalance.spaces.base import DesignSpace, prior_strength
from autobalance.spaces.class_space import ClassSpace, ClusterSpace
from autobalance.spaces.default_space import SpaceFactory, build_space
from autobalance.spaces.group_space import GroupSpace, WithUnknownGroup
from autobalance.spaces.hierarchical_space import HierarchicalSpace
from autobalance.spaces.label_space import HierarchicalLabelSpace
from autobalance.spaces.shared_strengths import gamma_bound
from autobalance.spaces.tunable_labels import TunableBinaryCrossEntropy, build_tunable_loss
from autobalance.spaces.tunable_loss import LossSnapshot, TunableCrossEntropy

__all__ = [
    "AttributeSpace",
    "ClassSpace",
    "ClusterSpace",
    "DesignSpace",
    "GroupSpace",
    "HierarchicalLabelSpace",
    "HierarchicalSpace",
    "LossSnapshot",
    "SpaceFactory",
    "TunableBinaryCrossEntropy",
    "TunableCrossEntropy",
    "WithUnknownGroup",
    "build_space",
    "build_tunable_loss",
    "class_attributes",
    "gamma_bound",
    "prior_strength",
]
