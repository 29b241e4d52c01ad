"""Thresholds of several labels, designed on scores."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import approx_fprime
from scipy.special import expit, logit
from sklearn.metrics import balanced_accuracy_score, f1_score

from autobalance import Adjustment, InputError, design_adjustment
from autobalance.objectives import as_objective, over_labels
from autobalance.posthoc import LabelAdjustment
from autobalance.posthoc.label_fit import (
    LabelScores,
    ThresholdPrior,
    _cross_entropy,
    _parts,
    fit_balanced,
    tune_each,
)

OBJECTIVES = ["balanced_error", "worst_class_error", "cvar_error(0.3)", "macro_f1"]


def world(n: int = 4000, k: int = 6, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Posterior and labels of 50 % to about 2 % positives."""
    generator = np.random.default_rng(seed)
    odds = 2.0 * generator.normal(size=(n, k)) + np.linspace(0.0, -6.0, k)
    return expit(odds), (generator.random((n, k)) < expit(odds)).astype(int)


def sure(p: np.ndarray) -> np.ndarray:
    """As a classifier twice too sure of itself would give them, and too fond of positives."""
    return expit(2.0 * logit(p) + 1.0)


def measure(objective: str, decided: np.ndarray, y: np.ndarray) -> float:
    """The objective by scikit-learn's measures."""
    pairs = list(zip(y.T, decided.T, strict=True))
    if objective == "macro_f1":
        return 1.0 - float(f1_score(y, decided, average="macro"))
    errors = np.sort([1.0 - balanced_accuracy_score(*pair) for pair in pairs])[::-1]
    if objective == "balanced_error":
        return float(errors.mean())
    if objective == "worst_class_error":
        return float(errors[0])
    return float((errors[0] + 0.8 * errors[1]) / 1.8)  # the worst 0.3 of 6 labels


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_design_beats_plain_and_prior_thresholds_on_other_data(objective: str) -> None:
    p, y = world()
    found = design_adjustment(sure(p), y, objective=objective)
    assert isinstance(found, LabelAdjustment)
    assert found.value_before == pytest.approx(measure(objective, sure(p) > 0.5, y), abs=1e-12)
    p, y = world(20_000, seed=1)
    counts = y.sum(axis=0)
    value = measure(objective, found.predict(sure(p)), y)
    assert value < measure(objective, (sure(p) > 0.5).astype(int), y) - 0.005
    prior = logit(sure(p)) > np.log(counts / (len(y) - counts))
    assert value < measure(objective, prior.astype(int), y) - 0.005
    best = measure(objective, (logit(p) > np.log(counts / (len(y) - counts))).astype(int), y)
    if objective != "macro_f1":  # of which log odds are not the best thresholds
        assert value < best + 0.015


def test_thresholds_of_true_posteriors_are_the_log_prior_odds() -> None:
    p, y = world(40_000)
    found = design_adjustment(p, y)
    counts = y.sum(axis=0)
    assert found.l == pytest.approx(np.log(counts / (len(y) - counts)), abs=0.25)
    assert found.tau == pytest.approx(1.0, abs=0.1)


def test_cross_entropy_has_the_derivatives_of_its_value() -> None:
    p, y = world(60, 3)
    y[5:9, 1] = -1
    weight = np.random.default_rng(0).random(60)
    rows = LabelScores(
        torch.from_numpy(logit(p)).float(),
        torch.from_numpy(y).to(torch.int8),
        torch.from_numpy(weight),
    )
    parts = _parts(rows, np.random.default_rng(1).random((2, 3)))
    x = np.array([0.3, -0.2, 0.5, 0.4])
    value, slope, along_scale = _cross_entropy(parts, x[:3], float(np.exp(x[3])))
    assert value > 0
    numeric = approx_fprime(x, lambda v: _cross_entropy(parts, v[:3], float(np.exp(v[3])))[0], 1e-2)
    assert np.r_[slope, along_scale] == pytest.approx(numeric, rel=0.02, abs=0.02)


def test_a_whole_weight_is_a_row_repeated_and_a_missing_entry_counts_for_nothing() -> None:
    p, y = world(400, 4)
    y[::7, 2] = -1
    goal = over_labels(as_objective("balanced_error"))
    z, target = torch.from_numpy(logit(p)).float(), torch.from_numpy(y).to(torch.int8)
    weight = np.random.default_rng(0).integers(1, 4, size=400)
    weighed = LabelScores(z, target, torch.from_numpy(weight).double())
    again = np.repeat(np.arange(400), weight)
    repeated = LabelScores(z[again], target[again])
    assert torch.equal(weighed.mass(), repeated.mass())
    known = target[again] >= 0
    assert repeated.mass().sum(dim=0).tolist() == known.sum(dim=0).tolist()
    prior = ThresholdPrior.of(repeated.mass().numpy(), goal)
    assert tune_each(weighed, prior, goal).l == pytest.approx(tune_each(repeated, prior, goal).l)
    # SHRINKAGE counts rows; these are many enough for it to say little
    assert fit_balanced(weighed, prior).l == pytest.approx(
        fit_balanced(repeated, prior).l, abs=0.02
    )


def test_a_label_of_few_positives_stays_closer_to_the_shared_strength() -> None:
    generator = np.random.default_rng(0)
    n, few = 3000, 5
    positive = generator.normal(2.0, 1.0, size=n)
    y = np.zeros((n, 3), dtype=int)
    y[:300, 0], y[:few, 1], y[:300, 2] = 1, 1, 1
    # Scores of the first two labels are shifted alike; those of the third are not.
    z = np.stack(
        [np.where(y[:, j] == 1, positive, generator.normal(-2.0, 1.0, n)) for j in range(3)], 1
    )
    z += [3.0, 3.0, 0.0]
    counts = np.stack([(y == s).sum(axis=0) for s in (0, 1)]).astype(float)
    goal = over_labels(as_objective("balanced_error"))
    prior = ThresholdPrior.of(counts, goal)
    rows = LabelScores(torch.from_numpy(z).float(), torch.from_numpy(y).to(torch.int8))
    for fit in (fit_balanced(rows, prior), tune_each(rows, prior, goal)):
        eps = fit.l - fit.tau * prior.log_odds
        assert eps[0] > 1.0
        assert abs(eps[1]) < eps[0] / 2


def test_without_a_positive_here_a_label_follows_the_shared_strength() -> None:
    p, y = world(2000, 4)
    counts = np.stack([(y == s).sum(axis=0) for s in (0, 1)])
    y[y[:, 3] == 1, 3] = -1  # no positive is left
    with pytest.raises(InputError, match=r"no positive example there \(3\)"):
        design_adjustment(p, y)
    found = design_adjustment(p, y, class_counts=counts)
    assert np.isnan(found.errors[3])
    assert found.tau is not None
    assert found.l[3] == pytest.approx(found.tau * np.log(counts[1, 3] / counts[0, 3]), abs=1e-6)


def test_probabilities_are_for_the_decision_or_for_a_prior() -> None:
    p, y = world(20_000)
    found = design_adjustment(sure(p), y)
    assert np.array_equal(found.predict_proba(sure(p)) > 0.5, found.predict(sure(p)) == 1)
    calibrated = found.predict_proba(sure(p), "training")
    assert calibrated.mean(axis=0) == pytest.approx(y.mean(axis=0), abs=0.01)
    assert np.abs(calibrated - p).mean() < 0.02 < np.abs(sure(p) - p).mean()
    odds = np.log(y.mean(axis=0) / (1 - y.mean(axis=0)))
    balanced = found.predict_proba(sure(p), "balanced")
    assert logit(balanced) == pytest.approx(logit(calibrated) - odds, abs=1e-6)
    with pytest.raises(InputError, match="prior"):
        found.predict_proba(p, [0.2] * 6)


@pytest.mark.parametrize("kind", ["log_probabilities", "decision_values"])
def test_other_scores_give_the_decisions_of_probabilities(kind: Any) -> None:
    p, y = world(4000)
    scores = np.log(p) if kind == "log_probabilities" else 0.01 * logit(p) + 5.0
    found, plain = design_adjustment(scores, y, kind=kind), design_adjustment(p, y)
    agree = found.predict(scores) == plain.predict(p)
    assert agree.mean() > (0.9999 if kind == "log_probabilities" else 0.97)
    assert found.value == pytest.approx(plain.value, abs=0.005)


def test_record_gives_the_same_decisions() -> None:
    p, y = world(1500)
    found = design_adjustment(p, y, objective="macro_f1")
    again = Adjustment.from_dict(json.loads(json.dumps(found.to_dict())))
    assert isinstance(again, LabelAdjustment)
    assert np.array_equal(again.predict(p), found.predict(p))
    assert again.to_dict() == found.to_dict()
    record = found.to_dict()
    record["rule"]["additive"] = [0.0]
    with pytest.raises(InputError, match="altered"):
        Adjustment.from_dict(record)


def test_explanation_names_labels_and_their_two_errors() -> None:
    p, y = world(1500)
    text = design_adjustment(p, y).explain(["a", "b", "c", "d", "e", "rare"])
    assert "false positives" in text
    wrong = (p[:, 5] <= 0.5) & (y[:, 5] == 1)
    assert f"{100 * wrong.sum() / y[:, 5].sum():.1f} %" in text.splitlines()[-1]
    assert text.splitlines()[-1].startswith("rare")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scores": lambda p, y: 3.0 * p}, r"in \[0, 1\].*decision_values"),
        ({"scores": lambda p, y: p[:, :5]}, "y has 6 labels; expected 5"),
        ({"scores": lambda p, y: p[:-1]}, "1499"),
        ({"scores": lambda p, y: np.where(p > 0.9, np.nan, p)}, "finite"),
        ({"y": lambda p, y: y + 1}, "0, 1, or -1"),
        ({"y": lambda p, y: p}, "0, 1, or -1"),
        ({"y": lambda p, y: y * [1, 1, 1, 1, 1, 0]}, "no positive"),
        ({"groups": lambda p, y: y[:, 0]}, "several labels"),
        ({"objective": lambda p, y: "group_balanced_error"}, "groups have no part"),
        ({"objective": lambda p, y: "balanced_error where deo <= 0.1"}, "several labels"),
        ({"class_counts": lambda p, y: y.sum(axis=0)}, r"\(2, 6\)"),
        ({"sample_weight": lambda p, y: np.ones(3)}, "sample_weight"),
    ],
)
def test_bad_input_is_told_with_what_to_do(change: dict[str, Any], message: str) -> None:
    p, y = world(1500)
    given: dict[str, Any] = {"scores": p, "y": y} | {
        name: make(p, y) for name, make in change.items()
    }
    with pytest.raises(InputError, match=message):
        design_adjustment(given.pop("scores"), given.pop("y"), **given)
