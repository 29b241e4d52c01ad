"""The report: whole and well-formed for every record, and safe with hostile ones."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from autobalance._validation import InputError
from autobalance.report.explain import explanation
from autobalance.report.formats import duration
from autobalance.report.html import render_report, write_report
from autobalance.report.record import read_run, safe_text
from autobalance.report.statistics import slope, smooth, wilson
from autobalance.report.text import sentences
from report_records import checked, make_record

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "$x_{$ \\frac $$ ^",
    'id="caption-errors" url(#a) &amp; &',
    "_hidden",
    "{{ 7 * 7 }}{% raw %}",
    "nul\x00 bell\x07 \ud800 \u202egnp \ufffe",
    "日本語 🙂 עברית",
    "",
    "line\nbreak " + "long" * 200,
]


def test_a_usual_run_is_shown_whole() -> None:
    page = checked(make_record(k=10, parts=("additive", "multiplicative", "weight")))
    assert page.count("figure") == 1 + 3 + 3 + 2
    shown = "".join(page.text)
    for heading in ("Methods compared", "Error per class", "The loss found", "The search", "Cost"):
        assert heading in shown
    for said in ("autobalance demo --out run", "1 h 6 min", "recipe.epochs", "torch", "class 9"):
        assert said in shown


@pytest.mark.parametrize(("k", "groups"), [(2, 0), (10, 6), (30, 0), (31, 6)])
def test_every_size_renders(k: int, groups: int) -> None:
    checked(make_record(k=k, groups=groups, steps=8))


def test_a_thousand_classes_stay_small_and_quick() -> None:
    record = make_record(k=1000, steps=300, parts=("additive", "multiplicative", "weight"))
    record["class_names"] = [f"n{i:08d} a rather long name of a class" for i in range(1000)]
    record["search"]["path"] = record["search"]["path"][::6]
    begin = time.process_time()
    page = checked(record)
    assert time.process_time() - begin < 5.0
    labels = page.count("text")
    assert labels < 200
    assert page.count("details") == 2


def test_more_than_a_thousand_classes_and_groups_stay_small() -> None:
    record = make_record(k=8142, groups=4, steps=3, parts=("additive", "multiplicative", "weight"))
    page = checked(record)
    assert "The first 1,000 of" in " ".join(page.text)


def test_hostile_names_stay_text() -> None:
    k = len(HOSTILE)
    record = make_record(k=k, groups=2)
    record["class_names"] = HOSTILE
    record["group_names"] = ["<b>$g$</b>", "</svg><script>x</script>"]
    record["command"] = "autobalance fit '</code><script>alert(2)</script>'"
    record["evaluation_data"] = "<i>images</i>"
    record["objective"] = "<u>mine</u>"
    record["search"]["status"] = "</p><script>"
    record["search"]["settings"] = {"</td><script>": ["<script>", None, float("nan")]}
    record["versions"] = {"<script>": "\ud800"}
    for i, method in enumerate(record["methods"].values()):
        method["title"] = HOSTILE[i]
    page = checked(record)
    shown = "".join(page.text)
    assert "<script>alert(1)</script>" in shown
    assert "$x_{$ \\frac $$ ^" in shown
    assert "{{ 7 * 7 }}" in shown
    assert page.count("b") == page.count("u") == 0
    assert "<i>images</i>" in shown


def test_characters_that_no_file_can_hold_are_replaced() -> None:
    assert safe_text("a\x00b\ud800c\u202ed\n") == "a\ufffdb\ufffdc\ufffdd\n"
    assert safe_text("x" * 10, limit=5) == "xxxx…"


def test_policy_lets_only_the_reports_own_script_run() -> None:
    page = render_report(make_record())
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy is not None
    assert policy[1].startswith("default-src 'none'")
    assert "script-src 'sha256-" in policy[1]


def test_minimal_records_render() -> None:
    page = checked({"class_names": ["a", "b"]})
    assert page.count("figure") == 0
    checked({"class_counts": [3, 2]})
    checked({"class_counts": [[3, 2], [0, 1]], "search": None, "methods": None, "seconds": None})


@pytest.mark.usefixtures("empty_pictures")
@pytest.mark.parametrize(
    "path",
    [
        ("methods",),
        ("search",),
        ("search", "history"),
        ("search", "path"),
        ("search", "start"),
        ("search", "loss"),
        ("search", "settings"),
        ("search", "seconds"),
        ("seconds",),
        ("versions",),
        ("command",),
        ("class_names",),
        ("class_counts",),
        ("objective",),
        ("seed",),
        ("methods", "cross_entropy"),
        ("methods", "autobalance"),
        ("methods", "autobalance", "class_errors"),
        ("methods", "autobalance", "balanced_error"),
        ("methods", "autobalance", "seconds"),
    ],
)
@pytest.mark.parametrize("instead", ["absent", None, {}, "text"])
def test_any_part_may_be_missing_or_of_another_kind(path: tuple[str, ...], instead: Any) -> None:
    record = make_record(k=2, steps=2)
    *parents, last = path
    place = record
    for name in parents:
        place = place[name]
    if instead == "absent":
        del place[last]
    else:
        place[last] = instead
    assert explanation(read_run(record)).story
    if instead in ("absent", "text"):  # the others are read alike
        checked(record)


def test_parameters_that_do_not_fit_the_classes_are_left_out() -> None:
    record = make_record(k=3)
    record["search"]["loss"]["additive"] = [1.0, 2.0]
    assert read_run(record).parts == []
    checked(record)


def test_null_errors_of_absent_classes_are_shown_as_missing() -> None:
    record = make_record(k=3)
    for method in record["methods"].values():
        method["class_errors"] = [0.5, None, 0.1]
        method["n"] = 100
    page = checked(record)
    assert "–" in page.text


@pytest.mark.parametrize("record", [None, [], "text", {}, {"class_counts": "none"}])
def test_what_is_no_record_is_refused(record: Any) -> None:
    with pytest.raises(InputError, match="record"):
        render_report(record)


def test_the_same_record_gives_the_same_page_and_is_left_alone() -> None:
    record = make_record(k=12, groups=2, parts=("additive", "weight"))
    before = json.dumps(record)
    first = render_report(record)
    assert render_report(json.loads(before)) == first
    assert json.dumps(record) == before


def test_other_peoples_matplotlib_settings_neither_matter_nor_change() -> None:
    import matplotlib

    record = make_record()
    usual = render_report(record)
    with matplotlib.rc_context({"lines.linewidth": 9, "font.size": 30, "text.usetex": True}):
        assert render_report(record) == usual
        assert matplotlib.rcParams["lines.linewidth"] == 9


def test_writing_replaces_the_file_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")
    write_report(make_record(), path)
    assert path.read_text(encoding="utf-8").startswith("<!doctype html>")
    with pytest.raises(InputError):
        write_report({}, path)
    assert path.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert list(tmp_path.iterdir()) == [path]


def test_imports_no_torch() -> None:
    code = (
        "import sys, autobalance.report\n"
        "assert 'torch' not in sys.modules and 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


# What it says --------------------------------------------------------------------------------


def test_sentences_name_what_was_asked_found_and_brought() -> None:
    record = make_record(k=3)
    record["class_counts"] = [100, 10, 1]
    prior = np.log(np.array([100, 10, 1]) / 111)
    record["search"]["start"]["additive"] = prior.tolist()
    record["search"]["loss"]["additive"] = (1.5 * prior).tolist()
    for name, error in (("cross_entropy", 0.4), ("logit_adjustment", 0.25), ("autobalance", 0.2)):
        record["methods"][name] |= {
            "balanced_error": error,
            "class_errors": [error] * 3,
            "n": 3000,
        }
    asked, found, brought = sentences(read_run(record))
    assert "balanced error" in asked
    assert "111 training examples of 3 classes, from 100" in asked
    assert "favours rare classes more than logit adjustment" in found
    assert "1.50" in found
    assert "20.0%: 20.0 points less than cross-entropy, more than the choice" in brought


def test_a_difference_within_the_noise_of_the_test_data_is_called_so() -> None:
    record = make_record(k=2)
    for name, error in (("cross_entropy", 0.4), ("logit_adjustment", 0.4), ("autobalance", 0.38)):
        record["methods"][name] |= {"balanced_error": error, "class_errors": [error] * 2, "n": 100}
    assert (
        "2.0 points less than cross-entropy, within what the choice of test examples"
        in sentences(read_run(record))[2]
    )


def test_without_test_data_the_validation_data_is_named_with_its_limits() -> None:
    record = make_record() | {"methods": {}, "kind": "fit"}
    assert "Nothing was measured on test data" in sentences(read_run(record))[2]


def test_an_unmoved_loss_is_called_unmoved() -> None:
    record = make_record()
    record["search"]["loss"] = record["search"]["start"]
    assert "left the loss where it began" in sentences(read_run(record))[1]


def test_a_search_that_did_not_finish_is_said_first() -> None:
    record = make_record()
    record["search"]["status"] = "interrupted"
    assert "The search was interrupted" in "".join(checked(record).text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "under 0.1 s"),
        (59.94, "59.9 s"),
        (59.99, "1 min 0 s"),
        (61, "1 min 1 s"),
        (7260, "2 h 1 min"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


# Numbers ---------------------------------------------------------------------------------------


def test_wilson_agrees_with_scipy() -> None:
    for wrong, n in ((0, 5), (5, 5), (3, 40), (500, 1000)):
        low, high = wilson(np.array([wrong / n]), np.array([n]))
        expected = stats.binomtest(wrong, n).proportion_ci(0.95, method="wilson")
        np.testing.assert_allclose([low[0], high[0]], [expected.low, expected.high], atol=1e-6)


def test_wilson_is_missing_where_there_is_nothing() -> None:
    low, high = wilson(np.array([np.nan, 0.5]), np.array([10, 0]))
    assert np.isnan([*low, *high]).all()


def test_class_totals_of_the_test_data_are_used_where_given() -> None:
    record = make_record(k=3)
    record["methods"]["autobalance"] |= {
        "class_errors": [0.1, 0.3, 0.7],
        "n": 17,
        "class_n": [10, 3, 4],
    }
    method = read_run(record).method("autobalance")
    assert method is not None
    assert method.n is not None
    assert method.n.tolist() == [10, 3, 4]


def test_slope_recovers_tau_and_needs_different_counts() -> None:
    logs = np.log([500.0, 50.0, 5.0])
    assert slope(1.3 * logs - 4, logs) == pytest.approx(1.3)
    assert slope(np.ones(2), np.ones(2)) is None


def test_smoothing_keeps_constants_and_bridges_gaps() -> None:
    values = np.array([2.0, 2.0, np.nan, 2.0, 2.0, 2.0])
    np.testing.assert_allclose(smooth(values, 3), 2.0)
    assert smooth(np.arange(5.0), 3)[2] == pytest.approx(2.0)
