"""The tunable loss follows its space, and never trains it."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch
from torch import Tensor

from autobalance._validation import InputError
from autobalance.spaces.base import PARTS
from autobalance.spaces.class_space import ClassSpace
from autobalance.spaces.hierarchical_space import HierarchicalSpace
from autobalance.spaces.tunable_loss import TunableCrossEntropy
from helpers import COUNTS, GROUP_COUNTS, scatter


def example() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 4, generator=generator)
    return logits, torch.tensor([0, 1, 3, 0, 1, 0]), torch.tensor([0, 1, 1, 0, 0, 1])


def loss(**options: Any) -> TunableCrossEntropy:
    made = TunableCrossEntropy(ClassSpace(COUNTS, learn=PARTS), **options)
    scatter(made.space)
    return made


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_equals_its_frozen_self_bit_for_bit(reduction: Any, smoothing: float) -> None:
    logits, target, groups = example()
    tunable = TunableCrossEntropy(
        ClassSpace(GROUP_COUNTS, learn=PARTS),
        reduction=reduction,
        label_smoothing=smoothing,
        ignore_index=3,
    )
    scatter(tunable.space)
    given = {"groups": groups, "sample_weight": torch.rand(6)}
    found = tunable(logits, target, **given)
    assert torch.equal(found, tunable.frozen()(logits, target, **given))
    assert float(found) > 0


def test_training_with_it_does_not_reach_the_space() -> None:
    tunable, (logits, target, _) = loss(), example()
    logits.requires_grad_()
    tunable(logits, target).backward()
    assert logits.grad is not None
    assert logits.grad.any()
    assert all(p.grad is None for p in tunable.space.parameters())
    value = tunable.at(tunable.space(), logits, target)
    gradients = torch.autograd.grad(value, list(tunable.space.parameters()))
    assert all(g.any() for g in gradients)


def test_follows_the_space_and_a_snapshot_does_not() -> None:
    tunable, (logits, target, _) = loss(), example()
    before, snapshot = tunable(logits, target), tunable.snapshot()
    scatter(tunable.space, seed=7)
    after = tunable(logits, target)
    assert torch.equal(snapshot(logits, target), before)
    assert not torch.equal(after, before)
    assert torch.equal(after, tunable.frozen()(logits, target))


def test_follows_a_loaded_state_and_a_changed_dtype() -> None:
    tunable, other, (logits, target, _) = loss(), loss(), example()
    scatter(other.space, seed=7)
    tunable(logits, target)  # which must leave nothing behind
    tunable.load_state_dict(other.state_dict())
    assert torch.equal(tunable(logits, target), other(logits, target))
    tunable.double()
    value = tunable(logits.double(), target)
    torch.testing.assert_close(value, tunable.frozen()(logits.double(), target), rtol=0, atol=0)


def test_pickle_keeps_the_value() -> None:
    tunable, other, (logits, target, _) = loss(), loss(), example()
    tunable(logits, target)
    copy = pickle.loads(pickle.dumps(tunable))
    assert torch.equal(copy(logits, target), tunable(logits, target))
    scatter(other.space, seed=7)
    copy.load_state_dict(other.state_dict())
    assert torch.equal(copy(logits, target), other(logits, target))


def test_first_used_in_inference_mode_it_can_train_afterwards() -> None:
    tunable, (logits, target, _) = loss(), example()
    with torch.inference_mode():
        tunable(logits, target)
    leaf = logits.clone().requires_grad_()
    tunable(leaf, target).backward()
    assert leaf.grad is not None
    assert leaf.grad.any()


def test_refused() -> None:
    with pytest.raises(InputError, match="reduction must be one of mean, sum; got 'none'"):
        TunableCrossEntropy(HierarchicalSpace(COUNTS), reduction="none")
    with pytest.raises(InputError, match="4 classes, but the network returned logits of width 3"):
        loss()(torch.zeros(1, 3), torch.tensor([0]))
    by_group = TunableCrossEntropy(ClassSpace(GROUP_COUNTS))
    with pytest.raises(InputError, match="one row per group: pass groups="):
        by_group(torch.zeros(1, 4), torch.tensor([0]))
