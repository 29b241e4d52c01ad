"""The fused form against the plain one, where it is used, and what it gives way to."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

from autobalance._validation import InputError
from autobalance.losses import parametric
from autobalance.losses.modules import ParametricCrossEntropy
from autobalance.losses.parametric import LossParameters, reduced_loss
from autobalance.spaces.class_space import ClassSpace
from autobalance.spaces.tunable_loss import TunableCrossEntropy

N, K, G = 9, 5, 3
ALL = ("weight", "additive", "multiplicative")


@pytest.fixture(autouse=True)
def _always(monkeypatch: pytest.MonkeyPatch) -> None:
    """At any size, in chunks of three rows."""
    monkeypatch.setattr(parametric, "LEAST_CLASSES", 2)
    monkeypatch.setattr(parametric, "LEAST_LOGITS", 1)
    monkeypatch.setattr(parametric, "CHUNK", 3 * K + 1)


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def parameters(used: Any = ALL, *, per_group: bool = False) -> LossParameters:
    shape = (G, K) if per_group else (K,)
    full = {
        "weight": draw(*shape, seed=1).exp(),
        "additive": 2 * draw(*shape, seed=2),
        "multiplicative": draw(*shape, seed=3).exp(),
    }
    return LossParameters(**{name: full[name] for name in used})


TARGET = torch.tensor([0, 0, 3, 1, 0, 3, 1, 4, 4])
GROUPS = torch.arange(N) % G


def is_fused(value: Tensor) -> bool:
    """Whether the graph behind it holds the fused form."""
    waiting, seen = [value.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        if type(node).__name__ == "_FusedBackward":
            return True
        seen.add(node)
        waiting += [parent for parent, _ in node.next_functions]
    return False


def both(logits: Tensor, target: Tensor, given: LossParameters, slope: Any = 1.0, **options: Any):
    """Value and gradient in the fused form and in the plain one."""
    found = []
    for form in (True, False):
        leaf = logits.clone().requires_grad_()
        value = reduced_loss(leaf, target, given, fused=form, **options)
        assert is_fused(value) == form
        (gradient,) = torch.autograd.grad(value, leaf, slope * torch.ones_like(value))
        assert gradient.dtype == logits.dtype
        found.append((value.detach(), gradient))
    return found


# The same values ------------------------------------------------------------------------------


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("per_group", [False, True], ids=["classes", "groups"])
def test_value_and_gradient_are_those_of_the_plain_form(
    per_group: bool, reduction: Any, smoothing: float
) -> None:
    """With every choice of w, l and delta, sample weights and ignored rows."""
    target = TARGET.clone()
    target[[1, 8]] = -100
    slope = torch.linspace(0.5, 2.0, N, dtype=torch.float64) if reduction == "none" else 1.7
    for used in product((False, True), repeat=3):
        given = parameters([n for n, u in zip(ALL, used, strict=True) if u], per_group=per_group)
        for y, weight in ((TARGET, None), (target, draw(N, seed=4).exp())):
            one, other = both(
                3 * draw(N, K), y, given, slope, groups=GROUPS, sample_weight=weight,
                reduction=reduction, label_smoothing=smoothing,
            )  # fmt: skip
            torch.testing.assert_close(one, other, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 8e-3)])
def test_half_precision_is_raised_to_float32(dtype: torch.dtype, tolerance: float) -> None:
    one, other = both(draw(N, K, dtype=dtype), TARGET, parameters())
    assert one[0].dtype == torch.float32
    torch.testing.assert_close(one, other, rtol=tolerance, atol=1e-7)


def test_a_loss_scale_reaches_gradients_too_small_for_half_precision() -> None:
    """What float16 rounds to 0 is scaled first."""
    logits = torch.tensor([[8.0, -8.0]], dtype=torch.float16)
    given = LossParameters(weight=torch.tensor([1.0, 1.0]))
    one, other = both(logits, torch.tensor([0]), given, slope=2.0**16)
    assert float(other[1].abs().min()) > 0
    torch.testing.assert_close(one, other, rtol=1e-3, atol=0)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize(
    "extreme",
    [{"additive": 1e30}, {"additive": -1e30}, {"multiplicative": 1e-30}, {"weight": 1e-30}],
    ids=str,
)
def test_extreme_parameters(extreme: dict[str, float], smoothing: float) -> None:
    given = {"weight": torch.ones(K), "additive": torch.zeros(K), "multiplicative": torch.ones(K)}
    for name, value in extreme.items():
        given[name][0] = value
    logits = 10 * draw(N, K, dtype=torch.float32)
    one, other = both(logits, TARGET, LossParameters(**given), label_smoothing=smoothing)
    assert all(torch.isfinite(t).all() for t in one)
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_an_ignored_row_may_hold_anything() -> None:
    logits, target = draw(N, K), TARGET.clone()
    logits[4] = torch.nan
    target[4] = -100
    leaf = logits.requires_grad_()
    value = reduced_loss(leaf, target, parameters(), fused=True)
    (gradient,) = torch.autograd.grad(value, leaf)
    assert torch.isfinite(value)
    assert not gradient[4].any()
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("bad", [K, -1])
def test_a_target_out_of_range_is_refused(bad: int) -> None:
    target = TARGET.clone()
    target[-1] = bad
    with pytest.raises(InputError, match=r"target must lie in 0\.\.4 or be -100"):
        reduced_loss(draw(N, K).requires_grad_(), target, parameters(), fused=True)


def test_a_group_out_of_range_is_refused() -> None:
    given = parameters(per_group=True)
    with pytest.raises(InputError, match=r"groups in 0\.\.2"):
        reduced_loss(draw(N, K).requires_grad_(), TARGET, given, groups=GROUPS + 1, fused=True)


# Derivatives of other kinds -------------------------------------------------------------------


def loss_at(given: LossParameters, smoothing: float = 0.1) -> Callable[[Tensor], Tensor]:
    return lambda f: reduced_loss(f, TARGET, given, label_smoothing=smoothing, fused=True)


def test_gradients_and_second_derivatives_equal_finite_differences() -> None:
    leaf = draw(N, K).requires_grad_()
    loss = loss_at(parameters())
    assert is_fused(loss(leaf))
    assert torch.autograd.gradcheck(loss, leaf)
    assert torch.autograd.gradgradcheck(loss, leaf)
    assert torch.autograd.gradcheck(loss, leaf, check_batched_grad=True)


def test_a_second_derivative_through_the_network() -> None:
    """The curvature's product as a user would write it, with the module that trains."""
    found = []
    for form in (True, False):
        weights = draw(K, 4, seed=5).requires_grad_()
        value = reduced_loss(draw(N, 4) @ weights.T, TARGET, parameters(), fused=form)
        assert is_fused(value) == form
        (gradient,) = torch.autograd.grad(value, weights, create_graph=True)
        found.append(torch.autograd.grad((gradient * draw(K, 4, seed=6)).sum(), weights)[0])
    assert found[0].any()
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-14)


def test_a_retained_graph_gives_the_same_gradient_again() -> None:
    leaf = draw(N, K).requires_grad_()
    value = loss_at(parameters())(leaf)
    (second,) = torch.autograd.grad(value, leaf, create_graph=True)  # first, and takes nothing away
    first, again = (
        torch.autograd.grad(value, leaf, torch.tensor(s).double(), retain_graph=True)[0]
        for s in (3.0, 1.0)
    )
    assert torch.equal(first, 3.0 * again)
    torch.testing.assert_close(again, second.detach(), rtol=1e-12, atol=1e-15)


def test_nothing_wanted_by_the_parameters_or_weights_is_lost() -> None:
    given = {n: p.clone().requires_grad_() for n, p in parameters()._asdict().items()}
    weight = draw(N).exp().requires_grad_()
    leaf = draw(N, K).requires_grad_()
    for name in given:
        one = {n: p if n == name else p.detach() for n, p in given.items()}
        value = reduced_loss(leaf, TARGET, LossParameters(**one), fused=True)
        assert torch.autograd.grad(value, given[name])[0].any()
    value = reduced_loss(leaf, TARGET, parameters(), sample_weight=weight, fused=True)
    assert torch.autograd.grad(value, weight)[0].any()


def test_forward_mode_and_the_transforms_take_the_plain_form() -> None:
    given = parameters()
    loss = loss_at(given)
    f, along = draw(N, K).requires_grad_(), draw(N, K, seed=7)

    def oracle(f: Tensor) -> Tensor:
        return reduced_loss(f, TARGET, given, label_smoothing=0.1)

    (expected,) = torch.autograd.grad(oracle(f), f)
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(loss(forward_ad.make_dual(f, along))).tangent
    torch.testing.assert_close(tangent, (expected * along).sum(), rtol=1e-12, atol=0)
    torch.testing.assert_close(torch.func.grad(loss)(f), expected, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(
        torch.func.jvp(loss, (f,), (along,))[1], (expected * along).sum(), rtol=1e-12, atol=0
    )
    torch.testing.assert_close(
        torch.func.hessian(loss)(f), torch.func.hessian(oracle)(f), rtol=1e-12, atol=1e-14
    )
    several = torch.stack([f, 2 * f])
    torch.testing.assert_close(
        torch.vmap(loss)(several), torch.stack([oracle(f), oracle(2 * f)]), rtol=1e-13, atol=0
    )


def test_a_tangent_of_the_parameters_alone_is_seen() -> None:
    """As l's in a forward-mode hypergradient, where l needs no gradient."""
    given = parameters()
    assert given.additive is not None
    f, l, along = draw(N, K).requires_grad_(), given.additive, draw(K, seed=8)  # noqa: E741
    with forward_ad.dual_level():
        moved = given._replace(additive=forward_ad.make_dual(l, along))
        tangent = forward_ad.unpack_dual(reduced_loss(f, TARGET, moved, fused=True)).tangent
    free = l.clone().requires_grad_()
    value = reduced_loss(f, TARGET, given._replace(additive=free))
    (expected,) = torch.autograd.grad(value, free)
    torch.testing.assert_close(tangent, (expected * along).sum(), rtol=1e-12, atol=0)


def test_several_gradients_at_once() -> None:
    leaf = draw(N, K).requires_grad_()
    value = reduced_loss(leaf, TARGET, parameters(), reduction="none", fused=True)
    slopes = draw(2, N, seed=9)
    (found,) = torch.autograd.grad(value, leaf, slopes, is_grads_batched=True, retain_graph=True)
    expected = [torch.autograd.grad(value, leaf, s, retain_graph=True)[0] for s in slopes]
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-12, atol=1e-15)


# In training ----------------------------------------------------------------------------------


@pytest.mark.parametrize("half", [False, True], ids=["float32", "autocast"])
def test_autocast_changes_nothing_but_the_logits(half: bool) -> None:
    found = []
    given = LossParameters(*(p.float() for p in parameters() if p is not None))
    for form in (True, False):
        torch.manual_seed(0)
        layer, inputs = nn.Linear(4, K), draw(N, 4, dtype=torch.float32)
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            logits = layer(inputs)
            value = reduced_loss(logits, TARGET, given, label_smoothing=0.1, fused=form)
        assert logits.dtype == (torch.bfloat16 if half else torch.float32)
        assert is_fused(value) == form
        value.backward()
        assert layer.weight.grad is not None
        found.append((value.detach(), layer.weight.grad))
    torch.testing.assert_close(*found, rtol=1e-2 if half else 1e-5, atol=1e-3 if half else 1e-7)


def test_the_compiled_loss_is_the_plain_one() -> None:
    loss = ParametricCrossEntropy.logit_adjusted([50, 20, 8, 4, 2])
    leaf = draw(N, K, dtype=torch.float32).requires_grad_()
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)(leaf, TARGET)
    value = loss(leaf, TARGET)
    assert is_fused(value)
    assert not is_fused(compiled)
    gradients = [torch.autograd.grad(v, leaf)[0] for v in (compiled, value)]
    torch.testing.assert_close(compiled, value, rtol=1e-6, atol=0)
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("reentrant", [False, True])
def test_inside_activation_checkpointing(reentrant: bool) -> None:
    loss, f = loss_at(parameters()), draw(N, K)
    leaves = [f.clone().requires_grad_() for _ in range(2)]
    value = checkpoint(lambda x: loss(x.sinh()), leaves[0], use_reentrant=reentrant)
    assert isinstance(value, Tensor)
    (value + loss(leaves[1].sinh())).backward()
    assert leaves[0].grad is not None
    torch.testing.assert_close(leaves[0].grad, leaves[1].grad, rtol=1e-12, atol=1e-15)


def test_training_calls_are_fused_and_those_of_the_upper_level_are_not() -> None:
    tunable = TunableCrossEntropy(ClassSpace([50, 20, 8, 4, 2])).double()
    leaf = draw(N, K).requires_grad_()
    assert is_fused(tunable(leaf, TARGET))
    assert is_fused(tunable.frozen()(leaf, TARGET))
    assert not is_fused(tunable.at(tunable.space(), leaf, TARGET))
    assert not is_fused(tunable.at(tunable.space().detach(), leaf, TARGET))
    with torch.no_grad():
        assert not is_fused(tunable(leaf, TARGET))


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((512, 8142), True), ((128, 100), False), ((16384, 100), False), ((64, 1000), False)],
)
def test_where_it_pays(
    shape: tuple[int, int], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()  # the sizes as they are
    logits = torch.zeros(shape, requires_grad=True)
    assert parametric.should_use_fused(logits) is expected
    assert not parametric.should_use_fused(logits.detach())
