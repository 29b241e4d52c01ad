"""One upper step: along the hypergradient and the prior, leaving the network as it was."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from autobalance.checks import InputError
from autobalance.data.batches import Batch
from autobalance.hypergrad import ConjugateGradient, Exact, Hypergradient, Identity, hypergradient
from autobalance.hypergrad.system import flatten
from autobalance.objectives import BalancedError, WorstError
from autobalance.spaces import PARTS, ClassSpace, DesignSpace, HierarchicalSpace
from autobalance.tunable import TunableCrossEntropy
from autobalance.tuner import LossTuner, coupled_weight_decay
from helpers import COUNTS, GROUP_COUNTS, images, network, scatter


def space(**given: Any) -> DesignSpace:
    made = HierarchicalSpace(COUNTS, learn=PARTS, **given).double()
    scatter(made)
    return made


def tuner(design: DesignSpace | None = None, **given: Any) -> LossTuner:
    return LossTuner(TunableCrossEntropy(design or space()), **given)


def position(tuner: LossTuner) -> Tensor:
    return flatten([p.detach().clone() for p in tuner.loss.space.parameters()])


# The step -------------------------------------------------------------------------------------


def test_a_step_is_adam_along_hypergradient_plus_prior_over_effective_size() -> None:
    model, train, held = network("cnn"), images(10), images(15, seed=5)
    design = space(sigma_eps=0.5)
    counts = [30, 10, 6, 3]
    upper = tuner(design, solver=Exact(damping=0.1), lr=0.02, validation_counts=counts)
    expected = copy.deepcopy(design)
    by_hand = torch.optim.Adam(expected.parameters(), lr=0.02)
    for _ in range(3):
        loss = TunableCrossEntropy(expected)
        found = hypergradient(model, loss, BalancedError(), train, held, solver=Exact(damping=0.1))
        pull = expected.penalty() / BalancedError().effective_size(counts)
        pulls = torch.autograd.grad(pull, list(expected.parameters()))
        for p, g, q in zip(expected.parameters(), found.gradients, pulls, strict=True):
            p.grad = g + q
        norm = float(flatten([p.grad for p in expected.parameters() if p.grad is not None]).norm())
        by_hand.step()
        step = upper.step(model, train, held)
        torch.testing.assert_close(
            flatten(list(design.parameters())), flatten(list(expected.parameters())),
            rtol=1e-12, atol=1e-14,
        )  # fmt: skip
        assert step.norm == pytest.approx(norm, rel=1e-10)
        assert step.objective == found.objective
        assert step.hard_objective == found.hard_objective
        assert (step.reason, step.skipped) == ("exact", False)
        assert step.iterations == found.solution.iterations
    assert all(p.grad is None for p in design.parameters())


def test_small_steps_make_the_objective_after_retraining_smaller() -> None:
    """A linear head trained to its optimum between steps: the objective falls step by step."""
    generator = torch.Generator().manual_seed(0)
    target = torch.tensor([0] * 40 + [1] * 10)
    centre = torch.where(target == 0, -0.5, 0.5)[:, None]
    inputs = (centre + torch.randn(50, 2, generator=generator)).double()
    batch, model = Batch(inputs, target), nn.Linear(2, 2).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, weight_decay=0.1)
    loss = TunableCrossEntropy(HierarchicalSpace([40, 10], tau=0.0, sigma_tau=100.0).double())
    upper = LossTuner(loss, optimizer=optimizer, solver=Exact(), lr=0.05)
    values = []
    for _ in range(8):
        for _ in range(60):
            optimizer.zero_grad()
            loss(model(inputs), target).backward()
            optimizer.step()
        values.append(upper.step(model, batch, batch).objective)
    assert values == sorted(values, reverse=True)
    assert values[-1] < values[0] - 0.01


@pytest.mark.parametrize("name", ["batch_norm", "dropout"])
def test_the_network_and_the_random_state_are_left_as_they_were(name: str) -> None:
    model = network(name)
    before = copy.deepcopy(model.state_dict())
    modes, state = [m.training for m in model.modules()], torch.random.get_rng_state()
    upper = tuner()
    for _ in range(2):  # the second starts warm
        upper.step(model, images(10), images(15))
    torch.testing.assert_close(dict(model.state_dict()), dict(before), rtol=0, atol=0)
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(p.grad is None for p in model.parameters())


def test_the_loss_follows_at_once() -> None:
    model, batch, upper = network("mlp"), images(10), tuner()
    logits = model(batch.inputs).detach()
    before = upper.loss(logits, batch.target)
    upper.step(model, batch, images(15))
    after = upper.loss(logits, batch.target)
    assert not torch.equal(before, after)
    assert torch.equal(after, upper.loss.frozen()(logits, batch.target))


@pytest.mark.parametrize(
    "form",
    [
        lambda b: (b.inputs, b.target, b.groups),
        lambda b: [b.inputs, b.target, b.groups],
        lambda b: {"inputs": b.inputs, "target": b.target, "groups": b.groups},
    ],
    ids=["tuple", "list", "mapping"],
)
def test_batches_as_loaders_yield_them(form: Any) -> None:
    design = ClassSpace(GROUP_COUNTS).double()
    objective = BalancedError(over="class_and_group")
    steps = []
    for wrap in (lambda b: b, form):
        upper = tuner(copy.deepcopy(design), objective=objective)
        steps.append(upper.step(network("mlp"), wrap(images(10)), wrap(images(15))))
    assert steps[0] == steps[1]


# The prior ------------------------------------------------------------------------------------


def pull(held: Batch, objective: Any, **given: Any) -> float:
    """Norm of a step whose hypergradient is zero: the prior's gradient alone."""
    design = ClassSpace(COUNTS if held.groups is None else GROUP_COUNTS, sigma=1.0).double()
    scatter(design)
    upper = tuner(design, objective=objective, **given)
    zeros = [torch.zeros_like(p) for p in design.parameters()]
    solution = hypergradient(
        network("mlp"), upper.loss, BalancedError(), images(10), held, solver=Identity()
    ).solution
    return upper.update([Hypergradient(zeros, 0.0, 0.0, solution)], held).norm


def test_the_prior_counts_for_one_over_the_effective_validation_size() -> None:
    held = Batch(images(12).inputs, torch.tensor([0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]))
    by_batch = pull(held, "balanced_error")
    given = pull(held, "balanced_error", validation_counts=[400, 400, 400, 0])
    assert by_batch == pytest.approx(100 * given, rel=1e-10)
    worst = pull(held, "worst_class_error")
    assert worst == pytest.approx(3 * by_batch, rel=1e-10)  # one class's 4, not all 12


def test_the_validation_batch_counts_by_group_where_the_objective_does() -> None:
    groups = torch.tensor([0, 0, 1, 1] * 3)
    target = torch.tensor([0] * 4 + [1] * 4 + [2] * 4)
    held = Batch(images(12).inputs, target, groups)
    cells = pull(held, "group_balanced_error")
    given = pull(held, "group_balanced_error", validation_counts=[[2, 2, 2, 0], [2, 2, 2, 0]])
    assert cells == pytest.approx(given, rel=1e-12)
    assert cells == pytest.approx(pull(held, BalancedError(over="group")), rel=1e-12)


def test_without_a_prior_only_the_hypergradient_counts() -> None:
    design = ClassSpace(COUNTS).double()
    upper, given = tuner(design, solver=Identity()), (images(10), images(15))
    found = upper.hypergradient(network("mlp"), *given)
    assert upper.update([found], given[1]).norm == pytest.approx(
        float(flatten(found.gradients).norm()), rel=1e-12
    )


# Several networks -----------------------------------------------------------------------------


def test_hypergradients_of_several_networks_are_averaged() -> None:
    design = ClassSpace(COUNTS).double()
    upper = tuner(design, solver=Identity(), validation_counts=COUNTS)
    results = [
        upper.hypergradient(network("mlp", seed), images(10), images(15), replica=seed)
        for seed in (0, 1)
    ]
    mean = (flatten(results[0].gradients) + flatten(results[1].gradients)) / 2
    step = upper.update(results)
    assert step.norm == pytest.approx(float(mean.norm()), rel=1e-12)
    assert step.objective == pytest.approx(sum(r.objective for r in results) / 2)
    assert step.hard_objective == pytest.approx(sum(r.hard_objective for r in results) / 2)


def test_each_replica_keeps_its_own_solution() -> None:
    """As if each had a tuner of its own."""
    given = (images(10), images(15))
    shared = tuner(validation_counts=COUNTS)
    alone = [tuner(validation_counts=COUNTS) for _ in range(2)]
    for _ in range(3):
        for i in (0, 1):
            model = network("mlp", seed=i)
            a = shared.hypergradient(model, *given, replica=i)
            b = alone[i].hypergradient(model, *given)
            assert torch.equal(a.solution.direction, b.solution.direction)


def test_the_default_solver_refines_its_solution_from_step_to_step() -> None:
    upper, model, given = tuner(), network("mlp"), (images(10), images(15))
    residuals = [upper.hypergradient(model, *given).solution.residual for _ in range(20)]
    assert residuals[-1] < 0.5 * residuals[0]
    cold = tuner(solver=ConjugateGradient(iterations=1))
    again = [cold.hypergradient(model, *given).solution.residual for _ in range(2)]
    assert again[0] == again[1]


# What is not finite ---------------------------------------------------------------------------


def broken_model() -> nn.Module:
    model = network("mlp")
    with torch.no_grad():
        model.get_parameter("1.bias").fill_(torch.nan)
    return model


def test_a_non_finite_hypergradient_moves_nothing_and_is_not_kept() -> None:
    upper = tuner()
    before = position(upper)
    with pytest.warns(UserWarning, match="its hypergradient was not finite, so the loss did not"):
        step = upper.step(broken_model(), images(10), images(15))
    assert upper.step(broken_model(), images(10), images(15)).skipped  # warns once
    assert step.skipped
    assert math.isnan(step.norm)
    assert torch.equal(position(upper), before)
    healthy = upper.step(network("mlp"), images(10), images(15))
    assert not healthy.skipped
    assert healthy == tuner().step(network("mlp"), images(10), images(15))


def test_one_non_finite_network_of_several_is_left_out() -> None:
    given = (images(10), images(15))
    upper, alone = (tuner(validation_counts=COUNTS) for _ in range(2))
    bad = upper.hypergradient(broken_model(), *given, replica=0)
    good = upper.hypergradient(network("mlp"), *given, replica=1)
    assert not upper.update([bad, good]).skipped
    alone.update([alone.hypergradient(network("mlp"), *given)])
    assert torch.equal(position(upper), position(alone))


# The optimiser's weight decay -----------------------------------------------------------------


def test_coupled_weight_decay() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
    first, second = list(model[0].parameters()), list(model[1].parameters())
    assert coupled_weight_decay(None, model) == 0.0
    for kind in (torch.optim.SGD, torch.optim.Adam):
        optimizer = kind(model.parameters(), lr=0.1, weight_decay=0.3)
        assert coupled_weight_decay(optimizer, model) == 0.3
    decoupled = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.3)
    assert coupled_weight_decay(decoupled, model) == 0.0
    groups: list[dict[str, Any]] = [{"params": first}, {"params": second, "weight_decay": 0.5}]
    uneven = coupled_weight_decay(torch.optim.SGD(groups, lr=0.1), model)
    assert isinstance(uneven, Tensor)
    assert uneven.tolist() == [0.0] * 9 + [0.5] * 8
    model[0].requires_grad_(False)  # then only the trainable ones count
    assert coupled_weight_decay(torch.optim.SGD(groups, lr=0.1), model) == 0.5
    other = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1)
    with pytest.raises(InputError, match="trains none of this model's parameters"):
        coupled_weight_decay(other, model)
    of_some = torch.optim.SGD(second[:1], lr=0.1, weight_decay=0.5)
    partly = coupled_weight_decay(of_some, model)
    assert isinstance(partly, Tensor)
    assert partly.tolist() == [0.5] * 6 + [0.0] * 2


@pytest.mark.parametrize("uneven", [False, True], ids=["one-decay", "by-weight"])
def test_the_optimisers_decay_is_part_of_the_curvature(uneven: bool) -> None:
    model, given = network("mlp"), (images(10), images(15))
    weights = list(model.parameters())
    groups = [{"params": weights[:2], "weight_decay": 0.2 if uneven else 0.7}]
    groups += [{"params": weights[2:], "weight_decay": 0.7}]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    upper = tuner(optimizer=optimizer, solver=Exact())
    found = upper.hypergradient(model, *given)
    decay = torch.cat(
        [
            torch.full((w.numel(),), g["weight_decay"], dtype=torch.float64)
            for g in groups
            for w in g["params"]
        ]
    )
    by_hand = hypergradient(
        model, upper.loss, BalancedError(), *given, solver=Exact(), weight_decay=decay
    )
    torch.testing.assert_close(found.gradients, by_hand.gradients, rtol=1e-12, atol=1e-15)
    other = tuner(optimizer=torch.optim.SGD(weights, lr=0.1, weight_decay=0.1), solver=Exact())
    assert not torch.allclose(other.hypergradient(model, *given).gradients[0], found.gradients[0])


# Refusals -------------------------------------------------------------------------------------


def test_refused() -> None:
    with pytest.raises(InputError, match="tunes a TunableCrossEntropy; got CrossEntropyLoss"):
        LossTuner(nn.CrossEntropyLoss())  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"objective must be one of .* got 'f1'"):
        tuner(objective="f1")
    with pytest.raises(InputError, match="lr must be a finite number above 0; got 0"):
        tuner(lr=0)
    with pytest.raises(InputError, match="A batch must be"):
        tuner().step(network("mlp"), 3, images(10))
    batch = Batch(images(4).inputs, images(4).target)
    with pytest.raises(InputError, match="over 'group' needs groups="):
        tuner(objective=WorstError(over="group")).step(network("mlp"), batch, batch)
    upper = tuner()
    found = upper.hypergradient(network("mlp"), images(10), images(15))
    with pytest.raises(InputError, match="Without validation_counts, update needs the valid"):
        upper.update([found])


def test_a_frozen_network_is_refused_with_and_without_its_optimiser() -> None:
    model = network("mlp")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
    model.requires_grad_(False)
    for upper in (tuner(), tuner(optimizer=optimizer)):
        with pytest.raises(InputError, match="The model has no trainable parameter"):
            upper.step(model, images(10), images(10))
