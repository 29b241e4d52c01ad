"""Dense logits (n, k, d1, ...): the losses against torch's own, and against themselves pixel by pixel."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autobalance._validation import InputError
from autobalance.losses.modules import ParametricCrossEntropy
from autobalance.losses.published import FocalLoss, GroupDROLoss, LDAMLoss
from autobalance.spaces.hierarchical_space import HierarchicalSpace
from autobalance.spaces.tunable_loss import TunableCrossEntropy

K = 4
COUNTS = [40, 20, 8, 2]
SHAPES = [(5,), (3, 4), (2, 3, 2)]
PARAMETERS = {
    "weight": [1.0, 2.0, 3.0, 4.0],
    "additive": [0.5, -1.0, 0.0, 2.0],
    "multiplicative": [1.0, 0.8, 1.5, 0.6],
}
BY_GROUP = {name: [row, row[::-1]] for name, row in PARAMETERS.items()}


def example(shape: tuple[int, ...] = (3, 4), ignored: int = -100) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, targets of which some are ignored, and the groups of the images."""
    generator = torch.Generator().manual_seed(len(shape))
    logits = 2 * torch.randn(3, K, *shape, generator=generator, dtype=torch.float64)
    target = torch.randint(K, (3, *shape), generator=generator)
    target[torch.rand(target.shape, generator=generator) < 0.2] = ignored
    return logits, target, torch.tensor([0, 1, 1])


def rows(logits: Tensor, target: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
    """Pixel by pixel: logits ``(pixels, k)``, and what belongs to the images repeated for each pixel."""
    each = (v.view(-1, *[1] * (target.ndim - 1)).expand_as(target).flatten() for v in others)
    return logits.movedim(1, -1).reshape(-1, logits.shape[1]), target.flatten(), *each


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("ignored", [-100, 255])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_with_weights_it_is_torchs(
    shape: tuple[int, ...], smoothing: float, ignored: int, reduction: Any
) -> None:
    """Value and gradient, also where z = delta f + l goes into torch's loss in place of the logits."""
    logits, target, _ = example(shape, ignored)
    options: dict[str, Any] = {
        "reduction": reduction, "ignore_index": ignored, "label_smoothing": smoothing
    }  # fmt: skip
    leaves = [logits.clone().requires_grad_() for _ in range(2)]
    tensors = {name: torch.tensor(p, dtype=torch.float64) for name, p in PARAMETERS.items()}
    found = ParametricCrossEntropy(**tensors, **options)(leaves[0], target)
    along = (-1, *[1] * len(shape))
    z = tensors["multiplicative"].view(along) * leaves[1] + tensors["additive"].view(along)
    theirs = F.cross_entropy(z, target, weight=tensors["weight"], **options)
    torch.testing.assert_close(found, theirs, rtol=1e-13, atol=1e-14)
    gradients = [
        torch.autograd.grad(v.sum(), leaf)[0]
        for v, leaf in zip((found, theirs), leaves, strict=True)
    ]
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-14)


def test_without_arguments_it_is_torchs_to_the_bit() -> None:
    logits, target, _ = example()
    assert torch.equal(ParametricCrossEntropy()(logits, target), F.cross_entropy(logits, target))


LOSSES = {
    "parametric": lambda: ParametricCrossEntropy(**PARAMETERS, label_smoothing=0.1),
    "by group": lambda: ParametricCrossEntropy(**BY_GROUP, label_smoothing=0.1),
    "by group, weight alone": lambda: ParametricCrossEntropy(BY_GROUP["weight"]),
    "tunable": lambda: TunableCrossEntropy(HierarchicalSpace(COUNTS)),
    "focal": lambda: FocalLoss(1.5, weight=PARAMETERS["weight"]),
    "ldam": lambda: LDAMLoss(COUNTS, weight=PARAMETERS["weight"]),
    "dro over groups": lambda: GroupDROLoss(2),
    "dro over classes": lambda: GroupDROLoss(K, over="class"),
    "dro over pairs": lambda: GroupDROLoss(2 * K, over="class_and_group"),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", LOSSES)
def test_equals_its_own_value_pixel_by_pixel(name: str, shape: tuple[int, ...]) -> None:
    """With groups and weights of the images, and with the same given for each pixel."""
    logits, target, groups = example(shape)
    weight = torch.tensor([0.5, 2.0, 1.0], dtype=torch.float64)
    flat, flat_target, flat_groups, flat_weight = rows(logits, target, groups, weight)
    losses = [LOSSES[name]().double() for _ in range(3)]
    expected = losses[0](flat, flat_target, groups=flat_groups, sample_weight=flat_weight)
    of_images = losses[1](logits, target, groups=groups, sample_weight=weight)
    of_pixels = losses[2](
        logits,
        target,
        groups=flat_groups.view_as(target),
        sample_weight=flat_weight.view_as(target),
    )
    torch.testing.assert_close(of_images, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(of_pixels, expected, rtol=1e-12, atol=0)
    assert float(expected) > 0
    for one, other in zip(losses[0].buffers(), losses[1].buffers(), strict=True):
        torch.testing.assert_close(one, other)  # the groups' weights moved alike


@pytest.mark.parametrize("name", ["parametric", "by group", "focal", "ldam"])
def test_twice_differentiable(name: str) -> None:
    logits, target, groups = example((2, 2))
    loss = LOSSES[name]().double()
    leaf = logits.requires_grad_()
    assert torch.autograd.gradgradcheck(lambda f: loss(f, target, groups=groups), leaf)


def test_half_precision_is_raised_to_float32() -> None:
    logits, target, _ = example()
    exact = ParametricCrossEntropy(**PARAMETERS)(logits.bfloat16().float(), target)
    assert torch.equal(ParametricCrossEntropy(**PARAMETERS)(logits.bfloat16(), target), exact)


@pytest.mark.parametrize("name", LOSSES)
def test_a_batch_of_ignored_pixels_alone_gives_zero(name: str) -> None:
    logits, target, groups = example()
    value = LOSSES[name]()(logits.float().requires_grad_(), target.fill_(-100), groups=groups)
    assert float(value.detach()) == 0.0


def test_an_image_of_ignored_pixels_alone_adds_nothing() -> None:
    logits, target, _ = example()
    target[1] = -100
    loss = ParametricCrossEntropy(**PARAMETERS).double()
    kept = torch.tensor([0, 2])
    torch.testing.assert_close(loss(logits, target), loss(logits[kept], target[kept]))


# Bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda y: y[:, :2], r"expected target of shape \(3, 3, 4\), got \(3, 2, 4\)"),
        (lambda y: y[:, 0, 0], r"expected target of shape \(3, 3, 4\), got \(3,\)"),
        (lambda y: y.float(), r"target as indices of dtype int64"),
    ],
    ids=["another size", "one per image", "floats"],
)
def test_targets_that_do_not_fit(name: str, change: Any, message: str) -> None:
    logits, target, groups = example()
    with pytest.raises(InputError, match=message):
        LOSSES[name]()(logits.float(), change(target), groups=groups)


def test_soft_targets_are_refused_with_a_remedy() -> None:
    logits, _, _ = example()
    with pytest.raises(InputError, match=r"Soft targets are not supported: give target.argmax"):
        ParametricCrossEntropy()(logits, logits.softmax(dim=1))


@pytest.mark.parametrize("loss", [ParametricCrossEntropy(), FocalLoss(), LDAMLoss(COUNTS)])
def test_a_class_out_of_range_is_counted_and_shown(loss: nn.Module) -> None:
    logits, target, _ = example()
    target[1, 2, 3], target[2, 0, 0] = K, -7
    message = rf"0..{K - 1} or be -100 \(2 of 36 targets, such as {K} at \[1, 2, 3\]"
    with pytest.raises(InputError, match=message):
        loss(logits.float(), target)


def test_groups_and_weights_of_another_shape_are_refused() -> None:
    logits, target, _ = example()
    with pytest.raises(InputError, match=r"groups of the shape of target"):
        ParametricCrossEntropy(**BY_GROUP)(logits, target, groups=torch.zeros(2).long())
    with pytest.raises(InputError, match=r"sample_weight of the shape of target"):
        ParametricCrossEntropy()(logits, target, sample_weight=torch.ones(3, 2, 2))


def test_logits_of_another_width_are_refused() -> None:
    _, target, _ = example()
    with pytest.raises(InputError, match=r"4 classes, but .* width 5"):
        ParametricCrossEntropy(**PARAMETERS)(torch.zeros(3, 5, 3, 4), target)


# In parts, value and gradient in one go -------------------------------------------------------


@pytest.mark.parametrize("layout", ["contiguous", "channels last", "transposed"])
@pytest.mark.parametrize("name", ["parametric", "by group", "by group, weight alone"])
def test_the_fused_form_is_the_plain_one(
    name: str, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits, target, groups = example((7, 5))
    logits[0, target[0].clamp(min=0)[0, 0], 0, 0] -= 2000.0  # a probability of 0
    weight = torch.tensor([0.5, 2.0, 1.0], dtype=torch.float64)
    loss = LOSSES[name]().double()
    if layout == "channels last":
        logits = logits.contiguous(memory_format=torch.channels_last)
    elif layout == "transposed":
        logits = logits.transpose(2, 3).contiguous().transpose(2, 3)
        target = target.transpose(1, 2).contiguous().transpose(1, 2)
    leaves = [logits.clone().requires_grad_() for _ in range(2)]
    results = []
    for least, leaf in zip((2**20, 1), leaves, strict=True):
        monkeypatch.setattr("autobalance.losses.parametric.LEAST_LOGITS", least)
        monkeypatch.setattr("autobalance.losses.parametric.CHUNK", 8 * K)  # parts within an image
        value = loss(leaf, target, groups=groups, sample_weight=weight)
        assert ("_Fused" in repr(value.grad_fn.next_functions)) == (least == 1)
        results.append((value.detach(), torch.autograd.grad(value, leaf)[0]))
    (plain, slope), (fused, fused_slope) = results
    torch.testing.assert_close(fused, plain, rtol=1e-12, atol=0)
    torch.testing.assert_close(fused_slope, slope, rtol=1e-11, atol=1e-15)


def test_the_fused_form_is_twice_differentiable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autobalance.losses.parametric.LEAST_LOGITS", 1)
    logits, target, _ = example((2, 2))
    loss = LOSSES["parametric"]().double()
    leaf = logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda f: loss(f, target), leaf)
    assert torch.autograd.gradgradcheck(lambda f: loss(f, target), leaf)
