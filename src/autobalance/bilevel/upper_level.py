"""The upper level of a network's search: noisy hypergradients move the loss, late positions are averaged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from autobalance._validation import TrainingDiverged
from autobalance.bilevel.loss_tuner import LossTuner, UpperStep, free_parameters
from autobalance.bilevel.search_spec import SearchSpec
from autobalance.hypergrad import Hypergradient
from autobalance.objectives import Objective
from autobalance.records import UpperRecord
from autobalance.spaces import LossSnapshot, TunableCrossEntropy

MAX_SKIPPED = 5
"""Hypergradients in a row that may be non-finite before a search is given up."""


class StochasticUpperLevel:
    """Adam or SGD on noisy hypergradients; hands over an average of late positions.

    It takes objective, solver and settings from a `SearchSpec`. `validation_counts` are the held-out
    examples of all folds, by class or by group and class, and `effective_counts` their effective numbers,
    where they have weights, see `LossTuner`; `augment` is learned with the loss.

    Attributes
    ----------
    tuner : LossTuner
        Computes hypergradients and moves the loss.
    positions : list of list of Tensor
        The free parameters at the start and after every upper step.
    """

    def __init__(
        self,
        loss: TunableCrossEntropy,
        spec: SearchSpec,
        validation_counts: np.ndarray,
        augment: nn.Module | None,
        effective_counts: np.ndarray | None = None,
    ) -> None:
        self.loss = loss
        self.spec, self.settings = spec, spec.settings
        self.validation_counts, self.augment = validation_counts, augment
        self.effective_counts = effective_counts
        self.tuner = self._build_tuner(spec.objective)
        self.positions = [self._position()]

    def switch_objective(self, objective: Objective) -> None:
        """Go on from the present position for another objective, with nothing remembered."""
        self.tuner = self._build_tuner(objective)
        self.positions = []

    def propose(self) -> LossSnapshot:
        """The loss at the present position."""
        return self.loss.snapshot()

    def update(self, results: Sequence[Hypergradient]) -> UpperStep:
        """Move along the mean of the folds' hypergradients."""
        step = self.tuner.update(results)
        self.positions.append(self._position())
        return step

    def check(self, done: int, total: int) -> None:
        """Raise `TrainingDiverged` after `MAX_SKIPPED` non-finite hypergradients in a row."""
        if self.tuner.skipped_in_a_row >= MAX_SKIPPED:
            raise TrainingDiverged(
                f"{MAX_SKIPPED} hypergradients in a row were not finite, the last after step "
                f"{done} of {total}, with {self.spec.recipe}. The last good loss is kept. "
                "Lower the learning rate, or scale the inputs.",
                step=done,
            )

    def has_converged(self, history: Sequence[UpperRecord]) -> bool:
        """Whether the objective has not improved for `SearchSettings.patience` upper steps."""
        patience = self.settings.patience
        if patience is None or len(history) < 2 * patience:
            return False
        values = np.array([record.objective for record in history])
        means = np.convolve(values, np.ones(patience) / patience, mode="valid")
        return len(means) - 1 - int(np.argmin(means)) >= patience

    def final_position(self) -> list[Tensor]:
        """Mean of the last positions, a share `SearchSettings.average` of all."""
        count = max(1, round(self.settings.average * len(self.positions)))
        late = zip(*self.positions[-count:], strict=True)
        return [torch.stack(places).mean(dim=0) for places in late]

    def state_dict(self) -> dict[str, Any]:
        """The tuner's state and the positions."""
        return {
            "tuner": self.tuner.state_dict(),
            "positions": [torch.stack(places) for places in zip(*self.positions, strict=True)],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self.tuner.load_state_dict(state["tuner"])
        self.positions = [list(p) for p in zip(*state["positions"], strict=True)]

    def _build_tuner(self, objective: Objective) -> LossTuner:
        return LossTuner(
            self.loss, objective, solver=self.spec.solver, lr=self.settings.lr,
            upper=self.settings.optimizer, validation_counts=self.validation_counts,
            effective_counts=self.effective_counts,
            augment=self.augment,
        )  # fmt: skip

    def _position(self) -> list[Tensor]:
        return [p.detach().clone() for p in free_parameters(self.loss.space, self.augment)]
