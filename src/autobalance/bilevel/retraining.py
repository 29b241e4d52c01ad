"""Retraining: one plain training run on all data with a fixed loss."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn
from torch.utils.data import Dataset

from autobalance._validation import InputError, TrainingDiverged, shown
from autobalance.augment import as_batch_transform, describe_augmentation
from autobalance.bilevel.checkpoints import Checkpoint, describe, fingerprint
from autobalance.bilevel.execution import (
    check_options,
    make_fabric,
    seed_random_state,
    warn_of_min_steps,
)
from autobalance.bilevel.loggers import LoggerAdapter, MetricLogger
from autobalance.bilevel.lower_level import LowerLevel, TrainingOptions
from autobalance.bilevel.result import SearchResult
from autobalance.bilevel.types import (
    FixedLoss,
    Interrupted,
    ModelFactory,
    Progress,
    ProgressListener,
    Sampling,
)
from autobalance.data import ArrayData, as_data, reading
from autobalance.records import Precision, Recipe

REPORT_EVERY = 20
KEEP_EVERY = 20


def retrain(
    model_factory: ModelFactory,
    data: ArrayData | Dataset[Any],
    loss: SearchResult | FixedLoss | nn.Module | Callable[[Tensor, Tensor], Tensor],
    *,
    recipe: Recipe | None = None,
    sampling: Sampling = "shuffled",
    augment: nn.Module | Callable[..., Any] | None = None,
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
    data : ArrayData or Dataset
        All labelled data, training and validation together. A Dataset must have its targets; build
        a `DatasetData` where it needs options.
    loss : SearchResult, ParametricCrossEntropy, another loss, module or callable
        What `search` returned, whose loss is taken with the arm and the augmentation that belong to it;
        or a loss alone, such as ``search(...).loss`` or torch's `CrossEntropyLoss` as a baseline:
        anything that is called with ``(logits, target)`` and returns their mean. It is copied; one with a
        state of its own starts from the state that it has. Only the library's own losses take the
        data's groups and sample weights; others leave groups out, and are refused with sample weights.
    recipe : Recipe, optional
        How to train; the same as in the search.
    sampling : {"shuffled", "balanced"}
        Every example as often, or every class (and group) as often: class-balanced sampling, to
        compare with. Losses designed or adjusted for the class priors expect "shuffled".
    augment : nn.Module or callable, optional
        How to augment the training batches, for example ``search(...).augment`` or another
        `autobalance.augment.Augmentation`: called with ``(inputs, target, groups)``, or with a
        batch's inputs alone if it takes one argument, as torchvision's transforms do. It is copied.
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
        If the data, the loss or the network cannot be used, or the checkpoint is not one of this run.
    ExampleError
        If a Dataset raises for an example, or a worker that reads it dies.

    Warns
    -----
    UserWarning
        If the recipe's `min_steps` overrides `epochs`.
    """
    check_options(recipe, None, seed, progress, precision)
    recipe = recipe or Recipe()
    data = as_data(data)
    if isinstance(loss, SearchResult):
        result, loss = loss, loss.loss
        augment = result.augment if augment is None else augment
        if result.arm is not None:
            model_factory, recipe = result.arm.network(model_factory), result.arm.recipe(recipe)
    own_loss = as_fixed_loss(loss, data)
    augment = None if augment is None else as_batch_transform(copy.deepcopy(augment))
    warn_of_min_steps(recipe, len(data))
    if data.unknown and getattr(own_loss, "num_groups", None) == data.num_groups:
        raise InputError(
            f"The group of {data.unknown} examples is not known (-1), for whom this loss has no row. "
            "Search with such data, or build the loss from WithUnknownGroup(space)."
        )
    fabric = make_fabric(device, precision)
    with seed_random_state(seed), reading(data):
        lower = LowerLevel(
            model_factory,
            data.to(fabric.device),
            TrainingOptions(recipe, seed, sampling),
            fabric,
            additive=getattr(own_loss, "additive", None),
            augment=None if augment is None else augment.to(fabric.device),
        )
        lower.processes.seed_per_rank(seed)
        own_loss = copy.deepcopy(own_loss).to(fabric.device)
        identity = {
            "kind": "retrain",
            "seed": seed,
            "recipe": recipe.to_dict(),
            "sampling": sampling,
            "precision": precision,
        }
        saved = _open_checkpoint(checkpoint, lower, own_loss, data, identity)
        log = LoggerAdapter(logger, writes=lower.processes.rank == 0)
        train_to_the_end(lower, own_loss, saved, log, progress)
        lower.processes.broadcast_buffers(lower.module)
        saved.save()
    return lower.result()


def _open_checkpoint(
    path: str | Path | None,
    lower: LowerLevel,
    loss: FixedLoss,
    data: ArrayData,
    identity: dict[str, Any],
) -> Checkpoint:
    """The run's checkpoint; what an earlier run left there is where this one goes on."""

    def whole_identity() -> dict[str, Any]:
        parts = {"loss": loss.to_dict(), "augment": describe_augmentation(lower.augment)}
        return {**identity, **parts, **describe(lower.module, data)}

    def state_dict() -> dict[str, Any]:
        return {"lower": lower.state_dict(), "loss": dict(loss.state_dict())}

    saved = Checkpoint(path, whole_identity, state_dict, lower.processes)
    state = saved.load()
    if state is not None:
        lower.load_state_dict(state["lower"])
        loss.load_state_dict(state["loss"])
    return saved


def train_to_the_end(
    lower: LowerLevel,
    loss: FixedLoss,
    saved: Checkpoint,
    log: LoggerAdapter,
    progress: ProgressListener | None,
) -> None:
    """Take all steps that are left; what stops them on the way carries the network so far."""
    good = latest = lower.weights()
    kept_at, rows = lower.done, min(lower.recipe.batch_size, len(lower.data))
    try:
        with log.open():
            while lower.done < lower.total:
                if lower.done % KEEP_EVERY == 0:
                    lower.check()
                    good, latest, kept_at = latest, lower.weights(), lower.done
                value = lower.step(loss)
                saved.save_if_due()
                if lower.done % REPORT_EVERY == 0 or lower.done == lower.total:
                    if log.logger is not None:
                        rate = lower.optimizer.param_groups[0]["lr"]
                        values = {"retrain/training_loss": float(value), "retrain/lr": float(rate)}
                        log.write(values, lower.done)
                    if progress:
                        progress(Progress("retrain", lower.done, lower.total, rows=rows))
    except TrainingDiverged as error:
        # Of the weights that the very step started from, nothing finite is known.
        error.partial = lower.result(latest if error.step > kept_at + 1 else good)
        raise
    except KeyboardInterrupt:
        raise Interrupted(lower.result()) from None


class PlainLoss(nn.Module):
    """A loss of ``(logits, target)``, such as torch's, called as the library's losses are."""

    def __init__(self, loss: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.loss = loss

    def forward(
        self,
        input: Tensor,
        target: Tensor,
        *,
        groups: Tensor | None = None,
        sample_weight: Tensor | None = None,
    ) -> Tensor:
        """The mean loss of the batch; `groups` are left out."""
        # Of several labels torch's losses take numbers of the logits' dtype.
        value = self.loss(input, target.to(input.dtype) if target.ndim == 2 else target)
        if not isinstance(value, Tensor) or value.ndim > 0:
            came = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise InputError(
                f"The loss must return one number, the mean over the batch; got {came}. "
                'Give it reduction="mean", or take the mean.'
            )
        return value

    def to_dict(self) -> dict[str, Any]:
        """What tells this loss from others: its name, settings and state."""
        public = {n: v for n, v in getattr(self.loss, "__dict__", {}).items() if n[:1] != "_"}
        settings = {n: v for n, v in public.items() if isinstance(v, (int, float, str))}
        kind = self.loss if hasattr(self.loss, "__qualname__") else type(self.loss)
        name = f"{kind.__module__}.{kind.__qualname__}"
        return {
            "loss": name,
            "settings": settings,
            "state": fingerprint(*self.state_dict().values()),
        }


def as_fixed_loss(loss: Callable[..., Any], data: ArrayData) -> FixedLoss:
    """A loss of the library as it is, and any other that takes ``(logits, target)`` as a `PlainLoss`.

    Raises
    ------
    InputError
        If it cannot be called, or takes no weights where the data has some.
    """
    if not callable(loss) or isinstance(loss, type):
        raise InputError(
            "loss must be one of autobalance.losses, such as search(...).loss or "
            "ParametricCrossEntropy.logit_adjusted(counts), or a callable of (logits, target), such as "
            f"torch.nn.CrossEntropyLoss(); got {shown(loss)}."
        )
    if isinstance(loss, nn.Module) and _takes_groups(loss):
        return cast(FixedLoss, loss)
    if data.sample_weight is not None:
        raise InputError(
            f"The data has sample weights, but {type(loss).__name__} takes none. Use a loss of "
            "autobalance.losses, such as ParametricCrossEntropy.cross_entropy(), or leave them out."
        )
    if data.has_labels and bool((data.target < 0).any()):
        raise InputError(
            f"Some entries of y are not labelled, which {type(loss).__name__} cannot leave out. Use a loss "
            "of autobalance.losses, such as ParametricBinaryCrossEntropy(pos_weight) or AsymmetricLoss()."
        )
    return PlainLoss(loss)


def _takes_groups(loss: nn.Module) -> bool:
    """Whether it is called as the library's losses are; torch's own are not."""
    parameters = inspect.signature(loss.forward).parameters.values()
    return any(p.name == "groups" or p.kind is p.VAR_KEYWORD for p in parameters)
