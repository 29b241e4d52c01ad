"""How a search is told to augment, and what becomes of it."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from autobalance._validation import InputError
from autobalance.augment.augmentation import Augmentation
from autobalance.augment.policy import AugmentationPolicy, default_policy
from autobalance.augment.random_draws import from_bytes
from autobalance.data import Batch

PolicyFactory = Callable[[Any, Any], nn.Module]
AugmentChoice = Literal["personalised", "shared"] | nn.Module | PolicyFactory | None
"""What `as_augmentation` takes."""


def as_augmentation(
    choice: AugmentChoice, inputs: Any, counts: Any, device: torch.device | str = "cpu"
) -> nn.Module | None:
    """The module that augments training batches, ``augment(inputs, target, groups)``.

    Parameters
    ----------
    choice : {"personalised", "shared"}, nn.Module, callable or None
        A policy to be learned for each class (and group), with the default operations for such
        inputs; one for all; a module, of which a copy is made, to be learned where it is an
        `AugmentationPolicy` and else fixed, such as an `Augmentation`; a transform of a whole batch,
        a callable of ``(inputs)`` or of ``(inputs, target, groups)``; or a function of
        ``(inputs, counts)`` that returns a module. None: no augmentation.
    inputs : Tensor
        Training inputs, or some of them.
    counts : ndarray
        Training examples per class ``(k,)``, or per group and class ``(g, k)``.
    device : torch.device or str
        Where it is going to work.

    Raises
    ------
    InputError
        If it is none of these, or the default operations do not fit the inputs.
    """
    if choice is None:
        return None
    if isinstance(choice, str):
        if choice not in ("personalised", "shared"):
            raise InputError(
                f'augment must be "personalised", "shared", a module or None; got {choice!r}.'
            )
        made: Any = default_policy(inputs, counts, personalised=choice == "personalised")
    elif isinstance(choice, nn.Module):
        made = as_batch_transform(copy.deepcopy(choice))
    elif callable(choice) and _positional(choice) != 2:
        made = as_batch_transform(choice)
    elif callable(choice):
        made = choice(inputs, counts)
    else:
        made = choice
    if not isinstance(made, nn.Module):
        raise InputError(
            "augment must be a torch.nn.Module that is called with (inputs, target, groups), or a "
            f"function of (inputs, counts) that returns one; got {type(made).__name__}."
        )
    return made.to(device)


class BatchTransform(nn.Module):
    """A function of inputs, or of inputs, target and groups, called as an augmentation is."""

    def __init__(self, transform: Callable[..., Any], *, takes_labels: bool) -> None:
        super().__init__()
        self.transform, self.takes_labels = transform, takes_labels

    def forward(self, inputs: Any, target: Tensor, groups: Tensor | None = None) -> Any:
        """What the function returns."""
        labels = (target, groups) if self.takes_labels else ()
        return self.transform(inputs, *labels)


def as_batch_transform(transform: Callable[..., Any]) -> nn.Module:
    """A module that is called with ``(inputs, target, groups)``, from one that may take inputs alone.

    Raises
    ------
    InputError
        If it cannot be called.
    """
    if not callable(transform) or isinstance(transform, (type, str)):
        raise InputError(
            "augment must be a module or function of (inputs), or of (inputs, target, groups), such as "
            f"search(...).augment; got {type(transform).__name__}."
        )
    takes_labels = _positional(transform) > 1
    if takes_labels and isinstance(transform, nn.Module):
        return transform
    return BatchTransform(transform, takes_labels=takes_labels)


def _positional(function: Callable[..., Any]) -> int:
    """Number of arguments that it names; those of ``*args`` do not count."""
    call = function.forward if isinstance(function, nn.Module) else function
    parameters = inspect.signature(call).parameters.values()
    return sum(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters)


def augment_batch(augment: nn.Module | None, batch: Batch) -> Any:
    """The batch's inputs as the network trains on them; images of bytes are augmented in [0, 1].

    Raises
    ------
    InputError
        If an augmentation meets inputs that are not one tensor.
    """
    return draw_batch(augment, batch)[0]


def draw_batch(augment: nn.Module | None, batch: Batch) -> tuple[Any, Tensor | None]:
    """As `augment_batch`, and the log probability of a policy's hard gates; see `AugmentationPolicy`."""
    if augment is None:
        return batch.inputs, None
    if not isinstance(batch.inputs, Tensor):
        raise InputError(
            f"An augmentation takes inputs of one tensor; got {type(batch.inputs).__name__}. "
            "Augment in the data loader, or train without augment."
        )
    inputs = from_bytes(batch.inputs)
    if isinstance(augment, AugmentationPolicy):
        return augment.draw_batch(inputs, batch.target, batch.groups)
    return augment(inputs, batch.target, batch.groups), None


def freeze_augmentation(augment: nn.Module | None) -> nn.Module | None:
    """A copy at its present values, on the CPU, with nothing to learn."""
    if isinstance(augment, AugmentationPolicy):
        return augment.frozen().cpu()
    return copy.deepcopy(augment).cpu() if augment is not None else None


def describe_augmentation(augment: nn.Module | None) -> dict[str, Any] | None:
    """The augmentation as a record for JSON; a module of the user's own is only named."""
    if augment is None:
        return None
    if isinstance(augment, AugmentationPolicy):
        augment = augment.frozen()
    if isinstance(augment, Augmentation):
        return {**augment.to_dict(), "per_class": augment.per_class()}
    return {"module": repr(augment)}


def restore_augmentation(record: dict[str, Any] | None) -> nn.Module | None:
    """Inverse of `describe_augmentation`; None for a module that was only named."""
    if record is None or "module" in record:
        return None
    return Augmentation.from_dict({k: v for k, v in record.items() if k != "per_class"})
