"""Objectives against slow numpy, on batches that hypothesis draws."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from autobalance._validation import InputError
from autobalance.bilevel.loss_tuner import LossTuner
from autobalance.objectives.aggregates import (
    BalancedError,
    CVaRError,
    ErrorDeviation,
    QuantileError,
    WeightedError,
    WorstError,
)
from autobalance.objectives.base import CellObjective, Objective, Over, cells_of, group_class_sums
from autobalance.objectives.combined import Blend, BoundedGap
from autobalance.objectives.gaps import Gap, OddsGap, OpportunityGap, ParityGap
from autobalance.objectives.registry import GAPS, NAMED, as_objective
from autobalance.objectives.running_risks import RunningRisks
from autobalance.objectives.surrogates import CrossEntropyRisk, SmoothError
from autobalance.records import metrics
from autobalance.records.error_table import ErrorTable
from autobalance.spaces.group_space import GroupSpace
from autobalance.spaces.tunable_loss import TunableCrossEntropy

FIXED = SmoothError(temperature=1.0)
OVERS: list[Over] = ["class", "group", "class_and_group"]
each_over = pytest.mark.parametrize("over", OVERS)


class Case(NamedTuple):
    logits: Tensor
    target: Tensor
    groups: Tensor
    weight: Tensor
    k: int
    g: int


@st.composite
def cases(draw: Any) -> Case:
    """Few examples of many cells, so most batches lack some class or group."""
    n, k, g = draw(st.integers(1, 12)), draw(st.integers(2, 5)), draw(st.integers(1, 3))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    return Case(
        2 * torch.randn(n, k, generator=generator, dtype=torch.float64),
        torch.randint(k, (n,), generator=generator),
        torch.randint(g, (n,), generator=generator),
        torch.rand(n, generator=generator, dtype=torch.float64) + 0.1,
        k,
        g,
    )


def objectives(over: Over, k: int, g: int) -> list[Objective]:
    cells = {"class": k, "group": g, "class_and_group": g * k}[over]
    weights = tuple(float(c + 1) for c in range(cells))
    return [
        BalancedError(over=over),
        BalancedError(over=over, surrogate=FIXED),
        BalancedError(over=over, surrogate=CrossEntropyRisk()),
        WeightedError(over=over, weights=weights, surrogate=FIXED),
        WorstError(over=over, surrogate=FIXED),
        WorstError(over=over, softness=0.5, surrogate=SmoothError(temperature=0.3)),
        CVaRError(over=over, surrogate=FIXED),
        CVaRError(over=over, fraction=0.55, surrogate=CrossEntropyRisk()),
        QuantileError(over=over, surrogate=FIXED),
        QuantileError(over=over, q=0.3, softness=0.4, surrogate=CrossEntropyRisk()),
        ErrorDeviation(over=over, surrogate=FIXED),
        Blend(
            parts=((0.4, BalancedError(over=over)), (0.6, ErrorDeviation(over=over))),
            surrogate=FIXED,
        ),
        Blend(
            parts=(
                (0.3, WeightedError(over=over, weights=weights)),
                (0.5, WorstError(over="group")),
                (0.2, CVaRError(over="class_and_group", fraction=0.5)),
            ),
            surrogate=FIXED,
        ),
    ]


# Oracle: one example at a time ----------------------------------------------------------------


def margin(f: np.ndarray, y: int) -> float:
    return float(f[y] - max(f[j] for j in range(len(f)) if j != y))


def example_loss(
    objective: Objective, case: Case, i: int, *, hard: bool, weighted: bool = False
) -> float:
    f, y = case.logits[i].numpy(), int(case.target[i])
    if hard:
        return float(f.argmax() != y)
    if isinstance(objective.surrogate, SmoothError):
        T = objective.surrogate.temperature
        if T is None:
            margins = [margin(case.logits[j].numpy(), int(c)) for j, c in enumerate(case.target)]
            weights = case.weight.numpy() if weighted else None
            T = objective.surrogate.relative * np.average(np.abs(margins), weights=weights)
        return 1 / (1 + math.exp(margin(f, y) / T))
    return float(np.log(np.exp(f - f[y]).sum()))


def oracle(objective: Objective, case: Case, *, hard: bool, weighted: bool = False) -> float:
    if isinstance(objective, Blend):
        return sum(
            weight
            * oracle(
                replace(part, surrogate=objective.surrogate), case, hard=hard, weighted=weighted
            )
            for weight, part in objective.parts
        )
    cells: dict[int, list[tuple[float, float]]] = {}
    for i in range(len(case.target)):
        y, g = int(case.target[i]), int(case.groups[i])
        cell = {"class": y, "group": g, "class_and_group": g * case.k + y}[objective.over]
        loss = example_loss(objective, case, i, hard=hard, weighted=weighted)
        cells.setdefault(cell, []).append((loss, float(case.weight[i]) if weighted else 1.0))
    risks = {c: sum(r * w for r, w in e) / sum(w for _, w in e) for c, e in cells.items()}
    return aggregate(objective, risks, hard=hard)


def aggregate(objective: Objective, risks: dict[int, float], *, hard: bool) -> float:
    """Of the risks of those cells that there are."""
    values = np.array(list(risks.values()))
    if isinstance(objective, BalancedError):
        return float(values.mean())
    if isinstance(objective, WeightedError):
        omega = np.array([objective.weights[c] for c in risks])
        return float((omega * values).sum() / omega.sum())
    if isinstance(objective, CVaRError):
        # Rockafellar and Uryasev: a minimum over the threshold, which is one of the values.
        size = max(1.0, objective.fraction * len(values))
        return min(t + np.maximum(values - t, 0.0).sum() / size for t in values)
    if isinstance(objective, QuantileError):
        return float(np.quantile(values, objective.q))
    if isinstance(objective, ErrorDeviation):
        return float(values.std())
    assert isinstance(objective, WorstError)
    if hard:
        return float(values.max())
    s = objective.softness
    return float(s * np.log(np.exp(values / s).mean()))


@each_over
@given(case=cases(), weighted=st.booleans())
def test_value_equals_numpy_and_is_finite_whatever_the_batch_lacks(
    over: Over, case: Case, weighted: bool
) -> None:
    weight = case.weight if weighted else None
    for objective in objectives(over, case.k, case.g):
        value = objective(case.logits, case.target, groups=case.groups, sample_weight=weight)
        expected = oracle(objective, case, hard=False, weighted=weighted)
        assert float(value) == pytest.approx(expected, rel=1e-10, abs=1e-12)


@each_over
@given(case=cases(), weighted=st.booleans())
def test_hard_value_equals_numpy(over: Over, case: Case, weighted: bool) -> None:
    weight = case.weight if weighted else None
    for objective in objectives(over, case.k, case.g):
        value = objective.hard(case.logits, case.target, groups=case.groups, sample_weight=weight)
        expected = oracle(objective, case, hard=True, weighted=weighted)
        assert value == pytest.approx(expected, abs=1e-12)
        assert 0.0 <= value <= 1.0


@each_over
@given(case=cases(), seed=st.integers(0, 1000))
def test_the_order_of_the_examples_does_not_matter(over: Over, case: Case, seed: int) -> None:
    order = torch.randperm(len(case.target), generator=torch.Generator().manual_seed(seed))
    for objective in objectives(over, case.k, case.g):
        value = objective(case.logits, case.target, groups=case.groups)
        shuffled = objective(case.logits[order], case.target[order], groups=case.groups[order])
        assert float(shuffled) == pytest.approx(float(value), rel=1e-12)


@given(case=cases(), seed=st.integers(0, 1000))
def test_the_numbering_of_the_classes_does_not_matter(case: Case, seed: int) -> None:
    renumber = torch.randperm(case.k, generator=torch.Generator().manual_seed(seed))
    logits = torch.empty_like(case.logits)
    logits[:, renumber] = case.logits
    for objective in (BalancedError(), WorstError()):
        value = objective(case.logits, case.target)
        assert float(objective(logits, renumber[case.target])) == pytest.approx(
            float(value), rel=1e-12
        )


@each_over
@settings(max_examples=8)
@given(case=cases())
def test_gradient_equals_finite_differences(over: Over, case: Case) -> None:
    for objective in objectives(over, case.k, case.g):
        # A relative temperature is held fixed, and a quantile has the slope of its neighbourhood;
        # neither is so for finite differences.
        if objective.surrogate == SmoothError() or isinstance(objective, QuantileError):
            continue
        leaf = case.logits.clone().requires_grad_()
        assert torch.autograd.gradcheck(
            lambda f, objective=objective: objective(
                f, case.target, groups=case.groups, sample_weight=case.weight
            ),
            leaf,
        )


@given(case=cases(), softness=st.floats(0.01, 5.0))
def test_the_smooth_worst_lies_between_mean_and_maximum(case: Case, softness: float) -> None:
    objective = WorstError(softness=softness, surrogate=FIXED)
    value = float(objective(case.logits, case.target))
    smooth = FIXED(case.logits, case.target)
    risks = [float(smooth[case.target == c].mean()) for c in case.target.unique()]
    assert np.mean(risks) - 1e-12 <= value <= max(risks) + 1e-12


def test_the_smooth_worst_tends_to_the_maximum() -> None:
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [0.0, -1.0]], dtype=torch.float64)
    target = torch.tensor([0, 1, 1])
    risks = FIXED(logits, target)
    worst = max(float(risks[0]), float(risks[1:].mean()))
    objectives = [WorstError(softness=s, surrogate=FIXED) for s in (0.5, 0.05, 0.005, 0.0005)]
    gaps = [worst - float(objective(logits, target)) for objective in objectives]
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[-1] < 5e-4


# The smooth error -----------------------------------------------------------------------------


@given(case=cases(), temperature=st.floats(0.1, 10.0))
def test_smooth_error_is_bounded_and_on_the_right_side(case: Case, temperature: float) -> None:
    value = SmoothError(temperature)(case.logits, case.target)
    assert ((value >= 0) & (value <= 1)).all()
    wrong = case.logits.argmax(dim=1) != case.target
    assert ((value > 0.5) == wrong).all()
    if temperature > 1:  # below, a confident example rounds to the bound itself
        assert ((value > 0) & (value < 1)).all()


@given(case=cases())
def test_smooth_error_tends_to_the_error(case: Case) -> None:
    wrong = (case.logits.argmax(dim=1) != case.target).double()
    gaps = [
        float((SmoothError(t)(case.logits, case.target) - wrong).abs().max())
        for t in (10.0, 1.0, 0.1, 1e-6)
    ]
    assert gaps == sorted(gaps, reverse=True)
    top = case.logits.topk(2).values
    if float((top[:, 0] - top[:, 1]).min()) > 1e-4:
        assert gaps[-1] < 1e-12


@given(case=cases(), relative=st.floats(0.1, 3.0), factor=st.floats(1e-3, 1e3))
def test_the_relative_temperature_follows_the_logits_and_their_rescaling_changes_nothing(
    case: Case, relative: float, factor: float
) -> None:
    margins = [margin(f.numpy(), int(y)) for f, y in zip(case.logits, case.target, strict=True)]
    leaf = case.logits.clone().requires_grad_()
    found = SmoothError(relative=relative)(leaf, case.target)
    fixed = SmoothError(temperature=relative * float(np.mean(np.abs(margins))))(leaf, case.target)
    torch.testing.assert_close(found, fixed, rtol=1e-12, atol=1e-14)
    # So the gradient has no part along the logits: Euler's theorem on homogeneous functions.
    (gradient,) = torch.autograd.grad(found.sum(), leaf)
    along = float((gradient * case.logits).sum())
    assert abs(along) <= 1e-9 * (1.0 + float((gradient * case.logits).abs().sum()))
    scaled = SmoothError(relative=relative)(factor * case.logits, case.target)
    torch.testing.assert_close(scaled, found.detach(), rtol=1e-9, atol=1e-12)


def test_the_relative_temperature_survives_a_head_initialised_at_zero() -> None:
    logits = torch.zeros(3, 4, requires_grad=True)
    value = BalancedError()(logits, torch.tensor([0, 1, 1]))
    (gradient,) = torch.autograd.grad(value, logits)
    assert float(value.detach()) == 0.5
    assert 0.0 < float(gradient.abs().max()) < 1.0


@given(case=cases())
def test_cross_entropy_risk_is_torchs(case: Case) -> None:
    found = CrossEntropyRisk()(case.logits, case.target)
    assert torch.equal(found, F.cross_entropy(case.logits, case.target, reduction="none"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_raised(dtype: torch.dtype) -> None:
    logits = torch.tensor([[1.0, -1.0], [0.5, 2.0]], dtype=dtype)
    value = BalancedError()(logits, torch.tensor([0, 0]))
    assert value.dtype == torch.float32
    assert value == BalancedError()(logits.float(), torch.tensor([0, 0]))


@pytest.mark.parametrize(
    "objective", [BalancedError(), WorstError()], ids=lambda o: type(o).__name__
)
def test_extreme_logits_stay_finite(objective: Objective) -> None:
    logits = torch.tensor([[1e30, -1e30], [-1e30, 1e30], [0.0, 0.0]], requires_grad=True)
    value = objective(logits, torch.tensor([0, 0, 1]))
    (gradient,) = torch.autograd.grad(value, logits)
    assert torch.isfinite(value)
    assert torch.isfinite(gradient).all()


# Quantiles, worst shares, deviations, blends ----------------------------------------------------


@given(case=cases(), q=st.floats(0.0, 1.0), softness=st.floats(0.2, 2.0))
def test_the_slope_of_a_quantile_spreads_over_cells_near_it(
    case: Case, q: float, softness: float
) -> None:
    """Their weights sum to 1 and are the kernel's, which is highest at the quantile."""
    risks = torch.randn(case.k, generator=torch.Generator().manual_seed(len(case.target)))
    risks = risks.double().requires_grad_()
    present = torch.zeros(case.k, dtype=torch.bool).index_fill(0, case.target.unique(), True)
    value = QuantileError(q=q, softness=softness).aggregate_smoothly(risks, present)
    (slopes,) = torch.autograd.grad(value, risks)
    there = risks.detach().numpy()[present.numpy()]
    near = 1 / np.cosh((there - np.quantile(there, q)) / (2 * softness)) ** 2
    np.testing.assert_allclose(slopes[present].numpy(), near / near.sum(), rtol=1e-6)
    assert not slopes[~present].any()
    assert float(value.detach()) == pytest.approx(np.quantile(there, q), rel=1e-12)


@given(case=cases())
def test_worst_shares_reach_from_the_worst_to_the_mean(case: Case) -> None:
    found = [
        float(CVaRError(fraction=f, surrogate=FIXED)(case.logits, case.target))
        for f in (1e-9, 0.2, 0.5, 0.9, 1.0)
    ]
    assert all(a >= b - 1e-12 for a, b in pairwise(found))
    worst = WorstError(surrogate=FIXED)
    assert found[0] == pytest.approx(
        float(worst.value(*worst.sums(case.logits, case.target)))  # the exact maximum
    )
    mean = BalancedError(surrogate=FIXED)
    assert found[-1] == pytest.approx(float(mean(case.logits, case.target)))


@pytest.mark.parametrize("correct", [True, False])
def test_a_deviation_of_nothing_is_0_and_has_no_gradient(correct: bool) -> None:
    logits = torch.tensor([[2.0, 0.0], [0.0, 2.0]]).requires_grad_()
    target = torch.tensor([0, 1] if correct else [1, 0])
    objective = ErrorDeviation(surrogate=FIXED)
    value = objective(logits, target)
    assert float(value.detach()) == 0.0
    assert not torch.autograd.grad(value, logits)[0].any()
    assert objective.hard(logits, target) == 0.0


@pytest.mark.parametrize(
    "objective",
    [CVaRError(), QuantileError(), ErrorDeviation(), WorstError(), BalancedError()],
    ids=lambda o: type(o).__name__,
)
def test_no_example_at_all_gives_0(objective: Objective) -> None:
    """As in a fold's batch of which nothing is left."""
    nothing = torch.zeros(0, 3, requires_grad=True)
    value = objective(nothing, torch.zeros(0, dtype=torch.long))
    assert float(value.detach()) == 0.0
    assert torch.autograd.grad(value, nothing, materialize_grads=True)[0].shape == (0, 3)


def test_blends_of_two_mix_them() -> None:
    """Eq. 2.3 of the paper: (1 - mix) of the first and mix of the second."""
    blend = Blend.of(0.25, BalancedError(), WorstError(softness=0.1))
    assert blend.parts == ((0.75, BalancedError()), (0.25, WorstError(softness=0.1)))


def test_a_blend_is_over_the_cells_of_its_parts() -> None:
    group, both = BalancedError(over="group"), WorstError(over="class_and_group")
    assert Blend.of(0.5, group, WorstError(over="group")).over == "group"
    assert Blend.of(0.5, group, BalancedError()).over == "class_and_group"
    assert Blend.of(0.5, both, BalancedError()).over == "class_and_group"
    with pytest.raises(InputError, match="needs groups="):
        Blend.of(0.5, group, BalancedError())(torch.zeros(1, 2), torch.tensor([0]))


def test_a_blend_is_linear_and_important_as_its_parts_are() -> None:
    weighted = WeightedError(weights=(1.0, 2.0))
    assert Blend.of(0.5, weighted, BalancedError()).linear
    assert not Blend.of(0.5, weighted, WorstError()).linear
    assert Blend.of(0.5, weighted, weighted).importance == (1.0, 2.0)
    assert Blend.of(0.5, weighted, BalancedError()).importance is None
    assert Blend.of(0.5, CVaRError(), BalancedError()).importance is None


@pytest.mark.parametrize("over", OVERS)
def test_only_means_with_fixed_weights_are_linear(over: Over) -> None:
    kinds = {type(o).__name__ for o in objectives(over, 3, 2) if o.linear}
    assert kinds == {"BalancedError", "WeightedError"}


# Effective size -------------------------------------------------------------------------------


def variance(objective: CellObjective, counts: np.ndarray) -> float:
    """Of the objective where every cell's risk has variance 1 / n."""
    omega = objective.shares(counts > 0)
    return float((omega[counts > 0] ** 2 / counts[counts > 0]).sum())


@given(counts=st.lists(st.integers(0, 500), min_size=2, max_size=8).filter(any))
def test_effective_size_is_one_over_the_variance(counts: list[int]) -> None:
    n = np.array([c for c in counts if c], dtype=float)
    assert BalancedError().effective_size(counts) == pytest.approx(len(n) ** 2 / (1 / n).sum())
    omega = np.arange(1.0, len(counts) + 1)
    weighted = WeightedError(weights=tuple(omega))
    if any(counts):
        kept = omega[np.array(counts) > 0]
        expected = kept.sum() ** 2 / (kept**2 / n).sum()
        assert weighted.effective_size(counts) == pytest.approx(expected)
    # Noise of the single risks is for RunningRisks to shrink.
    assert WorstError().effective_size(counts) == BalancedError().effective_size(counts)
    for objective in (BalancedError(), weighted, WorstError()):
        assert objective.effective_size(counts) == pytest.approx(
            1 / variance(objective, np.array(counts, dtype=float))
        )


@pytest.mark.parametrize(
    ("over", "cells"),
    [("class", [12, 4]), ("group", [10, 6]), ("class_and_group", [8, 2, 4, 2])],
)
def test_effective_size_takes_the_objectives_own_cells(over: Over, cells: list[int]) -> None:
    found = BalancedError(over=over).effective_size([[8, 2], [4, 2]])
    assert found == pytest.approx(BalancedError().effective_size(cells))


def test_effective_size_of_equal_cells_is_their_sum() -> None:
    assert BalancedError().effective_size([50, 50, 50]) == pytest.approx(150.0)
    assert WorstError().effective_size([50, 50, 50]) == pytest.approx(150.0)


@given(counts=st.lists(st.integers(0, 500), min_size=2, max_size=8).filter(any))
def test_effective_sizes_of_the_others(counts: list[int]) -> None:
    """As the mean's; of a blend, deviations add up."""
    balanced = BalancedError().effective_size(counts)
    for objective in (CVaRError(fraction=0.01), QuantileError(), ErrorDeviation(), WorstError()):
        assert objective.effective_size(counts) == balanced
    weighted = WeightedError(weights=tuple(np.arange(1.0, len(counts) + 1)))
    blend = Blend(parts=((1.0, BalancedError()), (3.0, weighted)))
    deviation = 0.25 / balanced**0.5 + 0.75 / weighted.effective_size(counts) ** 0.5
    assert blend.effective_size(counts) == pytest.approx(deviation**-2)


def test_the_effective_size_of_a_blend_takes_each_parts_cells() -> None:
    blend = Blend.of(0.5, BalancedError(), BalancedError(over="group"))
    sizes = [BalancedError().effective_size(c) for c in ([12, 4], [10, 6])]
    deviation = sum(0.5 / n**0.5 for n in sizes)
    assert blend.effective_size([[8, 2], [4, 2]]) == pytest.approx(deviation**-2)


# Running risks --------------------------------------------------------------------------------


def slopes_by_hand(objective: Objective, risks: np.ndarray) -> tuple[float, np.ndarray]:
    """Smooth value and its slope in each of the risks."""
    if isinstance(objective, WorstError):
        raised = np.exp(risks / objective.softness)
        return objective.softness * np.log(raised.mean()), raised / raised.sum()
    if isinstance(objective, CVaRError):
        size = max(1.0, objective.fraction * len(risks))
        rank = np.argsort(np.argsort(-risks))
        share = np.clip(size - rank, 0.0, 1.0) / size
        return float(share @ risks), share
    if isinstance(objective, QuantileError):
        value = np.quantile(risks, objective.q)
        near = 1 / np.cosh((risks - value) / (2 * objective.softness)) ** 2
        return float(value), near / near.sum()
    assert isinstance(objective, ErrorDeviation)
    deviation = risks.std()
    if deviation == 0:
        return 0.0, np.zeros_like(risks)
    return deviation, (risks - risks.mean()) / (len(risks) * deviation)


class RunningByHand:
    """The class's formula on a dictionary of (group, class)."""

    def __init__(self, objective: Objective, counts: Any, decay: float, shrinkage: float) -> None:
        self.objective, self.decay, self.shrinkage = objective, decay, shrinkage
        self.counts = None if counts is None else np.atleast_2d(counts)
        self.sums: dict[tuple[int, int], tuple[float, float]] = {}

    def __call__(self, case: Case, grouped: bool, weighted: bool) -> tuple[float, np.ndarray]:
        """Value, and gradient in the logits."""
        leaf = case.logits.clone().requires_grad_()
        loss = self.objective.surrogate(leaf, case.target)
        weight = case.weight.numpy() if weighted else np.ones(len(case.target))
        at = [
            (int(g) if grouped else 0, int(y))
            for g, y in zip(case.groups, case.target, strict=True)
        ]
        mass = {c: sum(w for w, a in zip(weight, at, strict=True) if a == c) for c in set(at)}
        self.sums = {c: (self.decay * t, self.decay * m) for c, (t, m) in self.sums.items()}
        for cell, own, w in zip(at, loss.tolist(), weight, strict=True):
            t, m = self.sums.get(cell, (0.0, 0.0))
            self.sums[cell] = (t + w * own, m + w)
        value, slopes = self._value(self.sums)
        scale = [slopes[c] * w / mass[c] for c, w in zip(at, weight, strict=True)]
        gradient = torch.autograd.grad(loss, leaf, torch.tensor(scale, dtype=torch.float64))[0]
        return value, gradient.numpy()

    def _value(
        self, sums: dict[tuple[int, int], tuple[float, float]]
    ) -> tuple[float, dict[tuple[int, int], float]]:
        names = sorted(sums)
        risks = np.array([sums[c][0] / sums[c][1] for c in names])
        sizes = np.array(
            [sums[c][1] if self.counts is None else self.counts[c] for c in names], dtype=float
        )
        s = self.shrinkage
        shrunk = (sizes * risks + s * risks.mean()) / (sizes + s)
        # How each of these moves with each risk.
        inner = np.diag(sizes / (sizes + s)) + np.outer(s / (sizes + s), np.ones(len(risks))) / len(
            risks
        )
        kinds = [
            {"class": c[1], "group": c[0], "class_and_group": c}[self.objective.over] for c in names
        ]
        cells = sorted(set(kinds))
        part = np.array(
            [[n if kind == c else 0.0 for n, kind in zip(sizes, kinds, strict=True)] for c in cells]
        )
        part /= part.sum(axis=1, keepdims=True)
        value, outer = slopes_by_hand(self.objective, part @ shrunk)
        if self.counts is not None:  # what is recorded is not shrunk, but for gradients
            value, _ = slopes_by_hand(self.objective, part @ risks)
        return value, dict(zip(names, outer @ part @ inner, strict=True))


NOT_LINEAR: list[Objective] = [
    WorstError(softness=0.2, surrogate=FIXED),
    WorstError(over="group", softness=0.2, surrogate=FIXED),
    CVaRError(over="class_and_group", fraction=0.4, surrogate=CrossEntropyRisk()),
    QuantileError(q=0.6, softness=0.1, surrogate=FIXED),
    ErrorDeviation(surrogate=FIXED),
]


@pytest.mark.parametrize("objective", NOT_LINEAR, ids=lambda o: f"{type(o).__name__}-{o.over}")
@given(
    batches=st.lists(cases(), min_size=1, max_size=4),
    counted=st.booleans(),
    grouped=st.booleans(),
    weighted=st.booleans(),
)
def test_running_risks_are_those_of_their_formula(
    objective: Objective, batches: list[Case], counted: bool, grouped: bool, weighted: bool
) -> None:
    """Over batches each of which may lack groups and classes."""
    grouped = grouped or objective.over != "class"
    k = max(case.k for case in batches)
    rows = 3 if grouped else 1
    counts = (7 + 11 * np.arange(rows * k) % 13).reshape(rows, k) if counted else None
    running = RunningRisks(objective, counts, decay=0.7, shrinkage=1.5)
    slow = RunningByHand(objective, counts, 0.7, 1.5)
    batches[0].groups[0] = 1  # a first batch of group 0 alone says nothing of other groups
    for case in batches:
        wide = case._replace(
            logits=F.pad(case.logits, (0, k - case.k), value=-1.0).requires_grad_(), k=k
        )
        value = running(
            wide.logits,
            wide.target,
            groups=wide.groups if grouped else None,
            sample_weight=wide.weight if weighted else None,
        )
        (gradient,) = torch.autograd.grad(value, wide.logits)
        running.end_step()
        expected = slow(wide._replace(logits=wide.logits.detach()), grouped, weighted)
        assert float(value.detach()) == pytest.approx(expected[0], rel=1e-9, abs=2e-6)
        np.testing.assert_allclose(gradient.numpy(), expected[1], rtol=1e-6, atol=1e-9)


@given(batches=st.lists(cases(), min_size=2, max_size=3))
def test_a_linear_objective_is_left_as_it_is(batches: list[Case]) -> None:
    for objective in (BalancedError(surrogate=FIXED), BalancedError(over="group")):
        running = RunningRisks(objective, [5, 5])
        for case in batches:
            leaf = case.logits.clone().requires_grad_()
            given_ = {"groups": case.groups, "sample_weight": case.weight}
            values = [f(leaf, case.target, **given_) for f in (running, objective)]
            assert torch.equal(*values)
            assert torch.equal(*(torch.autograd.grad(v, leaf)[0] for v in values))
            hard = running.hard_value(leaf, case.target, **given_)
            assert float(hard) == objective.hard(leaf, case.target, **given_)
        assert running.state_dict()["smooth"] == {"total": None, "mass": None}


def test_running_risks_remember_a_class_that_the_batch_lacks() -> None:
    """It was the worst, and still is; but the batch's own examples alone have gradients."""
    running = RunningRisks(WorstError(surrogate=FIXED), [50, 50])
    running(torch.tensor([[3.0, 0.0]] * 2), torch.tensor([0, 1]))
    running.end_step()
    leaf = torch.tensor([[3.0, 0.0]], requires_grad=True)
    value = running(leaf, torch.tensor([0]))
    assert float(value.detach()) > 0.8
    alone = torch.autograd.grad(WorstError(surrogate=FIXED)(leaf, torch.tensor([0])), leaf)[0]
    assert torch.autograd.grad(value, leaf)[0].norm() < 0.05 * alone.norm()


def test_batches_of_one_upper_step_are_as_one() -> None:
    """So that the worst class of all folds is sought, not that of each."""
    objective = WorstError(surrogate=FIXED)
    logits, target = torch.randn(12, 3), torch.arange(12) % 3
    parts, whole = RunningRisks(objective, [4, 4, 4]), RunningRisks(objective, [4, 4, 4])
    for _ in range(2):
        parts(logits[:7], target[:7])
        last = parts(logits[7:], target[7:])
        torch.testing.assert_close(last, whole(logits, target))
        for running in (parts, whole):
            running.end_step()


def test_of_a_network_that_diverged_nothing_stays() -> None:
    objective = WorstError(surrogate=FIXED)
    spoilt, other = RunningRisks(objective, [4, 4]), RunningRisks(objective, [4, 4])
    logits, target = torch.tensor([[2.0, 0.0], [0.5, 0.0]]), torch.tensor([0, 1])
    spoilt(torch.full((2, 2), torch.nan), target)
    assert torch.equal(spoilt(logits, target), other(logits, target))


@given(batches=st.lists(cases(), min_size=2, max_size=4))
def test_the_state_of_running_risks_continues_them(batches: list[Case]) -> None:
    objective = WorstError(over="group", surrogate=FIXED)
    *before, last = (
        case._replace(logits=case.logits[:, :2], target=case.target % 2) for case in batches
    )
    running = RunningRisks(objective, [[5, 3]] * 3)
    for case in before:
        running(case.logits, case.target, groups=case.groups)
        running.end_step()
    twin = RunningRisks(objective, [[5, 3]] * 3)
    twin.load_state_dict(running.state_dict())
    found = [r(last.logits, last.target, groups=last.groups) for r in (running, twin)]
    assert torch.equal(*found)
    fresh = RunningRisks(objective, [[5, 3]] * 3)
    nothing = RunningRisks(objective).state_dict()
    fresh.load_state_dict(nothing)
    assert fresh.state_dict() == nothing


# Gaps between groups --------------------------------------------------------------------------

FAIRNESS = {
    "deo": metrics.deo,
    "equalized_odds_difference": metrics.equalized_odds_difference,
    "equal_opportunity_difference": metrics.equal_opportunity_difference,
    "demographic_parity_difference": metrics.demographic_parity_difference,
}


def of_two(case: Case) -> Case:
    """The same with its first two classes for all."""
    return case._replace(logits=case.logits[:, :2], target=case.target % 2, k=2)


@pytest.mark.parametrize("name", GAPS)
@given(case=cases())
def test_a_gap_is_the_metric_of_its_name_where_that_is_defined(name: str, case: Case) -> None:
    """And finite elsewhere, since a batch may lack any cell."""
    case = of_two(case)
    predicted = case.logits.argmax(dim=1)
    parts = [t.numpy() for t in (case.target, predicted, case.groups)]
    expected = FAIRNESS[name](*parts, case.k)
    value = GAPS[name].hard(case.logits, case.target, groups=case.groups)
    if expected is None:
        expected = ErrorTable.from_predictions(parts[0], parts[1], 2, parts[2]).known_deo
        assert 0.0 <= value <= expected + 1e-12
    else:
        assert value == pytest.approx(expected, abs=1e-12)


def test_equal_opportunity_of_more_than_two_classes_needs_the_positive_one() -> None:
    logits, target, groups = torch.eye(3), torch.tensor([0, 1, 2]), torch.tensor([0, 1, 1])
    with pytest.raises(InputError, match="one of two classes; there are 3"):
        OpportunityGap().hard(logits, target, groups=groups)
    assert OpportunityGap(positive=1).hard(logits, target, groups=groups) == 0.0


def soft_range(values: list[float], softness: float) -> float:
    """Soft maximum less soft minimum, each a mean weighted by exp(+- value / softness)."""
    if not values:
        return 0.0
    v = np.array(values)
    ends = []
    for sign in (1.0, -1.0):
        weight = np.exp(sign * (v - (v.max() if sign > 0 else v.min())) / softness)
        ends.append(float((weight * v).sum() / weight.sum()))
    return ends[0] - ends[1]


def gap_by_hand(gap: Gap, case: Case) -> float:
    """Of the surrogate's risks, cell by cell."""
    rates: dict[tuple[int, int], float] = {}
    shares: dict[int, list[float]] = {}
    for i in range(len(case.target)):
        y, g = int(case.target[i]), int(case.groups[i])
        loss = example_loss(gap, case, i, hard=False)
        rates.setdefault((g, y), 0.0)
        rates[g, y] += loss / int(((case.groups == g) & (case.target == y)).sum())
        shares.setdefault(g, []).append(1.0 - loss if y == 1 else loss)
    if isinstance(gap, ParityGap):
        return soft_range([float(np.mean(s)) for s in shares.values()], gap.softness)
    ranges = [
        soft_range([r for (_, y), r in rates.items() if y == c], gap.softness)
        for c in range(case.k)
    ]
    if isinstance(gap, OpportunityGap):
        return ranges[gap.positive]
    assert isinstance(gap, OddsGap)
    if gap.over_classes == "sum":
        return sum(ranges)
    weight = np.exp((np.array(ranges) - max(ranges)) / gap.softness)
    return float(weight @ ranges / weight.sum())


SMOOTH_GAPS: list[Gap] = [
    OddsGap(softness=0.1, surrogate=FIXED),
    OddsGap(over_classes="max", softness=0.3, surrogate=FIXED),
    OddsGap(softness=0.5, surrogate=CrossEntropyRisk()),
    OpportunityGap(positive=1, softness=0.1, surrogate=FIXED),
    OpportunityGap(positive=0, softness=0.1, surrogate=FIXED),
    ParityGap(softness=0.1, surrogate=FIXED),
]
each_gap = pytest.mark.parametrize("gap", SMOOTH_GAPS, ids=lambda g: type(g).__name__)


@each_gap
@given(case=cases())
def test_the_smooth_gap_and_its_gradient(gap: Gap, case: Case) -> None:
    """Against a loop over examples, and finite differences in float64."""
    case = of_two(case) if isinstance(gap, ParityGap) else case
    leaf = case.logits.clone().requires_grad_()
    value = gap(leaf, case.target, groups=case.groups)
    assert float(value.detach()) == pytest.approx(gap_by_hand(gap, case), rel=1e-9, abs=1e-12)
    assert torch.autograd.gradcheck(
        lambda f: gap(f, case.target, groups=case.groups, sample_weight=case.weight), leaf
    )


@each_gap
@given(case=cases())
def test_the_smooth_gap_lies_below_the_exact_one_and_tends_to_it(gap: Gap, case: Case) -> None:
    case = of_two(case) if isinstance(gap, ParityGap) else case
    sums = gap.sums(case.logits, case.target, case.groups)
    exact = float(gap.value(*sums))
    assert -1e-12 <= float(gap.value(*sums, smoothly=True)) <= exact + 1e-12
    sharp = replace(gap, softness=1e-5)
    assert float(sharp.value(*sums, smoothly=True)) == pytest.approx(exact, abs=1e-4)


@each_gap
@given(case=cases())
def test_one_group_alone_has_no_gap_and_no_gradient(gap: Gap, case: Case) -> None:
    case = of_two(case) if isinstance(gap, ParityGap) else case
    one = torch.ones_like(case.groups)
    leaf = case.logits.clone().requires_grad_()
    value = gap(leaf, case.target, groups=one)
    assert float(value.detach()) == pytest.approx(0.0, abs=1e-12)
    (gradient,) = torch.autograd.grad(value, leaf)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-12)
    assert gap.hard(case.logits, case.target, groups=one) == 0.0


@each_gap
@given(case=cases(), constant=st.integers(0, 4))
def test_a_constant_classifier_has_no_gap(gap: Gap, case: Case, constant: int) -> None:
    case = of_two(case) if isinstance(gap, ParityGap) else case
    logits = F.one_hot(torch.full_like(case.target, constant % case.k), case.k).double()
    assert gap.hard(logits, case.target, groups=case.groups) == pytest.approx(0.0, abs=1e-12)


@each_gap
def test_a_batch_of_nothing_has_no_gap(gap: Gap) -> None:
    nothing = torch.zeros(0, 2, requires_grad=True)
    none = torch.zeros(0, dtype=torch.long)
    value = gap(nothing, none, groups=none)
    assert float(value.detach()) == 0.0
    assert torch.autograd.grad(value, nothing, materialize_grads=True)[0].shape == (0, 2)


def test_a_class_of_one_group_alone_adds_nothing() -> None:
    """Cells (group, class): (0, 0) wrong in half, (1, 0) right; class 1 in group 0 alone, wrong."""
    logits = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 0.0]])
    target, groups = torch.tensor([0, 0, 0, 1]), torch.tensor([0, 0, 1, 0])
    assert OddsGap().hard(logits, target, groups=groups) == 0.5
    assert OddsGap(over_classes="max").hard(logits, target, groups=groups) == 0.5
    assert OpportunityGap().hard(logits, target, groups=groups) == 0.0
    assert OpportunityGap(positive=0).hard(logits, target, groups=groups) == 0.5
    # Predicted positive: one of three, none of one.
    assert ParityGap().hard(logits, target, groups=groups) == pytest.approx(1 / 3)


def test_the_effective_size_of_a_gap_falls_with_its_smallest_cells() -> None:
    even, uneven = (OddsGap().effective_size(t) for t in ([[50, 50], [50, 50]], [[97, 97], [3, 3]]))
    assert even == pytest.approx(12.5)  # four risks of 50 examples each add their variances
    assert uneven == pytest.approx(1 / (2 / 97 + 2 / 3))
    assert OddsGap().effective_size([[50, 50], [50, 0]]) == pytest.approx(50 / 3)


# Under a bound --------------------------------------------------------------------------------


@given(
    case=cases(),
    bound=st.floats(0.0, 1.0),
    multiplier=st.sampled_from([0.0, 0.4, 3.0]),
    rho=st.floats(0.1, 5.0),
)
def test_a_bound_is_the_augmented_lagrangian(
    case: Case, bound: float, multiplier: float, rho: float
) -> None:
    main, gap = WorstError(softness=0.2), OddsGap(softness=0.2)
    objective = BoundedGap(
        main=main, gap=gap, bound=bound, multiplier=multiplier, rho=rho, surrogate=FIXED
    )
    arguments = {"groups": case.groups}
    L, G = (
        float(replace(part, surrogate=FIXED)(case.logits, case.target, **arguments))
        for part in (main, gap)
    )
    force = max(0.0, multiplier + rho * (G - bound))
    value = float(objective(case.logits, case.target, **arguments))
    assert value == pytest.approx(L + (force**2 - multiplier**2) / (2 * rho), abs=1e-9)
    L, G = (part.hard(case.logits, case.target, **arguments) for part in (main, gap))
    found = objective.hard(case.logits, case.target, **arguments)
    assert found == pytest.approx(L + max(0.0, G - bound), abs=1e-12)
    # Its 0-1 error moves the multiplier, which never falls below 0.
    wrong = (case.logits.argmax(dim=1) != case.target).double()
    sums = group_class_sums(wrong, case.target, case.groups, case.k)
    moved = objective.adapted(*sums)
    assert moved.multiplier == pytest.approx(max(0.0, multiplier + 0.2 * (G - bound)), abs=1e-12)
    assert replace(moved, multiplier=multiplier) == objective


@given(case=cases())
def test_a_bound_has_the_gradient_of_finite_differences(case: Case) -> None:
    objective = BoundedGap(
        gap=OddsGap(softness=0.2), bound=0.0, multiplier=0.3, rho=0.7, surrogate=FIXED
    )
    leaf = case.logits.clone().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda f: objective(f, case.target, groups=case.groups, sample_weight=case.weight), leaf
    )


UNEQUAL = torch.tensor([[2.0, 0.0], [0.0, 2.0], [2.0, 0.0], [2.0, 0.0]])  # class 1 of group 1 wrong
EQUAL = torch.tensor([[2.0, 0.0], [0.0, 2.0], [2.0, 0.0], [0.0, 2.0]])
SQUARE = {"target": torch.tensor([0, 1, 0, 1]), "groups": torch.tensor([0, 0, 1, 1])}


def test_the_multiplier_rises_while_the_bound_is_broken_and_falls_back() -> None:
    running = RunningRisks(as_objective("balanced_error where deo <= 0.1"), [[50, 50]] * 2)
    seen = []
    for logits in [UNEQUAL] * 6 + [EQUAL] * 60:
        running(logits, **SQUARE)
        running.end_step()
        assert isinstance(running.objective, BoundedGap)
        seen.append(running.objective.multiplier)
    rising = seen[:6]
    assert rising == sorted(rising)
    assert rising[0] > 0.1
    # Older batches fade, so that it still rises at first.
    highest = seen.index(max(seen))
    assert 5 < highest < 20
    assert seen[highest:] == sorted(seen[highest:], reverse=True)
    assert seen[-1] < 0.6 * max(seen)


def test_a_tuner_carries_the_multiplier_in_its_state() -> None:
    def tuner() -> LossTuner:
        loss = TunableCrossEntropy(GroupSpace([[50, 5], [40, 10]]))
        return LossTuner(loss, "balanced_error where deo <= 0.0", validation_counts=[[5, 5]] * 2)

    model = nn.Linear(2, 2)
    with torch.no_grad():
        model.weight.copy_(torch.eye(2))
        model.bias.zero_()
    batch = {"inputs": UNEQUAL, **SQUARE}
    whole, stopped = tuner(), tuner()
    for _ in range(3):
        whole.step(model, batch, batch)
        stopped.step(model, batch, batch)
    state = stopped.state_dict()["risks"]
    assert state["multiplier"] > 0
    resumed = tuner()
    resumed.load_state_dict(stopped.state_dict())
    after = [t.step(model, batch, batch) for t in (whole, resumed)]
    assert after[0] == after[1]
    multipliers = [t.state_dict()["risks"]["multiplier"] for t in (whole, resumed)]
    assert multipliers[0] == multipliers[1] > state["multiplier"]


def test_what_is_named_with_a_gap() -> None:
    blend = as_objective("0.7 * balanced_error + 0.3 * deo")
    assert blend == Blend(parts=((0.7, BalancedError()), (0.3, OddsGap())))
    assert blend.over == "class_and_group"
    assert not blend.linear
    bounded = as_objective("worst_class_error where demographic_parity_difference <= 5e-2")
    assert bounded == BoundedGap(main=WorstError(), gap=ParityGap(), bound=0.05)
    both = as_objective(
        "0.5 * balanced_error + 0.5 * cvar_error(0.4) where equalized_odds_difference<=0"
    )
    assert isinstance(both, BoundedGap)
    assert both.main == Blend(parts=((0.5, BalancedError()), (0.5, CVaRError(fraction=0.4))))
    assert both.gap == OddsGap(over_classes="max")
    assert both.bound == 0.0


@given(case=cases(), mix=st.floats(0.01, 0.99))
def test_a_blend_over_different_cells_adds_its_parts(case: Case, mix: float) -> None:
    """Classes and pairs of class and group; of two classes also the shares predicted positive."""
    case = of_two(case)
    parts: tuple[tuple[float, Objective], ...] = (
        (1.0 - mix, BalancedError()),
        (mix, OddsGap()),
        (0.5, ParityGap()),
        (0.5, WorstError(over="group")),
    )
    blend = Blend(parts=parts, surrogate=FIXED)
    arguments = {"groups": case.groups}
    expected = sum(
        w * float(replace(p, surrogate=FIXED)(case.logits, case.target, **arguments))
        for w, p in parts
    )
    assert float(blend(case.logits, case.target, **arguments)) == pytest.approx(expected, abs=1e-9)
    hard = sum(w * p.hard(case.logits, case.target, **arguments) for w, p in parts)
    assert blend.hard(case.logits, case.target, **arguments) == pytest.approx(hard, abs=1e-9)


@pytest.mark.parametrize(
    "objective",
    [
        *GAPS,
        OddsGap(),
        "0.7 * deo",
        "0.5 * deo + 0.5 * demographic_parity_difference",
        Blend(parts=((1.0, Blend(parts=((1.0, OddsGap()),))),)),
        "deo where demographic_parity_difference <= 0.1",
        BoundedGap(main=OddsGap(), bound=0.1),
    ],
    ids=str,
)
def test_gaps_alone_are_refused(objective: str | Objective) -> None:
    with pytest.raises(InputError, match=r"predicts one class .* Blend it, .* or bound it, "):
        as_objective(objective)


@pytest.mark.parametrize("classes", [3, 5])
def test_parity_is_for_two_classes(classes: int) -> None:
    with pytest.raises(InputError, match=rf"two classes; there are {classes}. .* take OddsGap"):
        ParityGap()(torch.zeros(2, classes), torch.tensor([0, 1]), groups=torch.tensor([0, 1]))


@pytest.mark.parametrize("gap", [*GAPS.values(), BoundedGap(bound=0.1)], ids=str)
def test_gaps_need_groups(gap: Objective) -> None:
    with pytest.raises(InputError, match="needs groups="):
        gap(torch.zeros(1, 2), torch.tensor([0]))


# Names, cells, refusals -----------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMED)
def test_names_give_objectives(name: str) -> None:
    assert as_objective(name) is NAMED[name]
    assert as_objective(NAMED[name]) is NAMED[name]


def test_names_mean_what_they_say() -> None:
    kinds = {n: (type(o).__name__, o.over) for n, o in NAMED.items()}
    assert kinds == {
        "balanced_error": ("BalancedError", "class"),
        "worst_class_error": ("WorstError", "class"),
        "cvar_error": ("CVaRError", "class"),
        "quantile_error": ("QuantileError", "class"),
        "balanced_error_and_deviation": ("Blend", "class"),
        "group_balanced_error": ("BalancedError", "class_and_group"),
        "worst_group_error": ("WorstError", "group"),
        "worst_class_and_group_error": ("WorstError", "class_and_group"),
    }


def test_cells_are_numbered_group_by_group() -> None:
    target, groups = torch.tensor([0, 1, 2]), torch.tensor([1, 0, 1])
    _, mass = group_class_sums(torch.ones(3), target, groups, 3)
    assert torch.nonzero(cells_of(mass, "class_and_group")).flatten().tolist() == [1, 3, 5]
    assert cells_of(mass, "group").tolist() == [1, 2]
    assert cells_of(mass, "class").tolist() == [1, 1, 1]


def test_weighted_error_over_groups_allows_a_batch_without_the_last() -> None:
    objective = WeightedError(over="group", weights=(1.0, 3.0))
    logits, target = torch.tensor([[1.0, 0.0]]), torch.tensor([1])
    assert objective.hard(logits, target, groups=torch.tensor([0])) == 1.0


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: BalancedError(over="classes"),
            "over must be one of class, class_and_group, group",
        ),
        (lambda: SmoothError(0.0), "temperature must be a finite number above 0; got 0.0"),
        (lambda: SmoothError(relative=0.0), "relative must be a finite number above 0; got 0.0"),
        (lambda: WorstError(softness=0.0), "softness must be a finite number above 0; got 0.0"),
        (lambda: WeightedError(weights=(1.0, -1.0)), "one non-negative number per cell"),
        (lambda: WeightedError(weights=(0.0, 0.0)), "one non-negative number per cell, not all 0"),
        (lambda: WeightedError(weights=(1.0, math.nan)), "one non-negative number per cell"),
        (lambda: CVaRError(fraction=0.0), r"fraction must lie in \(0, 1\]; got 0.0"),
        (lambda: CVaRError(fraction=1.1), r"fraction must lie in \(0, 1\]; got 1.1"),
        (lambda: QuantileError(q=-0.1), r"q must lie in \[0, 1\]; got -0.1"),
        (lambda: QuantileError(q="0.5"), "q must be a number; got '0.5'"),  # type: ignore[arg-type]
        (lambda: QuantileError(softness=0.0), "softness must be a finite number above 0; got 0"),
        (lambda: Blend(parts=()), "A blend needs at least one part"),
        (
            lambda: Blend(parts=((0.0, BalancedError()),)),
            "the weight of a part must be a finite number above 0; got 0.0",
        ),
        (
            lambda: Blend(parts=((1.0, "balanced_error"),)),  # type: ignore[arg-type]
            "A blend's parts are objectives; got str",
        ),
        (lambda: Blend.of(1.0, BalancedError(), CVaRError()), "mix must lie strictly between"),
        (
            lambda: as_objective("accuracy"),
            "objective must be one of balanced_error, .* 'accuracy'",
        ),
        (lambda: OddsGap(softness=0.0), "softness must be a finite number above 0; got 0.0"),
        (lambda: OddsGap(over_classes="mean"), "over_classes must be one of max, sum; got 'mean'"),  # type: ignore[arg-type]
        (lambda: OpportunityGap(positive=-2), "positive must be at least -1; got -2"),
        (
            lambda: OpportunityGap(positive=2).hard(
                torch.zeros(1, 2), torch.tensor([0]), groups=torch.tensor([0])
            ),
            "positive must be a class, 0 to 1; got 2",
        ),
        (lambda: BoundedGap(bound=-0.1), "bound must be a finite number of at least 0; got -0.1"),
        (lambda: BoundedGap(bound=math.nan), "bound must be a finite number .* got nan"),
        (lambda: BoundedGap(bound=0.1, multiplier=-1.0), "multiplier must not be negative; got -1"),
        (lambda: BoundedGap(bound=0.1, rho=0.0), "rho must be a finite number above 0; got 0.0"),
        (lambda: BoundedGap(bound=0.1, rate=0.0), "rate must be a finite number above 0; got 0.0"),
        (
            lambda: BoundedGap(main="balanced_error", bound=0.1),  # type: ignore[arg-type]
            "main must be an objective over errors, without a bound of its own; got 'balanced_error'",
        ),
        (
            lambda: as_objective("balanced_error where deo <= 0.1 where deo <= 0.2"),
            "main must be an objective over errors, without a bound of its own",
        ),
        (
            lambda: as_objective("0.5 * cvar_error + 0.5 * balanced_error where deo <= 0.1 + 1"),
            "objective must be one of",
        ),
        (
            lambda: Blend.of(0.5, BoundedGap(bound=0.1), CVaRError()),
            "A bound holds for a whole objective, not for a part of a blend",
        ),
        (
            lambda: as_objective("balanced_error where deo <= little"),
            "A bound is written as: objective where gap <= number; got 'balanced_error where",
        ),
        (
            lambda: as_objective("balanced_error where cvar_error <= 0.1"),
            "the gap after where must be one of .*deo.* got 'cvar_error'",
        ),
        (lambda: as_objective("balanced_error where deo <= -1"), "bound must be .* got -1.0"),
        (lambda: as_objective("fast * balanced_error"), r"written as weight \* name \+ weight"),
        (lambda: as_objective("0.5 * balanced_error + deo"), r"written as weight \* name"),
        (
            lambda: as_objective("0.5 * accuracy + 0.5 * deo"),
            "objective must be one of .*'accuracy'",
        ),
        (
            lambda: as_objective("-1 * deo + 1 * balanced_error"),
            "weight of a part must be a finite number above 0; got -1.0",
        ),
        (lambda: as_objective(3), "objective must be a name or an Objective; got int"),  # type: ignore[arg-type]
    ],
)
def test_refused(build: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        build()


@pytest.mark.parametrize("over", ["group", "class_and_group"])
def test_groups_are_needed_where_cells_are_groups(over: Over) -> None:
    with pytest.raises(InputError, match=f"over '{over}' needs groups="):
        BalancedError(over=over)(torch.zeros(1, 2), torch.zeros(1, dtype=torch.long))


@pytest.mark.parametrize("weights", [(1.0, 1.0), (1.0,) * 4])
def test_weights_must_fit_the_classes(weights: tuple[float, ...]) -> None:
    objective = WeightedError(weights=weights)
    with pytest.raises(InputError, match=f"has {len(weights)} weights for 3 cells"):
        objective(torch.zeros(1, 3), torch.zeros(1, dtype=torch.long))
    with pytest.raises(InputError, match=f"has {len(weights)} weights for 3 cells"):
        objective.effective_size([3, 2, 1])
