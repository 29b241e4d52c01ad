"""The balanced sampler: even over classes and groups, and over processes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from autobalance._validation import InputError
from autobalance.data.samplers import BalancedSampler

TARGET = np.repeat([0, 1, 2], [60, 12, 3])


def test_every_class_comes_as_often_and_no_example_twice_too_early() -> None:
    drawn = np.array(list(BalancedSampler(TARGET, seed=1)))
    assert len(drawn) == 75
    assert np.bincount(TARGET[drawn]).tolist() == [25, 25, 25]
    times = np.bincount(drawn, minlength=75)
    assert times[TARGET == 0].max() == 1
    assert set(times[TARGET == 1]) == {2, 3}
    assert set(times[TARGET == 2]) == {8, 9}


def test_pairs_of_class_and_group() -> None:
    groups = np.arange(75) % 2
    drawn = np.array(list(BalancedSampler(TARGET, groups, num_samples=601)))
    counts = np.bincount(2 * TARGET[drawn] + groups[drawn])
    assert counts.sum() == 601
    assert set(counts.tolist()) == {100, 101}


def test_processes_take_turns_in_one_order() -> None:
    alone = list(BalancedSampler(TARGET, num_samples=76, seed=3))
    shares = [
        list(BalancedSampler(TARGET, num_samples=74, seed=3, num_replicas=4, rank=rank))
        for rank in range(4)
    ]
    assert [len(share) for share in shares] == [19] * 4
    assert [i for four in zip(*shares, strict=True) for i in four] == alone
    classes = np.bincount(TARGET[np.concatenate(shares)])
    assert classes.max() - classes.min() <= 1


def test_epochs_differ_and_come_again() -> None:
    sampler = BalancedSampler(TARGET)
    first = list(sampler)
    assert list(sampler) == first
    sampler.set_epoch(1)
    assert list(sampler) != first
    sampler.set_epoch(0)
    assert list(sampler) == first
    assert list(BalancedSampler(TARGET, seed=1)) != first


def test_it_feeds_a_data_loader_and_leaves_the_global_generator() -> None:
    data = TensorDataset(torch.arange(75))
    sampler = BalancedSampler(torch.from_numpy(TARGET), num_samples=30)
    state = torch.random.get_rng_state()
    assert list(sampler) == list(sampler)
    assert torch.equal(state, torch.random.get_rng_state())
    seen = torch.cat([x for (x,) in DataLoader(data, batch_size=8, sampler=sampler)])
    assert seen.tolist() == list(sampler)
    assert len(sampler) == 30


def test_fewer_places_than_classes() -> None:
    drawn = TARGET[list(BalancedSampler(TARGET, num_samples=2))]
    assert len(set(drawn.tolist())) == 2


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"target": []}, "target"),
        ({"target": [[0, 1]]}, r"got torch.int64 of shape \(1, 2\)"),
        ({"target": [0.5, 1.0]}, "whole numbers from 0, .*got torch.float32"),
        ({"target": [0, -1]}, "-1"),
        ({"target": ["a", "b"]}, "target must hold whole numbers"),
        ({"groups": [0, 1]}, "75.*2"),
        ({"num_samples": 0}, "num_samples must be at least 1"),
        ({"num_replicas": 2, "rank": 2}, "rank must be below num_replicas, 2; got 2"),
        ({"seed": -1}, "seed must be at least 0"),
    ],
)
def test_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        BalancedSampler(**{"target": TARGET, **given})
