"""Bounds kept or missed, and results too weak to rely on, told where the result is told."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from autobalance.records.error_table import ErrorTable
from autobalance.report.explain import explanation
from autobalance.report.html import render_report
from autobalance.report.record import read_run
from autobalance.report.verdicts import doubts, measure_interval
from report_records import make_record


def bounded(wrong: Any, n: Any = ((200, 200), (200, 200)), bound: float = 0.1) -> dict[str, Any]:
    """A run for a bounded DEO, with these errors of group and class on test data."""
    record = make_record(k=2, groups=2)
    record["objective"] = f"balanced_error where deo <= {bound:g}"
    record["search"]["held_out"] = {
        "n": [[50, 50]] * 2,
        "wrong": [[10, 10], [12, 10]],
        "predicted": [[50, 50]] * 2,
    }
    table = ErrorTable.from_counts(np.array(wrong), np.array(n))
    names = ["a", "b"]
    record["methods"]["autobalance"] |= {
        "class_errors": table.class_errors.tolist(),
        "class_n": table.mass.sum(axis=0).tolist(),
        "class_and_group_errors": dict(zip(names, table.errors.tolist(), strict=True)),
        "class_and_group_n": dict(zip(names, table.mass.tolist(), strict=True)),
    }
    record["evaluation_data"] = "800 examples of new.csv"
    return record


@pytest.mark.usefixtures("empty_pictures")
@pytest.mark.parametrize(
    ("wrong", "verdict"),
    [
        ([[40, 40], [54, 40]], "Kept, but within the noise of these examples."),
        ([[40, 40], [90, 80]], "Missed."),
        ([[40, 40], [60, 44]], "Missed, but within the noise of these examples."),
    ],
    ids=str,
)
def test_a_bound_is_answered_first(wrong: Any, verdict: str) -> None:
    record = bounded(wrong)
    [first, *_] = explanation(read_run(record)).story
    assert first.startswith(
        "Bound: DEO of at most 10.0%. Held out: 4.0%. On 800 examples of new.csv: "
    )
    assert first.endswith(verdict)
    assert "95% interval" in first
    assert first.split("Held out")[0] in render_report(record)


def test_a_large_sample_keeps_its_bound_for_sure() -> None:
    record = bounded([[4000, 4000], [4100, 4000]], [[20_000, 20_000]] * 2)
    assert explanation(read_run(record)).story[0].endswith("%). Kept.")


def test_a_bound_without_test_data_is_not_known() -> None:
    record = bounded([[40, 40], [44, 40]])
    del record["methods"]["autobalance"]["class_and_group_n"]
    [first, *_] = explanation(read_run(record)).story
    assert "On test data: not measured. Not known on new data. Evaluate it on test data" in first
    record["objective"] = "balanced_error where deo <= 0.01"
    assert "Missed on held-out data." in explanation(read_run(record)).story[0]


def test_without_a_bound_nothing_is_said_of_one() -> None:
    assert not explanation(read_run(make_record())).story[0].startswith("Bound")


def test_the_interval_covers_the_truth() -> None:
    """Over many data sets of one truth about 95 % of the intervals hold its gap."""
    truth, n = np.array([[0.2, 0.3], [0.35, 0.25]]), np.full((2, 2), 150)
    draw = np.random.default_rng(0)
    intervals = [
        measure_interval(ErrorTable.from_counts(draw.binomial(n, truth), n), "deo")
        for _ in range(60)
    ]
    held = np.mean([low <= 0.2 <= high for low, high in intervals])
    assert held >= 0.85
    assert np.mean([high - low for low, high in intervals]) < 0.35


def with_errors(before: Any, after: Any, n: int = 200) -> dict[str, Any]:
    record = make_record(k=3)
    for name, errors in (("cross_entropy", before), ("autobalance", after)):
        record["methods"][name] |= {"class_errors": errors, "class_n": [n] * 3}
    return record


@pytest.mark.parametrize(
    ("record", "text"),
    [
        (
            with_errors([0.5, 0.6, 0.7], [0.65, 0.66, 0.68]),
            "next to nothing that can be told from chance",
        ),
        (
            with_errors([0.1, 0.5, 0.9], [0.3, 0.4, 0.4]),
            "and yet this lost more than noise explains: class 0 (+20.0 points)",
        ),
        (
            with_errors([0.1] * 3, [0.1] * 3) | {"temperature": 3.0},
            "The temperature is 3.00, far from 1",
        ),
        (
            with_errors([0.1] * 3, [0.1] * 3) | {"temperature": 0.3},
            "not nearly as sure as it may be",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_looks_like_a_result_and_is_none_is_told(record: dict[str, Any], text: str) -> None:
    if "temperature" in record:
        record["search"]["calibration"] = {
            "temperature": record["temperature"], "examples": 90, "raw_error": 0.3, "prior_error": 0.2,
            "error": 0.1,
        }  # fmt: skip
    [only] = doubts(read_run(record))
    assert text in only
    assert only in explanation(read_run(record)).warnings


def test_a_sound_result_raises_no_doubt() -> None:
    assert doubts(read_run(with_errors([0.2, 0.3, 0.4], [0.21, 0.25, 0.2]))) == []
