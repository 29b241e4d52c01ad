"""What every way to fit the classifier shares: its parameters, reading data, the last training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from torch import nn

from autobalance._validation import InputError, TrainingDiverged, array_of_numbers
from autobalance.augment import AugmentChoice
from autobalance.bilevel import (
    Arm,
    Interrupted,
    MetricLogger,
    ModelFactory,
    Progress,
    ProgressListener,
    SearchResult,
    TrainedSearch,
    retrain,
)
from autobalance.calibration import class_masses
from autobalance.data import ArrayData, MissingGroups
from autobalance.hypergrad import Solver
from autobalance.losses import ParametricCrossEntropy
from autobalance.objectives import Objective, as_objective
from autobalance.records import Recipe, SearchSettings
from autobalance.sklearn.label_targets import label_arrays, label_names, read_target
from autobalance.sklearn.nested_parameters import NestedParameters
from autobalance.sklearn.table_input import TableInput, mark
from autobalance.sklearn.training_data import (
    is_data,
    network_factory,
    read_dataset,
    training_arrays,
    without_zero_weights,
)
from autobalance.spaces import SpaceFactory


class ClassifierBase(NestedParameters):
    """Parameters and fitted attributes of `AutoBalanceClassifier`, which documents them."""

    objective: str | Objective
    module: nn.Module | Callable[..., nn.Module] | None
    recipe: Recipe | None
    settings: SearchSettings | None
    space: SpaceFactory | None
    augment: AugmentChoice
    arms: Sequence[Arm] | str | None
    solver: Solver | None
    missing_groups: MissingGroups
    encode: bool | None
    device: str
    random_state: Any
    checkpoint: str | Path | None
    progress: ProgressListener | None
    logger: MetricLogger | None

    classes_: np.ndarray
    groups_: list[str] | None
    input_: TableInput
    recipe_: Recipe
    loss_: ParametricCrossEntropy
    result_: SearchResult
    module_: nn.Module
    class_masses_: np.ndarray
    temperature_: float

    _nested_defaults: ClassVar[Mapping[str, type]] = {"recipe": Recipe, "settings": SearchSettings}

    def adopt(self, partial: object) -> None:
        """Take over what a run found, whole or in part; anything else is left alone."""
        if isinstance(partial, TrainedSearch):
            self.module_ = mark(partial.network, self.input_)
            partial = partial.result
        if isinstance(partial, SearchResult):
            self.result_, self.loss_ = partial, partial.loss
            measured = partial.calibration
            self.temperature_ = 1.0 if measured is None else measured.temperature

    def _training_data(
        self, X: Any, y: Any, groups: Any, sample_weight: Any, *, gap: str | None = None
    ) -> ArrayData:
        """Read the training data, and learn its columns, classes and groups."""
        if is_data(X):
            if self.module is None:
                raise InputError(
                    "X is a Dataset. Pass the network that takes its examples: "
                    "AutoBalanceClassifier(module=...)."
                )
            inputs, labels, groups, sample_weight = read_dataset(X, y, groups, sample_weight)
            self.input_ = TableInput(None, tuple(inputs.shape[1:]))
        else:
            weight = None
            if sample_weight is not None:
                sample_weight, X, y, groups = without_zero_weights(sample_weight, X, y, groups)
                weight = array_of_numbers("sample_weight", sample_weight)
            labels = read_target(y)
            self.input_, inputs = TableInput.fit(
                self,
                X,
                labels if labels.ndim == 1 else None,
                encode=self.encode,
                own_module=self.module is not None,
                # Networks of others, and augmentations, take numbers that mean the same in any column.
                one_hot=self.module is not None or self.augment is not None,
                weight=weight,
                tell=self._tell_of_encoding,
            )
        self.recipe_ = self.recipe if self.recipe is not None else Recipe()
        if self.recipe is None and self.module is None:
            self.recipe_ = Recipe.for_rows(len(labels))
        if labels.ndim == 2:
            self.classes_, self.groups_ = label_names(y, labels.shape[1]), None
            return label_arrays(inputs, labels, groups, sample_weight)
        compares = None if gap is None else f"The gap {gap!r}"
        if gap is None and as_objective(self.objective).over != "class":
            compares = f"The objective {self.objective!r}"
        data, self.classes_, self.groups_ = training_arrays(
            inputs,
            labels,
            groups,
            sample_weight,
            missing_groups=self.missing_groups,
            compares=compares,
        )
        return data

    def _tell_of_encoding(self, done: int, total: int) -> None:
        if self.progress is not None:
            self.progress(Progress("encode", done, total))

    def _retrain(self, data: ArrayData, **options: Any) -> None:
        """Train the network on all data with `result_`; what was good before a failure is kept."""
        self.class_masses_ = class_masses(data)
        try:
            network = retrain(
                self._network_factory(data),
                data,
                self.result_,
                recipe=self.recipe_,
                device=self.device,
                progress=self.progress,
                **options,
            )
        except (TrainingDiverged, Interrupted) as stopped:
            if isinstance(stopped.partial, nn.Module):
                self.module_ = mark(stopped.partial, self.input_)
            raise
        self.module_ = mark(network, self.input_)

    def _network_factory(self, data: ArrayData) -> ModelFactory:
        """What builds a new network for the training data."""
        encoder = self.input_.encoder
        return network_factory(self.module, data, () if encoder is None else encoder.code_sizes)

    def _refuse_augmentation(self, what: str) -> None:
        if self.augment is not None:
            raise InputError(
                f"{what} trains without augmentation, but the classifier has augment={self.augment!r}. "
                "Leave it out, or let the module augment its inputs in training."
            )
