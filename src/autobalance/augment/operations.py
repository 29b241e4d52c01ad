"""What an augmentation policy is made of: operations whose strength is one number per example."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from autobalance._validation import InputError, positive
from autobalance.data import moved

Domain = Literal["image", "tensor", "any"]


@dataclass(frozen=True)
class Operation(ABC):
    """Changes each example of a batch by a strength of its own; at strength 0, not at all.

    Attributes
    ----------
    limit : float
        Largest strength, in the operation's unit: that of magnitude 1.
    name : str
        What tables and records call it.
    signed : bool
        Whether strengths are drawn from both sides of 0.
    graded : bool
        False where there is nothing between off and on, as for a flip: it has a probability
        alone, and its strength is the gate.
    domain : {"image", "tensor", "any"}
        "image" takes ``(n, c, h, w)`` in [0, 1], "tensor" standardised tables and embeddings.
    largest : float
        No limit may lie above it.
    """

    limit: float

    name: ClassVar[str]
    signed: ClassVar[bool] = False
    graded: ClassVar[bool] = True
    domain: ClassVar[Domain]
    largest: ClassVar[float] = math.inf

    def __post_init__(self) -> None:
        if positive("limit", self.limit) > self.largest:
            raise InputError(
                f"The limit of {self.name} must be at most {self.largest:g}; got {self.limit}."
            )

    @abstractmethod
    def apply(self, inputs: Tensor, strength: Tensor) -> Tensor:
        """The batch changed by strengths ``(n,)``, at most `limit` in size, differentiable in them.

        What it draws at random comes from torch's global generator of the inputs' device, as
        many numbers whatever the strengths are.
        """

    def to_dict(self) -> dict[str, Any]:
        """Name and settings, in JSON's types."""
        return {"name": self.name, **asdict(self)}


def per_example(strength: Tensor, inputs: Tensor) -> Tensor:
    """``(n,)`` shaped to multiply ``(n, ...)``."""
    return strength.view(-1, *[1] * (inputs.ndim - 1))


def constants(values: Any, like: Tensor) -> Tensor:
    """Numbers of the host in another tensor's dtype, on its device; no GPU is waited for."""
    return moved(torch.tensor(values, dtype=like.dtype), like.device)


def checked_operations(operations: Iterable[Operation]) -> tuple[Operation, ...]:
    """Refuse none at all, two of one name, and image operations together with tensor ones."""
    found = tuple(operations) if isinstance(operations, Iterable) else (operations,)
    wrong = [o for o in found if not isinstance(o, Operation)]
    if wrong or not found:
        what = f"a {type(wrong[0]).__name__}" if wrong else "none"
        raise InputError(
            f"operations must hold at least one Operation and nothing else; got {what}. "
            "image_operations() and tensor_operations() make the usual ones."
        )
    names = [o.name for o in found]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"operations must have names of their own; {twice} is there twice.")
    if {"image", "tensor"} <= {o.domain for o in found}:
        raise InputError(
            "operations must be all for images or all for tensors: their strengths have other "
            f"units. Got {', '.join(f'{o.name} ({o.domain})' for o in found)}."
        )
    return found


def domain_of(operations: Sequence[Operation]) -> Domain:
    """What the operations need together; "any" where each takes anything."""
    needed: list[Domain] = [o.domain for o in operations if o.domain != "any"]
    return needed[0] if needed else "any"
