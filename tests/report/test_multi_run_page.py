"""Several runs on one page: what stands beside what, what is said not to compare, and its size."""

from __future__ import annotations

import re
import time
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from autobalance._validation import InputError
from autobalance.report.compare_runs import (
    NamedRun,
    classes_in_common,
    errors_table,
    parameter_pictures,
    parameters_table,
    runs_table,
    settings_table,
)
from autobalance.report.evidence import all_evidence
from autobalance.report.multi_run_page import limits, render_runs
from autobalance.report.record import read_run
from fold_records import of_folds
from report_records import checked_page, make_record, measured_record


def named(**records: dict[str, Any]) -> list[NamedRun]:
    runs = {name: read_run(record) for name, record in records.items()}
    return [NamedRun(name, run, next(iter(all_evidence(run)), None)) for name, run in runs.items()]


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages without the sections of single runs, whose figures take most of the time."""
    monkeypatch.setattr("autobalance.report.multi_run_page.MAX_BYTES", 0)


def test_two_runs_of_the_same_data_stand_side_by_side() -> None:
    one, two = measured_record(5, seed=1), measured_record(5, seed=1, parts=("additive", "weight"))
    page = checked_page(render_runs({"first": one, "second": two}))
    shown = " ".join(page.text)
    for said in ("2 runs side by side", "Asked and found", "Errors and cost", "Error per class",
                 "What was learned", "Each run by itself", "first and second"):  # fmt: skip
        assert said in shown
    assert "What cannot be compared" not in shown
    assert "balanced error is lowest for" in shown
    assert page.count("details") == 2
    # each run's own sections are whole: as many figures again as alone, and those that compare
    assert {i.partition("fig-")[0] for i in page.ids if "fig-" in i} == {"", "run-1-", "run-2-"}


def test_numbers_are_each_runs_own_by_the_classes_names() -> None:
    one, two = measured_record(4, seed=1), measured_record(4, seed=2)
    two["class_names"] = one["class_names"][::-1]
    runs = named(one=one, two=two)
    classes = classes_in_common(runs)
    assert classes == one["class_names"]
    table = errors_table(runs, classes)
    assert table is not None
    found = {row[0].text: [c.value for c in row[2:]] for row in table.rows}
    for c, name in enumerate(one["class_names"]):
        errors = [r["methods"]["autobalance"]["class_errors"] for r in (one, two)]
        assert found[name] == pytest.approx([errors[0][c], errors[1][3 - c]])
    learned = parameters_table(runs, classes)
    assert learned is not None
    own = np.array(two["search"]["loss"]["additive"])
    assert [row[2].value for row in learned.rows] == pytest.approx((own - own.mean())[::-1])


def test_the_table_of_errors_and_cost() -> None:
    one, two = measured_record(4, seed=1, groups=2), of_folds(make_record(4, seed=2))
    rows = runs_table(named(one=one, two=two)).rows
    report = one["methods"]["autobalance"]
    assert [c.value for c in rows[0][2:5]] == pytest.approx(
        [report["balanced_error"], report["worst_class_error"], report["worst_group_error"]]
    )
    assert rows[1][1].text == "held-out folds"
    assert [c.value for c in rows[1][2:4]] == pytest.approx([3 / 20, 3 / 20])
    assert rows[0][7].value == 4000.0


def test_runs_are_judged_by_what_all_of_them_have() -> None:
    both = of_folds(measured_record(4, seed=1))
    both["methods"] = measured_record(4, seed=1)["methods"]
    folds = of_folds(make_record(4, seed=1))
    text = render_runs({"both": both, "folds": folds})
    section = text[text.index('id="h-runs"') : text.index('id="h-each"')]
    assert section.count(">held-out folds</td>") == 2
    assert "different kinds of data" not in text


@pytest.mark.usefixtures("shared")
def test_what_cannot_be_compared_is_said_and_all_is_shown() -> None:
    one, two, three = (measured_record(k, seed=k) for k in (4, 5, 3))
    two["evaluation_data"] = one["evaluation_data"]
    three |= {"objective": "worst_class_error", "status": "interrupted"}
    three["class_names"] = ["x", "y", "z"]
    runs = named(one=one, two=two)
    [text] = limits(runs, classes_in_common(runs))
    assert "different classes: 4 have the same name in all of them" in text
    runs = named(one=one, three=three)
    said = " ".join(limits(runs, classes_in_common(runs)))
    for part in ("no class in common (one: 4, three: 3)", "different test data",
                 "asked for different things (balanced error, worst class error)",
                 "Not finished: three"):  # fmt: skip
        assert part in said
    page = checked_page(render_runs({"one": one, "two": two, "three": three}))
    assert "What cannot be compared" in " ".join(page.text)
    assert page.count("details") == 3


def test_different_numbers_of_examples_and_kinds_of_data_are_told() -> None:
    one, two = measured_record(4, seed=1), of_folds(make_record(4, seed=2))
    runs = named(one=one, two=two)
    said = " ".join(limits(runs, classes_in_common(runs)))
    assert "different numbers of examples" in said
    assert "different kinds of data: one: 200 balanced test images; two: what the" in said
    nothing = make_record(4, seed=1) | {"methods": {}}
    runs = named(one=one, nothing=nothing)
    assert "Nothing measured the error per class of nothing" in " ".join(limits(runs, ["class 0"]))


def test_settings_that_differ_and_no_others() -> None:
    one, two = make_record(3, seed=1), make_record(3, seed=1) | {"seed": 7}
    assert settings_table(named(a=one, b=make_record(3, seed=1))) is None
    two["search"]["settings"] = {**two["search"]["settings"], "recipe": {"epochs": 30.0, "lr": 0.1}}
    table = settings_table(named(a=one, b=two))
    assert table is not None
    rows = {row[0].text: [c.text for c in row[1:]] for row in table.rows}
    assert rows == {"recipe.epochs": ["20", "30"], "recipe.lr": ["–", "0.1"], "seed": ["0", "7"]}


def test_options_of_the_command_that_differ() -> None:
    given = {"table": "data.csv", "target": "kind", "groups": None, "test": None}
    one = make_record(3, seed=1) | {"options": given}
    two = make_record(3, seed=1) | {"options": {**given, "groups": "site", "test": "fresh.csv"}}
    table = settings_table(named(a=one, b=two))
    assert table is not None
    rows = {row[0].text: [c.text for c in row[1:]] for row in table.rows}
    assert rows == {"groups": ["none", "site"], "test": ["none", "fresh.csv"]}


def test_the_parameters_side_by_side_are_under_the_classes_names() -> None:
    names = ["cat", "dog & <co>", "mule"]
    runs = named(**{n: make_record(3, seed=1) | {"class_names": names} for n in ("a", "b")})
    [picture] = parameter_pictures(runs, classes_in_common(runs))
    shown = ["".join(e.itertext()) for e in ElementTree.fromstring(picture.svg).iter("text")]
    assert [s for s in shown if s in names] == names  # the most frequent first
    assert "class, from the most" not in " ".join(shown)
    assert "from the most to the least frequent" in picture.caption
    many = named(**{n: make_record(60, seed=1) for n in ("a", "b")})
    [picture] = parameter_pictures(many, classes_in_common(many))
    shown = ["".join(e.itertext()) for e in ElementTree.fromstring(picture.svg).iter("text")]
    assert "class 7" not in shown
    assert "class, from the most to the least frequent" in shown


@pytest.mark.usefixtures("shared")
def test_names_of_runs_are_text() -> None:
    one = measured_record(3)
    page = checked_page(render_runs({"<b>$x$</b>": one, '"><script>': one, "": one}))
    shown = "".join(page.text)
    assert "<b>$x$</b>" in shown
    assert '"><script>' in shown
    assert page.count("b") == 0


def test_too_few_runs_and_bad_records_are_refused() -> None:
    with pytest.raises(InputError, match="need at least two; got 1"):
        render_runs({"one": make_record()})
    with pytest.raises(InputError, match=r"^bad: The record has no usable class_counts"):
        render_runs({"one": make_record(), "bad": {"kind": "fit"}})


def test_many_classes_stay_small_and_quick() -> None:
    k, count = 1000, 2
    names = [f"n{i:08d} a rather long name of a class" for i in range(k)]
    records = {
        f"run {i}": measured_record(k, seed=i, steps=100) | {"class_names": names}
        for i in range(count)
    }
    begin = time.process_time()
    text = render_runs(records)
    assert time.process_time() - begin < 5.0
    checked_page(text)


@pytest.mark.usefixtures("empty_pictures")
def test_what_would_make_the_page_too_large_is_left_to_each_runs_own_report(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    record = measured_record(4, steps=2)
    records = {f"run {i}": record for i in range(3)}
    whole = len(render_runs(records).encode())
    monkeypatch.setattr("autobalance.report.multi_run_page.MAX_BYTES", whole - 1000)
    text = render_runs(records)
    checked_page(text)
    assert text.count("They are in its own report") == 1
    assert len(text.encode()) < whole - 1000


@pytest.mark.usefixtures("shared")
def test_the_same_records_give_the_same_page() -> None:
    records = {name: measured_record(3, seed=3, steps=2) for name in ("a", "b")}
    assert render_runs(records) == render_runs(records)


@pytest.mark.usefixtures("shared")
def test_more_runs_than_can_be_drawn_are_all_in_the_tables() -> None:
    records = {f"run {i}": measured_record(3, seed=i) for i in range(7)}
    text = render_runs(records)
    assert "The first 6 of 7 runs." in text
    head = re.search(r'id="caption-errors".*?<thead>(.*?)</thead>', text, re.DOTALL)
    assert head is not None
    assert all(f"run {i}" in head[1] for i in range(7))
