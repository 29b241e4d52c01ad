"""Checks of arrays that users pass, and their conversion to tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from autobalance._validation import InputError, shown

UNKNOWN = -1
"""Index of a group that is not known."""


def _writable(values: Any) -> Any:
    """A copy of an array that must not be written to, as pandas gives them; torch would warn."""
    if isinstance(values, np.ndarray) and not values.flags.writeable:
        return values.copy()
    return values


def as_tensor(name: str, values: Any) -> Tensor:
    """The values as a tensor, refused where they are no array of real numbers."""
    try:
        tensor = torch.as_tensor(_writable(values))
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{name} must be an array of numbers: {shown(str(error))}.") from None
    if tensor.is_complex() or tensor.ndim == 0:
        raise InputError(
            f"{name} must be an array of real numbers, one entry per example; got {tensor.dtype} of "
            f"shape {tuple(tensor.shape)}."
        )
    return tensor


def finite(name: str, values: Tensor) -> Tensor:
    """The values, float64 as float32; refused where one is not finite then."""
    if values.dtype == torch.float64:
        values = values.float()  # first, or a number beyond float32's range would pass for finite
    if values.is_floating_point() and not bool(torch.isfinite(values).all()):
        bad = int((~torch.isfinite(values)).sum())
        raise InputError(
            f"{name} must be finite in float32; found {bad} NaN or infinite value{'s' * (bad > 1)}. "
            "Fill or drop them first."
        )
    return values


def indices(name: str, values: Any, least: int = 0, count: int | None = None) -> Tensor:
    """The values as indices from `least` to below `count`, int64, refused where they are none."""
    remedy = "Number the labels first, with numpy.unique(return_inverse=True)."
    try:
        tensor = torch.as_tensor(_writable(values))
    except (TypeError, ValueError, RuntimeError):  # strings and other objects
        raise InputError(f"{name} must hold whole numbers from 0, shape (n,). {remedy}") from None
    if tensor.ndim != 1 or tensor.is_floating_point() or tensor.is_complex():
        raise InputError(
            f"{name} must hold whole numbers from 0, shape (n,); got {tensor.dtype} of shape "
            f"{tuple(tensor.shape)}. {remedy}"
        )
    tensor = tensor.long()  # first, for torch knows no extremes of most unsigned kinds
    if not len(tensor):
        return tensor
    lowest, highest = torch.stack(torch.aminmax(tensor)).tolist()
    if count is not None and not least <= lowest <= highest < count:
        raise InputError(
            f"{name} must lie in {least}..{count - 1}; got numbers from {lowest} to {highest}."
        )
    if lowest < least:
        hint = ""
        if name == "groups" and lowest == UNKNOWN:
            hint = ' Where -1 is a group that is not known, give missing_groups="unknown".'
        raise InputError(f"{name} must be numbered from 0; its smallest is {lowest}.{hint}")
    return tensor
