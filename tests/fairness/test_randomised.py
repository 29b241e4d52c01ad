"""Drawing between networks: the program against a grid, the draw, and the gap it reaches."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from autobalance.checks import InputError
from autobalance.data.batches import ArrayData
from autobalance.fairness.evaluation import evaluate_model
from autobalance.fairness.randomised import RandomisedNetwork, _program, randomised
from autobalance.settings import Recipe, SearchSettings


def unfair(n: int, seed: int) -> ArrayData:
    """Two groups, told apart by the last feature; the second one's classes overlap far more."""
    draw = np.random.default_rng(seed)
    target, group = draw.integers(0, 2, n), draw.integers(0, 2, n)
    sign = np.where(target == 1, 1.0, -1.0)
    signal = sign * np.where(group == 0, 2.0, 0.6) + draw.normal(size=n)
    inputs = np.stack([signal, 2.0 * group - 1.0 + 0.3 * draw.normal(size=n)], axis=1)
    return ArrayData.of(
        torch.from_numpy(inputs.astype(np.float32)), torch.from_numpy(target),
        groups=torch.from_numpy(group),
    )  # fmt: skip


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 2))


RECIPE = Recipe(epochs=1, min_steps=150, lr=0.02)


def test_the_program_finds_what_a_grid_finds() -> None:
    errors = np.random.default_rng(0).uniform(0.1, 0.6, size=(3, 2, 2))
    mass = np.array([[30.0, 10.0], [20.0, 25.0]])
    grid = [np.array([a, b, 100 - a - b]) / 100 for a in range(101) for b in range(101 - a)]
    tables = [np.tensordot(p, errors, axes=1) for p in grid]
    deo = np.array([np.ptp(t, axis=0).sum() for t in tables])
    main = np.array([((t * mass).sum(axis=0) / mass.sum(axis=0)).mean() for t in tables])
    for gap in (deo.min() + 0.01, deo.min() + 0.05, deo.max()):
        found = np.tensordot(_program(errors, mass, float(gap)), errors, axes=1)
        assert np.ptp(found, axis=0).sum() <= gap + 1e-6
        value = ((found * mass).sum(axis=0) / mass.sum(axis=0)).mean()
        best = main[deo <= gap].min()
        assert best - 0.02 <= value <= best + 1e-6


def test_half_the_gap_costs_little_and_holds_on_new_data() -> None:
    train, test = unfair(4000, 0), unfair(8000, 1)
    settings = SearchSettings(folds=2)
    common: dict[str, Any] = {"recipe": RECIPE, "settings": settings, "device": "cpu"}
    loose = randomised(network, train, gap=2.0, **common)
    assert loose.names == ["start"]
    half = 0.5 * loose.held_out.deo
    found = randomised(network, train, gap=half, **common)
    assert any(name.startswith("against") and "group 0" in name for name in found.names)
    assert found.held_out.deo <= half + 0.02
    plain = evaluate_model(loose.network, test)
    ours = evaluate_model(found.network, test)
    assert ours.deo < 0.7 * plain.deo
    assert ours.balanced_error < plain.balanced_error + 0.15
    assert found.training_runs == 2 * 5 + len(found.names)


def test_the_draw_is_even_and_a_function_of_the_features() -> None:
    inputs = torch.randn(20_000, 3)
    constant = [nn.Linear(3, 2) for _ in range(3)]
    model = RandomisedNetwork(constant, [0.5, 0.3, 0.2])
    drawn = model.drawn(inputs)
    shares = torch.bincount(drawn, minlength=3) / len(inputs)
    torch.testing.assert_close(shares, torch.tensor([0.5, 0.3, 0.2]), atol=0.015, rtol=0)
    order = torch.randperm(len(inputs))
    assert torch.equal(model.drawn(inputs[order]), drawn[order])
    assert torch.equal(model.drawn(inputs[:7]), drawn[:7])
    few = (inputs > 0).float()  # eight kinds of people
    assert torch.equal(model.drawn(few), model.drawn(few.clone()))
    with torch.no_grad():
        logits = model(inputs)
        for i, part in enumerate(constant):
            chosen = drawn == i
            torch.testing.assert_close(logits[chosen], part(inputs[chosen]))


@pytest.mark.parametrize("shares", [[0.5, 0.6], [1.0], [-0.5, 1.5], [float("nan"), 1.0]])
def test_shares_that_are_none_are_refused(shares: list[float]) -> None:
    with pytest.raises(InputError, match="summing to 1"):
        RandomisedNetwork([nn.Linear(2, 2), nn.Linear(2, 2)], shares)


def test_what_cannot_be_drawn_for_is_refused() -> None:
    data = unfair(300, 0)
    alone = ArrayData.of(data.inputs, data.target)
    with pytest.raises(InputError, match="two groups"):
        randomised(network, alone, gap=0.1)
    with pytest.raises(InputError, match="not be negative"):
        randomised(network, data, gap=-0.1)


def test_a_gap_out_of_reach_says_which_one_is_not() -> None:
    errors = np.array([[[0.1, 0.1], [0.3, 0.1]], [[0.2, 0.1], [0.5, 0.1]]])
    with pytest.raises(InputError, match=r"the lowest is 0\.2000"):
        _program(errors, np.ones((2, 2)), 0.1)
