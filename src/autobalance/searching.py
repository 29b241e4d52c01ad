"""Algorithm 1 of the paper: warm up, alternate lower and upper steps, return the loss found."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor

from autobalance.checks import InputError, TrainingDiverged
from autobalance.data.batches import ArrayData, Batch, balanced_batches, concatenated
from autobalance.data.splits import stratified_folds
from autobalance.hypergrad import Solver
from autobalance.objectives import Objective, as_objective
from autobalance.results import MAX_PATH_NUMBERS, PathPoint, SearchResult, UpperRecord
from autobalance.settings import Recipe, SearchSettings
from autobalance.spaces import DesignSpace, default_space
from autobalance.training import (
    Interrupted,
    LowerLevel,
    ModelFactory,
    Progress,
    ProgressListener,
    make_fabric,
    seeded,
)
from autobalance.tunable import TunableCrossEntropy
from autobalance.tuner import DEFAULT_SOLVER, LossTuner, UpperStep

SpaceFactory = Callable[[np.ndarray], DesignSpace]


def search(
    model_factory: ModelFactory,
    data: ArrayData,
    *,
    validation: ArrayData | None = None,
    objective: str | Objective = "balanced_error",
    space: SpaceFactory = default_space,
    recipe: Recipe | None = None,
    settings: SearchSettings | None = None,
    solver: Solver = DEFAULT_SOLVER,
    seed: int = 0,
    device: str = "auto",
    progress: ProgressListener | None = None,
) -> SearchResult:
    """Design the training loss for an objective, by bilevel search.

    Parameters
    ----------
    model_factory : callable
        Returns a new, untrained `torch.nn.Module` from inputs to logits ``(n, k)``.
    data : ArrayData
        Labelled data; with groups, the loss gets one row per group.
    validation : ArrayData, optional
        A validation set of the user's own. By default a share of `data` is held out.
    objective : str or Objective
        What is to become small on validation data; see `autobalance.objectives`.
    space : callable
        From the training counts, ``(k,)`` or ``(g, k)``, to a `DesignSpace`.
    recipe : Recipe, optional
        How the network is trained.
    settings : SearchSettings, optional
        How the loss is searched.
    solver : Solver
        How hypergradients are solved for.
    seed : int
        Seeds splits, initial weights, orders and dropout. One seed gives one result on one
        machine, bit for bit on the CPU.
    device : str
        "auto", "cpu", "cuda", "cuda:1" or "mps".
    progress : callable, optional
        Called with a `Progress` at every upper step.

    Returns
    -------
    SearchResult

    Raises
    ------
    InputError
        If the data cannot be searched on; the message says what to do.
    TrainingDiverged
        If a training loss becomes non-finite; its `partial` is the result so far.
    Interrupted
        On Ctrl-C; a KeyboardInterrupt whose `partial` is the result so far.

    References
    ----------
    Li et al., "AutoBalance: Optimized Loss Functions for Imbalanced Data", NeurIPS 2021.
    """
    recipe, settings = recipe or Recipe(), settings or SearchSettings()
    goal = as_objective(objective)
    if goal.over != "class" and data.groups is None:
        raise InputError(
            f"The objective {objective!r} is over groups, but the data has none. Pass groups "
            "(sensitive_features, --groups), or choose an objective over classes."
        )
    fabric = make_fabric(device)
    with seeded(seed):
        run = _Search(
            model_factory, data, validation, goal, space, recipe, settings, solver, seed, fabric
        )
        try:
            run.run(progress)
        except TrainingDiverged as error:
            error.partial = run.result("diverged")
            raise
        except KeyboardInterrupt:
            raise Interrupted(run.result("interrupted")) from None
        return run.result("finished")


@dataclass
class _Fold:
    """One split's network in training, and its validation data."""

    lower: LowerLevel
    validation: ArrayData
    draws: Any


class _Search:
    """The state of one search."""

    def __init__(
        self,
        model_factory: ModelFactory,
        data: ArrayData,
        validation: ArrayData | None,
        objective: Objective,
        space: SpaceFactory,
        recipe: Recipe,
        settings: SearchSettings,
        solver: Solver,
        seed: int,
        fabric: Fabric,
    ) -> None:
        self.settings, self.seed = settings, seed
        design = space(data.counts())
        if not isinstance(design, DesignSpace):
            raise InputError(f"space must return a DesignSpace; got {type(design).__name__}.")
        self.loss = TunableCrossEntropy(design).to(fabric.device)
        self.start = self.loss.frozen().cpu()
        splits = _splits(data, validation, settings, seed)
        self.folds = [
            _fold(model_factory, train, held, recipe, settings, fabric, seed + i)
            for i, (train, held) in enumerate(splits)
        ]
        held_counts = np.sum([held.counts() for _, held in splits], axis=0)
        self.tuner = LossTuner(
            self.loss, objective, solver=solver, lr=settings.lr, validation_counts=held_counts
        )
        self.total = self.folds[0].lower.total
        self.begin = max(1, round(settings.warmup * self.total))
        self.history: list[UpperRecord] = []
        self.path: list[PathPoint] = []
        self.positions: list[list[Tensor]] = []
        self.clock = (time.perf_counter(), time.process_time())
        self.record = {
            "recipe": recipe.to_dict(),
            "search": settings.to_dict(),
            "objective": repr(objective),
            "solver": repr(solver),
            "steps": self.total,
            "examples": len(data),
            "class_counts": data.counts().tolist(),
            "validation_counts": held_counts.tolist(),
        }

    def run(self, progress: ProgressListener | None) -> None:
        """Algorithm 1 up to, and without, retraining."""
        self._remember()
        done = 0
        while done < self.total:
            losses = [fold.lower.step(self.loss) for fold in self.folds]
            done += 1
            upper = None
            if done > self.begin and (done - self.begin) % self.settings.every == 0:
                upper = self._upper_step()
                self._note(done, float(torch.stack(losses).mean()), upper)
            if progress and (upper or done == self.total or done % 20 == 0):
                phase = "warm-up" if done <= self.begin else "search"
                progress(Progress(phase, done, self.total, upper.hard_objective if upper else None))

    def result(self, status: str) -> SearchResult:
        """The loss at the average of its late positions, with everything that led to it."""
        space = self.loss.space
        keep = max(1, round(self.settings.average * len(self.positions)))
        with torch.no_grad():
            for i, p in enumerate(space.parameters()):
                p.copy_(
                    torch.stack([position[i] for position in self.positions[-keep:]]).mean(dim=0)
                )
        self.loss.refresh()
        start, cpu = self.clock
        return SearchResult(
            loss=self.loss.frozen().cpu(),
            start=self.start,
            history=self.history,
            path=self.path,
            design={"space": type(space).__name__, "learns": list(space.learns), **space.values()},
            settings=self.record,
            seed=self.seed,
            seconds={"wall": time.perf_counter() - start, "cpu": time.process_time() - cpu},
            status=status,
        )

    def _upper_step(self) -> UpperStep:
        results = []
        for i, fold in enumerate(self.folds):
            batch = cast(Batch, fold.lower.batch)
            held = fold.validation.batch(next(fold.draws).to(fold.validation.target.device))
            with fold.lower.fabric.autocast():
                results.append(
                    self.tuner.hypergradient(
                        fold.lower.module, batch, held, optimizer=fold.lower.optimizer, replica=i
                    )
                )
        return self.tuner.update(results)

    def _note(self, done: int, training_loss: float, upper: UpperStep) -> None:
        self.history.append(UpperRecord(step=done, training_loss=training_loss, **asdict(upper)))
        self._remember(done)

    def _remember(self, done: int = 0) -> None:
        self.positions.append([p.detach().clone() for p in self.loss.space.parameters()])
        now = self.loss.space().detach()
        lists = {n: None if p is None else p.tolist() for n, p in now._asdict().items()}
        self.path.append(PathPoint(done, **lists))
        numbers = len(self.path) * sum(p.numel() for p in now if p is not None)
        if numbers > MAX_PATH_NUMBERS:
            self.path = self.path[::2]


def _splits(
    data: ArrayData, validation: ArrayData | None, settings: SearchSettings, seed: int
) -> list[tuple[ArrayData, ArrayData]]:
    if validation is not None:
        if settings.folds != 1:
            raise InputError("A validation set of your own leaves nothing to fold: set folds to 1.")
        concatenated(data, validation)  # refuses sets that do not belong together
        return [
            (data, replace(validation, num_classes=data.num_classes, num_groups=data.num_groups))
        ]
    generator = torch.Generator().manual_seed(seed)
    splits = stratified_folds(data.cells(), settings.validation_fraction, settings.folds, generator)
    if any(len(held) == 0 for _, held in splits):
        raise InputError(
            f"No class has enough examples for validation among {len(data)}: the search needs at "
            "least 3 in some class. Add data, or train with ParametricCrossEntropy.logit_adjusted."
        )
    return [(data.subset(train), data.subset(held)) for train, held in splits]


def _fold(
    model_factory: ModelFactory,
    train: ArrayData,
    held: ArrayData,
    recipe: Recipe,
    settings: SearchSettings,
    fabric: Fabric,
    seed: int,
) -> _Fold:
    lower = LowerLevel(model_factory, train.to(fabric.device), recipe, fabric, seed)
    generator = torch.Generator().manual_seed(seed)
    draws = balanced_batches(held.cells(), settings.validation_batch_size, generator)
    return _Fold(lower, held.to(fabric.device), draws)
