"""Search and training in one run: the loss is designed while the network trains, and then held fixed.

For the first share of the steps a part of the data is held out and the loss is searched for, as `search`
does it, with an upper learning rate that falls to 0 by then. From there on the network trains on all of the
data with the loss found. It costs a tenth to a fifth more than training once, where two runs, a search and a
retraining, cost 2.2 times as much.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast, get_args

from torch import nn
from torch.utils.data import Dataset

from autobalance._validation import InputError, TrainingDiverged, fraction, one_of
from autobalance.augment import describe_augmentation
from autobalance.bilevel.arms import as_arms
from autobalance.bilevel.checkpoints import Checkpoint, describe
from autobalance.bilevel.execution import seed_random_state, warn_of_min_steps
from autobalance.bilevel.loggers import LoggerAdapter, MetricLogger
from autobalance.bilevel.lower_level import TrainingOptions
from autobalance.bilevel.network_search import NetworkSearch, make_spec, run_search
from autobalance.bilevel.result import SearchResult
from autobalance.bilevel.retraining import retrain as retrain_network, train_to_the_end
from autobalance.bilevel.search_spec import SearchSpec
from autobalance.bilevel.types import Interrupted, ModelFactory, ProgressListener
from autobalance.data import ArrayData, concatenated, reading
from autobalance.records import phase_file

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from autobalance.bilevel.network_search import SearchOptions

RELEASE = 0.5
"""Share of the steps after which the held-out examples join the training."""
Retraining = Literal["continue", "anew"]
"""Whether the network that was searched with trains on, or a new one is trained with the loss found."""


class TrainedSearch(NamedTuple):
    """A network, in evaluation mode on the CPU, and the record of the search of its loss."""

    network: nn.Module
    result: SearchResult


def search_and_train(
    model_factory: ModelFactory,
    data: ArrayData | Dataset[Any],
    *,
    retrain: Retraining = "continue",
    release: float = RELEASE,
    release_validation: bool = False,
    **options: Unpack[SearchOptions],
) -> TrainedSearch:
    """Design a loss and train a network with it, by default in one run.

    Parameters
    ----------
    model_factory, data
        As for `search`.
    retrain : {"continue", "anew"}
        "continue" trains the network on that the search used; "anew" is `search` and then `retrain`, twice
        as dear, and better where few steps make up a run.
    release : float
        Share of the steps, in (0, 1), that the search has. From there on the loss is fixed and what was
        held out is trained on.
    release_validation : bool
        Whether a validation set of your own, ``validation=``, is trained on as well in the end.
    **options
        Everything else that `search` takes. `settings.folds` must be 1 to continue. Beside a
        `checkpoint` a second file is written, with ``.training`` after its name.

    Returns
    -------
    TrainedSearch
        The network, and the result of the search. Continued, the result's held-out errors and its
        calibration are of the network as it was when the held-out examples were released.

    Raises
    ------
    InputError
        As for `search` and `retrain`, or if several folds are to continue.
    TrainingDiverged, Interrupted
        Their `partial` is the search's result so far, or, from the training, a `TrainedSearch` with the
        network so far.
    """
    one_of("retrain", retrain, get_args(Retraining))
    fraction("release", release)
    continued = retrain == "continue"
    spec = make_spec(model_factory, data, release=release if continued else None, **options)
    if continued and spec.settings.folds > 1:
        raise InputError(
            f"One run trains one network, but settings ask for {spec.settings.folds} folds. Set folds to "
            '1, or retrain="anew".'
        )
    warn_of_min_steps(spec.recipe, len(spec.data))
    whole = spec.data
    if spec.validation is not None and release_validation:
        whole = concatenated(whole, spec.validation)
    progress, logger = options.get("progress"), options.get("logger")
    arms = as_arms(options.get("arms"))
    with seed_random_state(spec.seed):
        with reading(spec.data, spec.validation, spec.test):
            run, result = run_search(spec, arms, progress, logger)
        try:
            if continued:
                return _train_on(run, result, whole, progress, logger)
            del run  # Its copy of the data need not stay on a GPU.
            checkpoint = (
                None if spec.checkpoint is None else phase_file(spec.checkpoint, "training")
            )
            network = retrain_network(
                model_factory, whole, result, recipe=spec.recipe, seed=spec.seed, device=spec.device,
                checkpoint=checkpoint, progress=progress, logger=logger, precision=spec.precision,
            )  # fmt: skip
        except (TrainingDiverged, Interrupted) as stopped:
            stopped.partial = TrainedSearch(cast(nn.Module, stopped.partial), result)
            raise
    return TrainedSearch(network, result)


def _train_on(
    run: NetworkSearch,
    result: SearchResult,
    data: ArrayData,
    progress: ProgressListener | None,
    logger: MetricLogger | None,
) -> TrainedSearch:
    """The steps that are left of a search's network, on all of the data and with the loss found."""
    spec, lower = run.spec, run.problem.folds[0].lower
    loss = copy.deepcopy(result.loss).to(lower.fabric.device)
    augment = result.augment
    if augment is not None:
        augment = copy.deepcopy(augment).to(lower.fabric.device)
    searched = lower.done
    # The examples' order is another one than that of the search, or the same ones would come first.
    training = TrainingOptions(spec.recipe, spec.seed + 1)
    lower.train_on(data.to(lower.fabric.device), training, augment)
    saved = _open_checkpoint(run, spec, result, data)
    log = LoggerAdapter(logger, writes=run.problem.processes.rank == 0)
    with reading(data):
        train_to_the_end(lower, loss, saved, log, progress)
        lower.processes.broadcast_buffers(lower.module)
        saved.save()
    left = (lower.total - searched) / lower.total
    result = replace(result, training_runs=result.training_runs + left)
    return TrainedSearch(lower.result(), result)


def _open_checkpoint(
    run: NetworkSearch, spec: SearchSpec, result: SearchResult, data: ArrayData
) -> Checkpoint:
    """The training's checkpoint; what an earlier run left there is where this one goes on."""
    lower = run.problem.folds[0].lower

    def identity() -> dict[str, Any]:
        return {
            "kind": "train on",
            "seed": spec.seed,
            "recipe": spec.recipe.to_dict(),
            "precision": spec.precision,
            "loss": result.loss.to_dict(),
            "augment": describe_augmentation(result.augment),
            **describe(lower.module, data),
        }

    path = None if spec.checkpoint is None else phase_file(spec.checkpoint, "training")
    saved = Checkpoint(path, identity, lower.state_dict, lower.processes)
    state = saved.load()
    if state is not None:
        lower.load_state_dict(state)
    return saved
