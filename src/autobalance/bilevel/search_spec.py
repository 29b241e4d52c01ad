"""What a search is asked to do, in one object."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from autobalance._validation import InputError, instance
from autobalance.augment import AugmentChoice
from autobalance.bilevel.execution import check_augmentable
from autobalance.bilevel.loss_tuner import DEFAULT_SOLVER
from autobalance.bilevel.types import ModelFactory
from autobalance.data import ArrayData
from autobalance.hypergrad import Solver
from autobalance.objectives import BalancedError, Objective, over_labels
from autobalance.records import Precision, Recipe, SearchSettings
from autobalance.spaces import DesignSpace, SpaceFactory, WithUnknownGroup, build_space


@dataclass(frozen=True, kw_only=True, eq=False)
class SearchSpec:
    """Everything that decides on the result of a search.

    The fields are those of `search`. Without a `model_factory` the lower level is a linear head on
    frozen features, to which recipe, solver, checkpoint, augment, test and precision mean nothing.
    `release` is the share of one run's steps that the search has, in a run that then trains on with
    what was held out; None for a search alone.

    Raises
    ------
    InputError
        If the data cannot be searched on, or the objective is over groups that the data lack.
    """

    data: ArrayData
    validation: ArrayData | None = None
    objective: Objective = field(default_factory=BalancedError)
    space: SpaceFactory | None = None
    settings: SearchSettings = field(default_factory=SearchSettings)
    seed: int = 0
    device: str = "auto"
    model_factory: ModelFactory | None = None
    recipe: Recipe = field(default_factory=Recipe)
    solver: Solver = DEFAULT_SOLVER
    checkpoint: str | Path | None = None
    augment: AugmentChoice = None
    test: ArrayData | None = None
    precision: Precision = "32-true"
    release: float | None = None

    def build_space(self, data: ArrayData) -> DesignSpace:
        """The design space at its start, for training data, with a row for unknown groups if need be."""
        space = build_space(self.space, data.masses(), self.objective)
        if data.unknown and space.num_groups is not None:
            return WithUnknownGroup(space)
        return space

    def __post_init__(self) -> None:
        instance("solver", self.solver, Solver)
        instance("objective", self.objective, Objective)
        check_augmentable(self.data, self.augment)
        self._check_labels()
        judged = self.data if self.validation is None else self.validation
        if self.objective.over not in ("class", "label") and judged.groups is None:
            raise InputError(
                "The objective is over groups, but the data has none. Pass groups (groups= of "
                "ArrayData.of, sensitive_features, --groups), or choose an objective over classes."
            )

    def _check_labels(self) -> None:
        """Put several labels in the place of the objective's classes, and refuse what is not for them."""
        if not self.data.has_labels:
            if self.objective.over == "label":
                raise InputError(
                    f"{type(self.objective).__name__} over labels needs several of them for each example, a "
                    "target of shape (n, k); this data has one class per example."
                )
            return
        object.__setattr__(self, "objective", over_labels(self.objective))
        for what, given in (
            ("augment", self.augment is not None),
            ("search_head", self.model_factory is None),
        ):
            if given:
                raise InputError(
                    f"{what} is for one class per example; this data has several labels, y of shape (n, k)."
                )
