"""Arms of a race: ways to train that differ in what no hypergradient sees."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from autobalance._validation import (
    InputError,
    instance,
    not_negative,
    positive,
    shown,
)
from autobalance.bilevel.initialisation import make_network
from autobalance.bilevel.types import ModelFactory
from autobalance.losses import COSINE_SCALE, with_normalized_head
from autobalance.objectives import Objective
from autobalance.records import Recipe
from autobalance.spaces import DesignSpace, SpaceFactory, build_space, gamma_bound

_NORMALISATION = re.compile("Norm([123]d)?$")


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way to train a network, beside the loss that is searched for.

    A hypergradient sees how a parameter moves the minimum of the training loss. What acts through the
    course of training, such as weight decay, a common scale of the logits or the kind of the last layer, it
    does not see; a `race` on held-out data decides on these.

    Attributes
    ----------
    name : str
        For records and tables.
    cosine_scale : float or None
        The network's last linear layer becomes a cosine classifier of this scale, see
        `autobalance.losses.with_normalized_head`; None leaves it as it is.
    weight_decay : float or None
        In place of the recipe's; None keeps that.
    gamma : float or None
        The search starts at multiplicative adjustments delta_k = (n_k / n_max)^gamma, with this gamma or
        the largest that `autobalance.spaces.gamma_bound` allows. It is for the default space of data
        without groups, and does nothing else. None starts at gamma = 0.
    needs_fit : bool
        Whether it races only where the first arm fits its training rows, and only for networks with
        normalisation layers. Strong decay and multiplicative adjustments act once the training error is 0
        (Kini et al., 2021), and hurt before. Weights before a normalisation may shrink without a change
        of the function, so that decay sets the pace of learning there; others lose what they have learned.
    """

    name: str
    cosine_scale: float | None = None
    weight_decay: float | None = None
    gamma: float | None = None
    needs_fit: bool = False

    def __post_init__(self) -> None:
        if not instance("name of an arm", self.name, str):
            raise InputError("An arm needs a name.")
        if self.cosine_scale is not None:
            positive("cosine_scale", self.cosine_scale)
        if self.weight_decay is not None:
            not_negative("weight_decay", self.weight_decay)
        if self.gamma is not None:
            not_negative("gamma", self.gamma)

    def network(self, factory: ModelFactory) -> ModelFactory:
        """The factory of this arm's networks.

        Raises
        ------
        InputError
            When called, if the network has no last linear layer to normalise.
        """
        scale = self.cosine_scale
        if scale is None:
            return factory
        return lambda: with_normalized_head(make_network(factory), scale)

    def recipe(self, recipe: Recipe) -> Recipe:
        """The recipe of this arm's training runs."""
        if self.weight_decay is None:
            return recipe
        return replace(recipe, weight_decay=self.weight_decay)

    def space(self, factory: SpaceFactory | None, objective: Objective) -> SpaceFactory | None:
        """The factory of this arm's space: the default one with this arm's start, or the user's own."""
        start = self.gamma
        if factory is not None or start is None:
            return factory

        def build(counts: np.ndarray) -> DesignSpace:
            gamma = min(start, gamma_bound(counts)) if counts.ndim == 1 else 0.0
            return build_space(None, counts, objective, gamma=gamma)

        return build

    def hindrance(self, factory: ModelFactory | None, recipe: Recipe) -> str | None:
        """Why this arm cannot race with such networks and such a recipe; None where it can.

        Without a factory it is for a linear head on frozen features.
        """
        if factory is None:
            return None if self.cosine_scale is None else "a head on frozen features is linear"
        if self.needs_fit and not _has_normalisation(factory):
            return "the network has no normalisation layer"
        if self.weight_decay is not None and recipe.optimizer != "adamw":
            return "its weight decay is for AdamW, which decays apart from the gradient"
        if self.cosine_scale is None:
            return None
        try:
            self.network(factory)()
        except InputError as error:
            return str(error)
        return None

    def to_dict(self) -> dict[str, Any]:
        """The fields as a plain dict, for JSON."""
        return asdict(self)


def _has_normalisation(factory: ModelFactory) -> bool:
    """Whether a layer normalises activations: BatchNorm2d, LayerNorm, one's own RMSNorm and the like."""
    names = (type(module).__name__ for module in make_network(factory).modules())
    return any(_NORMALISATION.search(name) for name in names)


AS_IT_IS = Arm(name="plain")
DEFAULT_ARMS = (
    AS_IT_IS,
    Arm(name="cosine", cosine_scale=COSINE_SCALE),
    Arm(name="decay", weight_decay=2.0, gamma=0.15, needs_fit=True),
)
"""The arms of a race by default; the first is the network and the recipe as they are given."""


def as_arms(arms: Sequence[Arm] | str | None) -> tuple[Arm, ...]:
    """The arms of a race from what users give: "default", a sequence, or None for no race.

    Raises
    ------
    InputError
        If it is something else, is empty, or names an arm twice.
    """
    if arms is None:
        return ()
    if isinstance(arms, str):
        if arms != "default":
            raise InputError(
                f'arms must be "default", a sequence of Arm, or None; got {shown(arms)}.'
            )
        return DEFAULT_ARMS
    if not isinstance(arms, Sequence) or not all(isinstance(arm, Arm) for arm in arms):
        raise InputError(f'arms must be "default", a sequence of Arm, or None; got {shown(arms)}.')
    if not arms:
        raise InputError("arms is empty. Give at least one Arm, or None for no race.")
    for key in ("name", "settings"):
        values = [arm.name if key == "name" else {**arm.to_dict(), "name": ""} for arm in arms]
        twice = [a.name for i, a in enumerate(arms) if values[i] in values[:i]]
        if twice:
            raise InputError(f"Two arms have the same {key}: {', '.join(twice)}. Give each once.")
    return tuple(arms)
