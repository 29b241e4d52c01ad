"""Designed decisions: what they gain, when they are left alone, what is refused."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

from autobalance import Adjustment, InputError, cost_matrix, design_adjustment
from autobalance.objectives import BalancedError, WeightedError
from autobalance.posthoc.adjustment_choice import (
    FEW,
    MOST_ROWS,
    JudgedCandidate,
    choose,
    judge,
    thin,
)
from autobalance.posthoc.cell_rule import CellRule
from autobalance.posthoc.decision_rule import DecisionRule, uniform_of_rows
from autobalance.posthoc.rival_scores import RivalScores

SHARE = np.array([0.8, 0.15, 0.05])


def probabilities(
    n: int, seed: int = 0, *, too_sure: float = 1.0, share: np.ndarray = SHARE
) -> tuple[np.ndarray, np.ndarray]:
    """Posteriors of Gaussian classes raised to a power, and the classes."""
    draw = np.random.default_rng(seed)
    k = len(share)
    y = np.r_[np.arange(k), draw.choice(k, n - k, p=share)]
    z = draw.normal(size=(n, k))
    z[np.arange(n), y] += 1.5
    p = np.exp(too_sure * (1.5 * z + np.log(share)))
    return p / p.sum(axis=1, keepdims=True), y


def class_errors(predicted: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.array([np.mean(predicted[y == c] != c) for c in np.unique(y)])


@pytest.mark.parametrize("kind", ["probabilities", "log_probabilities", "decision_values"])
def test_overconfident_scores_are_decided_almost_as_the_best_would(kind: Any) -> None:
    p, y = probabilities(3000, too_sure=2.5)
    new, target = probabilities(20_000, seed=1, too_sure=2.5)
    scores = {
        "probabilities": (p, new),
        "log_probabilities": (np.log(p), np.log(new)),
        "decision_values": (3.0 * np.log(p), 3.0 * np.log(new)),
    }[kind]
    found = design_adjustment(scores[0], y, kind=kind, resamples=0)
    best = class_errors((np.log(new) - 2.5 * np.log(SHARE)).argmax(axis=1), target).mean()
    post_hoc = class_errors((np.log(new) - np.log(SHARE)).argmax(axis=1), target).mean()
    designed = class_errors(found.predict(scores[1]), target).mean()
    assert designed < best + 0.01
    assert designed < post_hoc - 0.03
    assert found.value == pytest.approx(designed, abs=0.03)
    assert found.value_before == pytest.approx(class_errors(p.argmax(axis=1), y).mean(), abs=1e-9)
    assert found.gain == found.value_before - found.value


def test_predictions_are_those_of_l_and_of_the_default_probabilities() -> None:
    p, y = probabilities(1000)
    found = design_adjustment(p, y, resamples=0)
    expected = (np.log(p) - found.l).argmax(axis=1)
    np.testing.assert_array_equal(found.predict(p), expected)
    np.testing.assert_array_equal(found.predict_proba(p).argmax(axis=1), expected)
    np.testing.assert_array_equal(found.decision_shares(p), np.eye(3)[expected])


def test_probabilities_for_a_prior_are_calibrated() -> None:
    p, y = probabilities(20_000, too_sure=2.0)
    found = design_adjustment(p, y, resamples=0)
    truth, _ = probabilities(20_000)
    np.testing.assert_allclose(found.predict_proba(p, "training"), truth, atol=0.05)
    balanced = truth / SHARE
    balanced /= balanced.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(found.predict_proba(p, "balanced"), balanced, atol=0.07)
    own = found.predict_proba(p, [2.0, 2.0, 0.0])
    assert own[:, 2].max() == 0.0
    np.testing.assert_allclose(own.sum(axis=1), 1.0)


def test_worst_class_gets_better_than_logit_adjustment_leaves_it() -> None:
    # One class overlaps both others.
    p, y = probabilities(4000, share=np.array([0.5, 0.3, 0.2]))
    p[:, 2] *= 0.2
    p /= p.sum(axis=1, keepdims=True)
    found = design_adjustment(p, y, objective="worst_class_error", resamples=0)
    counts = np.bincount(y)
    post_hoc = class_errors((np.log(p) - np.log(counts / counts.sum())).argmax(axis=1), y).max()
    assert class_errors(found.predict(p), y).max() < post_hoc - 0.05


def test_decisions_for_costs_are_those_of_the_least_expected_cost() -> None:
    p, y = probabilities(20_000)
    costs = np.array([[0.0, 1.0, 2.0], [5.0, 0.0, 1.0], [40.0, 10.0, 0.0]])
    found = design_adjustment(p, y, objective=cost_matrix(costs), resamples=0)
    best = (p @ costs).argmin(axis=1)
    assert np.mean(found.predict(p) != best) < 0.03
    own, least = (costs[y, d].mean() for d in (found.predict(p), best))
    assert own < 1.02 * least
    assert found.value * 40.0 == pytest.approx(own, rel=0.05)
    assert found.value_before * 40.0 == pytest.approx(costs[y, p.argmax(axis=1)].mean())
    # Without a prior they are for training's: no l gives these decisions.
    np.testing.assert_array_equal(found.predict_proba(p), found.predict_proba(p, "training"))


def test_weighted_examples_count_as_so_many() -> None:
    p, y = probabilities(400)
    weight = np.random.default_rng(0).integers(1, 4, 400)
    repeated = np.repeat(np.arange(400), weight)
    found = design_adjustment(p, y, sample_weight=weight, resamples=0)
    twice = design_adjustment(p[repeated], y[repeated], resamples=0)
    np.testing.assert_array_equal(found.class_counts, twice.class_counts)
    if found.chosen == twice.chosen == "cross_entropy":
        np.testing.assert_allclose(found.l, twice.l, atol=1e-2)
    np.testing.assert_allclose(found.calibration[0], twice.calibration[0], atol=1e-2)


@pytest.mark.parametrize("few", [1, 2])
def test_a_class_of_a_few_rows_does_not_turn_the_decisions(few: int) -> None:
    # A class that all scores call impossible, as boosting does of the rarest.
    p, y = probabilities(2000)
    p = np.c_[p * (1 - 1e-6), np.full(len(p), 1e-6)]
    y[-few:] = 3
    counts = np.bincount(y)
    found = design_adjustment(p, y, resamples=0)
    log_prior = np.log(counts / counts.sum())
    reference = class_errors((np.log(p) - log_prior).argmax(axis=1), y)[:3].mean()
    assert class_errors(found.predict(p), y)[:3].mean() < reference + 0.03


def test_the_same_seed_gives_the_same_design_and_leaves_the_global_state() -> None:
    p, y = probabilities(300)
    before, torch_before = np.random.get_state()[1].copy(), torch.get_rng_state()  # type: ignore[index]
    first, second = (design_adjustment(p, y, resamples=5, seed=3) for _ in range(2))
    assert first.to_dict() == second.to_dict()
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # type: ignore[index]
    assert torch.equal(torch.get_rng_state(), torch_before)


@pytest.mark.parametrize(
    "objective",
    ["balanced_error", "worst_class_error", "cvar_error(0.5)", cost_matrix(1.0 - np.eye(3))],
)
def test_a_record_is_the_adjustment(objective: Any) -> None:
    p, y = probabilities(300)
    found = design_adjustment(p, y, objective=objective, resamples=3)
    again = Adjustment.from_dict(json.loads(json.dumps(found.to_dict())))
    np.testing.assert_array_equal(again.predict(p), found.predict(p))
    np.testing.assert_array_equal(
        again.predict_proba(p, "balanced"), found.predict_proba(p, "balanced")
    )
    assert again.to_dict() == found.to_dict()
    assert again.explain() == found.explain()
    record = found.to_dict()
    del record["rule"]
    with pytest.raises(InputError, match="altered"):
        Adjustment.from_dict(record)


def test_intervals_hold_the_truth_and_shrink() -> None:
    widths = []
    for n in (400, 6400):
        p, y = probabilities(n, too_sure=2.0)
        found = design_adjustment(p, y, resamples=40)
        low, high = found.intervals["gain"]
        assert low <= found.gain <= high
        assert found.intervals["l"].shape == (3, 2)
        assert (found.intervals["l"][:, 0] <= found.intervals["l"][:, 1]).all()
        widths.append(high - low)
    assert widths[1] < 0.6 * widths[0]
    assert found.tau is not None
    assert found.intervals["tau"][0] <= found.tau <= found.intervals["tau"][1]


def test_explanation_names_classes_and_numbers() -> None:
    p, y = probabilities(500)
    found = design_adjustment(p, y, resamples=5)
    text = found.explain(["common", "rare", "rarest"])
    for part in ("BalancedError", "tau = ", "rarest", f"{100 * found.errors[2]:.1f} %", "Chosen:"):
        assert part in text


# The choice -----------------------------------------------------------------------------------


def test_the_start_is_left_for_a_lead_of_one_standard_error() -> None:
    start = JudgedCandidate("start", 0.3, 0.0, 0.0)
    for difference, chosen in ((-0.011, "other"), (-0.009, "start"), (0.02, "start")):
        other = JudgedCandidate("other", 0.3 + difference, difference, 0.01)
        assert choose([start, other], "start") == chosen


def test_standard_errors_are_those_of_many_draws() -> None:
    draw = np.random.default_rng(0)
    y = np.repeat([0, 1], [400, 50])
    rows = RivalScores.of(np.zeros((450, 2)), y, log_prior=np.zeros(2))
    rates = np.array([[0.2, 0.5], [0.3, 0.4]])  # of each candidate and class
    differences, errors, drawn = [], [], []
    for _ in range(200):
        wrong = (draw.random((2, 450)) < rates[:, y]).astype(float)
        given = {"start": wrong[0], "other": wrong[1]}
        other = judge(rows, given, "start", BalancedError(), 0)[1]
        differences.append(other.difference)
        errors.append(other.standard_error)
    drawn = judge(rows, given, "start", WeightedError(weights=(1.0, 1.0)), 0)[1]
    assert np.mean(differences) == pytest.approx(0.0, abs=0.02)
    assert np.mean(errors) == pytest.approx(np.std(differences), rel=0.15)
    assert drawn.standard_error == pytest.approx(errors[-1])


def test_a_class_of_few_rows_counts_as_a_coin() -> None:
    y = np.repeat([0, 1], [400, 2])
    rows = RivalScores.of(np.zeros((402, 2)), y, log_prior=np.zeros(2))
    start = np.zeros(402)
    other = np.where(y == 1, 1.0, 0.0)  # both rows of the class agree
    [_, judged] = judge(rows, {"start": other, "other": start}, "start", BalancedError(), 0)
    assert judged.difference == pytest.approx(-0.5)
    assert judged.standard_error == pytest.approx(0.5 * np.sqrt(0.25 / 2))


def test_thinned_cells_keep_their_weight_and_small_ones_their_rows() -> None:
    draw = np.random.default_rng(0)
    y = np.repeat([0, 1, 2], [60_000, 8_000, 3])
    rows = RivalScores.of(draw.normal(size=(68_003, 3)), y, log_prior=np.zeros(3))
    some, weight = thin(rows, np.arange(len(y)), draw)
    assert len(some) <= MOST_ROWS + FEW
    np.testing.assert_allclose(np.bincount(y[some], weight), [60_000, 8_000, 3], rtol=1e-9)
    assert np.isin(np.flatnonzero(y == 2), some).all()
    assert (np.bincount(y[some])[1]) == 8_000


# Draws ----------------------------------------------------------------------------------------


def test_draws_are_a_function_of_the_row_and_even() -> None:
    z = np.random.default_rng(0).normal(size=(20_000, 3))
    u = uniform_of_rows(z)
    np.testing.assert_array_equal(uniform_of_rows(z[::-1])[::-1], u)
    assert np.abs(np.histogram(u, bins=10, range=(0, 1))[0] / 2000 - 1).max() < 0.1
    rule = DecisionRule(np.array([[0.0, 9.0, 9.0], [9.0, 0.0, 9.0]]), np.array([0.3, 0.7]))
    assert np.mean(rule.decide(z) == 1) == pytest.approx(0.7, abs=0.02)
    assert rule.shares_of_classes(z)[:, 1].mean() == pytest.approx(0.7, abs=0.01)


# Groups ---------------------------------------------------------------------------------------


def grouped(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """p(class, group | x) ``(n, 2, 2)``, classes and groups; the second group overlaps more."""
    draw = np.random.default_rng(seed)
    y, g = (draw.random(n) < 0.3).astype(int), draw.integers(0, 2, n)
    x = y * np.where(g == 0, 3.0, 1.0) + draw.normal(size=n)
    about = g + 0.5 * draw.normal(size=n)
    p = np.zeros((n, 2, 2))
    for i in range(2):
        for j in range(2):
            mean = j * (3.0, 1.0)[i]
            p[:, i, j] = np.exp(-((x - mean) ** 2) / 2 - 2.0 * (about - i) ** 2) * (0.7, 0.3)[j]
    return p / p.sum(axis=(1, 2), keepdims=True), y, g


def cell_rates(wrong: np.ndarray, y: np.ndarray, g: np.ndarray) -> np.ndarray:
    return np.array([[wrong[(g == i) & (y == j)].mean() for j in range(2)] for i in range(2)])


@pytest.mark.parametrize("randomised", [True, False])
def test_a_bound_on_deo_holds_on_new_data(randomised: bool) -> None:
    p, y, g = grouped(6000)
    new, target, group = grouped(20_000, seed=1)
    free = design_adjustment(p, y, groups=g, objective="balanced_error where deo <= 2")
    bound = design_adjustment(
        p, y, groups=g, objective="balanced_error where deo <= 0.1", randomised=randomised
    )
    assert isinstance(bound.rule, CellRule)
    deo = {}
    for name, found in (("free", free), ("bound", bound)):
        rates = cell_rates(found.predict(new) != target, target, group)
        deo[name] = np.ptp(rates, axis=0).sum()
    assert deo["free"] > 0.25
    assert deo["bound"] < 0.15
    assert len(bound.rule.shares) >= 1
    assert randomised or len(bound.rule.shares) == 1
    again = Adjustment.from_dict(json.loads(json.dumps(bound.to_dict())))
    np.testing.assert_array_equal(again.predict(new), bound.predict(new))
    np.testing.assert_allclose(bound.predict_proba(new).sum(axis=1), 1.0)
    assert "linear program" in bound.explain()
    with pytest.raises(InputError, match="no l"):
        _ = bound.l


def test_the_worst_cell_gets_better() -> None:
    p, y, g = grouped(6000)
    rates = {}
    for objective in ("balanced_error where deo <= 2", "worst_class_and_group_error"):
        found = design_adjustment(p, y, groups=g, objective=objective)
        wrong = 1.0 - found.decision_shares(p)[np.arange(len(y)), y]
        rates[objective] = cell_rates(wrong, y, g).max()
    first, second = rates.values()
    assert second < first + 1e-9


def test_class_scores_serve_objectives_over_groups_that_have_no_bound() -> None:
    p, y, g = grouped(3000)
    found = design_adjustment(
        p.sum(axis=1), y, groups=g, objective="worst_class_and_group_error", resamples=0
    )
    wrong = found.predict(p.sum(axis=1)) != y
    plain = cell_rates(p.sum(axis=1).argmax(axis=1) != y, y, g).max()
    assert cell_rates(wrong, y, g).max() < plain


# Refusals -------------------------------------------------------------------------------------

P, Y = probabilities(60)
CELLS, CLASSES, GROUPS = grouped(200)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scores": np.log(P)}, "log_probabilities"),
        ({"y": Y + 1}, "y has class 3"),
        ({"y": Y[:-1]}, "scores has 60"),
        ({"y": np.where(Y == 2, 0, Y)}, "Class 2 of the scores has no example"),
        ({"y": np.zeros(60, int)}, "one class only"),
        ({"y": Y.astype(str)}, "whole numbers from 0"),
        ({"sample_weight": -np.ones(60)}, "none negative"),
        ({"sample_weight": np.full(60, np.nan)}, "finite"),
        ({"class_counts": [5, 5]}, "one number per class"),
        ({"class_counts": [5, 0, 5]}, "no training example"),
        ({"objective": cost_matrix(1.0 - np.eye(4))}, "there are 3 classes"),
        ({"objective": "accuracy"}, "objective must be one of"),
        ({"objective": "worst_group_error"}, "give groups"),
        ({"objective": "balanced_error where deo <= 0.1", "groups": Y % 2}, "n, g, k"),
        ({"resamples": -1}, "resamples"),
        ({"seed": -1}, "seed"),
    ],
)
def test_what_cannot_be_designed_for_is_refused(options: dict[str, Any], message: str) -> None:
    given = {"scores": P, "y": Y, "resamples": 0, **options}
    with pytest.raises(InputError, match=message):
        design_adjustment(given.pop("scores"), given.pop("y"), **given)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"groups": None}, "give groups"),
        ({"groups": GROUPS + 1}, "group 2"),
        ({"groups": np.where(CLASSES == 1, 0, GROUPS)}, "no example of class 1"),
        ({"scores": 2.0 * CELLS}, "sum to 1|lie in"),
        ({"objective": "balanced_error where equalized_odds_difference <= 0.1"}, "bound on deo"),
        ({"objective": "quantile_error(0.8)"}, "balanced, worst or CVaR"),
    ],
)
def test_what_cannot_be_decided_by_cells_is_refused(options: dict[str, Any], message: str) -> None:
    given = {
        "scores": CELLS, "y": CLASSES, "groups": GROUPS,
        "objective": "balanced_error where deo <= 0.1", **options,
    }  # fmt: skip
    with pytest.raises(InputError, match=message):
        design_adjustment(given.pop("scores"), given.pop("y"), **given)


def test_scores_of_another_shape_are_refused_at_prediction() -> None:
    found = design_adjustment(P, Y, resamples=0)
    with pytest.raises(InputError, match="3 classes, the scores have 2"):
        found.predict(np.full((4, 2), 0.5))
    with pytest.raises(InputError, match="one share per class"):
        found.predict_proba(P, [0.5, 0.5])
    with pytest.raises(InputError, match="prior must be one of"):
        found.predict_proba(P, "uniform")


@pytest.mark.parametrize("objective", ["balanced_error", "worst_class_error"])
def test_a_class_that_no_example_is_of_gets_at_least_logit_adjustment(objective: str) -> None:
    # The scores tell two large classes apart without error, and the third has one training example.
    draw = np.random.default_rng(0)
    target = draw.integers(2, size=400)
    logits = np.stack([4.0 - 8.0 * target, 8.0 * target - 4.0, np.full(400, -6.0)], axis=1)
    p = np.exp(logits + draw.normal(size=logits.shape))
    p /= p.sum(axis=1, keepdims=True)
    counts = np.array([200.0, 200.0, 1.0])
    designed = design_adjustment(p, target, objective=objective, class_counts=counts, resamples=0)
    assert designed.chosen != "none"
    log_prior = np.log(counts / counts.sum())
    level = np.median((designed.l - log_prior)[:2])
    assert designed.l[2] <= log_prior[2] + level + 1e-9
    # Where the classifier finds it likelier than its share by as much as can be, it is decided.
    assert designed.predict(np.array([[0.45, 0.05, 0.5]]))[0] == 2
