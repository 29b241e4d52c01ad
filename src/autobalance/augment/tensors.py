"""Operations on tables and embeddings ``(n, ...)``, standardised: a feature's unit is its own."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from autobalance._validation import whole
from autobalance.augment.operations import Domain, Operation, per_example


class TensorOperation(Operation):
    """Base of what takes inputs of any shape but an image's."""

    domain: ClassVar[Domain] = "tensor"


@dataclass(frozen=True)
class GaussianNoise(TensorOperation):
    """Gaussian noise on every feature; the strength is its standard deviation."""

    limit: float = 0.5
    name: ClassVar[str] = "gaussian_noise"

    def apply(self, inputs: Tensor, strength: Tensor) -> Tensor:
        """Inputs plus noise."""
        return inputs + per_example(strength, inputs) * torch.randn_like(inputs)


@dataclass(frozen=True)
class SphericalNoise(TensorOperation):
    """A step in a direction drawn uniformly from the sphere; the strength is its length.

    Gaussian noise of standard deviation s in d features has length s sqrt(d), which
    `tensor_operations` takes into account.
    """

    limit: float = 0.5
    name: ClassVar[str] = "spherical_noise"

    def apply(self, inputs: Tensor, strength: Tensor) -> Tensor:
        """Inputs after one step each."""
        step = torch.randn_like(inputs).flatten(1)
        step = step / step.norm(dim=1, keepdim=True).clamp(min=torch.finfo(step.dtype).tiny)
        return inputs + per_example(strength, inputs) * step.view(inputs.shape)


@dataclass(frozen=True)
class FeatureDropout(TensorOperation):
    """Some features become 0, their mean; the strength is their expected share.

    A feature is dropped where a uniform draw lies below the strength s, and in part where it lies
    within s/2 of it, so that the result is differentiable; the expected share is s all the same.
    """

    limit: float = 0.5
    name: ClassVar[str] = "feature_dropout"
    largest: ClassVar[float] = 0.6  # 1.5 times it must stay below 1

    def apply(self, inputs: Tensor, strength: Tensor) -> Tensor:
        """Inputs with some features at 0."""
        drawn = torch.rand_like(inputs).clamp(min=1e-4)
        share = per_example(strength, inputs)
        dropped = (1.5 - drawn / share.clamp(min=1e-8)).clamp(0.0, 1.0)
        # No draw lies near a strength of 0, where a closed gate stands: the mean's derivative there.
        dropped = dropped + (share - share.detach()) * (share.detach() == 0)
        return inputs * (1.0 - dropped)


@dataclass(frozen=True)
class Mixup(Operation):
    """A blend with another example of the batch; the strength is that one's share.

    The label stays the example's own, so the share is at most a half. This is the one operation
    in which examples see each other.
    """

    limit: float = 0.5
    name: ClassVar[str] = "mixup"
    domain: ClassVar[Domain] = "any"
    largest: ClassVar[float] = 0.5

    def apply(self, inputs: Tensor, strength: Tensor) -> Tensor:
        """Each example blended with one other."""
        # Each in a random ring takes the next one, so that none takes itself.
        ring = torch.randperm(len(inputs), device=inputs.device)
        partner = torch.empty_like(ring).scatter_(0, ring, ring.roll(1))
        return torch.lerp(inputs, inputs[partner], per_example(strength, inputs))


def tensor_operations(features: int = 1) -> tuple[Operation, ...]:
    """The default set for tables and embeddings.

    Parameters
    ----------
    features : int
        Numbers per example. The longest step of `SphericalNoise` is sqrt(features) / 2, the
        length of Gaussian noise of standard deviation 0.5.
    """
    longest = 0.5 * math.sqrt(whole("features", features, least=1))
    return (GaussianNoise(), SphericalNoise(longest), FeatureDropout(), Mixup())
