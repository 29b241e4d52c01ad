"""Long-tailed profiles and draws."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autobalance.checks import InputError
from autobalance.data.longtail import exponential_counts, sample_by_class


def test_the_usual_profiles() -> None:
    assert exponential_counts(10, 500, 100).tolist() == [
        500, 299, 179, 107, 64, 38, 23, 13, 8, 5,
    ]  # fmt: skip
    assert exponential_counts(10, 5000, 100)[[0, -1]].tolist() == [5000, 50]  # CIFAR10-LT
    assert exponential_counts(3, 100, 1).tolist() == [100, 100, 100]
    assert exponential_counts(2, 3, 1000).tolist() == [3, 1]


@given(st.integers(2, 50), st.integers(1, 5000), st.floats(1, 1000))
def test_profiles_fall_from_the_largest_and_keep_every_class(
    k: int, largest: int, imbalance: float
) -> None:
    counts = exponential_counts(k, largest, imbalance)
    assert counts.shape == (k,)
    assert counts[0] == largest
    assert (np.diff(counts) <= 0).all()
    assert counts[-1] == max(1, int(largest / imbalance + 1e-6))


def test_a_draw_has_the_counts_asked_for_and_follows_the_generator() -> None:
    target = np.array([0, 1, 2] * 20)
    counts = np.array([20, 7, 0])
    drawn = sample_by_class(target, counts, np.random.default_rng(0))
    assert np.bincount(target[drawn], minlength=3).tolist() == [20, 7, 0]
    assert len(set(drawn.tolist())) == 27
    assert (np.diff(drawn) > 0).all()
    again = sample_by_class(target, counts, np.random.default_rng(0))
    other = sample_by_class(target, counts, np.random.default_rng(1))
    assert drawn.tolist() == again.tolist()
    assert drawn.tolist() != other.tolist()


def test_a_draw_refuses_what_is_not_there() -> None:
    with pytest.raises(InputError, match="Class 1 has 2 examples; 3 were asked for"):
        sample_by_class(np.array([0, 1, 1]), np.array([1, 3]), np.random.default_rng(0))


@pytest.mark.parametrize("given", [(1, 10, 2.0), (3, 0, 2.0), (3, 10, 0.5)])
def test_profiles_refused(given: Any) -> None:
    with pytest.raises(
        InputError, match=r"at least 2 classes, 1 example .* imbalance of 1 or more"
    ):
        exponential_counts(*given)
