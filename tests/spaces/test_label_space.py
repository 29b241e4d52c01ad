"""The space over labels: start, shrinkage, gauge of w, records and refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from autobalance import (
    HierarchicalLabelSpace,
    HierarchicalSpace,
    InputError,
    TunableBinaryCrossEntropy,
    TunableCrossEntropy,
)
from autobalance.spaces import DesignSpace, build_tunable_loss
from autobalance.spaces.base import PARTS

COUNTS = [[90.0, 950.0, 40.0], [10.0, 50.0, 60.0]]
ODDS = torch.tensor([10 / 90, 50 / 950, 60 / 40]).log()


def moved(space: HierarchicalLabelSpace) -> HierarchicalLabelSpace:
    with torch.no_grad():
        for i, p in enumerate(space.parameters()):
            p += 0.05 * (i + 1) * torch.arange(1.0, p.numel() + 1).view(p.shape)
    return space


@pytest.mark.parametrize("rho", [0.0, 0.2, 1.0])
def test_it_starts_consistent_for_the_balanced_error_of_each_label(rho: float) -> None:
    """The minimiser f of w+ p softplus(-f - l) + w- (1 - p) softplus(f + l) is 0 where p is the prior."""
    w, additive, delta = HierarchicalLabelSpace(COUNTS, rho=rho)()
    assert w is not None
    assert additive is not None
    assert delta is None
    torch.testing.assert_close(additive, (1.0 - rho) * ODDS)
    torch.testing.assert_close((w[1] / w[0]).log(), -rho * ODDS)
    negatives, positives = torch.tensor(COUNTS)
    slope = w[0] * negatives * torch.sigmoid(additive) - w[1] * positives * torch.sigmoid(-additive)
    torch.testing.assert_close(slope / positives, torch.zeros(3), rtol=0.0, atol=1e-5)


def test_weights_have_mean_one_over_each_labels_examples() -> None:
    w, _, _ = moved(HierarchicalLabelSpace(COUNTS, learn=PARTS))()
    assert w is not None
    counts = torch.tensor(COUNTS)
    torch.testing.assert_close((w * counts).sum(dim=0) / counts.sum(dim=0), torch.ones(3))


def test_the_formula() -> None:
    space = HierarchicalLabelSpace(COUNTS, learn=PARTS)
    with torch.no_grad():
        space.tau.fill_(0.7)
        space.get_parameter("rho").fill_(0.4)
        space.get_parameter("gamma").fill_(0.1)
        space.eps.copy_(torch.tensor([0.3, -0.2, 0.1]))
        space.log_weight.copy_(torch.tensor([0.1, 0.2, -0.3]))
    w, additive, delta = space()
    u = 0.7 * ODDS + torch.tensor([0.3, -0.2, 0.1])
    assert w is not None
    assert additive is not None
    assert delta is not None
    torch.testing.assert_close(additive, 0.6 * u)
    torch.testing.assert_close((w[1] / w[0]).log(), -0.4 * u + torch.tensor([0.1, 0.2, -0.3]))
    shares = torch.tensor(COUNTS) / torch.tensor(COUNTS).amax(dim=0)
    torch.testing.assert_close(delta, shares**0.1)


def test_deviations_are_shrunk_by_the_positives_of_each_label() -> None:
    space = HierarchicalLabelSpace(COUNTS, sigma_eps=0.5, shrinkage=20.0)
    assert float(space.penalty().detach()) == 0.0
    costs = []
    for j in range(3):
        with torch.no_grad():
            space.eps.zero_()
            space.eps[j] = 0.25
        costs.append(float(space.penalty().detach()))
    expected = [0.25**2 / (2 * 0.25 * n / (n + 20.0)) / 3 for n in COUNTS[1]]
    assert costs == pytest.approx(expected, rel=1e-6)
    assert costs[0] > costs[1] > costs[2]


def test_without_deviations_there_are_two_numbers_for_any_number_of_labels() -> None:
    space = HierarchicalLabelSpace(COUNTS, deviations=False)
    assert sum(p.numel() for p in space.parameters()) == 2
    assert space.num_groups is None
    assert space.num_classes == 3


def test_a_record_gives_the_space_back() -> None:
    space = moved(HierarchicalLabelSpace(COUNTS, learn=PARTS, shrinkage=5.0, sigma_rho=None))
    twin = DesignSpace.from_dict(space.to_dict())
    assert isinstance(twin, HierarchicalLabelSpace)
    for a, b in zip(twin(), space(), strict=True):
        assert a is not None
        assert b is not None
        assert torch.equal(a, b)
    assert torch.equal(twin.penalty(), space.penalty())


def test_the_tunable_loss_follows_its_space_and_is_frozen_as_it_is() -> None:
    space = HierarchicalLabelSpace(COUNTS)
    loss, logits = TunableBinaryCrossEntropy(space), torch.linspace(-2, 2, 12).view(4, 3)
    target = (torch.arange(12).view(4, 3) % 4 == 0).long()
    before = loss.frozen()(logits, target)
    assert torch.equal(loss(logits, target), before)
    snapshot = loss.snapshot()
    moved(space)
    assert torch.equal(snapshot(logits, target), before)
    assert torch.equal(loss(logits, target), loss.frozen()(logits, target))
    assert not torch.equal(loss(logits, target), before)
    leaf = logits.requires_grad_()
    loss(leaf, target).backward()
    assert all(p.grad is None for p in space.parameters())


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ([10.0, 5.0], "two rows"),
        ([[9.0, 9.0], [1.0, 0.0]], "Label 1 has no positive"),
        ([[0.0, 9.0], [1.0, 5.0]], "Label 0 has no negative"),
    ],
)
def test_counts_that_are_none_are_refused(counts: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        HierarchicalLabelSpace(counts)


def test_spaces_of_classes_and_of_labels_are_not_mistaken() -> None:
    with pytest.raises(InputError, match="HierarchicalLabelSpace"):
        build_tunable_loss(HierarchicalSpace([5, 3]), labels=True)
    with pytest.raises(InputError, match="a space over classes"):
        build_tunable_loss(HierarchicalLabelSpace(COUNTS), labels=False)
    with pytest.raises(InputError, match="HierarchicalLabelSpace"):
        TunableBinaryCrossEntropy(HierarchicalSpace([5, 3]))
    assert type(build_tunable_loss(HierarchicalSpace([5, 3]))) is TunableCrossEntropy
