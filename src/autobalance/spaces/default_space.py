"""Which space a search takes: one that the user builds, or the default for the objective."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from autobalance._validation import InputError
from autobalance.spaces.base import DesignSpace
from autobalance.spaces.group_space import GroupSpace
from autobalance.spaces.hierarchical_space import HierarchicalSpace
from autobalance.spaces.label_space import HierarchicalLabelSpace

SIGMA_GAMMA = 0.25
"""Standard deviation of the prior on the exponent of delta."""
SpaceFactory = Callable[[np.ndarray], DesignSpace]
"""From training counts, ``(k,)`` or ``(g, k)``, to a space."""


def default_space(
    counts: Sequence[float] | np.ndarray,
    over: str = "class",
    importance: Any = None,
    *,
    linear: bool = True,
    gamma: float | None = 0.0,
    tau: float = 1.0,
) -> DesignSpace:
    """The space that starts at a loss consistent for the mean error over these cells.

    Parameters
    ----------
    counts : array-like
        Training examples per class ``(k,)``, or per group and class ``(g, k)``; of several labels
        negatives and positives ``(2, k)``.
    over : {"class", "group", "class_and_group", "label"}
        The objective's cells. The error of a group is that of its examples, so over groups the
        start is cross-entropy.
    importance : array-like, optional
        As for `HierarchicalSpace`.
    linear : bool
        Whether the objective is that mean, or one with fixed weights. The best loss for another function of
        the classes' errors, such as the largest, may be nats away from the start, so that the prior on
        each class's deviation is four times as wide; over groups that was measured not to help. Delta is left
        out then: learned beside such deviations it made worst classes worse.
    gamma : float or None
        Start of the exponent of delta, of data without groups; None leaves delta out.
    tau : float
        Start of tau, of data of several labels.
    """
    if over == "label":
        return HierarchicalLabelSpace(counts, tau=tau, sigma_eps=0.5 if linear else 2.0)
    if np.ndim(counts) == 1:
        tau = 0.0 if over == "group" else 1.0
        sigma = 0.5 if linear or over != "class" else 2.0
        learned = ("additive", "multiplicative") if linear and gamma is not None else ("additive",)
        return HierarchicalSpace(
            counts,
            learn=learned,
            deviations=("additive",),
            tau=tau,
            gamma=gamma or 0.0,
            importance=importance,
            sigma_gamma=SIGMA_GAMMA,
            sigma_eps=sigma,
        )
    tau_class, tau_group = {"class": (1.0, 0.0), "group": (0.0, 0.0)}.get(over, (1.0, 1.0))
    return GroupSpace(counts, tau_class=tau_class, tau_group=tau_group)


class Goal(Protocol):
    """What of an `Objective` decides on the space by default."""

    @property
    def over(self) -> str:
        """What its cells are."""
        ...

    def importance_of(self, counts: np.ndarray) -> Any:
        """What it makes of each class, or None."""
        ...

    @property
    def start_tau(self) -> float:
        """The tau to start from with several labels."""
        ...

    @property
    def linear(self) -> bool:
        """Whether it is a mean with fixed weights."""
        ...


def build_space(
    factory: SpaceFactory | None, counts: np.ndarray, goal: Goal, *, gamma: float | None = 0.0
) -> DesignSpace:
    """What a user's factory makes of the counts, or without one the `default_space`, from this gamma.

    Raises
    ------
    InputError
        If the factory returns something else.
    """
    if factory is None:
        return default_space(
            counts, goal.over, goal.importance_of(counts), linear=goal.linear, gamma=gamma,
            tau=goal.start_tau,
        )  # fmt: skip
    if not callable(factory):
        raise InputError(
            "space must be a function from training counts to a DesignSpace; got "
            f"{type(factory).__name__}."
        )
    space = factory(counts)
    if not isinstance(space, DesignSpace):
        raise InputError(f"space must return a DesignSpace; got {type(space).__name__}.")
    return space
