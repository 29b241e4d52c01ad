"""Long-tailed profiles and draws."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given, strategies as st

from autobalance import InputError
from autobalance_bench.datasets.longtail import (
    PROFILES,
    exponential_counts,
    long_tailed,
    pareto_counts,
    profile_of,
    sample_by_class,
    step_counts,
)


def test_the_usual_profiles() -> None:
    assert exponential_counts(10, 500, 100).tolist() == [
        500, 299, 179, 107, 64, 38, 23, 13, 8, 5,
    ]  # fmt: skip
    assert exponential_counts(10, 5000, 100)[[0, -1]].tolist() == [5000, 50]  # CIFAR10-LT
    assert exponential_counts(3, 100, 1).tolist() == [100, 100, 100]
    assert exponential_counts(2, 3, 1000).tolist() == [3, 1]


def test_the_pareto_profile_comes_near_imagenet_lts() -> None:
    """1,280 to 5 images in 1,000 classes, 115,846 in all, as published."""
    counts = pareto_counts(1000, 1280, 256)
    assert counts[[0, -1]].tolist() == [1280, 5]
    assert abs(counts.sum() / 115_846 - 1) < 0.01


def test_the_pareto_profile_is_harmonic_at_power_1_and_exponential_for_large_ones() -> None:
    assert pareto_counts(4, 120, 4, power=1.0).tolist() == [120, 60, 40, 30]
    flat = pareto_counts(10, 5000, 100, power=1e6)
    np.testing.assert_allclose(flat, exponential_counts(10, 5000, 100), atol=1)


def test_the_step_profile() -> None:
    assert step_counts(4, 50, 10).tolist() == [50, 50, 5, 5]
    assert step_counts(5, 50, 10, minority=0.2).tolist() == [50, 50, 50, 50, 5]
    assert step_counts(3, 50, 100, minority=0.99).tolist() == [50, 1, 1]
    assert step_counts(3, 50, 100, minority=0.01).tolist() == [50, 50, 1]
    with pytest.raises(InputError, match=r"minority must lie strictly between 0 and 1"):
        step_counts(3, 50, 100, minority=1.0)
    with pytest.raises(InputError, match="power must be a finite number above 0"):
        pareto_counts(3, 50, 100, power=0.0)


@pytest.mark.parametrize("profile", PROFILES)
@given(st.integers(2, 50), st.integers(1, 5000), st.floats(1, 1000))
def test_profiles_fall_from_the_largest_and_keep_every_class(
    profile: str, k: int, largest: int, imbalance: float
) -> None:
    counts = PROFILES[profile](k, largest, imbalance)
    assert counts.shape == (k,)
    assert counts[0] == largest
    assert (np.diff(counts) <= 0).all()
    assert counts[-1] == max(1, int(largest / imbalance + 1e-6))


def test_a_profile_of_a_record() -> None:
    record = {"largest": 120, "imbalance": 4, "profile": "pareto", "power": 1}
    size = record.pop("largest"), record.pop("imbalance")
    found = profile_of(record.pop("profile"), **record)(4, *size)
    assert found.tolist() == [120, 60, 40, 30]
    assert profile_of("step", minority=0.25)(4, 50, 10).tolist() == [50, 50, 50, 5]
    for name, function in PROFILES.items():
        assert profile_of(name)(7, 500, 20).tolist() == function(7, 500, 20).tolist()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("linear", {}, "profile must be one of exponential, pareto, step; got 'linear'"),
        (3, {}, "profile must be one of exponential, pareto, step; got 3"),
        ("exponential", {"power": 3}, "profile exponential has no option 'power'; it has none"),
        ("pareto", {"minority": 0.5}, "pareto has no option 'minority'; it has only power"),
        ("step", {"largest": 9}, "step has no option 'largest'; it has only minority"),
        ("pareto", {"power": -1}, "power must be a finite number above 0; got -1"),
        ("pareto", {"power": "3"}, "power must be a number; got '3'"),
        ("step", {"minority": 1}, "minority must lie strictly between 0 and 1; got 1"),
    ],
)
def test_profiles_of_records_refused(name: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        profile_of(name, **options)


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


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("given", [(1, 10, 2.0), (3, 0, 2.0), (3, 10, 0.5), (3, 10, np.nan)])
def test_profiles_refused(profile: str, given: Any) -> None:
    with pytest.raises(
        InputError, match=r"at least 2 classes, 1 example .* imbalance of 1 or more"
    ):
        PROFILES[profile](*given)


@pytest.mark.parametrize("profile", PROFILES)
def test_a_long_tailed_draw_of_balanced_data_keeps_all_of_the_largest_class(profile: str) -> None:
    target = np.arange(200) % 4
    drawn = long_tailed(target, 10, profile=profile)
    counts = np.bincount(target[drawn])
    assert counts.tolist() == PROFILES[profile](4, 50, 10).tolist()
    assert drawn.tolist() == sorted(set(drawn.tolist()))
    assert drawn.tolist() == long_tailed(target, 10, profile=profile).tolist()
    assert drawn.tolist() != long_tailed(target, 10, profile=profile, seed=1).tolist()


def test_a_draw_of_other_data_is_as_large_as_it_allows() -> None:
    """Class 1 has but 6 members, so 12 of class 0 are the most at a tail of 4 over 3 classes."""
    target = np.repeat([0, 1, 2], [100, 6, 50])
    found = np.bincount(target[long_tailed(target, 4)])
    assert found.tolist() == exponential_counts(3, found[0], 4).tolist()
    assert found[1] <= 6 < exponential_counts(3, found[0] + 1, 4)[1]
    ordered = np.bincount(target[long_tailed(target, 16, order=[0, 2, 1])])
    assert ordered.tolist() == [100, 6, 25]
    assert np.bincount(target[long_tailed(target, 2, largest=8)]).tolist() == [8, 5, 4]


def test_a_profile_of_ones_own() -> None:
    target = [0] * 12 + [1] * 12
    drawn = long_tailed(target, 4, profile=partial(step_counts, minority=0.5))
    assert len(drawn) == 15


@pytest.mark.parametrize(
    ("target", "options", "message"),
    [
        ([0, 2], {}, r"Class 1 has no example \(classes without any: \[1\]\). Number the classes"),
        ([0.0, 1.0], {}, "whole numbers from 0"),
        ([0, -1], {}, "whole numbers from 0"),
        ([], {}, "whole numbers from 0"),
        ([0, 1], {"order": [0, 0]}, "order must name each of the classes 0 to 1 once"),
        ([0, 1], {"profile": "linear"}, "profile must be one of exponential, pareto, step"),
        ([0, 1], {"largest": 2}, "Class 0 has 1 examples; 2 were asked for"),
        ([0, 0], {}, "at least 2 classes"),
    ],
)
def test_draws_refused(target: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        long_tailed(target, 2.0, **options)
