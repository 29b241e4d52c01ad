"""The search of a network's loss: its lower and upper level, made and handed to the driver."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from autobalance._validation import InputError, TrainingDiverged
from autobalance.augment import AugmentChoice, as_augmentation, describe_augmentation, from_bytes
from autobalance.bilevel.arms import Arm, as_arms
from autobalance.bilevel.candidate_selection import train_candidates
from autobalance.bilevel.checkpoints import Checkpoint, describe, fingerprint
from autobalance.bilevel.driver import BilevelSearch
from autobalance.bilevel.execution import (
    check_options,
    make_fabric,
    seed_random_state,
    warn_of_min_steps,
)
from autobalance.bilevel.held_out import (
    calibrate,
    evaluate_held_out,
    evaluate_held_out_labels,
    splits_of,
    undefined_objective,
    warn_of_absent_labels,
)
from autobalance.bilevel.loggers import LoggerAdapter, MetricLogger
from autobalance.bilevel.loss_tuner import DEFAULT_SOLVER
from autobalance.bilevel.lower_level import NetworkFolds
from autobalance.bilevel.racing import race, with_arm
from autobalance.bilevel.result import SearchResult
from autobalance.bilevel.search_spec import SearchSpec
from autobalance.bilevel.test_monitor import ObjectiveMonitor
from autobalance.bilevel.types import Interrupted, ModelFactory, ProgressListener
from autobalance.bilevel.upper_level import StochasticUpperLevel
from autobalance.data import ArrayData, as_data, concatenated, reading
from autobalance.hypergrad import Solver
from autobalance.losses import ParametricCrossEntropy
from autobalance.objectives import Objective, as_objective
from autobalance.records import Precision, RacedArm, Recipe, SearchSettings
from autobalance.spaces import SpaceFactory, build_tunable_loss

if TYPE_CHECKING:
    from typing_extensions import Unpack

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
    arms: Sequence[Arm] | str | None = None,
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
        Told the numbers of every upper step: any logger of Lightning or Lightning Fabric, or an object
        with ``log_metrics(metrics, step)``; see `docs/how_to/logging.md`. It changes nothing in the result.
    test : ArrayData, optional
        Test data to watch: `history` then has the objective over the 0-1 error on it, at about 40 of
        the upper steps, of the networks in training. It guides nothing and changes nothing else.
    precision : {"32-true", "bf16-mixed"}
        Of passes through the network: float32, or bfloat16 where torch's autocast takes it, which
        is faster on newer GPUs.
    arms : "default" or sequence of Arm, optional
        Ways to train that a hypergradient cannot choose among, such as a cosine classifier or a strong
        weight decay: a `race` on held-out data comes first, and the loss is searched for the arm that
        wins. Retrain with the result itself, ``retrain(network, data, result)``, since an arm belongs to
        its loss. By default there is no race.

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
        On Ctrl-C; a KeyboardInterrupt whose `partial` is the result so far, with the loss at its start
        where a race was not over.

    References
    ----------
    Li et al., "AutoBalance: Optimized Loss Functions for Imbalanced Data", NeurIPS 2021.
    """
    spec = make_spec(
        model_factory, data, validation=validation, objective=objective, space=space, augment=augment,
        recipe=recipe, settings=settings, solver=solver, seed=seed, device=device,
        checkpoint=checkpoint, progress=progress, test=test, precision=precision,
    )  # fmt: skip
    warn_of_min_steps(spec.recipe, len(spec.data))
    with seed_random_state(spec.seed), reading(spec.data, spec.validation, spec.test):
        return run_search(spec, as_arms(arms), progress, logger)[1]


class SearchOptions(TypedDict, total=False):
    """The options of `search`, with its defaults."""

    validation: ArrayData | Dataset[Any] | None
    objective: str | Objective
    space: SpaceFactory | None
    augment: AugmentChoice
    recipe: Recipe | None
    settings: SearchSettings | None
    solver: Solver
    seed: int
    device: str
    checkpoint: str | Path | None
    progress: ProgressListener | None
    logger: MetricLogger | None
    test: ArrayData | Dataset[Any] | None
    precision: Precision
    arms: Sequence[Arm] | str | None


def make_spec(
    model_factory: ModelFactory,
    data: ArrayData | Dataset[Any],
    *,
    release: float | None = None,
    **options: Unpack[SearchOptions],
) -> SearchSpec:
    """What these options ask of a search; errors as for `search`."""
    recipe, settings = options.get("recipe"), options.get("settings")
    seed, precision = options.get("seed", 0), options.get("precision", "32-true")
    check_options(recipe, settings, seed, options.get("progress"), precision)
    validation, test = options.get("validation"), options.get("test")
    return SearchSpec(
        model_factory=model_factory,
        data=as_data(data),
        validation=None if validation is None else as_data(validation, "validation"),
        test=None if test is None else as_data(test, "test"),
        objective=as_objective(options.get("objective", "balanced_error")),
        space=options.get("space"),
        augment=options.get("augment"),
        recipe=recipe or Recipe(),
        settings=settings or SearchSettings(),
        solver=options.get("solver", DEFAULT_SOLVER),
        seed=seed,
        device=options.get("device", "auto"),
        checkpoint=options.get("checkpoint"),
        precision=precision,
        release=release,
    )


def run_search(
    spec: SearchSpec,
    arms: Sequence[Arm],
    progress: ProgressListener | None,
    logger: MetricLogger | None,
) -> tuple[NetworkSearch, SearchResult]:
    """The race, the search of its winner, and what the held-out data say; with the random state seeded."""
    if arms and spec.data.has_labels:
        raise InputError(
            "A race of arms is for one class per example; this data has several labels. Leave arms out."
        )
    arm, raced = _race(spec, arms, progress) if arms else (None, [])
    if arm is not None:
        spec = with_arm(spec, arm)
        torch.manual_seed(spec.seed)
    run = build_network_search(spec)
    run.arm, run.raced = arm, raced
    absent = undefined_objective(spec.objective, run.settings["validation_counts"])
    if absent:
        warnings.warn(
            f"{absent} The objective is not defined there and leaves them out, so a gap or a worst "
            "case may be larger than it says: merge small groups, or add data.",
            stacklevel=3,
        )
    if spec.data.has_labels:
        warn_of_absent_labels(run.settings["validation_counts"])
    log = LoggerAdapter(logger, writes=run.problem.processes.rank == 0)
    with log.open():
        result = run.complete(progress, log)
    designed = next((c.loss for c in result.candidates if c.name == "designed"), result.loss)
    predictions, logits = run.problem.predict_for_calibration()
    if spec.data.has_labels:
        held_out = evaluate_held_out_labels(run.problem.splits, predictions)
        return run, replace(result, held_out=held_out)
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
            stacklevel=3,
        )
    return run, result


def _race(
    spec: SearchSpec, arms: Sequence[Arm], progress: ProgressListener | None
) -> tuple[Arm, list[RacedArm]]:
    """`race`; what stops it carries the loss at its start."""
    make_fabric(spec.device, spec.precision)  # Refuses a device before the race writes a file.
    try:
        return race(spec, arms, progress)
    except (TrainingDiverged, Interrupted) as stopped:
        status = "diverged" if isinstance(stopped, TrainingDiverged) else "interrupted"
        stopped.partial = build_network_search(replace(spec, checkpoint=None)).result(status)
        raise


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

    def train_candidates(
        self,
        losses: Mapping[str, ParametricCrossEntropy],
        augments: Mapping[str, nn.Module | None],
        progress: ProgressListener | None,
    ) -> None:
        """Train a new network with every loss on every fold."""
        splits, save = self.problem.splits, self.checkpoint.save
        train_candidates(self.spec, splits, losses, augments, self.outcomes, save, progress)

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
    data, settings = spec.data, spec.settings
    monitor = None if spec.test is None else ObjectiveMonitor(spec.test, data, spec.objective)
    fabric = make_fabric(spec.device, spec.precision)
    loss = build_tunable_loss(spec.build_space(data), labels=data.has_labels).to(fabric.device)
    augment = None
    if spec.augment is not None:
        examples = _augmentation_examples(data)
        augment = as_augmentation(spec.augment, examples, data.counts(), fabric.device)
    splits = splits_of(data, spec.validation, settings, spec.seed)
    held_counts, masses, effective = (
        np.sum([count(held) for _, held in splits], axis=0)
        for count in (ArrayData.counts, ArrayData.masses, ArrayData.effective_counts)
    )
    upper = StochasticUpperLevel(loss, spec, masses, augment, effective)
    problem = NetworkFolds(spec, splits, fabric, upper, loss.frozen().cpu(), augment)
    total = problem.search_steps
    record = {
        "recipe": spec.recipe.to_dict(),
        "search": settings.to_dict(),
        "objective": spec.objective.to_dict(),
        "solver": spec.solver.to_dict(),
        "steps": total,
        "examples": len(data),
        "class_counts": _counts_by_row(data),
        "validation_counts": held_counts.tolist(),
        **({} if spec.release is None else {"release": spec.release}),
    }
    run = NetworkSearch(spec, loss, problem, upper, total=total, settings=record, augment=augment)
    run.warmup = max(1, round(settings.warmup * total))
    run.rows_per_step = sum(min(spec.recipe.batch_size, len(train)) for train, _ in splits)
    if monitor is not None:
        run.monitor = lambda: monitor.evaluate(problem.networks())
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
        labels = data.subset(torch.nonzero(cells < 0).squeeze(1)).pixels()
        unknown = torch.bincount(labels.target.cpu(), minlength=data.num_classes)
        counts = np.concatenate([counts, unknown.numpy()[None]])
    return counts.tolist()
