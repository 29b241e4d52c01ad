"""What the runs of this package share: the kinds of their arguments, progress, and interruption."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, Self, runtime_checkable

import torch
from torch import Tensor, nn

ModelFactory = Callable[[], nn.Module]
Phase = Literal["encode", "length", "race", "warm-up", "search", "choose", "retrain"]
Sampling = Literal["shuffled", "balanced"]


@dataclass(frozen=True)
class Progress:
    """Where a run is: the phase, steps done of the phase's total, and the last objective.

    `rows` is the number of rows that a step trains on, 0 where steps are no steps of training.
    """

    phase: Phase
    step: int
    total: int
    objective: float | None = None
    rows: int = field(default=0, compare=False)


ProgressListener = Callable[[Progress], None]


def listen_to_part(
    progress: ProgressListener | None, phase: Phase, part: int, parts: int
) -> ProgressListener | None:
    """What a run that is one of the `parts` of a phase, all of one length, tells its progress to."""
    if progress is None:
        return None
    return lambda p: progress(
        replace(p, phase=phase, step=part * p.total + p.step, total=parts * p.total)
    )


class TrainingLoss(Protocol):
    """What the lower level calls: fixed and tunable losses alike."""

    def __call__(
        self,
        input: Tensor,
        target: Tensor,
        /,
        *,
        groups: Tensor | None = None,
        sample_weight: Tensor | None = None,
    ) -> Tensor: ...


class FixedLoss(TrainingLoss, Protocol):
    """A loss module that `retrain` takes: `ParametricCrossEntropy` and the published losses."""

    def to_dict(self) -> dict[str, Any]:
        """The loss as a record in JSON's types."""
        ...

    def to(self, device: torch.device, /) -> Self:
        """The loss with its tensors on a device."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """The loss's tensors by name."""
        ...

    def load_state_dict(self, state_dict: Any, /) -> Any:
        """Inverse of `state_dict`."""
        ...


@runtime_checkable
class ScheduledLoss(Protocol):
    """A loss that changes as training goes on; told before each step how many of all are done."""

    def reached(self, done: int, total: int) -> None:
        """Set the loss for the step after `done` of `total` steps."""
        ...


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during a run. `partial` is what was good before it, as for `TrainingDiverged`."""

    def __init__(self, partial: Any) -> None:
        super().__init__("interrupted")
        self.partial = partial
