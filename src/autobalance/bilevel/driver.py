"""Algorithm 1 of the paper: warm up, alternate lower and upper steps, return the loss found."""

from __future__ import annotations

import copy
import time
import warnings
import weakref
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from autobalance._validation import InputError, TrainingDiverged, instance
from autobalance.augment import (
    AugmentationPolicy,
    AugmentChoice,
    as_augmentation,
    described,
    from_bytes,
    frozen,
)
from autobalance.bilevel.candidate_selection import Outcomes, choose, train_candidates
from autobalance.bilevel.checkpoints import fingerprint
from autobalance.bilevel.loggers import MetricLogger, RunLog
from autobalance.bilevel.loss_tuner import DEFAULT_SOLVER, LossTuner, UpperStep, free_parameters
from autobalance.bilevel.lower_level import (
    Checkpoint,
    Interrupted,
    LowerLevel,
    ModelFactory,
    Progress,
    ProgressListener,
    check_data,
    check_options,
    describe,
    make_fabric,
    predict_logits,
    seeded,
)
from autobalance.bilevel.result import PathPoint, SearchResult, UpperRecord, extended
from autobalance.bilevel.test_monitor import Watch
from autobalance.calibration import Calibration, class_masses, fit_temperature, thinning
from autobalance.data import ArrayData, BalancedBatches, concatenated, stratified_folds
from autobalance.hypergrad import Solver
from autobalance.losses import ParametricCrossEntropy
from autobalance.objectives import Objective, as_objective, group_class_sums
from autobalance.records import HeldOut, Precision, Recipe, SearchSettings, confused_pairs
from autobalance.spaces import (
    DesignSpace,
    SpaceFactory,
    TunableCrossEntropy,
    WithUnknownGroup,
    made_space,
)

MAX_SKIPPED = 5
SHOWN = 256
"""Inputs that an augmentation is built for, where they are in files or bytes."""


def search(
    model_factory: ModelFactory,
    data: ArrayData,
    *,
    validation: ArrayData | None = None,
    objective: str | Objective = "balanced_error",
    space: SpaceFactory | None = None,
    augment: AugmentChoice = None,
    recipe: Recipe | None = None,
    settings: SearchSettings | None = None,
    solver: Solver = DEFAULT_SOLVER,
    seed: int = 0,
    device: str = "auto",
    checkpoint: str | Path | None = None,
    progress: ProgressListener | None = None,
    logger: MetricLogger | None = None,
    test: ArrayData | None = None,
    precision: Precision = "32-true",
) -> SearchResult:
    """Design the training loss for an objective, by bilevel search.

    Parameters
    ----------
    model_factory : callable
        Returns a new, untrained `torch.nn.Module` from inputs to logits ``(n, k)``.
    data : ArrayData
        Labelled data; with groups, the loss gets one row per group. Examples of unknown group (-1)
        are trained on, under a row of their own that is the mean of the others; they are never
        held out.
    validation : ArrayData, optional
        A validation set of the user's own. By default a share of `data` is held out. Where it
        alone has groups, the loss has no rows for them, but the objective may be over them.
    objective : str or Objective
        What is to become small on validation data; see `autobalance.objectives`.
    space : callable, optional
        From the training counts, ``(k,)`` or ``(g, k)``, to a `DesignSpace`. By default a
        hierarchical one that starts at a loss consistent for the objective; see
        `autobalance.spaces.spaces.default_space`.
    augment : {"personalised", "shared"}, callable or nn.Module, optional
        Augmentation of the training batches, learned with the loss: a policy for each class (and
        group), one for all, or of your own; see `autobalance.augment.as_augmentation`. None: none.
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
    checkpoint : path, optional
        A file to keep the run's state in, every half minute and at the end. Where it exists the
        run continues from it, on the CPU to the same bits as if it had never stopped. Remove it
        once you have the result.
    progress : callable, optional
        Called with a `Progress` at every upper step.
    logger : MetricLogger, optional
        Told the numbers of every upper step: Lightning Fabric's `CSVLogger` or `TensorBoardLogger`, or
        one of `autobalance.bilevel.loggers`, which has the names. It changes nothing in the result.
    test : ArrayData, optional
        Test data to watch: `history` then has the objective over the 0-1 error on it, at about 40 of
        the upper steps, of the networks in training. It guides nothing and changes nothing else.
    precision : {"32-true", "bf16-mixed"}
        Of passes through the network: float32, or bfloat16 where torch's autocast takes it, which
        is faster on newer GPUs.

    Returns
    -------
    SearchResult

    Raises
    ------
    InputError
        If the data cannot be searched on, or the checkpoint is not one of this run; the message
        says what to do.
    TrainingDiverged
        If a training loss becomes non-finite, or five hypergradients in a row; its `partial` is
        the result so far.
    Interrupted
        On Ctrl-C; a KeyboardInterrupt whose `partial` is the result so far.

    References
    ----------
    Li et al., "AutoBalance: Optimized Loss Functions for Imbalanced Data", NeurIPS 2021.
    """
    check_options(recipe, settings, seed, progress, precision)
    instance("solver", solver, Solver)
    recipe, settings = recipe or Recipe(), settings or SearchSettings()
    goal = as_objective(objective)
    check_data(data)
    if validation is not None:
        check_data(validation, "validation")
    judged = data if validation is None else validation
    if goal.over != "class" and judged.groups is None:
        raise InputError(
            f"The objective {objective!r} is over groups, but the data has none. Pass groups "
            "(sensitive_features, --groups), or choose an objective over classes."
        )
    with seeded(seed):
        run = SearchRun(
            model_factory, data, validation, goal, space, recipe, settings, solver, seed, device,
            checkpoint, augment, test, precision,
        )  # fmt: skip
        log = RunLog(logger, writes=run.folds[0].lower.processes.rank == 0)
        with log.open():
            try:
                run.run(progress, log)
            except TrainingDiverged as error:
                error.partial = run.result("diverged")
                raise
            except KeyboardInterrupt:
                raise Interrupted(run.result("interrupted")) from None
            run.saved.save()
            result = run.result("finished")
            log.candidates(result.candidates, run.done)
        designed = next((c.loss for c in result.candidates if c.name == "designed"), result.loss)
        predicted, logits = map(list, zip(*run.predict_held_out(), strict=True))
        result = replace(
            result,
            held_out=run.held_out(predicted),
            calibration=run.calibration(logits, designed),
        )
    if result.collapsed:
        assert result.held_out is not None
        [only] = np.flatnonzero(np.sum(result.held_out.predicted, axis=0))
        warnings.warn(
            f"At the end of the search the network predicts class {only} for every held-out example. "
            "Do not use this loss as it is. Lower the recipe's lr or train for longer; with a gap "
            "between groups in the objective, give it less weight or a looser bound.",
            stacklevel=2,
        )
    return result


@dataclass
class _Fold:
    """One split's network in training, and its validation data."""

    lower: LowerLevel
    validation: ArrayData
    draws: BalancedBatches


class SearchRun:
    """The state of one search; `search` and `frontier` drive it."""

    def __init__(
        self,
        model_factory: ModelFactory,
        data: ArrayData,
        validation: ArrayData | None,
        objective: Objective,
        space: SpaceFactory | None,
        recipe: Recipe,
        settings: SearchSettings,
        solver: Solver,
        seed: int,
        device: str,
        checkpoint: str | Path | None,
        augment: AugmentChoice = None,
        test: ArrayData | None = None,
        precision: Precision = "32-true",
    ) -> None:
        self.watch = None if test is None else Watch(test, data, objective)
        self.model_factory, self.objective, self.solver = model_factory, objective, solver
        self.recipe, self.settings = recipe, settings
        self.seed, self.device = seed, device
        self.precision: Precision = precision
        fabric = make_fabric(device, precision)
        design = made_space(space, data.counts(), objective)
        if data.unknown and design.num_groups is not None:
            design = WithUnknownGroup(design)
        self.loss = TunableCrossEntropy(design).to(fabric.device)
        self.start = self.loss.frozen().cpu()
        self.augment = as_augmentation(augment, _shown(data), data.counts(), fabric.device)
        self.splits = splits_of(data, validation, settings, seed)
        self.folds = [
            _fold(
                model_factory,
                train,
                held,
                recipe,
                settings,
                fabric,
                seed + i,
                self.start,
                self.augment,
            )
            for i, (train, held) in enumerate(self.splits)
        ]
        self.folds[0].lower.processes.seed_per_rank(seed)
        self.held_counts = np.sum([held.counts() for _, held in self.splits], axis=0)
        self.tuner = self._new_tuner()
        self.total = self.folds[0].lower.total
        self.begin = max(1, round(settings.warmup * self.total))
        self.done = 0
        self.stopped = False
        self.history: list[UpperRecord] = []
        self.path: list[PathPoint] = []
        self.positions: list[list[Tensor]] = []
        self.outcomes: Outcomes = {}
        self.spent = {"wall": 0.0, "cpu": 0.0}
        self.clock = (time.perf_counter(), time.process_time())
        self.record = {
            "recipe": recipe.to_dict(),
            "search": settings.to_dict(),
            "objective": repr(objective),
            "solver": repr(solver),
            "steps": self.total,
            "examples": len(data),
            "class_counts": _counts_by_row(data),
            "validation_counts": self.held_counts.tolist(),
        }

        def identity() -> dict[str, Any]:
            everything = data if validation is None else concatenated(data, validation)
            return {
                "kind": "search",
                "seed": seed,
                "settings": self.record,
                "space": repr(design),
                "precision": precision,
                "augment": [repr(self.augment), described(self.augment)],
                "held": None if validation is None else fingerprint(validation.groups),
                "test": None
                if test is None
                else fingerprint(test.inputs, test.target, test.groups),
                **describe(self.folds[0].lower.module, everything),
            }

        # Not by itself, or the data would stay on a GPU beside retraining's until the ring is collected.
        own = weakref.proxy(self)
        self.saved = Checkpoint(
            checkpoint, identity, lambda: own.state_dict(), self.folds[0].lower.processes
        )
        self._remember()
        state = self.saved.load()
        if state is not None:
            self.load_state_dict(state)

    def run(self, progress: ProgressListener | None, log: RunLog | None = None) -> None:
        """Algorithm 1 up to, and without, retraining; then the final choice, where there is one."""
        log = log or RunLog(None)
        while self.done < self.total and not self.stopped:
            losses = [fold.lower.step(self.loss) for fold in self.folds]
            self.done += 1
            upper = None
            if self.done > self.begin and (self.done - self.begin) % self.settings.every == 0:
                upper = self._upper_step()
                self._note(float(torch.stack(losses).mean()), upper)
                log.upper_step(self.history[-1], self.loss.space().detach())
                self.stopped = self._no_longer_improves()
            self.saved.save_if_due()
            if progress and (upper or self.done == self.total or self.done % 20 == 0):
                phase = "warm-up" if self.done <= self.begin else "search"
                progress(
                    Progress(phase, self.done, self.total, upper.hard_objective if upper else None)
                )
        if self._chooses():
            space, augment = self._designed()
            if len(self.folds) == 1:  # the network searched with stands for the designed loss
                self.outcomes.setdefault("designed", [p for p, _ in self.predict_held_out()])
            train_candidates(
                self.model_factory,
                self.splits,
                self._losses(space),
                recipe=self.recipe,
                augments=self._augments(augment),
                seed=self.seed,
                device=self.device,
                precision=self.precision,
                outcomes=self.outcomes,
                after_each=self.saved.save,
                progress=progress,
            )

    def go_on(self, objective: Objective, share: float) -> None:
        """From here on search for another objective, over so many of the steps of one training."""
        self.objective = objective
        self.tuner = self._new_tuner()
        self.record["objective"] = repr(objective)
        self.total = max(1, round(share * self.recipe.steps(len(self.folds[0].lower.data))))
        self.begin = round(0.1 * self.total)
        self.done, self.stopped = 0, False
        self.history, self.positions, self.outcomes = [], [], {}
        for fold in self.folds:
            fold.lower.restart(self.total)

    def _new_tuner(self) -> LossTuner:
        return LossTuner(
            self.loss,
            self.objective,
            solver=self.solver,
            lr=self.settings.lr,
            upper=self.settings.optimizer,
            validation_counts=self.held_counts,
            augment=self.augment,
        )

    def held_out_errors(self) -> tuple[Tensor, Tensor]:
        """Errors and examples per group and class ``(g, k)`` on all folds' validation data, now."""
        total, mass, _ = self._held_out_tables([p for p, _ in self.predict_held_out()])
        return total, mass

    def predict_held_out(self) -> list[tuple[Tensor, Tensor]]:
        """By each fold's network, now: the classes predicted, and logits thinned out by `thinning`."""
        found = []
        for fold in self.folds:
            fold.lower.processes.broadcast_buffers(fold.lower.module)
            logits = predict_logits(fold.lower.module, fold.validation.inputs)
            found.append((logits.argmax(dim=1), logits[:: self._thinning()].clone()))
        return found

    def held_out(self, predicted: list[Tensor]) -> HeldOut:
        """Errors, examples and predictions on all folds' validation data."""
        wrong, n, by_class = (table.long().tolist() for table in self._held_out_tables(predicted))
        target = torch.cat([fold.validation.target.cpu() for fold in self.folds])
        return HeldOut(n, wrong, by_class, confused_pairs(target, torch.cat(predicted), len(n[0])))

    def calibration(
        self, logits: list[Tensor], designed: ParametricCrossEntropy
    ) -> Calibration | None:
        """Of the networks searched with, whose loss was lately about the designed one."""
        masses = np.sum([class_masses(train) for train, _ in self.splits], axis=0)
        if not np.atleast_2d(masses).sum(axis=0).all():  # a class whose examples all weigh nothing
            return None
        step = self._thinning()
        target, groups = (
            None if parts[0] is None else torch.cat([part[::step].cpu() for part in parts])
            for parts in zip(*((held.target, held.groups) for _, held in self.splits), strict=True)
        )
        return fit_temperature(torch.cat(logits), target, designed, masses, groups=groups)

    def _thinning(self) -> int:
        return thinning(sum(held.target.numel() * held.num_classes for _, held in self.splits))

    def _held_out_tables(self, predictions: list[Tensor]) -> Tensor:
        """Errors and examples by group and class, predictions by group and class predicted."""
        totals = []
        for fold, predicted in zip(self.folds, predictions, strict=True):
            held = fold.validation
            target = held.target.cpu()
            wrong = (predicted != target).double()
            groups = None if held.groups is None else held.groups.cpu()
            tables = (
                *group_class_sums(wrong, target, groups, held.num_classes),
                group_class_sums(wrong, predicted, groups, held.num_classes)[1],
            )
            rows = (held.num_groups or 1) - len(tables[0])
            totals.append(
                torch.stack([torch.nn.functional.pad(t, (0, 0, 0, rows)) for t in tables])
            )
        return torch.stack(totals).sum(dim=0)

    def result(self, status: str) -> SearchResult:
        """The loss chosen, with everything that led to it."""
        space, augment = self._designed()
        losses = self._losses(space)
        cells = [held.cells() for _, held in self.splits]
        held = self.splits[0][1]
        shape = (held.num_groups or 1, held.num_classes)
        candidates, choice = choose(losses, self.outcomes, cells, shape, self.objective, self.seed)
        kind = type(space.inner if isinstance(space, WithUnknownGroup) else space)
        trained = [name for name in self.outcomes if len(self.folds) > 1 or name != "designed"]
        chosen_runs = sum(len(self.outcomes[name]) for name in trained)
        return SearchResult(
            loss=losses[choice],
            start=self.start,
            augment=self._augments(augment)[choice],
            history=self.history,
            path=self.path,
            design={
                "space": kind.__name__,
                "learns": list(space.learns),
                "priors": {name: list(prior) for name, prior in space.priors().items()},
                **space.values(),
            },
            settings=self.record,
            seed=self.seed,
            seconds=self.seconds(),
            status=status,
            candidates=candidates,
            choice=choice,
            training_runs=len(self.folds) * self.done / self.total + chosen_runs,
        )

    def state_dict(self) -> dict[str, Any]:
        """What continues the search elsewhere, beside the global random state."""
        return {
            "done": self.done,
            "stopped": self.stopped,
            "folds": [
                {"lower": fold.lower.state_dict(), "draws": fold.draws.state_dict()}
                for fold in self.folds
            ],
            "tuner": self.tuner.state_dict(),
            "history": [asdict(record) for record in self.history],
            "path": [asdict(point) for point in self.path],
            "positions": [torch.stack(places) for places in zip(*self.positions, strict=True)],
            "outcomes": self.outcomes,
            "seconds": self.seconds(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self.done, self.stopped = state["done"], state["stopped"]
        for fold, saved in zip(self.folds, state["folds"], strict=True):
            fold.lower.load_state_dict(saved["lower"])
            fold.draws.load_state_dict(saved["draws"])
        self.tuner.load_state_dict(state["tuner"])
        self.history = [UpperRecord(**record) for record in state["history"]]
        self.path = [PathPoint(**point) for point in state["path"]]
        self.positions = [list(p) for p in zip(*state["positions"], strict=True)]
        self.outcomes = state["outcomes"]
        self.spent = state["seconds"]

    def seconds(self) -> dict[str, float]:
        """Time spent, with that before a checkpoint."""
        wall, cpu = self.clock
        return {
            "wall": self.spent["wall"] + time.perf_counter() - wall,
            "cpu": self.spent["cpu"] + time.process_time() - cpu,
        }

    def _designed(self) -> tuple[DesignSpace, nn.Module | None]:
        """Copies of the space and the augmentation at the average of their late positions."""
        keep = max(1, round(self.settings.average * len(self.positions)))
        space, augment = copy.deepcopy(self.loss.space), copy.deepcopy(self.augment)
        with torch.no_grad():
            late = zip(*self.positions[-keep:], strict=True)
            for p, places in zip(free_parameters(space, augment), late, strict=True):
                p.copy_(torch.stack(places).mean(dim=0))
        return space, frozen(augment)

    def _chooses(self) -> bool:
        """With folds; with one only whether what an augmentation learned is kept."""
        several = len(self.folds) > 1
        return self.settings.choose and (several or isinstance(self.augment, AugmentationPolicy))

    def _augments(self, designed: nn.Module | None) -> dict[str, nn.Module | None]:
        """How each candidate's training batches are augmented, by the candidate's name.

        What is learned has to stand against none at all.
        """
        learned = isinstance(self.augment, AugmentationPolicy)
        other = None if learned else designed
        return {"designed": designed, "start": other, "cross_entropy": other}

    def _losses(self, designed: DesignSpace) -> dict[str, ParametricCrossEntropy]:
        """The candidates of the final choice, by name."""
        losses = {"designed": TunableCrossEntropy(designed).frozen().cpu(), "start": self.start}
        if len(self.folds) > 1:
            losses["cross_entropy"] = ParametricCrossEntropy.cross_entropy()
        return losses

    def _upper_step(self) -> UpperStep:
        for fold in self.folds:  # no upper step on a network that has diverged
            fold.lower.check()
        results = []
        for i, fold in enumerate(self.folds):
            batches = list(fold.lower.recent)
            index = fold.lower.processes.share(next(fold.draws))
            held = fold.validation.batch(index)
            with fold.lower.fabric.autocast():
                results.append(
                    self.tuner.hypergradient(
                        fold.lower.network, batches, held, optimizer=fold.lower.optimizer, replica=i
                    )
                )
        lower = self.folds[0].lower
        for group in self.tuner.upper_optimizer.param_groups:
            group["lr"] = self.settings.lr * lower.lr_factor()
        return self.tuner.update(results)

    def _note(self, training_loss: float, upper: UpperStep) -> None:
        seen = None
        if self.watch and self.watch.due(
            len(self.history) + 1, (self.total - self.begin) // self.settings.every
        ):
            seen = self.watch.value(fold.lower.module for fold in self.folds)
        self.history.append(
            UpperRecord(
                step=self.done, training_loss=training_loss, test_objective=seen, **asdict(upper)
            )
        )
        self._remember()
        if self.tuner.skipped_in_a_row >= MAX_SKIPPED:
            raise TrainingDiverged(
                f"{MAX_SKIPPED} hypergradients in a row were not finite, the last after step "
                f"{self.done} of {self.total}, with {self.recipe}. The last good loss is kept. "
                "Lower the learning rate, or scale the inputs.",
                step=self.done,
            )

    def _no_longer_improves(self) -> bool:
        patience = self.settings.patience
        if patience is None or len(self.history) < 2 * patience:
            return False
        values = np.array([record.objective for record in self.history])
        means = np.convolve(values, np.ones(patience) / patience, mode="valid")
        return len(means) - 1 - int(np.argmin(means)) >= patience

    def _remember(self) -> None:
        self.positions.append(
            [p.detach().clone() for p in free_parameters(self.loss.space, self.augment)]
        )
        self.path = extended(self.path, self.done, self.loss.space().detach())


def splits_of(
    data: ArrayData, validation: ArrayData | None, settings: SearchSettings, seed: int
) -> list[tuple[ArrayData, ArrayData]]:
    """Training and validation data of each fold, as a search with this seed takes them.

    Examples of unknown group are in no validation data.

    Raises
    ------
    InputError
        If there are folds beside a validation set, the two sets do not belong together, or no
        class has an example to hold out.
    """
    if validation is not None:
        if settings.folds != 1:
            raise InputError("A validation set of your own leaves nothing to fold: set folds to 1.")
        concatenated(data, validation)  # refuses sets that do not belong together
        groups = validation.num_groups if data.groups is None else data.num_groups
        held = replace(validation, num_classes=data.num_classes, num_groups=groups)
        return [(data, held.with_known_groups())]
    generator = torch.Generator().manual_seed(seed)
    cells = data.cells().cpu()
    known = torch.nonzero(cells >= 0).squeeze(1)
    folds = stratified_folds(cells[known], settings.validation_fraction, settings.folds, generator)
    unknown = torch.nonzero(cells < 0).squeeze(1)
    splits = [
        (torch.cat([known[train], unknown]).sort().values, known[held]) for train, held in folds
    ]
    if any(len(held) == 0 for _, held in splits):
        raise InputError(
            f"No class has enough examples for validation among {len(data)}: the search needs at "
            "least 3 in some class. Add data, or train with ParametricCrossEntropy.logit_adjusted."
        )
    return [(data.subset(train), data.subset(held)) for train, held in splits]


def _shown(data: ArrayData) -> Tensor:
    """Inputs as an augmentation meets them."""
    if isinstance(data.inputs, Tensor) and data.inputs.dtype != torch.uint8:
        return data.inputs
    return from_bytes(data.inputs[slice(SHOWN)])


def _counts_by_row(data: ArrayData) -> list[Any]:
    """Training examples by class, or by group and class; of unknown groups in a last row."""
    counts = data.counts()
    if data.unknown:
        cells = data.cells()
        unknown = torch.bincount(data.target[cells < 0].cpu(), minlength=data.num_classes)
        counts = np.concatenate([counts, unknown.numpy()[None]])
    return counts.tolist()


def _fold(
    model_factory: ModelFactory,
    train: ArrayData,
    held: ArrayData,
    recipe: Recipe,
    settings: SearchSettings,
    fabric: Fabric,
    seed: int,
    start: ParametricCrossEntropy,
    augment: nn.Module | None,
) -> _Fold:
    lower = LowerLevel(
        model_factory,
        train.to(fabric.device),
        recipe,
        fabric,
        seed,
        additive=start.additive,
        augment=augment,
        remembered=settings.training_batches,
    )
    generator = torch.Generator().manual_seed(seed)
    draws = BalancedBatches(held.cells(), settings.validation_batch_size, generator)
    return _Fold(lower, held.to(fabric.device), draws)
