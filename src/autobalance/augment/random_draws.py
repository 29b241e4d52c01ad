"""One random draw of the operations for a batch: what the policy and its frozen form share."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from autobalance._validation import InputError, one_of, positive
from autobalance.augment.images import GeometricOperation, warp
from autobalance.augment.operations import Operation, constants, domain_of

Gate = Literal["hard", "relaxed"]
GATES = ("hard", "relaxed")
Bound = float | tuple[float, ...]
ValueRange = tuple[Bound, Bound]


@dataclass(frozen=True)
class Draw:
    """How gates are drawn and where values lie.

    Attributes
    ----------
    gate : {"hard", "relaxed"}
        Whether an example passes an operation entirely or not at all, or in part, by a relaxed gate.
    temperature : float
        Of the relaxed gate, sigmoid((logit p + logistic noise) / temperature).
    value_range : tuple
        Lowest and highest value of images: numbers, or one number per channel.
    """

    gate: Gate = "hard"
    temperature: float = 0.5
    value_range: ValueRange = (0.0, 1.0)

    @classmethod
    def checked(cls, gate: str, temperature: float, value_range: Any) -> Draw:
        """Validate what a user gave."""
        one_of("gate", gate, GATES)
        positive("temperature", temperature)
        return cls(gate, float(temperature), checked_range(value_range))  # pyright: ignore[reportArgumentType]

    def low(self, images: Tensor) -> Tensor:
        """The lowest value, to be added to images of that dtype and device."""
        return _bound(self.value_range[0], images)

    def high(self, images: Tensor) -> Tensor:
        """The highest value, likewise."""
        return _bound(self.value_range[1], images)

    def to_dict(self) -> dict[str, Any]:
        """The three settings, in JSON's types."""
        low, high = (list(b) if isinstance(b, tuple) else b for b in self.value_range)
        return {"gate": self.gate, "temperature": self.temperature, "value_range": [low, high]}


def checked_range(value_range: Any) -> ValueRange:
    """A pair (low, high) of numbers, or of sequences with a number for each channel."""
    try:
        low, high = value_range
        low, high = (np.asarray(bound, dtype=np.float64) for bound in (low, high))
    except (TypeError, ValueError):
        low = high = np.full(2, np.nan)
    if (
        low.shape != high.shape
        or low.ndim > 1
        or not (np.isfinite(low).all() and np.isfinite(high).all() and (low < high).all())
    ):
        raise InputError(
            "value_range must be (low, high), two numbers or two lists with a number per channel, "
            f"low below high; got {value_range!r}."
        )
    if low.ndim == 0:
        return float(low), float(high)
    return tuple(low.tolist()), tuple(high.tolist())


def from_bytes(inputs: Tensor) -> Tensor:
    """Images of bytes as float32 in [0, 1], as `autobalance.networks.FromBytes` does; others as they are."""
    return inputs.float() / 255.0 if inputs.dtype == torch.uint8 and inputs.ndim == 4 else inputs


def checked_inputs(inputs: Any, operations: Sequence[Operation], draw: Draw) -> None:
    """Refuse inputs that the operations are not for, by dtype and shape alone.

    Raises
    ------
    InputError
        Naming the operations or the conversion that is needed.
    """
    if not isinstance(inputs, Tensor) or not inputs.is_floating_point():
        what = inputs.dtype if isinstance(inputs, Tensor) else type(inputs).__name__
        raise InputError(
            f"Augmentation needs inputs of a floating-point dtype; got {what}. Images of whole "
            "numbers 0..255 become fit by .float() / 255."
        )
    domain, shape = domain_of(operations), tuple(inputs.shape)
    names = ", ".join(o.name for o in operations)
    if domain == "image" and (len(shape) != 4 or shape[1] not in (1, 3)):
        raise InputError(
            f"These operations ({names}) are for images of shape (n, c, h, w) with c = 1 or 3; got "
            f"{shape}. Tables and embeddings need tensor_operations()."
        )
    if domain == "tensor" and len(shape) == 4:
        raise InputError(
            f"These operations ({names}) are for tables and embeddings; inputs of shape {shape} "
            "look like images, which need image_operations()."
        )
    if len(shape) < 2:
        raise InputError(f"Augmentation needs one row per example, (n, ...); got {shape}.")
    low = draw.value_range[0]
    if domain == "image" and isinstance(low, tuple) and len(low) != shape[1]:
        raise InputError(
            f"value_range has numbers for {len(low)} channels; these images have {shape[1]}."
        )


def checked_values(inputs: Tensor, operations: Sequence[Operation], draw: Draw) -> None:
    """As `checked_inputs`, and refuse images with values outside of the range, to be cut off.

    A GPU has to wait for the answer, so this is for the first batch and not for every one.
    """
    checked_inputs(inputs, operations, draw)
    if domain_of(operations) != "image" or not len(inputs):
        return
    low, high = draw.low(inputs), draw.high(inputs)
    slack = 1e-3 * (high - low)
    if bool(((inputs < low - slack) | (inputs > high + slack)).any()):
        raise InputError(
            f"The images' values go from {float(inputs.min()):g} to {float(inputs.max()):g}, beyond "
            f"value_range={draw.value_range}. Give value_range=(low, high) as the images have it "
            "after standardising, if need be with one number per channel."
        )


def _bound(bound: Bound, inputs: Tensor) -> Tensor:
    # Filled where it is: a number copied to a GPU would make it idle.
    if isinstance(bound, tuple):
        return torch.stack([inputs.new_full((1, 1), b) for b in bound])
    return inputs.new_full((), bound)


def to_unit(images: Tensor, draw: Draw) -> Tensor:
    """Images of the draw's range in [0, 1]."""
    if draw.value_range == (0.0, 1.0):
        return images
    low, high = draw.low(images), draw.high(images)
    return (images - low) / (high - low)


def from_unit(images: Tensor, draw: Draw) -> Tensor:
    """Inverse of `to_unit`; what lies in [0, 1] stays in the range to the last bit."""
    if draw.value_range == (0.0, 1.0):
        return images
    return torch.lerp(draw.low(images), draw.high(images), images)


def row_of(table: Tensor, target: Tensor, groups: Tensor | None) -> Tensor:
    """Each example's row ``(n, m)`` of a table ``(k, m)`` or ``(g, k, m)``; of group -1 the mean."""
    if target.dtype != torch.int64 or target.ndim != 1:
        raise InputError(
            f"Augmentation needs target as class indices (n,) of dtype int64; got "
            f"{tuple(target.shape)}, {target.dtype}."
        )
    if table.ndim == 3 and groups is None:
        raise InputError(
            f"This policy has rows for {table.shape[0]} groups: pass groups=, one index per example."
        )
    known = target.clamp(min=0)
    try:
        if table.ndim == 3 and groups is not None:
            unknown = (groups < 0)[:, None]
            return torch.where(unknown, table.mean(dim=0)[known], table[groups, known])
        return table[known]
    except IndexError as error:  # on a CPU; looking before would make a GPU wait
        upto = f"target must lie in 0..{table.shape[-2] - 1}" + (
            f", groups in 0..{table.shape[0] - 1}" if table.ndim == 3 else ""
        )
        raise InputError(f"An index is out of range: {upto} ({error}).") from None


def apply_operations(
    operations: Sequence[Operation],
    logit: Tensor,
    magnitude: Tensor,
    inputs: Tensor,
    target: Tensor,
    groups: Tensor | None,
    draw: Draw,
) -> tuple[Tensor, Tensor | None]:
    """The batch after one random draw of all operations, and the gates' log probability ``(n,)``.

    The latter where it can be differentiated, and the batch cannot: with hard gates of free parameters.

    Parameters
    ----------
    operations : sequence of Operation
        m of them, applied in this order; neighbours among the geometric ones as one warp.
    logit, magnitude : Tensor
        Of the gates' probabilities, and in [0, 1]; ``(k, m)`` or ``(g, k, m)``.
    inputs, target, groups : Tensor
        The batch. Examples with a negative target, which losses ignore, stay as they are.
    draw : Draw
        Kind of gates, and range of values.
    """
    checked_inputs(inputs, operations, draw)
    if len(target) != len(inputs):
        raise InputError(
            f"Augmentation needs one class index per example; got {len(target)} for {len(inputs)}."
        )
    if not len(inputs):
        return inputs, None
    x = inputs.float() if inputs.dtype in (torch.float16, torch.bfloat16) else inputs
    image = domain_of(operations) == "image"
    strength, log_probability = _strengths(
        operations,
        row_of(logit.to(x.dtype), target, groups),
        row_of(magnitude.to(x.dtype), target, groups),
        draw,
    )
    strength = strength * (target >= 0).to(x.dtype)[:, None]
    if image:
        x = _applied(operations, to_unit(x, draw), strength)
        x = from_unit(x.clamp(0.0, 1.0), draw)
    else:
        x = _applied(operations, x, strength)
    return x.to(inputs.dtype), log_probability


def _strengths(
    operations: Sequence[Operation], logit: Tensor, magnitude: Tensor, draw: Draw
) -> tuple[Tensor, Tensor | None]:
    """Strength of each operation for each example, ``(n, m)``, in its unit; the gates' log probability."""
    drawn = torch.rand(2, *logit.shape, dtype=logit.dtype, device=logit.device)
    eps = torch.finfo(logit.dtype).eps
    noisy = logit + torch.logit(drawn[0].clamp(eps, 1.0 - eps))
    log_probability = None
    if draw.gate == "relaxed":
        gate = torch.sigmoid(noisy / draw.temperature)
    else:
        gate = (noisy > 0).to(logit.dtype)
        if logit.requires_grad:  # else it may be infinite
            log_probability = (gate * logit - nn.functional.softplus(logit)).sum(dim=1)
    about = [[float(o.signed), o.limit, float(o.graded)] for o in operations]
    signed, limit, graded = constants(about, logit).unbind(dim=1)
    size = magnitude * limit * (drawn[1] * (1.0 + signed) - signed)
    return gate * torch.where(graded > 0, size, torch.ones_like(size)), log_probability


def _applied(operations: Sequence[Operation], x: Tensor, strength: Tensor) -> Tensor:
    columns = zip(operations, strength.unbind(dim=1), strict=True)
    for geometric, run in itertools.groupby(
        columns, lambda c: isinstance(c[0], GeometricOperation)
    ):
        if not geometric:
            for operation, s in run:
                x = operation.apply(x, s)
            continue
        height, width = x.shape[-2:]
        # Matrices lead from the result back to the input: the last operation's acts first.
        matrices = [o.matrix(s, height, width) for o, s in run if isinstance(o, GeometricOperation)]
        x = warp(x, reduce(torch.matmul, matrices))
    return x
