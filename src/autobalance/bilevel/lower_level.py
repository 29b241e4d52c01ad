"""The lower level: training a network's weights under one recipe, one step at a time."""

from __future__ import annotations

import copy
import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, Self, get_args, runtime_checkable

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.optim import Optimizer

from autobalance._validation import (
    InputError,
    TrainingDiverged,
    instance,
    one_of,
    path_of,
    seed_number,
    shown,
)
from autobalance.augment import augmented
from autobalance.bilevel.checkpoints import (
    fingerprint,
    load_checkpoint,
    random_state,
    save_checkpoint,
    set_random_state,
)
from autobalance.data import ArrayData, Batch, ResampledBatches, ShuffledBatches, StoredRows
from autobalance.functional import (
    ALONE,
    Processes,
    compute_logits,
    evaluation_mode,
    processes_started,
    warn_if_probabilities,
)
from autobalance.losses import check_width, last_linear
from autobalance.records import Precision, Recipe, SearchSettings

ModelFactory = Callable[[], nn.Module]
CHECKPOINT_SECONDS = 30.0
CHECK_EVERY = 20
"""On a GPU, training steps between two looks at whether their losses were finite."""

Phase = Literal["warm-up", "search", "choose", "retrain"]
Sampling = Literal["shuffled", "balanced"]


@dataclass(frozen=True)
class Progress:
    """Where a run is: the phase, steps done of the phase's total, and the last objective."""

    phase: Phase
    step: int
    total: int
    objective: float | None = None


ProgressListener = Callable[[Progress], None]


class TrainingLoss(Protocol):
    """What the lower level calls: fixed and tunable losses alike."""

    def __call__(
        self,
        input: Tensor,
        target: Tensor,
        /,
        *,
        groups: Tensor | None = None,
        sample_weight: Tensor | None = None,
    ) -> Tensor: ...


class FixedLoss(TrainingLoss, Protocol):
    """A loss module that `retrain` takes: `ParametricCrossEntropy` and the published losses."""

    def to_dict(self) -> dict[str, Any]: ...
    def to(self, device: torch.device, /) -> Self: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state_dict: Any, /) -> Any: ...


@runtime_checkable
class ScheduledLoss(Protocol):
    """A loss that changes as training goes on; told before each step how many of all are done."""

    def reached(self, done: int, total: int) -> None: ...


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during a run. `partial` is what was good before it, as for `TrainingDiverged`."""

    def __init__(self, partial: Any) -> None:
        super().__init__("interrupted")
        self.partial = partial


def check_interval(device: torch.device) -> int:
    """Training steps between two looks at losses: each makes a GPU idle, and costs a CPU nothing."""
    return 1 if device.type == "cpu" else CHECK_EVERY


def make_fabric(device: str = "auto", precision: Any = "32-true") -> Fabric:
    """Fabric on one device: "auto", "cpu", "cuda", "cuda:1", "mps".

    In a process that `torchrun` (or `fabric run`) started, all of its processes train together, by
    DDP, each on a device of this kind.

    Raises
    ------
    InputError
        If the device is not here, or one is given by its index to several processes of a machine.
    """
    kind, colon, index = instance("device", device, str).partition(":")
    if (colon and not index.isdigit()) or len(device) > 20:
        raise InputError(f"device must be auto, cpu, cuda, cuda:1 or mps; got {shown(device)}.")
    devices: Any = [int(index)] if index.isdigit() else 1
    world = processes_started()
    local = int(os.environ.get("LOCAL_WORLD_SIZE", world)) if world > 1 else 1
    if index and local > 1:
        raise InputError(
            f'Each of the {local} processes on this machine takes a device of its own; got "{device}" for '
            f'all. Give device "{kind}", and say which they may take by CUDA_VISIBLE_DEVICES.'
        )
    try:
        if world == 1:
            return Fabric(accelerator=kind, devices=devices, precision=precision)
        fabric = Fabric(
            accelerator=kind,
            strategy="ddp",
            devices=devices if index else local,
            num_nodes=world // local,
            precision=precision,
        )
        fabric.launch()
        return fabric
    except (ValueError, RuntimeError, ImportError) as error:
        raise InputError(
            f"The device {device!r} cannot be used here. Give auto, cpu, or a device that "
            "it has (cuda, cuda:1, mps)."
        ) from error


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the global random state and give it back as it was.

    A run on the CPU starts nothing on a GPU: before CUDA's first use its generators have drawn nothing,
    and are where the seed of the CPU's puts them.
    """
    seed_number(seed)
    started, before = torch.cuda.is_initialized(), torch.initial_seed()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count()) if started else []):
        torch.manual_seed(seed)
        try:
            yield
        finally:
            if not started:
                torch.cuda.manual_seed_all(before)


def make_optimizer(
    model: nn.Module, recipe: Recipe, undecayed: nn.Parameter | None = None
) -> Optimizer:
    """The recipe's optimiser of all trainable weights; weight decay leaves `undecayed` alone."""
    weights: list[Any] = [p for p in model.parameters() if p.requires_grad and p is not undecayed]
    if undecayed is not None and undecayed.requires_grad:
        weights = [{"params": weights}, {"params": [undecayed], "weight_decay": 0.0}]
    if not weights:
        raise InputError("The network has no trainable parameter.")
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(
            weights,
            lr=recipe.lr,
            momentum=recipe.momentum,
            nesterov=recipe.momentum > 0,
            weight_decay=recipe.weight_decay,
        )
    return torch.optim.AdamW(weights, lr=recipe.lr, weight_decay=recipe.weight_decay)


class Checkpoint:
    """Where a run keeps its state, and when.

    Parameters
    ----------
    path : path or None
        The file; None keeps nothing.
    identity : callable
        Returns what makes it this run and no other; called where there is a path.
    state : callable
        Returns the run's state, beside the global random state, which is kept with it.
    processes : Processes
        Those that train together: the first one writes and reads, for all of them. Where the others'
        disks are elsewhere they need no file.
    """

    def __init__(
        self,
        path: str | Path | None,
        identity: Callable[[], dict[str, Any]],
        state: Callable[[], dict[str, Any]],
        processes: Processes = ALONE,
    ) -> None:
        self.processes = processes
        self.path = processes.run_on_rank_zero(lambda: None if path is None else _writable(path))
        self.identity = identity() if self.path else {}
        self.state = state
        self._last = time.monotonic()

    def load(self) -> dict[str, Any] | None:
        """The state of an earlier run, its random state restored; None where there is none.

        Raises
        ------
        InputError
            If the file is no checkpoint, or not of this run in each of the processes.
        """
        if self.path is None:
            return None
        identities = self.processes.all_gather_objects(self.identity)
        saved = self.processes.run_on_rank_zero(lambda: self._read(identities))
        if saved is None:
            return None
        set_random_state(saved["random"])
        rank = self.processes.rank
        if rank > 0:  # the state is the first process's, whose draws are not for all
            torch.manual_seed(int(torch.randint(2**62, ())) + rank)
        return saved["state"]

    def _read(self, identities: list[dict[str, Any]]) -> dict[str, Any] | None:
        """What the file holds, which must be of each of these runs; None where there is no file."""
        if self.path is None or not self.path.exists():
            return None
        distinct = [run for i, run in enumerate(identities) if run not in identities[:i]]
        saved, *_ = [load_checkpoint(self.path, run) for run in distinct]  # each is checked
        return saved

    def save_if_due(self) -> None:
        if (
            self.path is not None
            and self.processes.rank == 0
            and time.monotonic() - self._last >= CHECKPOINT_SECONDS
        ):
            self.save()

    def save(self) -> None:
        if self.path is not None and self.processes.rank == 0:
            tree = {"state": self.state(), "random": random_state()}
            save_checkpoint(self.path, tree, self.identity)
            self._last = time.monotonic()


def _writable(path: str | Path) -> Path:
    """A checkpoint's path. What cannot be written is said now, and not when there is work to lose."""
    path = path_of("checkpoint", path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"The checkpoint {path} cannot be written: {error}.") from None
    if path.is_dir():
        raise InputError(f"The checkpoint {path} is a folder; give the name of a file.")
    return path


def check_options(
    recipe: object = None,
    settings: object = None,
    seed: int = 0,
    progress: object = None,
    precision: str = "32-true",
) -> None:
    """Refuse what no run can be started with."""
    one_of("precision", precision, get_args(Precision))
    if recipe is not None:
        instance("recipe", recipe, Recipe, "Build one: Recipe(epochs=60).")
    if settings is not None:
        instance("settings", settings, SearchSettings, "Build one: SearchSettings(folds=3).")
    seed_number(seed)
    if progress is not None and not callable(progress):
        raise InputError(
            f"progress must be a function that takes a Progress; got {type(progress).__name__}."
        )


def check_data(data: object, name: str = "data") -> None:
    """Refuse what is not an `ArrayData`."""
    if not isinstance(data, ArrayData):
        raise InputError(
            f"{name} must be an ArrayData; got {type(data).__name__}. "
            "Build one: ArrayData.of(inputs, target)."
        )


def describe(module: nn.Module, data: ArrayData) -> dict[str, Any]:
    """The parts of a run's identity that come from the network and the data."""
    shapes = {name: list(value.shape) for name, value in module.state_dict().items()}
    return {
        "network": shapes,
        "data": fingerprint(data.inputs, data.target, data.groups, data.sample_weight),
        "torch": torch.__version__,
    }


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
        if isinstance(model_factory, nn.Module) or not callable(model_factory):
            raise InputError(
                "The model factory must be a function that returns a new network, such as "
                f"lambda: Network(); got {type(model_factory).__name__}. Each run trains one of its own."
            )
        module = model_factory()
        if not isinstance(module, nn.Module):
            raise InputError(
                f"The model factory must return a torch.nn.Module; got {type(module).__name__}."
            )
        shifted = None
        if recipe.absorb > 0 and additive is not None:
            shifted = absorb(module, recipe.absorb * additive, data.counts())
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
        self._indices: deque[Tensor] = deque(maxlen=remembered)
        generator = torch.Generator().manual_seed(seed)
        if one_of("sampling", sampling, ("shuffled", "balanced")) == "balanced":
            self._stream = ResampledBatches(data.cells(), recipe.batch_size, generator)
        else:
            place = data.inputs.device if isinstance(data.inputs, Tensor) else "cpu"
            self._stream = ShuffledBatches(len(data), recipe.batch_size, generator, place)
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
        index = next(self._stream)
        batch = self._batch(index)
        with torch.no_grad():
            inputs = augmented(self.augment, batch)
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
        sizes = self.processes.sizes(len(index))
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
        self._indices.append(index)
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

    def _batch(self, index: Tensor) -> Batch:
        return self.data.batch(self.processes.share(index))

    def state_dict(self) -> dict[str, Any]:
        """What continues the training elsewhere, beside the global random state; checked first."""
        self.check()
        return {
            "done": self.done,
            "module": self.weights(),
            "optimizer": self.optimizer.state_dict(),
            "stream": self._stream.state_dict(),
            "recent": list(self._indices),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self.done, self._unchecked = state["done"], []
        self.module.load_state_dict(state["module"])
        self.optimizer.load_state_dict(state["optimizer"])
        self._stream.load_state_dict(state["stream"])
        self._indices.extend(state["recent"])
        self.recent.extend(self._batch(index) for index in self._indices)

    def weights(self) -> dict[str, Tensor]:
        """A copy of the network's present weights and buffers."""
        return {name: value.detach().clone() for name, value in self.module.state_dict().items()}

    def result(self, weights: dict[str, Tensor] | None = None) -> nn.Module:
        """A copy of the network, at its present weights or at these, in evaluation mode, on the CPU."""
        module = copy.deepcopy(self.module)
        if weights is not None:
            module.load_state_dict(weights)
        return module.cpu().eval()


@torch.no_grad()
def absorb(module: nn.Module, additive: Tensor, counts: np.ndarray) -> nn.Parameter | None:
    """Take l off the bias of the last linear layer, where that has one output per class.

    Returns that bias, or None where there is none such.

    Parameters
    ----------
    module : nn.Module
        A new network; its last `torch.nn.Linear`, in order of registration, gives the logits.
    additive : Tensor
        l, shape ``(k,)``, or ``(g, k)``, of which the mean over the examples is taken.
    counts : ndarray
        Training examples, shape ``(g, k)`` for l of that shape; a further row of l, for unknown
        groups, is a mean of the others already.
    """
    try:
        bias = getattr(last_linear(module)[1], "bias", None)
    except InputError:  # there is no linear layer
        return None
    if not isinstance(bias, nn.Parameter) or len(bias) != additive.shape[-1]:
        return None
    if additive.ndim == 2 and counts.ndim == 1:
        return None  # the loss is going to ask for groups
    if additive.ndim == 2:
        groups = torch.as_tensor(counts.sum(axis=-1) / counts.sum(), dtype=additive.dtype)
        additive = groups.to(additive.device) @ additive[: len(counts)]
    bias.sub_((additive - additive.mean()).to(bias))
    return bias


@torch.no_grad()
def predict_logits(model: nn.Module, inputs: Tensor | StoredRows, batch_size: int = 1024) -> Tensor:
    """Raw logits in evaluation mode, shape ``(n, k)``, on the CPU; the mode comes back."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    with evaluation_mode(model):
        return torch.cat([model(part.to(device)).cpu() for part in inputs.split(batch_size)])


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
    check_width(logits, num_classes)
