"""A gap of which a group has no example of a class is unknown to what chooses by it, and told to be."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import pytest
from torch import nn

from autobalance import (
    ArrayData,
    Frontier,
    ParametricCrossEntropy,
    Recipe,
    search,
)
from autobalance.bilevel.pareto_frontier import FrontierPoint
from autobalance.posthoc.fair_decisions import CellPosterior


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


def swept(counts: list[list[int]]) -> Frontier:
    loss = ParametricCrossEntropy.cross_entropy()
    points = [FrontierPoint(mix, loss, 0.2 + mix / 10, 0.1 - mix / 10, False) for mix in (0.0, 0.5)]
    settings = {"validation_counts": counts}
    return Frontier(points, loss, "balanced_error", "deo", 1.0, settings, 0, {})


def test_a_point_picked_by_an_undefined_gap_is_told_of() -> None:
    with pytest.warns(UserWarning, match=r"group 0, class 1\). So the points' deo is not known"):
        swept([[5, 0], [5, 5]]).pick(gap=0.06)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert swept([[5, 5], [5, 5]]).pick(gap=0.06).mix == 0.5


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
