"""The hypergradient: against dense algebra, and against retraining the lower level in full."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from autobalance._validation import InputError
from autobalance.bilevel.loss_tuner import DEFAULT_SOLVER
from autobalance.data.batches import Batch
from autobalance.functional.model import FunctionalModel, flatten, unflatten
from autobalance.hypergrad import implicit
from autobalance.hypergrad.implicit import Hypergradient, hypergradient
from autobalance.hypergrad.solvers import (
    ConjugateGradient,
    Exact,
    Identity,
    Neumann,
    Nystrom,
    SingleLoop,
    Solver,
)
from autobalance.objectives.aggregates import BalancedError, WorstError
from autobalance.objectives.base import Objective
from autobalance.objectives.surrogates import CrossEntropyRisk
from autobalance.spaces.base import PARTS, DesignSpace
from autobalance.spaces.class_space import ClassSpace, ClusterSpace
from autobalance.spaces.group_space import GroupSpace
from autobalance.spaces.hierarchical_space import HierarchicalSpace
from autobalance.spaces.tunable_loss import TunableCrossEntropy
from helpers import (
    NETWORKS,
    class_loss,
    dense_hypergradient,
    images,
    leaves,
    network,
    scatter,
    training_gradient,
    validation_gradient,
)
from hypergradient_oracle import DECAY, SMOOTH, retrained, toy


def cosine(a: Tensor, b: Tensor) -> float:
    return float(a @ b / (a.norm() * b.norm()))


# One batch, dense algebra ---------------------------------------------------------------------


@pytest.mark.parametrize("groups", [False, True], ids=["class", "class-and-group"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("name", NETWORKS)
def test_equals_dense_algebra(name: str, reduction: str, groups: bool) -> None:
    model = network(name)
    loss = class_loss(reduction, groups=groups)
    train, held = images(10, weighted=True), images(15, seed=5)
    objective = BalancedError(over="class_and_group" if groups else "class")
    found = hypergradient(
        model, loss, objective, train, held, solver=Exact(damping=0.01), weight_decay=DECAY
    )
    expected = dense_hypergradient(model, loss, objective, train, held, DECAY + 0.01, reduction)
    gap = float((flatten(found.gradients) - expected).norm() / expected.norm())
    assert gap < 1e-9
    shapes = [p.shape for p in loss.space.parameters()]
    assert [g.shape for g in found.gradients] == shapes


@pytest.mark.parametrize("name", ["mlp", "batch_norm", "frozen", "tied"])
def test_several_training_batches_equal_dense_algebra(name: str) -> None:
    """Of different sizes: A and the mixed product are means over batches, not over examples."""
    model, loss = network(name), class_loss()
    train, held = [images(10, weighted=True), images(6, seed=7)], images(15, seed=5)
    given: Any = {"solver": Exact(damping=0.01), "weight_decay": DECAY}
    found = hypergradient(model, loss, BalancedError(), train, held, **given)
    expected = dense_hypergradient(model, loss, BalancedError(), train, held, DECAY + 0.01)
    assert float((flatten(found.gradients) - expected).norm() / expected.norm()) < 1e-9
    assert found.solution.tangent.shape == (16, 4)
    twice = hypergradient(model, loss, BalancedError(), train[:1] * 2, held, **given)
    once = hypergradient(model, loss, BalancedError(), train[0], held, **given)
    torch.testing.assert_close(twice.gradients, once.gradients, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize(
    ("name", "objective"),
    [
        *((name, WorstError()) for name in NETWORKS),
        ("mlp", BalancedError()),
        ("batch_norm", BalancedError(over="class_and_group")),
    ],
    ids=[*NETWORKS, "mean", "groups"],
)
def test_a_large_validation_batch_passes_in_parts(
    monkeypatch: pytest.MonkeyPatch, name: str, objective: Objective
) -> None:
    """The result is that of the whole, also of objectives that are no means over parts."""
    model, loss = network(name), class_loss()
    train, held = images(4), images(15, seed=5)
    given: Any = {"solver": Exact(damping=0.01), "weight_decay": DECAY}
    expected = hypergradient(model, loss, objective, train, held, **given)
    passes: list[int] = []
    call = FunctionalModel.__call__

    def counted(self: FunctionalModel, parameters: Any, inputs: Tensor, **options: Any) -> Tensor:
        if not self.model.training:
            passes.append(len(inputs))
        return call(self, parameters, inputs, **options)

    monkeypatch.setattr(FunctionalModel, "__call__", counted)
    monkeypatch.setattr(implicit, "WHOLE", 100)  # six images of sixteen pixels
    found = hypergradient(model, loss, objective, train, held, **given)
    assert passes == [6, 6, 3] * 2
    torch.testing.assert_close(found.gradients, expected.gradients, rtol=1e-10, atol=1e-13)
    assert found.objective == pytest.approx(expected.objective, rel=1e-12)
    assert found.hard_objective == expected.hard_objective
    passes.clear()
    hypergradient(model, loss, objective, images(10), held, **given)
    assert passes == [10, 5] * 2  # as large as a training batch does no harm


@pytest.mark.parametrize(
    ("solver", "least"),
    [
        (ConjugateGradient(iterations=100, damping=0.0, tolerance=1e-10), 1 - 1e-12),
        (Neumann(terms=300, damping=0.0), 0.999),
    ],
    ids=lambda v: type(v).__name__ if isinstance(v, Solver) else "",
)
def test_solvers_agree_with_exact(solver: Solver, least: float) -> None:
    model, loss = network("batch_norm"), class_loss()
    given = (model, loss, BalancedError(), images(10), images(15, seed=5))
    exact = hypergradient(*given, solver=Exact(), weight_decay=DECAY)
    found = hypergradient(*given, solver=solver, weight_decay=DECAY)
    a, b = flatten(found.gradients), flatten(exact.gradients)
    assert cosine(a, b) > least
    assert float(a.norm() / b.norm()) == pytest.approx(1.0, rel=0.02)


def test_identity_is_the_mixed_product_of_the_validation_gradient() -> None:
    model, loss, train, held = network("cnn"), class_loss(), images(10), images(15, seed=5)
    found = hypergradient(model, loss, BalancedError(), train, held, solver=Identity())
    b = validation_gradient(model, BalancedError(), held)
    along = training_gradient(model, loss, train) @ b
    expected = -flatten(torch.autograd.grad(along, list(loss.space.parameters())))
    torch.testing.assert_close(flatten(found.gradients), expected, rtol=1e-10, atol=1e-13)


def test_validation_is_seen_in_evaluation_mode() -> None:
    """With BatchNorm's running statistics and without dropout."""
    for name in ("batch_norm", "dropout"):
        model, loss, held = network(name), class_loss(), images(15, seed=5)
        found = hypergradient(model, loss, BalancedError(), images(10), held, solver=Identity())
        logits = copy.deepcopy(model).eval()(held.inputs).detach()
        assert found.objective == pytest.approx(
            float(BalancedError()(logits, held.target)), rel=1e-12
        )
        assert found.hard_objective == BalancedError().hard(logits, held.target)


# What is preserve_module_state comes back ------------------------------------------------------------------


@pytest.mark.parametrize(
    "solver",
    [
        Identity(),
        SingleLoop(),
        ConjugateGradient(),
        ConjugateGradient(curvature="hessian"),
        Neumann(),
        Nystrom(),
        Exact(damping=0.1),
    ],
    ids=lambda s: f"{type(s).__name__}-{s.curvature}",
)
@pytest.mark.parametrize("name", NETWORKS)
def test_everything_borrowed_comes_back_bit_identical(name: str, solver: Solver) -> None:
    model, loss = network(name), class_loss()
    model.get_submodule("1" if name != "tied" else "second").train(False)  # a mode of its own
    for i, p in enumerate(model.parameters()):
        p.grad = torch.full_like(p, float(i)) if i % 2 == 0 else None

    def state() -> list[Any]:
        return [
            [p.detach().clone() for p in model.parameters()],
            [b.clone() for b in model.buffers()],
            [None if p.grad is None else p.grad.clone() for p in model.parameters()],
            [m.training for m in model.modules()],
            [p.requires_grad for p in model.parameters()],
            [p.detach().clone() for p in loss.space.parameters()],
            [p.grad for p in loss.space.parameters()],
            torch.random.get_rng_state(),
        ]

    before, own = state(), [id(p) for p in model.parameters()]
    hypergradient(
        model,
        loss,
        BalancedError(),
        images(10),
        images(15, seed=5),
        solver=solver,
        weight_decay=0.1,
    )
    torch.testing.assert_close(state(), before, rtol=0, atol=0)
    assert [id(p) for p in model.parameters()] == own


def test_num_batches_tracked_does_not_count_a_hypergradient() -> None:
    model = network("batch_norm")
    model(images(10).inputs)
    hypergradient(
        model, class_loss(), BalancedError(), images(10), images(15), solver=ConjugateGradient()
    )
    assert int(model.get_buffer("1.num_batches_tracked")) == 1


def test_works_where_gradients_are_switched_off_around_it() -> None:
    model, loss = network("mlp"), class_loss()
    given = (model, loss, BalancedError(), images(10), images(15))
    expected = hypergradient(*given, solver=ConjugateGradient())
    with torch.no_grad():
        found = hypergradient(*given, solver=ConjugateGradient())
    assert torch.equal(flatten(found.gradients), flatten(expected.gradients))


# Against retraining in full -------------------------------------------------------------------
#
# A linear head with L2 decay is strongly convex in its weights, and there Gauss-Newton is the
# Hessian. So the hypergradient by the exact solver at the optimum is the true derivative of the
# objective after retraining, and finite differences of retraining must give it.

Builder = Callable[[], DesignSpace]
# At a fixed temperature: a relative one is held fixed, which finite differences would not do.


CLASSES, BY_GROUP = [40, 12, 5], [[20, 6, 3], [20, 6, 2]]
SPACES: dict[str, Builder] = {
    "hierarchical-weight": lambda: HierarchicalSpace(CLASSES, learn=["weight"]),
    "hierarchical-additive": lambda: HierarchicalSpace(CLASSES, learn=["additive"]),
    "hierarchical-multiplicative": lambda: HierarchicalSpace(CLASSES, learn=["multiplicative"]),
    "class-all": lambda: ClassSpace(CLASSES, learn=PARTS, sigmoid=True),
    "cluster-all": lambda: ClusterSpace(CLASSES, size=2, learn=PARTS),
    "group-weight": lambda: GroupSpace(BY_GROUP, learn=["weight"]),
    "group-additive": lambda: GroupSpace(BY_GROUP, learn=["additive"]),
    "group-all": lambda: GroupSpace(BY_GROUP, learn=PARTS),
}


def solved(
    name: str, reduction: Any = "mean"
) -> tuple[TunableCrossEntropy, Batch, Batch, nn.Module]:
    """A space off its start, its data, and the head trained to its optimum."""
    space = SPACES[name]().double()
    scatter(space, seed=4)
    loss = TunableCrossEntropy(space, reduction=reduction)
    train, held, model = toy(name.startswith("group"))
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    return loss, train, held, retrained(loss, train, model)


def by_retraining(
    loss: TunableCrossEntropy, objective: Objective, train: Batch, held: Batch, model: nn.Module
) -> Tensor:
    """Central differences of the objective after retraining, free parameter by free parameter."""
    free = list(loss.space.parameters())
    size, h = sum(p.numel() for p in free), 1e-4

    def value(step: Tensor) -> float:
        moved = copy.deepcopy(loss)
        with torch.no_grad():
            for p, part in zip(moved.space.parameters(), unflatten(step, free), strict=True):
                p += part
        logits = retrained(moved, train, model)(held.inputs).detach()
        return float(objective(logits, held.target, groups=held.groups))

    unit = h * torch.eye(size, dtype=torch.float64)
    return torch.tensor([(value(e) - value(-e)) / (2 * h) for e in unit], dtype=torch.float64)


@pytest.mark.parametrize(
    "objective",
    [SMOOTH, WorstError(softness=0.2, surrogate=CrossEntropyRisk())],
    ids=lambda o: type(o).__name__,
)
@pytest.mark.parametrize("name", SPACES)
def test_equals_finite_differences_of_retraining(name: str, objective: Objective) -> None:
    loss, train, held, model = solved(name)
    found = hypergradient(model, loss, objective, train, held, solver=Exact(), weight_decay=DECAY)
    expected = by_retraining(loss, objective, train, held, model)
    assert float(expected.norm()) > 1e-3
    gap = float((flatten(found.gradients) - expected).norm() / expected.norm())
    assert gap < 1e-4
    assert found.solution.residual < 1e-10


def test_equals_finite_differences_of_retraining_with_the_sum() -> None:
    loss, train, held, model = solved("class-all", "sum")
    found = hypergradient(model, loss, SMOOTH, train, held, solver=Exact(), weight_decay=DECAY)
    expected = by_retraining(loss, SMOOTH, train, held, model)
    assert float((flatten(found.gradients) - expected).norm() / expected.norm()) < 1e-4


def warm_started(name: str, solver: Solver, steps: int) -> tuple[Hypergradient, Tensor]:
    loss, train, held, model = solved(name)
    given = (model, loss, BalancedError(), train, held)
    solver_state: dict[str, Tensor] = {}
    for _ in range(steps):
        found = hypergradient(*given, solver=solver, weight_decay=DECAY, solver_state=solver_state)
        solver_state = found.solution.solver_state
    exact = hypergradient(*given, solver=Exact(), weight_decay=DECAY)
    return found, flatten(exact.gradients)


@pytest.mark.parametrize("name", SPACES)
def test_the_default_solver_converges_to_the_true_direction(name: str) -> None:
    """Kept between steps and refined by one product each, as the tuner does it."""
    found, exact = warm_started(name, DEFAULT_SOLVER, 100)
    assert found.solution.residual <= 1e-3  # its tolerance
    # What is left is its damping of 0.01, beside a decay of 0.05.
    gradient = flatten(found.gradients)
    assert cosine(gradient, exact) > 0.99
    assert float(gradient.norm() / exact.norm()) == pytest.approx(1.0, abs=0.05)


def test_without_damping_the_default_solver_converges_to_the_truth() -> None:
    solver = ConjugateGradient(iterations=1, damping=0.0, tolerance=1e-9, warm_start=True)
    found, exact = warm_started("hierarchical-additive", solver, 200)
    torch.testing.assert_close(flatten(found.gradients), exact, rtol=1e-6, atol=1e-9)


# Refusals and failures ------------------------------------------------------------------------


def test_refuses_a_model_without_trainable_weights() -> None:
    model = network("mlp").requires_grad_(False)
    with pytest.raises(InputError, match="no trainable parameter: nothing depends on the loss"):
        hypergradient(
            model, class_loss(), BalancedError(), images(10), images(10), solver=Identity()
        )


def test_refuses_logits_of_the_wrong_width() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 7)).double()
    with pytest.raises(InputError, match=r"parameters for 4 classes, but .* width 7"):
        hypergradient(
            model, class_loss(), BalancedError(), images(10), images(10), solver=Identity()
        )


def test_refuses_a_batch_of_one_where_batch_norm_trains_on_it() -> None:
    """Also as the short last one of several."""
    for train in (images(1), [images(10), images(1)]):
        with pytest.raises(InputError, match="BatchNorm cannot train on a batch of one example"):
            hypergradient(
                network("batch_norm"),
                class_loss(),
                BalancedError(),
                train,
                images(10),
                solver=ConjugateGradient(),
            )


@pytest.mark.parametrize(
    "wrap", [lambda f: (f, None), lambda f: {"scores": f}], ids=["tuple", "dict"]
)
def test_refuses_a_network_whose_logits_cannot_be_found(wrap: Callable[[Tensor], Any]) -> None:
    class Wrapping(nn.Sequential):
        def forward(self, input: Tensor) -> Any:
            return wrap(super().forward(input))

    given = (class_loss(), BalancedError(), images(10), images(10))
    with pytest.raises(InputError, match=r"network must return logits.* got (tuple|dict)"):
        hypergradient(Wrapping(network("mlp")), *given, solver=Identity())


def test_a_non_finite_result_says_so() -> None:
    model = network("mlp")
    with torch.no_grad():
        leaves(model)[-1].fill_(torch.nan)
    given = (model, class_loss(), BalancedError(), images(10), images(10))
    assert not hypergradient(*given, solver=ConjugateGradient()).finite
    assert not hypergradient(*given, solver=Neumann()).finite
    assert hypergradient(network("mlp"), *given[1:], solver=ConjugateGradient()).finite
