"""Reported numbers against counting by hand, scikit-learn and the objectives' hard values."""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from sklearn.metrics import accuracy_score, balanced_accuracy_score, recall_score

from autobalance._validation import InputError
from autobalance.objectives.aggregates import BalancedError, WorstError
from autobalance.objectives.registry import NAMED
from autobalance.records.error_table import ErrorTable, class_ranges
from autobalance.records.metrics import (
    class_errors,
    classification_report,
    demographic_parity_difference,
    deo,
    equal_opportunity_difference,
    equalized_odds_difference,
    group_class_errors,
    metric_frame,
)

Triples = list[tuple[int, int, int]]


def test_by_hand() -> None:
    target = np.array([0, 0, 0, 0, 1, 1, 3])
    predicted = np.array([0, 0, 0, 1, 1, 0, 0])
    groups = np.array([0, 0, 2, 2, 0, 2, 2])
    assert classification_report(target, predicted, 4, groups) == {
        "n": 7,
        "error": pytest.approx(3 / 7),
        "balanced_error": pytest.approx((0.25 + 0.5 + 1.0) / 3),
        "worst_class_error": None,
        "cvar_error": 1.0,
        "quantile_error": pytest.approx(0.8),
        "balanced_error_and_deviation": pytest.approx((7 / 12 + np.sqrt(7 / 72)) / 2),
        "class_n": [4, 2, 0, 1],
        "class_errors": [0.25, 0.5, None, 1.0],
        "worst_group_error": 0.75,
        "group_balanced_error": pytest.approx((0.0 + 0.0 + 0.5 + 1.0 + 1.0) / 5),
        "worst_class_and_group_error": None,
        "deo": None,
        "equalized_odds_difference": None,
        "equal_opportunity_difference": None,
        "demographic_parity_difference": pytest.approx(3 / 4 - 2 / 3),
        "group_errors": {0: 0.0, 2: 0.75},
        "group_balanced_errors": {0: 0.0, 2: pytest.approx((0.5 + 1.0 + 1.0) / 3)},
        "class_and_group_errors": {0: [0.0, 0.0, None, None], 2: [0.5, 1.0, None, 1.0]},
        "class_and_group_n": {0: [2, 1, 0, 0], 2: [2, 1, 0, 1]},
        "undefined": {
            "worst_class_error": "there is no example of class 2",
            "worst_class_and_group_error": "there is no example of class 2 in group 0",
            "deo": "there is no example of class 2 in group 0",
            "equalized_odds_difference": "there is no example of class 2 in group 0",
            "equal_opportunity_difference": "equal opportunity is about the positive one of two "
            "classes; there are 4",
        },
    }
    named = classification_report(target, predicted, 4, groups, ["north", "nobody", "south"])
    assert named["group_errors"] == {"north": 0.0, "south": 0.75}
    assert named["class_and_group_n"].keys() == {"north", "south"}


def test_absent_classes_are_nan() -> None:
    errors = class_errors(np.array([2, 2]), np.array([2, 0]), 4)
    np.testing.assert_array_equal(errors, [np.nan, np.nan, 0.5, np.nan])


@given(st.lists(st.tuples(*[st.integers(0, 3)] * 3), min_size=1, max_size=30))
def test_every_named_objective_is_reported(triples: Triples) -> None:
    target, predicted, groups = np.array(triples).T
    report = classification_report(target, predicted, 4, groups)
    logits = torch.nn.functional.one_hot(torch.from_numpy(predicted), 4).float()
    for name, objective in NAMED.items():
        expected = objective.hard(logits, torch.from_numpy(target), groups=torch.from_numpy(groups))
        if name in report.get("undefined", {}):
            assert report[name] is None
        else:
            assert report[name] == pytest.approx(expected), name


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=30))
def test_agrees_with_scikit_learn_and_with_the_objectives(pairs: list[tuple[int, int]]) -> None:
    target, predicted = np.array(pairs).T
    report = classification_report(target, predicted, 4)
    assert report["error"] == pytest.approx(1 - accuracy_score(target, predicted))
    present = np.unique(target)
    recalls = recall_score(target, predicted, labels=present, average=None, zero_division=0)
    assert report["balanced_error"] == pytest.approx(1 - np.mean(recalls))
    if len(present) == 4:
        assert report["worst_class_error"] == pytest.approx(1 - np.min(recalls))
        assert report["worst_class_error"] == pytest.approx(
            WorstError().hard(*map(torch.from_numpy, (np.eye(4)[predicted], target)))
        )
    else:
        assert report["worst_class_error"] is None
        assert "no example" in report["undefined"]["worst_class_error"]
    if len(present) > 1 and set(predicted) <= set(target):  # it warns of what it cannot judge
        assert report["balanced_error"] == pytest.approx(
            1 - balanced_accuracy_score(target, predicted)
        )
    logits = torch.nn.functional.one_hot(torch.from_numpy(predicted), 4).float()
    y = torch.from_numpy(target)
    assert report["balanced_error"] == pytest.approx(BalancedError().hard(logits, y))


# Between groups -------------------------------------------------------------------------------


def of(triples: Triples) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    target, predicted, groups = np.array(triples).T
    return target, predicted, groups


def complete(classes: int, groups: int) -> st.SearchStrategy[Triples]:
    """Targets, predictions and groups with an example of every class in every group."""
    cells = [(k, g) for k in range(classes) for g in range(groups)]
    every = st.tuples(*[st.integers(0, classes - 1)] * len(cells)).map(
        lambda guesses: [(k, c, g) for (k, g), c in zip(cells, guesses, strict=True)]
    )
    one = st.tuples(*[st.integers(0, classes - 1)] * 2, st.integers(0, groups - 1))
    return st.builds(lambda a, b: a + b, every, st.lists(one, max_size=40))


TWO_GROUPS_TWO_CLASSES = (
    np.array([0, 0, 0, 0, 1, 1, 0, 0, 1, 1, 1, 1]),
    np.array([0, 0, 0, 1, 1, 0, 1, 1, 1, 1, 1, 0]),
    np.array([0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1]),
)
"""Errors 1/4 and 1/2 in the first group, 1 and 1/4 in the second."""


def test_differences_by_hand() -> None:
    data = TWO_GROUPS_TWO_CLASSES
    np.testing.assert_allclose(group_class_errors(*data, 2), [[0.25, 0.5], [1.0, 0.25]])
    assert deo(*data, 2) == pytest.approx(abs(0.25 - 1.0) + abs(0.5 - 0.25))
    assert equalized_odds_difference(*data, 2) == pytest.approx(0.75)
    assert equal_opportunity_difference(*data, 2) == pytest.approx(0.25)
    assert equal_opportunity_difference(*data, 2, positive=0) == pytest.approx(0.75)
    assert demographic_parity_difference(*data, 2) == pytest.approx(5 / 6 - 2 / 6)


def test_more_classes_and_groups_by_hand() -> None:
    # Errors 0, 1, 1/2 of class 0 and 1, 1, 0 of class 2; class 1 is in the last group alone.
    target = np.array([0, 2, 0, 2, 0, 0, 1, 2])
    predicted = np.array([0, 1, 1, 0, 0, 2, 0, 2])
    groups = np.array([0, 0, 1, 1, 2, 2, 2, 2])
    table = group_class_errors(target, predicted, groups, 3)
    np.testing.assert_array_equal(table, [[0, np.nan, 1], [1, np.nan, 1], [0.5, 1, 0]])
    np.testing.assert_array_equal(class_ranges(table), [1.0, 0.0, 1.0])
    assert deo(target, predicted, groups, 3) is None
    assert equalized_odds_difference(target, predicted, groups, 3) is None
    assert ErrorTable.from_predictions(target, predicted, 3, groups).known_deo == 2.0
    # Class 0 is predicted for 1/2, 1/2, 1/2 of the groups, class 1 for 1/2, 1/2, 0.
    assert demographic_parity_difference(target, predicted, groups, 3) == 0.5


@pytest.mark.parametrize("num_groups", [1, 2, 4])
@settings(max_examples=12)  # each takes fairlearn a tenth of a second
@given(data=st.data())
def test_agrees_with_fairlearn(num_groups: int, data: st.DataObject) -> None:
    import fairlearn.metrics as fairlearn

    target, predicted, groups = triple = of(data.draw(complete(2, num_groups)))
    theirs = {"y_true": target, "y_pred": predicted, "sensitive_features": groups}
    assert equalized_odds_difference(*triple, 2) == pytest.approx(
        fairlearn.equalized_odds_difference(**theirs)
    )
    assert deo(*triple, 2) == pytest.approx(
        2 * fairlearn.equalized_odds_difference(**theirs, agg="mean")
    )
    assert equal_opportunity_difference(*triple, 2) == pytest.approx(
        fairlearn.equal_opportunity_difference(**theirs)
    )
    assert demographic_parity_difference(*triple, 2) == pytest.approx(
        fairlearn.demographic_parity_difference(**theirs)
    )


def test_what_an_empty_cell_leaves_undefined_is_none_where_fairlearn_counts_a_rate_of_zero() -> (
    None
):
    from fairlearn.metrics import equal_opportunity_difference as theirs

    target, predicted, groups = np.array([[1, 1, 0], [1, 1, 0], [0, 0, 1]])
    assert theirs(target, predicted, sensitive_features=groups) == 1.0
    for measure in (deo, equalized_odds_difference, equal_opportunity_difference):
        assert measure(target, predicted, groups, 2) is None
    table = ErrorTable.from_predictions(target, predicted, 2, groups)
    reason = table.undefined("deo", ["no", "yes"], ["north", "south"])
    assert reason == "there is no example of no in north"
    assert "yes in south" in str(
        table.undefined("equal_opportunity_difference", ["no", "yes"], ["north", "south"])
    )
    assert table.undefined("balanced_error") is None
    with pytest.raises(InputError, match="no measure"):
        table.undefined("odds")


def test_equal_opportunity_of_three_classes_needs_the_positive_one() -> None:
    target, predicted = np.array([0, 1, 2, 0, 1, 2]), np.array([0, 1, 2, 0, 1, 0])
    groups = np.array([0, 0, 0, 1, 1, 1])
    assert equal_opportunity_difference(target, predicted, groups, 3) is None
    assert equal_opportunity_difference(target, predicted, groups, 3, positive=2) == 1.0
    assert equal_opportunity_difference(target, predicted, groups, 3, positive=1) == 0.0


def test_whole_weights_are_rows_repeated_and_weight_zero_is_no_row() -> None:
    draw = np.random.default_rng(0)
    target, predicted, groups = draw.integers(0, 2, (3, 40))
    weight = draw.integers(0, 4, 40)
    rows = np.repeat(np.arange(40), weight)
    weighted = ErrorTable.from_predictions(target, predicted, 2, groups, weight)
    repeated = ErrorTable.from_predictions(target[rows], predicted[rows], 2, groups[rows])
    for name in ("errors", "mass", "selection_rates", "group_balanced_errors"):
        np.testing.assert_allclose(getattr(weighted, name), getattr(repeated, name))
    for name in ("error", "balanced_error", "deo", "demographic_parity_difference"):
        assert getattr(weighted, name) == pytest.approx(getattr(repeated, name))


def test_selection_rates_of_two_classes_follow_from_the_errors() -> None:
    target, predicted, groups = TWO_GROUPS_TWO_CLASSES
    table = ErrorTable.from_predictions(target, predicted, 2, groups)
    bare = ErrorTable.from_rates(table.errors, table.mass)
    np.testing.assert_allclose(bare.selection_rates, table.selection_rates)
    three = ErrorTable.from_rates(np.zeros((2, 3)), np.ones((2, 3)))
    assert three.demographic_parity_difference is None
    assert "predicted" in str(three.undefined("demographic_parity_difference"))


@given(complete(3, 3))
def test_report_and_functions_agree(triples: Triples) -> None:
    target, predicted, groups = of(triples)
    report = classification_report(target, predicted, 3, groups)
    for measure in (
        deo,
        equalized_odds_difference,
        equal_opportunity_difference,
        demographic_parity_difference,
    ):
        expected = measure(target, predicted, groups, 3)
        assert report[measure.__name__] == (None if expected is None else pytest.approx(expected))


@given(complete(3, 3), st.permutations(range(3)))
def test_group_numbers_mean_nothing(triples: Triples, order: list[int]) -> None:
    target, predicted, groups = of(triples)
    for measure in (deo, equalized_odds_difference, demographic_parity_difference):
        value = measure(target, predicted, groups, 3)
        assert measure(target, predicted, np.array(order)[groups], 3) == pytest.approx(value)
        # A gap in the numbering is a group without examples.
        assert measure(target, predicted, 2 * groups + 1, 3) == pytest.approx(value)


@pytest.mark.parametrize(
    "measure",
    [
        deo,
        equalized_odds_difference,
        equal_opportunity_difference,
        demographic_parity_difference,
        group_class_errors,
    ],
)
def test_bad_input_is_refused(measure: Callable[..., object]) -> None:
    target, predicted, groups = TWO_GROUPS_TWO_CLASSES
    with pytest.raises(InputError, match="target has 12, predicted has 12, groups has 3"):
        measure(target, predicted, groups[:3], 2)
    with pytest.raises(InputError, match="groups must hold indices"):
        measure(target, predicted, groups.astype(str), 2)
    with pytest.raises(InputError, match="groups must hold indices"):
        measure(target, predicted, groups - 1, 2)
    with pytest.raises(InputError, match="predicted has class 2, but there are only 2"):
        measure(target, predicted + 1, groups, 2)
    with pytest.raises(InputError, match="num_classes must be at least 2"):
        measure(target, predicted, groups, 1)
    with pytest.raises(InputError, match="no example"):
        measure(target[:0], predicted[:0], groups[:0], 2)


def test_the_positive_class_must_be_one() -> None:
    with pytest.raises(InputError, match="positive must be a class, 0 to 1; got 2"):
        equal_opportunity_difference(*TWO_GROUPS_TWO_CLASSES, 2, positive=2)


def test_metric_frame() -> None:
    target, predicted, groups = TWO_GROUPS_TWO_CLASSES
    names = np.array(["north", "south"])[groups]
    frame = metric_frame(target, predicted, names)
    report = classification_report(target, predicted, 2, groups, ["north", "south"])
    assert frame.overall["error"] == pytest.approx(report["error"])
    assert frame.overall["balanced_error"] == pytest.approx(report["balanced_error"])
    by_group = frame.by_group
    assert by_group["error"].to_dict() == pytest.approx(report["group_errors"])
    assert by_group["balanced_error"].to_dict() == pytest.approx(report["group_balanced_errors"])
    assert by_group["selection_rate_1"].to_dict() == pytest.approx({"north": 2 / 6, "south": 5 / 6})
    assert frame.difference()["selection_rate_0"] == pytest.approx(
        report["demographic_parity_difference"]
    )
    with pytest.raises(InputError, match="groups has 2"):
        metric_frame(target, predicted, names[:2])


def test_metric_frame_of_a_group_that_lacks_a_class() -> None:
    frame = metric_frame(np.array([0, 2, 2]), np.array([0, 2, 0]), ["a", "b", "b"])
    assert frame.by_group["balanced_error"].to_dict() == {"a": 0.0, "b": 0.5}


def test_without_fairlearn_metric_frame_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fairlearn.metrics", None)
    with pytest.raises(InputError, match=r"pip install fairlearn"):
        metric_frame(*TWO_GROUPS_TWO_CLASSES)
