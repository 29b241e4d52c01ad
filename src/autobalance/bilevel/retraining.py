"""Retraining: one plain training run on all data with a fixed loss."""

from __future__ import annotations

import copy
import inspect
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from autobalance._validation import InputError, TrainingDiverged, instance
from autobalance.augment import described
from autobalance.bilevel.loggers import MetricLogger, RunLog
from autobalance.bilevel.lower_level import (
    Checkpoint,
    FixedLoss,
    Interrupted,
    LowerLevel,
    ModelFactory,
    Progress,
    ProgressListener,
    Sampling,
    check_data,
    check_options,
    describe,
    make_fabric,
    seeded,
)
from autobalance.data import ArrayData
from autobalance.records import Precision, Recipe

REPORT_EVERY = 20
KEEP_EVERY = 20


def retrain(
    model_factory: ModelFactory,
    data: ArrayData,
    loss: FixedLoss,
    *,
    recipe: Recipe | None = None,
    sampling: Sampling = "shuffled",
    augment: nn.Module | None = None,
    seed: int = 0,
    device: str = "auto",
    checkpoint: str | Path | None = None,
    progress: ProgressListener | None = None,
    logger: MetricLogger | None = None,
    precision: Precision = "32-true",
) -> nn.Module:
    """Train a new network on all of `data` with the given loss, by default the one searched for.

    Parameters
    ----------
    model_factory : callable
        Returns a new, untrained `torch.nn.Module`.
    data : ArrayData
        All labelled data, training and validation together.
    loss : ParametricCrossEntropy or another loss of `autobalance.losses`
        For example ``search(...).loss``. It is copied; one with a state of its own starts from
        the state that it has.
    recipe : Recipe, optional
        How to train; the same as in the search.
    sampling : {"shuffled", "balanced"}
        Every example as often, or every class (and group) as often: class-balanced sampling, to
        compare with. Losses designed or adjusted for the class priors expect "shuffled".
    augment : nn.Module, optional
        How to augment the training batches, for example ``search(...).augment`` or another
        `autobalance.augment.Augmentation`: called with ``(inputs, target, groups)``. It is copied.
    seed : int
        Seeds initial weights, the order of examples and dropout.
    device : str
        "auto", "cpu", "cuda", "cuda:1" or "mps".
    checkpoint : path, optional
        As for `search`.
    progress : callable, optional
        Called with a `Progress` now and then.
    logger : MetricLogger, optional
        As for `search`.
    precision : {"32-true", "bf16-mixed"}
        As for `search`.

    Returns
    -------
    torch.nn.Module
        Trained, in evaluation mode, on the CPU.

    Raises
    ------
    TrainingDiverged
        If the loss becomes non-finite; its `partial` is the network of at most `KEEP_EVERY` steps
        before, at weights whose loss and gradient were finite.
    Interrupted
        On Ctrl-C; a KeyboardInterrupt whose `partial` is the network so far.
    InputError
        If the checkpoint is not one of this run.
    """
    check_options(recipe, seed=seed, progress=progress, precision=precision)
    recipe = recipe or Recipe()
    if not isinstance(loss, nn.Module) or not _takes_groups(loss):
        raise InputError(
            "loss must be one of autobalance.losses, such as search(...).loss or "
            f"ParametricCrossEntropy.logit_adjusted(counts); got {type(loss).__name__}."
        )
    if augment is not None:
        instance("augment", augment, nn.Module, "Such as search(...).augment.")
    check_data(data)
    if data.unknown and getattr(loss, "num_groups", None) == data.num_groups:
        raise InputError(
            f"The group of {data.unknown} examples is not known (-1), for whom this loss has no row. "
            "Search with such data, or build the loss from WithUnknownGroup(space)."
        )
    fabric = make_fabric(device, precision)
    augment = copy.deepcopy(augment)
    with seeded(seed):
        lower = LowerLevel(
            model_factory,
            data.to(fabric.device),
            recipe,
            fabric,
            seed,
            additive=getattr(loss, "additive", None),
            sampling=sampling,
            augment=None if augment is None else augment.to(fabric.device),
        )
        lower.processes.seed_per_rank(seed)
        loss = copy.deepcopy(loss).to(fabric.device)

        def identity() -> dict[str, Any]:
            return {
                "kind": "retrain",
                "seed": seed,
                "recipe": recipe.to_dict(),
                "sampling": sampling,
                "precision": precision,
                "loss": loss.to_dict(),
                "augment": described(augment),
                **describe(lower.module, data),
            }

        def state_dict() -> dict[str, Any]:
            return {"lower": lower.state_dict(), "loss": dict(loss.state_dict())}

        saved = Checkpoint(checkpoint, identity, state_dict, lower.processes)
        state = saved.load()
        if state is not None:
            lower.load_state_dict(state["lower"])
            loss.load_state_dict(state["loss"])
        good = latest = lower.weights()
        kept_at = lower.done
        log = RunLog(logger, writes=lower.processes.rank == 0)
        try:
            with log.open():
                while lower.done < lower.total:
                    if lower.done % KEEP_EVERY == 0:
                        lower.check()
                        good, latest, kept_at = latest, lower.weights(), lower.done
                    value = lower.step(loss)
                    saved.save_if_due()
                    if lower.done % REPORT_EVERY == 0 or lower.done == lower.total:
                        _log_step(log, lower, value)
                        if progress:
                            progress(Progress("retrain", lower.done, lower.total))
        except TrainingDiverged as error:
            # Of the weights that the very step started from, nothing finite is known.
            error.partial = lower.result(latest if error.step > kept_at + 1 else good)
            raise
        except KeyboardInterrupt:
            raise Interrupted(lower.result()) from None
        lower.processes.broadcast_buffers(lower.module)
        saved.save()
    return lower.result()


def _log_step(log: RunLog, lower: LowerLevel, value: Tensor) -> None:
    if log.logger is not None:
        rate = lower.optimizer.param_groups[0]["lr"]
        values = {"retrain/training_loss": float(value), "retrain/lr": float(rate)}
        log.write(values, lower.done)


def _takes_groups(loss: nn.Module) -> bool:
    """Whether it is called as the library's losses are; torch's own are not."""
    taken = inspect.signature(loss.forward).parameters.values()
    return any(p.name == "groups" or p.kind is p.VAR_KEYWORD for p in taken)
