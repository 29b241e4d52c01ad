"""Retraining: one plain training run on all data with a fixed loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from autobalance.checks import TrainingDiverged
from autobalance.data.batches import ArrayData
from autobalance.losses.modules import ParametricCrossEntropy
from autobalance.settings import Recipe
from autobalance.training import (
    Checkpoint,
    Interrupted,
    LowerLevel,
    ModelFactory,
    Progress,
    ProgressListener,
    check_data,
    describe,
    make_fabric,
    seeded,
)

REPORT_EVERY = 20
KEEP_EVERY = 20


def retrain(
    model_factory: ModelFactory,
    data: ArrayData,
    loss: ParametricCrossEntropy,
    *,
    recipe: Recipe | None = None,
    seed: int = 0,
    device: str = "auto",
    checkpoint: str | Path | None = None,
    progress: ProgressListener | None = None,
) -> nn.Module:
    """Train a new network on all of `data` with the given loss, by default the one searched for.

    Parameters
    ----------
    model_factory : callable
        Returns a new, untrained `torch.nn.Module`.
    data : ArrayData
        All labelled data, training and validation together.
    loss : ParametricCrossEntropy
        For example ``search(...).loss``; any published loss as well.
    recipe : Recipe, optional
        How to train; the same as in the search.
    seed : int
        Seeds initial weights, the order of examples and dropout.
    device : str
        "auto", "cpu", "cuda", "cuda:1" or "mps".
    checkpoint : path, optional
        As for `search`.
    progress : callable, optional
        Called with a `Progress` now and then.

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
    recipe = recipe or Recipe()
    check_data(data)
    fabric = make_fabric(device)
    with seeded(seed):
        lower = LowerLevel(model_factory, data.to(fabric.device), recipe, fabric, seed)

        def identity() -> dict[str, Any]:
            return {
                "kind": "retrain",
                "seed": seed,
                "recipe": recipe.to_dict(),
                "loss": loss.to_dict(),
                **describe(lower.module, data),
            }

        saved = Checkpoint(checkpoint, identity, lower.state_dict)
        state = saved.load()
        if state is not None:
            lower.load_state_dict(state)
        loss = loss.to(fabric.device)
        good = lower.weights()
        try:
            while lower.done < lower.total:
                before = lower.weights() if lower.done % KEEP_EVERY == 0 else None
                lower.step(loss)
                good = before or good
                saved.save_if_due()
                if progress and (lower.done % REPORT_EVERY == 0 or lower.done == lower.total):
                    progress(Progress("retrain", lower.done, lower.total))
        except TrainingDiverged as error:
            error.partial = lower.result(good)
            raise
        except KeyboardInterrupt:
            raise Interrupted(lower.result()) from None
        saved.save()
    return lower.result()
