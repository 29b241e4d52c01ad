"""Models as users wrap them: compiled, autocast, channels last, partly frozen, with adapters."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from autobalance.bilevel.loss_tuner import LossTuner
from autobalance.data.batches import Batch
from autobalance.functional.model import flatten
from autobalance.hypergrad.implicit import hypergradient
from autobalance.hypergrad.solvers import (
    ConjugateGradient,
    Exact,
    Identity,
    Nystrom,
    SingleLoop,
    Solver,
)
from autobalance.objectives.aggregates import BalancedError
from helpers import NUM_CLASSES, class_loss, dense_hypergradient


def small_cnn(dropout: float = 0.0) -> nn.Module:
    """Several channels, so that the memory format matters; BatchNorm on images."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1, bias=False),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.Conv2d(6, 5, 3, stride=2, padding=1),
            nn.BatchNorm2d(5),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Dropout(dropout),
            nn.Linear(5, NUM_CLASSES),
        )


def colours(n: int, seed: int, dtype: torch.dtype = torch.float64) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(n, 3, 6, 6, generator=generator, dtype=torch.float64)
    return Batch(inputs.to(dtype), torch.tensor([0, 0, 1, 2, 0, 1, 3])[torch.arange(n) % 7])


def found_by(model: nn.Module, solver: Solver, dtype: torch.dtype = torch.float64) -> Tensor:
    found = hypergradient(
        model,
        class_loss().to(dtype),
        BalancedError(),
        colours(12, 0, dtype),
        colours(14, 1, dtype),
        solver=solver,
        weight_decay=0.05,
    )
    return flatten(found.gradients)


def gap(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


# Exact ----------------------------------------------------------------------------------------


class WithAdapter(nn.Module):
    """A frozen layer plus a low-rank, trainable one beside it, as in LoRA."""

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Parameter(0.3 * torch.randn(rank, base.in_features))
        self.up = nn.Parameter(0.3 * torch.randn(base.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + x @ self.down.T @ self.up.T


def with_adapter() -> nn.Module:
    model = small_cnn().requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        model[9] = WithAdapter(nn.Linear(5, NUM_CLASSES), rank=2)
    return model


def frozen_backbone() -> nn.Module:
    """In evaluation mode, as is usual; the head is trained."""
    model = small_cnn()
    model[:9].requires_grad_(False).eval()
    return model


def tied_convolutions() -> nn.Module:
    model = small_cnn()
    model[3] = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1))
    model[3][1].weight = model[3][0].weight
    model[4], model[9] = nn.BatchNorm2d(6), nn.Linear(6, NUM_CLASSES)
    return model


@pytest.mark.parametrize(
    "make", [small_cnn, frozen_backbone, tied_convolutions, with_adapter], ids=lambda f: f.__name__
)
def test_equals_dense_algebra(make: Callable[[], nn.Module]) -> None:
    model = make().double()
    expected = dense_hypergradient(
        model, class_loss(), BalancedError(), colours(12, 0), colours(14, 1), 0.06
    )
    assert gap(found_by(model, Exact(damping=0.01)), expected) < 1e-10


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("solver", [SingleLoop(), ConjugateGradient()], ids=["loop", "cg"])
def test_channels_last_equals_contiguous(solver: Solver, dtype: torch.dtype) -> None:
    model = small_cnn().to(dtype)
    last = copy.deepcopy(model).to(memory_format=torch.channels_last)
    assert not last.get_parameter("3.weight").is_contiguous()
    train, held = (
        Batch(b.inputs.contiguous(memory_format=torch.channels_last), b.target)
        for b in (colours(12, 0, dtype), colours(14, 1, dtype))
    )
    loss = class_loss().to(dtype)
    found = hypergradient(
        last, loss, BalancedError(), train, held, solver=solver, weight_decay=0.05
    )
    limit = 1e-5 if dtype == torch.float32 else 1e-10
    assert gap(flatten(found.gradients), found_by(model, solver, dtype)) < limit
    assert not last.get_parameter("3.weight").is_contiguous()  # left in its format


# Compiled -------------------------------------------------------------------------------------


def wrapped(model: nn.Module, backend: Any) -> nn.Module:
    return torch.compile(model, backend=backend)  # type: ignore[return-value]


class Own(nn.Module):
    """Of the user's own code: torch compiles no forward of its own classes in place."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)


def in_place(model: nn.Module, backend: Any) -> nn.Module:
    own = Own(model)
    own.compile(backend=backend)
    return own


def parts(model: nn.Module, backend: Any) -> nn.Module:
    model[0] = torch.compile(model[0], backend=backend)
    return model


def state(model: nn.Module) -> list[Any]:
    return [
        [p.detach().clone() for p in model.parameters()],
        [b.clone() for b in model.buffers()],
        [p.grad for p in model.parameters()],
        [module.training for module in model.modules()],
        torch.random.get_rng_state(),
    ]


@pytest.mark.parametrize(
    ("compiled", "backend"),
    [(wrapped, "eager"), (wrapped, "aot_eager"), (in_place, "eager"), (parts, "aot_eager")],
    ids=["wrapped-eager", "wrapped-aot", "in-place", "parts"],
)
def test_a_compiled_model_gives_what_the_plain_one_gives(compiled: Any, backend: str) -> None:
    plain = small_cnn(dropout=0.2).double()
    model = compiled(copy.deepcopy(plain), backend)
    train, held = colours(12, 0), colours(14, 1)
    with torch.random.fork_rng(devices=[]):
        for m in (plain, model):  # a training pass of each, which compiles
            torch.manual_seed(1)
            m(train.inputs)
    uppers = [LossTuner(class_loss()) for _ in range(2)]
    before = state(model)
    for _ in range(3):
        pairs = zip(uppers, (plain, model), strict=True)
        a, b = (upper.step(m, train, held) for upper, m in pairs)
        assert b.norm == pytest.approx(a.norm, rel=1e-12)
        assert b.residual == pytest.approx(a.residual, rel=1e-12)
    torch.testing.assert_close(state(model), before, rtol=0, atol=0)
    expected, found = (flatten([p.detach() for p in u.loss.space.parameters()]) for u in uppers)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)
    with torch.random.fork_rng(devices=[]):  # still in working order
        assert model(train.inputs).requires_grad


@pytest.mark.parametrize("compiled", [wrapped, in_place, parts], ids=lambda f: f.__name__)
def test_compiled_code_is_not_run_nor_compiled_anew(compiled: Any) -> None:
    """It has no forward mode, and each kind of pass would compile once more."""
    runs = []

    def backend(graph: Any, _: Any) -> Callable[..., Any]:
        runs.append("compiled")

        def run(*inputs: Any) -> Any:
            runs.append("run")
            return graph(*inputs)

        return run

    model, train = compiled(small_cnn().double(), backend), colours(12, 0)
    model(train.inputs)
    assert "run" in runs
    runs.clear()
    LossTuner(class_loss()).step(model, train, colours(14, 1))
    assert runs == []
    model(train.inputs)
    assert "run" in runs


# Mixed precision ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "solver",
    [SingleLoop(), ConjugateGradient(), Identity(), Nystrom()],
    ids=lambda s: type(s).__name__,
)
def test_autocast_to_bfloat16_gives_about_the_same_direction(solver: Solver) -> None:
    model = small_cnn().float()
    expected = found_by(model, solver, torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = found_by(model, solver, torch.float32)
    assert torch.isfinite(found).all()
    assert not torch.equal(found, expected)  # it was in effect
    assert float(found @ expected / (found.norm() * expected.norm())) > 0.98
    assert float(found.norm() / expected.norm()) == pytest.approx(1.0, abs=0.1)


def test_training_goes_on_within_the_same_autocast() -> None:
    """Autocast keeps converted weights until it ends; a step must leave none without their graph."""
    model = small_cnn().float()
    upper = LossTuner(class_loss().float())
    train, held = colours(12, 0, torch.float32), colours(14, 1, torch.float32)

    def gradient(step: bool) -> Tensor:
        clone = copy.deepcopy(model)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            if step:
                assert not upper.step(clone, train, held).skipped
            logits = clone(train.inputs)
            nn.functional.cross_entropy(logits.float(), train.target).backward()
        return flatten([p.grad for p in clone.parameters() if p.grad is not None])

    assert torch.equal(gradient(step=True), gradient(step=False))


# Gradient accumulation ------------------------------------------------------------------------


def test_a_step_between_two_accumulated_batches_leaves_their_gradient_alone() -> None:
    model = small_cnn(dropout=0.2)
    first, second = colours(12, 0, torch.float32), colours(12, 1, torch.float32)
    upper = LossTuner(class_loss().float())

    def accumulated(step: bool) -> list[Tensor]:
        clone = copy.deepcopy(model)
        torch.manual_seed(1)
        for batch in (first, second):
            nn.functional.cross_entropy(clone(batch.inputs), batch.target).backward()
            if step:
                grads = [p.grad for p in clone.parameters()]
                upper.step(clone, first, second)
                assert all(p.grad is g for p, g in zip(clone.parameters(), grads, strict=True))
        return [p.grad for p in clone.parameters() if p.grad is not None]

    for a, b in zip(accumulated(step=True), accumulated(step=False), strict=True):
        assert torch.equal(a, b)
