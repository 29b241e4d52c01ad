"""The tables by group against fairlearn, and what the page says of a collapse."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from fairlearn.metrics import (
    MetricFrame,
    demographic_parity_difference,
    equal_opportunity_difference,
    equalized_odds_difference,
    false_positive_rate,
    selection_rate,
    true_positive_rate,
)
from sklearn.metrics import balanced_accuracy_score, zero_one_loss

from autobalance.records.metrics import classification_report, deo
from autobalance.report.cautions import warning
from autobalance.report.html import render_report
from autobalance.report.record import read_run
from autobalance.report.tables import Table, gaps_table, groups_table
from report_records import make_record


def drawn(classes: int = 2, groups: int = 3) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    draw = np.random.default_rng(0)
    target, group = draw.integers(classes, size=400), draw.integers(groups, size=400)
    noisy = draw.random(400) < 0.1 + 0.15 * group
    return target, np.where(noisy, draw.integers(classes, size=400), target), group


def tables(target: np.ndarray, predicted: np.ndarray, group: np.ndarray, k: int) -> dict[str, Any]:
    """As a search records them."""
    shape = (int(group.max()) + 1, k)
    found = {name: np.zeros(shape, dtype=int) for name in ("n", "wrong", "predicted")}
    np.add.at(found["n"], (group, target), 1)
    np.add.at(found["wrong"], (group, target), target != predicted)
    np.add.at(found["predicted"], (group, predicted), 1)
    return {name: table.tolist() for name, table in found.items()}


def record(held_out: Any, k: int = 2, groups: int = 3) -> dict[str, Any]:
    made = make_record(k, groups)
    made["search"]["held_out"] = held_out
    return made


def numbers(table: Table | None) -> dict[str, list[float | None]]:
    assert table is not None
    return {row[0].text: [cell.value for cell in row[1:]] for row in table.rows}


def test_rates_and_gaps_are_those_of_fairlearn() -> None:
    target, predicted, group = drawn()
    run = read_run(record(tables(target, predicted, group, 2)))
    metrics = {
        "n": lambda y, p: float(len(y)),
        "error": zero_one_loss,
        "balanced": lambda y, p: 1.0 - balanced_accuracy_score(y, p),
        "selection": selection_rate,
        "tpr": true_positive_rate,
        "fpr": false_positive_rate,
    }
    frame = MetricFrame(metrics=metrics, y_true=target, y_pred=predicted, sensitive_features=group)
    shown = numbers(groups_table(run))
    for g in range(3):
        expected = frame.by_group.loc[g].tolist()
        assert shown[f"group {g}"] == pytest.approx(expected)
    assert shown["All"] == pytest.approx(frame.overall.tolist())
    assert shown["Difference"][1:] == pytest.approx(frame.difference().tolist()[1:])
    given = {"sensitive_features": group}
    gaps = [value for [value] in numbers(gaps_table(run)).values()]
    assert gaps == pytest.approx(
        [
            deo(target, predicted, group, 2),
            equalized_odds_difference(target, predicted, **given),
            equal_opportunity_difference(target, predicted, **given),
            demographic_parity_difference(target, predicted, **given),
        ]
    )


def test_test_data_goes_before_held_out_data() -> None:
    target, predicted, group = drawn()
    made = record(tables(target, target, group, 2))
    report = classification_report(target, predicted, 2, group, ["a", "b", "c"])
    made["methods"]["autobalance"] |= report
    table = groups_table(read_run(made))
    assert table is not None
    assert "test data" in table.caption
    shown = numbers(table)
    assert [shown[g][1] for g in "abc"] == pytest.approx(list(report["group_errors"].values()))
    page = render_report(made)
    assert page.index("Error per class") < page.index("By group") < page.index("Demographic parity")


def test_many_classes_have_no_positive_one() -> None:
    target, predicted, group = drawn(classes=4)
    run = read_run(record(tables(target, predicted, group, 4), k=4))
    table, gaps = groups_table(run), gaps_table(run)
    assert table is not None
    assert table.columns == ["Group", "Examples", "Error", "Balanced error"]
    assert next(v for [v] in numbers(gaps).values()) == pytest.approx(
        deo(target, predicted, group, 4)
    )
    assert len(numbers(gaps)) == 2


def test_a_group_without_examples_is_left_out_and_an_empty_cell_is_a_dash() -> None:
    held = {"n": [[5, 0], [0, 0], [4, 6]], "wrong": [[1, 0], [0, 0], [2, 3]],
            "predicted": [[4, 1], [0, 0], [5, 5]]}  # fmt: skip
    made = record(held)
    shown = numbers(groups_table(read_run(made)))
    assert list(shown) == ["group 0", "group 2", "All", "Difference"]
    assert shown["group 0"] == [5, 0.2, 0.2, 0.2, None, 0.2]
    assert "nan" not in render_report(made).split("<script")[0].lower().replace("financ", "")


@pytest.mark.usefixtures("empty_pictures")
@pytest.mark.parametrize(
    "held",
    [
        None,
        [],
        {"n": [[1, 2]]},
        {"n": [[1, 2, 3]], "wrong": [[0, 0, 0]], "predicted": [[1, 2, 3]]},
        {"n": [[1, 2]], "wrong": [[5, 0]], "predicted": [[1, 2]]},
        {"n": [["a", 2]], "wrong": [[0, 0]], "predicted": [[1, 2]]},
        {"n": [[1, None]], "wrong": [[0, 0]], "predicted": [[1, 2]]},
    ],
)
def test_what_does_not_fit_counts_as_missing(held: Any) -> None:
    run = read_run(record(held, groups=0))
    assert run.held_out is None
    assert groups_table(run) is None
    assert "By group" not in render_report(record(held, groups=0))


def test_a_collapse_is_said_first() -> None:
    target, _, group = drawn()
    made = record(tables(target, np.zeros_like(target), group, 2))
    found = warning(read_run(made))
    assert found is not None
    assert "predicts class 0 for every held-out example" in found
    assert "--recipe.lr" in found
    page = render_report(made)
    assert page.index("for every held-out example") < page.index("By group")


def test_a_class_never_predicted_is_named() -> None:
    target, predicted, group = drawn(classes=4)
    held = tables(target, np.where(predicted == 2, 0, predicted), group, 4)
    found = warning(read_run(record(held, k=4)))
    assert found is not None
    assert "predicts class 2 for no held-out example" in found
    assert warning(read_run(record(tables(target, predicted, group, 4), k=4))) is None
