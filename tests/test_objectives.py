"""Objectives against slow numpy, on batches that hypothesis draws."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from autobalance.checks import InputError
from autobalance.objectives import (
    NAMED,
    BalancedError,
    CrossEntropyRisk,
    Objective,
    Over,
    SmoothError,
    WeightedError,
    WorstError,
    as_objective,
    cells_of,
    group_class_sums,
)

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
    ]


# Oracle: one example at a time ----------------------------------------------------------------


def margin(f: np.ndarray, y: int) -> float:
    return float(f[y] - max(f[j] for j in range(len(f)) if j != y))


def example_loss(objective: Objective, case: Case, i: int, *, hard: bool) -> float:
    f, y = case.logits[i].numpy(), int(case.target[i])
    if hard:
        return float(f.argmax() != y)
    if isinstance(objective.surrogate, SmoothError):
        T = objective.surrogate.temperature
        if T is None:
            margins = [margin(case.logits[j].numpy(), int(c)) for j, c in enumerate(case.target)]
            T = objective.surrogate.relative * np.mean(np.abs(margins))
        return 1 / (1 + math.exp(margin(f, y) / T))
    return float(np.log(np.exp(f - f[y]).sum()))


def oracle(objective: Objective, case: Case, *, hard: bool, weighted: bool = False) -> float:
    cells: dict[int, list[tuple[float, float]]] = {}
    for i in range(len(case.target)):
        y, g = int(case.target[i]), int(case.groups[i])
        cell = {"class": y, "group": g, "class_and_group": g * case.k + y}[objective.over]
        loss = example_loss(objective, case, i, hard=hard)
        cells.setdefault(cell, []).append((loss, float(case.weight[i]) if weighted else 1.0))
    risks = {c: sum(r * w for r, w in e) / sum(w for _, w in e) for c, e in cells.items()}
    values = np.array(list(risks.values()))
    if isinstance(objective, BalancedError):
        return float(values.mean())
    if isinstance(objective, WeightedError):
        omega = np.array([objective.weights[c] for c in risks])
        return float((omega * values).sum() / omega.sum())
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
@given(case=cases())
def test_gradient_equals_finite_differences(over: Over, case: Case) -> None:
    for objective in objectives(over, case.k, case.g):
        if objective.surrogate == SmoothError():
            continue  # its temperature is held fixed, which finite differences do not
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
def test_the_relative_temperature_follows_the_logits_and_is_held_fixed(
    case: Case, relative: float, factor: float
) -> None:
    margins = [margin(f.numpy(), int(y)) for f, y in zip(case.logits, case.target, strict=True)]
    leaf = case.logits.clone().requires_grad_()
    found = SmoothError(relative=relative)(leaf, case.target)
    fixed = SmoothError(temperature=relative * float(np.mean(np.abs(margins))))(leaf, case.target)
    torch.testing.assert_close(found, fixed, rtol=1e-12, atol=1e-14)
    gradients = [torch.autograd.grad(v.sum(), leaf)[0] for v in (found, fixed)]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-14)
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


# Effective size -------------------------------------------------------------------------------


def variance(objective: Objective, counts: np.ndarray) -> float:
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
    # One risk, not the mean of all: the harmonic mean of the cells' sizes.
    assert WorstError().effective_size(counts) == pytest.approx(len(n) / (1 / n).sum())
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
    assert WorstError().effective_size([50, 50, 50]) == pytest.approx(50.0)


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
        (
            lambda: as_objective("accuracy"),
            "objective must be one of balanced_error, .* 'accuracy'",
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
