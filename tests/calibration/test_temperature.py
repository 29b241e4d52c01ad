"""Corrected probabilities against Bayes' rule, where the true posterior is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from autobalance import AutoBalanceClassifier, Recipe, SearchSettings, retrain, search
from autobalance._validation import InputError
from autobalance.calibration.temperature import (
    class_masses,
    corrected_probabilities,
    fit_temperature,
    subsample_stride,
)
from autobalance.data.array_data import ArrayData
from autobalance.losses.modules import ParametricCrossEntropy
from autobalance.records.metrics import expected_calibration_error
from helpers import blobs, linear_factory

CENTRES = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 2.0]], dtype=torch.float64)
COUNTS = np.array([800, 150, 50])
PRIOR = COUNTS / COUNTS.sum()


def log_likelihood(x: Tensor) -> Tensor:
    """Log p(x | y) of unit Gaussians at `CENTRES`, up to a constant per example."""
    return -(x[:, None] - CENTRES).square().sum(dim=2) / 2


def posterior(x: Tensor, prior: Any) -> Tensor:
    return torch.softmax(log_likelihood(x) + torch.as_tensor(np.log(prior)), dim=1)


def points(n: int, prior: Any = PRIOR, seed: int = 0) -> tuple[Tensor, Tensor]:
    draw = np.random.default_rng(seed)
    target = torch.from_numpy(draw.choice(3, size=n, p=prior))
    return CENTRES[target] + torch.from_numpy(draw.normal(size=(n, 2))), target


def trained_logits(x: Tensor, loss: ParametricCrossEntropy, prior: Any, row: int | None) -> Tensor:
    """Logits whose softmax(delta f + l) is w p(y | x), normalised: the loss's minimiser."""
    w, additive, delta = (
        None if p is None else (p if p.ndim == 1 else p[row]).double()
        for p in loss.parameters_of_loss
    )
    z = log_likelihood(x) + torch.as_tensor(np.log(prior)) + 0.7
    z = z if w is None else z + w.log()
    z = z if additive is None else z - additive
    return z if delta is None else z / delta


ANY = {
    "weight": [0.5, 2.0, 3.0],
    "additive": [0.3, -1.0, -2.0],
    "multiplicative": [1.1, 0.8, 0.6],
}
LOSSES = {
    "plain": ParametricCrossEntropy(),
    "logit adjustment": ParametricCrossEntropy.logit_adjusted(COUNTS),
    "weights": ParametricCrossEntropy(weight=ANY["weight"]),
    "all": ParametricCrossEntropy(**ANY),
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("prior", ["training", "balanced", [0.1, 0.2, 0.7], [5, 5, 0]])
def test_what_the_loss_did_is_undone_and_the_prior_is_bayes_rule(name: str, prior: Any) -> None:
    x, _ = points(50)
    loss = LOSSES[name]
    found = corrected_probabilities(trained_logits(x, loss, PRIOR, None), loss, COUNTS, prior=prior)
    true = {"training": PRIOR, "balanced": [1 / 3] * 3}.get(str(prior), prior)
    likelihood = log_likelihood(x).exp() * torch.as_tensor(np.array(true, dtype=float))
    torch.testing.assert_close(
        found, likelihood / likelihood.sum(dim=1, keepdim=True), rtol=1e-5, atol=1e-7
    )


def test_the_loss_minimises_to_those_logits() -> None:
    """The derivation itself, by gradient: with logits free for every x, w and delta included."""
    loss = ParametricCrossEntropy(**ANY, reduction="sum").double()
    x = torch.tensor([[0.7, 0.4]], dtype=torch.float64)
    p = posterior(x, PRIOR)[0]
    f = trained_logits(x, loss, PRIOR, None).requires_grad_()
    risk = sum(p[k] * loss(f, torch.tensor([k])) for k in range(3))
    assert isinstance(risk, Tensor)
    [gradient] = torch.autograd.grad(risk, f)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-7)


def test_for_balanced_classes_logit_adjustment_needs_no_correction() -> None:
    logits = torch.randn(20, 3).double()
    found = corrected_probabilities(
        logits, LOSSES["logit adjustment"], COUNTS, prior="balanced", temperature=2.0
    )
    torch.testing.assert_close(found, torch.softmax(logits / 2, dim=1), rtol=1e-6, atol=1e-7)


BY_GROUP = np.array([[700, 50, 10], [100, 100, 40]])


def grouped_loss() -> ParametricCrossEntropy:
    return ParametricCrossEntropy(
        weight=[[1.0, 2.0, 0.5], [3.0, 1.0, 1.0]],
        additive=[[0.0, -1.0, -2.0], [0.5, 0.0, -1.0]],
        multiplicative=[1.0, 0.9, 0.8],
    )


@pytest.mark.parametrize("prior", ["training", "balanced"])
def test_known_groups_take_their_own_row(prior: str) -> None:
    loss, (x, _) = grouped_loss(), points(40)
    within = (BY_GROUP + PRIOR) / (BY_GROUP.sum(axis=1, keepdims=True) + 1)
    for g in range(2):
        logits = trained_logits(x, loss, within[g], g)
        found = corrected_probabilities(
            logits, loss, BY_GROUP, prior=prior, groups=torch.full((40,), g)
        )
        true = posterior(x, within[g] if prior == "training" else [1 / 3] * 3)
        torch.testing.assert_close(found, true, rtol=1e-5, atol=1e-7)


def test_unknown_groups_are_a_mixture_by_size() -> None:
    loss = grouped_loss()
    logits = torch.randn(30, 3).double()
    rows = [
        corrected_probabilities(logits, loss, BY_GROUP, groups=torch.full((30,), g))
        for g in range(2)
    ]
    mixed = 0.76 * rows[0] + 0.24 * rows[1]
    found = corrected_probabilities(logits, loss, BY_GROUP)
    torch.testing.assert_close(found, mixed, rtol=1e-9, atol=1e-12)
    odds = mixed / torch.as_tensor(BY_GROUP.sum(axis=0))
    balanced = corrected_probabilities(logits, loss, BY_GROUP, prior="balanced")
    torch.testing.assert_close(balanced, odds / odds.sum(dim=1, keepdim=True))


def test_a_loss_without_rows_takes_counts_by_group_as_their_sum() -> None:
    loss, logits = LOSSES["all"], torch.randn(9, 3)
    expected = corrected_probabilities(logits, loss, BY_GROUP.sum(axis=0), prior="balanced")
    for groups in (None, torch.arange(9) % 2):
        found = corrected_probabilities(logits, loss, BY_GROUP, prior="balanced", groups=groups)
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_a_trained_network_has_the_true_posterior_once_corrected() -> None:
    """Logistic regression is the right model here; its raw probabilities are far off."""
    x, y = points(6000)
    data = ArrayData.of(x.float(), y)
    loss = ParametricCrossEntropy.logit_adjusted(data.counts(), tau=1.5)
    recipe = Recipe(epochs=30, lr=0.1, weight_decay=0.0)
    model = retrain(linear_factory(), data, loss, recipe=recipe, device="cpu")
    fresh, _ = points(500, seed=1)
    with torch.no_grad():
        logits = model(fresh.float())
    true = posterior(fresh, PRIOR)
    found = corrected_probabilities(logits, loss, class_masses(data))
    assert float((found - true).abs().mean()) < 0.02
    assert float((torch.softmax(logits, dim=1) - true).abs().mean()) > 0.1


# Temperature ------------------------------------------------------------------------------------


@pytest.mark.parametrize("held", [PRIOR, np.full(3, 1 / 3)], ids=["same prior", "balanced"])
@pytest.mark.parametrize("scale", [0.5, 1.0, 3.0])
def test_the_temperature_that_was_put_in_is_found(held: np.ndarray, scale: float) -> None:
    x, y = points(4000, prior=held)
    loss = LOSSES["all"]
    logits = scale * trained_logits(x, loss, PRIOR, None)
    found = fit_temperature(logits, y, loss, COUNTS)
    assert found.temperature == pytest.approx(scale, rel=0.08)
    assert found.examples == 4000
    assert found.error < 0.025
    assert found.error < found.raw_error
    if scale != 1.0:
        assert found.error < found.prior_error


def test_the_temperature_with_groups_is_that_of_the_groups_rows() -> None:
    loss = grouped_loss()
    within = (BY_GROUP + PRIOR) / (BY_GROUP.sum(axis=1, keepdims=True) + 1)
    drawn = [points(2000, within[g], seed=g) for g in range(2)]
    logits = [2 * trained_logits(x, loss, within[g], g) for g, (x, _) in enumerate(drawn)]
    target = torch.cat([y for _, y in drawn])
    groups = torch.arange(2).repeat_interleave(2000)
    found = fit_temperature(torch.cat(logits), target, loss, BY_GROUP, groups=groups)
    assert found.temperature == pytest.approx(2.0, rel=0.08)


def test_few_examples_all_predicted_rightly_are_no_certainty() -> None:
    logits, y = 4 * torch.eye(3), torch.arange(3)
    found = fit_temperature(logits, y, ParametricCrossEntropy(), [1, 1, 1])
    assert 0.5 < found.temperature < 1.0
    wrong = fit_temperature(logits.roll(1, 0).repeat(50, 1), y.repeat(50), LOSSES["plain"], [1] * 3)
    assert wrong.temperature == pytest.approx(20.0, rel=0.01)


def test_many_logits_are_thinned_out(monkeypatch: pytest.MonkeyPatch) -> None:
    assert subsample_stride(4_000_000) == 1
    assert subsample_stride(4_000_001) == 2
    monkeypatch.setattr("autobalance.calibration.temperature._MOST_NUMBERS", 300)
    x, y = points(1000)
    loss = LOSSES["plain"]
    logits = 2 * trained_logits(x, loss, PRIOR, None)
    found = fit_temperature(logits, y, loss, COUNTS)
    assert found.examples == 100
    assert found.temperature == fit_temperature(logits[::10], y[::10], loss, COUNTS).temperature


# In a search and in the classifier --------------------------------------------------------------


@pytest.mark.parametrize("folds", [1, 2])
def test_a_search_leaves_the_temperature_of_its_held_out_examples(folds: int) -> None:
    data = blobs(groups=True)
    result = search(
        linear_factory(),
        data,
        objective="group_balanced_error",
        recipe=Recipe(epochs=10, min_steps=60),
        settings=SearchSettings(folds=folds, choose=False),
        device="cpu",
    )
    assert result.calibration is not None
    assert result.held_out is not None
    assert result.calibration.examples == np.sum(result.held_out.n)
    again = type(result).from_json(result.to_json())
    assert again.calibration == result.calibration


def noisy(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    x, y = points(n, seed=seed)
    return x.numpy(), y.numpy()


def overconfident() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 3))


def test_the_classifiers_probabilities_become_those_of_the_training_prior() -> None:
    X, y = noisy(600, 0)
    fresh, target = noisy(4000, 1)
    model = AutoBalanceClassifier(
        module=overconfident,
        recipe=Recipe(weight_decay=0.0),  # 500 steps, its `min_steps`
        device="cpu",
        random_state=0,
    ).fit(X, y)
    np.testing.assert_array_equal(model.class_masses_, np.bincount(y))
    assert model.result_.calibration is not None
    assert model.temperature_ == model.result_.calibration.temperature
    raw, training = model.predict_proba(fresh), model.predict_proba(fresh, prior="training")
    np.testing.assert_allclose(training.sum(axis=1), 1.0, atol=1e-12)
    true = posterior(torch.from_numpy(fresh), PRIOR).numpy()
    assert np.abs(training - true).mean() < 0.5 * np.abs(raw - true).mean()
    errors = [expected_calibration_error(p, target) for p in (raw, training)]
    assert errors[1] < 0.5 * errors[0]

    before = model.predict(fresh)
    model.calibrate(*noisy(4000, 2))
    calibrated = model.predict_proba(fresh, prior="training")
    assert expected_calibration_error(calibrated, target) <= errors[1] + 0.005
    np.testing.assert_array_equal(model.predict(fresh), before)
    np.testing.assert_array_equal(model.predict_proba(fresh), raw)
    with pytest.raises(InputError, match="y has a class that training lacks: 7"):
        model.calibrate(fresh[:2], [0, 7])


def test_masses_are_of_weights_and_have_a_row_for_unknown_groups() -> None:
    inputs, target = np.zeros((5, 1)), [0, 1, 1, 0, 1]
    weighted = ArrayData.of(inputs, target, sample_weight=np.array([1, 2, 3, 0.5, 1]))
    np.testing.assert_allclose(class_masses(weighted), [1.5, 6])
    groups = ArrayData.of(
        inputs, target, groups=np.array([0, 1, -1, 1, -1]), missing_groups="unknown"
    )
    np.testing.assert_allclose(class_masses(groups), [[1, 0], [1, 1], [0, 2]])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"prior": "uniform"}, "prior must be one of balanced, training; got 'uniform'"),
        ({"prior": [0.5, 0.5]}, r"or hold one share per class \(3\); got shape \(2,\)"),
        ({"prior": [0.5, -1, 1]}, "prior must hold finite shares, none negative"),
        ({"prior": [0, 0, 0]}, "prior must hold finite shares, not all 0"),
        ({"class_counts": [5, 0, 5], "prior": "balanced"}, "Class 1 has a share in the prior"),
        ({"class_counts": [5, 5]}, "logits, loss and class_counts must agree in classes; got 3, 3"),
        ({"class_counts": [-1, 5, 5]}, "class_counts must be finite, not negative"),
        ({"logits": torch.zeros(3)}, r"logits must have shape \(n, k\)"),
        ({"temperature": 0.0}, "temperature must be a finite number above 0"),
        ({"loss": grouped_loss()}, r"The loss has rows for 2 groups: class_counts must have"),
        (
            {"loss": grouped_loss(), "class_counts": BY_GROUP, "groups": [0, 2]},
            r"groups must lie in 0\.\.1",
        ),
    ],
)
def test_refused(given: dict[str, Any], message: str) -> None:
    common = {"logits": torch.zeros(2, 3), "loss": LOSSES["all"], "class_counts": COUNTS}
    with pytest.raises(InputError, match=message):
        corrected_probabilities(**{**common, **given})


def test_a_temperature_needs_examples() -> None:
    with pytest.raises(InputError, match="no example to fit a temperature on"):
        fit_temperature(torch.zeros(0, 3), torch.zeros(0), LOSSES["all"], COUNTS)


# The metric -------------------------------------------------------------------------------------


def test_calibration_error_by_hand() -> None:
    p = [[0.9, 0.1], [0.85, 0.15], [0.4, 0.6], [0.45, 0.55], [0.5, 0.5]]
    # (0.8, 1]: confidence 0.875, right 1/2; (0.4, 0.6]: confidences 0.6, 0.55 and 0.5, right 2/3
    found = expected_calibration_error(p, [0, 1, 1, 0, 0], bins=5)
    assert found == pytest.approx((2 * 0.375 + 3 * abs(2 / 3 - 0.55)) / 5)
    assert expected_calibration_error([[1.0, 0.0]], [0]) == 0.0
    assert expected_calibration_error([[1.0, 0.0]], [1]) == 1.0


def test_true_probabilities_have_next_to_no_calibration_error() -> None:
    x, y = points(20_000)
    p = posterior(x, PRIOR).numpy()
    assert expected_calibration_error(p, y.numpy()) < 0.01
    sharp = p**3 / (p**3).sum(axis=1, keepdims=True)
    assert expected_calibration_error(sharp, y.numpy()) > 0.05


@pytest.mark.parametrize(
    ("p", "y", "message"),
    [
        ([], [], r"probabilities must have shape \(n, k\), n at least 1"),
        ([[0.5, 0.5]], [0, 1], "All must have one entry per example"),
        ([[0.5, 0.6]], [0], "must not be negative, and each row sum to 1"),
        ([[1.5, -0.5]], [0], "must not be negative, and each row sum to 1"),
    ],
)
def test_no_probabilities(p: Any, y: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        expected_calibration_error(p, y)
