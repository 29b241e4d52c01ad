"""One cell of a comparison: one method on one dataset with one seed, trained and evaluated."""

from __future__ import annotations

import hashlib
import logging
import re
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
import torch

from autobalance import InputError
from autobalance.bilevel import ModelFactory, make_fabric, predict_logits, used_versions
from autobalance.functional import first_process, processes_started
from autobalance.losses import COSINE_SCALE, with_normalized_head
from autobalance.objectives import Objective, WeightedError, as_objective
from autobalance.records import Recipe, SearchSettings, classification_report, to_json
from autobalance_bench.comparison.configuration import Configuration, Head, resolved
from autobalance_bench.comparison.dataset_definitions import DatasetDefinition
from autobalance_bench.comparison.datasets import Problem, load_problem
from autobalance_bench.comparison.methods import (
    METHODS,
    ExecutionOptions,
    Method,
    Task,
    augmentation_of,
)
from autobalance_bench.comparison.store import Key

# Of a definition, what does not change a result.
_TELLS_NOTHING = ("family", "half", "source", "store")
# What earlier releases did not have counts only where it is used, so that their results stay.
_LATER = {
    "options": {},
    "as_bytes": False,
    "backbone": None,
    "allowed_broken": 0,
    "validation": "held_out",
}


@dataclass(frozen=True, kw_only=True)
class Cell:
    """What to run; it can be sent to another process or machine."""

    dataset: str | DatasetDefinition
    method: str
    objective: str | None
    seed: int
    objectives: tuple[str, ...]
    recipe: Recipe
    search: SearchSettings
    tuning_runs: int
    data: str | None
    device: str
    augment: Mapping[str, Any] | None = None
    head: Head = "linear"
    execution: ExecutionOptions = field(default_factory=ExecutionOptions)
    checkpoints: str | None = None

    @property
    def key(self) -> Key:
        """Names of dataset, method and objective, and the seed."""
        name = self.dataset if isinstance(self.dataset, str) else self.dataset.name
        return name, self.method, self.objective, self.seed

    @property
    def state(self) -> Path | None:
        """The folder of its training runs' checkpoints; whoever keeps its record then removes it."""
        return None if self.checkpoints is None else Path(self.checkpoints) / self.identity()

    def identity(self) -> str:
        """A digest of everything that determines the result, but for the data's own bytes.

        An unknown dataset or method is part of it as its name.
        """
        parts: dict[str, Any] = {"method": self.method, "seed": self.seed}
        try:
            definition = asdict(resolved(self.dataset))
            for key in _TELLS_NOTHING:
                definition.pop(key)
            for key, default in _LATER.items():
                if definition[key] == default:
                    definition.pop(key)
            parts["dataset"] = definition
        except InputError:
            parts["dataset"] = self.key[0]
        if self.augment is not None:
            parts["augment"] = dict(self.augment)
        if self.head != "linear":
            parts["head"] = self.head
        if self.execution != ExecutionOptions():
            # The name in the digest is that of the kept results.
            parts["computing"] = asdict(self.execution)
        parts["recipe"] = asdict(self.recipe)
        parts["objectives"] = sorted(self.objectives)
        method = METHODS.get(self.method)
        if method is None or method.kind != "ours":
            parts["recipe"].pop("absorb")  # published losses start as published
        if method is not None:
            if method.uses_objective:
                parts["objective"] = self.objective
            if method.uses_settings:
                parts["search"] = asdict(self.search)
            if method.kind == "tuned":
                parts["tuning"] = [self.tuning_runs, self.search.validation_fraction]
            if method.uses_split:
                parts["split"] = self.search.validation_fraction
        return hashlib.sha256(to_json(parts).encode()).hexdigest()[:16]


def cells_of(
    configuration: Configuration, data: str | None, device: str, checkpoints: str | None = None
) -> list[Cell]:
    """All cells, dataset by dataset and seed by seed.

    Parameters
    ----------
    configuration : Configuration
        What to compare.
    data : str or None
        The data folder. Without one, definitions of the user's own lead from the configuration's.
    device : str
        As for `search`.
    checkpoints : str, optional
        A folder for the state of cells that run.
    """
    execution = ExecutionOptions(
        precision=configuration.precision,
        channels_last=configuration.channels_last,
        compiled=configuration.compiled,
    )
    cells = []
    for dataset in configuration.datasets:
        packaged = isinstance(dataset, str)
        folder = data if data is not None or packaged else configuration.folder
        for seed in configuration.seeds:
            for name in configuration.methods:
                method = METHODS.get(name)
                aims: tuple[str | None, ...] = (None,)
                if method is not None and method.uses_objective:
                    aims = configuration.objectives
                cells += [
                    Cell(
                        dataset=dataset,
                        method=name,
                        objective=aim,
                        seed=seed,
                        objectives=configuration.objectives,
                        recipe=configuration.recipe,
                        search=configuration.search,
                        tuning_runs=configuration.tuning_runs,
                        data=folder,
                        device=device,
                        augment=configuration.augment,
                        head=configuration.head,
                        execution=execution,
                        checkpoints=checkpoints,
                    )
                    for aim in aims
                ]
    return cells


def run_cell(cell: Cell, threads: int = 1) -> dict[str, Any]:
    """Train and evaluate; the record for the store, of a failed cell with its reason.

    Parameters
    ----------
    cell : Cell
        What to run.
    threads : int
        Of torch, while it runs.
    """
    record, name = _described(cell), cell.method
    # Fabric tells of each network that it is to be in bfloat16.
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    with _threads(threads):
        try:
            method = _method(name)
            record |= {"title": method.title, "kind": method.kind}
            definition = resolved(cell.dataset)
            record |= {"family": definition.family, "half": definition.half}
            record |= _trained_and_evaluated(cell, method, definition)
        except Exception as error:  # whatever it is, the other cells go on
            if processes_started() > 1 and not isinstance(error, InputError):
                raise  # or the other processes would wait for this one
            reason = " ".join(str(error).split()) or type(error).__name__
            if not isinstance(error, InputError):
                reason = f"{type(error).__name__}: {reason}"
            record |= {"status": "failed", "reason": reason}
    return record


def failed_record(cell: Cell, reason: str) -> dict[str, Any]:
    """The record of a cell that could not say itself why it failed."""
    return _described(cell) | {"status": "failed", "reason": reason}


def _described(cell: Cell) -> dict[str, Any]:
    dataset, name, objective, seed = cell.key
    return {
        "dataset": dataset,
        "family": dataset,
        "half": None,
        "method": name,
        "objective": objective,
        "seed": seed,
        "identity": cell.identity(),
        "title": name,
        "kind": None,
    }


def _trained_and_evaluated(
    cell: Cell, method: Method, definition: DatasetDefinition
) -> dict[str, Any]:
    state = cell.state
    with _said(definition.name):
        problem = load_problem(definition, cell.seed, cell.data, cell.device)
    _check_sizes(cell, definition, problem)
    counts = np.atleast_2d(problem.train.counts()).sum(axis=0)
    goals = {name: objective_of(name, counts) for name in cell.objectives}
    task = Task(
        network=_with_head(problem.network, cell.head),
        data=problem.train,
        objective=goals[cell.objective or cell.objectives[0]],
        recipe=replace(cell.recipe, **problem.recipe),
        settings=cell.search,
        seed=cell.seed,
        device=cell.device,
        tuning_runs=cell.tuning_runs,
        augment=augmentation_of(cell.augment),
        validation=problem.validation,
        execution=cell.execution,
        checkpoints=state,
    )
    resumed = state is not None and state.is_dir()
    wall, cpu = time.perf_counter(), time.process_time()
    trained = method.run(task)
    seconds: dict[str, Any] = {
        "wall": time.perf_counter() - wall,
        "cpu": time.process_time() - cpu,
    }
    if resumed:
        seconds["resumed"] = True  # so these are of the last part only
    model = trained.model.to(make_fabric(cell.device).device)
    wrong = predict_logits(model, problem.train.inputs).argmax(dim=1)
    return {
        "status": "finished",
        **_evaluated(model, problem, goals),
        "training_error": float((wrong != problem.train.target).double().mean()),
        "training_runs": trained.training_runs,
        "seconds": seconds,
        "details": trained.details,
        "versions": used_versions(),
        "sizes": {"train": len(problem.train), "test": len(problem.test)},
        "class_counts": counts.tolist(),
    }


@contextmanager
def _said(name: str) -> Iterator[None]:
    """Warnings as lines of standard error that name the dataset."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        yield
    if first_process():
        meant = [w for w in caught if issubclass(w.category, UserWarning)]
        for text in dict.fromkeys(str(w.message) for w in meant):
            print(f"autobalance: {name}: {text}", file=sys.stderr)


def _check_sizes(cell: Cell, definition: DatasetDefinition, problem: Problem) -> None:
    """Refuse crops of another size than the built-in network for images is made for."""
    shape = tuple(problem.train.inputs.shape[2:])
    if definition.network == "cnn" and cell.augment and cell.augment["name"] == "resized_crop":
        size = cell.augment["size"]
        if shape != (size, size):
            raise InputError(
                f"augment crops to {size} x {size}, but the network cnn is made for the images' own "
                f"{shape[0]} x {shape[1]}. Make both alike (size, image_size), or take resnet32."
            )


def _with_head(network: ModelFactory, head: Head) -> ModelFactory:
    if head == "linear":
        return network
    return lambda: with_normalized_head(network(), COSINE_SCALE)


def _evaluated(model: Any, problem: Problem, goals: dict[str, Objective]) -> dict[str, Any]:
    test = problem.test
    logits = predict_logits(model, test.inputs)
    groups = None if test.groups is None else test.groups.numpy()
    report = classification_report(
        test.target.numpy(),
        logits.argmax(dim=1).numpy(),
        test.num_classes,
        groups,
        problem.group_names,
    )
    values = {
        name: goal.hard(logits, test.target, groups=test.groups)
        for name, goal in goals.items()
        if goal.over == "class" or groups is not None
    }
    return {"report": report, "objectives": values}


def objective_of(name: str, counts: np.ndarray) -> Objective:
    """An objective by its name, see `as_objective`, or "weighted_error(p)".

    "weighted_error(p)" weighs class k's error by n_k^p, n_k its number of training examples: p = 0
    is the balanced error, p = 1 the plain one on data of the same class frequencies.
    """
    power = re.fullmatch(r"weighted_error\((-?\d+(?:\.\d+)?)\)", name)
    if power is None:
        return as_objective(name)
    weights = np.asarray(counts, dtype=float) ** float(power[1])
    return WeightedError(weights=tuple((weights / weights.sum()).tolist()))


def _method(name: str) -> Method:
    if name not in METHODS:
        close = get_close_matches(name, METHODS, n=3)
        meant = f"Did you mean {' or '.join(close)}?" if close else f"Known: {', '.join(METHODS)}."
        raise InputError(f"There is no method {name!r}. {meant}")
    return METHODS[name]


@contextmanager
def _threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
