"""Data augmentation with a policy for each class, differentiable for the upper level.

A policy is a module with few free parameters, as a design space is: how often each operation acts
on examples of a class, and how strongly. Augmenting a rare class more than a frequent one enlarges
its margin, as the designed loss does.
"""

from autobalance.augment.augmentation import OPERATIONS, Augmentation
from autobalance.augment.choice import (
    AugmentChoice,
    as_augmentation,
    as_batch_transform,
    augment_batch,
    describe_augmentation,
    draw_batch,
    freeze_augmentation,
    restore_augmentation,
)
from autobalance.augment.example_pictures import Samples, samples
from autobalance.augment.images import (
    Blur,
    Brightness,
    Contrast,
    Cutout,
    Flip,
    GeometricOperation,
    ImageOperation,
    Noise,
    Rotation,
    Saturation,
    Scale,
    ShearX,
    ShearY,
    ShiftX,
    ShiftY,
    image_operations,
)
from autobalance.augment.operations import Operation
from autobalance.augment.policy import AugmentationPolicy, default_policy
from autobalance.augment.random_draws import (
    Draw,
    checked_inputs,
    checked_range,
    from_bytes,
    from_unit,
    to_unit,
)
from autobalance.augment.sample_sheet import sample_sheet
from autobalance.augment.tensors import (
    FeatureDropout,
    GaussianNoise,
    Mixup,
    SphericalNoise,
    TensorOperation,
    tensor_operations,
)

__all__ = [
    "OPERATIONS",
    "AugmentChoice",
    "Augmentation",
    "AugmentationPolicy",
    "Blur",
    "Brightness",
    "Contrast",
    "Cutout",
    "Draw",
    "FeatureDropout",
    "Flip",
    "GaussianNoise",
    "GeometricOperation",
    "ImageOperation",
    "Mixup",
    "Noise",
    "Operation",
    "Rotation",
    "Samples",
    "Saturation",
    "Scale",
    "ShearX",
    "ShearY",
    "ShiftX",
    "ShiftY",
    "SphericalNoise",
    "TensorOperation",
    "as_augmentation",
    "as_batch_transform",
    "augment_batch",
    "checked_inputs",
    "checked_range",
    "default_policy",
    "describe_augmentation",
    "draw_batch",
    "freeze_augmentation",
    "from_bytes",
    "from_unit",
    "image_operations",
    "restore_augmentation",
    "sample_sheet",
    "samples",
    "tensor_operations",
    "to_unit",
]
