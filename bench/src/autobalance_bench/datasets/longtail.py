"""Long-tailed and step-imbalanced samples of any labelled data."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from autobalance import InputError
from autobalance_bench._checks import (
    check_choice,
    check_fraction,
    check_int,
    check_number,
    check_positive,
    check_seed,
)

Profile = Callable[[int, int, float], np.ndarray]
"""From number of classes, largest count and imbalance to counts ``(k,)`` that never rise."""


def exponential_counts(num_classes: int, largest: int, imbalance: float) -> np.ndarray:
    """Counts n_k = largest * imbalance^(-k / (K - 1)), rounded down but at least 1, shape ``(k,)``.

    The usual long-tailed profile (Cui et al., CVPR 2019); class 0 is the largest and class
    ``num_classes - 1`` is `imbalance` times smaller.
    """
    _check(num_classes, largest, imbalance)
    return _rounded(largest * imbalance ** (-np.arange(num_classes) / (num_classes - 1)))


def pareto_counts(
    num_classes: int, largest: int, imbalance: float, *, power: float = 3.0
) -> np.ndarray:
    """Counts n_k = largest * (1 + c k / (K - 1))^(-power), rounded down but at least 1, ``(k,)``.

    c is such that class ``num_classes - 1`` is `imbalance` times smaller than class 0. A smaller
    power leaves less to the middle classes; a large one comes near the exponential profile. With
    power 3, 1,000 classes from 1,280 down to 5 hold 116,711 examples; ImageNet-LT, drawn with a
    Pareto distribution (Liu et al., CVPR 2019), holds 115,846.
    """
    _check(num_classes, largest, imbalance)
    check_positive("power", power)
    c = np.expm1(np.log(imbalance) / power)
    return _rounded(largest * (1.0 + c * np.arange(num_classes) / (num_classes - 1)) ** -power)


def step_counts(
    num_classes: int, largest: int, imbalance: float, *, minority: float = 0.5
) -> np.ndarray:
    """Counts that are `largest`, and for the last classes `imbalance` times smaller, ``(k,)``.

    The step imbalance of Buda et al. (2018) and Cao et al. (NeurIPS 2019).

    Parameters
    ----------
    num_classes, largest, imbalance
        As for `exponential_counts`.
    minority : float
        Share of small classes, in (0, 1), rounded, but at least one class is small and one large.
    """
    _check(num_classes, largest, imbalance)
    check_fraction("minority", minority)
    small = min(num_classes - 1, max(1, round(minority * num_classes)))
    counts = np.full(num_classes, float(largest))
    counts[num_classes - small :] /= imbalance
    return _rounded(counts)


PROFILES: dict[str, Profile] = {
    "exponential": exponential_counts,
    "pareto": pareto_counts,
    "step": step_counts,
}


def profile_of(name: str, **options: float) -> Profile:
    """A profile by its name and options, such as those of a configuration.

    Parameters
    ----------
    name : {"exponential", "pareto", "step"}
        Which.
    options : float
        ``power`` of `pareto_counts`, ``minority`` of `step_counts`; `exponential_counts` has none.

    Raises
    ------
    InputError
        If there is no such profile, or it has no such option or the option is out of range.

    Examples
    --------
    >>> profile_of("step", minority=0.25)(4, 50, 10.0).tolist()
    [50, 50, 50, 5]
    """
    profile = PROFILES[check_choice("profile", name, PROFILES)]
    kinds = inspect.signature(profile).parameters.values()
    known = [kind.name for kind in kinds if kind.kind is kind.KEYWORD_ONLY]
    for option in options:
        if option not in known:
            has = f"only {', '.join(known)}" if known else "none"
            raise InputError(f"The profile {name} has no option {option!r}; it has {has}.")
    chosen = partial(profile, **options)
    chosen(2, 1, 1.0)  # its checks: a bad option is told here, not at the draw
    return chosen


def long_tailed(
    target: Any,
    imbalance: float,
    *,
    profile: str | Profile = "exponential",
    largest: int | None = None,
    order: Sequence[int] | None = None,
    seed: int = 0,
) -> np.ndarray:
    """Sorted row numbers of a long-tailed draw, for the `subset` of any data.

    Parameters
    ----------
    target : array-like
        Class indices from 0, shape ``(n,)``, such as those of CIFAR or of `Photographs`.
    imbalance : float
        Largest count over smallest, at least 1.
    profile : {"exponential", "pareto", "step"} or callable
        Or for example ``profile_of("pareto", power=2.0)``.
    largest : int, optional
        Examples of the largest class. By default as many as the data allows, so that of balanced
        data the largest class keeps all.
    order : sequence of int, optional
        The classes from largest to smallest, each once. By default 0 to k - 1.
    seed : int
        Decides who is drawn.

    Raises
    ------
    InputError
        If a class has no example or fewer than asked for, or an argument is out of range.

    Examples
    --------
    >>> kept = long_tailed([0, 0, 0, 0, 1, 1, 1, 1], 4.0)
    >>> len(kept)  # four of class 0 and one of class 1
    5
    """
    if isinstance(profile, str):
        profile = profile_of(profile)
    if not callable(profile):
        raise InputError(f"profile must be a name or a function; got {type(profile).__name__}.")
    check_number("imbalance", imbalance)
    if largest is not None:
        check_int("largest", largest, least=1)
    check_seed(seed)
    classes = np.asarray(target)
    if classes.ndim != 1 or classes.dtype.kind not in "iu" or not len(classes) or classes.min() < 0:
        raise InputError("target must hold whole numbers from 0, shape (n,), at least one.")
    available = np.bincount(classes)
    k = len(available)
    ranked = np.arange(k) if order is None else np.asarray(order)
    if ranked.shape != (k,) or set(ranked.tolist()) != set(range(k)):
        raise InputError(f"order must name each of the classes 0 to {k - 1} once.")
    if (available == 0).any():
        gaps = np.flatnonzero(available == 0).tolist()
        raise InputError(
            f"Class {gaps[0]} has no example (classes without any: {gaps[:10]}). Number the classes "
            "without gaps first, with numpy.unique(return_inverse=True)."
        )
    if largest is None:
        largest = _most(profile, available[ranked], imbalance)
    counts = np.empty(k, dtype=np.int64)
    counts[ranked] = profile(k, largest, imbalance)
    return sample_by_class(classes, counts, np.random.default_rng(seed))


def sample_by_class(
    target: np.ndarray, counts: np.ndarray, generator: np.random.Generator
) -> np.ndarray:
    """Sorted indices of a random draw of ``counts[k]`` examples of each class k.

    Raises
    ------
    InputError
        If a class has fewer members than asked for.
    """
    order = np.argsort(target, kind="stable")
    last = np.cumsum(np.bincount(target, minlength=len(counts)))
    chosen = []
    for k, (members, wanted) in enumerate(zip(np.split(order, last), counts, strict=False)):
        if len(members) < wanted:
            raise InputError(f"Class {k} has {len(members)} examples; {wanted} were asked for.")
        chosen.append(generator.choice(members, wanted, replace=False))
    return np.sort(np.concatenate(chosen))


def _most(profile: Profile, available: np.ndarray, imbalance: float) -> int:
    """The largest count whose profile no class is too small for."""
    low, high = 1, int(available[0])  # counts grow with the largest, and at 1 are all 1
    while low < high:
        middle = (low + high + 1) // 2
        if (profile(len(available), middle, imbalance) <= available).all():
            low = middle
        else:
            high = middle - 1
    return low


def _check(num_classes: int, largest: int, imbalance: float) -> None:
    if num_classes < 2 or largest < 1 or not imbalance >= 1:
        raise InputError(
            "A long-tailed profile needs at least 2 classes, 1 example in the largest and an "
            f"imbalance of 1 or more; got {num_classes}, {largest} and {imbalance}."
        )


def _rounded(counts: np.ndarray) -> np.ndarray:
    # A hair above, or 5.0 computed as 4.999... would lose an example.
    return np.maximum(1, np.floor(counts + 1e-6)).astype(np.int64)
