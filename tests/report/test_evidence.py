"""Calibration, confusion and errors before and after: what records keep of them, and old records."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from autobalance._validation import InputError
from autobalance.calibration.temperature import evaluate_logits, fit_temperature
from autobalance.losses.modules import ParametricCrossEntropy
from autobalance.records.files import to_json
from autobalance.records.metrics import (
    MAX_CONFUSED,
    Reliability,
    confused_pairs,
    expected_calibration_error,
    reliability,
)
from autobalance.records.search_record import Calibration
from autobalance.report.evidence import all_evidence, error_evidence
from autobalance.report.folders import EVALUATION, read_folder, save_evaluation
from autobalance.report.html import render_report
from autobalance.report.record import read_run
from autobalance.report.tables import (
    calibration_table,
    confusion_table,
    errors_tables,
    groups_change_table,
)
from fold_records import of_folds
from report_records import checked, make_record, measured_record


def drawn(n: int = 300, k: int = 4) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(0)
    target = draw.integers(k, size=n)
    logits = draw.normal(size=(n, k))
    logits[np.arange(n), target] += 1.0
    return logits, target


# The numbers ----------------------------------------------------------------------------------


def test_bins_of_confidence_against_a_slow_count() -> None:
    logits, target = drawn()
    p = torch.softmax(torch.from_numpy(logits), dim=1).numpy()
    found = reliability(p, target, bins=10)
    for b in range(10):
        inside = [i for i in range(len(p)) if b / 10 < p[i].max() <= (b + 1) / 10]
        assert found.n[b] == len(inside)
        assert found.right[b] == sum(p[i].argmax() == target[i] for i in inside)
        mean = np.mean([p[i].max() for i in inside]) if inside else 0.0
        assert found.confidence[b] == pytest.approx(mean)
    assert found.error == pytest.approx(expected_calibration_error(p, target, bins=10))
    assert sum(reliability(p, target).n) == len(p)


def test_confused_pairs_are_the_off_diagonal_of_the_confusion_matrix() -> None:
    from sklearn.metrics import confusion_matrix

    logits, target = drawn()
    predicted = logits.argmax(axis=1)
    pairs = confused_pairs(target, predicted, 4)
    table = np.zeros((4, 4), dtype=int)
    for t, guess, n in pairs:
        table[t, guess] = n
    expected = confusion_matrix(target, predicted)
    np.fill_diagonal(expected, 0)
    np.testing.assert_array_equal(table, expected)
    counts = [n for *_, n in pairs]
    assert counts == sorted(counts, reverse=True)
    assert min(counts) > 0


def test_the_most_frequent_confusions_are_kept_of_very_many() -> None:
    k = 400
    target, predicted = np.divmod(np.arange(k * k), k)
    target, predicted = np.append(target, [7, 7]), np.append(predicted, [9, 9])
    pairs = confused_pairs(target, predicted, k)
    assert len(pairs) == MAX_CONFUSED
    assert pairs[0] == [7, 9, 3]


def test_what_is_measured_on_test_data() -> None:
    logits, target = drawn()
    counts = np.array([100, 40, 20, 5])
    loss = ParametricCrossEntropy.logit_adjusted(counts)
    found = json.loads(json.dumps(evaluate_logits(logits, target, loss, counts, temperature=1.5)))
    predicted = logits.argmax(axis=1)
    assert found["error"] == np.mean(predicted != target)
    assert found["confused"] == confused_pairs(target, predicted, 4)
    raw = torch.softmax(torch.from_numpy(logits), dim=1).numpy()
    assert Reliability(**found["calibration"]["raw"]) == reliability(raw, target)
    # By Bayes' rule: the training posterior over its prior, times that of these examples.
    prior = (np.bincount(target, minlength=4) + counts / counts.sum()) / (len(target) + 1)
    smooth = (counts + counts / counts.sum()) / (counts.sum() + 1)
    z = logits / 1.5 + np.log(counts / counts.sum()) - np.log(smooth) + np.log(prior)
    expected = torch.softmax(torch.from_numpy(z), dim=1).numpy()
    corrected = Reliability(**found["calibration"]["corrected"])
    assert corrected.n == reliability(expected, target).n
    assert corrected.confidence == pytest.approx(reliability(expected, target).confidence)
    with pytest.raises(InputError, match="target is empty"):
        evaluate_logits(logits[:0], target[:0], loss, counts)


def test_the_calibration_of_a_search_keeps_its_bins() -> None:
    logits, target = drawn()
    counts = [100, 40, 20, 5]
    found = fit_temperature(logits, target, ParametricCrossEntropy.logit_adjusted(counts), counts)
    for bins, error in (
        (found.raw_bins, found.raw_error),
        (found.prior_bins, found.prior_error),
        (found.bins, found.error),
    ):
        assert bins is not None
        assert bins.error == pytest.approx(error)
    assert Calibration.from_dict(json.loads(json.dumps(asdict(found)))) == found
    older = {k: v for k, v in asdict(found).items() if "bins" not in k}
    assert Calibration.from_dict(older).bins is None


# What is shown --------------------------------------------------------------------------------


def test_calibration_and_confusion_are_shown_where_test_data_is_known() -> None:
    record = measured_record(6)
    page = checked(record)
    assert {"fig-calibration", "fig-confusion", "fig-errors-test"} <= set().union(
        *({i.rpartition("-")[0]} for i in page.ids if i.startswith("fig-"))
    )
    run = read_run(record)
    table = calibration_table(run)
    assert table is not None
    for row, method in zip(table.rows, record["methods"].values(), strict=True):
        errors = [Reliability(**method["calibration"][key]).error for key in ("raw", "corrected")]
        assert [c.value for c in row[1:]] == pytest.approx(errors)
    confusion = confusion_table(run)
    assert confusion is not None
    tables = [
        {(t, g): n for t, g, n in record["methods"][name]["confused"]}
        for name in ("cross_entropy", "autobalance")
    ]
    changes = []
    for row in confusion.rows:
        t, g = (int(c.text.split()[1]) for c in row[:2])
        before, after = (table.get((t, g), 0) for table in tables)
        assert [c.value for c in row[2:]] == [before, after, after - before]
        changes.append(abs(after - before))
    assert changes == sorted(changes, reverse=True)


def test_without_test_data_the_folds_say_before_and_after() -> None:
    run = read_run(of_folds(make_record(4)))
    found = error_evidence(run)[0]
    assert found.kind == "folds"
    assert found.before is not None
    assert (found.before.name, found.after and found.after.name) == ("start", "designed")
    [table] = errors_tables(run)
    assert table.columns[-1] == "Change, points"
    confusion = confusion_table(run)
    assert confusion is not None
    assert [c.value for c in confusion.rows[0][2:]] == [3.0, 2.0, -1.0]
    checked(of_folds(make_record(4)))


def test_an_evaluated_fit_shows_test_data_first_and_the_folds_beside() -> None:
    record = of_folds(make_record(4))
    record["methods"] = {"autobalance": measured_record(4)["methods"]["autobalance"]}
    run = read_run(record)
    assert [e.kind for e in all_evidence(run)] == ["test", "folds"]
    assert len(errors_tables(run)) == 2
    page = checked(record)
    assert "On test data" in " ".join(page.text)


def test_a_search_alone_shows_its_held_out_data_without_a_before() -> None:
    record = make_record(3) | {"methods": {}}
    record["search"]["held_out"] = {
        "n": [[10, 10, 10]], "wrong": [[1, 2, 5]], "predicted": [[11, 10, 9]],
        "confused": [[2, 0, 3], [1, 2, 2], [2, 1, 2], [0, 1, 1]],
    }  # fmt: skip
    logits, target = drawn(k=3)
    loss = ParametricCrossEntropy.cross_entropy()
    record["search"]["calibration"] = asdict(fit_temperature(logits, target, loss, [9, 6, 3]))
    page = checked(record)
    shown = " ".join(page.text)
    assert "The most frequent confusions" in shown
    assert "The same, with the temperature fitted" in shown
    assert "Reliability" in shown


def test_groups_before_and_after() -> None:
    record = measured_record(3, groups=2)
    table = groups_change_table(read_run(record))
    assert table is not None
    before, after = (record["methods"][n] for n in ("cross_entropy", "autobalance"))
    for row in table.rows[:2]:
        name = row[0].text
        expected = [m["group_errors"][name] for m in (before, after)]
        assert [c.value for c in row[1:3]] == pytest.approx(expected)
        balanced = [m["group_balanced_errors"][name] for m in (before, after)]
        assert [c.value for c in row[4:6]] == pytest.approx(balanced)
    errors = [m["group_errors"].values() for m in (before, after)]
    assert [c.value for c in table.rows[-1][1:3]] == pytest.approx(
        [max(e) - min(e) for e in errors]
    )


@pytest.mark.usefixtures("empty_pictures")
@pytest.mark.parametrize("instead", [None, {}, "text", [[0, 9, 1]], [[0, 1]], [[0, 1, -2]], [[1]]])
def test_confusions_that_are_none_are_left_out(instead: Any) -> None:
    record = measured_record(3)
    for method in record["methods"].values():
        method["confused"] = instead
    assert confusion_table(read_run(record)) is None
    checked(record)


@pytest.mark.usefixtures("empty_pictures")
@pytest.mark.parametrize(
    "instead",
    [
        None, "text", {"n": [1], "right": [2], "confidence": [0.5]},
        {"n": [1, 2], "right": [1], "confidence": [0.5]},
        {"n": [0], "right": [0], "confidence": [0.0]},
        {"n": [3], "right": [1], "confidence": [1.5]},
    ],
)  # fmt: skip
def test_bins_that_are_none_are_left_out(instead: Any) -> None:
    record = measured_record(3)
    for method in record["methods"].values():
        method["calibration"]["raw"] = instead
    assert calibration_table(read_run(record)) is None
    checked(record)


def test_curves_hold_test_data_where_it_was_watched() -> None:
    record = make_record(3)
    assert "test data, test" not in render_report(record)
    for i, entry in enumerate(record["search"]["history"]):
        entry["test_objective"] = 0.3 - 0.001 * i if i % 5 == 0 else None
    shown = " ".join(checked(record).text)
    assert "Objective on validation and test data" in shown
    assert "The 0-1 error on test data starts at 0.3 and ends at 0.275." in shown


def test_a_frontier_is_drawn_where_the_record_has_one() -> None:
    record = measured_record(3, groups=2) | {"kind": "frontier"}
    points = [
        {"mix": m, "main": 0.2 + 0.1 * m, "gap": 0.5 - 0.4 * m, "constant": m > 0.8}
        for m in (0.0, 0.3, 0.9)
    ]
    others = [{"title": "<b>cross-entropy</b>", "main": 0.3, "gap": 0.6, "constant": False}]
    record["frontier"] = {"mix": 0.3, "main": "balanced_error", "gap": "deo", "points": points}
    record["frontier"]["baselines"] = others
    page = checked(record)
    shown = " ".join(page.text)
    assert "DEO (gaps in error, all classes added up)" in shown
    for text in ("picked", "a class always wrong", "<b>cross-entropy</b>", "mix 0.9"):
        assert text in shown
    for spoilt in ({}, {"mix": 0.3}, {"main": "x", "gap": "y", "points": [{"mix": "a"}]}, "text"):
        record["frontier"] = spoilt
        assert read_run(record).frontier == {}


# Folders --------------------------------------------------------------------------------------


def test_an_evaluation_joins_the_record_and_its_report(tmp_path: Path) -> None:
    record = json.loads(to_json(make_record(4) | {"methods": {}, "kind": "fit"}))
    (tmp_path / "result.json").write_text(json.dumps(record))
    assert read_folder(tmp_path) == record
    method = measured_record(4)["methods"]["autobalance"]
    save_evaluation(tmp_path, method, "200 examples of test.csv")
    assert json.loads((tmp_path / "result.json").read_text()) == record
    found = read_folder(tmp_path)
    assert found["methods"]["autobalance"]["class_errors"] == method["class_errors"]
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page == render_report(found)
    assert "200 examples of test.csv" in page


def test_an_evaluation_of_another_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text(json.dumps(make_record()))
    (tmp_path / EVALUATION).write_text(json.dumps({"format": "other"}))
    with pytest.raises(InputError, match="not an evaluation of autobalance"):
        read_folder(tmp_path)
    save_format = {"format": "autobalance-evaluation", "version": 2}
    (tmp_path / EVALUATION).write_text(json.dumps(save_format))
    with pytest.raises(InputError, match="version 2 of the format; this release reads version 1"):
        read_folder(tmp_path)
    (tmp_path / EVALUATION).write_text(json.dumps({**save_format, "version": 1}))
    with pytest.raises(InputError, match="incomplete"):
        read_folder(tmp_path)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        (None, "it has no result.json"),
        ("frontier.json", "a frontier without a network, drawn in frontier.svg"),
        ("cells.jsonl", "a comparison, whose tables are in BENCHMARKS.md"),
        ("search.checkpoint", "stopped before it had a loss; continue it with --resume"),
    ],
)
def test_folders_of_other_kinds_are_named(tmp_path: Path, file: str | None, message: str) -> None:
    if file is not None:
        (tmp_path / file).write_text("{}")
    with pytest.raises(InputError, match=message):
        read_folder(tmp_path)
    with pytest.raises(InputError, match="There is no folder"):
        read_folder(tmp_path / "nowhere")
