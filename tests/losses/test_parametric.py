"""The per-example formulas against dense numpy and torch's own loss."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from autobalance.losses.parametric import (
    LossParameters,
    adjusted_logits,
    parametric_cross_entropy,
    target_weight,
)

N, K, G = 7, 5, 3


def example(seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, targets (classes 2 and 4 absent) and groups."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(N, K, generator=generator, dtype=torch.float64)
    groups = torch.randint(G, (N,), generator=generator)
    return logits.to(dtype), torch.tensor([0, 0, 3, 1, 0, 3, 1]), groups


def parameters(per_group: bool, seed: int = 1) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (G, K) if per_group else (K,)
    draw = torch.randn(3, *shape, generator=generator, dtype=torch.float64)
    return {"weight": draw[0].exp(), "additive": 2 * draw[1], "multiplicative": draw[2].exp()}


def oracle(
    logits: Tensor, target: Tensor, groups: Tensor, given: dict[str, Tensor], smoothing: float
) -> np.ndarray:
    """One example and one class at a time, in numpy."""
    n, k = logits.shape
    table = {name: p.numpy() for name, p in given.items()}
    out = np.zeros(n)
    for i in range(n):
        row = {name: p[groups[i]] if p.ndim == 2 else p for name, p in table.items()}
        z = row.get("multiplicative", np.ones(k)) * logits[i].numpy()
        z = z + row.get("additive", np.zeros(k))
        log_p = z - z.max() - np.log(np.exp(z - z.max()).sum())
        w = row.get("weight", np.ones(k))
        y = int(target[i])
        out[i] = -(1 - smoothing) * w[y] * log_p[y] - smoothing / k * (w * log_p).sum()
    return out


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("per_group", [False, True])
@pytest.mark.parametrize(
    "used",
    [(), ("weight",), ("additive",), ("multiplicative",), ("weight", "additive", "multiplicative")],
    ids=lambda used: "+".join(used) or "none",
)
def test_equals_the_formula_one_example_at_a_time(
    used: tuple[str, ...], per_group: bool, smoothing: float
) -> None:
    logits, target, groups = example()
    given = {name: p for name, p in parameters(per_group).items() if name in used}
    found = parametric_cross_entropy(
        logits, target, **given, groups=groups, label_smoothing=smoothing
    )
    expected = oracle(logits, target, groups, given, smoothing)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("per_group", [False, True])
def test_gradients_and_second_derivatives_equal_finite_differences(
    per_group: bool, smoothing: float
) -> None:
    logits, target, groups = example()
    given = parameters(per_group)

    def value(f: Tensor, w: Tensor, additive: Tensor, delta: Tensor) -> Tensor:
        return parametric_cross_entropy(
            f,
            target,
            weight=w,
            additive=additive,
            multiplicative=delta,
            groups=groups,
            label_smoothing=smoothing,
        ).sum()

    inputs = [t.clone().requires_grad_() for t in (logits, *given.values())]
    assert torch.autograd.gradcheck(value, inputs)
    assert torch.autograd.gradgradcheck(value, inputs)


@pytest.mark.parametrize("classes", [2, 100, 10_000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize(
    "extreme",
    [
        {"additive": 1e30},
        {"additive": -1e30},
        {"multiplicative": 1e-30},
        {"weight": 1e-30},
        {"additive": -1e4, "multiplicative": 1e-30, "weight": 1e3},
    ],
    ids=lambda e: ",".join(f"{k}={v:g}" for k, v in e.items()),
)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_value_and_gradients_stay_finite(
    classes: int, dtype: torch.dtype, extreme: dict[str, float], smoothing: float
) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = (10 * torch.randn(4, classes, generator=generator)).to(dtype).requires_grad_()
    target = torch.tensor([0, 1, classes - 1, 0])
    given = {"weight": 1.0, "additive": 0.0, "multiplicative": 1.0}
    free: dict[str, Any] = {}
    for name, usual in given.items():
        p = torch.full((classes,), usual)
        p[0] = extreme.get(name, usual)  # one class is extreme, so differences are as well
        free[name] = p.requires_grad_()
    loss = parametric_cross_entropy(logits, target, **free, label_smoothing=smoothing)
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert torch.isfinite(loss).all()
    assert (loss >= 0).all()
    gradients = torch.autograd.grad(loss.mean(), [logits, *free.values()])
    for gradient in gradients:
        assert torch.isfinite(gradient).all()
    assert gradients[0].dtype == dtype
    assert float(gradients[0].abs().max()) > 0


def test_the_extreme_class_decides_the_value() -> None:
    """Finite must not mean clamped: l_0 = 1e30 costs the other classes 1e30."""
    loss = parametric_cross_entropy(
        torch.zeros(2, 3), torch.tensor([0, 1]), additive=torch.tensor([1e30, 0.0, 0.0])
    )
    assert loss.tolist() == [0.0, pytest.approx(1e30, rel=1e-6)]


def test_bfloat16_logits_are_adjusted_in_float32() -> None:
    """Bfloat16 would round 300.25 to 300."""
    logits = torch.tensor([[300.0, 0.0]], dtype=torch.bfloat16)
    z = adjusted_logits(logits, additive=torch.tensor([0.25, 0.0]))
    assert z.dtype == torch.float32
    assert z.tolist() == [[300.25, 0.0]]


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_without_parameters_it_is_torchs_own_bit_for_bit(smoothing: float) -> None:
    logits, target, _ = example(dtype=torch.float32)
    found = parametric_cross_entropy(logits, target, label_smoothing=smoothing)
    expected = F.cross_entropy(logits, target, reduction="none", label_smoothing=smoothing)
    # With smoothing, torch adds the two parts in another order: a rounding of the last bit.
    torch.testing.assert_close(found, expected, rtol=0 if not smoothing else 2e-7, atol=0)


def test_adjusted_logits_pick_the_groups_row() -> None:
    logits = torch.tensor([[1.0, 2.0], [1.0, 2.0]])
    z = adjusted_logits(
        logits,
        additive=torch.tensor([[10.0, 20.0], [30.0, 40.0]]),
        multiplicative=torch.tensor([[2.0, 3.0], [4.0, 5.0]]),
        groups=torch.tensor([1, 0]),
    )
    assert z.tolist() == [[34.0, 50.0], [12.0, 26.0]]


def test_target_weight() -> None:
    target, groups = torch.tensor([1, 0]), torch.tensor([0, 1])
    assert target_weight(target, None) is None
    found = target_weight(target, torch.tensor([2.0, 3.0]))
    assert found is not None
    assert found.tolist() == [3.0, 2.0]
    found = target_weight(target, torch.tensor([[2.0, 3.0], [4.0, 5.0]]), groups)
    assert found is not None
    assert found.tolist() == [3.0, 4.0]


def test_rows_per_group_need_groups() -> None:
    with pytest.raises(ValueError, match="one row per group: pass groups="):
        adjusted_logits(torch.zeros(1, 2), additive=torch.zeros(3, 2))


def test_detached_parameters_keep_values_and_drop_the_graph() -> None:
    w = torch.ones(3, requires_grad=True)
    found = LossParameters(weight=2 * w).detach()
    assert found.weight is not None
    assert not found.weight.requires_grad
    assert found.weight.tolist() == [2.0, 2.0, 2.0]
    assert found.additive is None
