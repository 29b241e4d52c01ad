"""Steps that would make a GPU idle: none in training, and in an upper step no more than it decides by."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import nn

from autobalance.augment.choice import as_augmentation
from autobalance.bilevel.execution import CHECK_EVERY, make_fabric
from autobalance.bilevel.loss_tuner import LossTuner
from autobalance.bilevel.lower_level import LowerLevel, TrainingOptions
from autobalance.data.array_data import ArrayData
from autobalance.hypergrad.solvers import (
    ConjugateGradient,
    Identity,
    Neumann,
    Nystrom,
    SingleLoop,
    Solver,
)
from autobalance.losses.modules import ParametricCrossEntropy
from autobalance.losses.published import FocalLoss
from autobalance.objectives.registry import as_objective
from autobalance.records.settings import Recipe
from autobalance.spaces.default_space import default_space
from autobalance.spaces.tunable_loss import TunableCrossEntropy
from waits import Waits

ON_A_CPU = {
    # asked of a CPU's tensors alone
    "_check_held: _local_scalar_dense": 2,
    "_check_rows: _local_scalar_dense": 9,
    # what a solver carries along, and Adam's count of steps, lie on the CPU
    "SingleLoop.solve: _local_scalar_dense": 2,
    "adaptive_preconditioner: _local_scalar_dense": 6,
}


@pytest.fixture(autouse=True)
def _as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "autobalance.bilevel.lower_level.check_interval", lambda device: CHECK_EVERY
    )


def images(groups: bool) -> ArrayData:
    generator = torch.Generator().manual_seed(0)
    target = torch.arange(90) % 3
    inputs = 0.6 * torch.rand(90, 3, 8, 8, generator=generator) + 0.1 * target.view(-1, 1, 1, 1)
    return ArrayData.of(inputs, target, groups=torch.arange(90) // 3 % 2 if groups else None)


def network() -> nn.Module:
    layers = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.1)
    return nn.Sequential(*layers, nn.Linear(144, 3))


def tunable(data: ArrayData, objective: str = "balanced_error") -> TunableCrossEntropy:
    return TunableCrossEntropy(default_space(data.counts(), as_objective(objective)))


def lower_of(data: ArrayData, optimizer: Any = "sgd", augment: Any = None) -> LowerLevel:
    recipe = Recipe(epochs=1, min_steps=60, batch_size=32, optimizer=optimizer)
    return LowerLevel(network, data, TrainingOptions(recipe), make_fabric("cpu"), augment=augment)


def seen(waits: Waits) -> Counter[str]:
    return Counter({k: n for k, n in waits.places.items() if n > ON_A_CPU.get(k, 0)})


def upper_waits(
    objective: str,
    solver: Solver,
    groups: bool,
    steps: int,
    augment: Any = None,
    counts: bool = True,
    optimizer: Any = "sgd",
) -> Counter[str]:
    """Of the last of some upper steps in a row."""
    data = images(groups)
    loss = tunable(data, objective)
    policy = as_augmentation(augment, data.inputs, data.counts(), torch.device("cpu"))
    lower = lower_of(data, optimizer, policy)
    tuner = LossTuner(
        loss,
        objective,
        optimizer=lower.optimizer,
        solver=solver,
        validation_counts=data.counts() if counts else None,
        augment=policy,
    )
    waits = [Waits() for _ in range(steps)]
    for each in waits:
        lower.step(loss)
        held = data.batch(torch.arange(0, 90, 4))
        with each:
            tuner.step(lower.network, lower.recent[-1], held)
    return seen(waits[-1])


@pytest.mark.parametrize("augment", [None, "personalised"])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("groups", [False, True])
def test_a_training_step_waits_for_nothing(groups: bool, optimizer: str, augment: Any) -> None:
    data = images(groups)
    fixed = ParametricCrossEntropy.logit_adjusted(data.counts().reshape(-1, 3).sum(axis=0))
    for loss in (tunable(data), fixed, FocalLoss()):
        policy = as_augmentation(augment, data.inputs, data.counts(), torch.device("cpu"))
        lower = lower_of(data, optimizer, policy)
        lower.step(loss)  # the first looks at the images' range
        with Waits() as waits:
            lower.step(loss)
        assert seen(waits) == {}


HYPERGRADIENT = {
    "_TrainingSide.solve: tolist": 1,
    "LossTuner.update: _local_scalar_dense": 1,
}
"""What was found, and the norm of the step, which are told to the user as numbers."""
NORMS = {"SingleLoop.solve: tolist": 1}
"""Whether to search the length anew."""
GROUPS = {"group_class_sums: tolist": 1}
"""How many rows the table of the surrogate has; that of the 0-1 error has as many."""


@pytest.mark.parametrize(
    ("objective", "groups", "expected"),
    [
        ("balanced_error", False, {}),
        ("worst_class_error", False, {"RunningRisks.__call__: nonzero": 1, "_of_present: nonzero": 2}),
        ("cvar_error(0.3)", False, {"RunningRisks.__call__: nonzero": 1, "_of_present: nonzero": 3}),
        ("quantile_error", False, {"RunningRisks.__call__: nonzero": 1, "_of_present: nonzero": 3}),
        (
            "balanced_error where deo <= 0.05",
            True,
            {
                "RunningRisks.__call__: nonzero": 1,
                "BoundedGap.adapted: _local_scalar_dense": 1,  # its multiplier is a number
                **GROUPS,
            },
        ),
    ],
)  # fmt: skip
def test_what_an_upper_step_waits_for(
    objective: str, groups: bool, expected: dict[str, int]
) -> None:
    found = upper_waits(objective, SingleLoop(), groups, steps=3)
    assert found == {**HYPERGRADIENT, **NORMS, **expected}


@pytest.mark.parametrize(
    ("solver", "expected"),
    [
        (Identity(), {}),
        (SingleLoop(line_search_every=1), {"SingleLoop.solve: tolist": 2}),
        # The norm of b, then a curvature and a residual for each product.
        (
            ConjugateGradient(iterations=5, tolerance=0.0),
            {
                "ConjugateGradient.solve: tolist": 1,
                "ConjugateGradient.solve: _local_scalar_dense": 10,
            },
        ),
        # The norm of b, one for each product and one for each halving of the step.
        (Neumann(terms=5, power_iterations=2), {"Neumann.solve: _local_scalar_dense": 8}),
        (
            Nystrom(),
            {"Nystrom.solve: _local_scalar_dense": 1, "Nystrom.solve: cpu": 1},
        ),
    ],
    ids=lambda case: type(case).__name__ if isinstance(case, Solver) else "",
)
def test_what_a_solver_waits_for(solver: Solver, expected: dict[str, int]) -> None:
    assert upper_waits("balanced_error", solver, False, steps=2) == {**HYPERGRADIENT, **expected}


def test_what_an_augmentation_adds() -> None:
    """The length of its difference."""
    expected = {**HYPERGRADIENT, **NORMS, "TrainingSystem.mixed_by_inputs: _local_scalar_dense": 1}
    found = upper_waits("balanced_error", SingleLoop(), False, steps=3, augment="personalised")
    assert found == expected


def test_what_is_read_of_a_preconditioner_and_of_a_batch_that_stands_for_the_whole_set() -> None:
    solver = SingleLoop(preconditioned=True)
    found = upper_waits("balanced_error", solver, False, steps=3, counts=False, optimizer="adamw")
    size = {"_effective_counts.<locals>.<genexpr>: cpu": 1, "_effective_counts: bincount": 1}
    assert found == {**HYPERGRADIENT, **NORMS, **size}  # counted on the CPU


def test_the_count_sees_what_makes_a_gpu_wait() -> None:
    values, index = torch.arange(3.0), torch.tensor([0, 2])
    with Waits() as waits:
        values[values > 0].sum().item()
        bool(values[0] > 0)
        values[index].tolist()
        values.cpu().numpy()
        torch.tensor(1.0, device="cpu")
        torch.tensor(1.0)
        index.unique()
    assert sum(waits.places.values()) == 8
    assert all(place.startswith("elsewhere: ") for place in waits.places)
