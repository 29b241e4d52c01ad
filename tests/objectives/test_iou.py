"""Mean IoU against scikit-learn's Jaccard index, and all objectives on dense logits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import jaccard_score
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from autobalance._validation import InputError
from autobalance.objectives.aggregates import BalancedError, WorstError
from autobalance.objectives.base import Objective
from autobalance.objectives.combined import Blend, BoundedGap
from autobalance.objectives.costs import CostMatrix
from autobalance.objectives.gaps import OddsGap
from autobalance.objectives.iou import MeanIoU
from autobalance.objectives.registry import as_objective
from autobalance.objectives.running_risks import RunningRisks
from autobalance.objectives.surrogates import CrossEntropyRisk, SmoothError

K = 4


def example(seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits, targets with ignored pixels, and groups and weights of the images."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.multinomial(
        torch.tensor([0.6, 0.25, 0.1, 0.05]), 6 * 20, True, generator=generator
    )
    target = target.view(6, 4, 5)
    logits = torch.randn(6, K, 4, 5, generator=generator, dtype=torch.float64)
    logits += 2 * torch.nn.functional.one_hot(target, K).movedim(-1, 1)
    target[:, 0, :2] = -100
    groups = torch.tensor([0, 0, 1, 1, 0, 1])
    return logits, target, groups, torch.tensor([1.0, 2.0, 1.0, 0.5, 1.0, 3.0]).double()


def rows(logits: Tensor, target: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
    """The pixels that count, as so many examples."""
    kept = target != -100
    each = (v.view(-1, 1, 1).expand_as(target)[kept] for v in others)
    return logits.movedim(1, -1)[kept], target[kept], *each


def test_hard_value_is_scikit_learns_jaccard_index() -> None:
    logits, target, _, weight = example()
    flat, own, per_pixel = rows(logits, target, weight)
    for given, shares in (({}, None), ({"sample_weight": weight}, per_pixel)):
        expected = jaccard_score(
            own, flat.argmax(dim=1), average="macro", labels=range(K), sample_weight=shares
        )
        assert MeanIoU().hard(logits, target, **given) == pytest.approx(1 - expected, abs=1e-12)


def test_smooth_value_by_its_formula() -> None:
    logits, target, _, _ = example()
    flat, own = (t.numpy() for t in rows(logits, target))
    p = np.exp(flat / 0.5)
    p /= p.sum(axis=1, keepdims=True)
    iou = []
    for k in range(K):
        inside = p[own == k, k].sum()
        iou.append(inside / ((own == k).sum() + p[own != k, k].sum()))
    found = MeanIoU(surrogate=SmoothError(temperature=0.5))(logits, target)
    assert float(found) == pytest.approx(1 - np.mean(iou), abs=1e-12)


def test_smooth_value_tends_to_the_hard_one() -> None:
    logits, target, _, _ = example()
    found = MeanIoU(surrogate=SmoothError(temperature=1e-3))(logits, target)
    assert float(found) == pytest.approx(MeanIoU().hard(logits, target), abs=1e-3)


def test_an_absent_class_is_left_out_but_its_false_positives_are_errors() -> None:
    target = torch.tensor([[0, 0, 1, 1]])
    logits = torch.zeros(1, 3, 4)
    for place, decided in enumerate([0, 2, 1, 1]):
        logits[0, decided, place] = 1.0
    assert MeanIoU().hard(logits, target) == pytest.approx(1 - (0.5 + 1.0) / 2)


def test_perfect_and_all_wrong() -> None:
    target = torch.tensor([[[0, 1], [2, 0]]])
    right = 9.0 * torch.nn.functional.one_hot(target, 3).movedim(-1, 1)
    assert MeanIoU().hard(right, target) == 0.0
    assert MeanIoU().hard(right.roll(1, dims=1), target) == 1.0
    assert float(MeanIoU()(right, target)) < 1e-3


def test_gradient_by_finite_differences() -> None:
    logits, target, _, weight = example()
    leaf = logits[:2].requires_grad_()
    assert torch.autograd.gradcheck(lambda f: MeanIoU()(f, target[:2]), leaf)
    given = {"sample_weight": weight[:2]}
    assert torch.autograd.gradcheck(lambda f: MeanIoU()(f, target[:2], **given), leaf)


def test_the_layout_of_the_logits_means_nothing() -> None:
    logits, target, _, _ = example()
    results = []
    for order in ("nkhw", "nhwk", "nkwh"):
        places = ["nkhw".index(axis) for axis in order]
        back = [order.index(axis) for axis in "nkhw"]
        leaf = logits.permute(places).contiguous().permute(back).requires_grad_()
        results.append(torch.autograd.grad(MeanIoU()(leaf, target), leaf)[0])
    torch.testing.assert_close(results[1], results[0])
    torch.testing.assert_close(results[2], results[0])


def test_by_name_and_as_a_record() -> None:
    assert as_objective("mean_iou") == MeanIoU()
    again = Objective.from_dict(MeanIoU().to_dict())
    assert again == MeanIoU()


def test_what_it_cannot_be() -> None:
    with pytest.raises(InputError, match="surrogate must be a SmoothError"):
        MeanIoU(surrogate=CrossEntropyRisk())
    with pytest.raises(InputError, match="stands alone"):
        Blend(parts=((0.5, MeanIoU()), (0.5, BalancedError())))
    with pytest.raises(InputError, match="main must be an objective over errors"):
        BoundedGap(main=MeanIoU(), gap=OddsGap(), bound=0.1)
    with pytest.raises(InputError, match="which class is decided for"):
        MeanIoU().value(torch.ones(1, 3), torch.ones(1, 3))


def test_running_risks_estimate_the_whole_held_out_set() -> None:
    """From batches in which classes are as frequent as in no data: C is scaled to the classes' sizes."""
    logits, target, _, _ = example()
    flat, own = rows(logits, target)
    counts = np.array([600.0, 250.0, 100.0, 50.0])
    running = RunningRisks(MeanIoU(), counts, shrinkage=1e-9)
    value = running(flat.requires_grad_(), own)
    confusion = np.zeros((K, K))
    np.add.at(confusion, (flat.argmax(dim=1).numpy(), own.numpy()), 1.0)
    confusion *= counts / confusion.sum(axis=0)
    inside = np.diag(confusion)
    iou = inside / (counts + confusion.sum(axis=1) - inside)
    assert float(running.hard_value(flat, own)) == pytest.approx(1 - iou.mean(), abs=1e-12)
    assert torch.autograd.grad(value, flat)[0].any()
    running.end_step()


def test_running_risks_have_the_gradient_of_the_objective() -> None:
    """On a single batch that is the whole set."""
    logits, target, _, _ = example()
    counts = torch.bincount(target[target != -100], minlength=K).numpy()
    leaf = logits.requires_grad_()
    running = RunningRisks(MeanIoU(), counts, shrinkage=1e-9)
    slopes = [torch.autograd.grad(f(leaf, target), leaf)[0] for f in (running, MeanIoU())]
    torch.testing.assert_close(*slopes, rtol=1e-6, atol=1e-12)


# Any objective on dense logits ----------------------------------------------------------------

OBJECTIVES = [
    BalancedError(),
    BalancedError(over="class_and_group"),
    WorstError(over="group", surrogate=CrossEntropyRisk()),
    CostMatrix(costs=torch.arange(16.0).view(4, 4)),
    OddsGap(),
    MeanIoU(),
]


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda o: f"{type(o).__name__}-{o.over}")
def test_equals_its_value_pixel_by_pixel(objective: Objective, weighted: bool) -> None:
    logits, target, groups, weight = example()
    flat, own, of_pixel, shares = rows(logits, target, groups, weight)
    given: dict[str, Any] = {"groups": groups}
    expected_given: dict[str, Any] = {"groups": of_pixel}
    if weighted:
        given["sample_weight"], expected_given["sample_weight"] = weight, shares
    for one, other in (
        (objective(logits, target, **given), objective(flat, own, **expected_given)),
        (objective.hard_value(logits, target, **given), objective.hard_value(flat, own, **expected_given)),
    ):  # fmt: skip
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda o: f"{type(o).__name__}-{o.over}")
def test_ignored_pixels_have_no_gradient(objective: Objective) -> None:
    logits, target, groups, _ = example()
    slope = torch.autograd.grad(objective(logits.requires_grad_(), target, groups=groups), logits)[
        0
    ]
    assert slope.any()
    assert not slope.movedim(1, -1)[target == -100].any()


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda o: f"{type(o).__name__}-{o.over}")
def test_targets_of_another_size_are_refused(objective: Objective) -> None:
    logits, target, groups, _ = example()
    message = r"expected target of shape \(6, 4, 5\), got \(6, 2, 5\)"
    with pytest.raises(InputError, match=message):
        objective(logits, target[:, :2], groups=groups)
    with pytest.raises(InputError, match=message):
        objective.hard(logits, target[:, :2], groups=groups)


# In parts --------------------------------------------------------------------------------------


class Allocations(TorchDispatchMode):
    """Counts the tensors made that have at least so many numbers."""

    def __init__(self, least: int) -> None:
        super().__init__()
        self.least, self.number = least, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        in_place = func.overloadpacket.__name__.endswith("_")
        if isinstance(result, Tensor) and not func.is_view and not in_place:
            self.number += result.numel() >= self.least
        return result


def test_no_table_of_the_logits_size_is_made_but_the_gradient() -> None:
    logits, target, _, weight = example()
    leaf = logits.requires_grad_()
    with Allocations(logits.numel()) as made:
        value = MeanIoU()(leaf, target, sample_weight=weight)
        torch.autograd.grad(value, leaf)
    assert made.number == 1


@pytest.mark.parametrize("temperature", [None, 0.5])
def test_parts_of_an_image_give_what_the_formula_gives(
    temperature: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against torch's own derivatives of the formula, through the temperature too."""
    monkeypatch.setattr("autobalance.objectives.iou._AT_ONCE", 3 * K)
    logits, target, _, weight = example()
    flat, own, share = rows(logits.requires_grad_(), target, weight)
    highest = flat.topk(2, dim=1).values
    distance = ((highest[:, 0] - highest[:, 1]) * share).sum() / share.sum()
    p = torch.softmax(flat / (temperature or 0.1 * distance), dim=1) * share[:, None]
    total = torch.zeros(K, K, dtype=p.dtype).index_add(0, own, p).T
    sizes = torch.zeros(K, dtype=p.dtype).index_add(0, own, share)
    expected = 1 - (total.diagonal() / (sizes + total.sum(dim=1) - total.diagonal())).mean()
    surrogate = SmoothError(temperature=temperature, relative=0.1)
    value = MeanIoU(surrogate=surrogate)(logits, target, sample_weight=weight)
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=0)
    slopes = [torch.autograd.grad(v, logits)[0] for v in (value, expected)]
    torch.testing.assert_close(*slopes, rtol=1e-10, atol=1e-14)


def test_the_decided_class_is_the_first_of_equal_logits() -> None:
    logits = torch.randint(0, 2, (3, 5, 7, 6), generator=torch.Generator().manual_seed(0)).float()
    for layout in (torch.contiguous_format, torch.channels_last):
        given = logits.contiguous(memory_format=layout)
        assert torch.equal(MeanIoU().decide(given), logits.argmax(dim=1))
