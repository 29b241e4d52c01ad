"""The lower level: training a network's weights under one recipe, one step at a time."""

from __future__ import annotations

import copy
import math
from collections import deque
from collections.abc import Sequence
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from autobalance._validation import InputError, TrainingDiverged, one_of
from autobalance.augment import augment_batch
from autobalance.bilevel.execution import check_interval
from autobalance.bilevel.initialisation import init_bias_offset, make_network, make_optimizer
from autobalance.bilevel.types import ModelFactory, Sampling, ScheduledLoss, TrainingLoss
from autobalance.data import ArrayData, Batch, BatchSource, ResampledBatches, ShuffledBatches
from autobalance.functional import Processes, compute_logits, warn_if_probabilities
from autobalance.records import Recipe


class LowerLevel:
    """A network, its optimiser and its stream of batches.

    Parameters
    ----------
    model_factory : callable
        Returns a new network; called once, so seed the global random state before.
    data : ArrayData
        Training data, on the device.
    recipe : Recipe
        How to train.
    fabric : Fabric
        Device and precision.
    seed : int
        Seeds the order of the examples.
    additive : Tensor, optional
        The loss's l at the start, shape ``(k,)`` or ``(g, k)``, for recipes that `absorb` it.
    sampling : {"shuffled", "balanced"}
        Every example as often, or every class (and group) as often.
    augment : nn.Module, optional
        What the network trains on: ``augment(inputs, target, groups)`` in place of a batch's inputs.
    remembered : int
        How many batches to keep in `recent`.

    Attributes
    ----------
    recent : deque of Batch
        The last batches trained on, before augmentation, the latest at the end.
    """

    def __init__(
        self,
        model_factory: ModelFactory,
        data: ArrayData,
        recipe: Recipe,
        fabric: Fabric,
        seed: int,
        *,
        additive: Tensor | None = None,
        sampling: Sampling = "shuffled",
        augment: nn.Module | None = None,
        remembered: int = 1,
    ) -> None:
        module = make_network(model_factory)
        shifted = None
        if recipe.absorb > 0 and additive is not None:
            shifted = init_bias_offset(module, recipe.absorb * additive, data.counts())
        self.data = data
        self.augment = augment
        self.recipe = recipe
        self.fabric = fabric
        self.total = recipe.steps(len(data))
        self.done = 0
        self.module = module
        # Decay would take from the bias what it absorbed.
        optimizer = make_optimizer(module, recipe, undecayed=shifted)
        self.network, self.optimizer = fabric.setup(module, optimizer)
        self.processes = Processes.of(self.network)
        if min(recipe.batch_size, len(data)) < self.processes.size:
            raise InputError(
                f"Each of {self.processes.size} processes needs an example of every batch; a batch "
                f"has {min(recipe.batch_size, len(data))}. Start fewer, or raise batch_size."
            )
        self.recent: deque[Batch] = deque(maxlen=remembered)
        self._drawn: deque[tuple[int, Tensor]] = deque(maxlen=remembered)
        generator = torch.Generator().manual_seed(seed)
        if one_of("sampling", sampling, ("shuffled", "balanced")) == "balanced":
            stream = ResampledBatches(data.cells(), recipe.batch_size, generator)
        else:
            place = data.inputs.device if isinstance(data.inputs, Tensor) else "cpu"
            stream = ShuffledBatches(len(data), recipe.batch_size, generator, place)
        self.batches = BatchSource(
            data,
            stream,
            seed=seed,
            training=True,
            share=self.processes.share,
            rank=self.processes.rank,
        )
        self._weights = [p for p in module.parameters() if p.requires_grad]
        self._check_every = check_interval(fabric.device)
        self._unchecked: list[tuple[int, Tensor, Tensor]] = []  # step, loss and gradient's norm
        self.network.train()

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
            _check_logits(logits, batch, self.data.num_classes)
            warn_if_probabilities(logits)
        sizes = self.processes.sizes(len(self.batches.latest[1]))
        whole, logits = (
            self.processes.labels(batch, sizes),
            self.processes.all_gather_rows(logits, sizes),
        )
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

    def lr_factor(self) -> float:
        """Share of the peak learning rate that the last step used."""
        return self.recipe.lr_factor(max(0, self.done - 1), self.total)

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


def _check_logits(logits: Any, batch: Batch, num_classes: int) -> None:
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(batch.target):
        came = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise InputError(
            f"The network must return logits of shape ({len(batch.target)}, {num_classes}) for a batch "
            f"of {len(batch.target)}; got {came}."
        )
    if logits.shape[1] != num_classes:
        raise InputError(
            f"The network returns {logits.shape[1]} logits for each example, but the data has "
            f"{num_classes} classes. Both must be the same: change the network's last layer, or give the "
            "data the number of classes, num_classes=, or other labels."
        )
