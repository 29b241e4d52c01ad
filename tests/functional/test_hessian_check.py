"""The exact Hessian is used only where it is the change of the gradient that trains the network."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from autobalance.functional import FunctionalModel, flatten, has_exact_hessian
from autobalance.hypergrad.implicit import hypergradient
from autobalance.hypergrad.solvers import Exact
from autobalance.objectives.aggregates import BalancedError
from helpers import NETWORKS, NUM_CLASSES, class_loss, images


class _Constant(torch.autograd.Function):
    """Tanh, whose slope counts as a constant when its backward is differentiated."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        ctx.save_for_forward(x)
        return torch.tanh(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return gradients[0] * (1 - torch.tanh(x.detach()) ** 2)

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return tangents[0] * (1 - torch.tanh(x) ** 2)


class _Once(_Constant):
    """Its backward refuses to be differentiated."""

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return gradients[0] * (1 - torch.tanh(x) ** 2)


class _Opaque(_Constant):
    """Its backward leaves torch for numpy."""

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        slope = torch.from_numpy(1 - torch.tanh(x).detach().numpy() ** 2)
        return torch.from_numpy(gradients[0].detach().numpy()) * slope


class Applied(nn.Module):
    def __init__(self, function: type[torch.autograd.Function]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function.apply(x)  # type: ignore[return-value]


class Scaled(nn.Module):
    """Divides by a size that is computed under `torch.no_grad`."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            size = x.square().mean().sqrt() + 0.1
        return torch.tanh(x / size)


class Surrogate(nn.Module):
    """A step forward, a ramp backward."""

    def forward(self, x: Tensor) -> Tensor:
        return x + (torch.round(4 * x) / 4 - x).detach()


def around(middle: nn.Module) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return nn.Sequential(
            nn.Flatten(), nn.Linear(16, 6), middle, nn.Linear(6, NUM_CLASSES)
        ).double()


def checked(model: nn.Module, inputs: Tensor) -> bool:
    return has_exact_hessian(FunctionalModel(model), inputs, "forward")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_torchs_own_layers_have_it(name: str, dtype: torch.dtype) -> None:
    model = NETWORKS[name]().to(dtype)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert checked(model, images(12).inputs.to(dtype))
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])


@pytest.mark.parametrize(
    "middle",
    [Applied(_Constant), Applied(_Once), Applied(_Opaque), Scaled(), Surrogate()],
    ids=["constant", "once", "opaque", "no_grad", "surrogate"],
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_what_loses_a_part_of_it_is_told_and_not_used(
    middle: nn.Module, dtype: torch.dtype
) -> None:
    model = around(middle).to(dtype)
    inputs = images(12).inputs.to(dtype)
    with pytest.warns(UserWarning, match="exact Hessian is not used, for .*Gauss-Newton part"):
        assert not checked(model, inputs)
    with warnings.catch_warnings():  # Once for each network.
        warnings.simplefilter("error")
        assert not checked(model, inputs)


@pytest.mark.parametrize("middle", [Applied(_Constant), Scaled()], ids=["constant", "no_grad"])
def test_a_hypergradient_then_is_that_of_gauss_newton(middle: nn.Module) -> None:
    train, held = images(10), images(15, seed=5)
    found = []
    for curvature in ("hessian", "gauss_newton"):
        solver = Exact(damping=2.0, curvature=curvature)  # type: ignore[arg-type]
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            result = hypergradient(
                around(middle), class_loss(), BalancedError(), train, held, solver=solver
            )
        found.append(flatten(result.gradients))
        told = any("exact Hessian is not used" in str(w.message) for w in caught)
        assert told == (curvature == "hessian")
    torch.testing.assert_close(*found, rtol=0, atol=0)


def test_a_state_that_changes_is_checked_again() -> None:
    model = around(Applied(_Constant))
    inputs = images(12).inputs
    with pytest.warns(UserWarning, match="exact Hessian"):
        assert not checked(model, inputs)
    model[1].requires_grad_(False)  # type: ignore[union-attr]  # What is left is linear.
    assert checked(model, inputs)
