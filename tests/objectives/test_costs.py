"""The mean cost of decisions against plain numpy, and in a search."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from autobalance import InputError, Recipe, SearchSettings, search
from autobalance.bilevel.candidate_selection import compare
from autobalance.data.array_data import ArrayData
from autobalance.losses.modules import ParametricCrossEntropy
from autobalance.objectives import (
    BalancedError,
    Blend,
    BoundedGap,
    CostMatrix,
    CrossEntropyRisk,
    RunningRisks,
    SmoothError,
    cost_matrix,
)

COSTS = np.array([[0.0, 1.0, 4.0], [2.0, 0.0, 1.0], [10.0, 5.0, 0.0]])


def batch(n: int = 40, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, 3, generator=generator, dtype=torch.float64)
    weight = torch.rand(n, generator=generator, dtype=torch.float64) + 0.1
    return logits, torch.randint(3, (n,), generator=generator), weight


def test_hard_value_is_the_mean_cost() -> None:
    logits, target, weight = batch()
    each = COSTS[target.numpy(), logits.argmax(dim=1).numpy()]
    goal = cost_matrix(COSTS)
    assert goal.hard(logits, target) * goal.largest == pytest.approx(each.mean())
    weighted = goal.hard(logits, target, sample_weight=weight) * goal.largest
    assert weighted == pytest.approx(np.average(each, weights=weight.numpy()))


def test_smooth_value_is_the_mean_of_the_soft_decisions_costs() -> None:
    logits, target, weight = batch()
    goal = CostMatrix(costs=COSTS, surrogate=SmoothError(temperature=0.5))
    soft = torch.softmax(logits / 0.5, dim=1).numpy()
    each = (soft * COSTS[target.numpy()]).sum(axis=1) / 10.0
    value = goal(logits, target, sample_weight=weight)
    assert float(value) == pytest.approx(np.average(each, weights=weight.numpy()))
    sharp = replace(goal, surrogate=SmoothError(temperature=1e-4))
    assert float(sharp(logits, target)) == pytest.approx(goal.hard(logits, target), abs=1e-6)


def test_the_scale_of_logits_and_of_costs_does_not_matter() -> None:
    logits, target, weight = batch()
    goal = cost_matrix(COSTS)
    value = float(goal(logits, target, sample_weight=weight))
    assert float(goal(7.0 * logits, target, sample_weight=weight)) == pytest.approx(value)
    assert float(cost_matrix(100 * COSTS)(logits, target, sample_weight=weight)) == pytest.approx(
        value
    )


def test_costs_of_one_for_two_classes_are_the_smooth_error() -> None:
    logits, target, _ = batch()
    logits, target = logits[:, :2], target.clamp(max=1)
    goal = cost_matrix(1.0 - np.eye(2))
    counts = torch.bincount(target).double()
    errors = SmoothError()(logits, target)
    assert float(goal(logits, target)) == pytest.approx(float(errors.mean()))
    assert goal.effective_size(counts.numpy()) == 40.0


def test_running_risks_return_the_same() -> None:
    logits, target, _ = batch()
    goal = cost_matrix(COSTS)
    running = RunningRisks(goal, np.bincount(target.numpy(), minlength=3))
    assert float(running(logits, target)) == pytest.approx(float(goal(logits, target)))
    assert float(running.hard_value(logits, target)) == pytest.approx(goal.hard(logits, target))


def test_frames_make_matrices_and_records_restore_them() -> None:
    goal = cost_matrix(pd.DataFrame(COSTS))
    assert goal == cost_matrix(COSTS.tolist())
    assert CostMatrix.from_dict(goal.to_dict()) == goal


def test_the_start_is_consistent_for_costs_that_depend_on_the_class_alone() -> None:
    # An error on class k costs c_k: the best decision is argmax c_k p_k, which is log pi less log (pi c).
    costs = np.array([1.0, 3.0, 20.0])[:, None] * (1.0 - np.eye(3))
    counts = np.array([100.0, 30.0, 10.0])
    ratio = np.array(cost_matrix(costs).importance_of(counts)) / (counts * [1.0, 3.0, 20.0])
    np.testing.assert_allclose(ratio, ratio[0])
    # With costs that do not depend on the class the start is cross-entropy.
    same = np.array(cost_matrix(1.0 - np.eye(3)).importance_of(counts)) / counts
    np.testing.assert_allclose(same, same[0])


def test_a_search_lowers_the_costs() -> None:
    draw = np.random.default_rng(0)
    y = draw.choice(3, 900, p=[0.7, 0.2, 0.1])
    X = np.array([[0.0, 0.0], [1.5, 0.0], [0.0, 1.5]])[y] + draw.normal(size=(900, 2))
    data = ArrayData.of(X.astype(np.float32), y)
    goal = cost_matrix(COSTS)
    result = search(
        lambda: nn.Linear(2, 3), data, objective=goal, recipe=Recipe(epochs=5, min_steps=150, lr=0.05),
        settings=SearchSettings(folds=2), device="cpu",
    )  # fmt: skip
    candidates = {candidate.name: candidate for candidate in result.candidates}
    assert candidates.keys() >= {"designed", "start", "cross_entropy"}
    shift = candidates["designed"].loss.additive
    assert shift is not None
    # Mean costs of an error are 7.5 on class 2 and 2.5 on class 0: l starts at minus their logarithms,
    # of which the weights carry a fifth.
    assert float(shift[2] - shift[0]) < -0.5 * np.log(3.0)
    # All cost less than the best constant decision.
    best_constant = min(np.mean(COSTS[y, j]) for j in range(3)) / 10.0
    assert all(0.0 < each.objective < best_constant for each in candidates.values())


def test_candidates_are_compared_by_their_costs() -> None:
    target = torch.tensor([0, 1, 2, 2])
    outcomes = {"start": [torch.tensor([0, 1, 0, 0])], "designed": [torch.tensor([1, 1, 2, 1])]}
    loss = ParametricCrossEntropy.cross_entropy()
    start, designed = compare(
        dict.fromkeys(outcomes, loss), outcomes, target, (1, 3), cost_matrix(COSTS), 0
    )
    assert start.objective == pytest.approx((0 + 0 + 10 + 10) / 40)
    assert designed.objective == pytest.approx((1 + 0 + 0 + 5) / 40)
    assert designed.difference == pytest.approx(designed.objective - start.objective)
    assert designed.standard_error > 0.0


@pytest.mark.parametrize(
    ("costs", "message"),
    [
        (np.ones((2, 3)), "square matrix"),
        (np.ones(4), "square matrix"),
        (np.ones((1, 1)), "square matrix"),
        (np.where(COSTS == 10, np.nan, COSTS), r"costs\[2, 0\] is nan"),
        (np.where(COSTS == 10, np.inf, COSTS), "must be finite"),
        (COSTS - np.eye(3), r"costs\[0, 0\] is -1"),
        (np.zeros((3, 3)), "not all be 0"),
        ([["a"]], "must hold numbers"),
    ],
)
def test_what_is_no_matrix_of_costs_is_refused(costs: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        cost_matrix(costs)


def test_costs_for_other_classes_and_in_other_objectives_are_refused() -> None:
    logits, target, _ = batch()
    goal = cost_matrix(1.0 - np.eye(4))
    with pytest.raises(InputError, match="there are 3 classes"):
        goal(logits, target)
    with pytest.raises(InputError, match="SmoothError"):
        CostMatrix(costs=COSTS, surrogate=CrossEntropyRisk())
    with pytest.raises(InputError, match="stands alone"):
        Blend(parts=((0.5, BalancedError()), (0.5, goal)))
    with pytest.raises(InputError, match="objective over errors"):
        BoundedGap(main=goal, bound=0.1)
