"""What the report says: of runs that went well, badly, or not to the end."""

from __future__ import annotations

import json
import re
import tomllib
from importlib.resources import files
from typing import Any

import numpy as np
import pytest

from autobalance.hypergrad.solvers import ConjugateGradient
from autobalance.objectives.aggregates import BalancedError, WorstError
from autobalance.objectives.combined import Blend
from autobalance.objectives.gaps import OddsGap
from autobalance.objectives.surrogates import CrossEntropyRisk
from autobalance.report.explain import describe_race
from autobalance.report.formats import duration, setting_text
from autobalance.report.html import render_report
from autobalance.report.record import read_run
from autobalance.report.tables import choice_table, cost_table, settings_table
from autobalance.report.text import facts, sentences
from report_records import checked, make_record

pytestmark = pytest.mark.usefixtures("empty_pictures")
OBJECTIVE = BalancedError().to_dict()


def fit_record(**kinds: Any) -> dict[str, Any]:
    """A fit's record: no test data."""
    record = make_record(**kinds) | {"kind": "fit", "methods": {}, "status": "finished"}
    record["command"] = "autobalance fit t.csv --out run"
    record["search"]["training_runs"] = 1.0
    return record


def with_choice(choice: str, gap: float, error: float = 0.005) -> dict[str, Any]:
    record = fit_record()
    record["class_counts"] = [1000, 100, 10, 1]
    start = np.log([1000.0, 100.0, 10.0, 1.0]).tolist()
    search = record["search"]
    search["settings"]["search"] = {"folds": 3}
    search["start"]["additive"] = start
    losses = {"designed": search["loss"], "start": search["start"], "cross_entropy": {}}
    gaps = {"designed": gap, "start": 0.0, "cross_entropy": 0.1}
    search["candidates"] = [
        {
            "name": name,
            "loss": losses[name],
            "objective": 0.3 + gaps[name],
            "difference": gaps[name],
            "standard_error": 0.0 if name == "start" else error,
        }
        for name in losses
    ]
    search |= {"choice": choice, "loss": losses[choice], "training_runs": 12.0}
    return record


def page_text(record: dict[str, Any]) -> str:
    return "".join(checked(record).text)


# The validation data ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "last", "said"),
    [
        (0.30, 0.20, "fell from 30.0% to 20.0%"),
        (0.143, 0.155, "rose from 14.3% to 15.5%"),
        (0.20, 0.205, "stayed about the same: 20.0%, then 20.5%"),
    ],
)
def test_the_validation_error_is_said_to_fall_stay_or_rise(
    first: float, last: float, said: str
) -> None:
    record = fit_record(steps=8)
    for i, entry in enumerate(record["search"]["history"]):
        entry["hard_objective"] = first if i < 4 else last
    text = sentences(read_run(record))[2]
    assert said in text
    assert ("Some of that is the network learning" in text) == (last < first - 0.01)
    assert ("did not help" in text) == (last > first + 0.01)


# The loss --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("strength", "said"),
    [
        (1.5, "favours rare classes more than logit adjustment"),
        (0.5, "favours rare classes less than logit adjustment"),
        (0.0, "treats rare and frequent classes nearly alike"),
        (-1.68, "favours frequent classes over rare ones"),
    ],
)
def test_the_strength_is_put_in_words(strength: float, said: str) -> None:
    record = fit_record(k=3)
    record["class_counts"] = [100, 10, 1]
    prior = np.log([100.0, 10.0, 1.0])
    record["search"]["start"]["additive"] = prior.tolist()
    record["search"]["loss"]["additive"] = (strength * prior).tolist()
    text = sentences(read_run(record))[1]
    assert said in text
    assert "grows by" not in text
    assert ("Check it on test data" in text) == (strength < 0)


def test_the_formula_shows_only_what_the_loss_has() -> None:
    formula = re.compile(r'class="formula">(.*?)\.\n', re.DOTALL)
    for parts, weight, multiplicative in (
        (("additive",), False, False),
        (("additive", "multiplicative", "weight"), True, True),
    ):
        found = formula.search(render_report(make_record(parts=parts)))
        assert found is not None
        assert "ℓ" in found[1]
        assert ("w<sub>" in found[1]) == weight
        assert ("δ" in found[1]) == multiplicative


def test_no_upright_l_stands_for_the_adjustment() -> None:
    assert not re.search(r"\bl\b(?!'|’)", page_text(make_record(k=3)))


# The final choice ------------------------------------------------------------------------------


def test_a_designed_loss_that_won_is_said_to_have_won() -> None:
    record = with_choice("designed", -0.012)
    text = page_text(record)
    assert "Final choice" in text
    assert "designed loss was 1.2 ± 0.5 points better than its start, logit adjustment" in text
    assert "so it was taken" in text
    assert "may be chance" not in text
    assert ("Held-out error, loss taken", "28.8%") in facts(read_run(record))
    assert "may be chance" in page_text(with_choice("designed", -0.012, error=0.01))


def test_a_start_that_won_is_said_to_be_taken_and_the_designed_loss_still_shown() -> None:
    record = with_choice("start", 0.003, error=0.006)
    text = page_text(record)
    assert "was not better than its start, logit adjustment (+0.3 ± 0.6 points" in text
    assert "so the start was taken" in text
    assert "The loss designed, not taken" in text
    assert "A loss chosen for the balanced error" in text
    table = choice_table(read_run(record))
    assert table is not None
    assert [[c.text, c.note] for c in table.rows[0]] == [
        ["Designed loss", ""],
        ["30.3%", ""],
        ["+0.3", "± 0.6"],
        ["", ""],
    ]
    assert table.rows[1][3].text == "taken"


def test_cross_entropy_may_win() -> None:
    record = with_choice("cross_entropy", 0.05)
    record["search"]["candidates"][2] |= {"objective": 0.2, "difference": -0.1}
    text = page_text(record)
    assert "plain cross-entropy did best (−10.0 ± 0.5 points against the start" in text


@pytest.mark.parametrize(
    ("choice", "gap", "verdict"),
    [
        ("designed", 0.008, "so both were kept: the start would have to be better by two standard"),
        ("start", 0.12, "so the start was taken, and no augmentation."),
    ],
)
def test_one_fold_says_whether_augmentation_was_kept(choice: str, gap: float, verdict: str) -> None:
    record = with_choice(choice, gap)
    del record["search"]["candidates"][2]
    record["search"]["settings"]["search"] = {"folds": 1}
    text = page_text(record)
    assert f"without augmentation, was +{100 * gap:.1f} ± 0.5 points (held-out error" in text
    assert verdict in text
    assert "by the search's network, the start trained anew without" in text
    assert "would measure it" not in text
    assert "1 folds" not in text


def test_one_fold_is_said_to_measure_nothing() -> None:
    assert "--search.folds 3 would measure it" in page_text(fit_record())
    assert "--search.folds 3" not in page_text(make_record())
    assert "--search.folds 3" not in page_text(with_choice("designed", -0.1))


@pytest.mark.parametrize(
    "candidates", [None, "text", [None], [{}], [{"name": "designed", "objective": "low"}]]
)
def test_candidates_of_another_kind_are_left_out(candidates: Any) -> None:
    record = with_choice("start", 0.1)
    record["search"]["candidates"] = candidates
    assert "Final choice" not in page_text(record)


# A race --------------------------------------------------------------------------------------------


def with_race(*arms: dict[str, Any]) -> dict[str, Any]:
    record = fit_record()
    record["search"]["race"] = [*arms]
    return record


def raced(name: str, outcome: str = "passed over", **given: Any) -> dict[str, Any]:
    numbers = {"criterion": 0.5, "difference": 0.1, "standard_error": 0.04, "error": 0.25}
    return {"name": name, "outcome": outcome, "settings": {}, "steps": 50, **numbers, **given}


def test_a_race_says_what_each_way_to_train_gave() -> None:
    cosine = raced(
        "cosine", "taken", settings={"cosine_scale": 16.0}, criterion=0.4, difference=-0.1
    )
    late = {"name": "decay", "outcome": "left out", "reason": "it does not fit", "settings": {}}
    record = with_race(raced("plain", difference=0.0, standard_error=0.0), cosine, late)
    text = page_text(record)
    assert "cosine: cosine classifier of scale 16" in text
    assert "-0.100 ± 0.040" in text.replace("\N{MINUS SIGN}", "-")
    [told] = describe_race(read_run(record))
    assert "3 ways to train" in told
    assert "cosine (cosine classifier of scale 16) was taken" in told
    assert "plain (as it is) by +0.100" in told
    assert "decay left out" in told


def test_without_a_race_nothing_is_said_of_one() -> None:
    assert describe_race(read_run(fit_record())) == []
    assert "Ways to train" not in page_text(fit_record())
    assert describe_race(read_run(with_race(raced("plain", "taken")))) == []


@pytest.mark.parametrize("race", [3, "cosine", [3], [{"name": "a"}], [raced("a", "won"), {}]])
def test_a_race_of_another_kind_is_left_out(race: Any) -> None:
    record = fit_record()
    record["search"]["race"] = race
    assert "Ways to train" not in page_text(record)


# Runs that stopped -----------------------------------------------------------------------------


def test_a_diverged_search_claims_no_loss() -> None:
    record = fit_record() | {"status": "diverged"}
    search = record["search"]
    search |= {"status": "diverged", "loss": search["start"], "history": [], "path": []}
    search |= {"training_runs": 41 / 300, "seconds": {"wall": 0.01, "cpu": 0.01}}
    record["seconds"] = {"search": 0.01, "total": 0.05}
    text = page_text(record)
    assert "Training diverged before a loss" in text
    assert "after 41 of 300 steps" in text
    assert "No network was trained to the end" in text
    for wrong in (
        "A loss designed for",
        "The loss found",
        "0.0 s",
        "held it fixed",
        "--search.folds",
    ):
        assert wrong not in text


@pytest.mark.parametrize(
    ("status", "said"),
    [
        ("interrupted", "half trained"),
        ("diverged", "retraining with its loss diverged"),
        ("failed", "no network trained to the end"),
    ],
)
def test_a_run_that_stopped_in_retraining_carries_a_note(status: str, said: str) -> None:
    text = page_text(fit_record() | {"status": status})
    assert "Note. The search finished" in text
    assert said in text
    assert ("--resume" in text) == (status == "interrupted")
    assert "Note." not in page_text(fit_record())


def test_an_interrupted_search_is_no_design() -> None:
    record = fit_record() | {"status": "interrupted"}
    record["search"] |= {"status": "interrupted", "training_runs": 0.5}
    text = page_text(record)
    assert "interrupted after 150 of 300 steps" in text
    assert "Unfinished search" in text
    assert "The loss so far" in text


# Tables ----------------------------------------------------------------------------------------


def test_the_total_of_a_comparison_is_said_to_cover_all_methods() -> None:
    table = cost_table(read_run(make_record()))
    assert table is not None
    names = [row[0].text for row in table.rows]
    assert "Total, all 3 methods compared" in names
    assert "autobalance: search and retraining" in names
    assert "part of autobalance's time" in table.caption
    alone = cost_table(read_run(fit_record()))
    assert alone is not None
    assert "Total" in [row[0].text for row in alone.rows]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (OBJECTIVE, ["balanced error over classes", "smooth error", "0.7 × mean margin"]),
        (
            WorstError(over="group", surrogate=CrossEntropyRisk()).to_dict(),
            ["worst error over groups", "cross-entropy in place of the error", "softness 0.05"],
        ),
        (
            Blend.of(0.25, BalancedError(), OddsGap()).to_dict(),
            ["0.75 × (balanced error over classes", "0.25 × (difference of equal opportunity"],
        ),
        (
            ConjugateGradient().to_dict(),
            ["conjugate gradients", "damping 0.01", "Gauss-Newton curvature", "not warm start"],
        ),
        ({"kind": "MyOwnSolver", "rate": 1.0}, ["my own solver", "rate 1"]),
        ({"kind": "<b>", "parts": None, "over": []}, ["<b>"]),
        ("BalancedError(over='class')", ["BalancedError(over='class')"]),  # of an old record
        (None, ["none"]),
        (20.0, ["20"]),
        ("adamw", ["adamw"]),
        ([1, 2.5], ["1, 2.5"]),
    ],
)
def test_settings_are_put_in_words(value: Any, words: list[str]) -> None:
    text = setting_text(value)
    assert all(word in text for word in words), text
    assert "{" not in text


def test_the_record_of_a_setting_is_kept_as_its_title() -> None:
    record = make_record()
    record["search"]["settings"]["objective"] = OBJECTIVE
    table = settings_table(read_run(record))
    assert table is not None
    [raw] = [cell.raw for row in table.rows for cell in row if cell.raw]
    assert json.loads(raw) == OBJECTIVE
    assert raw in {attrs.get("title") for _, attrs in checked(record).tags}


def test_long_names_break_between_their_words_only() -> None:
    record = make_record()
    record["search"]["settings"] = {"search": {"validation_batch_size": 512}}
    page = render_report(record)
    assert "search.<wbr>validation_<wbr>batch_<wbr>size" in page
    assert "<code>autobalance demo <span>--out</span> run</code>" in page


def test_wide_tables_say_that_they_scroll() -> None:
    narrow, wide = make_record(k=3), make_record(k=3, groups=2, parts=("additive", "weight"))
    assert "scrolls sideways" not in page_text(fit_record(k=3))
    assert "scrolls sideways" in page_text(wide)
    assert "scrolls sideways" not in page_text(narrow)  # examples stand below the classes' names


def test_durations_too_short_to_tell() -> None:
    assert duration(0.0) == duration(0.09) == "under 0.1 s"


def test_every_sentence_is_used_and_every_one_used_is_there() -> None:
    folder = files("autobalance.report")
    words = tomllib.loads(folder.joinpath("phrases.toml").read_text("utf-8"))
    source = "".join(p.read_text("utf-8") for p in folder.iterdir() if p.name.endswith(".py"))
    for section, key in re.findall(r'phrase\(\s*"(\w+)\.(\w+)"', source):
        assert key in words[section]
    for section in ("warning", "caution", "story", "choice", "explain", "runs", "table", "figure"):
        for key in words[section]:  # some names are put together from parts
            assert all(re.search(rf"(\b|_){part}(\b|_)", source) for part in key.split("_")), key
