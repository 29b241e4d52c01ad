"""What holds with thousands of classes: memory of the loss and of an upper step, and no K x K."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from autobalance.bilevel import candidate_selection
from autobalance.bilevel.candidate_selection import compare
from autobalance.data.index_streams import BalancedBatches
from autobalance.data.splits import members_by_cell, stratified_folds
from autobalance.losses.modules import ParametricCrossEntropy
from autobalance.objectives.aggregates import WeightedError
from autobalance.objectives.registry import NAMED

K = 8142  # iNaturalist 2018's
BENCHMARKS = Path(__file__).parents[1]


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The benchmark's losses and steps, with a head small enough to test."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import large_classes

    monkeypatch.setattr(large_classes, "WIDTH", 16)
    monkeypatch.setattr(large_classes, "BATCH", 64)
    return large_classes


class Tensors(TorchDispatchMode):
    """How many operations there are, and numbers in what they return: at most, and in all."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = self.numbers = self.operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        self.operations += 1
        sizes = [t.numel() for t in tree_leaves(found) if isinstance(t, Tensor)]
        self.numbers += sum(sizes)
        self.largest = max([self.largest, *sizes])
        return found


def test_training_keeps_one_table_of_logits_size(large: Any) -> None:
    """The gradient; torch's own loss keeps three."""
    from measuring import peak_bytes

    actions = large.loss_actions(K, 256)
    table = 4 * 256 * K
    for name in large.CASES:
        actions[name]()
        assert peak_bytes(actions[name]) < 1.25 * table, name
    assert peak_bytes(actions["torch"]) > 2.9 * table
    assert peak_bytes(actions["l, plain form"]) > 2.9 * table  # the count sees what is there


@pytest.mark.parametrize("objective", [*NAMED, "weighted"])
def test_objectives_make_nothing_of_classes_squared(objective: str) -> None:
    goal = NAMED.get(objective) or WeightedError(weights=tuple(range(1, K + 1)))
    generator = torch.Generator().manual_seed(0)
    n, groups = 32, 3
    logits = torch.randn(n, K, generator=generator).requires_grad_()
    target = torch.randint(K, (n,), generator=generator)
    membership = torch.arange(n) % groups
    with Tensors() as seen:
        torch.autograd.grad(goal(logits, target, groups=membership), logits)
        goal.hard(logits, target, groups=membership)
    assert seen.largest <= n * K
    assert seen.operations < 300


@pytest.mark.parametrize(
    ("space", "objective"),
    [
        ("HierarchicalSpace", "balanced_error"),
        ("HierarchicalSpace", "worst_class_error"),
        ("HierarchicalSpace, w, l and delta", "balanced_error"),
        ("ClassSpace", "quantile_error"),
        ("ClusterSpace of 40", "cvar_error"),
    ],
)
def test_an_upper_step_is_bounded_by_logits_and_weights(
    large: Any, space: str, objective: str
) -> None:
    """Nothing of K x K; at most 11 tables of the logits' size and 8 of the weights'."""
    from measuring import peak_bytes

    steps = large.Steps(K, large.spaces(K)[space], objective)
    logits, weights = large.BATCH * K, (large.WIDTH + 1) * K
    with Tensors() as seen:
        steps.upper()
    assert seen.largest <= logits
    assert peak_bytes(steps.upper) < 4 * (11 * logits + 8 * weights)


def test_an_upper_step_makes_as_many_operations_at_any_number_of_classes(large: Any) -> None:
    counted = []
    for classes in (50, 500):
        steps = large.Steps(classes, large.spaces(classes)["HierarchicalSpace"], "cvar_error")
        with Tensors() as seen:
            steps.upper()
        counted.append(seen.operations)
    assert counted[0] == counted[1]


# Once per search ------------------------------------------------------------------------------


def test_members_of_every_cell_in_order() -> None:
    cells = torch.tensor([3, 1, 3, 0, 1, 3])
    assert [m.tolist() for m in members_by_cell(cells)] == [[3], [1, 4], [0, 2, 5]]
    expected = [torch.nonzero(cells == c).squeeze(1) for c in torch.unique(cells)]
    assert all(torch.equal(a, b) for a, b in zip(members_by_cell(cells), expected, strict=True))


def test_many_classes_are_split_and_drawn_without_a_pass_for_each() -> None:
    target = torch.arange(4 * K) % K
    with Tensors() as seen:
        ((train, held),) = stratified_folds(target, 0.25, 1, torch.Generator().manual_seed(0))
        stream = BalancedBatches(target[held], 128, torch.Generator().manual_seed(0))
    assert len(held) == K
    assert len(train) == 3 * K
    assert seen.numbers < 100 * len(
        target
    )  # a comparison with each class would make 8,142 times it
    drawn = torch.cat([target[held][next(stream)] for _ in range(K // 128)])
    assert len(drawn.unique()) == len(drawn)


@pytest.mark.parametrize(("classes", "draws"), [(1000, 2000), (K, 500)])
def test_the_final_choice_does_not_hold_every_draw_at_once(
    classes: int, draws: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rates of two losses: of `draws` at once they would take 2 * draws * classes * 8 bytes, 65 MB of K."""
    monkeypatch.setattr(candidate_selection, "DRAWS", draws)
    cells = torch.arange(3 * classes) % classes
    generator = torch.Generator().manual_seed(0)
    names = ("designed", "start", "cross_entropy")
    outcomes = {name: [torch.rand(len(cells), generator=generator) < 0.3] for name in names}
    losses = {name: ParametricCrossEntropy.cross_entropy() for name in names}
    tracemalloc.start()
    found = compare(losses, outcomes, cells, (1, classes), NAMED["balanced_error"], 0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40e6
    assert [c.standard_error > 0 for c in found] == [True, False, True]
