"""What every loss, objective, surrogate, space and solver keeps, found by walking the package.

A new public class that does not join the table of examples below fails here.
"""

from __future__ import annotations

import copy
import importlib
import inspect
import pickle
import pkgutil
from collections.abc import Callable
from typing import Any, TypeVar, get_args

import pytest
import torch
from torch import Tensor, nn

import autobalance
from autobalance.hypergrad.implicit import hypergradient
from autobalance.hypergrad.solvers import (
    ConjugateGradient,
    Exact,
    Identity,
    Neumann,
    Nystrom,
    SingleLoop,
    Solver,
)
from autobalance.losses.label_losses import (
    AsymmetricLoss,
    DistributionBalancedLoss,
    ParametricBinaryCrossEntropy,
)
from autobalance.losses.modules import ParametricCrossEntropy
from autobalance.losses.parametric import LossParameters
from autobalance.losses.published import (
    DeferredLoss,
    FocalLoss,
    GroupDROLoss,
    LDAMLoss,
    NormalizedLinear,
)
from autobalance.objectives.aggregates import (
    BalancedError,
    CVaRError,
    ErrorDeviation,
    QuantileError,
    WeightedError,
    WorstError,
)
from autobalance.objectives.base import Objective
from autobalance.objectives.combined import Blend, BoundedGap
from autobalance.objectives.costs import CostMatrix
from autobalance.objectives.gaps import OddsGap, OpportunityGap, ParityGap
from autobalance.objectives.iou import MeanIoU
from autobalance.objectives.label_objectives import MacroF1Error
from autobalance.objectives.surrogates import CrossEntropyRisk, SmoothError, Surrogate
from autobalance.spaces.attribute_space import AttributeSpace
from autobalance.spaces.base import PARTS, DesignSpace
from autobalance.spaces.class_space import ClassSpace, ClusterSpace
from autobalance.spaces.group_space import GroupSpace, WithUnknownGroup
from autobalance.spaces.hierarchical_space import HierarchicalSpace
from autobalance.spaces.label_space import HierarchicalLabelSpace
from autobalance.spaces.tunable_labels import TunableBinaryCrossEntropy
from autobalance.spaces.tunable_loss import TunableCrossEntropy
from helpers import images

COUNTS = [12, 6, 3, 2]
BY_SIGN = [[40, 50, 55, 58], [20, 10, 5, 2]]
BY_GROUP = [[8, 3, 2, 0], [4, 3, 1, 2]]

# One example or more of each class, none in its default state where that would hide something.
EXAMPLES: dict[type, list[Callable[[], Any]]] = {
    ParametricCrossEntropy: [
        ParametricCrossEntropy.cross_entropy,
        lambda: ParametricCrossEntropy.class_weighted(COUNTS, label_smoothing=0.1),
        lambda: ParametricCrossEntropy.vector_scaling(COUNTS, reduction="sum"),
        lambda: ParametricCrossEntropy(additive=torch.randn(2, 4), reduction="none"),
    ],
    ParametricBinaryCrossEntropy: [
        ParametricBinaryCrossEntropy.cross_entropy,
        lambda: ParametricBinaryCrossEntropy.logit_adjusted(BY_SIGN, reduction="none"),
        lambda: ParametricBinaryCrossEntropy(
            torch.rand(2, 4) + 0.5, torch.randn(4), torch.rand(2, 4) + 0.5, reduction="sum"
        ),
    ],
    AsymmetricLoss: [AsymmetricLoss, lambda: AsymmetricLoss(2.0, 0.5, 0.0, reduction="sum")],
    DistributionBalancedLoss: [lambda: DistributionBalancedLoss(BY_SIGN, lambda_neg=3.0)],
    FocalLoss: [
        lambda: FocalLoss(0.5),
        lambda: FocalLoss.class_balanced(COUNTS, reduction="sum"),
    ],
    LDAMLoss: [lambda: LDAMLoss(COUNTS, weight=[1.0, 2.0, 3.0, 4.0])],
    DeferredLoss: [
        lambda: LDAMLoss.deferred(COUNTS),
        lambda: begun(LDAMLoss.deferred(COUNTS)),
    ],
    # In training mode each call moves the groups' weights.
    GroupDROLoss: [
        lambda: GroupDROLoss(2).eval(),
        lambda: GroupDROLoss(4, over="class", adjustment=1.0, counts=COUNTS).eval(),
    ],
    TunableCrossEntropy: [
        lambda: TunableCrossEntropy(moved(HierarchicalSpace(COUNTS, learn=PARTS))),
        lambda: TunableCrossEntropy(moved(GroupSpace(BY_GROUP, learn=PARTS)), reduction="sum"),
    ],
    TunableBinaryCrossEntropy: [
        lambda: TunableBinaryCrossEntropy(moved(HierarchicalLabelSpace(BY_SIGN, learn=PARTS))),
    ],
    HierarchicalLabelSpace: [
        lambda: within_bounds(moved(HierarchicalLabelSpace(BY_SIGN, learn=PARTS, tau=0.5))),
    ],
    HierarchicalSpace: [
        lambda: within_bounds(moved(HierarchicalSpace(COUNTS, learn=PARTS, tau=0.5))),
    ],
    AttributeSpace: [lambda: moved(AttributeSpace(COUNTS))],
    ClassSpace: [
        lambda: moved(ClassSpace(COUNTS, learn=PARTS, sigmoid=True, sigma=0.5)),
        lambda: moved(ClassSpace(BY_GROUP, learn=["additive"])),
    ],
    ClusterSpace: [lambda: moved(ClusterSpace(COUNTS, size=3, learn=PARTS, sigma=1.0))],
    GroupSpace: [lambda: moved(GroupSpace(BY_GROUP, learn=PARTS))],
    WithUnknownGroup: [lambda: moved(WithUnknownGroup(GroupSpace(BY_GROUP, learn=PARTS)))],
    BalancedError: [
        lambda: BalancedError(surrogate=SmoothError(temperature=2.0)),
        lambda: BalancedError(over="class_and_group", surrogate=CrossEntropyRisk()),
        lambda: BalancedError(over="label", surrogate=SmoothError(temperature=2.0)),
    ],
    MacroF1Error: [lambda: MacroF1Error(surrogate=SmoothError(temperature=1.0))],
    WeightedError: [
        lambda: WeightedError(weights=(1.0, 2.0, 0.0, 3.0), surrogate=CrossEntropyRisk())
    ],
    CostMatrix: [
        lambda: CostMatrix(costs=torch.arange(16.0).view(4, 4)),
        lambda: CostMatrix(costs=1.0 - torch.eye(4), surrogate=SmoothError(temperature=0.5)),
    ],
    MeanIoU: [MeanIoU, lambda: MeanIoU(surrogate=SmoothError(temperature=0.5))],
    WorstError: [lambda: WorstError(over="group", softness=0.2, surrogate=SmoothError(1.0))],
    CVaRError: [
        lambda: CVaRError(fraction=0.6, surrogate=SmoothError(1.0)),
        lambda: CVaRError(over="class_and_group", surrogate=CrossEntropyRisk()),
    ],
    QuantileError: [lambda: QuantileError(q=0.3, softness=0.2, surrogate=SmoothError(1.0))],
    ErrorDeviation: [lambda: ErrorDeviation(over="group", surrogate=SmoothError(1.0))],
    Blend: [
        lambda: Blend(
            parts=((0.7, CVaRError()), (0.3, ErrorDeviation())), surrogate=SmoothError(1.0)
        ),
        lambda: Blend(
            parts=((0.5, BalancedError()), (2.0, WorstError(over="group"))),
            surrogate=CrossEntropyRisk(),
        ),
    ],
    OddsGap: [
        lambda: OddsGap(softness=0.2, surrogate=SmoothError(1.0)),
        lambda: OddsGap(over_classes="max", softness=0.2, surrogate=CrossEntropyRisk()),
    ],
    OpportunityGap: [
        lambda: OpportunityGap(positive=1, softness=0.2, surrogate=SmoothError(1.0)),
    ],
    ParityGap: [lambda: ParityGap(softness=0.2, surrogate=SmoothError(1.0))],
    BoundedGap: [
        lambda: BoundedGap(
            gap=OddsGap(softness=0.2), bound=0.01, multiplier=0.3, surrogate=SmoothError(1.0)
        ),
        lambda: BoundedGap(
            main=WorstError(over="group"),
            gap=OpportunityGap(positive=1),
            bound=0.02,
            surrogate=CrossEntropyRisk(),
        ),
    ],
    SmoothError: [lambda: SmoothError(temperature=0.5)],
    CrossEntropyRisk: [CrossEntropyRisk],
    Identity: [Identity],
    ConjugateGradient: [lambda: ConjugateGradient(iterations=3, damping=0.1, warm_start=True)],
    Neumann: [lambda: Neumann(terms=4, max_step=0.5)],
    Exact: [lambda: Exact(damping=0.1)],
    Nystrom: [lambda: Nystrom(rank=3, damping=0.1)],
    SingleLoop: [lambda: SingleLoop(line_search_every=2, preconditioned=True)],
}


# A layer that a network ends in; it computes nothing from targets.
NO_LOSS = {NormalizedLinear}


def begun(loss: DeferredLoss) -> DeferredLoss:
    """In its second stage."""
    loss.reached(9, 10)
    return loss


Space = TypeVar("Space", bound=DesignSpace)


def moved(space: Space) -> Space:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in space.parameters():
            p += 0.3 * torch.randn(p.shape, generator=generator)
    return space


def within_bounds(space: Any) -> Any:
    """With gamma where it acts: beyond its bound a step has no effect, and so no derivative."""
    with torch.no_grad():
        assert isinstance(space.gamma, Tensor)
        space.gamma.fill_(0.5 * space.most_gamma)
    return space


def public_classes() -> set[type]:
    """Every public concrete class of the package that is one of the kinds under contract."""
    rooms = ("losses", "hypergrad", "spaces", "objectives", "tunable")
    found: set[type] = set(get_args(Surrogate))
    for info in pkgutil.walk_packages(autobalance.__path__, "autobalance."):
        if info.name.split(".")[1] not in rooms:
            continue
        for name, value in vars(importlib.import_module(info.name)).items():
            if not inspect.isclass(value) or value.__module__ != info.name or name[0] == "_":
                continue
            if issubclass(value, (nn.Module, Objective, Solver)) and not inspect.isabstract(value):
                found.add(value)
    return found


def subclasses(base: type) -> set[type]:
    below = {c for direct in base.__subclasses__() for c in {direct, *subclasses(direct)}}
    return {c for c in below if c.__module__.startswith("autobalance.")}


def test_every_public_class_has_an_example() -> None:
    assert public_classes() - NO_LOSS == set(EXAMPLES)


@pytest.mark.parametrize("base", [DesignSpace, Objective, Solver])
def test_every_subclass_has_an_example_wherever_it_lives(base: type) -> None:
    concrete = {c for c in subclasses(base) if not inspect.isabstract(c)}
    assert concrete <= set(EXAMPLES)
    assert concrete
    assert inspect.isabstract(base)


@pytest.mark.parametrize("kind", EXAMPLES, ids=lambda k: k.__name__)
def test_every_class_is_documented_and_exported_by_its_package(kind: type) -> None:
    assert (inspect.getdoc(kind) or "").strip()
    assert getattr(autobalance, kind.__name__) is kind


def test_no_public_name_is_that_of_a_module() -> None:
    """Importing the module would put it in the place of the function."""
    modules = {info.name for info in pkgutil.iter_modules(autobalance.__path__)}
    assert not modules & set(autobalance.__all__)


# Losses as modules, called on logits and targets.
OF_LABELS = (
    ParametricBinaryCrossEntropy,
    AsymmetricLoss,
    DistributionBalancedLoss,
    TunableBinaryCrossEntropy,
)
LOSSES = tuple(
    kind for kind in EXAMPLES if issubclass(kind, nn.Module) and not issubclass(kind, DesignSpace)
)


# Using an example -----------------------------------------------------------------------------


def batch(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    logits = 2 * torch.randn(9, 4, generator=generator, dtype=torch.float64)
    return logits.to(dtype), torch.arange(9) % 3, torch.arange(9) % 2


def use(thing: Any, dtype: torch.dtype = torch.float32, logits: Tensor | None = None) -> Tensor:
    """What the thing computes, flat, on the logits given or some of its own."""
    own, target, groups = batch(dtype)
    f = own if logits is None else logits
    if isinstance(thing, ParityGap):  # of two classes
        f, target = f[:, :2], target % 2
    if isinstance(thing, OF_LABELS) or getattr(thing, "over", None) == "label":
        labels = (torch.arange(36).view(9, 4) % 5 == 0).long()
        labels[0, 0] = -1
        return thing(f, labels).reshape(-1)
    if isinstance(thing, (*LOSSES, Objective)):
        return thing(f, target, groups=groups).reshape(-1)
    if isinstance(thing, (SmoothError, CrossEntropyRisk)):
        return thing(f, target)
    if isinstance(thing, DesignSpace):
        parts = [p.reshape(-1) for p in thing() if p is not None]
        return torch.cat([*parts, thing.penalty().reshape(1)])
    assert isinstance(thing, Solver)
    data = images(8)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(16, 4)).to(dtype)
        space = moved(ClassSpace(COUNTS)).to(dtype)
    train = type(data)(data.inputs.to(dtype), data.target)
    found = hypergradient(
        model, TunableCrossEntropy(space), BalancedError(), train, train, solver=thing
    )
    return torch.cat([g.reshape(-1) for g in found.gradients])


ALL = [
    pytest.param(build, id=f"{kind.__name__}-{i}")
    for kind, builds in EXAMPLES.items()
    for i, build in enumerate(builds)
]
each = pytest.mark.parametrize("build", ALL)


@each
def test_pickle_and_deepcopy_compute_the_same_bit_for_bit(build: Callable[[], Any]) -> None:
    thing = build()
    expected = use(thing).detach()
    for twin in (pickle.loads(pickle.dumps(thing)), copy.deepcopy(thing)):
        assert type(twin) is type(thing)
        assert repr(twin) == repr(thing)
        assert torch.equal(use(twin).detach(), expected)
        if not isinstance(thing, nn.Module):
            assert twin == thing


@each
def test_float32_and_float64_agree_and_keep_their_dtype(build: Callable[[], Any]) -> None:
    thing = build()
    single = use(thing, torch.float32).detach()
    if isinstance(thing, nn.Module):
        thing = thing.double()
    exact = use(thing, torch.float64).detach()
    assert single.dtype == torch.float32
    assert exact.dtype == torch.float64
    assert torch.isfinite(exact).all()
    torch.testing.assert_close(single.double(), exact, rtol=1e-4, atol=1e-5)


@each
def test_using_it_draws_nothing_at_random_and_repeats(build: Callable[[], Any]) -> None:
    thing = build()
    state = torch.random.get_rng_state()
    assert torch.equal(use(thing).detach(), use(thing).detach())
    assert torch.equal(torch.random.get_rng_state(), state)


def of(*kinds: type) -> Any:
    chosen = [
        pytest.param(build, id=f"{kind.__name__}-{i}")
        for kind, builds in EXAMPLES.items()
        if issubclass(kind, kinds)
        for i, build in enumerate(builds)
    ]
    return pytest.mark.parametrize("build", chosen)


@of(*LOSSES, Objective, *get_args(Surrogate))
def test_differentiable_in_the_logits(build: Callable[[], Any]) -> None:
    thing = build()
    if isinstance(thing, nn.Module):
        thing = thing.double()
    leaf = batch(torch.float64)[0].requires_grad_()
    value = use(thing, torch.float64, leaf)
    assert torch.autograd.grad(value.sum(), leaf)[0].any()
    if isinstance(thing, QuantileError):
        return  # its gradient is that of a smoother function than its value
    assert torch.autograd.gradcheck(lambda f: use(thing, torch.float64, f), leaf)


@of(DesignSpace)
def test_differentiable_in_every_free_parameter(build: Callable[[], Any]) -> None:
    space = build().double()
    free = dict(space.named_parameters())
    assert free

    def at(*values: Tensor) -> Tensor:
        parts: LossParameters = torch.func.functional_call(
            space, dict(zip(free, values, strict=True)), ()
        )
        return torch.cat([p.reshape(-1) for p in parts if p is not None])

    values = [p.detach().clone().requires_grad_() for p in free.values()]
    mix = torch.randn(len(at(*values)), generator=torch.Generator().manual_seed(2)).double()
    assert all(g.any() for g in torch.autograd.grad(at(*values) @ mix, values))
    assert torch.autograd.gradcheck(at, values)


@of(DesignSpace, *LOSSES)
def test_state_dict_carries_everything_that_moves(build: Callable[[], Any]) -> None:
    thing, other = build(), build()
    for t in other.state_dict().values():
        if t.is_floating_point():
            t.mul_(1.5)
    state = copy.deepcopy(other.state_dict())
    if state:
        assert not torch.equal(use(thing).detach(), use(other).detach())
    thing.load_state_dict(state)
    assert torch.equal(use(thing).detach(), use(other).detach())


@of(Objective, Solver, *get_args(Surrogate))
def test_settings_cannot_be_changed_by_mistake(build: Callable[[], Any]) -> None:
    """And equal settings are equal, so that they can be compared and used as keys."""
    thing = build()
    assert thing == build()
    assert hash(thing) == hash(build())
    for name in getattr(thing, "__dataclass_fields__", {}):
        with pytest.raises(AttributeError, match=f"cannot assign to field '{name}'"):
            setattr(thing, name, None)
