"""How long to train on a large table: until rows held out are predicted no better.

A network that sees many rows often enough learns them by heart. One training shows after how many steps the
cross-entropy of held-out rows, balanced over the cells of the objective, was lowest; what follows trains for
as long, under a schedule of that length. Where a network is trained as it is on a large table, that is better
than the whole recipe, and than the weights of that step, which no falling learning rate has settled
(`bench/early_stopping.py`). On small tables it is worse. Nothing does it unasked: a fit races other networks
than the one whose length was measured, and with a length from before the race it was worse on the large table
that was tried (docs/data.md).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F

from autobalance._validation import TrainingDiverged
from autobalance.bilevel.checkpoints import Checkpoint, describe
from autobalance.bilevel.execution import make_fabric, seed_random_state
from autobalance.bilevel.held_out import splits_of
from autobalance.bilevel.lower_level import LowerLevel, TrainingOptions
from autobalance.bilevel.network_search import build_network_search, make_spec
from autobalance.bilevel.prediction import predict_logits
from autobalance.bilevel.racing import criterion_weights, scale_logits, shortened
from autobalance.bilevel.search_spec import SearchSpec
from autobalance.bilevel.types import Interrupted, ModelFactory, Progress, ProgressListener
from autobalance.data import ArrayData, reading
from autobalance.losses import ParametricCrossEntropy
from autobalance.records import Recipe, phase_file
from autobalance.spaces import TunableCrossEntropy

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from autobalance.bilevel.network_search import SearchOptions

LOOKS, PATIENCE = 20, 4
"""How often held-out rows are looked at in a whole training, and how often without a new lowest value until
it ends."""
HELD_OUT = 10_000
"""Most held-out rows that are looked at, so that a look is as dear as a few training steps."""


def stop_early(
    model_factory: ModelFactory, data: ArrayData, **options: Unpack[SearchOptions]
) -> Recipe:
    """The recipe, of at most its length, under which held-out rows are predicted best.

    Parameters
    ----------
    model_factory, data
        As for `search`.
    **options
        As for `search`. Beside a `checkpoint` a file is kept with ``.length`` after its name.

    Raises
    ------
    InputError
        As for `search`.
    TrainingDiverged, Interrupted
        Their `partial` is the result of a search that has not begun.
    """
    spec, progress = make_spec(model_factory, data, **options), options.get("progress")
    with seed_random_state(spec.seed), reading(spec.data, spec.validation):
        try:
            share = _find_share(spec, progress)
        except (TrainingDiverged, KeyboardInterrupt) as stopped:
            diverged = isinstance(stopped, TrainingDiverged)
            search = build_network_search(replace(spec, checkpoint=None))
            partial = search.result("diverged" if diverged else "interrupted")
            if not diverged:
                raise Interrupted(partial) from None
            stopped.partial = partial
            raise
    return shortened(spec.recipe, share)


def _find_share(spec: SearchSpec, progress: ProgressListener | None) -> float:
    """Share of the recipe's steps after which the held-out value was lowest, in (0, 1]."""
    assert spec.model_factory is not None
    train, held = splits_of(spec.data, spec.validation, spec.settings, spec.seed)[0]
    held = held.subset(torch.arange(0, len(held), -(-len(held) // HELD_OUT)))
    fabric = make_fabric(spec.device, spec.precision)
    loss = TunableCrossEntropy(spec.build_space(train)).frozen()
    lower = LowerLevel(
        spec.model_factory,
        train.to(fabric.device),
        TrainingOptions(spec.recipe, spec.seed),
        fabric,
        additive=loss.additive,
    )
    lower.processes.seed_per_rank(spec.seed)
    found: dict[str, Any] = {}
    saved = _open_checkpoint(spec, lower, found)
    if "share" not in found:
        found["share"] = _train(lower, loss, _value_of(spec, held, loss), progress)
        saved.save()
    return found["share"]


def _value_of(
    spec: SearchSpec, held: ArrayData, loss: ParametricCrossEntropy
) -> Callable[[LowerLevel], float]:
    """What tells the cross-entropy of the held-out rows, in which each cell as a whole counts as much."""
    [weight], target = criterion_weights(spec, [held]), held.target.cpu()
    multiplicative = None if loss.multiplicative is None else loss.multiplicative.cpu()

    def value(lower: LowerLevel) -> float:
        lower.processes.broadcast_buffers(lower.module)
        logits = scale_logits(predict_logits(lower.module, held.inputs), multiplicative, held)
        return float(weight @ F.cross_entropy(logits.double(), target, reduction="none"))

    return value


def _train(
    lower: LowerLevel,
    loss: ParametricCrossEntropy,
    value: Callable[[LowerLevel], float],
    progress: ProgressListener | None,
) -> float:
    """Train until the value has not fallen for `PATIENCE` looks; the share of the steps to its lowest."""
    loss, every = loss.to(lower.fabric.device), -(-lower.total // LOOKS)
    rows = min(lower.recipe.batch_size, len(lower.data))
    lowest, best = float("inf"), 0
    while lower.done < lower.total:
        lower.step(loss)
        if progress and lower.done % every in (1, every // 2):
            progress(Progress("length", lower.done, lower.total, rows=rows))
        if lower.done % every and lower.done < lower.total:
            continue
        lower.check()
        now = value(lower)
        if now < lowest:
            lowest, best = now, lower.done
        elif lower.done - best >= PATIENCE * every:
            break
    if progress:
        progress(Progress("length", lower.total, lower.total, rows=rows))
    return best / lower.total if best else 1.0


def _open_checkpoint(spec: SearchSpec, lower: LowerLevel, found: dict[str, Any]) -> Checkpoint:
    """Where the share is kept; that of an earlier run is put into `found`."""
    path = None if spec.checkpoint is None else phase_file(spec.checkpoint, "length")

    def identity() -> dict[str, Any]:
        return {
            "kind": "length",
            "seed": spec.seed,
            "recipe": spec.recipe.to_dict(),
            "search": spec.settings.to_dict(),
            "objective": spec.objective.to_dict(),
            "precision": spec.precision,
            **describe(lower.module, spec.data),
        }

    checkpoint = Checkpoint(path, identity, lambda: found, lower.processes)
    found |= checkpoint.load() or {}
    return checkpoint
