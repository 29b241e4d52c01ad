"""Objectives over labels against scikit-learn and plain NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, balanced_accuracy_score, f1_score
from torch import Tensor

from autobalance import (
    BalancedError,
    Blend,
    CostMatrix,
    CrossEntropyRisk,
    CVaRError,
    InputError,
    MacroF1Error,
    OddsGap,
    QuantileError,
    SmoothError,
    WeightedError,
    WorstError,
)
from autobalance.objectives import Objective, RunningRisks, as_objective, over_labels
from autobalance.records import average_precision_error

N, K = 60, 5


def batch(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(N, K, generator=generator, dtype=torch.float64)
    chance = torch.tensor([0.5, 0.4, 0.3, 0.2, 0.15]).double()
    target = (torch.rand(N, K, generator=generator, dtype=torch.float64) < chance).to(torch.int8)
    return logits.to(dtype), target


def label_errors(logits: Tensor, target: Tensor) -> np.ndarray:
    """Balanced error of each label, by scikit-learn."""
    errors = []
    for score, y in zip(logits.numpy().T, target.numpy().T, strict=True):
        known = y >= 0
        errors.append(1 - balanced_accuracy_score(y[known], score[known] > 0))
    return np.array(errors)


def with_gaps(target: Tensor) -> Tensor:
    target = target.clone()
    target[::7, 1] = target[1::5, 3] = -1
    return target


@pytest.mark.parametrize("gaps", [False, True])
def test_hard_values_are_of_scikit_learns_balanced_errors(gaps: bool) -> None:
    logits, target = batch()
    target = with_gaps(target) if gaps else target
    errors = label_errors(logits, target)
    worst_two = np.sort(errors)[::-1][:2].mean()
    for objective, expected in (
        (BalancedError(over="label"), errors.mean()),
        (WorstError(over="label"), errors.max()),
        (CVaRError(over="label", fraction=0.4), worst_two),
        (QuantileError(over="label", q=0.5), np.median(errors)),
        (
            WeightedError(over="label", weights=(1.0, 0.0, 0.0, 0.0, 3.0)),
            errors[[0, 4, 4, 4]].mean(),
        ),
    ):
        assert objective.hard(logits, target) == pytest.approx(expected, abs=1e-12)


def test_macro_f1_is_scikit_learns() -> None:
    logits, target = batch()
    expected = 1 - f1_score(target.numpy(), logits.numpy() > 0, average="macro")
    assert MacroF1Error().hard(logits, target) == pytest.approx(expected, abs=1e-12)
    sharp = MacroF1Error(surrogate=SmoothError(temperature=1e-6))
    assert float(sharp(logits, target)) == pytest.approx(expected, abs=1e-6)


def test_average_precision_is_scikit_learns_and_leaves_out_what_is_not_labelled() -> None:
    logits, target = batch()
    expected = 1 - average_precision_score(target.numpy(), logits.numpy(), average="macro")
    assert average_precision_error(logits.numpy(), target.numpy()) == pytest.approx(expected)
    gaps = target.numpy().astype(float)
    gaps[:4, 0], gaps[:, 4] = np.nan, 0.0
    each = [
        average_precision_score(gaps[4 * (j == 0) :, j], logits.numpy()[4 * (j == 0) :, j])
        for j in range(4)
    ]
    assert average_precision_error(logits.numpy(), gaps) == pytest.approx(1 - np.mean(each))
    with pytest.raises(InputError, match="No label"):
        average_precision_error(np.zeros((3, 2)), np.zeros((3, 2)))


@pytest.mark.parametrize("surrogate", [SmoothError(temperature=0.5), CrossEntropyRisk()])
def test_smooth_values_written_out(surrogate: Any) -> None:
    logits, target = batch()
    f, y = logits.numpy(), target.numpy()
    margin = np.where(y == 1, f, -f)
    loss = (
        1 / (1 + np.exp(margin / 0.5))
        if isinstance(surrogate, SmoothError)
        else np.log1p(np.exp(-margin))
    )
    errors = [(loss[y[:, j] == 0, j].mean() + loss[y[:, j] == 1, j].mean()) / 2 for j in range(K)]
    own = BalancedError(over="label", surrogate=surrogate)(logits, target)
    assert float(own) == pytest.approx(np.mean(errors), rel=1e-12)


def test_the_scale_of_the_logits_does_not_matter_by_default() -> None:
    logits, target = batch()
    objective = BalancedError(over="label")
    torch.testing.assert_close(objective(7.0 * logits, target), objective(logits, target))
    assert torch.isfinite(objective(0.0 * logits, target))


def test_a_label_without_both_signs_is_left_out() -> None:
    logits, target = batch()
    rest = BalancedError(over="label").hard(logits[:, :4], target[:, :4])
    target[:, 4] = 0
    assert BalancedError(over="label").hard(logits, target) == pytest.approx(rest)
    assert (
        WorstError(over="label").hard(logits, target)
        == label_errors(logits[:, :4], target[:, :4]).max()
    )


def test_a_whole_weight_is_a_row_repeated() -> None:
    logits, target = batch()
    target = with_gaps(target)
    weight = torch.arange(N) % 3 + 1.0
    rows = torch.repeat_interleave(torch.arange(N), weight.long())
    for objective in (BalancedError(over="label"), MacroF1Error(), WorstError(over="label")):
        weighted = objective(logits, target, sample_weight=weight)
        torch.testing.assert_close(weighted, objective(logits[rows], target[rows]))


@pytest.mark.parametrize(
    "objective", [BalancedError(over="label"), CVaRError(over="label"), MacroF1Error()]
)
def test_gradients(objective: Objective) -> None:
    logits, target = batch()
    leaf = logits[:20].requires_grad_()
    assert torch.autograd.gradcheck(lambda f: objective(f, with_gaps(target)[:20]), leaf)


def test_effective_size_is_of_a_mean_over_labels_of_two_rates() -> None:
    counts = np.array([[90.0, 50.0], [10.0, 50.0]])
    expected = 1 / ((0.25**2) * (1 / 90 + 1 / 10 + 1 / 50 + 1 / 50))
    for objective in (BalancedError(over="label"), MacroF1Error()):
        assert objective.effective_size(counts) == pytest.approx(expected)
    with pytest.raises(InputError, match=r"\(2, k\)"):
        BalancedError(over="label").effective_size([3.0, 4.0, 5.0])


def test_running_risks_of_one_whole_batch_give_the_objective() -> None:
    logits, target = batch()
    counts = torch.stack([(target == 0).sum(0), (target == 1).sum(0)]).numpy()
    for objective in (WorstError(over="label"), MacroF1Error(), BalancedError(over="label")):
        risks = RunningRisks(objective, counts, shrinkage=1e-9)
        value = risks(logits, target)
        assert float(value) == pytest.approx(float(objective(logits, target)), rel=1e-6)
        assert float(risks.hard_value(logits, target)) == pytest.approx(
            objective.hard(logits, target)
        )
        risks.end_step()


def test_macro_f1_on_balanced_draws_is_that_of_the_validation_set() -> None:
    """A batch in which positives are drawn more often says how often each is wrong, not how many."""
    logits, target = batch()
    whole = MacroF1Error().hard(logits[:, :2], target[:, :2])
    counts = torch.stack([(target == 0).sum(0), (target == 1).sum(0)]).numpy()[:, :2]
    rows = torch.cat([torch.arange(N), *[(target[:, 0] == 1).nonzero().squeeze(1)] * 3])
    one = torch.stack([target[rows, 0], torch.full((len(rows),), -1, dtype=torch.int8)], dim=1)
    risks = RunningRisks(MacroF1Error(), counts, shrinkage=1e-9)
    risks(logits[rows][:, :2], one)
    alone = MacroF1Error().hard(
        logits[:, :2], torch.stack([target[:, 0], torch.full((N,), -1, dtype=torch.int8)], dim=1)
    )
    assert float(risks.hard_value(logits[rows][:, :2], one)) == pytest.approx(alone)
    assert alone != pytest.approx(whole)


# By name, and refusals ------------------------------------------------------------------------


def test_names_stand_for_objectives_over_labels() -> None:
    assert over_labels(as_objective("cvar_error(0.1)")) == CVaRError(over="label", fraction=0.1)
    assert as_objective("macro_f1") == MacroF1Error()
    blend = over_labels(as_objective("0.7 * balanced_error + 0.3 * worst_class_error"))
    logits, target = batch()
    errors = label_errors(logits, target)
    assert blend.over == "label"
    assert blend.hard(logits, target) == pytest.approx(0.7 * errors.mean() + 0.3 * errors.max())


@pytest.mark.parametrize(
    "objective",
    [
        WorstError(over="group"),
        CostMatrix(costs=1 - torch.eye(2)),
        Blend(parts=((1.0, BalancedError(over="class_and_group")), (1.0, OddsGap()))),
    ],
)
def test_what_is_of_one_class_per_example_is_refused(objective: Objective) -> None:
    with pytest.raises(InputError, match="one class per example"):
        over_labels(objective)


def test_targets_of_the_other_kind_are_refused() -> None:
    with pytest.raises(InputError, match=r"0 and 1, shape \(n, k\)"):
        BalancedError(over="label")(torch.zeros(2, 3), torch.tensor([0, 1]))
    with pytest.raises(InputError, match=r"class indices, shape \(n,\)"):
        BalancedError()(torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.int64))
    with pytest.raises(InputError, match="SmoothError"):
        MacroF1Error(surrogate=CrossEntropyRisk())
