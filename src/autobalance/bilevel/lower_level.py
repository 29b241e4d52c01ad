"""The lower level: a network trained by one recipe, one step at a time; in a search one for each fold."""

from __future__ import annotations

import copy
import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from autobalance._validation import InputError, TrainingDiverged, one_of
from autobalance.augment import augment_batch
from autobalance.bilevel.execution import check_augmentable, check_interval
from autobalance.bilevel.held_out import Splits, calibration_stride, images_of, table_shape
from autobalance.bilevel.initialisation import init_bias_offset, make_network, make_optimizer
from autobalance.bilevel.prediction import check_logits, decide, iterate_logits
from autobalance.bilevel.search_spec import SearchSpec
from autobalance.bilevel.types import ModelFactory, Sampling, ScheduledLoss, TrainingLoss
from autobalance.bilevel.upper_level import StochasticUpperLevel
from autobalance.data import (
    ArrayData,
    BalancedBatches,
    Batch,
    BatchSource,
    ResampledBatches,
    ShuffledBatches,
)
from autobalance.functional import Processes, compute_logits, warn_if_probabilities
from autobalance.hypergrad import Hypergradient
from autobalance.losses import ParametricCrossEntropy
from autobalance.records import Recipe
from autobalance.spaces import LossSnapshot


@dataclass(frozen=True)
class TrainingOptions:
    """How a network is trained, beside the data and the device.

    `seed` is that of the examples' order. `sampling` draws every example as often, or every class (and
    group). `remembered` is the number of the last batches that `LowerLevel.recent` keeps.
    """

    recipe: Recipe
    seed: int = 0
    sampling: Sampling = "shuffled"
    remembered: int = 1


class LowerLevel:
    """A network, its optimiser and its stream of batches.

    Parameters
    ----------
    model_factory : callable
        Returns a new network; called once, so seed the global random state before.
    data : ArrayData
        Training data, on the device.
    options : TrainingOptions
        How to train.
    fabric : Fabric
        Device and precision.
    additive : Tensor, optional
        The loss's l at the start, shape ``(k,)`` or ``(g, k)``, for recipes that `absorb` it.
    augment : nn.Module, optional
        What the network trains on: ``augment(inputs, target, groups)`` in place of a batch's inputs.

    Attributes
    ----------
    recent : deque of Batch
        The last batches trained on, before augmentation, the latest at the end.
    """

    def __init__(
        self,
        model_factory: ModelFactory,
        data: ArrayData,
        options: TrainingOptions,
        fabric: Fabric,
        *,
        additive: Tensor | None = None,
        augment: nn.Module | None = None,
    ) -> None:
        recipe = options.recipe
        module = make_network(model_factory)
        shifted = None
        # Of several labels l is their log odds, at which predictions best begin.
        if recipe.absorb > 0 and additive is not None and not data.has_labels:
            shifted = init_bias_offset(module, recipe.absorb * additive, data.masses())
        check_augmentable(data, augment)
        self.module, self.data, self.augment = module, data, augment
        self.recipe, self.fabric = recipe, fabric
        self.total, self.done = recipe.steps(len(data)), 0
        # Decay would take from the bias what it absorbed.
        optimizer = make_optimizer(module, recipe, undecayed=shifted)
        self.network, self.optimizer = fabric.setup(module, optimizer)
        self.processes = Processes.of(self.network)
        if min(recipe.batch_size, len(data)) < self.processes.size:
            raise InputError(
                f"Each of {self.processes.size} processes needs an example of every batch; a batch "
                f"has {min(recipe.batch_size, len(data))}. Start fewer, or raise batch_size."
            )
        self.recent: deque[Batch] = deque(maxlen=options.remembered)
        self._drawn: deque[tuple[int, Tensor]] = deque(maxlen=options.remembered)
        self.batches = self._build_stream(options)
        self._weights = [p for p in module.parameters() if p.requires_grad]
        self._check_every = check_interval(fabric.device)
        self._unchecked: list[tuple[int, Tensor, Tensor]] = []  # step, loss and gradient's norm
        self.network.train()

    def _build_stream(self, options: TrainingOptions) -> BatchSource:
        data, size, seed = self.data, options.recipe.batch_size, options.seed
        generator = torch.Generator().manual_seed(seed)
        if one_of("sampling", options.sampling, ("shuffled", "balanced")) == "balanced":
            stream = ResampledBatches(data.strata(), size, generator, data.sample_weight)
            data = replace(data, sample_weight=None)  # They have decided what is drawn.
        else:
            place = data.inputs.device if isinstance(data.inputs, Tensor) else "cpu"
            stream = ShuffledBatches(len(data), size, generator, place)
        share, rank = self.processes.share, self.processes.rank
        return BatchSource(data, stream, seed=seed, training=True, share=share, rank=rank)

    def step(self, loss: TrainingLoss) -> Tensor:
        """One optimiser step; returns the loss before it, detached.

        Raises
        ------
        TrainingDiverged
            If the loss or its gradient is not finite. The weights are those before the step, which
            need not be good ones. On a GPU it comes up to `CHECK_EVERY` steps later, by `check`.
        """
        rate = self.recipe.lr * self.recipe.lr_factor(self.done, self.total)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        if isinstance(loss, ScheduledLoss):
            loss.reached(self.done, self.total)
        batch = next(self.batches)
        with torch.no_grad():
            inputs = augment_batch(self.augment, batch)
        try:
            logits = compute_logits(self.network, inputs)
        except RuntimeError as error:
            refused = _other_dtype(inputs, self._weights, error)
            if refused is None:
                raise
            raise refused from None
        if self.done == 0:
            target = batch.target[:, 0] if self.data.has_labels else batch.target
            check_logits(logits, target.shape, self.data.num_classes)
            warn_if_probabilities(logits)
        sizes = self.processes.sizes(len(self.batches.latest[1]))
        whole = self.processes.labels(batch, sizes)
        logits = self.processes.all_gather_rows(logits, sizes)
        value = loss(logits, whole.target, groups=whole.groups, sample_weight=whole.sample_weight)
        self.optimizer.zero_grad(set_to_none=True)
        self.fabric.backward(value * self.processes.size)  # DDP takes the mean over processes
        norm = nn.utils.clip_grad_norm_(self._weights, self.recipe.max_grad_norm)
        step = self.done + 1
        self._unchecked.append((step, value.detach(), norm))
        if step % self._check_every == 0 or step == self.total:
            self.check()
        self.optimizer.step()
        self.done += 1
        self.recent.append(batch)
        self._drawn.append(self.batches.latest)
        return value.detach()

    def check(self) -> None:
        """Wait for all steps so far, and look at those not looked at yet.

        Raises
        ------
        TrainingDiverged
            If one's loss or gradient was not finite; `step` is the first such.
        """
        steps, self._unchecked = self._unchecked, []
        if not steps:
            return
        numbers, values, norms = zip(*steps, strict=True)
        read = torch.stack([*values, *norms]).tolist()
        for step, value, norm in zip(numbers, read[: len(steps)], read[len(steps) :], strict=True):
            if not (math.isfinite(value) and math.isfinite(norm)):
                raise TrainingDiverged(
                    f"The training loss became non-finite at step {step} of {self.total} "
                    f"(loss {value:g}, gradient norm {norm:g}) with {self.recipe}. "
                    "Lower lr or max_grad_norm, or scale the inputs.",
                    step=step,
                )

    def restart(self, total: int) -> None:
        """Go on from the present weights for so many steps more, under the schedule anew."""
        self.check()
        self.done, self.total = 0, total

    def train_on(
        self, data: ArrayData, options: TrainingOptions, augment: nn.Module | None
    ) -> None:
        """Draw the batches of the steps that are left from other data, on the device."""
        self.data, self.augment = data, augment
        self.recent.clear()
        self._drawn.clear()
        self.batches = self._build_stream(options)

    def state_dict(self) -> dict[str, Any]:
        """What continues the training elsewhere, beside the global random state; checked first."""
        self.check()
        return {
            "done": self.done,
            "module": self.weights(),
            "optimizer": self.optimizer.state_dict(),
            "stream": self.batches.state_dict(),
            "recent": list(self._drawn),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self.done, self._unchecked = state["done"], []
        self.module.load_state_dict(state["module"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.batches.load_state_dict(state["stream"])
        self._drawn.extend((number, index) for number, index in state["recent"])
        self.recent.extend(self.batches.reread(*draw) for draw in self._drawn)

    def weights(self) -> dict[str, Tensor]:
        """A copy of the network's present weights and buffers."""
        return {name: value.detach().clone() for name, value in self.module.state_dict().items()}

    def result(self, weights: dict[str, Tensor] | None = None) -> nn.Module:
        """A copy of the network, at its present weights or at these, in evaluation mode, on the CPU."""
        module = copy.deepcopy(self.module)
        if weights is not None:
            module.load_state_dict(weights)
        return module.cpu().eval()


MOST_STRETCH = 4
"""How many times as far apart upper steps may come late in a search that shares its run with the training."""


@dataclass
class Fold:
    """One split: a network in training, what is held out, and the batches of it for upper steps."""

    lower: LowerLevel
    validation: ArrayData
    draws: BatchSource


class NetworkFolds:
    """The lower level of a network's search: one network a fold, trained by the recipe.

    Parameters
    ----------
    spec, splits, fabric, augment
        What to train on which data, and how.
    upper : StochasticUpperLevel
        Whose tuner computes the hypergradients.
    start : ParametricCrossEntropy
        The loss at the start, for recipes that absorb it into the last bias.
    """

    def __init__(
        self,
        spec: SearchSpec,
        splits: Splits,
        fabric: Fabric,
        upper: StochasticUpperLevel,
        start: ParametricCrossEntropy,
        augment: nn.Module | None,
    ) -> None:
        self.spec, self.splits, self.upper = spec, splits, upper
        self.folds = [
            _build_fold(spec, train, held, fabric, spec.seed + i, start, augment)
            for i, (train, held) in enumerate(splits)
        ]
        self.processes = self.folds[0].lower.processes
        self.processes.seed_per_rank(spec.seed)
        if spec.release is not None:  # The one network's training goes on, with all of the data.
            self.folds[0].lower.total = spec.recipe.steps(len(spec.data))
        self.steps_per_run = self.folds[0].lower.total
        self.search_steps = max(1, round((spec.release or 1.0) * self.steps_per_run))
        self.cells = [held.pixels().cells() for _, held in splits]
        self.sample_weights = [held.pixels().cell_sample_weight() for _, held in splits]
        self.images = images_of(splits)
        self.shape = table_shape(splits[0][1])
        self._losses: list[Tensor] = []

    def step(self, loss: LossSnapshot) -> None:
        """One step of every fold's optimiser."""
        self._losses = [fold.lower.step(loss) for fold in self.folds]

    def interval(self, done: int) -> int:
        """Same as in `LowerProblem`; in one run with the training it grows as the learning rate falls.

        There it doubles whenever the rate has halved, up to `MOST_STRETCH` times, and the upper rate is as
        much larger, so that the loss goes as far by fewer upper steps.
        """
        every = self.spec.settings.every
        if self.spec.release is None:
            return every
        share = self.spec.recipe.lr_factor(max(0, done - 1), self.search_steps)
        stretch = 1
        while stretch < MOST_STRETCH and 2 * stretch * share <= 1.0:
            stretch *= 2
        return every * stretch

    def training_loss(self) -> float:
        """The last batches' loss before the step, mean over folds."""
        return float(torch.stack(self._losses).mean())

    def hypergradients(self) -> list[Hypergradient]:
        """Each fold's, on its last training batches and newly drawn validation examples."""
        for fold in self.folds:  # no upper step on a network that has diverged
            fold.lower.check()
        results = []
        for i, fold in enumerate(self.folds):
            lower = fold.lower
            held = next(fold.draws)
            with lower.fabric.autocast():
                hypergradient = self.upper.tuner.hypergradient(
                    lower.network, [*lower.recent], held, optimizer=lower.optimizer, replica=i
                )
            results.append(hypergradient)
        # Weights that hardly move no longer answer the loss, so that its rate falls with theirs; it is 0
        # at the end of the search also where training goes on.
        done = max(0, self.folds[0].lower.done - 1)
        rate = self.spec.settings.lr * self.spec.recipe.lr_factor(done, self.search_steps)
        rate *= self.interval(done + 1) / self.spec.settings.every
        for group in self.upper.tuner.upper_optimizer.param_groups:
            group["lr"] = rate
        return results

    def predict_held_out(self) -> list[Tensor]:
        """For each fold, what its network decides of the examples held out, now, see `decide`."""
        pairs = zip(self.folds, self._held_out_logits(), strict=True)
        return [
            torch.cat([decide(rows, fold.validation) for rows in parts]) for fold, parts in pairs
        ]

    def predict_for_calibration(self) -> tuple[list[Tensor], list[Tensor]]:
        """As `predict_held_out`, and with it the logits that `held_out.calibrate` takes."""
        stride = calibration_stride(self.splits)
        predictions, logits = [], []
        for fold, parts in zip(self.folds, self._held_out_logits(), strict=True):
            decisions, some, first = [], [], 0
            for rows in parts:
                decisions.append(decide(rows, fold.validation))
                some.append(rows[-first % stride :: stride].clone())
                first += len(rows)
            predictions.append(torch.cat(decisions))
            logits.append(torch.cat(some))
        return predictions, logits

    def networks(self) -> Iterator[nn.Module]:
        """For each fold, the network in training."""
        return (fold.lower.module for fold in self.folds)

    def _held_out_logits(self) -> Iterator[Iterator[Tensor]]:
        """Fold by fold, and of dense data part by part, for with many classes they are large."""
        for fold in self.folds:
            fold.lower.processes.broadcast_buffers(fold.lower.module)
            yield iterate_logits(fold.lower.module, fold.validation)

    def restart(self, total: int) -> None:
        """Go on from the present weights for so many steps, under the learning rate's schedule anew."""
        self.search_steps = total
        for fold in self.folds:
            fold.lower.restart(total)

    def state_dict(self) -> list[dict[str, Any]]:
        """Networks, optimisers and streams of batches, fold by fold."""
        return [
            {"lower": fold.lower.state_dict(), "draws": fold.draws.state_dict()}
            for fold in self.folds
        ]

    def load_state_dict(self, state: list[dict[str, Any]]) -> None:
        """Inverse of `state_dict`."""
        for fold, saved in zip(self.folds, state, strict=True):
            fold.lower.load_state_dict(saved["lower"])
            fold.draws.load_state_dict(saved["draws"])


def _build_fold(
    spec: SearchSpec,
    train: ArrayData,
    held: ArrayData,
    fabric: Fabric,
    seed: int,
    start: ParametricCrossEntropy,
    augment: nn.Module | None,
) -> Fold:
    # None, like everything that is no factory, is refused by `make_network` with its remedy.
    model_factory = cast(ModelFactory, spec.model_factory)
    lower = LowerLevel(
        model_factory,
        train.to(fabric.device),
        TrainingOptions(spec.recipe, seed, remembered=spec.settings.training_batches),
        fabric,
        additive=start.additive,
        augment=augment,
    )
    generator = torch.Generator().manual_seed(seed)
    size, weight = spec.settings.validation_batch_size, held.sample_weight
    draws = BalancedBatches(held.strata(), size, generator, weight)
    held, processes = held.to(fabric.device), lower.processes
    # Weights that have decided what is drawn are not applied again.
    drawn = held if draws.everything is not None else replace(held, sample_weight=None)
    source = BatchSource(drawn, draws, seed=seed, share=processes.share, rank=processes.rank)
    return Fold(lower, held, source)


def _other_dtype(inputs: Any, weights: Sequence[Tensor], error: RuntimeError) -> InputError | None:
    """What torch's error means where inputs and weights differ in dtype; None where they do not."""
    expected = weights[0].dtype
    if not isinstance(inputs, Tensor) or inputs.dtype == expected or "type" not in str(error):
        return None
    return InputError(
        f"The network cannot take inputs of {inputs.dtype}, its weights are of {expected}: "
        f"{str(error).splitlines()[0]}. Convert them, inputs.float(), or let the network do it first; "
        "autobalance.networks.FromBytes does for images of bytes."
    )
