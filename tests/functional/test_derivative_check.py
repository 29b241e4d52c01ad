"""Rounding in float32 is told from a wrong derivative."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor, nn

from autobalance.functional.derivative_check import TOLERANCES, choose_derivative
from autobalance.functional.model import FunctionalModel
from autobalance.losses.published import with_normalized_head


def deep_network(depth: int) -> nn.Module:
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [nn.Linear(32, 32), nn.BatchNorm1d(32), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(32, 4))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("tolerance", [TOLERANCES[torch.float32], 0.0])
def test_a_deep_network_in_float32_keeps_forward_mode(
    seed: int, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At 50 layers of BatchNorm on four examples; a tolerance of 0 stands for any rounding."""
    monkeypatch.setitem(TOLERANCES, torch.float32, tolerance)
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        network = FunctionalModel(deep_network(50).train())
        assert choose_derivative(network, torch.randn(4, 32)) == "forward"


class PartlyWithoutGradient(nn.Module):
    """Its reverse pass leaves out what its forward mode sees."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            gate = self.body(x)
        return self.head(self.body(x) * gate)


def test_float64_excuses_no_wrong_derivative() -> None:
    torch.manual_seed(0)
    network = FunctionalModel(PartlyWithoutGradient())
    with pytest.warns(UserWarning, match="not that of the gradient that trains it"):
        assert choose_derivative(network, torch.randn(6, 8)) == "double backward"


class WrongInFloat32(nn.Module):
    """Its backward is wrong in float32 alone, as a kernel of that dtype may be."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        if y.dtype == torch.float32:
            half = y.detach() + 0.5 * (y - y.detach())
            y = half if torch.is_grad_enabled() else y  # forward mode runs without a graph
        return self.head(y)


def test_float64_says_nothing_of_a_fault_of_float32() -> None:
    torch.manual_seed(0)
    network = FunctionalModel(WrongInFloat32())
    with pytest.warns(UserWarning, match="not that of the gradient that trains it"):
        assert choose_derivative(network, torch.randn(6, 8)) == "double backward"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_gradient_that_is_rounding_alone_is_no_disagreement(dtype: torch.dtype) -> None:
    """A normalised head on one feature gives the feature's sign: its derivative is 0."""
    torch.manual_seed(0)
    network = FunctionalModel(with_normalized_head(nn.Linear(1, 3), scale=16.0).to(dtype))
    assert choose_derivative(network, torch.randn(20, 1, dtype=dtype)) == "forward"


class Blocked(nn.Module):
    """Has a derivative in forward mode that training does not see."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            z = self.hidden(x)
        return z + 0.0 * self.hidden(x)


def test_a_gradient_of_zeros_excuses_no_derivative() -> None:
    torch.manual_seed(0)
    network = FunctionalModel(Blocked())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert choose_derivative(network, torch.randn(8, 3)) != "forward"
