"""The upper level of a head's search: L-BFGS on exact values and gradients."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from autobalance._validation import TrainingDiverged
from autobalance.bilevel import UpperStep
from autobalance.heads.lower_level import HeadHypergradient
from autobalance.heads.quasi_newton import descend
from autobalance.records import UpperRecord
from autobalance.spaces import LossSnapshot, TunableCrossEntropy, prior_strength

UPPER_TOLERANCE = 1e-3
"""The search ends with a step that lowers the objective by less than this share of it."""
FIRST_STEP, MAX_STEP = 0.3, 1.0
"""Largest change of a free parameter (nats) in the first upper step, and in any. On
letters and Fashion-MNIST features (weight decay 1e-3) L-BFGS with this start was lower after 5
evaluations than Adam at a rate of 0.1 after 14.
"""


class QuasiNewtonUpperLevel:
    """Moves the loss by L-BFGS; hands over the position of the lowest value seen.

    Parameters
    ----------
    loss : TunableCrossEntropy
        The loss to move.
    effective_size : float
        Effective number of held-out examples, which the prior is weighed against.

    Attributes
    ----------
    reason : str
        Why the search ended: "tolerance", or "steps" while it has not ended by itself.
    """

    def __init__(self, loss: TunableCrossEntropy, effective_size: float) -> None:
        self.loss = loss
        self.strength = prior_strength(effective_size)
        start = parameters_to_vector(loss.space.parameters()).detach().double()
        self._descent = descend(
            start, tolerance=UPPER_TOLERANCE, first_step=FIRST_STEP, max_step=MAX_STEP
        )
        self._next: Tensor = next(self._descent)
        self._last = (0.0, start)  # value and gradient
        self._best: tuple[float, Tensor] | None = None
        self.reason = "steps"

    def propose(self) -> LossSnapshot:
        """The loss at the position where the method asks for the next evaluation."""
        self.move_to(self._next)
        return self.loss.snapshot()

    def move_to(self, position: Tensor) -> None:
        """Bring the space's parameters to a position ``(m,)``."""
        parameters = list(self.loss.space.parameters())
        vector_to_parameters(position.to(parameters[0]), parameters)

    def evaluate(self, results: Sequence[HeadHypergradient]) -> tuple[float, Tensor]:
        """Value of the upper level and its gradient ``(m,)``: the folds' mean, and the prior's."""
        free = list(self.loss.space.parameters())
        with torch.enable_grad():
            penalty = self.strength * self.loss.space.penalty()
            pulls = [torch.zeros_like(p) for p in free]
            if penalty.requires_grad:
                pulls = torch.autograd.grad(penalty, free, materialize_grads=True)
        gradients = [
            pull + sum(r.gradients[i] for r in results) / len(results)
            for i, pull in enumerate(pulls)
        ]
        value = float(np.mean([r.objective for r in results])) + float(penalty.detach())
        return value, parameters_to_vector(gradients).double()

    def update(self, results: Sequence[HeadHypergradient]) -> UpperStep:
        """Tell the method the value and gradient at the position it asked for."""
        value, gradient = self._last = self.evaluate(results)
        if self._is_finite():
            if self._best is None or value < self._best[0]:
                self._best = (value, self._next)
            try:
                self._next = self._descent.send((value, gradient))
            except StopIteration as end:
                self.reason = end.value
        return UpperStep(
            objective=float(np.mean([r.objective for r in results])),
            hard_objective=float(np.mean([r.hard_objective for r in results])),
            norm=float(gradient.norm()),
            residual=max(r.solved.residual for r in results),
            iterations=sum(r.solved.iterations for r in results),
            reason=results[0].solved.reason,
            skipped=False,
            predicted=0,
        )

    def check(self, done: int, total: int) -> None:
        """Raise `TrainingDiverged` if the last value or gradient was not finite."""
        if not self._is_finite():
            raise TrainingDiverged(
                f"The upper level is not finite (objective {self._last[0]:g}) after {done} "
                "evaluations: the logits have become too large. Raise weight_decay.",
                step=done,
            )

    def has_converged(self, history: Sequence[UpperRecord]) -> bool:
        """Whether a step lowered the value by too little to go on."""
        return self.reason != "steps"

    def final_position(self) -> list[Tensor]:
        """The position of the lowest value, or the present one before the first evaluation."""
        free = list(self.loss.space.parameters())
        if self._best is None:
            return [p.detach().clone() for p in free]
        parts = self._best[1].to(free[0]).split([p.numel() for p in free])
        return [part.view_as(p) for part, p in zip(parts, free, strict=True)]

    def _is_finite(self) -> bool:
        value, gradient = self._last
        return bool(np.isfinite(value)) and bool(torch.isfinite(gradient).all())
