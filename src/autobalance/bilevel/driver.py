"""Algorithm 1 of the paper: warm up, alternate lower and upper steps, return the loss found."""

from __future__ import annotations

import copy
import warnings
import weakref
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from autobalance._validation import TrainingDiverged
from autobalance.augment import (
    AugmentationPolicy,
    AugmentChoice,
    as_augmentation,
    describe_augmentation,
    from_bytes,
    freeze_augmentation,
)
from autobalance.bilevel.candidate_selection import Outcomes, choose
from autobalance.bilevel.checkpoints import Checkpoint, describe, fingerprint
from autobalance.bilevel.execution import check_options, make_fabric, seeded, warn_of_min_steps
from autobalance.bilevel.held_out import calibrate, evaluate_held_out, splits_of
from autobalance.bilevel.loggers import LoggerAdapter, MetricLogger
from autobalance.bilevel.loss_tuner import DEFAULT_SOLVER, UpperStep, free_parameters
from autobalance.bilevel.lower_problem import LowerProblem, NetworkFolds
from autobalance.bilevel.recorder import SearchRecorder
from autobalance.bilevel.result import SearchResult
from autobalance.bilevel.search_spec import SearchSpec
from autobalance.bilevel.test_monitor import ObjectiveMonitor, is_look_due
from autobalance.bilevel.types import Interrupted, ModelFactory, Progress, ProgressListener
from autobalance.bilevel.upper_level import StochasticUpperLevel, UpperLevel
from autobalance.data import ArrayData, as_data, concatenated, reading
from autobalance.hypergrad import Solver
from autobalance.losses import ParametricCrossEntropy
from autobalance.objectives import Objective, as_objective
from autobalance.records import Precision, Recipe, SearchSettings, UpperRecord
from autobalance.spaces import (
    DesignSpace,
    SpaceFactory,
    TunableCrossEntropy,
    WithUnknownGroup,
    build_space,
)

AUGMENTATION_EXAMPLES = 256
"""Number of examples from which an augmentation is built when the inputs are stored in files or as bytes."""


def search(
    model_factory: ModelFactory,
    data: ArrayData | Dataset[Any],
    *,
    validation: ArrayData | Dataset[Any] | None = None,
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
    test: ArrayData | Dataset[Any] | None = None,
    precision: Precision = "32-true",
) -> SearchResult:
    """Design the training loss for an objective, by bilevel search.

    Parameters
    ----------
    model_factory : callable
        Returns a new, untrained `torch.nn.Module` from inputs to logits ``(n, k)``.
    data : ArrayData or Dataset
        Labelled data. A Dataset must have its targets; `DatasetData` has its options. With groups,
        the loss gets one row per group. Examples of unknown group (-1) are trained on, under a row of
        their own that is the mean of the others; they are never held out.
    validation : ArrayData, optional
        A validation set of the user's own. By default a share of `data` is held out. Where it
        alone has groups, the loss has no rows for them, but the objective may be over them.
    objective : str or Objective
        What is to become small on validation data; see `autobalance.objectives`.
    space : callable, optional
        From the training counts, ``(k,)`` or ``(g, k)``, to a `DesignSpace`. By default a
        hierarchical one that starts at a loss consistent for the objective; see
        `autobalance.spaces.default_space.default_space`.
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
    recipe = recipe or Recipe()
    data = as_data(data)
    validation = None if validation is None else as_data(validation, "validation")
    test = None if test is None else as_data(test, "test")
    warn_of_min_steps(recipe, len(data))
    spec = SearchSpec(
        model_factory=model_factory,
        data=data,
        validation=validation,
        objective=as_objective(objective),
        space=space,
        augment=augment,
        recipe=recipe,
        settings=settings or SearchSettings(),
        solver=solver,
        seed=seed,
        device=device,
        checkpoint=checkpoint,
        test=test,
        precision=precision,
    )
    with seeded(seed), reading(data, validation, test):
        run = build_network_search(spec)
        log = LoggerAdapter(logger, writes=run.problem.processes.rank == 0)
        with log.open():
            result = run.complete(progress, log)
        designed = next((c.loss for c in result.candidates if c.name == "designed"), result.loss)
        predictions, logits = run.problem.predict_for_calibration()
        result = replace(
            result,
            held_out=evaluate_held_out(run.problem.splits, predictions),
            calibration=calibrate(run.problem.splits, logits, designed),
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


P = TypeVar("P", bound=LowerProblem[Any])
U = TypeVar("U", bound=UpperLevel[Any])


class BilevelSearch(Generic[P, U]):
    """Algorithm 1 over any lower and upper level, with the records and checkpoints of a run.

    Parameters
    ----------
    spec : SearchSpec
        What to search for.
    loss : TunableCrossEntropy
        The loss to design, at its start.
    problem : LowerProblem
        The lower level, on every fold.
    upper : UpperLevel
        What moves the loss.
    total : int
        Lower steps in all.
    warmup : int
        Lower steps before the first upper step may come.
    settings : dict
        What the result's `settings` say of the run.
    recorder : SearchRecorder
        Where its records go.
    augment : nn.Module, optional
        Augmentation of the training batches, learned with the loss where it can be.
    monitor : callable, optional
        The objective on test data now, asked for now and then.
    """

    def __init__(
        self,
        spec: SearchSpec,
        loss: TunableCrossEntropy,
        problem: P,
        upper: U,
        *,
        total: int,
        warmup: int,
        settings: dict[str, Any],
        recorder: SearchRecorder,
        augment: nn.Module | None = None,
        monitor: Callable[[], float] | None = None,
    ) -> None:
        self.spec, self.loss, self.problem, self.upper = spec, loss, problem, upper
        self.objective = spec.objective
        self.total, self.warmup = total, warmup
        self.settings, self.recorder = settings, recorder
        self.augment, self.monitor = augment, monitor
        self.start = loss.frozen().cpu()
        self.done = 0
        self.converged = False
        self.outcomes: Outcomes = {}
        self.checkpoint = Checkpoint(None, dict, dict)
        recorder.append_path_point(0, loss.space().detach())

    def run(
        self, progress: ProgressListener | None = None, log: LoggerAdapter | None = None
    ) -> None:
        """Algorithm 1 up to, and without, retraining; then the final choice, where there is one."""
        log = log or LoggerAdapter(None)
        loss = self.upper.propose()
        while self.done < self.total and not self.converged:
            self.problem.step(loss)
            self.done += 1
            upper = None
            if (
                self.done > self.warmup
                and self._steps_since_warmup() % self.spec.settings.every == 0
            ):
                upper = self.upper.update(self.problem.hypergradients())
                self._record(upper)
                log.log_upper_step(self.recorder.history[-1], self.loss.space().detach())
                self.converged = self.upper.has_converged(self.recorder.history)
                loss = self.upper.propose()
            self.checkpoint.save_if_due()
            if progress and (upper or self.done == self.total or self.done % 20 == 0):
                phase = "warm-up" if self.done <= self.warmup else "search"
                value = upper.hard_objective if upper else None
                progress(Progress(phase, self.done, self.total, value))
        if self._should_compare_candidates():
            self._train_candidates(progress)

    def complete(self, progress: ProgressListener | None, log: LoggerAdapter) -> SearchResult:
        """`run`, and its result; what is good by then goes with an error that ends it.

        Raises
        ------
        TrainingDiverged, Interrupted
            With the result so far as their `partial`.
        """
        try:
            self.run(progress, log)
        except TrainingDiverged as error:
            error.partial = self.result("diverged")
            raise
        except KeyboardInterrupt:
            raise Interrupted(self.result("interrupted")) from None
        self.checkpoint.save()
        result = self.result("finished")
        log.log_candidates(result.candidates, self.done)
        return result

    def _steps_since_warmup(self) -> int:
        return self.done - self.warmup

    def _record(self, upper: UpperStep) -> None:
        test_objective = None
        expected = (self.total - self.warmup) // self.spec.settings.every
        if self.monitor and is_look_due(len(self.recorder.history) + 1, expected):
            test_objective = self.monitor()
        record = UpperRecord(
            step=self.done,
            training_loss=self.problem.training_loss(),
            test_objective=test_objective,
            **asdict(upper),
        )
        self.recorder.append(record, self.loss.space().detach())
        self.upper.check(self.done, self.total)

    def result(self, status: str) -> SearchResult:
        """The loss chosen, with everything that led to it."""
        space, augment = self._designed()
        losses = self._candidates(space)
        candidates, choice = choose(
            losses,
            self.outcomes,
            self.problem.cells,
            self.problem.shape,
            self.objective,
            self.spec.seed,
        )
        folds = len(self.problem.cells)
        kind = type(space.inner if isinstance(space, WithUnknownGroup) else space)
        trained = [name for name in self.outcomes if folds > 1 or name != "designed"]
        candidate_runs = sum(len(self.outcomes[name]) for name in trained)
        return SearchResult(
            loss=losses[choice],
            start=self.start,
            augment=self._candidate_augments(augment)[choice],
            history=self.recorder.history,
            path=self.recorder.path,
            design={
                "space": kind.__name__,
                "learns": list(space.learns),
                "priors": {name: list(prior) for name, prior in space.priors().items()},
                **space.values(),
            },
            settings=self.settings,
            seed=self.spec.seed,
            seconds=self.recorder.seconds(),
            status=status,
            candidates=candidates,
            choice=choice,
            training_runs=folds * self.done / self.problem.steps_per_run + candidate_runs,
        )

    def _designed(self) -> tuple[DesignSpace, nn.Module | None]:
        """Copies of the space and the augmentation at the position that is handed over."""
        space, augment = copy.deepcopy(self.loss.space), copy.deepcopy(self.augment)
        with torch.no_grad():
            free = free_parameters(space, augment)
            for p, value in zip(free, self.upper.final_position(), strict=True):
                p.copy_(value)
        return space, freeze_augmentation(augment)

    def _should_compare_candidates(self) -> bool:
        """With folds; with one only whether what an augmentation learned is kept."""
        several = len(self.problem.cells) > 1
        return self.spec.settings.choose and (
            several or isinstance(self.augment, AugmentationPolicy)
        )

    def _train_candidates(self, progress: ProgressListener | None) -> None:
        space, augment = self._designed()
        if len(self.problem.cells) == 1:  # the network searched with stands for the designed loss
            self.outcomes.setdefault("designed", self.problem.predict_held_out())
        self.problem.train_candidates(
            self._candidates(space),
            self._candidate_augments(augment),
            self.outcomes,
            self.checkpoint.save,
            progress,
        )

    def _candidates(self, designed: DesignSpace) -> dict[str, ParametricCrossEntropy]:
        """The losses of the final choice, by name."""
        losses = {"designed": TunableCrossEntropy(designed).frozen().cpu(), "start": self.start}
        if len(self.problem.cells) > 1:
            losses["cross_entropy"] = ParametricCrossEntropy.cross_entropy()
        return losses

    def _candidate_augments(self, designed: nn.Module | None) -> dict[str, nn.Module | None]:
        """How each candidate's training batches are augmented, by the candidate's name.

        What is learned has to stand against none at all.
        """
        learned = isinstance(self.augment, AugmentationPolicy)
        other = None if learned else designed
        return {"designed": designed, "start": other, "cross_entropy": other}


class NetworkSearch(BilevelSearch[NetworkFolds, StochasticUpperLevel]):
    """A search of a network's loss, as `search` and `frontier` drive it."""

    def switch_objective(self, objective: Objective, share: float) -> None:
        """Search on for another objective, from the present weights and the present loss.

        Parameters
        ----------
        objective : Objective
            What is to become small from here on.
        share : float
            How many steps, as a share of one training run; the first tenth is warm-up.
        """
        self.objective = objective
        self.settings["objective"] = objective.to_dict()
        self.upper.switch_objective(objective)
        self.total = max(1, round(share * self.problem.steps_per_run))
        self.warmup = round(0.1 * self.total)
        self.done, self.converged = 0, False
        self.recorder.history, self.outcomes = [], {}
        self.problem.restart(self.total)

    def state_dict(self) -> dict[str, Any]:
        """What continues the search elsewhere, beside the global random state."""
        return {
            "done": self.done,
            "converged": self.converged,
            "lower": self.problem.state_dict(),
            "upper": self.upper.state_dict(),
            "recorder": self.recorder.state_dict(),
            "outcomes": self.outcomes,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self.done, self.converged = state["done"], state["converged"]
        self.problem.load_state_dict(state["lower"])
        self.upper.load_state_dict(state["upper"])
        self.recorder.load_state_dict(state["recorder"])
        self.outcomes = state["outcomes"]


def build_network_search(spec: SearchSpec) -> NetworkSearch:
    """A network's search at its start, or where its checkpoint left it.

    Call it with the global random state seeded, for networks and augmentations draw from it.
    """
    recorder = SearchRecorder()
    data, settings = spec.data, spec.settings
    monitor = None if spec.test is None else ObjectiveMonitor(spec.test, data, spec.objective)
    fabric = make_fabric(spec.device, spec.precision)
    space = build_space(spec.space, data.counts(), spec.objective)
    if data.unknown and space.num_groups is not None:
        space = WithUnknownGroup(space)
    loss = TunableCrossEntropy(space).to(fabric.device)
    augment = None
    if spec.augment is not None:
        examples = _augmentation_examples(data)
        augment = as_augmentation(spec.augment, examples, data.counts(), fabric.device)
    splits = splits_of(data, spec.validation, settings, spec.seed)
    held_counts = np.sum([held.counts() for _, held in splits], axis=0)
    upper = StochasticUpperLevel(loss, spec, held_counts, augment)
    problem = NetworkFolds(spec, splits, fabric, upper, loss.frozen().cpu(), augment)
    total = problem.steps_per_run
    record = {
        "recipe": spec.recipe.to_dict(),
        "search": settings.to_dict(),
        "objective": spec.objective.to_dict(),
        "solver": spec.solver.to_dict(),
        "steps": total,
        "examples": len(data),
        "class_counts": _counts_by_row(data),
        "validation_counts": held_counts.tolist(),
    }
    run = NetworkSearch(
        spec,
        loss,
        problem,
        upper,
        total=total,
        warmup=max(1, round(settings.warmup * total)),
        settings=record,
        recorder=recorder,
        augment=augment,
        monitor=monitor and (lambda: monitor.evaluate(problem.networks())),
    )
    # A strong reference would be a circle, which keeps the data on a GPU beside retraining's until
    # the garbage collector comes by.
    own = weakref.proxy(run)
    run.checkpoint = Checkpoint(
        spec.checkpoint, lambda: _identity(own), lambda: own.state_dict(), problem.processes
    )
    state = run.checkpoint.load()
    if state is not None:
        run.load_state_dict(state)
    return run


def _identity(run: NetworkSearch) -> dict[str, Any]:
    """What makes it this run and no other, for its checkpoint."""
    spec = run.spec
    data, validation, test = spec.data, spec.validation, spec.test
    everything = data if validation is None else concatenated(data, validation)
    return {
        "kind": "search",
        "seed": spec.seed,
        "settings": run.settings,
        "space": repr(run.loss.space),
        "precision": spec.precision,
        "augment": [repr(run.augment), describe_augmentation(run.augment)],
        "held": None if validation is None else fingerprint(validation.groups),
        "test": None if test is None else fingerprint(test.inputs, test.target, test.groups),
        **describe(run.problem.folds[0].lower.module, everything),
    }


def _augmentation_examples(data: ArrayData) -> Tensor:
    """Inputs as an augmentation meets them."""
    if isinstance(data.inputs, Tensor) and data.inputs.dtype != torch.uint8:
        return data.inputs
    return from_bytes(data.inputs[slice(AUGMENTATION_EXAMPLES)])


def _counts_by_row(data: ArrayData) -> list[Any]:
    """Training examples by class, or by group and class; of unknown groups in a last row."""
    counts = data.counts()
    if data.unknown:
        cells = data.cells()
        unknown = torch.bincount(data.target[cells < 0].cpu(), minlength=data.num_classes)
        counts = np.concatenate([counts, unknown.numpy()[None]])
    return counts.tolist()
