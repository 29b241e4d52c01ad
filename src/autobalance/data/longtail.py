"""Long-tailed samples of balanced data."""

from __future__ import annotations

import numpy as np

from autobalance.checks import InputError


def exponential_counts(num_classes: int, largest: int, imbalance: float) -> np.ndarray:
    """Counts n_k = largest * imbalance^(-k / (K - 1)), rounded down but at least 1, shape ``(k,)``.

    The usual long-tailed profile (Cui et al., CVPR 2019); class 0 is the largest and class
    ``num_classes - 1`` is `imbalance` times smaller.
    """
    if num_classes < 2 or largest < 1 or imbalance < 1:
        raise InputError(
            "A long-tailed profile needs at least 2 classes, 1 example in the largest and an "
            f"imbalance of 1 or more; got {num_classes}, {largest} and {imbalance}."
        )
    counts = largest * imbalance ** (-np.arange(num_classes) / (num_classes - 1))
    # A hair above, or 5.0 computed as 4.999... would lose an example.
    return np.maximum(1, np.floor(counts + 1e-6)).astype(np.int64)


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
