"""The fitted adjustment against autograd on the plain objective, and against what is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from autobalance.objectives import (
    BalancedError,
    CrossEntropyRisk,
    CVaRError,
    Objective,
    SmoothError,
    Surrogate,
    WorstError,
)
from autobalance.posthoc.adjustment_fit import (
    SIGMA_SCALE,
    AdjustmentPrior,
    _Problem,
    fit_adjustment,
    tune_tau,
)
from autobalance.posthoc.rival_scores import NEVER, RivalScores


def scored(
    n: int, k: int, seed: int = 0, *, too_sure: float = 1.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Log posteriors of Gaussian classes of falling frequency times `too_sure`, classes, and counts."""
    draw = np.random.default_rng(seed)
    share = np.exp(-np.arange(k) * min(1.0, 5.0 / k))
    y = np.r_[np.arange(k), draw.choice(k, n - k, p=share / share.sum())]
    z = draw.normal(size=(n, k))
    z[np.arange(n), y] += 1.5
    z = 1.5 * z + np.log(share / share.sum())  # the log posterior up to a constant
    z = too_sure * z
    return z - np.log(np.exp(z).sum(axis=1, keepdims=True)), y, np.bincount(y).astype(float)


def plain_value(
    x: Tensor, z: Tensor, y: Tensor, w: Tensor, prior: AdjustmentPrior, goal: Objective
) -> Tensor:
    """The objective's own call on a (z - l), plus the penalty, as the documentation has it."""
    tau, log_scale, eps = x[0], x[1], x[2:]
    l = tau * torch.from_numpy(prior.log_prior) - torch.from_numpy(prior.offset)  # noqa: E741
    l = l + eps - eps.mean()  # noqa: E741
    value = goal(log_scale.exp() * (z - l), y, sample_weight=w)
    counts = torch.zeros(z.shape[1], dtype=torch.float64).index_add_(0, y, w)
    strength = 1.0 / goal.effective_size(counts.numpy())
    mean, sigma = prior.tau
    penalty = (tau - mean) ** 2 / (2 * sigma**2) + eps.square().sum() / (2 * prior.sigma_eps**2)
    return value + strength * (penalty + log_scale**2 / (2 * SIGMA_SCALE**2))


@pytest.mark.parametrize("goal", [BalancedError, WorstError, CVaRError])
@pytest.mark.parametrize(
    "surrogate", [SmoothError(), SmoothError(temperature=0.8), CrossEntropyRisk()]
)
def test_value_and_gradient_are_those_of_autograd(
    goal: type[BalancedError], surrogate: Surrogate
) -> None:
    z, y, counts = scored(200, 5)
    weight = np.random.default_rng(1).uniform(0.5, 2.0, 200)
    objective = goal(surrogate=surrogate)
    prior = AdjustmentPrior.of(counts, objective)
    rows = RivalScores.of(z, y, weight=weight, log_prior=prior.log_prior)
    x = torch.tensor([1.3, 0.2, 0.4, -0.3, 0.1, 0.0, 0.2], dtype=torch.float64)
    if isinstance(surrogate, SmoothError):
        x[1] = 0.0  # is held there
    x.requires_grad_()
    expected = plain_value(
        x, torch.from_numpy(z), torch.from_numpy(y), torch.from_numpy(weight), prior, objective
    )
    (slope,) = torch.autograd.grad(expected, x)
    value, gradient = _Problem(rows, prior, objective, surrogate)(x.detach().numpy())
    # The scores are float32 within.
    assert value == pytest.approx(float(expected.detach()), rel=1e-5)
    used = [0, 2, 3, 4, 5, 6] if isinstance(surrogate, SmoothError) else slice(None)
    np.testing.assert_allclose(gradient[used], slope.numpy()[used], rtol=2e-4, atol=2e-6)


def test_overconfident_scores_get_their_scale_and_strength_back() -> None:
    # The scores are the log posterior times 2, so half of them is calibrated, and l is 2 log pi.
    z, y, counts = scored(20_000, 4, too_sure=2.0)
    prior = AdjustmentPrior.of(counts, BalancedError())
    rows = RivalScores.of(z, y, log_prior=prior.log_prior)
    fit = fit_adjustment(rows, prior, BalancedError(), CrossEntropyRisk())
    assert fit.scale == pytest.approx(0.5, abs=0.03)
    expected = 2.0 * (prior.log_prior - prior.log_prior.mean())
    np.testing.assert_allclose(fit.l - fit.l.mean(), expected, atol=0.25)


def test_with_few_examples_the_prior_holds_it_at_logit_adjustment() -> None:
    z, y, counts = scored(30, 5, seed=3)
    prior = AdjustmentPrior.of(1e4 * counts, BalancedError())
    rows = RivalScores.of(z, y, log_prior=prior.log_prior)
    for surrogate in (SmoothError(), CrossEntropyRisk()):
        fit = fit_adjustment(rows, prior, BalancedError(), surrogate)
        assert abs(fit.tau - 1.0) < 0.5
        assert np.abs(fit.l - prior.log_prior * fit.tau).max() < 1.0


def test_tuned_tau_has_the_lowest_error_of_the_grid() -> None:
    z, y, counts = scored(500, 4, too_sure=2.0)
    prior = AdjustmentPrior.of(counts, BalancedError())
    rows = RivalScores.of(z, y, log_prior=prior.log_prior)
    errors = []
    for tau in np.arange(31) / 10.0:
        wrong = (z - tau * prior.log_prior).argmax(axis=1) != y
        errors.append(np.mean([wrong[y == c].mean() for c in range(4)]))
    tau = tune_tau(rows, prior, BalancedError()).tau
    assert errors[round(10 * tau)] == pytest.approx(min(errors), abs=1e-9)


def test_of_many_classes_those_left_out_change_nothing() -> None:
    z, y, counts = scored(3000, 100)
    log_prior = np.log(counts / counts.sum())
    pruned = RivalScores.of(z, y, log_prior=log_prior)
    assert pruned.classes is not None
    assert pruned.rivals.shape == (48, 3000)
    draw = np.random.default_rng(0)
    for tau in (0.0, 1.0, 2.0):
        l = tau * log_prior + 0.2 * draw.normal(size=100)  # noqa: E741
        expected = (z - l).argmax(axis=1) != y
        assert np.mean(pruned.wrong(l) != expected) < 0.002
    index = pruned.classes.numpy()
    kept = np.where(pruned.rivals.numpy() > NEVER, index, -1 - np.arange(48)[:, None])
    assert all(len(np.unique(column)) == 48 for column in kept.T)  # none is there twice
    assert not (kept == y).any()


@pytest.mark.parametrize("k", [8, 100])
def test_a_subset_has_the_rows_of_the_whole(k: int) -> None:
    z, y, counts = scored(500, k)
    rows = RivalScores.of(z, y, log_prior=np.log(counts / counts.sum()))
    some = np.array([3, 400, 17])
    l = np.linspace(-1.0, 1.0, k)  # noqa: E741
    np.testing.assert_array_equal(rows.subset(some).wrong(l), rows.wrong(l)[some])
