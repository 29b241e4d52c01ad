"""The driver of every search, Algorithm 1 of the paper, over any lower and upper level."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from autobalance._validation import TrainingDiverged
from autobalance.augment import AugmentationPolicy, freeze_augmentation
from autobalance.bilevel.arms import Arm
from autobalance.bilevel.candidate_selection import Outcomes, choose
from autobalance.bilevel.checkpoints import Checkpoint
from autobalance.bilevel.loggers import LoggerAdapter
from autobalance.bilevel.loss_tuner import UpperStep, free_parameters
from autobalance.bilevel.result import SearchResult
from autobalance.bilevel.search_spec import SearchSpec
from autobalance.bilevel.test_monitor import is_look_due
from autobalance.bilevel.types import Interrupted, Progress, ProgressListener
from autobalance.losses import LossParameters, ParametricCrossEntropy
from autobalance.records import PathPoint, RacedArm, UpperRecord
from autobalance.spaces import DesignSpace, LossSnapshot, TunableCrossEntropy, WithUnknownGroup

MAX_PATH_NUMBERS = 100_000


class LowerProblem(Protocol):
    """The lower level on every fold: minimise the training loss over the weights.

    So many lower steps as `steps_per_run` cost as much as one training run. `cells` is for each fold
    ``group * k + class`` of its held-out examples, `sample_weights` their weights or None, `shape` the
    numbers of groups and of classes. Of dense data the examples are pixels, and `images` has the image of
    each, over all folds.
    """

    steps_per_run: int
    cells: list[Tensor]
    sample_weights: list[Tensor | None]
    images: Tensor | None
    shape: tuple[int, int]

    def step(self, loss: LossSnapshot) -> None:
        """Bring the weights of every fold nearer to the minimum of this loss."""

    def interval(self, done: int) -> int:
        """Lower steps from one upper step to the next, after so many lower steps."""
        ...

    def training_loss(self) -> float:
        """The last training loss, mean over folds."""
        ...

    def hypergradients(self) -> Sequence[Any]:
        """For each fold, the derivative of its held-out objective by the loss's free parameters."""
        ...

    def predict_held_out(self) -> list[Tensor]:
        """For each fold, the classes that its present weights predict of the examples held out."""
        ...


class UpperLevel(Protocol):
    """The upper level: move the loss's free parameters along hypergradients."""

    def propose(self) -> LossSnapshot:
        """The loss that the lower level trains with until the next upper step."""
        ...

    def update(self, results: Sequence[Any]) -> UpperStep:
        """Take in the hypergradients of all folds at the loss proposed last."""
        ...

    def check(self, done: int, total: int) -> None:
        """Raise `TrainingDiverged` if the last upper steps call for an end."""

    def has_converged(self, history: Sequence[UpperRecord]) -> bool:
        """Whether further upper steps would gain nothing."""
        ...

    def final_position(self) -> list[Tensor]:
        """The free parameters of the loss that is handed over."""
        ...


class SearchRecorder:
    """Keeps `history`, `path` and `seconds` of a `SearchResult`, also across a checkpoint."""

    def __init__(self) -> None:
        self.history: list[UpperRecord] = []
        self.path: list[PathPoint] = []
        self._earlier = {"wall": 0.0, "cpu": 0.0}
        self._started = (time.perf_counter(), time.process_time())

    def append_path_point(self, step: int, loss: LossParameters) -> None:
        """Add the loss after so many lower steps; over `MAX_PATH_NUMBERS` drop every other point."""
        lists = {n: None if p is None else p.tolist() for n, p in loss._asdict().items()}
        self.path.append(PathPoint(step, **lists))
        numbers = len(self.path) * sum(p.numel() for p in loss if p is not None)
        if numbers > MAX_PATH_NUMBERS:
            self.path = self.path[::2]

    def seconds(self) -> dict[str, float]:
        """Time spent so far, "wall" and "cpu", with that before a checkpoint."""
        wall, cpu = self._started
        return {
            "wall": self._earlier["wall"] + time.perf_counter() - wall,
            "cpu": self._earlier["cpu"] + time.process_time() - cpu,
        }

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps of the records."""
        return {
            "history": [asdict(record) for record in self.history],
            "path": [asdict(point) for point in self.path],
            "seconds": self.seconds(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self.history = [UpperRecord(**record) for record in state["history"]]
        self.path = [PathPoint(**point) for point in state["path"]]
        self._earlier = state["seconds"]


P = TypeVar("P", bound=LowerProblem)
U = TypeVar("U", bound=UpperLevel)


class BilevelSearch(Generic[P, U]):
    """Algorithm 1 over any lower and upper level, with the records and checkpoints of a run.

    Parameters
    ----------
    spec, loss, problem, upper
        What to search for, the loss to design at its start, and the two levels.
    total : int
        Lower steps in all.
    settings : dict
        What the result's `settings` say of the run.
    augment : nn.Module, optional
        Augmentation of the training batches, learned with the loss where it can be.

    Attributes
    ----------
    warmup : int
        Lower steps before the first upper step may come.
    upper_steps : int
        Upper steps of the whole `run`, which finds it as it begins.
    rows_per_step : int
        Rows that a lower step trains on, for progress; 0 where it is no step of training.
    monitor : callable or None
        The objective on test data now, asked for now and then.
    checkpoint : Checkpoint
        Where the run's state is kept; nowhere at first.
    arm, raced
        The arm that the spec is for, and the race that it won; see `SearchResult`.
    """

    def __init__(
        self,
        spec: SearchSpec,
        loss: TunableCrossEntropy,
        problem: P,
        upper: U,
        *,
        total: int,
        settings: dict[str, Any],
        augment: nn.Module | None = None,
    ) -> None:
        self.spec, self.loss, self.problem, self.upper = spec, loss, problem, upper
        self.objective, self.settings, self.augment = spec.objective, settings, augment
        self.total, self.warmup, self.done, self.converged = total, 0, 0, False
        self.upper_steps = 0
        self.rows_per_step = 0
        self.start = loss.frozen().cpu()
        self.outcomes: Outcomes = {}
        self.monitor: Callable[[], float] | None = None
        self.checkpoint = Checkpoint(None, dict, dict)
        self.arm: Arm | None = None
        self.raced: list[RacedArm] = []
        self.recorder = SearchRecorder()
        self.recorder.append_path_point(0, loss.space().detach())

    def run(
        self, progress: ProgressListener | None = None, log: LoggerAdapter | None = None
    ) -> None:
        """Algorithm 1 up to, and without, retraining; then the final choice, where there is one."""
        log = log or LoggerAdapter(None)
        self.upper_steps = sum(map(self._is_due, range(self.total + 1)))
        loss = self.upper.propose()
        while self.done < self.total and not self.converged:
            self.problem.step(loss)
            self.done += 1
            upper = None
            if self._is_due(self.done):
                upper = self.upper.update(self.problem.hypergradients())
                self._record(upper, log)
                self.converged = self.upper.has_converged(self.recorder.history)
                loss = self.upper.propose()
            self.checkpoint.save_if_due()
            if progress and (upper or self.done == self.total or self.done % 20 == 0):
                phase = "warm-up" if self.done <= self.warmup else "search"
                value = upper.hard_objective if upper else None
                progress(Progress(phase, self.done, self.total, value, self.rows_per_step))
        if self._should_compare_candidates():
            self._train_candidates(progress)

    def complete(self, progress: ProgressListener | None, log: LoggerAdapter) -> SearchResult:
        """`run`, and its result; what is good by then goes with an error that ends it.

        Raises
        ------
        TrainingDiverged, Interrupted
            With the result so far as their `partial`.
        """
        try:
            self.run(progress, log)
        except TrainingDiverged as error:
            error.partial = self.result("diverged")
            raise
        except KeyboardInterrupt:
            raise Interrupted(self.result("interrupted")) from None
        self.checkpoint.save()
        result = self.result("finished")
        log.write({f"choose/{c.name}": c.objective for c in result.candidates}, self.done)
        return result

    def _is_due(self, done: int) -> bool:
        """Whether an upper step comes after so many lower steps."""
        since_warmup = done - self.warmup
        return since_warmup > 0 and since_warmup % self.problem.interval(done) == 0

    def _record(self, upper: UpperStep, log: LoggerAdapter) -> None:
        test_objective = None
        if self.monitor and is_look_due(len(self.recorder.history) + 1, self.upper_steps):
            test_objective = self.monitor()
        record = UpperRecord(
            step=self.done,
            training_loss=self.problem.training_loss(),
            test_objective=test_objective,
            **asdict(upper),
        )
        loss = self.loss.space().detach()
        self.recorder.history.append(record)
        self.recorder.append_path_point(self.done, loss)
        self.upper.check(self.done, self.total)
        log.log_upper_step(record, loss, self.done)

    def result(self, status: str) -> SearchResult:
        """The loss chosen, with everything that led to it."""
        space, augment = self._designed()
        losses = self._candidates(space)
        cells, shape = self.problem.cells, self.problem.shape
        candidates, choice = choose(
            losses, self.outcomes, cells, shape, self.objective, self.spec.seed,
            self.problem.sample_weights, self.problem.images,
        )  # fmt: skip
        folds = len(self.problem.cells)
        kind = type(space.inner if isinstance(space, WithUnknownGroup) else space)
        trained = [name for name in self.outcomes if folds > 1 or name != "designed"]
        candidate_runs = sum(len(self.outcomes[name]) for name in trained)
        return SearchResult(
            loss=losses[choice],
            start=self.start,
            augment=self._candidate_augments(augment)[choice],
            history=self.recorder.history,
            path=self.recorder.path,
            design={
                "space": kind.__name__,
                "learns": list(space.learns),
                "priors": {name: list(prior) for name, prior in space.priors().items()},
                **space.values(),
            },
            settings=self.settings, seed=self.spec.seed, seconds=self.recorder.seconds(),
            status=status, candidates=candidates, choice=choice,
            training_runs=folds * self.done / self.problem.steps_per_run + candidate_runs
            + sum(record.steps for record in self.raced) / self.problem.steps_per_run,
            arm=self.arm, race=self.raced,
        )  # fmt: skip

    def _designed(self) -> tuple[DesignSpace, nn.Module | None]:
        """Copies of the space and the augmentation at the position that is handed over."""
        space, augment = copy.deepcopy(self.loss.space), copy.deepcopy(self.augment)
        with torch.no_grad():
            free = free_parameters(space, augment)
            for p, value in zip(free, self.upper.final_position(), strict=True):
                p.copy_(value)
        return space, freeze_augmentation(augment)

    def _should_compare_candidates(self) -> bool:
        """With folds; with one only whether what an augmentation learned is kept."""
        learns = isinstance(self.augment, AugmentationPolicy)
        return self.spec.settings.choose and (len(self.problem.cells) > 1 or learns)

    def _train_candidates(self, progress: ProgressListener | None) -> None:
        space, augment = self._designed()
        if len(self.problem.cells) == 1:  # the network searched with stands for the designed loss
            self.outcomes.setdefault("designed", self.problem.predict_held_out())
        self.train_candidates(self._candidates(space), self._candidate_augments(augment), progress)

    def train_candidates(
        self,
        losses: Mapping[str, ParametricCrossEntropy],
        augments: Mapping[str, nn.Module | None],
        progress: ProgressListener | None,
    ) -> None:
        """Fill `outcomes` with what weights trained with each loss predict of the held-out examples."""
        raise NotImplementedError

    def _candidates(self, designed: DesignSpace) -> dict[str, ParametricCrossEntropy]:
        """The losses of the final choice, by name."""
        losses = {"designed": type(self.loss)(designed).frozen().cpu(), "start": self.start}
        if len(self.problem.cells) > 1:
            losses["cross_entropy"] = type(self.start).cross_entropy()
        return losses

    def _candidate_augments(self, designed: nn.Module | None) -> dict[str, nn.Module | None]:
        """How each candidate's training batches are augmented, by the candidate's name.

        What is learned has to stand against none at all.
        """
        learned = isinstance(self.augment, AugmentationPolicy)
        other = None if learned else designed
        return {"designed": designed, "start": other, "cross_entropy": other}
