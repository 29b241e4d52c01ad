"""Checks of the values that configurations, commands and functions of this distribution take.

They are this distribution's own, because those of the core are private to it: only its errors
are public. A message says what was expected, what came and what to do.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Iterable
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from autobalance import InputError


def format_value(value: object) -> str:
    """A value as a message shows it: its repr, cut at 120 characters."""
    text = reprlib.repr(value)
    return text if len(text) <= 120 else f"{text[:117]}..."


def check_int(name: str, value: Any, *, least: int) -> int:
    """Return `value` if it is an integer of at least `least`."""
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise InputError(f"{name} must be a whole number; got {value!r}.")
    if value < least:
        raise InputError(f"{name} must be at least {least}; got {value}.")
    return value  # type: ignore[return-value]


def check_seed(seed: Any) -> int:
    """Return `seed` if random generators take it."""
    if check_int("seed", seed, least=0) >= 2**63:
        raise InputError(f"seed must be below 2**63; got {seed}.")
    return seed


def check_number(name: str, value: Any) -> float:
    """Return `value` if it is a finite number; numbers written as text are refused."""
    if not isinstance(value, Real) or isinstance(value, bool):
        raise InputError(f"{name} must be a number; got {format_value(value)}.")
    if not math.isfinite(value):
        raise InputError(f"{name} must be a finite number; got {value!r}.")
    return value  # type: ignore[return-value]


def check_positive(name: str, value: Any) -> float:
    """Return `value` if it is a finite number above 0."""
    if check_number(name, value) <= 0:
        raise InputError(f"{name} must be a finite number above 0; got {value!r}.")
    return value


def check_fraction(name: str, value: Any) -> float:
    """Return `value` if it lies strictly between 0 and 1."""
    if not 0.0 < check_number(name, value) < 1.0:
        raise InputError(f"{name} must lie strictly between 0 and 1; got {value!r}.")
    return value


def check_unit_interval(name: str, value: Any) -> float:
    """Return `value` if it lies in [0, 1]."""
    if not 0.0 <= check_number(name, value) <= 1.0:
        raise InputError(f"{name} must lie in [0, 1]; got {value!r}.")
    return value


def check_choice(name: str, value: Any, allowed: Iterable[str]) -> str:
    """Return `value` if it is one of `allowed`; otherwise the message names them all."""
    choices = sorted(allowed)
    if not isinstance(value, str) or value not in choices:
        raise InputError(f"{name} must be one of {', '.join(choices)}; got {format_value(value)}.")
    return value


def check_path(name: str, value: Any) -> Path:
    """Return `value` as a path, if a file can have it; the file need not exist."""
    if not isinstance(value, (str, Path)):
        raise InputError(f"{name} must be of the type str or Path; got {type(value).__name__}.")
    try:
        Path(value).lstat()
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(
            f"{name} cannot be the path {format_value(str(value))}: {reason}. Give another."
        ) from None
    return Path(value)
