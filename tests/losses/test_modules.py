"""The loss module: torch's own as special cases, published losses, JSON, pickle, state dict."""

from __future__ import annotations

import json
import math
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from autobalance._validation import InputError
from autobalance.losses.modules import ParametricCrossEntropy, effective_number_weights
from autobalance.losses.parametric import LossParameters, reduced_loss

COUNTS = [50, 20, 5]
REDUCTIONS = ["mean", "sum", "none"]


def example(n: int = 9, k: int = 3, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(n, k, generator=generator, dtype=torch.float64)
    return logits.to(dtype), torch.arange(n) % 2  # class 2 is absent


def value_and_gradient(loss: Any, logits: Tensor, target: Tensor, **given: Any) -> list[Tensor]:
    leaf = logits.clone().requires_grad_()
    value = loss(leaf, target, **given)
    return [value.detach(), torch.autograd.grad(value.sum(), leaf)[0]]


# Torch's own ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_cross_entropy_is_torchs_own(reduction: Any, dtype: torch.dtype) -> None:
    logits, target = example(dtype=dtype)
    found = value_and_gradient(
        ParametricCrossEntropy.cross_entropy(reduction=reduction), logits, target
    )
    expected = value_and_gradient(nn.CrossEntropyLoss(reduction=reduction), logits, target)
    eps = torch.finfo(dtype).eps  # the mean divides where torch multiplies: one rounding
    torch.testing.assert_close(found, expected, rtol=2 * eps, atol=eps)


@pytest.mark.parametrize("ignored", [False, True], ids=["all-kept", "some-ignored"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_options_are_torchs_own(
    reduction: Any, weighted: bool, smoothing: float, ignored: bool
) -> None:
    logits, target = example()
    if ignored:
        target[[1, 4]] = 7
    weight = torch.tensor([0.2, 3.0, 1.7], dtype=torch.float64) if weighted else None
    options: dict[str, Any] = {
        "reduction": reduction,
        "label_smoothing": smoothing,
        "ignore_index": 7,
    }
    found = value_and_gradient(ParametricCrossEntropy(weight, **options), logits, target)
    expected = value_and_gradient(nn.CrossEntropyLoss(weight, **options), logits, target)
    torch.testing.assert_close(found, expected, rtol=1e-14, atol=1e-15)


def test_nothing_but_ignored_gives_zero_and_no_gradient() -> None:
    """Torch gives NaN here, which would end a training run."""
    logits, target = example()
    found = value_and_gradient(ParametricCrossEntropy(), logits, torch.full_like(target, -100))
    assert float(found[0]) == 0.0
    assert not found[1].any()


def test_an_ignored_row_may_be_infinite() -> None:
    logits, target = example()
    target[0] = -100
    broken = logits.clone()
    broken[0] = torch.inf
    loss = ParametricCrossEntropy.logit_adjusted(COUNTS)
    assert float(loss(broken, target)) == float(loss(logits, target))


# Means and sample weights ---------------------------------------------------------------------


def test_the_mean_divides_by_the_weights_and_their_gradient_sees_it() -> None:
    """So the scale of w is no learning rate: value unchanged, gradient along w is 0."""
    logits, target = example()
    w = torch.tensor([0.5, 2.0, 1.0], dtype=torch.float64, requires_grad=True)
    value = reduced_loss(logits, target, LossParameters(weight=w))
    scaled = reduced_loss(logits, target, LossParameters(weight=1000 * w))
    torch.testing.assert_close(value, scaled, rtol=1e-14, atol=0)
    (gradient,) = torch.autograd.grad(value, w)
    assert abs(float(gradient @ w.detach())) < 1e-14
    assert float(gradient.abs().max()) > 1e-3
    assert torch.autograd.gradcheck(
        lambda w: reduced_loss(logits, target, LossParameters(weight=w)), w
    )


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_whole_sample_weights_are_repeated_examples(reduction: Any, smoothing: float) -> None:
    logits, target = example(5)
    times = torch.tensor([1, 0, 3, 2, 1])
    loss = ParametricCrossEntropy.class_weighted(
        COUNTS, reduction=reduction, label_smoothing=smoothing
    )
    found = loss(logits, target, sample_weight=times)
    expected = loss(logits.repeat_interleave(times, 0), target.repeat_interleave(times))
    torch.testing.assert_close(found, expected, rtol=1e-14, atol=0)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_groups_pick_rows(reduction: Any) -> None:
    """Each group's examples see that group's loss, as if the others were not there."""
    logits, target = example()
    groups = torch.arange(len(target)) % 2
    draw = torch.randn(3, 2, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    rows = (draw[0].exp(), draw[1], draw[2].exp())
    loss = ParametricCrossEntropy(*rows, reduction=reduction)
    alone = [ParametricCrossEntropy(*(r[g] for r in rows), reduction="none") for g in (0, 1)]
    each = torch.stack([one(logits, target) for one in alone])[groups, torch.arange(len(target))]
    w_y = rows[0][groups, target]
    expected = {"none": each, "sum": each.sum(), "mean": each.sum() / w_y.sum()}[reduction]
    torch.testing.assert_close(loss(logits, target, groups=groups), expected, rtol=1e-14, atol=0)


@pytest.mark.parametrize("parameter", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("logit", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_the_logits_decide_the_dtype(parameter: torch.dtype, logit: torch.dtype) -> None:
    logits, target = example(dtype=logit)
    loss = ParametricCrossEntropy([1.0, 2.0, 3.0], [0.0, 1.0, 2.0], [1.0, 1.0, 0.5]).to(parameter)
    value = loss(logits, target)
    assert value.dtype == (torch.float64 if logit == torch.float64 else torch.float32)
    exact = loss.double()(logits.double(), target)
    assert float(value) == pytest.approx(float(exact), rel=1e-6)


# Published losses -----------------------------------------------------------------------------


def by_hand(logits: Tensor, target: Tensor, l: Tensor, delta: Tensor) -> Tensor:  # noqa: E741
    z = delta * logits + l
    return (z.logsumexp(dim=1) - z[torch.arange(len(target)), target]).mean()


def test_class_weighted_is_inverse_frequency_with_mean_one() -> None:
    loss = ParametricCrossEntropy.class_weighted(COUNTS)
    assert loss.weight is not None
    np.testing.assert_allclose(loss.weight.numpy(), [75 / 150, 75 / 60, 75 / 15], rtol=1e-6)
    assert float((loss.weight * torch.tensor(COUNTS)).sum()) / 75 == pytest.approx(1.0, rel=1e-6)


@pytest.mark.parametrize("tau", [1.0, 0.0, 2.5])
def test_logit_adjusted_by_hand(tau: float) -> None:
    logits, target = example()
    prior = torch.tensor(COUNTS, dtype=torch.float64) / 75
    loss = ParametricCrossEntropy.logit_adjusted(torch.tensor(COUNTS), tau=tau).double()
    expected = by_hand(logits, target, tau * prior.log(), torch.ones(3, dtype=torch.float64))
    assert float(loss(logits, target)) == pytest.approx(float(expected), rel=1e-6)


def test_class_dependent_temperature_by_hand() -> None:
    logits, target = example()
    delta = torch.tensor([1.0, 0.4**0.3, 0.1**0.3], dtype=torch.float64)
    loss = ParametricCrossEntropy.class_dependent_temperature(COUNTS).double()
    expected = by_hand(logits, target, torch.zeros(3, dtype=torch.float64), delta)
    assert float(loss(logits, target)) == pytest.approx(float(expected), rel=1e-6)


def test_vector_scaling_by_hand() -> None:
    logits, target = example()
    prior = torch.tensor(COUNTS, dtype=torch.float64) / 75
    delta = torch.tensor([1.0, 0.4**0.15, 0.1**0.15], dtype=torch.float64)
    loss = ParametricCrossEntropy.vector_scaling(COUNTS).double()
    expected = by_hand(logits, target, 1.25 * prior.log(), delta)
    assert float(loss(logits, target)) == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize("beta", [0.9, 0.9999])
def test_class_balanced_weighs_by_the_effective_number_of_examples(beta: float) -> None:
    raw = [(1 - beta) / (1 - beta**n) for n in COUNTS]
    expected = [3 * w / sum(raw) for w in raw]
    loss = ParametricCrossEntropy.class_balanced(COUNTS, beta, reduction="sum")
    assert loss.weight is not None
    np.testing.assert_allclose(loss.weight.numpy(), expected, rtol=1e-6)
    np.testing.assert_allclose(effective_number_weights(COUNTS, beta), expected, rtol=1e-10)
    logits, target = example()
    each = [
        expected[y]
        * float(by_hand(logits[i : i + 1], target[i : i + 1], torch.zeros(3), torch.ones(3)))
        for i, y in enumerate(target.tolist())
    ]
    assert float(loss(logits, target)) == pytest.approx(sum(each), rel=1e-6)


def test_effective_number_goes_from_equal_weights_to_inverse_frequency() -> None:
    assert effective_number_weights(COUNTS, 0.0).tolist() == [1.0, 1.0, 1.0]
    inverse = 1 / np.array(COUNTS)
    near_one = effective_number_weights(COUNTS, 1 - 1e-13)
    np.testing.assert_allclose(near_one, 3 * inverse / inverse.sum(), rtol=1e-11)


@pytest.mark.parametrize("beta", [1.0, -0.1, math.nan])
def test_beta_refused(beta: float) -> None:
    with pytest.raises(InputError, match=r"beta must lie in \[0, 1\); got"):
        ParametricCrossEntropy.class_balanced(COUNTS, beta)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_balanced_softmax_is_logit_adjustment(reduction: Any) -> None:
    """Its l is log n_k; the l of the prior differs by a constant, which no softmax sees."""
    logits, target = example()
    balanced = ParametricCrossEntropy.balanced_softmax(COUNTS, reduction=reduction)
    assert balanced.additive is not None
    np.testing.assert_allclose(balanced.additive.numpy(), np.log(COUNTS), rtol=1e-6)
    adjusted = ParametricCrossEntropy.logit_adjusted(COUNTS, tau=1.0, reduction=reduction)
    found = value_and_gradient(balanced, logits, target)
    expected = value_and_gradient(adjusted, logits, target)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)  # l are in float32


# Other conventions ----------------------------------------------------------------------------


def test_vs_code_both_ways() -> None:
    """Its adjusted logits are f / Delta + iota."""
    logits, target = example()
    iota = torch.tensor([0.3, -1.0, 2.0], dtype=torch.float64)
    divisor = torch.tensor([0.5, 1.0, 4.0], dtype=torch.float64)
    loss = ParametricCrossEntropy.from_vs_code(iota, divisor)
    expected = nn.functional.cross_entropy(logits / divisor + iota, target)
    torch.testing.assert_close(loss(logits, target), expected, rtol=1e-14, atol=0)
    torch.testing.assert_close(loss.to_vs_code(), (iota, divisor), rtol=1e-15, atol=0)


def test_autobalance_code_both_ways() -> None:
    """Its adjusted logits are sigmoid(dy) f + ly."""
    logits, target = example()
    dy = torch.tensor([1.0, -2.0, 0.1], dtype=torch.float64)
    ly = torch.tensor([0.3, -1.0, 2.0], dtype=torch.float64)
    wy = torch.tensor([1.0, 0.2, 2.0], dtype=torch.float64)
    loss = ParametricCrossEntropy.from_autobalance_code(dy, ly, wy)
    expected = nn.functional.cross_entropy(logits * torch.sigmoid(dy) + ly, target, weight=wy)
    torch.testing.assert_close(loss(logits, target), expected, rtol=1e-14, atol=0)
    torch.testing.assert_close(loss.to_autobalance_code(), (dy, ly), rtol=1e-14, atol=1e-15)


def test_converters_fill_in_what_a_loss_leaves_out() -> None:
    only_l = ParametricCrossEntropy(additive=[1.0, 2.0])
    assert [t.tolist() for t in only_l.to_vs_code()] == [[1.0, 2.0], [1.0, 1.0]]
    only_delta = ParametricCrossEntropy(multiplicative=[0.5, 0.25])
    assert [t.tolist() for t in only_delta.to_vs_code()] == [[0.0, 0.0], [2.0, 4.0]]


def test_converters_refuse_what_the_other_side_cannot_say() -> None:
    with pytest.raises(InputError, match="writes delta as a sigmoid, below 1; here it reaches 1"):
        ParametricCrossEntropy(additive=[0.0, 0.0]).to_autobalance_code()
    with pytest.raises(InputError, match="adjusts no logits, so there is nothing to convert"):
        ParametricCrossEntropy(weight=[1.0, 2.0]).to_vs_code()
    with pytest.raises(InputError, match="Delta must be above 0"):
        ParametricCrossEntropy.from_vs_code([0.0, 0.0], [1.0, 0.0])


# Travelling -----------------------------------------------------------------------------------


def awkward(dtype: torch.dtype, shape: tuple[int, ...] = (3,)) -> ParametricCrossEntropy:
    """Numbers with many digits, and every option away from its default."""
    draw = torch.randn(3, *shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    return ParametricCrossEntropy(
        draw[0].exp().to(dtype),
        (1e6 * draw[1]).to(dtype),
        (draw[2] * 20).exp().to(dtype),
        reduction="sum",
        ignore_index=2,
        label_smoothing=0.1,
    )


def assert_same_loss(found: ParametricCrossEntropy, expected: ParametricCrossEntropy) -> None:
    for name, p in expected.parameters_of_loss._asdict().items():
        q = getattr(found, name)
        assert (p is None) == (q is None)
        if p is not None:
            assert q.dtype == p.dtype
            assert torch.equal(q, p)
    for name in ("reduction", "ignore_index", "label_smoothing", "num_classes", "num_groups"):
        assert getattr(found, name) == getattr(expected, name)


DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("shape", [(3,), (2, 3)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
def test_json_and_pickle_bit_for_bit(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    loss = awkward(dtype, shape)
    assert_same_loss(ParametricCrossEntropy.from_json(loss.to_json()), loss)
    assert_same_loss(pickle.loads(pickle.dumps(loss)), loss)


def test_json_of_half_precision() -> None:
    loss = ParametricCrossEntropy(additive=[1.1, -2.3]).half()
    assert_same_loss(ParametricCrossEntropy.from_json(loss.to_json()), loss)


def test_json_is_strict_and_leaves_out_what_is_not_used() -> None:
    record = json.loads(
        ParametricCrossEntropy.cross_entropy().to_json(), parse_constant=pytest.fail
    )
    assert record["weight"] is None
    assert record["format"] == "autobalance-loss"
    assert_same_loss(ParametricCrossEntropy.from_dict(record), ParametricCrossEntropy())


def test_parameters_of_unlike_dtypes_get_the_widest_and_so_survive_json() -> None:
    mixed = ParametricCrossEntropy.from_autobalance_code(np.array([0.1, 0.2]), np.array([0.3, 0.4]))
    assert mixed.additive is not None
    assert mixed.additive.dtype == torch.float64
    assert_same_loss(ParametricCrossEntropy.from_json(mixed.to_json()), mixed)


def test_state_dict_carries_the_parameters() -> None:
    loss = awkward(torch.float32)
    other = ParametricCrossEntropy([1.0] * 3, [0.0] * 3, [1.0] * 3)
    other.load_state_dict(loss.state_dict())
    assert torch.equal(other.state_dict()["additive"], loss.state_dict()["additive"])
    assert list(loss.state_dict()) == ["weight", "additive", "multiplicative"]
    assert not list(loss.parameters())  # fixed: an optimiser finds nothing to move


def test_given_tensors_are_copied() -> None:
    mine = torch.zeros(3, requires_grad=True)
    loss = ParametricCrossEntropy(additive=mine)
    with torch.no_grad():
        mine += 1
    assert loss.additive is not None
    assert loss.additive.tolist() == [0.0, 0.0, 0.0]
    assert not loss.additive.requires_grad


def test_repr_says_what_it_uses() -> None:
    text = repr(ParametricCrossEntropy.logit_adjusted(COUNTS))
    assert text == "ParametricCrossEntropy(classes=3, groups=None, uses=['additive'])"
    assert "uses=nothing" in repr(ParametricCrossEntropy())


# Refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"reduction": "avg"}, "reduction must be one of mean, none, sum; got 'avg'"),
        ({"label_smoothing": 1.0}, r"label_smoothing must lie in \[0, 1\); got 1.0"),
        ({"weight": [1.0, 0.0]}, "weight must be above 0 everywhere; its smallest is 0"),
        ({"multiplicative": [1.0, -2.0]}, "multiplicative must be above 0 .* smallest is -2"),
        ({"additive": [0.0, math.nan]}, "additive must be finite; got a NaN"),
        ({"weight": [1.0, math.inf]}, "weight must be finite"),
        ({"additive": [0.0]}, r"additive needs one number per class .* got shape \(1,\)"),
        ({"additive": np.zeros((2, 2, 2))}, r"got shape \(2, 2, 2\)"),
        ({"weight": [1.0, 1.0], "additive": [0.0] * 3}, "must agree in classes and groups"),
        (
            {"weight": np.ones((2, 3)), "additive": np.ones((4, 3))},
            "must agree in classes and groups",
        ),
    ],
    ids=str,
)
def test_refused_when_built(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ParametricCrossEntropy(**given)


@pytest.mark.parametrize(
    "build",
    [
        "class_weighted",
        "class_balanced",
        "balanced_softmax",
        "logit_adjusted",
        "class_dependent_temperature",
        "vector_scaling",
    ],
)
@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ([5, 0, 3], "class 1 has no training example"),
        ([0.7, 0.3], "no shares of 1"),
        ([5, -2.5], "none negative"),
        ([5], "at least two classes"),
        ([[5, 3], [2, 0]], r"one count per class \(k,\); got shape \(2, 2\)"),
    ],
    ids=str,
)
def test_counts_refused(build: str, counts: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        getattr(ParametricCrossEntropy, build)(counts)


@pytest.mark.parametrize(
    ("logits", "target", "message"),
    [
        (torch.zeros(2, 4), torch.zeros(2, dtype=torch.long), "3 classes, but .* width 4"),
        (torch.zeros(2, 3, 1), torch.zeros(2, dtype=torch.long), r"shape \(2, 1\), got \(2,\)"),
        (torch.zeros(2, 3), torch.zeros(3, dtype=torch.long), r"shape \(2,\), got \(3,\)"),
        (torch.zeros(2, 3), torch.zeros(2), r"dtype int64; got torch.float32.*target.long\(\)"),
        (torch.zeros(2, 3), torch.tensor([0, 3]), r"target must lie in 0..2 or be -100 \(Target 3"),
    ],
    ids=["width", "dimensions", "target", "dtype", "range"],
)
def test_calls_refused(logits: Tensor, target: Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        ParametricCrossEntropy.logit_adjusted(COUNTS)(logits, target)


def test_rows_per_group_refuse_a_call_without_groups() -> None:
    loss = ParametricCrossEntropy(additive=np.zeros((2, 3)))
    with pytest.raises(InputError, match="rows for 2 groups: pass groups="):
        loss(torch.zeros(1, 3), torch.zeros(1, dtype=torch.long))
    with pytest.raises(InputError, match=r"out of range: .*, groups in 0..1"):
        loss(torch.zeros(1, 3), torch.tensor([0]), groups=torch.tensor([2]))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"not JSON \("),
        ("[]", "its 'format' is not there"),
        ('{"format": "autobalance-loss", "version": 9}', "version 9 .* reads version 1"),
        (
            '{"format": "autobalance-loss", "version": 1, "dtype": "torch.int8"}',
            "dtype must be one of .* got 'torch.int8'",
        ),
    ],
)
def test_foreign_json_is_refused(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        ParametricCrossEntropy.from_json(text)
