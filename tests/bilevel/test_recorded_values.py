"""What a search records of its objective is an estimate for all held-out rows, not for its batches."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from autobalance.bilevel.network_search import search
from autobalance.data.array_data import ArrayData
from autobalance.data.index_streams import BalancedBatches
from autobalance.objectives.registry import GAPS, NAMED, as_objective
from autobalance.objectives.running_risks import RunningRisks
from autobalance.records.settings import Recipe

OBJECTIVES = [
    *NAMED,
    "cvar_error(0.5)",
    "quantile_error(0.9)",
    *(f"0.7 * balanced_error + 0.3 * {gap}" for gap in GAPS),
    "balanced_error where deo <= 0.05",
    "worst_group_error where demographic_parity_difference <= 0.5",
]


def held_out(n: int = 1200) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, classes and groups: both unequal in size, and the errors of their cells differ."""
    rng = np.random.default_rng(0)
    groups = (rng.random(n) < 0.3).astype(int)
    target = (rng.random(n) < np.where(groups, 0.4, 0.15)).astype(int)
    logits = rng.normal(size=(n, 2))
    logits[np.arange(n), target] += np.where(groups, 0.6, 1.6) * np.where(target, 0.7, 1.3)
    return torch.tensor(logits).float(), torch.tensor(target), torch.tensor(groups)


@pytest.mark.parametrize(
    ("name", "size"),
    [*((name, 64) for name in OBJECTIVES), *((name, 256) for name in OBJECTIVES[::4])],
)
def test_recorded_values_are_those_of_all_rows(name: str, size: int) -> None:
    """Over many upper steps with one network, drawn evenly over cells; noise about 1 point."""
    logits, target, groups = held_out()
    objective = as_objective(name)
    counts = torch.bincount(groups * 2 + target, minlength=4).view(2, 2).numpy()
    risks = RunningRisks(objective, counts, decay=0.9)
    draws = BalancedBatches(groups * 2 + target, size, torch.Generator().manual_seed(1))
    values = []
    for _ in range(150):
        rows = next(draws)
        given = {"groups": groups[rows]}
        smooth = float(risks(logits[rows], target[rows], **given))
        hard = float(risks.hard_value(logits[rows], target[rows], **given))
        values.append((smooth, hard))
        if "where" not in name:  # a bound's multiplier would move, and with it the smooth value
            risks.end_step()
    smooth, hard = np.mean(values[20:], axis=0)
    assert hard == pytest.approx(objective.hard(logits, target, groups=groups), abs=0.02)
    expected = float(objective(logits, target, groups=groups))
    assert smooth == pytest.approx(expected, abs=0.03)


@pytest.mark.parametrize("name", ["worst_group_error", "0.7 * balanced_error + 0.3 * deo"])
def test_a_searchs_last_records_are_the_held_out_errors(name: str) -> None:
    rng = np.random.default_rng(0)
    groups = (rng.random(2000) < 0.3).astype(int)
    target = rng.choice(3, 2000, p=[0.8, 0.15, 0.05])
    inputs = rng.normal(size=(2000, 4)).astype("float32")
    inputs[:, :3] += np.eye(3)[target] * np.where(groups, 1.0, 1.8)[:, None]
    data = ArrayData.of(inputs, target, groups=groups)
    options: dict[str, Any] = {"recipe": Recipe(epochs=12, min_steps=240), "device": "cpu"}
    objective = as_objective(name)

    def network() -> nn.Module:
        return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3))

    result = search(network, data, objective=objective, **options)
    assert result.held_out is not None
    wrong, n = (torch.tensor(t).double() for t in (result.held_out.wrong, result.held_out.n))
    late = np.mean([record.hard_objective for record in result.history[-10:]])
    assert late == pytest.approx(float(objective.value(wrong, n)), abs=0.05)
