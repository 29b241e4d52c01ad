"""What the cost benchmarks share: a network in training, and CPU times of steps beside it.

Processor time of this process, not wall time, so that other work on the machine counts little.
Every upper step is timed beside a training step and their ratio taken before anything is averaged,
so that slow changes of the machine's speed cancel.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from autobalance.bilevel.execution import make_fabric
from autobalance.bilevel.loss_tuner import LossTuner
from autobalance.bilevel.lower_level import LowerLevel, TrainingOptions
from autobalance.data.array_data import ArrayData
from autobalance.data.batches import Batch
from autobalance.hypergrad.solvers import Solver
from autobalance.records.settings import Recipe
from autobalance.spaces.hierarchical_space import HierarchicalSpace
from autobalance.spaces.tunable_loss import TunableCrossEntropy
from autobalance_bench.datasets.longtail import exponential_counts


def options_of(doc: str | None) -> argparse.ArgumentParser:
    """The options that all benchmarks have."""
    parser = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer repetitions and cases")
    parser.add_argument("--json", type=Path, help="also write every number here")
    parser.add_argument("--threads", type=int, default=1)
    return parser


def kept_options(doc: str | None, out: str) -> argparse.ArgumentParser:
    """The options of benchmarks that keep finished runs, `out` being the help of where."""
    parser = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder of the datasets' files")
    parser.add_argument("--out", type=Path, required=True, help=out)
    parser.add_argument("--summary", action="store_true", help="run nothing, only read --out")
    parser.add_argument("--json", type=Path, help="also write every number here")
    return parser


def run_unless_summary(
    parser: argparse.ArgumentParser,
    options: argparse.Namespace,
    run_all: Callable[[argparse.Namespace], None],
) -> None:
    """Run what is not finished yet; with --summary nothing."""
    prepare(1)
    if not options.summary:
        if options.data is None:
            parser.error("--data is needed, the folder of the datasets' files")
        run_all(options)


def prepare(threads: int) -> None:
    torch.set_num_threads(threads)
    # torch's own, on the first use of forward-mode differentiation
    warnings.filterwarnings("ignore", "`torch.jit.script` is", DeprecationWarning)


def mean_and_error(values: Iterable[float]) -> tuple[float, float]:
    """The mean of values of seeds and its standard error, which is not a number with one of them."""
    array = np.asarray(list(values), dtype=float)
    error = array.std(ddof=1) / len(array) ** 0.5 if len(array) > 1 else np.nan
    return float(array.mean()), float(error)


def read_runs(path: Path, *keys: str) -> dict[tuple[Any, ...], dict[str, Any]]:
    """The lines of a file of finished runs, by these of their entries; none where there is no file."""
    lines = path.read_text("utf-8").splitlines() if path.exists() else []
    return {tuple(run[key] for key in keys): run for run in map(json.loads, lines)}


def write_json(path: Path | None, numbers: Mapping[str, Any]) -> None:
    if path is not None:
        path.write_text(json.dumps(numbers, indent=2) + "\n")


def cpu_seconds(action: Callable[[], Any]) -> float:
    start = time.process_time()
    action()
    return time.process_time() - start


def peak_bytes(action: Callable[[], Any]) -> int:
    """The most that torch's allocator held at once on the CPU above what it held before."""
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        action()
    results: Any = profile.profiler
    events = [e for e in results.kineto_results.events() if e.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


class _Operations(TorchDispatchMode):
    """Counts what starts a kernel on a GPU: all operations but views, allocations and reads of one number."""

    def __init__(self) -> None:
        super().__init__()
        self.number = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        allocates = name.startswith(("empty", "new_empty", "_record_function"))
        if not (func.is_view or allocates or name in _NO_KERNEL):
            self.number += 1
        return func(*args, **(kwargs or {}))


_NO_KERNEL = {
    "_local_scalar_dense", "_make_dual", "_unsafe_view", "alias", "detach", "is_same_size", "lift_fresh",
    "_has_same_storage_numel", "promote_types", "reshape", "as_strided_",
}  # fmt: skip


def operations(action: Callable[[], Any]) -> int:
    """How many operations that start kernels on a GPU an action consists of; a fused one counts as one."""
    with _Operations() as counted:
        action()
    return counted.number


def long_tailed_noise(shape: tuple[int, ...], classes: int, examples: int, seed: int) -> ArrayData:
    """Noise around a mean of each class's own; class 0 is ten times as frequent as the last."""
    generator = torch.Generator().manual_seed(seed)
    share = torch.from_numpy(exponential_counts(classes, 1000, 10)).double()
    target = torch.multinomial(share, examples, replacement=True, generator=generator)
    means = torch.randn(classes, *shape, generator=generator)
    noise = torch.randn(examples, *shape, generator=generator)
    return ArrayData.of(noise + 0.5 * means[target], target, num_classes=classes)


class Training:
    """A network in training on made-up data, and a batch for the upper level.

    Parameters
    ----------
    factory : callable
        Returns the network.
    shape, classes : tuple of int, int
        Of one example's input; number of classes.
    batch_size : int
        Of training and validation batches alike.
    """

    def __init__(
        self,
        factory: Callable[[], nn.Module],
        shape: tuple[int, ...],
        classes: int,
        batch_size: int = 128,
    ) -> None:
        torch.manual_seed(0)
        data = long_tailed_noise(shape, classes, 9 * batch_size, seed=0)
        held = torch.arange(batch_size)
        self.held: Batch = data.batch(held)
        self.data = data.subset(torch.arange(batch_size, len(data)))
        self.recipe = Recipe(epochs=10_000, batch_size=batch_size)
        self.lower = LowerLevel(
            factory, self.data, TrainingOptions(self.recipe), make_fabric("cpu")
        )
        self.loss = self.new_loss()

    def new_loss(self) -> TunableCrossEntropy:
        # Classes that the draw lacks count as one, for their priors.
        return TunableCrossEntropy(HierarchicalSpace(self.data.counts().clip(min=1)))

    def train(self, steps: int = 1) -> None:
        for _ in range(steps):
            self.lower.step(self.loss)

    def upper_step(self, solver: Solver) -> Callable[[], None]:
        """An action that makes one upper step, of a loss of its own: training stays the same."""
        tuner = LossTuner(self.new_loss(), optimizer=self.lower.optimizer, solver=solver)
        return lambda: _checked(
            tuner.step(self.lower.module, self.lower.recent[-1], self.held).skipped
        )


def _checked(skipped: bool) -> None:
    assert not skipped, "a hypergradient was not finite"


@dataclass(frozen=True)
class Cost:
    """An action's CPU seconds, and as a multiple of the training steps beside it: medians."""

    seconds: float
    ratio: float
    training_seconds: float


@dataclass
class Timed:
    """An action timed beside training steps.

    Parameters
    ----------
    action : callable
        Makes one step.
    length : int
        Consecutive steps that make one measurement, their mean.
    rounds : int
        Measurements.
    warm_up : int
        Steps before the first.
    """

    action: Callable[[], Any]
    length: int = 1
    rounds: int = 3
    warm_up: int = 1


def length_of(solver: Solver) -> int:
    """Consecutive steps whose mean is the solver's cost: those between two line searches."""
    return getattr(solver, "line_search_every", 1)


class Trains(Protocol):
    """What can make a training step."""

    def train(self) -> None:
        """One step."""
        ...


def interleaved(training: Trains, cases: dict[str, Timed]) -> dict[str, Cost]:
    """Time the cases in turn, round after round, one training step before each step."""
    pairs: dict[str, list[tuple[float, float]]] = {name: [] for name in cases}
    for case in cases.values():
        for _ in range(case.warm_up):
            training.train()
            case.action()
    for turn in range(max(case.rounds for case in cases.values())):
        for name, case in cases.items():
            if turn >= case.rounds:
                continue
            own = plain = 0.0
            for _ in range(case.length):
                plain += cpu_seconds(training.train)
                own += cpu_seconds(case.action)
            pairs[name].append((own / case.length, plain / case.length))
    return {
        name: Cost(
            median(own for own, _ in measured),
            median(own / plain for own, plain in measured),
            median(plain for _, plain in measured),
        )
        for name, measured in pairs.items()
    }
