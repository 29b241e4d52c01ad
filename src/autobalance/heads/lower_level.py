"""The lower level of a head's search: on every fold the exact minimum, and the exact hypergradient."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from autobalance.bilevel import Outcomes, Progress, ProgressListener
from autobalance.data import Batch
from autobalance.heads.folds import Split
from autobalance.heads.newton import Minimum, Solved, conjugate_gradients, minimise
from autobalance.heads.problem import HeadProblem, KroneckerPreconditioner, accumulate, linear
from autobalance.losses import LossParameters, ParametricCrossEntropy
from autobalance.objectives import Objective
from autobalance.spaces import LossSnapshot, TunableCrossEntropy

GRADIENT_TOLERANCE = 1e-5
"""Gradient of the lower level relative to that at zero weights; float32 reaches 1e-6."""
SYSTEM_TOLERANCE = 1e-6
"""Relative residual of the hypergradient's linear system."""
SYSTEM_ITERATIONS = 1000
ROWS = 4096


@dataclass(frozen=True)
class HeadHypergradient:
    """The derivative of one fold's objective by the space's parameters, and its values held out."""

    gradients: list[Tensor]
    objective: float
    hard_objective: float
    solved: Solved


@dataclass
class _Fold:
    """One split: its lower level, its validation rows, and what is kept between upper steps."""

    problem: HeadProblem
    held: Batch
    weights: Tensor
    reference: float = 0.0
    preconditioner: KroneckerPreconditioner | None = None
    direction: Tensor | None = None
    lower: Minimum | None = None

    def minimise(self, preconditioner: KroneckerPreconditioner | None = None) -> Minimum:
        """The minimum under the problem's present loss, from the present weights."""
        return minimise(
            self.problem, self.weights, tolerance=GRADIENT_TOLERANCE, reference=self.reference,
            preconditioner=preconditioner,
        )  # fmt: skip


class HeadFolds:
    """A linear head on every fold, as the `LowerProblem` of a search.

    One lower step is a whole training run: Newton's method goes to the minimum, from the weights of
    the step before.

    `statistics` has Newton steps and products with the curvature so far, and the largest relative
    gradient that was left at a minimum.
    """

    steps_per_run = 1

    def __init__(
        self, splits: Sequence[Split], loss: TunableCrossEntropy, objective: Objective
    ) -> None:
        self.loss, self.objective = loss, objective
        self.folds = [_Fold(s.problem, s.validation, s.problem.zeros()) for s in splits]
        space = loss.space
        self.shape = (space.num_groups or 1, space.num_classes)
        self.cells = [
            b.target if b.groups is None else b.groups * self.shape[1] + b.target
            for b in (fold.held for fold in self.folds)
        ]
        self.sample_weights = [fold.held.sample_weight for fold in self.folds]
        self.images: Tensor | None = None
        self.statistics = {"newton_steps": 0, "products": 0, "largest_relative_gradient": 0.0}

    def step(self, loss: LossSnapshot) -> None:
        """Solve every fold's lower level for this loss."""
        for fold in self.folds:
            fold.problem.set_loss(loss.parameters)
            if fold.preconditioner is None:
                fold.reference = float(fold.problem.evaluate(fold.weights)[1].norm())
            fold.lower = lower = fold.minimise(fold.preconditioner)
            fold.weights, fold.preconditioner = lower.weights, lower.preconditioner
            if len(self.folds) > 1:  # the probabilities of one fold at a time fit into memory
                fold.problem.release()
            self.statistics["newton_steps"] += lower.steps
            self.statistics["products"] += lower.products
            largest = max(self.statistics["largest_relative_gradient"], lower.residual)
            self.statistics["largest_relative_gradient"] = largest

    def interval(self, done: int) -> int:
        """Same as in `LowerProblem`: one upper step for each minimum."""
        return 1

    def training_loss(self) -> float:
        """Of the minima, mean over folds."""
        return float(np.mean([fold.lower.loss for fold in self.folds if fold.lower]))

    def hypergradients(self) -> list[HeadHypergradient]:
        """By the implicit function theorem, exact at the minima."""
        free: list[Tensor] = list(self.loss.space.parameters())
        with torch.enable_grad():
            design = self.loss.space()
        return [self._hypergradient(fold, design, free) for fold in self.folds]

    def predict_held_out(self) -> list[Tensor]:
        """For each fold, the classes that its present head predicts of the examples held out."""
        return [_predict(fold.held.inputs, fold.weights) for fold in self.folds]

    def train_candidates(
        self,
        losses: Mapping[str, ParametricCrossEntropy],
        outcomes: Outcomes,
        progress: ProgressListener | None,
    ) -> None:
        """Fill in what the minima under each loss predict of the held-out rows, fold by fold."""
        for fold in self.folds:
            for name, loss in losses.items():
                rows = (None if p is None else p.to(fold.weights) for p in loss.parameters_of_loss)
                fold.problem.set_loss(LossParameters(*rows))
                weights = fold.minimise().weights
                outcomes.setdefault(name, []).append(_predict(fold.held.inputs, weights))
                fold.problem.release()
                if progress:
                    done = sum(len(runs) for runs in outcomes.values())
                    progress(Progress("choose", done, len(losses) * len(self.folds)))

    def _hypergradient(
        self, fold: _Fold, design: LossParameters, free: list[Tensor]
    ) -> HeadHypergradient:
        problem, held = fold.problem, fold.held
        assert fold.preconditioner is not None
        if len(self.folds) > 1:
            problem.evaluate(fold.weights)
        given = {"groups": held.groups, "sample_weight": held.sample_weight}
        logits = torch.cat([linear(part, fold.weights) for part in held.inputs.split(ROWS)])
        leaf = logits.requires_grad_()
        with torch.enable_grad():
            value = self.objective(leaf, held.target, **given)
            by_logits = torch.autograd.grad(value, leaf)[0]
        b = torch.zeros_like(fold.weights, dtype=torch.float64)
        for part, g in zip(held.inputs.split(ROWS), by_logits.split(ROWS), strict=True):
            accumulate(b, g, part)
        solved = conjugate_gradients(
            problem, fold.preconditioner, b, tolerance=SYSTEM_TOLERANCE,
            iterations=SYSTEM_ITERATIONS, start=fold.direction, verify=True,
        )  # fmt: skip
        fold.direction = solved.direction
        mixed = problem.mixed(solved.direction, design, free)
        problem.release()
        hard = self.objective.hard(logits.detach(), held.target, **given)
        return HeadHypergradient([-g for g in mixed], float(value.detach()), hard, solved)


def _predict(features: Tensor, weights: Tensor) -> Tensor:
    """Classes of the largest logits, on the CPU."""
    parts = [linear(part, weights).argmax(dim=1) for part in features.split(ROWS)]
    return torch.cat(parts).cpu()
