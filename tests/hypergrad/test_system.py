"""Every product against a dense float64 matrix, and what is lent comes back bit-identical."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from autobalance.data.batches import Batch
from autobalance.hypergrad import TrainingSystem
from autobalance.hypergrad.system import borrowed, call, flatten, trainable, unflatten
from autobalance.spaces import PARTS, ClassSpace
from autobalance.tunable import TunableCrossEntropy
from helpers import (
    COUNTS,
    GROUP_COUNTS,
    NETWORKS,
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
    model: nn.Module, loss: TunableCrossEntropy, batch: Batch, shift: float | Tensor = SHIFT
) -> TrainingSystem:
    design = loss.space()

    def logit_loss(f: Tensor) -> Tensor:
        return loss.at(
            design, f, batch.target, groups=batch.groups, sample_weight=batch.sample_weight
        )

    return TrainingSystem(model, [(batch.inputs, logit_loss)], list(loss.space.parameters()), shift)


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
    with borrowed(model):
        found = system_of(model, tunable(), batch).tangent(v)
    close(found.reshape(-1), dense_jacobian(model, batch.inputs) @ v, 1e-12)


@pytest.mark.parametrize("name", NETWORKS)
def test_tangent_equals_finite_differences_of_the_forward_pass(name: str) -> None:
    """Independent of any derivative of torch's: forward mode through BatchNorm was wrong before."""
    model, batch = network(name), images(10)
    v = direction(model)
    with borrowed(model):
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
    with borrowed(model):
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


def test_shift_may_differ_by_weight() -> None:
    model, batch = network("mlp"), images(10)
    v = direction(model)
    shifts = torch.linspace(0, 1, len(v), dtype=torch.float64)
    plain, _ = system_of(model, tunable(), batch, shift=0.0).product(v)
    found, _ = system_of(model, tunable(), batch, shift=shifts).product(v)
    close(found - plain, shifts * v, 1e-12)


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
    with borrowed(model):
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
        with borrowed(model):
            model.train()
            torch.rand(3)
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail()
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.random.get_rng_state(), state)


def test_call_writes_to_no_buffer() -> None:
    model = network("batch_norm")
    before = {name: b.clone() for name, b in model.named_buffers()}
    logits = call(model, dict(trainable(model)), images(10).inputs)
    torch.testing.assert_close(logits, forward(model, images(10).inputs)[0], rtol=1e-14, atol=0)
    after = dict(model.named_buffers())
    assert int(before["1.num_batches_tracked"]) == 0
    assert all(torch.equal(after[name], b) for name, b in before.items())
