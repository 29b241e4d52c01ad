"""Retraining: one plain training run on all data with a fixed loss."""

from __future__ import annotations

from torch import nn

from autobalance.checks import TrainingDiverged
from autobalance.data.batches import ArrayData
from autobalance.losses.modules import ParametricCrossEntropy
from autobalance.settings import Recipe
from autobalance.training import (
    Interrupted,
    LowerLevel,
    ModelFactory,
    Progress,
    ProgressListener,
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
    """
    recipe = recipe or Recipe()
    fabric = make_fabric(device)
    with seeded(seed):
        lower = LowerLevel(model_factory, data.to(fabric.device), recipe, fabric, seed)
        loss = loss.to(fabric.device)
        good = lower.weights()
        try:
            while lower.done < lower.total:
                before = lower.weights() if lower.done % KEEP_EVERY == 0 else None
                lower.step(loss)
                good = before or good
                if progress and (lower.done % REPORT_EVERY == 0 or lower.done == lower.total):
                    progress(Progress("retrain", lower.done, lower.total))
        except TrainingDiverged as error:
            error.partial = lower.result(good)
            raise
        except KeyboardInterrupt:
            raise Interrupted(lower.result()) from None
    return lower.result()
