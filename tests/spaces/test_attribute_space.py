"""Class-attribute priors: a few numbers for any number of classes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from autobalance._validation import InputError
from autobalance.bilevel.network_search import search
from autobalance.records.settings import Recipe, SearchSettings
from autobalance.spaces.attribute_space import AttributeSpace, class_attributes
from autobalance.spaces.base import DesignSpace
from autobalance.spaces.hierarchical_space import HierarchicalSpace
from helpers import blobs, linear_factory

COUNTS = [90, 30, 9, 3]
KNOWN = [[0.0, 5.0], [1.0, 5.0], [0.5, 6.0], [0.2, 8.0]]


def test_it_starts_where_the_default_space_does() -> None:
    found, expected = AttributeSpace(COUNTS)().detach(), HierarchicalSpace(COUNTS)().detach()
    torch.testing.assert_close(found.additive, expected.additive)
    torch.testing.assert_close(found.weight, expected.weight)
    torch.testing.assert_close(found.multiplicative, torch.ones(4))


def test_the_map_by_hand() -> None:
    space = AttributeSpace(COUNTS, KNOWN).double()
    with torch.no_grad():
        space.get_parameter("shift").copy_(torch.tensor([0.3, -0.2]))
        space.get_parameter("stretch").copy_(torch.tensor([0.1, 0.05]))
    table = np.array(KNOWN)
    A = (table - table.mean(axis=0)) / table.std(axis=0)
    pi = np.array(COUNTS) / np.sum(COUNTS)
    u = np.log(pi) + A @ [0.3, -0.2]
    w = np.exp(-0.2 * u)
    made = space().detach()
    assert made.additive is not None
    assert made.weight is not None
    assert made.multiplicative is not None
    np.testing.assert_allclose(made.additive, 0.8 * u, rtol=1e-6)
    np.testing.assert_allclose(made.weight, w / (pi @ w), rtol=1e-6)
    np.testing.assert_allclose(made.multiplicative, np.exp(A @ [0.1, 0.05]), rtol=1e-6)


def test_attributes_that_do_not_vary_are_left_out() -> None:
    space = AttributeSpace(COUNTS, [[1.0, k, 7.0] for k in range(4)])
    assert space.get_parameter("shift").shape == (1,)


def test_the_size_does_not_grow_with_the_classes() -> None:
    counts = np.arange(1000, 0, -1)
    assert sum(p.numel() for p in AttributeSpace(counts).parameters()) == 4


def test_the_record_makes_it_again() -> None:
    space = AttributeSpace(COUNTS, KNOWN, learn=["additive"], sigma=0.3)
    with torch.no_grad():
        space.get_parameter("shift").fill_(0.4)
    again = DesignSpace.from_dict(space.to_dict())
    torch.testing.assert_close(again().detach().additive, space().detach().additive)
    assert again.priors() == {"shift": (0.0, 0.3)}


def test_a_search_moves_it() -> None:
    result = search(
        linear_factory(),
        blobs(),
        space=AttributeSpace,
        recipe=Recipe(epochs=1, min_steps=20, batch_size=32),
        settings=SearchSettings(every=4),
        device="cpu",
    )
    assert result.design["space"] == "AttributeSpace"
    assert np.any(result.design["shift"])


def test_attributes_by_hand() -> None:
    far = 50.0
    logits = [[far, 0, 0], [0, far, 0], [0, far, 0], [0, 0, far]]
    found = class_attributes(logits, [0, 0, 1, 2], [10, 5, 1])
    errors = (0.5 + 0.0 + 0.0) / 3
    np.testing.assert_allclose(found[:, 0], np.log(np.array([10, 5, 1]) / 16))
    np.testing.assert_allclose(
        found[:, 1], [(1 + 2 * errors) / 4, 2 * errors / 3, 2 * errors / 3], atol=1e-9
    )
    sizes = np.array([2.0, 1.0, 1.0])
    centre = sizes.mean()
    expected = (sizes * [2, 1, 1] + 2 * centre) / np.array([4, 3, 3])
    np.testing.assert_allclose(found[:, 2], expected, rtol=1e-6)


def test_a_class_without_examples_is_like_the_mean() -> None:
    found = class_attributes([[9.0, 0.0, 0.0], [9.0, 0.0, 0.0]], [0, 1], [10, 5, 1])
    assert found[2, 1] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"counts": [[3, 2], [1, 1]]}, "counts per class"),
        ({"counts": COUNTS, "learn": ["weight"]}, "learns additive and multiplicative"),
        ({"counts": COUNTS, "attributes": [[1.0], [2.0]]}, r"one row per class \(4, m\)"),
        ({"counts": COUNTS, "attributes": [[np.nan]] * 4}, "finite|NaN"),
        ({"counts": COUNTS, "attributes": [[1.0]] * 4}, "No attribute differs"),
        ({"counts": COUNTS, "sigma": 0.0}, "sigma must"),
    ],
)
def test_bad_input(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        AttributeSpace(**given)


def test_logits_of_another_shape() -> None:
    with pytest.raises(InputError, match="one row per example and one column per class"):
        class_attributes(np.zeros((3, 2)), [0, 1, 1], [3, 2, 1])
