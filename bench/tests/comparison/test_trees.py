"""LightGBM as a method of a comparison, against the library called by hand."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import lightgbm
import numpy as np
import pytest
import torch

from autobalance import InputError, LogitAdjustedClassifierCV
from autobalance.bilevel import predict_logits
from autobalance.data import ArrayData
from autobalance.objectives import BalancedError, Objective, as_objective
from autobalance_bench.comparison.methods import METHODS, Task
from autobalance_bench.comparison.running import predict_failures
from helpers import blobs
from toy_cells import cell

DATA = blobs((160, 40, 20))
ROWS, TARGET = DATA.in_memory().numpy(), DATA.target.numpy()
OPTIONS: dict[str, dict[str, Any]] = {
    "lightgbm": {},
    "lightgbm_balanced": {"class_weight": "balanced"},
    "lightgbm_small": {"num_leaves": 7, "learning_rate": 0.05},
}


def decide(method: str, **changes: Any) -> np.ndarray:
    """What the method's model decides for the training rows."""
    given: dict[str, Any] = {"network": torch.nn.Identity, "data": DATA, "seed": 3}
    trained = METHODS[method].run(Task(**{**given, **changes}))
    assert trained.training_runs == (6.0 if method.endswith("designed") else 1.0)
    return predict_logits(trained.model, changes.get("data", DATA).inputs).argmax(dim=1).numpy()


def by_hand(**options: Any) -> lightgbm.LGBMClassifier:
    return lightgbm.LGBMClassifier(
        max_delta_step=1.0, random_state=3, n_jobs=1, verbosity=-1, **options
    )


@pytest.mark.parametrize("method", OPTIONS)
def test_trees_are_those_of_the_library_with_these_options(method: str) -> None:
    expected = by_hand(**OPTIONS[method]).fit(ROWS, TARGET).predict(ROWS)
    np.testing.assert_array_equal(decide(method), expected)


def designed_by_hand(data: ArrayData, objective: Objective, **options: Any) -> np.ndarray:
    estimator = LogitAdjustedClassifierCV(
        by_hand(**options), objective=objective, randomised=False, resamples=0, random_state=3
    )
    rows, groups = data.in_memory().numpy(), data.groups
    members = None if groups is None else groups.numpy()
    estimator.fit(rows, data.target.numpy(), sensitive_features=members)
    return estimator.predict(rows)


@pytest.mark.parametrize("method", OPTIONS)
def test_designed_decisions_are_those_of_the_estimator(method: str) -> None:
    expected = designed_by_hand(DATA, BalancedError(), **OPTIONS[method])
    np.testing.assert_array_equal(decide(f"{method}_designed"), expected)


def test_a_bound_on_a_gap_is_designed_for_from_the_groups() -> None:
    data = blobs((120, 60, 40), groups=True)
    goal = as_objective("balanced_error where deo <= 0.2")
    decided = decide("lightgbm_designed", data=data, objective=goal)
    np.testing.assert_array_equal(decided, designed_by_hand(data, goal))
    without = decide("lightgbm_designed", data=replace(data, groups=None))
    assert (decided != without).any()


def test_trees_see_no_augmented_examples() -> None:
    with pytest.raises(InputError, match="without augmentation"):
        decide("lightgbm", augment=torch.nn.Identity())


def test_a_comparison_says_beforehand_that_the_library_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "lightgbm", None)
    found = predict_failures([cell(method="lightgbm")])
    [(reason, methods)] = found.items()
    assert "pip install lightgbm" in reason
    assert methods == ["lightgbm"]
    with pytest.raises(InputError, match=r"pip install lightgbm"):
        decide("lightgbm")
