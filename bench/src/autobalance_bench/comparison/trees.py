"""LightGBM on a dataset's numbers, as it is or with decisions designed on its out-of-fold probabilities."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from autobalance import InputError, LogitAdjustedClassifierCV
from autobalance.data import ArrayData
from autobalance.objectives import Objective

FOLDS = 5
SMALL_TREES = {"num_leaves": 7, "learning_rate": 0.05}
BALANCED_WEIGHTS = {"class_weight": "balanced"}
_DECIDED = 20.0


class ClassifierDecisions(nn.Module):
    """A classifier's decisions as logits ``(n, k)``: 20 for the class decided on and 0 for the others."""

    def __init__(self, classifier: Any, num_classes: int) -> None:
        super().__init__()
        self.classifier = classifier
        self.num_classes = num_classes

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits of examples of any shape, each taken as a row of numbers."""
        decided = torch.from_numpy(self.classifier.predict(as_rows(inputs)))
        return _DECIDED * nn.functional.one_hot(decided.long(), self.num_classes).float()


def fit_trees(
    data: ArrayData, seed: int, objective: Objective | None = None, **options: Any
) -> nn.Module:
    """LightGBM with these options fitted to all data; its decisions are designed if an objective is given.

    Steps of the trees are bounded, `max_delta_step=1`: without a bound boosting diverges where a class has
    few examples. Decisions are not drawn, so that each example has one.

    Raises
    ------
    InputError
        If LightGBM is not installed.
    """
    try:
        from lightgbm import LGBMClassifier
    except ImportError:
        raise InputError("LightGBM is not installed. Install it: pip install lightgbm.") from None
    classifier: Any = LGBMClassifier(
        max_delta_step=1.0,
        random_state=seed,
        n_jobs=torch.get_num_threads(),
        deterministic=True,
        force_row_wise=True,
        verbosity=-1,
        **options,
    )
    rows, target = as_rows(data.in_memory()), data.target.numpy()
    if objective is None:
        classifier.fit(rows, target)
    else:
        groups = None
        if objective.over != "class" and data.groups is not None:
            groups = data.groups.numpy()
        classifier = LogitAdjustedClassifierCV(
            classifier,
            objective=objective,
            cv=FOLDS,
            randomised=False,
            resamples=0,
            random_state=seed,
        ).fit(rows, target, sensitive_features=groups)
    return ClassifierDecisions(classifier, data.num_classes).eval()


def as_rows(inputs: Tensor) -> np.ndarray:
    """Each example as a row of numbers, shape ``(n, d)``."""
    return inputs.flatten(1).float().cpu().numpy()
