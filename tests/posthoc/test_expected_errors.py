"""Error tables against the report of drawn predictions and against counting by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from torch import nn

from autobalance._validation import InputError
from autobalance.data.array_data import ArrayData
from autobalance.posthoc.expected_errors import evaluate_model, evaluate_probabilities
from autobalance.records.error_table import ErrorTable
from autobalance.records.metrics import classification_report

SAME = (
    "error",
    "balanced_error",
    "group_balanced_error",
    "worst_group_error",
    "worst_class_and_group_error",
    "deo",
    "equalized_odds_difference",
)
TRIPLES = st.lists(st.tuples(*[st.integers(0, 2)] * 3), min_size=1, max_size=30)


def labelled(target: np.ndarray, groups: np.ndarray | None, classes: int = 3) -> ArrayData:
    return ArrayData.of(np.zeros((len(target), 1)), target, groups=groups, num_classes=classes)


def test_a_whole_weight_counts_as_a_row_repeated() -> None:
    target, groups = np.array([0, 1, 2, 0]), np.array([0, 1, 0, 0])
    chances = np.array([[0.7, 0.2, 0.1], [0.3, 0.3, 0.4], [0.0, 0.5, 0.5], [0.2, 0.2, 0.6]])
    times = np.array([3, 1, 2, 1])
    weighted = ArrayData.of(
        np.zeros((4, 1)), target, groups=groups, sample_weight=times.astype(float)
    )
    once = evaluate_probabilities(chances, weighted)
    rows = np.repeat(np.arange(4), times)
    again = evaluate_probabilities(chances[rows], labelled(target[rows], groups[rows]))
    np.testing.assert_allclose(once.errors, again.errors)
    np.testing.assert_array_equal(once.mass, again.mass)


@given(TRIPLES)
def test_one_hot_rows_give_the_report_of_these_predictions(
    triples: list[tuple[int, int, int]],
) -> None:
    target, predicted, groups = np.array(triples).T
    found = evaluate_probabilities(np.eye(3)[predicted], labelled(target, groups))
    report = classification_report(target, predicted, 3, groups)
    for name in SAME:
        assert getattr(found, name) == pytest.approx(report[name]), name
    by_class = [None if np.isnan(e) else pytest.approx(e) for e in found.class_errors]
    assert by_class == report["class_errors"]
    for g, errors in report["class_and_group_errors"].items():
        assert [None if np.isnan(e) else e for e in found.errors[g]] == pytest.approx(errors)
        assert found.mass[g].tolist() == report["class_and_group_n"][g]


def test_expected_rates_are_means_of_drawn_ones() -> None:
    draw = np.random.default_rng(0)
    n, draws = 60, 3000
    data = labelled(draw.integers(3, size=n), draw.integers(2, size=n))
    probabilities = draw.dirichlet(np.ones(3), size=n)
    found = evaluate_probabilities(probabilities, data)
    mean = np.zeros((2, 3))
    for _ in range(draws):
        predicted = (draw.random((n, 1)) > probabilities.cumsum(axis=1)[:, :-1]).sum(axis=1)
        mean += evaluate_probabilities(np.eye(3)[predicted], data).errors / draws
    # A rate of a cell of 4 or more examples has a deviation of at most 1/4, their mean 1/4 / 55.
    assert found.mass.min() >= 4
    np.testing.assert_allclose(mean, found.errors, atol=4 * 0.25 / np.sqrt(draws))


def test_by_hand() -> None:
    data = labelled(np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1]), classes=2)
    found = evaluate_probabilities(np.array([[1, 0], [0.8, 0.2], [0.5, 0.5], [0.4, 0.6]]), data)
    np.testing.assert_allclose(found.errors, [[0.0, 0.5], [0.2, 0.4]])
    assert found.deo == pytest.approx(0.2 + 0.1)
    assert found.point == pytest.approx((27.5, 30.0))
    np.testing.assert_allclose(found.group_errors, [0.25, 0.3])


def test_without_groups_there_is_one() -> None:
    found = evaluate_probabilities(np.eye(3)[[0, 1]], labelled(np.array([0, 2]), None))
    np.testing.assert_array_equal(found.errors, [[0.0, np.nan, 1.0]])
    assert found.deo is None
    assert found.known_deo == 0.0
    assert found.worst_group_error == 0.5


def test_a_network_is_evaluated_without_its_dropout() -> None:
    data = ArrayData.of(np.eye(3)[[0, 1, 2, 2]], [0, 1, 2, 0], groups=[0, 0, 1, 1], num_groups=2)
    linear = nn.Linear(3, 3, bias=False)
    with torch.no_grad():
        linear.weight.copy_(torch.eye(3))
    model = nn.Sequential(linear, nn.Dropout(0.9)).train()
    found = evaluate_model(model, data)
    assert isinstance(found, ErrorTable)
    np.testing.assert_array_equal(found.errors, [[0.0, 0.0, np.nan], [1.0, np.nan, 0.0]])
    assert model.training


@pytest.mark.parametrize(
    ("probabilities", "message"),
    [
        (np.ones((3, 2)) / 2, r"shape \(2, 2\); got \(3, 2\)"),
        (np.ones((2, 2)), "sum to 1"),
        (np.array([[1.5, -0.5], [0, 1]]), "must not be negative"),
        (np.array([[np.nan, 0.5], [0, 1]]), "sum to 1"),
    ],
)
def test_what_is_no_probability_is_refused(probabilities: np.ndarray, message: str) -> None:
    data = labelled(np.array([0, 1]), None, classes=2)
    with pytest.raises(InputError, match=message):
        evaluate_probabilities(probabilities, data)
