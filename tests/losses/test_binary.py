"""The losses of several labels against torch's own, and against formulas written out."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from autobalance import (
    AsymmetricLoss,
    DistributionBalancedLoss,
    InputError,
    ParametricBinaryCrossEntropy,
    ParametricCrossEntropy,
)
from autobalance.losses import LossParameters, reduced_binary_loss
from autobalance.losses.binary import LEAST_FUSED

NAN = float("nan")


def batch(n: int = 12, k: int = 4, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(n, k, generator=generator, dtype=torch.float64)
    target = (torch.rand(n, k, generator=generator) < 0.3).to(dtype)
    return logits.to(dtype), target


def by_sign(k: int, dtype: torch.dtype = torch.float64) -> LossParameters:
    generator = torch.Generator().manual_seed(1)
    w, add, d = (torch.rand(2, k, generator=generator, dtype=torch.float64) + 0.5 for _ in range(3))
    return LossParameters(w.to(dtype), (add - 1.0).to(dtype), d.to(dtype))


def with_gaps(target: Tensor) -> Tensor:
    """With some entries not labelled, in both ways to say so."""
    target = target.clone()
    target[::3, 0], target[1::3, 1] = -1.0, NAN
    return target


# torch's own ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_without_arguments_it_is_torchs_loss(reduction: Any, dtype: torch.dtype) -> None:
    logits, target = batch(dtype=dtype)
    own = ParametricBinaryCrossEntropy(reduction=reduction)(logits, target)
    assert torch.equal(own, torch.nn.BCEWithLogitsLoss(reduction=reduction)(logits, target))


def test_pos_weight_is_torchs() -> None:
    logits, target = batch()
    weight = torch.tensor([1.0, 2.0, 5.0, 30.0]).double()
    own = ParametricBinaryCrossEntropy.with_pos_weight(weight)(logits, target)
    expected = torch.nn.BCEWithLogitsLoss(pos_weight=weight)(logits, target)
    torch.testing.assert_close(own, expected, rtol=1e-12, atol=0.0)


def test_targets_may_be_of_any_dtype() -> None:
    logits, target = batch()
    loss = ParametricBinaryCrossEntropy(*by_sign(4))
    values = [
        loss(logits, target.to(d)) for d in (torch.int8, torch.int64, torch.bool, torch.float32)
    ]
    assert all(torch.equal(value, loss(logits, target)) for value in values)


# The formula ----------------------------------------------------------------------------------


def test_the_formula_by_label_and_sign() -> None:
    logits, target = batch()
    w, add, d = (p.numpy() for p in by_sign(4))
    expected = np.zeros(logits.shape)
    for i, j in np.ndindex(*logits.shape):
        y = int(target[i, j])
        z = d[y, j] * float(logits[i, j]) + add[y, j]
        expected[i, j] = w[y, j] * np.log1p(np.exp(-z if y else z))
    own = ParametricBinaryCrossEntropy(*by_sign(4), reduction="none")(logits, target)
    np.testing.assert_allclose(own.numpy(), expected, rtol=1e-12)


def test_it_is_the_parametric_cross_entropy_of_each_labels_two_classes() -> None:
    """At logits (0, f), where both signs share l and delta."""
    logits, target = batch()
    w, add, d = by_sign(4)
    own = ParametricBinaryCrossEntropy(w, add[1], d[1], reduction="none")(logits, target)
    for j in range(4):
        pair = torch.stack([torch.zeros(12).double(), logits[:, j]], dim=1)
        two = ParametricCrossEntropy(
            w[:, j], [0.0, float(add[1, j])], [1.0, float(d[1, j])], reduction="none"
        ).double()
        assert two.additive is not None
        assert two.multiplicative is not None
        two.additive[1], two.multiplicative[1] = add[1, j], d[1, j]
        torch.testing.assert_close(
            own[:, j], two(pair, target[:, j].long()), rtol=1e-12, atol=1e-14
        )


def test_logit_adjustment_is_of_each_labels_odds() -> None:
    loss = ParametricBinaryCrossEntropy.logit_adjusted([[90, 50], [10, 50]], tau=2.0)
    assert loss.additive is not None
    torch.testing.assert_close(loss.additive, torch.tensor([2 * np.log(1 / 9), 0.0]).float())


def test_entries_that_are_not_labelled_count_for_nothing() -> None:
    logits, target = batch()
    gaps = with_gaps(target)
    known = (gaps == 0) | (gaps == 1)
    loss = ParametricBinaryCrossEntropy(*by_sign(4))
    each = ParametricBinaryCrossEntropy(*by_sign(4), reduction="none")(logits, target)
    torch.testing.assert_close(loss(logits, gaps), each[known].mean())
    logits = torch.where(known, logits, torch.inf).requires_grad_()
    value = loss(logits, gaps)
    assert torch.isfinite(value)
    assert not torch.autograd.grad(value, logits)[0][~known].any()
    assert float(loss(torch.zeros(2, 4), torch.full((2, 4), -1))) == 0.0


def test_a_whole_weight_is_a_row_repeated() -> None:
    logits, target = batch()
    gaps, weight = with_gaps(target), torch.tensor([1.0, 2.0, 3.0] * 4).double()
    rows = torch.repeat_interleave(torch.arange(12), weight.long())
    loss = ParametricBinaryCrossEntropy(*by_sign(4))
    weighted = loss(logits, gaps, sample_weight=weight)
    torch.testing.assert_close(weighted, loss(logits[rows], gaps[rows]), rtol=1e-12, atol=0.0)


def test_twice_differentiable_by_logits_and_parameters() -> None:
    logits, target = batch(5)
    gaps = with_gaps(target)

    def value(f: Tensor, *parameters: Tensor) -> Tensor:
        return reduced_binary_loss(f, gaps, LossParameters(*parameters))

    leaves = [logits.requires_grad_(), *(p.requires_grad_() for p in by_sign(4))]
    assert torch.autograd.gradcheck(value, leaves)
    assert torch.autograd.gradgradcheck(value, leaves)


# Value and gradient in one go -----------------------------------------------------------------


@pytest.mark.parametrize("gaps", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("parts", ["w", "l", "d", "wl", "wld", "wL", ""])
def test_the_fused_form_is_the_plain_one(parts: str, weighted: bool, gaps: bool) -> None:
    logits, target = batch(70, LEAST_FUSED // 64)
    target = with_gaps(target) if gaps else target
    w, add, d = by_sign(logits.shape[1])
    given = LossParameters(
        w if "w" in parts else None,
        add if "l" in parts else add[0] if "L" in parts else None,
        d if "d" in parts else None,
    )
    weight = torch.rand(70, dtype=torch.float64) if weighted else None
    logits.requires_grad_()
    results = []
    for fused in (False, True):
        value = reduced_binary_loss(logits, target, given, sample_weight=weight, fused=fused)
        assert ("FusedMean" in str(value.grad_fn)) is fused
        results.append((value.detach(), *torch.autograd.grad(3.0 * value, logits)))
    torch.testing.assert_close(results[0], results[1], rtol=1e-10, atol=1e-15)


def test_the_fused_form_keeps_to_the_plain_one_where_a_label_is_surely_wrong() -> None:
    k = LEAST_FUSED // 8
    logits = torch.linspace(-60.0, 200.0, 8 * k).view(8, k).requires_grad_()
    target = torch.zeros(8, k)
    plain, fused = (
        reduced_binary_loss(logits, target, LossParameters(), fused=fused)
        for fused in (False, True)
    )
    torch.testing.assert_close(fused, plain, rtol=1e-6, atol=0.0)
    gradients = [torch.autograd.grad(value, logits)[0] for value in (plain, fused)]
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-12)


def test_rounding_of_probabilities_shows_by_a_thousandth_of_a_labels_loss_at_most() -> None:
    """In float32, where losses are computed from probabilities: every label is about as wrong as may be."""
    logits = torch.linspace(10.5, 11.9, LEAST_FUSED).view(8, -1).requires_grad_()
    target = torch.zeros_like(logits)
    plain, fused = (
        reduced_binary_loss(logits, target, LossParameters(), fused=fused)
        for fused in (False, True)
    )
    torch.testing.assert_close(fused, plain, rtol=1e-3, atol=0.0)
    gradients = [torch.autograd.grad(value, logits)[0] for value in (plain, fused)]
    torch.testing.assert_close(*gradients, rtol=1e-6, atol=0.0)


def test_second_derivatives_go_through_the_fused_form() -> None:
    logits, target = batch(70, LEAST_FUSED // 64)
    logits.requires_grad_()
    curvatures = []
    for fused in (False, True):
        value = reduced_binary_loss(logits, target, by_sign(logits.shape[1]), fused=fused)
        [slope] = torch.autograd.grad(value, logits, create_graph=True)
        curvatures.append(torch.autograd.grad(slope.square().sum(), logits)[0])
    torch.testing.assert_close(*curvatures, rtol=1e-12, atol=1e-20)


# Published losses -----------------------------------------------------------------------------


def test_asymmetric_loss_is_the_papers_formula() -> None:
    logits, target = batch()
    own = AsymmetricLoss(4.0, 1.0, 0.05, reduction="none")(logits, target).numpy()
    p = 1 / (1 + np.exp(-logits.numpy()))
    shifted = np.maximum(p - 0.05, 0)
    y = target.numpy()
    expected = -(y * (1 - p) * np.log(p) + (1 - y) * shifted**4 * np.log(1 - shifted))
    np.testing.assert_allclose(own, expected, rtol=1e-10, atol=1e-15)


def test_asymmetric_loss_without_focus_or_shift_is_cross_entropy() -> None:
    logits, target = batch()
    own = AsymmetricLoss(0.0, 0.0, 0.0)(logits, target)
    expected = F.binary_cross_entropy_with_logits(logits, target)
    torch.testing.assert_close(own, expected, rtol=1e-12, atol=0.0)


def test_distribution_balanced_loss_is_the_papers_formula() -> None:
    logits, target = batch()
    target[0] = 0.0  # an example without labels
    counts = np.array([[80.0, 90, 95, 99], [20, 10, 5, 1]])
    own = DistributionBalancedLoss(counts, reduction="none").double()(logits, target).numpy()
    f, y = logits.numpy(), target.numpy()
    nu = 0.05 * np.log(100 / counts[1] - 1)
    expected = np.zeros(f.shape)
    for i, j in np.ndindex(*f.shape):
        chance = (y[i] / counts[1]).sum()
        r = (1 / counts[1, j]) / chance if chance else np.inf
        factor = 0.1 + 1 / (1 + np.exp(-10 * (r - 0.2)))
        z = f[i, j] - nu[j]
        expected[i, j] = factor * (
            np.log1p(np.exp(-z)) if y[i, j] else np.log1p(np.exp(2.0 * z)) / 2.0
        )
    np.testing.assert_allclose(own, expected, rtol=1e-7, atol=1e-14)  # margins of float32


# Records and refusals -------------------------------------------------------------------------


def test_json_gives_the_loss_back() -> None:
    loss = ParametricBinaryCrossEntropy(*by_sign(4), reduction="sum")
    twin = ParametricBinaryCrossEntropy.from_json(loss.to_json())
    logits, target = batch()
    assert torch.equal(twin(logits, target), loss(logits, target))
    assert json.loads(loss.to_json())["format"] == "autobalance-binary-loss"
    with pytest.raises(InputError, match="loss"):
        ParametricCrossEntropy.from_json(loss.to_json())


PLAIN = ParametricBinaryCrossEntropy()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: PLAIN(torch.zeros(3, 4), torch.tensor([0, 1, 2])), "ParametricCrossEntropy"),
        (lambda: PLAIN(torch.zeros(3, 4), torch.zeros(3, 5)), "one shape"),
        (lambda: PLAIN(torch.zeros(1, 2), torch.tensor([[0, 2]])), "got 2"),
        (lambda: PLAIN(torch.zeros(1, 2), torch.tensor([[0, 0.5]])), "got 0.5"),
        (
            lambda: ParametricBinaryCrossEntropy([1.0, 2.0])(torch.zeros(1, 3), torch.zeros(1, 3)),
            "2 labels",
        ),
        (lambda: ParametricBinaryCrossEntropy([[1.0, 2.0]] * 3), "a row for negatives and one"),
        (lambda: ParametricBinaryCrossEntropy([1.0, 0.0]), "above 0"),
        (lambda: ParametricBinaryCrossEntropy([1.0, 2.0], [0.0] * 3), "agree in labels"),
        (lambda: ParametricBinaryCrossEntropy.logit_adjusted([[9, 9], [1, 0]]), "no positive"),
        (lambda: ParametricBinaryCrossEntropy.logit_adjusted([[9, 0], [1, 9]]), "no negative"),
        (lambda: ParametricBinaryCrossEntropy.logit_adjusted([9, 1]), "two rows"),
        (lambda: AsymmetricLoss(gamma_neg=-1.0), "gamma_neg"),
        (lambda: AsymmetricLoss()(torch.zeros(2, 2), torch.full((2, 2), 0.3)), "0.3 in 4 of 4"),
    ],
)
def test_what_cannot_be_is_refused(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()


def test_a_target_that_is_no_label_is_refused_by_the_fused_form_too() -> None:
    logits = torch.zeros(70, LEAST_FUSED // 64, requires_grad=True)
    target = torch.zeros(70, LEAST_FUSED // 64)
    target[60, 3] = 3.0
    with pytest.raises(InputError, match="got 3 in 1 of"):
        reduced_binary_loss(logits, target, LossParameters(), fused=True)


def test_class_indices_are_told_from_labels() -> None:
    with pytest.raises(InputError, match="ParametricBinaryCrossEntropy"):
        ParametricCrossEntropy()(torch.zeros(3, 4), torch.zeros(3, 4))
