"""Reported numbers against counting by hand, scikit-learn and the objectives' hard values."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, balanced_accuracy_score, recall_score

from autobalance.metrics import class_errors, classification_report
from autobalance.objectives import NAMED, BalancedError, WorstError


def test_by_hand() -> None:
    target = np.array([0, 0, 0, 0, 1, 1, 3])
    predicted = np.array([0, 0, 0, 1, 1, 0, 0])
    groups = np.array([0, 0, 2, 2, 0, 2, 2])
    assert classification_report(target, predicted, 4, groups) == {
        "n": 7,
        "error": pytest.approx(3 / 7),
        "balanced_error": pytest.approx((0.25 + 0.5 + 1.0) / 3),
        "worst_class_error": 1.0,
        "class_n": [4, 2, 0, 1],
        "class_errors": [0.25, 0.5, None, 1.0],
        "worst_group_error": 0.75,
        "group_balanced_error": pytest.approx((0.0 + 0.0 + 0.5 + 1.0 + 1.0) / 5),
        "worst_class_and_group_error": 1.0,
        "group_errors": {0: 0.0, 2: 0.75},
        "group_balanced_errors": {0: 0.0, 2: pytest.approx((0.5 + 1.0 + 1.0) / 3)},
        "class_and_group_errors": {0: [0.0, 0.0, None, None], 2: [0.5, 1.0, None, 1.0]},
        "class_and_group_n": {0: [2, 1, 0, 0], 2: [2, 1, 0, 1]},
    }
    named = classification_report(target, predicted, 4, groups, ["north", "nobody", "south"])
    assert named["group_errors"] == {"north": 0.0, "south": 0.75}
    assert named["class_and_group_n"].keys() == {"north", "south"}


def test_absent_classes_are_nan() -> None:
    errors = class_errors(np.array([2, 2]), np.array([2, 0]), 4)
    np.testing.assert_array_equal(errors, [np.nan, np.nan, 0.5, np.nan])


@given(st.lists(st.tuples(*[st.integers(0, 3)] * 3), min_size=1, max_size=30))
def test_every_named_objective_is_reported(triples: list[tuple[int, int, int]]) -> None:
    target, predicted, groups = np.array(triples).T
    report = classification_report(target, predicted, 4, groups)
    logits = torch.nn.functional.one_hot(torch.from_numpy(predicted), 4).float()
    for name, objective in NAMED.items():
        expected = objective.hard(logits, torch.from_numpy(target), groups=torch.from_numpy(groups))
        assert report[name] == pytest.approx(expected), name


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=30))
def test_agrees_with_scikit_learn_and_with_the_objectives(pairs: list[tuple[int, int]]) -> None:
    target, predicted = np.array(pairs).T
    report = classification_report(target, predicted, 4)
    assert report["error"] == pytest.approx(1 - accuracy_score(target, predicted))
    present = np.unique(target)
    recalls = recall_score(target, predicted, labels=present, average=None, zero_division=0)
    assert report["balanced_error"] == pytest.approx(1 - np.mean(recalls))
    assert report["worst_class_error"] == pytest.approx(1 - np.min(recalls))
    if len(present) > 1 and set(predicted) <= set(target):  # it warns of what it cannot judge
        assert report["balanced_error"] == pytest.approx(
            1 - balanced_accuracy_score(target, predicted)
        )
    logits = torch.nn.functional.one_hot(torch.from_numpy(predicted), 4).float()
    y = torch.from_numpy(target)
    assert report["balanced_error"] == pytest.approx(BalancedError().hard(logits, y))
    assert report["worst_class_error"] == pytest.approx(WorstError().hard(logits, y))
