"""The hypergradient through an augmentation: against double backward, and against retraining."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from autobalance._validation import InputError
from autobalance.augment.images import Flip
from autobalance.augment.policy import AugmentationPolicy
from autobalance.augment.tensors import GaussianNoise, Mixup, SphericalNoise
from autobalance.data.batches import Batch
from autobalance.functional.model import flatten, unflatten
from autobalance.functional.module_state import preserve_module_state
from autobalance.hypergrad import curvature
from autobalance.hypergrad.curvature import TrainingSystem
from autobalance.hypergrad.implicit import advantage, hypergradient
from autobalance.hypergrad.solvers import Exact, Identity, SingleLoop, Solver
from autobalance.objectives.aggregates import BalancedError
from autobalance.objectives.surrogates import SmoothError
from autobalance.spaces.hierarchical_space import HierarchicalSpace
from autobalance.spaces.tunable_loss import TunableCrossEntropy
from helpers import (
    COUNTS,
    class_loss,
    images,
    leaves,
    network,
    scatter,
    training_gradient,
    validation_gradient,
    vector,
)
from hypergradient_oracle import DECAY, SMOOTH, retrained, toy

SMALL = 1e-4
OPERATIONS = (GaussianNoise(0.5), Mixup(0.4), SphericalNoise(0.3))


class Brightened(nn.Module):
    """x times one learned factor per class."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.linspace(0.5, 1.5, len(COUNTS), dtype=torch.float64))

    def forward(self, inputs: Tensor, target: Tensor, groups: Tensor | None) -> Tensor:
        return inputs * self.factor[target].view(-1, 1, 1, 1)


def policy(counts: Any, seed: int = 3) -> AugmentationPolicy:
    made = AugmentationPolicy(counts, OPERATIONS, gate="relaxed").double()
    scatter(made, seed)
    return made


def by_double_backward(model: nn.Module, augment: Any, batches: list[Batch], q: Tensor) -> Tensor:
    loss = class_loss()
    total: Any = 0
    for batch in batches:
        seen = Batch(augment(batch.inputs, batch.target, None), batch.target)
        total = total + training_gradient(model, loss, seen) @ q
    return flatten(torch.autograd.grad(total / len(batches), list(augment.parameters())))


@pytest.mark.parametrize("name", ["mlp", "batch_norm", "dropout", "frozen", "tied"])
def test_the_mixed_product_equals_double_backward(name: str, monkeypatch: Any) -> None:
    monkeypatch.setattr(curvature, "LOGIT_STEP", SMALL)
    model, augment, loss = network(name), Brightened(), class_loss()
    # Of dropout's masks the oracle draws one, for every batch the same.
    batches = [images(10), images(6, seed=7)][: 1 if name == "dropout" else 2]
    q = vector(sum(p.numel() for p in leaves(model)))
    expected = by_double_backward(model, augment, batches, q)
    inputs = [augment(b.inputs, b.target, None) for b in batches]
    given = [
        (x.detach(), lambda f, b=b: loss.at(loss.space(), f, b.target))
        for x, b in zip(inputs, batches, strict=True)
    ]
    found = TrainingSystem(model, given, [], 0.0)
    with preserve_module_state(model):
        pulls = found.mixed_by_inputs(q, found.tangent(q))
    gradient = flatten(torch.autograd.grad(inputs, list(augment.parameters()), pulls))
    assert float((gradient - expected).norm() / expected.norm()) < 1e-5


@pytest.mark.parametrize("solver", [Identity(), SingleLoop()], ids=["identity", "single-loop"])
def test_the_default_step_gives_about_the_same_direction(solver: Solver) -> None:
    model, augment, loss = network("mlp"), Brightened(), class_loss()
    train, held = images(60), images(15, seed=5)
    found = hypergradient(model, loss, BalancedError(), train, held, solver=solver, augment=augment)
    ours = found.gradients[-1]
    expected = -by_double_backward(model, augment, [train], found.solution.direction)
    assert float(ours @ expected / ours.norm() / expected.norm()) > 0.98
    assert 0.6 < float(ours.norm() / expected.norm()) < 1.5


def test_equals_finite_differences_of_retraining(monkeypatch: Any) -> None:
    """On a strongly convex head: all draws kept, each free parameter of the policy moved."""
    monkeypatch.setattr(curvature, "LOGIT_STEP", SMALL)
    train, held, start = toy(False)
    counts = torch.bincount(train.target).tolist()
    loss = TunableCrossEntropy(HierarchicalSpace(counts).double())
    augment = policy(counts)

    def seen(by: AugmentationPolicy) -> Batch:
        torch.manual_seed(8)
        with torch.no_grad():
            return Batch(by(train.inputs, train.target), train.target)

    def value(step: Tensor) -> float:
        moved = copy.deepcopy(augment)
        free = list(moved.parameters())
        with torch.no_grad():
            for p, part in zip(free, unflatten(step, free), strict=True):
                p += part
        logits = retrained(loss, seen(moved), start)(held.inputs).detach()
        return float(SMOOTH(logits, held.target))

    size, h = sum(p.numel() for p in augment.parameters()), 1e-4
    unit = h * torch.eye(size, dtype=torch.float64)
    expected = torch.tensor([(value(e) - value(-e)) / (2 * h) for e in unit], dtype=torch.float64)
    model = retrained(loss, seen(augment), start)
    torch.manual_seed(8)
    found = hypergradient(
        model, loss, SMOOTH, train, held, solver=Exact(), weight_decay=DECAY, augment=augment
    )
    strengths = flatten(found.gradients[-len(list(augment.parameters())) :])
    assert float(expected.norm()) > 1e-3
    assert float((strengths - expected).norm() / expected.norm()) < 1e-3


def test_hard_gates_have_the_derivative_of_the_mean_over_draws() -> None:
    """Without BatchNorm the slope is a sum over examples, each with its picture or the mirrored one."""
    model, loss, batch = network("mlp"), class_loss(), images(40)
    q = vector(sum(p.numel() for p in leaves(model)))
    augment = AugmentationPolicy(COUNTS, [Flip()], gate="hard", value_range=(-9, 9)).double()
    scatter(augment)

    def slopes(inputs: Tensor) -> Tensor:
        given = TrainingSystem(
            model, [(inputs, lambda f: loss.at(loss.space(), f, batch.target))], [], 0.0
        )
        with preserve_module_state(model):
            return given.slopes(given.tangent(q))[0]

    change = slopes(batch.inputs.flip(-1)) - slopes(batch.inputs)
    chance = augment.tables()[0][batch.target, 0]
    expected = torch.autograd.grad(chance @ change, list(augment.parameters()), allow_unused=True)
    torch.manual_seed(0)
    draws: dict[int, list[Tensor]] = {}
    for _ in range(2000):
        seen, log_probability = augment.draw_batch(batch.inputs, batch.target)
        assert log_probability is not None
        weights = advantage(slopes(seen), batch.target, len(COUNTS))
        found = torch.autograd.grad(
            log_probability, list(augment.parameters()), weights, allow_unused=True
        )
        for i, gradient in enumerate(found):
            if gradient is not None:
                draws.setdefault(i, []).append(gradient)
    assert draws
    for i, gradients in draws.items():
        drawn = torch.stack(gradients)
        error = drawn.std(dim=0) / len(drawn) ** 0.5
        assert ((drawn.mean(dim=0) - expected[i]).abs() < 4 * error + 1e-12).all()
        # The test can tell: the derivative is many errors from 0, or from its opposite.
        assert float((expected[i].abs() / error.clamp(min=1e-12)).max()) > 10


def test_the_loss_has_the_gradient_that_it_has_on_the_augmented_batch() -> None:
    """One solve serves both."""
    model, augment, loss = network("mlp"), Brightened(), class_loss()
    train, held = images(20), images(15, seed=5)
    seen = Batch(
        augment(train.inputs, train.target, None).detach(),
        train.target,
        train.groups,
        train.sample_weight,
    )
    common: Any = {"solver": SingleLoop(), "weight_decay": DECAY}
    both = hypergradient(model, loss, SMOOTH, train, held, augment=augment, **common)
    alone = hypergradient(model, loss, SMOOTH, seen, held, **common)
    for ours, theirs in zip(both.gradients, alone.gradients, strict=False):
        assert torch.equal(ours, theirs)
    assert len(both.gradients) == len(alone.gradients) + 1


def test_a_fixed_augmentation_is_seen_and_not_differentiated_by() -> None:
    model, loss = network("mlp"), class_loss()
    augment = Brightened().requires_grad_(False)
    train, held = images(20), images(15, seed=5)
    common: Any = {"solver": SingleLoop(), "weight_decay": DECAY}
    with_it = hypergradient(model, loss, SMOOTH, train, held, augment=augment, **common)
    without = hypergradient(model, loss, SMOOTH, train, held, **common)
    assert len(with_it.gradients) == len(without.gradients)
    assert not torch.equal(with_it.gradients[0], without.gradients[0])


def test_everything_comes_back_bit_identical() -> None:
    model, loss = network("dropout"), class_loss()
    augment = policy(COUNTS)
    flat = images(10)
    train = Batch(flat.inputs.flatten(1), flat.target)
    before = copy.deepcopy((model.state_dict(), augment.state_dict())), torch.get_rng_state()
    held = images(15, seed=5)
    found = hypergradient(model, loss, SMOOTH, train, held, solver=SingleLoop(), augment=augment)
    assert found.finite
    after = (model.state_dict(), augment.state_dict()), torch.get_rng_state()
    for ours, theirs in zip(after[0], before[0], strict=True):
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert torch.equal(after[1], before[1])
    assert all(p.grad is None for p in [*model.parameters(), *augment.parameters()])


def test_where_nothing_moves_the_augmentation_has_no_gradient() -> None:
    model, loss = network("mlp"), class_loss()
    train, held = images(10), images(15, seed=5)
    with torch.no_grad():
        model[-1].weight.zero_()  # type: ignore[index]
        model[-1].bias.copy_(torch.tensor([1e4, 0.0, 0.0, 0.0]))  # type: ignore[index]
    objective = BalancedError(surrogate=SmoothError(temperature=1.0))
    assert float(validation_gradient(model, objective, held).norm()) == 0.0
    found = hypergradient(
        model, loss, objective, train, held, solver=Identity(), augment=Brightened()
    )
    assert float(found.gradients[-1].norm()) == 0.0


def test_inputs_that_are_no_tensor_are_refused() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network("mlp")

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x)

    batch = images(10)
    train = Batch({"x": batch.inputs}, batch.target)
    with pytest.raises(InputError, match="one tensor"):
        hypergradient(
            Named(), class_loss(), SMOOTH, train, train, solver=Identity(), augment=Brightened()
        )
