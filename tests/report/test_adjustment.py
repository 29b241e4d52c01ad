"""Reports of decisions on scores, by what they say."""

from __future__ import annotations

import copy
import re
from typing import Any

import numpy as np
import pandas as pd
import pytest

from autobalance import design_adjustment
from autobalance.cli.adjusted_run import AdjustedModel, ScoreColumns
from autobalance.posthoc import measure_taus
from autobalance.report import as_text, explanation, read_run
from autobalance.report.tables import adjustment_table, choice_table, rules_table
from report_records import checked

KINDS = np.array(["often", "rare", "seldom"])


@pytest.fixture(scope="module")
def record() -> dict[str, Any]:
    generator = np.random.default_rng(0)
    target = generator.choice(3, size=500, p=[0.8, 0.15, 0.05])
    z = generator.normal(size=(500, 3)) + np.log([0.8, 0.15, 0.05])
    z[np.arange(500), target] += 1.5
    p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    adjustment = design_adjustment(p, target)
    curve = measure_taus(adjustment, p, target)
    scorer = ScoreColumns([f"p_{kind}" for kind in KINDS])
    table = pd.DataFrame(p, columns=scorer.columns)
    model = AdjustedModel(scorer, adjustment, KINDS, curve=curve)
    given: dict[str, Any] = {
        "kind": "adjustment", "status": "finished", "objective": "balanced_error", "methods": {},
        "evaluation_data": None, "notes": [], "command": "autobalance adjust", "seed": 0,
    }  # fmt: skip
    pd.testing.assert_frame_equal(table, pd.DataFrame(model.features(table), columns=table.columns))
    return {**given, **model.record()}


def words(text: str) -> str:
    return " ".join(text.split())


def test_the_page_has_candidates_adjustment_curve_and_errors(record: dict[str, Any]) -> None:
    page = checked(record)
    text = words(" ".join(page.text))
    for heading in ("The adjustment", "Error per class", "Final choice"):
        assert heading in text
    assert "fig-tau-title" in page.ids
    assert any(name.startswith("fig-errors") for name in page.ids)
    assert "training loss" not in text.lower()  # nothing was trained


def test_the_choice_has_a_row_per_candidate_the_lowest_in_bold(record: dict[str, Any]) -> None:
    table = choice_table(read_run(record))
    assert table is not None
    entries = record["search"]["candidates"]
    assert len(table.rows) == len(entries)
    bold = [row[0].text for row in table.rows if row[1].best]
    lowest = min(entries, key=lambda entry: entry["objective"])
    assert len(bold) >= 1
    row = table.rows[entries.index(lowest)]
    assert row[1].best
    assert row[1].text == f"{100 * lowest['objective']:.1f}%"


def test_l_of_each_class_stands_with_its_interval(record: dict[str, Any]) -> None:
    run = read_run(record)
    table = adjustment_table(run)
    assert table is not None
    assert [row[0].text for row in table.rows] == KINDS.tolist()  # the most frequent first
    for c, row in enumerate(table.rows):
        assert row[2].value == pytest.approx(record["adjustment"]["l"][c])
        low, high = (float(t.replace("−", "-")) for t in (row[2].note or "").split(" to "))
        np.testing.assert_allclose(
            [low, high], record["adjustment"]["intervals"]["l"][c], atol=0.06
        )


def test_the_words_give_the_gain_and_tau(record: dict[str, Any]) -> None:
    text = words(as_text(explanation(read_run(record))))
    taken = record["search"]["choice"]
    values = {entry["name"]: entry["objective"] for entry in record["search"]["candidates"]}
    assert f"{100 * values['none']:.1f}% before, {100 * values[taken]:.1f}% after" in text
    low, high = (100 * value for value in record["adjustment"]["intervals"]["gain"])
    assert f"(a gain of {low:.1f} to {high:.1f} points in nine of ten resamples)" in text
    assert "post hoc logit adjustment" in text
    if record["adjustment"]["tau"] is not None:
        assert "tau = " in text


def test_a_draw_between_rules_is_told(record: dict[str, Any]) -> None:
    drawn = copy.deepcopy(record)
    drawn["adjustment"] |= {"rules": 3, "tau": None}
    drawn["rules"] = {"shares": [0.5, 0.3, 0.2], "l": [[0.0, 1.0, 2.0], [0.5, 0, 0], [0, 0, -1.25]]}
    run = read_run(drawn)
    told = words(as_text(explanation(run)))
    assert "rule 1 decides 50.0%, rule 2 decides 30.0%, rule 3 decides 20.0%" in told
    table = rules_table(run)
    assert table is not None
    assert table.columns == ["Class", "Rule 1 (50.0%)", "Rule 2 (30.0%)", "Rule 3 (20.0%)"]
    by_class = {row[0].text: [cell.value for cell in row[1:]] for row in table.rows}
    assert by_class[run.classes[2]] == [2.0, 0.0, -1.25]
    old = copy.deepcopy(drawn)
    del old["rules"]
    assert "3 rules share the rows. Which one decides" in words(as_text(explanation(read_run(old))))
    one = copy.deepcopy(record)
    assert "One rule decides every row" in words(as_text(explanation(read_run(one))))
    assert "fig-tau-title" in checked(drawn).ids


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("curve", [[0.0, 0.1]]),
        ("curve", "none"),
        ("curve", [[0.0, None, 0.1]]),
        ("l", [1.0]),
        ("intervals", {"l": [[0, 1]], "gain": 3, "tau": "x"}),
        ("intervals", None),
        ("tau", "much"),
        ("rules", "many"),
        ("chosen", 7),
    ],
)
def test_a_record_that_was_altered_still_makes_a_page(
    record: dict[str, Any], key: str, value: Any
) -> None:
    altered = copy.deepcopy(record)
    altered["adjustment"][key] = value
    page = checked(altered)
    if key == "curve":
        assert "fig-tau-title" not in page.ids
    assert not re.search(r"\bnan\b", " ".join(page.text).lower())
