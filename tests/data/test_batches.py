"""Data in memory, what is refused, and the streams that draw batches."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from torch import Tensor

from autobalance._validation import InputError
from autobalance.data.array_data import ArrayData, concatenated
from autobalance.data.arrays import indices
from autobalance.data.batches import Batch, as_batch, as_batches
from autobalance.data.index_streams import BalancedBatches, ResampledBatches, ShuffledBatches

X = np.arange(8.0).reshape(4, 2)
Y = np.array([0, 2, 1, 2])


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# Streams --------------------------------------------------------------------------------------


@given(n=st.integers(1, 30), size=st.integers(1, 40), seed=st.integers(0, 100))
def test_shuffled_batches_have_one_size_and_take_each_example_once_per_pass(
    n: int, size: int, seed: int
) -> None:
    batches = list(islice(ShuffledBatches(n, size, seeded(seed)), 3 * n))
    assert {len(b) for b in batches} == {min(size, n)}
    stream = torch.cat(batches)
    for start in range(0, len(stream) - n + 1, n):
        assert sorted(stream[start : start + n].tolist()) == list(range(n))


def test_shuffled_batches_follow_the_generator() -> None:
    def first(seed: int) -> list[int]:
        return next(ShuffledBatches(50, 50, seeded(seed))).tolist()

    assert first(1) == first(1)
    assert first(1) != first(2)
    passes = list(islice(ShuffledBatches(50, 50, seeded()), 2))
    assert passes[0].tolist() != passes[1].tolist()


@given(
    counts=st.lists(st.integers(1, 30), min_size=1, max_size=6),
    size=st.integers(1, 40),
    seed=st.integers(0, 100),
)
def test_balanced_batches_are_even_over_the_cells(counts: list[int], size: int, seed: int) -> None:
    cells = torch.repeat_interleave(torch.arange(len(counts)) * 3, torch.tensor(counts))
    draws = list(islice(BalancedBatches(cells, size, seeded(seed)), 20))
    if len(cells) <= size:
        assert all(d.tolist() == list(range(len(cells))) for d in draws)
        return
    assert all(len(draw) <= size for draw in draws)
    if size >= len(counts):
        each = size // len(counts)
        for draw in draws:
            found = torch.bincount(cells[draw] // 3, minlength=len(counts)).tolist()
            assert found == [min(each, n) for n in counts]
    else:  # cells take turns, and none has a second before all had their first
        turns = (cells[torch.cat(draws)] // 3).tolist()
        for start in range(0, len(turns) - len(counts) + 1, len(counts)):
            assert sorted(turns[start : start + len(counts)]) == list(range(len(counts)))


def test_balanced_batches_take_turns_fairly_and_go_through_each_cell() -> None:
    cells = torch.repeat_interleave(torch.arange(5), 4)
    stream = torch.cat(list(islice(BalancedBatches(cells, 2, seeded()), 50)))
    assert torch.bincount(cells[stream]).tolist() == [20] * 5
    assert torch.bincount(stream).tolist() == [5] * 20


@given(
    counts=st.lists(st.integers(1, 30), min_size=1, max_size=5),
    size=st.integers(1, 40),
    seed=st.integers(0, 100),
)
def test_resampled_batches_are_full_and_draw_every_cell_as_likely(
    counts: list[int], size: int, seed: int
) -> None:
    cells = torch.repeat_interleave(torch.arange(len(counts)) * 3, torch.tensor(counts))
    draws = list(islice(ResampledBatches(cells, size, seeded(seed)), 1 + 4000 // size))
    assert {len(d) for d in draws} == {size}
    drawn = torch.cat(draws)
    shares = torch.bincount(cells[drawn] // 3, minlength=len(counts)).double() / len(drawn)
    assert float((shares - 1 / len(counts)).abs().max()) < 5 * 0.5 / 4000**0.5
    within = torch.bincount(drawn, minlength=len(cells))[cells == 0].double()
    expected = len(drawn) / len(counts) / counts[0]
    assert float((within - expected).abs().max()) < 6 * expected**0.5 + 1


@pytest.mark.parametrize("kind", ["shuffled", "resampled", "balanced"])
def test_the_state_of_a_stream_continues_it(kind: str) -> None:
    cells = torch.arange(40) % 3

    def fresh(seed: int) -> Any:
        return {
            "shuffled": lambda: ShuffledBatches(40, 7, seeded(seed)),
            "resampled": lambda: ResampledBatches(cells, 7, seeded(seed)),
            "balanced": lambda: BalancedBatches(cells, 7, seeded(seed)),
        }[kind]()

    first, second = fresh(0), fresh(1)
    for _ in range(4):
        next(first)
    second.load_state_dict(first.state_dict())
    assert all(torch.equal(next(first), next(second)) for _ in range(20))


# Data -----------------------------------------------------------------------------------------


def test_of_converts_and_counts() -> None:
    data = ArrayData.of(X, Y, sample_weight=[1, 2, 0, 1])
    assert data.inputs.dtype == torch.float32
    assert data.target.dtype == torch.int64
    assert data.sample_weight is not None
    assert data.sample_weight.dtype == torch.float32
    assert (len(data), data.num_classes, data.groups, data.num_groups) == (3, 3, None, None)
    assert data.counts().tolist() == [1, 0, 2]  # An example of weight 0 is left out.
    assert data.masses().tolist() == [1, 0, 3]


def test_of_counts_by_group() -> None:
    data = ArrayData.of(X, Y, groups=[1, 0, 1, 1], num_classes=4, num_groups=3)
    assert data.counts().tolist() == [[0, 0, 1, 0], [1, 1, 1, 0], [0, 0, 0, 0]]
    assert data.cells().tolist() == [4, 2, 5, 6]


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64, bool])
def test_of_takes_any_whole_numbers_as_target(dtype: Any) -> None:
    assert ArrayData.of(X, np.array([0, 1, 1, 0], dtype=dtype)).target.tolist() == [0, 1, 1, 0]


def test_subset_and_batch_keep_examples_together() -> None:
    data = ArrayData.of(X, Y, groups=[1, 0, 1, 1], sample_weight=[1.0, 2.0, 3.0, 4.0])
    part = data.subset(torch.tensor([3, 1]))
    assert part.inputs.tolist() == [[6.0, 7.0], [2.0, 3.0]]
    assert part.target.tolist() == [2, 2]
    assert (part.num_classes, part.num_groups) == (3, 2)  # as in the whole
    batch = data.batch(torch.tensor([2]))
    assert isinstance(batch, Batch)
    found = [batch.inputs, batch.target, batch.groups, batch.sample_weight]
    assert [t.tolist() for t in found if t is not None] == [[[4.0, 5.0]], [1], [1], [3.0]]


def test_concatenated() -> None:
    data = ArrayData.of(X, Y, groups=[1, 0, 1, 1], sample_weight=[1.0, 2.0, 3.0, 4.0])
    both = concatenated(data, data.subset(torch.tensor([1])))
    assert len(both) == 5
    assert both.target.tolist() == [0, 2, 1, 2, 2]
    assert both.groups is not None
    assert both.groups.tolist() == [1, 0, 1, 1, 0]
    assert both.sample_weight is not None
    assert both.sample_weight.tolist() == [1, 2, 3, 4, 2]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (ArrayData.of(X, Y, sample_weight=[1.0] * 4), "must both have weights, or neither"),
        (ArrayData.of(np.ones((4, 3)), Y), r"same shape per example; got \(2,\) and \(3,\)"),
        (ArrayData.of(X, Y + 1), "has class 3, but training data is numbered 0 to 2"),
    ],
)
def test_sets_that_do_not_belong_together_are_refused(other: ArrayData, message: str) -> None:
    with pytest.raises(InputError, match=message):
        concatenated(ArrayData.of(X, Y), other)


def test_groups_of_the_first_are_needed_in_the_second_and_those_of_the_second_alone_go() -> None:
    plain, grouped = ArrayData.of(X, Y), ArrayData.of(X, Y, groups=Y)
    with pytest.raises(InputError, match="where training data has groups, validation data needs"):
        concatenated(grouped, plain)
    both = concatenated(plain, grouped)
    assert len(both) == 8
    assert both.groups is None


def test_groups_unknown_in_training_are_refused() -> None:
    first, second = (ArrayData.of(X, Y, groups=np.array([0, 1, 0, g])) for g in (1, 2))
    with pytest.raises(InputError, match="has group 2, but training data is numbered 0 to 1"):
        concatenated(first, second)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"target": Y[:3]}, "one entry per example, but inputs has 4, target has 3"),
        ({"groups": [0]}, "one entry per example, but .* groups has 1"),
        ({"sample_weight": [1.0]}, "one entry per example, but .* sample_weight has 1"),
        ({"inputs": np.zeros((0, 2)), "target": Y[:0]}, "There is no example"),
        ({"inputs": np.where(X == 3, np.nan, X)}, "inputs must be finite .* found 1 NaN or infi"),
        ({"inputs": np.where(X > 5, np.inf, X)}, "found 2 NaN or infinite values"),
        ({"inputs": 1e300 * X}, "inputs must be finite in float32; found 7"),
        ({"inputs": [["a"], ["b"], ["c"], ["d"]]}, "inputs must be an array of numbers"),
        ({"target": np.array([0.0, 1.0, 1.0, 0.0])}, r"target must hold whole numbers .*float64"),
        ({"target": np.array([0.0, np.nan, 1.0, 0.0])}, "target must hold whole numbers from 0"),
        ({"target": np.array(["a", "b", "a", "b"])}, "Number the labels first, with numpy.unique"),
        ({"target": Y[:, None]}, r"whole numbers from 0, shape \(n,\); got .* of shape \(4, 1\)"),
        ({"target": Y - 1}, "target must be numbered from 0; its smallest is -1"),
        ({"groups": [0, 1, -1, 0]}, "groups must be numbered from 0; its smallest is -1"),
        ({"num_classes": 2}, "target has class 2, but there are only 2 classes"),
        ({"groups": [0, 0, 0, 3], "num_groups": 2}, "groups has 3, but there are only 2 groups"),
        ({"sample_weight": [1.0, -1.0, 1.0, 1.0]}, "one-dimensional, never negative and not all"),
        ({"sample_weight": [0.0] * 4}, "never negative and not all zero"),
        ({"sample_weight": np.ones((4, 1))}, "sample_weight must be one-dimensional"),
        ({"sample_weight": [1.0, np.nan, 1.0, 1.0]}, "sample_weight must be finite"),
    ],
)
def test_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ArrayData.of(**{"inputs": X, "target": Y, **given})


@pytest.mark.parametrize("kind", ["bool", "int8", "uint8", "uint16", "uint32", "uint64"])
def test_indices_of_any_whole_kind(kind: str) -> None:
    found = indices("y", np.array([0, 1, 1], dtype=kind), count=2)
    assert found.dtype == torch.int64
    assert found.tolist() == [0, 1, 1]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (([0, 2], 0, 2), r"y must lie in 0\.\.1; got numbers from 0 to 2"),
        (([-1, 1], 0, 2), r"y must lie in 0\.\.1; got numbers from -1 to 1"),
        (([-2, 1], -1, 2), r"y must lie in -1\.\.1; got numbers from -2 to 1"),
        (([-1, 1], 0, None), "y must be numbered from 0; its smallest is -1"),
        (([-2, 1], -1, None), "y must be numbered from 0; its smallest is -2"),
    ],
)
def test_indices_out_of_range(given: Any, message: str) -> None:
    values, least, count = given
    with pytest.raises(InputError, match=message):
        indices("y", values, least, count)
    assert len(indices("y", torch.zeros(0, dtype=torch.int64), least, count)) == 0


# Batches --------------------------------------------------------------------------------------


def tensors() -> list[Tensor]:
    return [torch.ones(2, 3), torch.tensor([0, 1]), torch.tensor([1, 1]), torch.ones(2)]


@pytest.mark.parametrize("kind", [tuple, list])
@pytest.mark.parametrize("n", [2, 3, 4])
def test_as_batch_of_what_loaders_yield(kind: Any, n: int) -> None:
    given = tensors()[:n]
    batch = as_batch(kind(given))
    found = [batch.inputs, batch.target, batch.groups, batch.sample_weight]
    assert all(a is b for a, b in zip(found[:n], given, strict=True))
    assert found[n:] == [None] * (4 - n)


def test_as_batch_of_a_mapping_and_of_a_batch() -> None:
    x, y, g, _ = tensors()
    batch = as_batch({"inputs": x, "target": y, "groups": g, "index": 3})
    assert batch.inputs is x
    assert batch.groups is g
    assert batch.sample_weight is None
    assert as_batch(batch) is batch


@dataclass
class Example:
    inputs: Tensor
    target: Tensor
    sample_weight: Tensor


def test_as_batch_of_a_dataclass() -> None:
    x, y, _, w = tensors()
    batch = as_batch(Example(x, y, w))
    assert batch.inputs is x
    assert batch.target is y
    assert batch.groups is None
    assert batch.sample_weight is w


def test_as_batch_of_a_mapping_with_labels() -> None:
    """All but the labels, groups and weights are the network's keyword arguments."""
    x, y, g, w = tensors()
    given = {"input_ids": x, "attention_mask": w, "labels": y, "groups": g, "sample_weight": w}
    batch = as_batch(given)
    assert list(batch.inputs) == ["input_ids", "attention_mask"]
    assert batch.inputs["input_ids"] is x
    assert batch.target is y
    assert batch.groups is g
    assert batch.sample_weight is w
    assert "labels" in given  # the loader's own is left alone


def test_as_batches_tells_one_from_several() -> None:
    x, y, _, _ = tensors()
    pair, mapping = (x, y), {"inputs": x, "target": y}
    assert len(as_batches([x, y])) == len(as_batches(pair)) == len(as_batches(mapping)) == 1
    assert len(as_batches([{"ids": x}, y])) == 1  # keyword arguments and target
    several = as_batches([pair, [x, y], mapping, Batch(x, y)])
    assert [b.inputs is x and b.target is y for b in several] == [True] * 4
    made = as_batches([1, 2, 3], lambda n: Batch(n, y))
    assert [b.inputs for b in made] == [1, 2, 3]


@pytest.mark.parametrize(
    ("given", "came"),
    [
        ((1,), "tuple"),
        ([1] * 5, "list"),
        ({"x": 1}, "dict"),
        (3, "int"),
        ([], "list"),
        ({"labels": torch.tensor([0, 1])}, "dict"),
        ((np.ones((2, 3)), np.array([0, 1])), "tuple"),
        ({"inputs": torch.ones(2, 3), "target": [0, 1]}, "dict"),
    ],
)
def test_as_batch_refuses_the_rest(given: Any, came: str) -> None:
    with pytest.raises(InputError, match=rf"A batch must be \(inputs, target.* got {came}"):
        as_batch(given)
