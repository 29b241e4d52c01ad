"""A gap of which a group has no example of a class is unknown to what chooses by it, and told to be."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from torch import nn

from autobalance import (
    ArrayData,
    Frontier,
    ParametricCrossEntropy,
    Recipe,
    SearchSettings,
    frontier,
    search,
)
from autobalance._validation import InputError
from autobalance.bilevel.pareto_frontier import FrontierPoint, baselines
from autobalance.cli.terminal import print_choice
from autobalance.posthoc.fair_decisions import CellPosterior
from autobalance.records import classification_report
from autobalance.report import (
    as_csv,
    as_svg,
    bound_sentences,
    explanation,
    read_run,
    render_report,
)


def data_without_a_cell() -> ArrayData:
    draw = np.random.default_rng(0)
    y, g = draw.integers(0, 2, 200), draw.integers(0, 2, 200)
    y[g == 1] = 0
    X = draw.normal(size=(200, 3)) + 3.0 * y[:, None]
    return ArrayData.of(X, y, groups=g)


@pytest.mark.parametrize(
    "objective", ["balanced_error where deo <= 0.1", "worst_class_and_group_error"]
)
def test_a_search_for_an_undefined_gap_says_so(objective: str) -> None:
    given = {"recipe": Recipe(epochs=1, min_steps=40, lr=0.1), "device": "cpu"}
    with pytest.warns(
        UserWarning, match=r"lacks 1 of 4 pairs .*\(group 1, class 1\).*merge small groups"
    ):
        search(lambda: nn.Linear(3, 2), data_without_a_cell(), objective=objective, **given)


def test_a_search_over_classes_needs_no_such_word() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        search(
            lambda: nn.Linear(3, 2),
            data_without_a_cell(),
            recipe=Recipe(epochs=1, min_steps=40, lr=0.1),
            device="cpu",
        )


REASON = "there is no example of class 1 in group 1"


def swept(undefined: dict[str, str]) -> Frontier:
    loss = ParametricCrossEntropy.cross_entropy()
    values = {"main": 0.2, "gap": 0.1}
    points = [
        FrontierPoint(
            mix, loss, **{n: None if n in undefined else v - mix / 10 for n, v in values.items()},
            constant=False, undefined=undefined,
        )
        for mix in (0.0, 0.5)
    ]  # fmt: skip
    return Frontier(points, loss, "balanced_error", "deo", 1.0, {}, 0, {})


@pytest.mark.parametrize("role", ["main", "gap"])
@pytest.mark.parametrize("bound", [{"gap": 0.06}, {"main": 0.3}])
def test_no_point_is_picked_by_what_is_undefined(role: str, bound: dict[str, float]) -> None:
    with pytest.raises(InputError, match=r"is not defined .* in group 1.*Merge"):
        swept({role: REASON}).pick(**bound)
    assert swept({role: REASON}).non_dominated() == []
    assert swept({}).pick(gap=0.06).mix == 0.5


@pytest.mark.parametrize(
    ("gap", "undefined"),
    [
        ("deo", True),
        ("equalized_odds_difference", True),
        ("equal_opportunity_difference", True),
        ("worst_class_and_group_error", True),
        ("demographic_parity_difference", False),
        ("worst_group_error", False),
    ],
)
def test_a_frontiers_points_are_none_with_the_reason(gap: str, undefined: bool) -> None:
    """In the points, their JSON, the baselines, the CSV and the picture."""
    data, recipe = data_without_a_cell(), Recipe(epochs=1, min_steps=60, lr=0.1)
    given: dict[str, Any] = {"gap": gap, "recipe": recipe, "device": "cpu"}
    with pytest.warns(UserWarning, match="lacks 1 of 4 pairs"):
        found = frontier(lambda: nn.Linear(3, 2), data, mixes=[0.0, 0.5], **given)
    beside = baselines(lambda: nn.Linear(3, 2), data, **given)
    for point in (*found.points, *beside):
        assert point.main is not None
        assert (point.gap is None) == undefined
        assert point.undefined == ({"gap": REASON} if undefined else {})
        assert ("undefined" in point.to_dict()) == undefined
    again = Frontier.from_json(found.to_json())
    assert [p.undefined for p in again.points] == [p.undefined for p in found.points]
    record = found.to_dict() | {"baselines": [b.to_dict() for b in beside]}
    lines = as_csv(record).splitlines()[1:]
    assert all((line.split(",")[2] == "") == undefined for line in lines)
    assert ("not defined on the held-out data" in as_svg(record)) == undefined


def record_without_a_cell() -> dict[str, Any]:
    """Of a search for a bound, whose held-out data has nobody of class "sick" in group "south"."""
    held = {"n": [[50, 40], [30, 0]], "wrong": [[5, 4], [3, 0]], "predicted": [[51, 39], [27, 3]]}
    return {
        "objective": "balanced_error where deo <= 0.1",
        "class_counts": [[100, 80], [60, 1]],
        "class_names": ["well", "sick"],
        "group_names": ["north", "south"],
        "search": {"held_out": held},
    }


@pytest.mark.parametrize("tested", [False, True])
def test_a_bound_that_is_undefined_on_held_out_data_is_answered_so(tested: bool) -> None:
    """In the sentences that `explain`, `evaluate` and the report begin with."""
    record = record_without_a_cell()
    if tested:
        y, g = np.array([0, 1, 0, 1] * 50), np.array([0, 0, 1, 1] * 50)
        rates = classification_report(y, y, 2, g, ["north", "south"])
        record["methods"] = {"autobalance": rates}
    run = read_run(record)
    [sentence] = bound_sentences(run)
    assert "Held out: not defined, for there is no example of sick in south." in sentence
    assert ("Kept" in sentence) == tested
    assert sentence in explanation(run).story
    assert "no example of sick in south" in render_report(record)


def test_a_decisions_bound_that_is_undefined_is_answered_so() -> None:
    point = {
        "bound": 0.05, "main": 0.2, "gap": None, "worst_cell": None, "constant": False,
        "undefined": {"gap": REASON},
    }  # fmt: skip
    entry = {"by": "bound", "main": "balanced_error", "gap": "deo", "bound": 0.05}
    frontier = {**entry, "points": [point], "baselines": [{**point, "title": "Cross-entropy"}]}
    record = record_without_a_cell() | {"kind": "frontier", "frontier": frontier}
    run = read_run(record)
    [sentence] = bound_sentences(run)
    assert f"Held out: not defined, for {REASON}." in sentence
    page = render_report(record)
    assert f"not defined on the held-out data, for {REASON}" in page


def test_candidates_of_an_undefined_objective_say_so(capsys: pytest.CaptureFixture[str]) -> None:
    given: dict[str, Any] = {"recipe": Recipe(epochs=1, min_steps=40, lr=0.1), "device": "cpu"}
    given["settings"] = SearchSettings(folds=2)
    with pytest.warns(UserWarning, match="lacks 1 of 4 pairs"):
        result = search(
            lambda: nn.Linear(3, 2),
            data_without_a_cell(),
            objective="balanced_error where deo <= 0.1",
            **given,
        )
    assert result.candidates
    again = type(result).from_json(result.to_json())
    for candidate in again.candidates:
        assert candidate.undefined is not None
        assert "lacks 1 of 4 pairs" in candidate.undefined
    record = result.record(["well", "sick"], ["north", "south"])
    assert "the choice went by them alone" in render_report(record)
    print_choice(result)
    assert "The objective is not defined there" in capsys.readouterr().out
    plain = search(lambda: nn.Linear(3, 2), data_without_a_cell(), **given)
    assert all(c.undefined is None for c in plain.candidates)
    assert "undefined" not in plain.candidates[0].to_dict()


def test_a_decision_within_an_undefined_gap_is_told_of() -> None:
    p = np.random.default_rng(1).dirichlet(np.ones(4), size=60).reshape(60, 2, 2)
    whole = CellPosterior(nn.Identity(), p, np.arange(60) % 4, 1.0, {}, 0, {})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert whole.within(0.1).held_out.deo is not None
    lacking = replace(whole, cells=np.arange(60) % 3)
    with pytest.warns(
        UserWarning, match="not known on held-out data, for there is no example of class 1 in"
    ):
        decision = lacking.within(0.1)
    assert decision.held_out.deo is None
