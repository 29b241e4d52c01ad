"""Published losses against their formulas, written out in plain Python, and against kornia."""

from __future__ import annotations

import copy
import json
import math
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from autobalance._validation import InputError
from autobalance.losses.modules import ParametricCrossEntropy, effective_number_weights
from autobalance.losses.published import (
    DeferredLoss,
    FocalLoss,
    GroupDROLoss,
    LDAMLoss,
    NormalizedLinear,
    last_linear,
    new_layer_like,
    with_normalized_head,
)

COUNTS = [50, 20, 5]
W = [0.5, 2.0, 1.5]
REDUCTIONS = ["mean", "sum", "none"]


def example(n: int = 9, k: int = 3, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(n, k, generator=generator, dtype=torch.float64)
    return logits.to(dtype), torch.arange(n) % 2  # class 2 is absent


def log_p(logits: list[float], y: int) -> float:
    return logits[y] - math.log(sum(math.exp(z) for z in logits))


def by_hand(
    term: Callable[[list[float], int], float],
    logits: Tensor,
    target: Tensor,
    *,
    weight: list[float],
    sample_weight: list[float],
    reduction: str,
    ignore_index: int,
) -> float | list[float]:
    """Weighted terms of the examples, reduced as torch reduces its cross-entropy."""
    values, total = [], 0.0
    for f, y, s in zip(logits.tolist(), target.tolist(), sample_weight, strict=True):
        w = 0.0 if y == ignore_index else s * weight[y]
        values.append(w * term(f, y) if w else 0.0)
        total += w
    return {"none": values, "sum": sum(values), "mean": sum(values) / total}[reduction]


def focal_term(gamma: float) -> Callable[[list[float], int], float]:
    return lambda f, y: -((1 - math.exp(log_p(f, y))) ** gamma) * log_p(f, y)


def ldam_term(f: list[float], y: int) -> float:
    c = 0.4 / max(n**-0.25 for n in COUNTS)
    z = [7.0 * (v - (c * COUNTS[j] ** -0.25 if j == y else 0.0)) for j, v in enumerate(f)]
    return -log_p(z, y)


TERMS: list[Any] = [
    pytest.param(lambda **o: FocalLoss(2.0, **o), focal_term(2.0), id="focal-2"),
    pytest.param(lambda **o: FocalLoss(0.5, **o), focal_term(0.5), id="focal-0.5"),
    pytest.param(lambda **o: LDAMLoss(COUNTS, 0.4, 7.0, **o), ldam_term, id="ldam"),
]


@pytest.mark.parametrize("sampled", [False, True], ids=["examples-alike", "sample-weight"])
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize(("build", "term"), TERMS)
def test_formula(build: Any, term: Any, reduction: str, weighted: bool, sampled: bool) -> None:
    logits, target = example()
    target[[1, 4]] = 7
    sample_weight = [0.5 + 0.25 * i for i in range(9)] if sampled else [1.0] * 9
    loss = build(weight=W if weighted else None, reduction=reduction, ignore_index=7).double()
    found = loss(logits, target, sample_weight=torch.tensor(sample_weight) if sampled else None)
    expected = by_hand(
        term,
        logits,
        target,
        weight=W if weighted else [1.0] * 3,
        sample_weight=sample_weight,
        reduction=reduction,
        ignore_index=7,
    )
    # margins are made in float32
    np.testing.assert_allclose(found.numpy(), expected, rtol=2e-7, atol=0)


# What all have in common ----------------------------------------------------------------------


def group_dro(**options: Any) -> GroupDROLoss:
    return GroupDROLoss(2, 0.3, adjustment=0.5, counts=[30, 4], **options)


ALL: list[Any] = [
    pytest.param(lambda **o: FocalLoss(0.5, W, **o), id="focal"),
    pytest.param(lambda **o: FocalLoss.class_balanced(COUNTS, 0.9, **o), id="focal-balanced"),
    pytest.param(lambda **o: LDAMLoss(COUNTS, weight=W, **o), id="ldam"),
    pytest.param(lambda **o: LDAMLoss.deferred(COUNTS, start=0.5, **o), id="ldam-drw"),
    pytest.param(group_dro, id="group-dro"),
    pytest.param(lambda **o: GroupDROLoss(3, over="class", **o), id="class-dro"),
]
each = pytest.mark.parametrize("build", ALL)


def called(loss: nn.Module, logits: Tensor, target: Tensor, **given: Any) -> Tensor:
    return loss(logits, target, groups=torch.arange(len(target)) // 2 % 2, **given)


@each
def test_gradient(build: Any) -> None:
    logits, target = example()
    loss = build().double().eval()
    target[2] = -100
    assert torch.autograd.gradcheck(lambda f: called(loss, f, target), logits.requires_grad_())


@each
def test_an_ignored_row_counts_for_nothing_even_if_infinite(build: Any) -> None:
    logits, target = example()
    target[0] = 7
    broken = logits.clone()
    broken[0] = torch.inf
    loss = build(ignore_index=7).eval()
    expected = called(loss, logits, target)
    assert torch.equal(called(loss, broken, target), expected)
    alone = loss(logits[1:], target[1:], groups=torch.arange(1, len(target)) // 2 % 2)
    torch.testing.assert_close(alone, expected, rtol=1e-12, atol=0)


@each
def test_nothing_but_ignored_gives_zero_and_no_gradient(build: Any) -> None:
    logits, target = example()
    logits.requires_grad_()
    value = called(build(), logits, torch.full_like(target, -100))
    assert float(value.detach()) == 0.0
    assert not torch.autograd.grad(value, logits)[0].any()


@each
def test_whole_sample_weights_are_repeated_examples(build: Any) -> None:
    logits, target = example(5)
    groups = torch.arange(5) % 2
    times = torch.tensor([1, 0, 3, 2, 1])
    found = build()(logits, target, groups=groups, sample_weight=times)
    repeated = (t.repeat_interleave(times, 0) for t in (logits, target, groups))
    f, y, g = repeated
    torch.testing.assert_close(found, build()(f, y, groups=g), rtol=1e-14, atol=0)


@each
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_raised_to_float32(build: Any, dtype: torch.dtype) -> None:
    logits, target = example(dtype=dtype)
    found = called(build().eval(), logits, target)
    assert found.dtype == torch.float32
    assert torch.equal(found, called(build().eval(), logits.float(), target))


@each
def test_travels_as_pickle_copy_and_state_dict(build: Any) -> None:
    logits, target = example()
    loss = build()
    called(loss, logits, target)  # group weights move
    fresh = build()
    fresh.load_state_dict(loss.state_dict())
    expected = called(copy.deepcopy(loss), logits, target)
    for twin in (pickle.loads(pickle.dumps(loss)), copy.deepcopy(loss), fresh):
        assert repr(twin) == repr(loss)
        assert torch.equal(called(twin, logits, target), expected)


CLASSES = {
    c.__name__: c for c in (DeferredLoss, FocalLoss, GroupDROLoss, LDAMLoss, ParametricCrossEntropy)
}


def from_record(record: dict[str, Any]) -> nn.Module:
    given = {
        n: from_record(v) if isinstance(v, dict) else v for n, v in record["arguments"].items()
    }
    return CLASSES[record["loss"]](**given)


@each
def test_the_record_holds_what_builds_the_loss_again(build: Any) -> None:
    logits, target = example()
    loss = build(ignore_index=1)
    record = json.loads(json.dumps(loss.to_dict(), allow_nan=False))
    assert record["format"] == "autobalance-published-loss"
    again = from_record(record)
    assert torch.equal(called(again, logits, target), called(loss, logits, target))
    assert again.to_dict() == loss.to_dict()  # type: ignore[operator]
    assert record != build().to_dict()


@each
@pytest.mark.parametrize(
    ("logits", "target", "message"),
    [
        (torch.zeros(2, 3, 1), torch.zeros(2, dtype=torch.long), r"shape \(2, 1\), got \(2,\)"),
        (torch.zeros(2, 3), torch.zeros(3, dtype=torch.long), r"shape \(2,\), got \(3,\)"),
        (torch.zeros(2, 3), torch.zeros(2), r"dtype int64; got torch.float32.*target.long\(\)"),
        (torch.zeros(2, 3), torch.tensor([0, 3]), r"target must lie in 0..2 or be -100"),
    ],
    ids=["dimensions", "target", "dtype", "range"],
)
def test_calls_refused(build: Any, logits: Tensor, target: Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        build()(logits, target, groups=torch.zeros(len(target), dtype=torch.long))


@pytest.mark.parametrize(
    "loss",
    [FocalLoss(weight=W), LDAMLoss(COUNTS), GroupDROLoss(3, over="class")],
    ids=lambda x: type(x).__name__,
)
def test_logits_of_another_width_are_refused(loss: nn.Module) -> None:
    with pytest.raises(InputError, match=r"3 classes, but .* width 4"):
        loss(torch.zeros(2, 4), torch.zeros(2, dtype=torch.long))


# Focal loss -----------------------------------------------------------------------------------


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0, 3.0])
def test_focal_is_kornias(gamma: float) -> None:
    from kornia.losses import focal_loss

    logits, target = example()
    leaves = [logits.clone().requires_grad_() for _ in range(2)]
    weight = torch.tensor(W, dtype=torch.float64)
    found = FocalLoss(gamma, weight, reduction="none")(leaves[0], target)
    # kornia gives one value per example and class, 0 but for the example's own
    theirs = focal_loss(leaves[1], target, None, gamma, weight=weight).sum(dim=1)
    torch.testing.assert_close(found, theirs, rtol=1e-13, atol=0)
    gradients = [
        torch.autograd.grad(v.sum(), x)[0] for v, x in zip((found, theirs), leaves, strict=True)
    ]
    torch.testing.assert_close(*gradients, rtol=1e-11, atol=1e-15)


@pytest.mark.parametrize("weight", [None, W], ids=["plain", "weighted"])
def test_focal_without_gamma_is_cross_entropy(weight: Any) -> None:
    logits, target = example()
    plain = ParametricCrossEntropy(weight)(logits, target)
    torch.testing.assert_close(FocalLoss(0.0, weight)(logits, target), plain, rtol=1e-15, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0, 2.0])
def test_focal_of_certain_examples_has_a_small_finite_gradient(
    gamma: float, dtype: torch.dtype
) -> None:
    """Where p rounds to 1 the power's own derivative is infinite for gamma below 1."""
    logits = torch.tensor([[1000.0, 0.0], [40.0, 0.0], [12.0, 0.0]], dtype=dtype)
    logits.requires_grad_()
    loss = FocalLoss(gamma, reduction="none")(logits, torch.zeros(3, dtype=torch.long))
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    assert torch.isfinite(gradient).all()
    assert not gradient[0].any()
    assert float(gradient[1].abs().max()) < 1e-6
    q = 1 / (1 + math.exp(12.0))  # 1 - p
    slope = q * ((1 - q) * gamma * q ** (gamma - 1) * math.log1p(-q) - q**gamma)
    assert float(gradient[2, 0]) == pytest.approx(slope, rel=0.05 if dtype.itemsize == 4 else 1e-9)


def test_focal_class_balanced_has_the_weights_of_the_effective_number() -> None:
    loss = FocalLoss.class_balanced(COUNTS, beta=0.99, gamma=1.0, reduction="sum")
    assert loss.weight is not None
    np.testing.assert_allclose(loss.weight.numpy(), effective_number_weights(COUNTS, 0.99), 1e-6)
    assert (loss.gamma, loss.reduction) == (1.0, "sum")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"gamma": -1.0}, "gamma must not be negative; got -1.0"),
        ({"gamma": math.nan}, "gamma must be a finite number"),
        ({"gamma": "2"}, "gamma must be a number; got '2'"),
        ({"weight": [1.0, 0.0]}, "weight must be above 0"),
        ({"weight": np.ones((2, 3))}, r"weight needs one number per class, .* got shape \(2, 3\)"),
        ({"reduction": "avg"}, "reduction must be one of mean, none, sum; got 'avg'"),
    ],
    ids=str,
)
def test_focal_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        FocalLoss(**given)


# Margins --------------------------------------------------------------------------------------


def test_margins_grow_as_classes_get_rare() -> None:
    margins = LDAMLoss([1600, 100, 1], max_margin=0.8).margins
    torch.testing.assert_close(margins, 0.8 / torch.tensor([1600.0, 100.0, 1.0]) ** 0.25)
    assert float(margins[2]) == pytest.approx(0.8)


def test_equal_logits_pay_for_the_margin() -> None:
    target = torch.tensor([0, 1, 2])
    each = LDAMLoss(COUNTS, reduction="none")(torch.zeros(3, 3), target)
    assert each[0] < each[1] < each[2]
    s, m = 30.0, 0.5
    assert float(each[2]) == pytest.approx(math.log(1 + 2 * math.exp(s * m)), rel=1e-6)


def test_the_loss_does_not_move_the_logits_it_is_given() -> None:
    logits, target = example()
    before = logits.clone()
    LDAMLoss(COUNTS)(logits, target)
    assert torch.equal(logits, before)


def test_ldam_drw_is_ldam_then_class_balanced_ldam() -> None:
    logits, target = example()
    loss = LDAMLoss.deferred(COUNTS, 0.99, max_margin=0.4)
    assert loss.start == 0.8
    plain = LDAMLoss(COUNTS, 0.4)(logits, target)
    balanced = LDAMLoss(COUNTS, 0.4, weight=effective_number_weights(COUNTS, 0.99))
    loss.reached(159, 200)
    assert torch.equal(loss(logits, target), plain)
    loss.reached(160, 200)
    assert torch.equal(loss(logits, target), balanced(logits, target))
    assert not torch.equal(loss(logits, target), plain)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"cls_num_list": [5, 0]}, "class 1 has no training example"),
        ({"cls_num_list": [[5, 1], [2, 3]]}, r"one count per class \(k,\)"),
        ({"max_margin": 0.0}, "max_margin must be a finite number above 0; got 0.0"),
        ({"scale": -1}, "scale must be a finite number above 0; got -1"),
        ({"weight": [1.0, 1.0]}, r"weight needs .* shape \(3,\); got shape \(2,\)"),
        ({"reduction": "avg"}, "reduction must be one of"),
    ],
    ids=str,
)
def test_ldam_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        LDAMLoss(**({"cls_num_list": COUNTS} | given))


# Cosine logits --------------------------------------------------------------------------------


def test_normalized_linear_returns_cosines() -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(4, 5, generator=generator)
    layer = NormalizedLinear(5, 3)
    expected = nn.functional.cosine_similarity(x[:, None], layer.weight[None], dim=2)
    torch.testing.assert_close(layer(x), expected)
    with torch.no_grad():
        layer.weight.mul_(9.0)
    torch.testing.assert_close(layer(1e-3 * x), expected)
    assert torch.autograd.gradcheck(layer.double(), x.double().requires_grad_())


def test_normalized_linear_in_half_precision_is_finite() -> None:
    """300 squared overflows in float16, and torch's guard against a norm of 0 rounds to 0."""
    layer = NormalizedLinear(2, 3).half()
    cosines = layer(torch.tensor([[300.0, 300.0], [0.0, 0.0]], dtype=torch.float16))
    assert cosines.dtype == torch.float32
    assert torch.isfinite(cosines).all()
    assert float(cosines[0].detach().abs().max()) > 0.01
    assert not cosines[1].any()


def test_the_head_is_replaced_and_keeps_its_directions() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Sequential(nn.Linear(6, 3), nn.Flatten()))
    model.double().eval()
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(2)).double()
    state = torch.random.get_rng_state()
    changed = with_normalized_head(model)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert [type(m) for m in model.modules()].count(NormalizedLinear) == 0
    features = model[1](model[0](x))
    old = model[2][0]
    expected = nn.functional.cosine_similarity(features[:, None], old.weight[None], dim=2)
    torch.testing.assert_close(changed(x), expected)
    torch.testing.assert_close(
        changed.state_dict()["2.0.weight"].norm(dim=1), torch.ones(3).double()
    )
    assert set(changed.state_dict()) == set(model.state_dict()) - {"2.0.bias"}
    assert not any(m.training for m in changed.modules())
    assert all(p.requires_grad and p.dtype == torch.float64 for p in changed.parameters())


def test_cosines_are_scaled_and_a_cosine_head_is_replaced_in_its_turn() -> None:
    plain = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(2))
    scaled, unit = with_normalized_head(plain, 16.0), with_normalized_head(plain)
    torch.testing.assert_close(scaled(x), 16.0 * unit(x))
    again = with_normalized_head(scaled)
    torch.testing.assert_close(again(x), unit(x))
    assert last_linear(scaled) == ("2", scaled[2])
    new = new_layer_like(scaled[2], 5)
    assert isinstance(new, NormalizedLinear)
    assert (new.in_features, new.out_features, new.scale) == (6, 5, 16.0)
    with pytest.raises(InputError, match="scale must be a finite number above 0; got 0"):
        with_normalized_head(plain, 0)


def test_a_linear_layer_is_its_own_head_and_stays_frozen() -> None:
    head = with_normalized_head(nn.Linear(4, 2).requires_grad_(False))
    assert isinstance(head, NormalizedLinear)
    assert not head.weight.requires_grad


def test_heads_that_cannot_be_replaced_are_refused() -> None:
    with pytest.raises(InputError, match=r"\(Flatten\) has no torch.nn.Linear"):
        with_normalized_head(nn.Flatten())
    model = nn.Sequential(nn.Linear(2, 2))
    nn.init.zeros_(model[0].weight)
    with pytest.raises(InputError, match="A row of the weights of 0 is 0 and has no direction"):
        with_normalized_head(model)
    with pytest.raises(InputError, match="out_features must be at least 1; got 0"):
        NormalizedLinear(3, 0)


def test_a_network_of_cosines_learns_separable_classes_with_ldam_drw() -> None:
    generator = torch.Generator().manual_seed(3)
    target = torch.tensor([0] * 40 + [1] * 8 + [2] * 3)
    centres = torch.tensor([[3.0, 0.0], [-1.5, 2.6], [-1.5, -2.6]])
    x = centres[target] + 0.3 * torch.randn(51, 2, generator=generator)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = with_normalized_head(nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 3)))
    loss = LDAMLoss.deferred([40, 8, 3], start=0.5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for step in range(60):
        loss.reached(step, 60)
        optimizer.zero_grad()
        loss(model(x), target).backward()
        optimizer.step()
    assert torch.equal(model(x).argmax(dim=1), target)


# Deferral -------------------------------------------------------------------------------------


def plain_then_focal(start: float) -> DeferredLoss:
    return DeferredLoss(ParametricCrossEntropy(), FocalLoss(), start)


@pytest.mark.parametrize(
    ("start", "total", "first_step"), [(0.8, 200, 160), (0.07, 100, 7), (0.5, 3, 2), (0.99, 5, 5)]
)
def test_the_second_loss_starts_when_the_share_is_done(
    start: float, total: int, first_step: int
) -> None:
    loss = plain_then_focal(start)
    stages = []
    for done in range(total):
        loss.reached(done, total)
        stages.append(loss.started)
    assert stages == [done >= first_step for done in range(total)]


def test_stages_compute_what_their_losses_do_and_can_go_back() -> None:
    logits, target = example()
    loss = plain_then_focal(0.5)
    plain, focal = ParametricCrossEntropy()(logits, target), FocalLoss()(logits, target)
    assert torch.equal(loss(logits, target), plain)
    loss.reached(5, 10)
    assert torch.equal(loss(logits, target), focal)
    assert torch.equal(pickle.loads(pickle.dumps(loss))(logits, target), focal)
    loss.reached(0, 10)
    assert torch.equal(loss(logits, target), plain)


def test_groups_and_sample_weights_reach_the_present_loss() -> None:
    logits, target = example()
    rows = ParametricCrossEntropy(additive=np.arange(6.0).reshape(2, 3))
    given = {"groups": torch.arange(9) % 2, "sample_weight": torch.arange(9.0)}
    loss = DeferredLoss(rows, FocalLoss())
    assert torch.equal(loss(logits, target, **given), rows(logits, target, **given))


def test_deferrals_nest() -> None:
    loss = DeferredLoss(plain_then_focal(0.25), LDAMLoss(COUNTS), 0.5)
    assert isinstance(loss.first, DeferredLoss)
    loss.reached(3, 10)
    assert (loss.started, loss.first.started) == (False, True)


def test_the_record_tells_deferrals_apart() -> None:
    records = [plain_then_focal(s).to_dict() for s in (0.5, 0.6)]
    assert records[0] != records[1]
    assert records[0]["arguments"]["first"] == ParametricCrossEntropy().to_dict()
    assert records[0]["arguments"]["then"] == FocalLoss().to_dict()


def test_deferral_refused() -> None:
    with pytest.raises(InputError, match=r"start must lie strictly between 0 and 1; got 1.0"):
        plain_then_focal(1.0)
    with pytest.raises(
        InputError, match=r"then must be a loss with to_dict.* got CrossEntropyLoss"
    ):
        DeferredLoss(ParametricCrossEntropy(), nn.CrossEntropyLoss())
    with pytest.raises(InputError, match="done must be at least 0; got -1"):
        plain_then_focal(0.5).reached(-1, 10)
    with pytest.raises(InputError, match="total must be at least 1; got 0"):
        plain_then_focal(0.5).reached(0, 0)


# Group DRO ------------------------------------------------------------------------------------


def dro_by_hand(
    batches: list[tuple[Tensor, Tensor, Tensor]], eta: float, adjustment: list[float]
) -> tuple[list[float], list[float]]:
    """Values batch by batch, and the last weights."""
    q = [1 / len(adjustment)] * len(adjustment)
    values = []
    for logits, target, groups in batches:
        means = {}
        for g in set(groups.tolist()):
            own = [i for i in range(len(target)) if groups[i] == g and target[i] != -100]
            if own:
                terms = [-log_p(logits[i].tolist(), int(target[i])) for i in own]
                means[g] = sum(terms) / len(terms)
        for g, mean in means.items():
            q[g] *= math.exp(eta * (mean + adjustment[g]))
        q = [v / sum(q) for v in q]
        values.append(sum(q[g] * mean for g, mean in means.items()))
    return values, q


def dro_batches(num_groups: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Some lack a group; the last ignores all of one."""
    generator = torch.Generator().manual_seed(4)
    batches = []
    for step in range(4):
        logits = 2 * torch.randn(8, 3, generator=generator, dtype=torch.float64)
        target = torch.randint(3, (8,), generator=generator)
        groups = torch.arange(8) % (num_groups - step % 2)
        batches.append((logits, target, groups))
    batches[-1][1][batches[-1][2] == 0] = -100
    return batches


@pytest.mark.parametrize("adjustment", [0.0, 2.0])
def test_group_dro_step_by_step(adjustment: float) -> None:
    batches = dro_batches(4)
    counts = [400, 100, 25, 4]
    loss = GroupDROLoss(4, 0.7, adjustment=adjustment, counts=counts).double()
    found = [float(loss(f, y, groups=g)) for f, y, g in batches]
    values, q = dro_by_hand(batches, 0.7, [adjustment / math.sqrt(n) for n in counts])
    np.testing.assert_allclose(found, values, rtol=1e-6)  # the state starts in float32
    np.testing.assert_allclose(loss.q.numpy(), q, rtol=1e-6)
    assert max(q) > 1.5 * min(q)


def test_class_dro_takes_classes_as_groups() -> None:
    batches = [(f, y, torch.where(y < 0, 0, y)) for f, y, _ in dro_batches(4)]
    loss = GroupDROLoss(3, 0.7, "class").double()
    found = [float(loss(f, y, groups=torch.zeros_like(y))) for f, y, _ in batches]
    values, q = dro_by_hand(batches, 0.7, [0.0] * 3)
    np.testing.assert_allclose(found, values, rtol=1e-6)
    np.testing.assert_allclose(loss.q.numpy(), q, rtol=1e-6)


def test_an_absent_group_keeps_its_weight_up_to_the_division() -> None:
    f, y, _ = dro_batches(4)[0]
    loss = GroupDROLoss(3, 0.5, adjustment=1.0, counts=[9, 4, 1])
    loss(f, y, groups=torch.zeros_like(y))
    assert float(loss.q[0]) > 1 / 3
    assert float(loss.q[1]) == float(loss.q[2])
    assert float(loss.q.sum()) == pytest.approx(1.0, rel=1e-6)


def test_evaluation_leaves_the_weights() -> None:
    f, y, g = dro_batches(4)[0]
    loss = GroupDROLoss(4, 0.5)
    assert loss.q.dtype == torch.float32
    loss(f, y, groups=g)
    before = loss.q.clone()
    loss.eval()
    assert torch.equal(loss(f, y, groups=g), loss(f, y, groups=g))
    assert torch.equal(loss.q, before)
    loss.train()
    loss(f, y, groups=g)
    assert not torch.equal(loss.q, before)


def test_the_weights_are_constants_to_the_gradient() -> None:
    """Also after a second call moved them before the first was differentiated."""
    f, y, g = dro_batches(4)[0]
    f.requires_grad_()
    loss = GroupDROLoss(4, 0.5).double()
    value = loss(f, y, groups=g)
    q = loss.q.clone()
    loss(f, y, groups=g)
    (found,) = torch.autograd.grad(value, f)
    count = torch.bincount(g, minlength=4)
    terms = nn.functional.cross_entropy(f, y, reduction="none") * (q / count)[g]
    torch.testing.assert_close(found, torch.autograd.grad(terms.sum(), f)[0])


def test_huge_losses_neither_overflow_nor_silence_a_group_for_good() -> None:
    target, groups = torch.tensor([0, 0]), torch.tensor([0, 1])
    loss = GroupDROLoss(2, 1.0)
    loss(torch.tensor([[0.0, 5000.0], [0.0, 0.0]]), target, groups=groups)
    assert torch.isfinite(loss.q).all()
    assert float(loss.q[0]) > 0.99
    assert float(loss.q[1]) == torch.finfo(torch.float32).tiny
    loss(torch.tensor([[0.0, 0.0], [0.0, 5000.0]]), target, groups=groups)
    assert float(loss.q[1]) > 0.99


def test_an_infinite_loss_shows_and_leaves_the_weights() -> None:
    logits = torch.tensor([[-torch.inf, 0.0], [0.0, 1.0]])
    loss = GroupDROLoss(2, 1.0)
    value = loss(logits, torch.tensor([0, 0]), groups=torch.tensor([0, 1]))
    assert math.isinf(float(value))
    mean = math.log(1 + math.e)
    assert float(loss.q[1]) == pytest.approx(math.exp(mean) / (1 + math.exp(mean)), rel=1e-6)


def test_the_worst_group_gets_the_weight() -> None:
    """With a step per call on the same losses, the weights go to the group of the largest."""
    target, groups = torch.tensor([0, 0, 0]), torch.tensor([0, 1, 2])
    logits = torch.tensor([[2.0, 0.0], [0.0, 2.0], [0.0, 0.0]])
    loss = GroupDROLoss(3, 0.5)
    for _ in range(40):
        value = loss(logits, target, groups=groups)
    assert float(loss.q[1]) > 0.99
    assert float(value) == pytest.approx(math.log(1 + math.exp(2.0)), rel=0.01)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_groups": 1}, "num_groups must be at least 2; got 1"),
        ({"num_groups": 2.0}, "num_groups must be a whole number; got 2.0"),
        ({"step_size": 0.0}, "step_size must be a finite number above 0"),
        ({"over": "row"}, "over must be one of class, class_and_group, group; got 'row'"),
        ({"adjustment": -1.0}, "adjustment must not be negative; got -1.0"),
        ({"adjustment": 1.0}, "give counts, the training examples per group"),
        ({"counts": [1, 2, 3]}, r"counts needs one number per group, shape \(2,\); got .*\(3,\)"),
        ({"counts": [1, 0]}, "each at least 1; got .1.0, 0.0.. Leave groups without examples out"),
        ({"counts": [1, 2.5]}, "counts must hold whole numbers"),
        ({"counts": [1, math.inf]}, "counts must hold numbers of examples"),
        ({"counts": "many"}, "counts must hold numbers of examples; got 'many'"),
    ],
    ids=str,
)
def test_group_dro_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        GroupDROLoss(**({"num_groups": 2} | given))


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (None, 'pass groups=, one index per example; got none. .* over="class"'),
        (torch.zeros(3, dtype=torch.long), r"one index per example; got shape \(3,\)"),
        (torch.zeros(2), "groups as indices of dtype int64; got torch.float32"),
        (torch.tensor([0, 2]), r"groups must lie in 0..1 \(Class values must be smaller"),
        (torch.tensor([0, -1]), r"groups must lie in 0..1 \(Class values must be non-negative"),
    ],
    ids=["none", "shape", "dtype", "above", "negative"],
)
def test_groups_refused_and_weights_kept(groups: Any, message: str) -> None:
    loss = GroupDROLoss(2)
    with pytest.raises(InputError, match=message):
        loss(torch.zeros(2, 3), torch.tensor([0, 1]), groups=groups)
    assert loss.q.tolist() == [0.5, 0.5]


def test_dro_over_pairs_of_class_and_group_is_that_over_their_indices() -> None:
    logits = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
    target, groups = torch.arange(12) % 3, torch.arange(12) // 6
    pairs, plain = GroupDROLoss(6, over="class_and_group"), GroupDROLoss(6)
    found = pairs(logits, target, groups=groups)
    assert torch.equal(found, plain(logits, target, groups=groups * 3 + target))
    assert torch.equal(pairs.q, plain.q)
    with pytest.raises(InputError, match="pass groups="):
        pairs(logits, target)
