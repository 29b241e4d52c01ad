"""Errors a user can act on, and the checks shared by every public entry.

A message says what was expected, what came and what to do. Checks run once, where data
enters the library; code behind them relies on what they have established.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Iterable
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np


class InputError(ValueError):
    """Something the user passed cannot be used. The message says what to do."""


class TrainingDiverged(RuntimeError):
    """The training loss became non-finite.

    Attributes
    ----------
    step : int
        Lower-level step, counted from 1, whose loss was not finite.
    partial : object or None
        The last good state: a `SearchResult` when raised by `search`, the network when raised by
        `retrain`.
    """

    def __init__(self, message: str, *, step: int, partial: object | None = None) -> None:
        super().__init__(message)
        self.step = step
        self.partial = partial


def one_of(name: str, value: str, allowed: Iterable[str]) -> str:
    """Return `value` if it is one of `allowed`, else raise `InputError` naming them all."""
    choices = sorted(allowed)
    if not isinstance(value, str) or value not in choices:
        raise InputError(f"{name} must be one of {', '.join(choices)}; got {shown(value)}.")
    return value


def shown(value: object) -> str:
    """A value in a message, cut short where it is long."""
    text = reprlib.repr(value)
    return text if len(text) <= 120 else f"{text[:117]}..."


def how_to_install(*packages: str, upgrade: bool = False) -> str:
    """The sentence of a message that names the command for missing packages, without its full stop.

    It names the packages themselves and not an extra of this distribution, so that it works wherever
    the distribution came from, be it a wheel or a clone.
    """
    them = "it" if len(packages) == 1 else "them"
    verb, option = ("Update", " --upgrade") if upgrade else ("Install", "")
    return f"{verb} {them}: pip install{option} {' '.join(packages)}"


def class_counts(
    counts: object, *, name: str = "class_counts", allow_empty: bool = False
) -> np.ndarray:
    """Validate counts of training examples per class, shape ``(k,)``, or per group and class.

    Sums of the examples' weights are counts too.

    Raises
    ------
    InputError
        If there are fewer than two classes, a count is negative or non-finite, the counts are shares
        that sum to 1 or less, or a class has no example in any group, unless `allow_empty`.
    """
    try:
        array = np.asarray(counts, dtype=np.float64)
    except (TypeError, ValueError):
        raise InputError(f"{name} must hold numbers of examples; got {shown(counts)}.") from None
    if array.ndim not in (1, 2) or array.shape[-1] < 2:
        raise InputError(
            f"{name} needs one count per class (k,), or per group and class (g, k), with at least "
            f"two classes; got shape {array.shape}."
        )
    shares = array.sum() < 1.0 + 1e-6 and (array != np.round(array)).any()
    if not np.isfinite(array).all() or (array < 0).any() or shares:
        raise InputError(
            f"{name} must hold numbers of examples (or sums of their weights), none negative, and no "
            "shares of 1."
        )
    totals = array if array.ndim == 1 else array.sum(axis=0)
    if (totals == 0).any() and not allow_empty:
        empty = np.flatnonzero(totals == 0).tolist()
        some = empty if len(empty) <= 10 else f"{len(empty)}, such as {empty[:5]}"
        remedy = "Remove the class from the label set, or add examples of it."
        if len(totals) == 256:  # the largest index is 255, by which masks mark what has no label
            remedy += " Where 255 marks pixels to ignore, give ignore_index=255."
        raise InputError(
            f"{name}: class {empty[0]} has no training example (classes without any: {some}). {remedy}"
        )
    return array


def same_length(**arrays: object) -> int:
    """Return the common length of the given arrays, ignoring those that are None."""
    lengths = {}
    for name, array in arrays.items():
        try:
            if array is not None:
                lengths[name] = len(array)  # type: ignore[arg-type]
        except TypeError:
            raise InputError(
                f"{name} must have one entry per example; got {shown(array)}."
            ) from None
    if len(set(lengths.values())) > 1:
        found = ", ".join(f"{name} has {n}" for name, n in lengths.items())
        raise InputError(f"All must have one entry per example, but {found}.")
    return next(iter(lengths.values()))


def number(name: str, value: float) -> float:
    """Return `value` if it is a number; numbers written as text are refused."""
    if not isinstance(value, Real) or isinstance(value, bool):
        raise InputError(f"{name} must be a number; got {shown(value)}.")
    return value


def whole(name: str, value: int, *, least: int) -> int:
    """Return `value` if it is a whole number of at least `least`."""
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise InputError(f"{name} must be a whole number; got {value!r}.")
    if value < least:
        raise InputError(f"{name} must be at least {least}; got {value}.")
    return value


def finite_number(name: str, value: float) -> float:
    """Return `value` if it is a finite number."""
    if not math.isfinite(number(name, value)):
        raise InputError(f"{name} must be a finite number; got {value!r}.")
    return value


LARGEST_GAP = 2.0
"""DEO of two classes; above it a bound was meant in percent."""


def gap_bound(name: str, bound: float) -> float:
    """A bound on a gap between groups, as a share."""
    if not 0.0 <= bound < math.inf:
        raise InputError(f"{name} must be at least 0; got {bound}. 0.05 is 5 points.")
    if bound > LARGEST_GAP:
        raise InputError(f"{name} is a share, 0.05 for 5 points; got {bound}.")
    return bound


def not_negative(name: str, value: float) -> float:
    """Return `value` if it is a finite number of at least 0."""
    if finite_number(name, value) < 0:
        raise InputError(f"{name} must not be negative; got {value!r}.")
    return value


def below_one(name: str, value: float) -> float:
    """Return `value` if it lies in [0, 1)."""
    if not 0.0 <= number(name, value) < 1.0:
        raise InputError(f"{name} must lie in [0, 1); got {value!r}.")
    return value


def zero_to_one(name: str, value: float) -> float:
    """Return `value` if it lies in [0, 1]."""
    if not 0.0 <= number(name, value) <= 1.0:
        raise InputError(f"{name} must lie in [0, 1]; got {value!r}.")
    return value


def seed_number(seed: int) -> int:
    """Return `seed` if random generators take it."""
    if whole("seed", seed, least=0) >= 2**63:
        raise InputError(f"seed must be below 2**63; got {seed}.")
    return seed


def instance(name: str, value: Any, kind: type | tuple[type, ...], remedy: str = "") -> Any:
    """Return `value` if it is of a kind."""
    if not isinstance(value, kind):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        expected = " or ".join(k.__name__ for k in kinds)
        raise InputError(
            f"{name} must be of the type {expected}; got {type(value).__name__}. {remedy}".rstrip()
        )
    return value


def array_of_numbers(name: str, values: Any) -> np.ndarray:
    """`values` as float64, refused where they are no array of real numbers."""
    try:
        array = np.asarray(values)
        if array.dtype.kind not in "biuf":
            raise TypeError(f"it holds {array.dtype}")
        return array.astype(np.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{name} must hold numbers: {shown(str(error))}.") from None


def path_of(name: str, value: Any) -> Path:
    """A path, refused where no file can have it."""
    instance(name, value, (str, Path))
    try:
        Path(value).lstat()
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(
            f"{name} cannot be the path {shown(str(value))}: {reason}. Give another."
        ) from None
    return Path(value)


def positive(name: str, value: float) -> float:
    """Return `value` if it is a finite number above 0."""
    if not np.isfinite(number(name, value)) or value <= 0:
        raise InputError(f"{name} must be a finite number above 0; got {value!r}.")
    return value


def fraction(name: str, value: float) -> float:
    """Return `value` if it lies strictly between 0 and 1."""
    if not 0.0 < number(name, value) < 1.0:
        raise InputError(f"{name} must lie strictly between 0 and 1; got {value!r}.")
    return value
