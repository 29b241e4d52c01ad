"""Groups known for a part of the examples, or in validation only; and searches that collapse."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from autobalance._validation import InputError
from autobalance.bilevel.held_out import splits_of
from autobalance.bilevel.loss_tuner import DEFAULT_SOLVER
from autobalance.bilevel.network_search import search
from autobalance.bilevel.pareto_frontier import baselines, frontier
from autobalance.bilevel.result import SearchResult
from autobalance.bilevel.retraining import retrain
from autobalance.data.array_data import ArrayData
from autobalance.hypergrad.implicit import hypergradient
from autobalance.losses.modules import ParametricCrossEntropy
from autobalance.objectives.aggregates import BalancedError
from autobalance.objectives.base import group_class_sums
from autobalance.objectives.gaps import OddsGap
from autobalance.objectives.surrogates import SmoothError
from autobalance.records.search_record import HeldOut
from autobalance.records.settings import Recipe, SearchSettings
from autobalance.spaces.group_space import GroupSpace, WithUnknownGroup
from autobalance.spaces.hierarchical_space import HierarchicalSpace
from autobalance.spaces.tunable_loss import TunableCrossEntropy
from helpers import blobs, linear_factory

RECIPE = Recipe(epochs=1, min_steps=40, batch_size=32, lr=0.05)
SETTINGS = SearchSettings(every=5, warmup=0.1)
QUICK = {"recipe": RECIPE, "settings": SETTINGS, "device": "cpu"}
COUNTS = np.array([[30, 10, 2], [12, 4, 4]])


def partly_known() -> ArrayData:
    """Every third example's group is not known."""
    data = blobs(groups=True)
    assert data.groups is not None
    groups = torch.where(torch.arange(len(data)) % 3 == 0, -1, data.groups)
    return ArrayData.of(data.inputs, data.target, groups=groups, missing_groups="unknown")


# Unknown groups -------------------------------------------------------------------------------


def test_unknown_groups_are_asked_for() -> None:
    with pytest.raises(InputError, match=r'smallest is -1\. Where -1 .* missing_groups="unknown"'):
        ArrayData.of(np.ones((3, 2)), [0, 1, 1], groups=[0, -1, 1])
    with pytest.raises(InputError, match="smallest is -2"):
        ArrayData.of(np.ones((2, 2)), [0, 1], groups=[0, -2], missing_groups="unknown")
    with pytest.raises(InputError, match=r"No example's group is known\. Leave groups out"):
        ArrayData.of(np.ones((2, 2)), [0, 1], groups=[-1, -1], missing_groups="unknown")


def test_counts_are_of_known_groups() -> None:
    data = partly_known()
    assert data.groups is not None
    known = data.groups >= 0
    expected = np.zeros((2, 3), dtype=int)
    np.add.at(expected, (data.groups[known].numpy(), data.target[known].numpy()), 1)
    assert data.counts().tolist() == expected.tolist()
    assert data.unknown == int((~known).sum()) > 0
    assert torch.equal(data.with_known_groups().inputs, data.inputs[known])


def test_objectives_leave_unknown_groups_out() -> None:
    generator = torch.Generator().manual_seed(0)
    loss, target = torch.rand(20, generator=generator), torch.arange(20) % 3
    groups = torch.arange(20) % 4 - 1
    known = groups >= 0
    loss[0] = torch.inf  # of an unknown group
    weight = torch.rand(20, generator=generator)
    found = group_class_sums(loss, target, groups, 3, weight)
    expected = group_class_sums(loss[known], target[known], groups[known], 3, weight[known])
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    logits = torch.randn(20, 3, generator=generator)
    for kind in (BalancedError, OddsGap):
        objective = kind(surrogate=SmoothError(temperature=1.0))
        there = objective(logits[known], target[known], groups=groups[known])
        torch.testing.assert_close(objective(logits, target, groups=groups), there)


def moved(space: GroupSpace) -> GroupSpace:
    with torch.no_grad():
        for i, p in enumerate(space.parameters()):
            p += 0.2 * torch.randn(p.shape, generator=torch.Generator().manual_seed(i))
    return space


def test_their_row_is_the_mean_by_the_groups_sizes() -> None:
    learn = ("weight", "additive", "multiplicative")
    space = moved(GroupSpace(COUNTS, learn=learn))
    share = COUNTS.sum(axis=1) / COUNTS.sum()
    for own, with_row in zip(space(), WithUnknownGroup(space)(), strict=True):
        assert own is not None
        assert with_row is not None
        table = own.detach().numpy()
        expected = np.concatenate([table, [share @ table]])
        np.testing.assert_allclose(with_row.detach().numpy(), expected, rtol=1e-5)
    with pytest.raises(InputError, match=r"counts per group \(g, k\)"):
        WithUnknownGroup(HierarchicalSpace(COUNTS[0]))


def test_the_loss_of_an_unknown_group_is_that_of_its_row() -> None:
    space = moved(GroupSpace(COUNTS))
    loss = TunableCrossEntropy(WithUnknownGroup(space))
    rows = loss.frozen().additive
    assert rows is not None
    logits, target = (
        torch.randn(6, 3, generator=torch.Generator().manual_seed(0)),
        torch.arange(6) % 3,
    )
    found = loss(logits, target, groups=torch.full((6,), -1))
    expected = nn.functional.cross_entropy(logits + rows[2], target)
    torch.testing.assert_close(found, expected)


def test_the_hypergradient_sees_their_row() -> None:
    """It is that of rows spelt out: an unknown example as a third group, whose row is the mean."""
    space = moved(GroupSpace(COUNTS))
    train, held = partly_known(), blobs(seed=1, groups=True)
    model = nn.Linear(2, 3)
    common = {"solver": DEFAULT_SOLVER, "weight_decay": 0.01}

    def gradients(loss: TunableCrossEntropy, data: ArrayData) -> list[Tensor]:
        batches = (x.batch(torch.arange(len(x))) for x in (data, held))
        return hypergradient(model, loss, BalancedError(), *batches, **common).gradients

    assert train.groups is not None
    third = replace(train, groups=torch.where(train.groups < 0, 2, train.groups), num_groups=3)
    loss = TunableCrossEntropy(WithUnknownGroup(space))
    for a, b in zip(gradients(loss, train), gradients(loss, third), strict=True):
        torch.testing.assert_close(a, b)
    known = gradients(TunableCrossEntropy(space), train.with_known_groups())
    assert not torch.allclose(gradients(loss, train)[-1], known[-1])


@pytest.mark.parametrize("folds", [1, 3])
def test_unknown_groups_are_trained_on_and_never_held_out(folds: int) -> None:
    data = partly_known()
    for train, held in splits_of(data, None, SearchSettings(folds=folds), seed=0):
        assert train.unknown == data.unknown
        assert held.unknown == 0
        assert len(train) + len(held) == len(data)
        assert (held.counts() > 0).all()
    [(_, held)] = splits_of(data, data, SearchSettings(), seed=0)
    assert len(held) == len(data) - data.unknown


def test_a_search_with_unknown_groups() -> None:
    data = partly_known()
    result = search(
        linear_factory(), data, objective="0.7 * balanced_error + 0.3 * deo",
        **{**QUICK, "recipe": replace(RECIPE, absorb=0.5)},
    )  # fmt: skip
    assert result.loss.additive is not None
    assert result.loss.additive.shape == (3, 3)
    sizes = np.array(result.settings["class_counts"]).sum(axis=1)
    assert sizes[2] == data.unknown
    shares = torch.tensor(sizes[:2] / sizes[:2].sum(), dtype=torch.float32)
    torch.testing.assert_close(result.loss.additive[2], shares @ result.loss.additive[:2])
    assert np.shape(result.settings["validation_counts"]) == (2, 3)
    assert result.design["space"] == "GroupSpace"
    assert SearchResult.from_json(result.to_json()).to_dict() == result.to_dict()
    retrain(linear_factory(), data, result.loss, recipe=replace(RECIPE, absorb=0.5), device="cpu")
    plain = TunableCrossEntropy(GroupSpace(data.counts())).frozen()
    with pytest.raises(InputError, match=r"not known \(-1\), for whom this loss has no row"):
        retrain(linear_factory(), data, plain, recipe=RECIPE, device="cpu")


def test_a_space_without_rows_by_group_needs_none_for_unknown_ones() -> None:
    result = search(
        linear_factory(), partly_known(), objective="group_balanced_error",
        space=lambda counts: HierarchicalSpace(counts.sum(axis=0)), **QUICK,
    )  # fmt: skip
    assert result.loss.num_groups is None


def test_a_frontier_and_its_baselines_with_unknown_groups() -> None:
    data = partly_known()
    swept = frontier(linear_factory(), data, mixes=(0.0, 0.5), **QUICK)
    assert all(p.loss.num_groups == 3 for p in swept.points)
    assert len(baselines(linear_factory(), data, **QUICK)) == 3


# Groups in validation only --------------------------------------------------------------------


@pytest.mark.parametrize("objective", ["worst_group_error", "balanced_error where deo <= 0.1"])
def test_groups_in_validation_only(objective: str) -> None:
    data, validation = blobs(), blobs((30, 20, 10), seed=1, groups=True)
    result = search(linear_factory(), data, validation=validation, objective=objective, **QUICK)
    assert result.loss.num_groups is None
    assert np.shape(result.settings["validation_counts"]) == (2, 3)
    assert result.loss.to_dict() != result.start.to_dict()
    assert result.start.additive is not None
    if objective == "worst_group_error":  # over groups examples count alike
        assert not result.start.additive.any()


def test_the_objective_sees_the_groups_of_validation() -> None:
    data, validation = blobs(), blobs((60, 40, 30), seed=1, groups=True)
    goal = "0.5 * balanced_error + 0.5 * deo"
    first = search(linear_factory(), data, validation=validation, objective=goal, **QUICK)
    assert validation.groups is not None
    other = replace(validation, groups=(torch.arange(len(validation)) % 4 > 1).long())
    second = search(linear_factory(), data, validation=other, objective=goal, **QUICK)
    assert first.loss.to_dict() != second.loss.to_dict()


def test_a_frontier_with_groups_in_validation_only() -> None:
    data, validation = blobs(), blobs((60, 40, 30), seed=1, groups=True)
    swept = frontier(linear_factory(), data, validation=validation, mixes=(0.0, 0.5), **QUICK)
    assert all(p.loss.num_groups is None for p in swept.points)


# Collapse -------------------------------------------------------------------------------------


class Constant(nn.Module):
    """Predicts one class for everyone, and has weights to train all the same."""

    def __init__(self, only: int) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 3)
        self.register_buffer("offset", 1e3 * torch.eye(3)[only])

    def forward(self, x: Tensor) -> Tensor:
        return 1e-3 * self.linear(x) + self.get_buffer("offset")


def test_a_collapsed_search_is_told_of_and_recorded() -> None:
    with pytest.warns(
        UserWarning, match=r"predicts class 1 for every held-out .* Lower the recipe"
    ):
        result = search(lambda: Constant(1), blobs(groups=True), **QUICK)
    assert result.collapsed
    assert result.held_out is not None
    assert result.held_out.never_predicted == [0]  # class 2 has too few to say
    assert result.held_out.n == result.settings["validation_counts"]
    assert [record.predicted for record in result.history] == [1] * len(result.history)
    again = SearchResult.from_json(result.to_json())
    assert again.collapsed
    assert again.held_out == result.held_out


def test_a_sound_search_is_not() -> None:
    result = search(linear_factory(), blobs(groups=True), **QUICK)
    assert not result.collapsed
    held = result.held_out
    assert held is not None
    assert np.sum(held.predicted) == np.sum(held.n)
    assert all(w <= n for w, n in zip(np.ravel(held.wrong), np.ravel(held.n), strict=True))
    assert [max(r.predicted for r in result.history)] == [3]


@pytest.mark.parametrize(
    ("n", "predicted", "collapsed", "never"),
    [
        ([[20, 5]], [[25, 0]], False, []),  # too few to say
        ([[20, 5, 6]], [[31, 0, 0]], True, []),
        ([[20, 12]], [[32, 0]], True, [1]),
        ([[20, 0]], [[20, 0]], False, []),
        ([[9, 3], [5, 9]], [[12, 0], [0, 14]], False, []),
        ([[20, 30, 40]], [[0, 60, 30]], False, [0]),
    ],
)
def test_what_a_collapse_is(
    n: list[list[int]], predicted: list[list[int]], collapsed: bool, never: list[int]
) -> None:
    held = HeldOut(n, n, predicted)
    assert held.collapsed == collapsed
    assert held.never_predicted == never


def test_older_records_have_no_held_out_predictions() -> None:
    loss = ParametricCrossEntropy.cross_entropy()
    result = SearchResult(loss, loss, [], [], {}, {}, 0, {})
    record = result.to_dict()
    del record["held_out"]
    assert not SearchResult.from_dict(record).collapsed
