"""One upper step: along the hypergradient and the prior, leaving the network as it was."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from autobalance._validation import InputError
from autobalance.bilevel.loss_tuner import (
    LossTuner,
    UpperStep,
    adaptive_preconditioner,
    coupled_weight_decay,
)
from autobalance.data.batches import Batch
from autobalance.functional.model import flatten
from autobalance.hypergrad.implicit import Hypergradient, hypergradient
from autobalance.hypergrad.solvers import ConjugateGradient, Exact, Identity, SingleLoop
from autobalance.objectives.aggregates import BalancedError, WorstError
from autobalance.objectives.running_risks import RunningRisks
from autobalance.objectives.surrogates import SmoothError
from autobalance.spaces.base import PARTS, DesignSpace, prior_strength
from autobalance.spaces.class_space import ClassSpace
from autobalance.spaces.hierarchical_space import HierarchicalSpace
from autobalance.spaces.tunable_loss import TunableCrossEntropy
from helpers import COUNTS, GROUP_COUNTS, images, network, scatter, validation_gradient


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
        pull = expected.penalty() * prior_strength(BalancedError().effective_size(counts))
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


# Batches and outputs ---------------------------------------------------------------------------


@dataclass
class Collated:
    inputs: Tensor
    target: Tensor
    groups: Tensor | None = None


@dataclass
class Output:
    """What Hugging Face's models return."""

    logits: Tensor
    loss: Tensor | None = None


class Named(nn.Module):
    """Takes its input by name, and returns its logits in something."""

    def __init__(self, wrap: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.network = network("batch_norm")
        self.wrap = wrap

    def forward(self, x: Tensor) -> Any:
        return self.wrap(self.network(x))


@pytest.mark.parametrize(
    "form",
    [
        lambda b: (b.inputs, b.target, b.groups),
        lambda b: [b.inputs, b.target, b.groups],
        lambda b: {"inputs": b.inputs, "target": b.target, "groups": b.groups},
        lambda b: Collated(b.inputs, b.target, b.groups),
    ],
    ids=["tuple", "list", "mapping", "dataclass"],
)
@pytest.mark.parametrize("several", [False, True], ids=["one", "list-of-two"])
def test_batches_as_loaders_yield_them(form: Any, several: bool) -> None:
    design = ClassSpace(GROUP_COUNTS).double()
    objective = BalancedError(over="class_and_group")
    steps = []
    for wrap in (lambda b: b, form):
        upper = tuner(copy.deepcopy(design), objective=objective)
        train = [wrap(images(10)), wrap(images(7, seed=3))] if several else wrap(images(10))
        steps.append(upper.step(network("mlp"), train, wrap(images(15))))
    assert steps[0] == steps[1]


@pytest.mark.parametrize(
    "wrap",
    [lambda f: f, Output, lambda f: {"loss": None, "logits": f}],
    ids=["tensor", "object", "dict"],
)
def test_batches_and_outputs_as_hugging_face_makes_them(wrap: Any) -> None:
    upper, plain = tuner(), tuner()
    train, held = ({"x": b.inputs, "labels": b.target} for b in (images(10), images(15)))
    step = upper.step(Named(wrap), train, held)
    assert step == plain.step(network("batch_norm"), *(
        Batch(b.inputs, b.target) for b in (images(10), images(15))
    ))  # fmt: skip
    assert torch.equal(position(upper), position(plain))


def test_an_adapter_reads_what_the_loader_yields() -> None:
    upper = tuner(adapter=lambda d: Batch(d["pixels"] / 2, d["class"]))
    train, held = ({"pixels": 2 * b.inputs, "class": b.target} for b in (images(10), images(15)))
    plain = [Batch(b.inputs, b.target) for b in (images(10), images(15))]
    assert upper.step(network("mlp"), train, held) == tuner().step(network("mlp"), *plain)
    again = tuner(adapter=upper.adapter).step(network("mlp"), [train, train], held)
    assert again.objective == pytest.approx(tuner().step(network("mlp"), *plain).objective)


@pytest.mark.parametrize(
    "bad",
    [
        {"pixels": images(4).inputs},
        {"labels": images(4).target},
        (images(4).inputs,),
        [],
        "batch",
        ((images(4).inputs, images(4).target), (images(4).inputs, images(4).target)),
        (images(4).inputs, [0, 1, 2, 0]),
    ],
    ids=["mapping", "labels-alone", "inputs-alone", "empty", "text", "tuple-of-batches", "numbers"],
)
def test_a_batch_that_cannot_be_read_is_refused(bad: Any) -> None:
    for train, held in ((bad, images(10)), (images(10), bad)):
        with pytest.raises(InputError, match=r"A batch must be .*give an adapter"):
            tuner().step(network("mlp"), train, held)


def test_a_batch_of_one_is_refused_where_batch_norm_trains_on_it() -> None:
    model = network("batch_norm")
    with pytest.raises(InputError, match=r"BatchNorm cannot train on a batch of one example"):
        tuner().step(model, images(1), images(15))
    assert not tuner().step(model, images(10), images(1)).skipped  # evaluation mode
    assert not tuner().step(model.eval(), images(1), images(15)).skipped
    assert not tuner().step(network("mlp"), images(1), images(15)).skipped


def test_classes_that_the_validation_batch_lacks_are_left_out_of_the_average() -> None:
    """By hand: the mean over the classes present, and the prior's pull by their counts."""
    model, train = network("mlp"), images(10)
    target = torch.tensor([0, 0, 0, 2, 2])  # of four classes
    held = Batch(images(5, seed=5).inputs, target)
    f = copy.deepcopy(model).eval()(held.inputs).detach().numpy()
    smooth, wrong = [], []
    for row, y in zip(f, target.tolist(), strict=True):
        margin = row[y] - max(row[j] for j in range(4) if j != y)
        smooth.append(1 / (1 + np.exp(margin)))
        wrong.append(float(row.argmax() != y))
    objective = BalancedError(surrogate=SmoothError(temperature=1.0))
    step = tuner(objective=objective).step(model, train, held)
    assert step.objective == pytest.approx((np.mean(smooth[:3]) + np.mean(smooth[3:])) / 2)
    assert step.hard_objective == pytest.approx((np.mean(wrong[:3]) + np.mean(wrong[3:])) / 2)

    size = 1 / (0.25 / 3 + 0.25 / 2)
    large = pull(held, "balanced_error", validation_counts=[100 * size] + [0] * 3)
    ratio = prior_strength(size) / prior_strength(100 * size)
    assert pull(held, "balanced_error") == pytest.approx(ratio * large)


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
    return upper.update([Hypergradient(zeros, 0.0, 0.0, solution, 2, finite=True)], held).norm


def test_the_prior_counts_for_one_over_the_effective_validation_size_and_a_fiftieth() -> None:
    held = Batch(images(12).inputs, torch.tensor([0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]))
    by_batch = pull(held, "balanced_error")
    given = pull(held, "balanced_error", validation_counts=[400, 400, 400, 0])
    assert by_batch / given == pytest.approx((1 / 12 + 1 / 50) / (1 / 1200 + 1 / 50), rel=1e-10)
    assert pull(held, "worst_class_error") == pytest.approx(by_batch, rel=1e-10)


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
    """The steps after it are those of a tuner that starts anew from the same place."""
    given = (images(10), images(15))
    upper = tuner()
    for _ in range(3):
        upper.step(network("mlp"), *given)
    before = position(upper)
    with pytest.warns(UserWarning, match="its hypergradient was not finite, so the loss did not"):
        step = upper.step(broken_model(), *given)
    assert step.skipped
    assert math.isnan(step.norm)
    assert torch.equal(position(upper), before)
    found = upper.hypergradient(network("mlp"), *given)
    anew = tuner(copy.deepcopy(upper.loss.space)).hypergradient(network("mlp"), *given)
    assert found.finite
    assert torch.equal(flatten(found.gradients), flatten(anew.gradients))
    assert found.solution.iterations == 0  # no product for a last solution


@pytest.mark.filterwarnings("ignore:A step of LossTuner was skipped")
def test_a_validation_batch_that_is_not_finite_is_not_kept_either() -> None:
    """Between line searches the gradient is by the last q, and finite; the next q is not."""
    model, train, held = network("mlp"), images(10), images(15)
    bad = replace(held, inputs=torch.where(held.inputs > 1, torch.nan, held.inputs))
    upper = tuner()
    upper.step(model, train, held)
    before = position(upper)
    assert upper.step(model, train, bad).skipped
    assert torch.equal(position(upper), before)
    healthy = upper.step(model, train, held)
    assert not healthy.skipped
    assert math.isfinite(healthy.norm)


@pytest.mark.filterwarnings("ignore:A step of LossTuner was skipped")
def test_skipped_steps_are_counted_in_all_and_in_a_row() -> None:
    given = (images(10), images(15))
    upper, counts = tuner(), []
    for healthy in (False, False, True, False, True, True):
        upper.step(network("mlp") if healthy else broken_model(), *given)
        counts.append((upper.skipped, upper.skipped_in_a_row))
    assert counts == [(1, 1), (2, 2), (2, 0), (3, 1), (3, 0), (3, 0)]


def test_one_non_finite_network_of_several_is_left_out() -> None:
    given = (images(10), images(15))
    upper, alone = (tuner(validation_counts=COUNTS) for _ in range(2))
    bad = upper.hypergradient(broken_model(), *given, replica=0)
    good = upper.hypergradient(network("mlp"), *given, replica=1)
    assert not upper.update([bad, good]).skipped
    assert (upper.skipped, upper.skipped_in_a_row) == (0, 0)
    alone.update([alone.hypergradient(network("mlp"), *given)])
    assert torch.equal(position(upper), position(alone))


# Continued elsewhere --------------------------------------------------------------------------


def replicas() -> list[nn.Module]:
    return [network("batch_norm", seed) for seed in (0, 1)]


def both(upper: LossTuner, i: int) -> UpperStep:
    """One step of two networks, on batches of their own."""
    held = images(15, seed=50 + i)
    results = [
        upper.hypergradient(model, images(10, seed=10 * i + r), held, replica=r)
        for r, model in enumerate(replicas())
    ]
    return upper.update(results, held)


@pytest.mark.filterwarnings("ignore:A step of LossTuner was skipped")
@pytest.mark.parametrize("copied", [True, False], ids=["copied-state", "live-state"])
def test_a_state_continues_bit_for_bit(copied: bool) -> None:
    """Side by side with the tuner that it was taken from, which it must not share memory with."""
    first = tuner()
    for i in range(3):
        both(first, i)
    first.step(broken_model(), images(10), images(15))  # counted
    both(first, 3)
    state = first.state_dict()
    second = tuner(HierarchicalSpace(COUNTS, learn=PARTS).double())
    second.load_state_dict(copy.deepcopy(state) if copied else state)
    assert torch.equal(position(second), position(first))
    assert (second.skipped, second.skipped_in_a_row) == (1, 0)
    logits = torch.randn(5, 4, dtype=torch.float64)
    target = torch.tensor([0, 1, 2, 3, 0])
    assert torch.equal(second.loss(logits, target), first.loss(logits, target))  # up to date
    for i in range(4, 10):
        assert both(second, i) == both(first, i)
        assert torch.equal(position(second), position(first))


def test_running_risks_are_part_of_the_state() -> None:
    """Without them the next step differs."""

    def fresh() -> LossTuner:
        return tuner(objective=WorstError(surrogate=SmoothError(1.0)))

    first = fresh()
    for i in range(3):
        both(first, i)
    state = copy.deepcopy(first.state_dict())
    second, forgetful = fresh(), fresh()
    second.load_state_dict(state)
    forgetful.load_state_dict({**state, "risks": RunningRisks(WorstError()).state_dict()})
    steps = [both(t, 3) for t in (first, second, forgetful)]
    assert steps[1] == steps[0]
    assert steps[2].objective != steps[0].objective
    assert torch.equal(position(second), position(first))
    assert not torch.equal(position(forgetful), position(first))


def test_a_state_holds_tensors_and_plain_values_alone() -> None:
    """So that it can be written without pickle; with one entry for each replica."""
    upper = tuner()
    both(upper, 0)
    state = upper.state_dict()
    assert list(state["carried"]) == ["0", "1"]

    def check(value: Any) -> None:
        if isinstance(value, dict):
            for item in value.values():
                check(item)
        elif isinstance(value, (list, tuple)):
            for item in value:
                check(item)
        else:
            assert isinstance(value, (Tensor, int, float, str, bool, type(None)))

    check(state)


def test_a_state_may_be_of_another_dtype() -> None:
    """As of another device: the solver's memory follows the network."""
    first = tuner()
    first.step(network("mlp"), images(10), images(15))
    second = tuner(space().float())
    second.load_state_dict(first.state_dict())
    train, held = (replace(b, inputs=b.inputs.float()) for b in (images(10), images(15)))
    assert not second.step(network("mlp").float(), train, held).skipped


@pytest.mark.parametrize("upper", ["adam", "sgd"])
def test_the_loss_may_be_moved_after_a_state_was_loaded(upper: Any) -> None:
    """As Lightning does, which loads a checkpoint before it moves the module to the device."""
    first, second = (tuner(upper=upper) for _ in range(2))
    given = (images(10), images(15))
    first.step(network("mlp"), *given)
    second.load_state_dict(first.state_dict())
    for each, dtype in ((first, torch.float64), (second, torch.float32)):
        each.loss.to(dtype)
        moved = [replace(b, inputs=b.inputs.to(dtype)) for b in given]
        each.step(network("mlp").to(dtype), *moved)
    torch.testing.assert_close(position(second).double(), position(first), rtol=1e-4, atol=1e-5)


def test_a_layer_may_be_unfrozen_between_two_steps() -> None:
    model, given = network("mlp"), (images(10), images(15))
    model.get_submodule("1").requires_grad_(False)
    upper = tuner()
    for _ in range(2):
        upper.step(model, *given)
    model.requires_grad_(True)
    found = upper.hypergradient(model, *given)
    anew = tuner(copy.deepcopy(upper.loss.space)).hypergradient(model, *given)
    assert torch.equal(flatten(found.gradients), flatten(anew.gradients))


# The optimiser's preconditioner ---------------------------------------------------------------


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW])
def test_adams_preconditioner_is_that_of_its_last_step(kind: Any) -> None:
    """By hand from the gradients; a weight that was never stepped has 1."""
    model = network("mlp")
    used, spare = list(model.parameters())[:3], list(model.parameters())[3]
    optimizer = kind(model.parameters(), lr=0.01, betas=(0.9, 0.95), eps=1e-4, weight_decay=0.1)
    second = [np.zeros(p.shape) for p in used]
    for _ in range(3):
        for i, p in enumerate(used):
            p.grad = torch.randn(p.shape, dtype=p.dtype)
            gradient = p.grad.numpy().copy()
            if kind is torch.optim.Adam:  # coupled: the penalty's gradient counts
                gradient += 0.1 * p.detach().numpy()
            second[i] = 0.95 * second[i] + 0.05 * gradient**2
        optimizer.step()
    expected = [1 / (np.sqrt(v / (1 - 0.95**3)) + 1e-4) for v in second] + [np.ones(spare.shape)]
    by_hand = torch.from_numpy(np.concatenate([e.ravel() for e in expected]))
    found = adaptive_preconditioner(optimizer, model)
    assert found is not None
    torch.testing.assert_close(found, by_hand, rtol=1e-12, atol=0)

    given = (images(10), images(15))
    upper = tuner(optimizer=optimizer, solver=Identity(preconditioned=True))
    b = validation_gradient(model, BalancedError(), given[1])
    q = upper.hypergradient(model, *given).solution.direction
    torch.testing.assert_close(q, by_hand * b, rtol=1e-10, atol=1e-14)

    model.get_submodule("1").requires_grad_(False)  # then of the others alone
    rest = adaptive_preconditioner(optimizer, model)
    assert rest is not None
    torch.testing.assert_close(rest, by_hand[-len(rest) :], rtol=1e-12, atol=0)


def test_plain_sgd_has_no_preconditioner() -> None:
    model, given = network("mlp"), (images(10), images(15))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert adaptive_preconditioner(optimizer, model) is None
    assert adaptive_preconditioner(torch.optim.Adam(model.parameters()), model) is None  # not yet
    assert adaptive_preconditioner(None, model) is None
    for preconditioned in (Identity(preconditioned=True), SingleLoop(preconditioned=True)):
        plain = replace(preconditioned, preconditioned=False)
        uppers = [tuner(optimizer=optimizer, solver=s) for s in (preconditioned, plain)]
        a, b = (upper.hypergradient(model, *given) for upper in uppers)
        assert torch.equal(flatten(a.gradients), flatten(b.gradients))


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


def test_told_once_of_processes_that_the_network_is_not_shared_with(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    upper, given = tuner(), (network("mlp"), images(10), images(15))
    upper.step(*given)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda group=None: 2)
    with pytest.warns(UserWarning, match=r"not in DistributedDataParallel: .*strategy\.model"):
        upper.step(*given)
    upper.step(*given)  # warnings are errors here


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
