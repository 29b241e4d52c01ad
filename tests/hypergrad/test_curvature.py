"""Every product against a dense float64 matrix, and what is lent comes back bit-identical."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from autobalance._validation import InputError
from autobalance.data.batches import Batch
from autobalance.functional.model import FunctionalModel, flatten, trainable, unflatten
from autobalance.functional.module_state import preserve_module_state
from autobalance.hypergrad.curvature import LogitLoss, TrainingSystem
from autobalance.hypergrad.implicit import hypergradient
from autobalance.hypergrad.solvers import SingleLoop
from autobalance.objectives.aggregates import BalancedError
from autobalance.spaces.base import PARTS
from autobalance.spaces.class_space import ClassSpace
from autobalance.spaces.tunable_loss import TunableCrossEntropy
from helpers import (
    COUNTS,
    GROUP_COUNTS,
    NETWORKS,
    class_loss,
    dense_hessian,
    dense_jacobian,
    forward,
    images,
    leaves,
    logit_curvature,
    network,
    scatter,
    training_gradient,
)

SHIFT = 0.03


def tunable(
    *, groups: bool = False, learn: Iterable[str] = PARTS, reduction: Any = "mean", **options: Any
) -> TunableCrossEntropy:
    """All of w, l and delta free, off their start."""
    space = ClassSpace(GROUP_COUNTS if groups else COUNTS, learn=learn).double()
    scatter(space)
    return TunableCrossEntropy(space, reduction=reduction, **options)


def system_of(
    model: nn.Module | FunctionalModel,
    loss: TunableCrossEntropy,
    batch: Batch | list[Batch],
    shift: float | Tensor = SHIFT,
    **given: Any,
) -> TrainingSystem:
    design = loss.space()

    def logit_loss(batch: Batch) -> LogitLoss:
        return lambda f: loss.at(
            design, f, batch.target, groups=batch.groups, sample_weight=batch.sample_weight
        )

    batches = [batch] if isinstance(batch, Batch) else batch
    pairs = [(b.inputs, logit_loss(b)) for b in batches]
    return TrainingSystem(model, pairs, list(loss.space.parameters()), shift, **given)


def direction(model: nn.Module, seed: int = 3) -> Tensor:
    size = sum(p.numel() for p in leaves(model))
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, generator=generator, dtype=torch.float64)


def close(found: Tensor, expected: Tensor, relative: float) -> None:
    """Relative in norm: entries that are 0 by symmetry carry rounding of the others."""
    assert found.shape == expected.shape
    norm = float(expected.norm())
    assert norm > 1e-6, "an oracle of zero proves nothing"
    assert float((found - expected).norm()) <= relative * norm


@pytest.mark.parametrize("name", NETWORKS)
def test_tangent_equals_the_dense_jacobian(name: str) -> None:
    model, batch = network(name), images(10)
    v = direction(model)
    with preserve_module_state(model):
        found = system_of(model, tunable(), batch).tangent(v)
    close(found.reshape(-1), dense_jacobian(model, batch.inputs) @ v, 1e-12)


@pytest.mark.parametrize("name", NETWORKS)
def test_tangent_equals_finite_differences_of_the_forward_pass(name: str) -> None:
    """Independent of any derivative of torch's: forward mode through BatchNorm was wrong before."""
    model, batch = network(name), images(10)
    v = direction(model)
    with preserve_module_state(model):
        found = system_of(model, tunable(), batch).tangent(v)
    h = 1e-5

    def moved(sign: int) -> Tensor:
        clone = copy.deepcopy(model)
        with torch.no_grad():
            for p, part in zip(leaves(clone), unflatten(v, leaves(clone)), strict=True):
                p += sign * h * part
        return forward(clone, batch.inputs)[0].detach()

    close(found, (moved(1) - moved(-1)) / (2 * h), 1e-7)


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "sample-weights"])
@pytest.mark.parametrize("groups", [False, True], ids=["class", "class-and-group"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("name", NETWORKS)
def test_product_equals_the_dense_gauss_newton_matrix(
    name: str, reduction: str, groups: bool, weighted: bool
) -> None:
    model, batch = network(name), images(10, weighted=weighted)
    loss = tunable(groups=groups, reduction=reduction)
    v = direction(model)
    J = dense_jacobian(model, batch.inputs)
    logits, _ = forward(model, batch.inputs)
    curvature = logit_curvature(loss, logits, batch, reduction=reduction)
    with preserve_module_state(model):
        found, tangent = system_of(model, loss, batch).product(v)
    close(found, J.T @ (curvature @ (J @ v)) + SHIFT * v, 1e-11)
    close(tangent.reshape(-1), J @ v, 1e-12)


def test_gauss_newton_is_the_hessian_where_logits_are_linear_in_the_weights() -> None:
    """The Hessian by double backward, the decay within the loss."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(16, 4)).double()
    batch, loss = images(10), tunable(label_smoothing=0.1)
    v = direction(model)
    logits, weights = forward(model, batch.inputs)
    value = loss.at(loss.space(), logits, batch.target)
    value = value + SHIFT / 2 * sum((w**2).sum() for w in weights)
    gradient = flatten(torch.autograd.grad(value, weights, create_graph=True))
    hessian_v = flatten(torch.autograd.grad(gradient @ v, weights))
    close(system_of(model, loss, batch).product(v)[0], hessian_v, 1e-12)


def test_product_is_symmetric_and_positive_semidefinite() -> None:
    model, batch = network("batch_norm"), images(10)
    system = system_of(model, tunable(), batch, shift=0.0)
    size = direction(model).numel()
    A = torch.stack([system.product(row)[0] for row in torch.eye(size, dtype=torch.float64)])
    assert float((A - A.T).abs().max()) < 1e-13
    eigenvalues = torch.linalg.eigvalsh((A + A.T) / 2)
    assert float(eigenvalues[0]) > -1e-13
    assert float(eigenvalues[-1]) > 0.1


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("groups", [False, True], ids=["class", "class-and-group"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("name", NETWORKS)
def test_mixed_product_equals_double_backward_and_finite_differences(
    name: str, reduction: str, groups: bool, smoothing: float
) -> None:
    model, batch = network(name), images(10, weighted=True)
    loss = tunable(groups=groups, reduction=reduction, label_smoothing=smoothing)
    free = list(loss.space.parameters())
    q = direction(model)
    with preserve_module_state(model):
        system = system_of(model, loss, batch)
        found = flatten(system.mixed(system.tangent(q)))

    along = training_gradient(model, loss, batch) @ q
    double = flatten(torch.autograd.grad(along, free))
    close(found, double, 1e-11)

    h = 1e-5
    v = torch.randn(len(found), generator=torch.Generator().manual_seed(9), dtype=torch.float64)

    def moved(sign: int) -> Tensor:
        other = copy.deepcopy(loss)
        with torch.no_grad():
            for p, part in zip(other.space.parameters(), unflatten(v, free), strict=True):
                p += sign * h * part
        return training_gradient(model, other, batch).detach() @ q

    numeric = float(moved(1) - moved(-1)) / (2 * h)
    assert float(found @ v) == pytest.approx(numeric, rel=1e-6)


def test_mixed_product_of_a_parameter_without_effect_is_zero() -> None:
    """A common offset of l cancels in the softmax."""
    model, batch = network("mlp"), images(10)
    loss = tunable(learn=("additive",))
    system = system_of(model, loss, batch)
    (found,) = system.mixed(system.tangent(direction(model)))
    assert abs(float(found.sum())) < 1e-14
    assert float(found.abs().max()) > 1e-3


def test_all_products_see_one_dropout_mask() -> None:
    """And another random state, another mask."""
    model, batch = network("dropout"), images(10)
    v = direction(model)
    system = system_of(model, tunable(), batch)
    first, _ = system.product(v)
    again, tangent = system.product(v)
    assert torch.equal(first, again)
    assert torch.equal(tangent, system.tangent(v))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(99)
        other, _ = system_of(model, tunable(), batch).product(v)
    assert not torch.allclose(first, other)


# Several batches ------------------------------------------------------------------------------


def uneven() -> list[Batch]:
    """Of different sizes, so that a mean over batches is none over examples."""
    return [images(10, weighted=True), images(7, seed=1), images(4, seed=2)]


def batch_by_batch(
    model: nn.Module, batches: list[Batch], oracle: Callable[[Batch], Tensor]
) -> list[Tensor]:
    """The oracle on each batch, the dropout masks drawn one after the other."""
    found = []
    with torch.random.fork_rng(devices=[]):
        for batch in batches:
            found.append(oracle(batch))
            copy.deepcopy(model)(batch.inputs)  # moves the random state on
    return found


def dense_gauss_newton(model: nn.Module, loss: TunableCrossEntropy, batch: Batch) -> Tensor:
    J = dense_jacobian(model, batch.inputs)
    return J.T @ logit_curvature(loss, forward(model, batch.inputs)[0], batch) @ J


CURVATURES: dict[Any, Any] = {"gauss_newton": dense_gauss_newton, "hessian": dense_hessian}


@pytest.mark.parametrize("batches", [uneven()[:1], uneven()], ids=["one", "three"])
@pytest.mark.parametrize("curvature", CURVATURES)
@pytest.mark.parametrize("name", NETWORKS)
def test_product_and_quadratic_are_means_of_the_batches_dense_matrices(
    name: str, curvature: Any, batches: list[Batch]
) -> None:
    """Either curvature; train-mode BatchNorm, a mask for each batch, frozen and tied weights."""
    model, loss = network(name), class_loss()
    v = direction(model)
    dense = batch_by_batch(model, batches, lambda b: CURVATURES[curvature](model, loss, b))
    A = torch.stack(dense).mean(dim=0) + SHIFT * torch.eye(len(v), dtype=v.dtype)
    rows = batch_by_batch(model, batches, lambda b: dense_jacobian(model, b.inputs) @ v)
    with preserve_module_state(model):
        system = system_of(model, loss, batches, curvature=curvature)
        found, tangent = system.product(v)
        again, _ = system.product(v)
        quadratic = system.quadratic(v, tangent)
    close(found, A @ v, 1e-11)
    close(tangent.reshape(-1), torch.cat(rows), 1e-12)
    assert torch.equal(again, found)  # the same masks
    assert quadratic == pytest.approx(float(v @ A @ v), rel=1e-11)


@pytest.mark.parametrize("curvature", CURVATURES)
@pytest.mark.parametrize("name", NETWORKS)
def test_the_mixed_product_of_several_batches_is_the_mean_of_theirs(
    name: str, curvature: Any
) -> None:
    model, loss, batches = network(name), class_loss(), uneven()
    q, free = direction(model), list(loss.space.parameters())
    along = batch_by_batch(model, batches, lambda b: training_gradient(model, loss, b) @ q)
    expected = flatten(torch.autograd.grad(torch.stack(along).mean(), free))
    with preserve_module_state(model):
        system = system_of(model, loss, batches, curvature=curvature)
        _, tangent = system.product(q)  # its passes leave the mixed product what it needs
        found = flatten(system.mixed(tangent))
        again = flatten(system.mixed(tangent))
    close(found, expected, 1e-11)
    assert torch.equal(again, found)


def test_each_batch_has_a_dropout_mask_of_its_own() -> None:
    model, batch = network("dropout"), images(10)
    with preserve_module_state(model):
        first, second = (
            system_of(model, class_loss(), [batch, batch]).tangent(direction(model)).split(10)
        )
    assert not torch.allclose(first, second)
    with preserve_module_state(model):
        alone = system_of(model, class_loss(), batch).tangent(direction(model))
    assert torch.equal(first, alone)


class _Graph:
    """Lives as long as the graph of one forward pass."""


class Watched(nn.Module):
    """A network that knows how many graphs of its own were alive at once."""

    def __init__(self) -> None:
        super().__init__()
        self.network = network("mlp")
        self.alive: weakref.WeakSet[_Graph] = weakref.WeakSet()
        self.seen = SimpleNamespace(most=0)  # an attribute of the module itself would be set back

    def forward(self, inputs: Tensor) -> Tensor:
        logits = _watch(self, self.network(inputs))
        self.seen.most = max(self.seen.most, len(self.alive))
        return logits


class _Watch(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, owner: Watched) -> Tensor:
        ctx.graph = _Graph()
        owner.alive.add(ctx.graph)
        return logits.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return gradients[0].clone(), None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        return tangents[0].clone()


def _watch(owner: Watched, logits: Tensor) -> Tensor:
    return cast(Tensor, _Watch.apply(logits, owner))


@pytest.mark.parametrize("forward_mode", [True, False], ids=["forward-mode", "double-backward"])
@pytest.mark.parametrize("curvature", CURVATURES)
def test_many_batches_need_the_memory_of_one(curvature: Any, forward_mode: bool) -> None:
    """No graph of an earlier batch is kept."""
    model = Watched()
    network = FunctionalModel(model, derivative="forward" if forward_mode else "double backward")
    v = direction(model)
    system = system_of(network, class_loss(), uneven(), curvature=curvature)
    for _ in range(2):
        _, tangent = system.product(v)
        system.quadratic(v, tangent)
        system.mixed(tangent)
    assert model.seen.most == 1
    assert len(model.alive) == 0
    alone = system_of(network, class_loss(), images(10), curvature=curvature)
    alone.product(v)
    assert len(model.alive) == 1  # a single batch's is kept for the next product


@pytest.mark.parametrize("curvature", CURVATURES)
@pytest.mark.parametrize("name", NETWORKS)
def test_double_backward_equals_forward_mode(name: str, curvature: Any) -> None:
    """What stands in where a network has no forward mode, here on networks that have it."""
    model, loss, batches = network(name), class_loss(), uneven()
    v = direction(model)
    with preserve_module_state(model):
        system = system_of(model, loss, batches, curvature=curvature)
        product, tangent = system.product(v)
        mixed = flatten(system.mixed(tangent))
    other_way = FunctionalModel(model, derivative="double backward")
    with preserve_module_state(model):
        system = system_of(other_way, loss, batches, curvature=curvature)
        other, other_tangent = system.product(v)
        close(flatten(system.mixed(other_tangent)), mixed, 1e-10)
    close(other, product, 1e-10)
    close(other_tangent, tangent, 1e-10)


@pytest.mark.parametrize("curvature", CURVATURES)
def test_shift_by_weight_is_part_of_product_and_quadratic(curvature: Any) -> None:
    model, batches = network("mlp"), uneven()
    v = direction(model)
    shifts = torch.linspace(0, 1, len(v), dtype=torch.float64)
    plain = system_of(model, class_loss(), batches, 0.0, curvature=curvature)
    system = system_of(model, class_loss(), batches, shifts, curvature=curvature)
    found, tangent = system.product(v)
    close(found - plain.product(v)[0], shifts * v, 1e-12)
    assert system.quadratic(v, tangent) == pytest.approx(float(v @ found), rel=1e-12)
    assert plain.quadratic(v, tangent) == pytest.approx(
        float(v @ found - v @ (shifts * v)), rel=1e-11
    )


def test_trainable_takes_tied_weights_once_and_leaves_frozen_ones_out() -> None:
    assert list(trainable(network("tied"))) == ["first.weight"]
    assert list(trainable(network("frozen"))) == ["2.weight", "2.bias", "4.weight", "4.bias"]


def test_flatten_and_unflatten_are_inverse() -> None:
    parts = [torch.arange(6.0).reshape(2, 3), torch.tensor(7.0), torch.ones(2)]
    vector = flatten(parts)
    assert vector.tolist() == [0, 1, 2, 3, 4, 5, 7, 1, 1]
    assert all(torch.equal(a, b) for a, b in zip(unflatten(vector, parts), parts, strict=True))


def test_borrowed_gives_modes_and_random_state_back_even_after_an_error() -> None:
    model = network("frozen")
    modes = [module.training for module in model.modules()]
    state = torch.random.get_rng_state()

    def fail() -> None:
        with preserve_module_state(model):
            model.train()
            torch.rand(3)
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail()
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.random.get_rng_state(), state)


def test_passes_write_to_no_buffer() -> None:
    model = network("batch_norm")
    before = {name: b.clone() for name, b in model.named_buffers()}
    logits = FunctionalModel(model)(trainable(model), images(10).inputs)
    torch.testing.assert_close(logits, forward(model, images(10).inputs)[0], rtol=1e-14, atol=0)
    after = dict(model.named_buffers())
    assert int(before["1.num_batches_tracked"]) == 0
    assert all(torch.equal(after[name], b) for name, b in before.items())
    assert not any("forward" in vars(module) for module in model.modules())


class Counting(nn.Module):
    """Writes to buffers, of which two names are one, in every pass; and has a tied weight."""

    seen: Tensor
    again: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros((), dtype=torch.float64))
        self.register_buffer("again", self.seen)
        self.first = nn.Linear(16, 16, bias=False, dtype=torch.float64)
        self.second = nn.Linear(16, 16, bias=False, dtype=torch.float64)
        self.second.weight = self.first.weight
        self.norm = nn.BatchNorm1d(16, affine=False, dtype=torch.float64)
        self.odd = type("Odd", (nn.BatchNorm1d,), {})(16, dtype=torch.float64)
        self.last = nn.Linear(16, 4, dtype=torch.float64)

    def forward(self, images: Tensor) -> Tensor:
        self.seen += 1
        assert self.again is self.seen
        x = self.second(torch.tanh(self.first(images.flatten(1)))) + self.again
        return self.last(self.odd(self.norm(x)))


@pytest.mark.parametrize("dual", [False, True])
def test_passes_of_tied_weights_and_of_buffers_that_are_written(dual: bool) -> None:
    """The tie moves together; buffers of the network's own start anew in every pass and stay."""
    torch.manual_seed(0)
    model, x = Counting(), images(10).inputs
    before = {name: b.clone() for name, b in model.named_buffers()}
    passes = FunctionalModel(model)
    assert list(passes.parameters) == list(trainable(model))
    directions = {name: torch.randn_like(p) for name, p in passes.parameters.items()}
    if dual:
        with torch.no_grad(), forward_ad.dual_level():
            duals = {
                name: forward_ad.make_dual(p.detach(), directions[name])
                for name, p in passes.parameters.items()
            }
            logits, found = forward_ad.unpack_dual(passes(duals, x, dual=True))
        moved = [
            passes({n: p + h * directions[n] for n, p in passes.parameters.items()}, x)
            for h in (1e-6, -1e-6)
        ]
        torch.testing.assert_close(found, (moved[0] - moved[1]) / 2e-6, rtol=1e-6, atol=1e-6)
    else:
        logits = passes(passes.parameters, x)
        assert torch.equal(logits, passes(passes.parameters, x))
    assert all(torch.equal(b, before[name]) for name, b in model.named_buffers())
    torch.testing.assert_close(logits.detach(), model(x).detach(), rtol=1e-12, atol=1e-12)
    assert float(model.seen) == 1.0


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize(
    "frozen", [(), ("1.weight",), ("1.bias",), ("1.weight", "1.bias"), ("0.weight",)]
)
@pytest.mark.parametrize("kind", ["images", "rows"])
def test_batch_norms_short_rule_is_torchs(affine: bool, frozen: tuple[str, ...], kind: str) -> None:
    """Whatever of weights, bias and input has a direction."""
    torch.manual_seed(0)
    first: nn.Module = (
        nn.Conv2d(1, 3, 3, bias=False) if kind == "images" else nn.Linear(16, 3, bias=False)
    )
    norm = (
        nn.BatchNorm2d(3, affine=affine) if kind == "images" else nn.BatchNorm1d(3, affine=affine)
    )
    if affine:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    model = nn.Sequential(first, norm, nn.Tanh()).double()
    for name in frozen:
        if affine or name.startswith("0"):
            model.get_parameter(name).requires_grad_(False)
    x = images(10).inputs if kind == "images" else images(10).inputs.flatten(1)
    passes = FunctionalModel(model)
    directions = {name: torch.randn_like(p) for name, p in passes.parameters.items()}
    found = []
    for dual in (True, False):
        with torch.no_grad(), forward_ad.dual_level():
            duals = {
                name: forward_ad.make_dual(p.detach(), directions[name])
                for name, p in passes.parameters.items()
            }
            y, tangent = forward_ad.unpack_dual(passes(duals, x, dual=dual))
            found.append((y, torch.zeros_like(y) if tangent is None else tangent))
    torch.testing.assert_close(found[0], found[1], rtol=1e-10, atol=1e-12)


def test_bfloat16_keeps_its_kind_through_the_short_rule() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)
    )
    passes, x = FunctionalModel(model), images(10).inputs.float()
    directions = {name: torch.randn_like(p) for name, p in passes.parameters.items()}
    found = []
    for mixed in (False, True):
        with (
            torch.no_grad(),
            forward_ad.dual_level(),
            torch.autocast("cpu", torch.bfloat16, enabled=mixed),
        ):
            duals = {
                name: forward_ad.make_dual(p.detach(), directions[name])
                for name, p in passes.parameters.items()
            }
            found.append(forward_ad.unpack_dual(passes(duals, x, dual=True)).tangent)
    assert found[1].dtype == torch.float32
    assert float((found[0] - found[1]).norm() / found[0].norm()) < 0.03


def test_a_batch_norm_of_one_row_is_refused_by_the_short_rule_too() -> None:
    model = nn.Sequential(nn.Linear(16, 3), nn.BatchNorm1d(3), nn.Linear(3, 4)).double()
    loss = class_loss()
    held = Batch(images(10).inputs.flatten(1), images(10).target)
    one = Batch(held.inputs[:1], held.target[:1])
    with pytest.raises(InputError, match="BatchNorm cannot train on a batch of one example"):
        hypergradient(model, loss, BalancedError(), one, held, solver=SingleLoop())
