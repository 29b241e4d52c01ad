"""The objective against the strength of logit adjustment, against NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from autobalance import InputError, design_adjustment
from autobalance.objectives import CostMatrix
from autobalance.posthoc import measure_taus


def scores(n: int = 300, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    target = generator.choice(3, size=n, p=[0.7, 0.2, 0.1])
    z = generator.normal(size=(n, 3)) + np.log([0.7, 0.2, 0.1])
    z[np.arange(n), target] += 1.0
    return z - np.log(np.exp(z).sum(axis=1, keepdims=True)), target


def class_errors(z: np.ndarray, target: np.ndarray, tau: float) -> np.ndarray:
    counts = np.bincount(target)
    decided = (z - tau * np.log(counts / counts.sum())).argmax(axis=1)
    return np.array([np.mean(decided[target == c] != c) for c in range(3)])


def test_the_curve_is_the_error_of_each_tau_and_its_standard_error() -> None:
    z, target = scores()
    curve = measure_taus(design_adjustment(np.exp(z), target, resamples=0), np.exp(z), target)
    assert curve is not None
    np.testing.assert_allclose(curve[:, 0], np.linspace(0, 3, 25))
    counts = np.bincount(target)
    for tau, value, error in curve:
        rates = class_errors(z, target, tau)
        assert value == pytest.approx(rates.mean())
        assert error == pytest.approx(np.sqrt((rates * (1 - rates) / counts).sum()) / 3)


def test_another_objective_has_its_own_curve_with_an_error() -> None:
    z, target = scores()
    design = design_adjustment(np.exp(z), target, objective="worst_class_error", resamples=0)
    curve = measure_taus(design, np.exp(z), target)
    assert curve is not None
    for tau, value, error in curve[::6]:
        rates = class_errors(z, target, tau)
        assert value == pytest.approx(rates.max())
        worst = np.bincount(target)[rates.argmax()]
        assert 0.3 * np.sqrt(0.25 / worst) < error < 2 * np.sqrt(0.25 / worst)


def test_decision_values_are_calibrated_first() -> None:
    z, target = scores()
    options: dict[str, Any] = {"kind": "decision_values", "resamples": 0}
    small, large = (
        measure_taus(design_adjustment(f, target, **options), f, target) for f in (z, 50 * z)
    )
    assert small is not None
    assert large is not None
    np.testing.assert_allclose(large, small, atol=0.02)
    assert np.ptp(small[:, 1]) > 0.05


def test_costs_and_cells_have_no_curve() -> None:
    z, target = scores()
    costs = CostMatrix(costs=((0.0, 1.0, 1.0), (2.0, 0.0, 1.0), (5.0, 1.0, 0.0)))
    design = design_adjustment(np.exp(z), target, objective=costs, resamples=0)
    assert measure_taus(design, np.exp(z), target) is None
    cells = np.stack([np.exp(z) / 2, np.exp(z) / 2], axis=1)
    groups = np.arange(len(target)) % 2
    by_cells = design_adjustment(
        cells, target, groups=groups, objective="balanced_error where deo <= 0.2", resamples=0
    )
    assert measure_taus(by_cells, cells, target, groups) is None


def test_labels_must_be_as_many_as_rows() -> None:
    z, target = scores()
    design = design_adjustment(np.exp(z), target, resamples=0)
    with pytest.raises(InputError, match="299 labels"):
        measure_taus(design, np.exp(z), target[1:])
