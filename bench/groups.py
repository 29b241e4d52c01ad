"""Group-sensitive training: losses, fairlearn's mitigations and autobalance's frontier.

    .venv/bin/python bench/groups.py --data DIR --out DIR [--sets adult_sex,compas_race] [--splits 2]
    .venv/bin/python bench/groups.py --out DIR --summary --json FILE
    .venv/bin/python bench/groups.py --out DIR --data DIR --noise

Each set is split at random, 70 % for training and 30 % for testing, alike within each class and group;
split i is the same for all methods, and test rows take no part in fitting or choosing. Without --splits
there are 5, and 20 of COMPAS. Groups that have fewer than 50 examples of some class are merged into
"Other" (of Adult's races American Indian and other, of COMPAS's Asian and Native American). Adult and
Census are the files of training rows alone, Census drawn down to 40,000 rows for training and as many
for testing. The textures have a test set of their own with even groups, the same in all splits; a split
draws 2,000 training images.

Every finished point is a line of OUT/points.jsonl, so that an interrupted run goes on where it stopped.
--splits 2 takes about an hour on one core.
Where a method gives several points (mixes, bounds), its representative is chosen on held-out training
rows: the lowest DEO among those whose balanced error is at most 2 points above that of group-wise logit
adjustment there; "..._equal" is the same choice with 0.5 points. The network measured on test
rows is then trained on all training rows. Of the textures, whose test set has even groups and whose
training rows do not, the error on held-out rows is `group_balanced_error`, which counts groups alike: on the
test set the two are the same.

"autobalance" are decisions from p(class, group | x) under bounds on DEO (`cell_posterior`),
"autobalance_losses" a frontier of designed losses, "autobalance_worst_cell" the decisions with the lowest
worst cell.

"ceiling" is no method: the decisions whose prices are found on the test rows themselves, from the network
of "autobalance". Nothing that decides by this network's p(class, group | x) can do better there.

--noise draws, for every split there is, errors of a classifier whose true rates are the same in all
groups (group-wise logit adjustment's over the classes), and gives the DEO that such a one would measure
on these test rows: what small cells alone do.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from autobalance._validation import InputError
from autobalance.bilevel.held_out import splits_of
from autobalance.bilevel.network_search import search
from autobalance.bilevel.pareto_frontier import MIXES, Frontier, baselines, frontier
from autobalance.bilevel.prediction import predict_logits
from autobalance.data.array_data import ArrayData
from autobalance.posthoc.expected_errors import evaluate_model, evaluate_probabilities
from autobalance.posthoc.fair_decisions import (
    POINTS,
    CellDecision,
    CellPosterior,
    DecisionShares,
    FairDecision,
    cell_posterior,
)
from autobalance.records.error_table import ErrorTable
from autobalance.records.files import write_atomically
from autobalance.records.settings import Recipe, SearchSettings
from autobalance_bench.comparison.dataset_definitions import definition_of
from autobalance_bench.comparison.datasets import load_problem
from autobalance_bench.comparison.methods import METHODS as LOSSES, Task
from autobalance_bench.fairness.baselines import (
    METHODS as GROUP_LOSSES,
    exponentiated_gradient,
    threshold_optimizer,
)
from autobalance_bench.fairness.hypervolume import hypervolume
from measuring import prepare, write_json

REFERENCE = (50.0, 60.0)
BOUND = 0.1
EPSILONS = (0.005, 0.02, 0.1)
SMALLEST_CELL = 50
NEAR, EQUAL = 0.02, 0.005  # balanced error above that of group-wise logit adjustment
CEILING = "ceiling"
LINES = "points.jsonl"


# Data -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A set: its definition's name, what differs from it, how many splits there are, and the error that
    held-out rows are to measure."""

    definition: str
    changes: dict[str, Any]
    splits: int = 5
    images: bool = False
    main: str = "balanced_error"


_SPLIT = {"test_path": None, "test_fraction": 0.3}
SETS = {
    "adult_sex": Case("adult-sex", _SPLIT),
    "adult_race": Case("adult-race", _SPLIT),
    "census_sex": Case(
        "census-sex", {**_SPLIT, "train_size": 40_000, "test_size": 40_000, "recipe": {"epochs": 4}}
    ),
    "compas_race": Case("compas-race", _SPLIT, splits=20),
    "textures": Case("fashion-textures", {}, images=True, main="group_balanced_error"),
}


@dataclass(frozen=True)
class Split:
    """One split: what methods are given, and the test rows, which only the evaluation sees."""

    task: Task
    test: ArrayData
    main: str
    quick: bool
    frontier: Path = Path()  # where the frontier is kept
    finished: frozenset[str] = frozenset()  # names of points that are not run again


@lru_cache(maxsize=1)  # a split's methods run one after another
def load(name: str, split: int, data: str, quick: bool) -> Split:
    case = SETS[name]
    problem = load_problem(replace(definition_of(case.definition), **case.changes), split, data)
    names = problem.group_names
    assert names is not None
    train, test = merged(problem.train, problem.test, names)
    recipe = Recipe(**problem.recipe)
    if quick:
        recipe = replace(recipe, epochs=0.5, min_steps=100)
    task = Task(network=problem.network, data=train, recipe=recipe, seed=split)
    return Split(task, test, case.main, quick)


def merged(
    train: ArrayData, test: ArrayData, names: tuple[str, ...]
) -> tuple[ArrayData, ArrayData]:
    """Both sides with every group of a cell below `SMALLEST_CELL` examples in "Other"."""
    small = (train.counts() + test.counts()).min(axis=1) < SMALLEST_CELL
    new, index = np.unique(np.where(small, "Other", names), return_inverse=True)
    position = torch.from_numpy(index)
    sides = []
    for side in (train, test):
        assert side.groups is not None
        sides.append(replace(side, groups=position[side.groups], num_groups=len(new)))
    return sides[0], sides[1]


# Methods --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Point:
    """What one network (or mixture) is worth: its name, held-out objectives, and test errors."""

    method: str
    name: str
    test: ErrorTable
    held: tuple[float, float] | None = None  # main error and DEO


def _losses_with_held_out(split: Split) -> Iterator[Point]:
    """The three whose held-out error `baselines` measures, over five folds; choices refer to one of them."""
    task = split.task
    held = baselines(
        task.network, task.data, main=split.main, recipe=replace(task.recipe, absorb=0.0),
        settings=SearchSettings(folds=2 if split.quick else 5), seed=task.seed, device="cpu",
    )  # fmt: skip
    methods = LOSSES | GROUP_LOSSES
    for name, found in zip(
        ("cross_entropy", "logit_adjustment", "group_logit_adjustment"), held, strict=True
    ):
        model = methods[name].run(task).model
        yield Point(name, "", evaluate_model(model, split.test), (found.main, found.gap))


def _loss(name: str) -> Callable[[Split], Iterator[Point]]:
    def run(split: Split) -> Iterator[Point]:
        model = (LOSSES | GROUP_LOSSES)[name].run(split.task).model
        yield Point(name, "", evaluate_model(model, split.test))

    return run


def _thresholds(split: Split) -> Iterator[Point]:
    yield Point("threshold_optimizer", "", threshold_optimizer(split.task).evaluate(split.test))


def _reduction(split: Split) -> Iterator[Point]:
    """One point per bound, each measured on held-out rows by a run without them."""
    task = split.task
    [(train, held)] = splits_of(task.data, None, task.settings, task.seed)
    options: Any = {"base": "network", "max_iter": 2 if split.quick else 10}
    for eps in EPSILONS[1:2] if split.quick else EPSILONS:
        if f"eps {eps:g}" in split.finished:
            continue
        [there] = exponentiated_gradient(replace(task, data=train), [eps], **options)
        judged = there.evaluate(held)
        [found] = exponentiated_gradient(task, [eps], **options)
        yield Point(
            "exponentiated_gradient", f"eps {eps:g}", found.evaluate(split.test),
            (getattr(judged, split.main), judged.deo),
        )  # fmt: skip


def _swept(split: Split) -> Frontier:
    """The split's frontier, from its file where there is one."""
    task, kept = split.task, split.frontier
    if kept.exists():
        return Frontier.from_json(kept.read_text(encoding="utf-8"))
    swept = frontier(
        task.network, task.data, main=split.main, mixes=(0.0, 0.5, 0.9) if split.quick else MIXES,
        recipe=task.recipe, settings=task.settings, seed=task.seed, device="cpu",
    )  # fmt: skip
    kept.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(kept, swept.to_json().encode())
    return swept


def _decisions(split: Split) -> Iterator[Point]:
    """Decisions from one network's p(class, group | x), under bounds from none to 0.

    Their errors are those expected over draws, as the reduction's are; then what prices found on the test
    rows themselves would give.
    """
    task = split.task
    learned = cell_posterior(
        task.network, task.data, main=split.main, recipe=task.recipe, seed=task.seed, device="cpu",
        settings=SearchSettings(folds=2 if split.quick else 5),
    )  # fmt: skip
    decisions = {f"point {i}": d for i, d in enumerate(learned.frontier())}
    for name, found in decisions.items():
        yield Point(
            "autobalance", name, expected(found.network, split.test),
            (getattr(found.held_out, split.main), found.held_out.deo),
        )  # fmt: skip
    worst = learned.with_lowest_worst_cell().network
    yield Point("autobalance_worst_cell", "", expected(worst, split.test))
    for name, found in {
        f"point {i}": d for i, d in enumerate(ceiling(learned, split.test))
    }.items():
        judged = getattr(found.held_out, split.main), found.held_out.deo
        yield Point(CEILING, name, found.held_out, judged)


def expected(decision: CellDecision, data: ArrayData) -> ErrorTable:
    """Errors over draws."""
    shares = predict_logits(DecisionShares(decision), data.inputs)
    return evaluate_probabilities(shares.numpy(), data)


def ceiling(learned: CellPosterior, test: ArrayData) -> list[FairDecision]:
    """No method: what the best prices for these very test rows would give with this network."""
    cells = predict_logits(learned.network, test.inputs).double().softmax(dim=1)
    seen = replace(
        learned,
        held_out=cells.numpy().reshape(-1, *learned.held_out.shape[1:]),
        cells=test.cells().numpy(),
    )
    return seen.frontier(2 * POINTS)


def _frontier(split: Split) -> Iterator[Point]:
    """The points that no other beats on held-out rows, each trained anew on all training rows."""
    task = split.task
    for point in _swept(split).non_dominated():
        if f"mix {point.mix:g}" in split.finished:
            continue
        model = task.train(point.loss, recipe=task.recipe)
        yield Point(
            "autobalance_losses", f"mix {point.mix:g}", evaluate_model(model, split.test),
            (point.main, point.gap),
        )  # fmt: skip


def _searched(name: str, objective: str) -> Callable[[Split], Iterator[Point]]:
    def run(split: Split) -> Iterator[Point]:
        task = split.task
        result = search(
            task.network, task.data, objective=objective, recipe=task.recipe,
            settings=task.settings, seed=task.seed, device="cpu",
        )  # fmt: skip
        model = task.train(result.loss, recipe=task.recipe)
        yield Point(name, "", evaluate_model(model, split.test))

    return run


RUNS: dict[str, Callable[[Split], Iterator[Point]]] = {
    "losses": _losses_with_held_out,
    "class_weighted": _loss("class_weighted"),
    "group_weights": _loss("group_weights"),
    "reweighing": _loss("reweighing"),
    "group_dro": _loss("group_dro"),
    "threshold_optimizer": _thresholds,
    "exponentiated_gradient": _reduction,
    "autobalance": _decisions,
    "autobalance_losses": _frontier,
    "autobalance_losses_bound": _searched(
        "autobalance_losses_bound", f"balanced_error where deo <= {BOUND}"
    ),
    "autobalance_losses_worst": _searched(
        "autobalance_losses_worst", "worst_class_and_group_error"
    ),
}
"""By what is asked for; "losses" is cross-entropy, logit adjustment and the group-wise one."""
OURS = ("autobalance", "autobalance_losses")
NOT_FOR_IMAGES = {"threshold_optimizer", "exponentiated_gradient"}


# Running --------------------------------------------------------------------------------------


def run_unit(name: str, split: int, method: str, options: argparse.Namespace) -> None:
    """One method on one split: a line per point, and one that says it is done."""
    prepare(1)
    warnings.filterwarnings("ignore", "The held-out data lacks", UserWarning)
    begun = time.process_time()
    here = {"set": name, "split": split, "run": method}
    lines = [r for r in read(options.out) if here.items() <= r.items()]
    given = replace(
        load(name, split, options.data, options.quick),
        frontier=options.out / "frontiers" / f"{name}-{split}.json",
        finished=frozenset(r["point"] for r in lines if r.get("point")),
    )
    before = {(r["method"], r["point"]) for r in lines if "point" in r}
    for point in RUNS[method](given):
        line = {**here, "method": point.method, "point": point.name, "held": point.held}
        line |= {
            "balanced": 100 * point.test.balanced_error,
            "worst": 100 * point.test.worst_class_and_group_error,
            "deo": 100 * point.test.deo,
            "errors": point.test.errors.tolist(),
        }
        if (point.method, point.name) not in before:
            append(options.out, line)
    seconds = time.process_time() - begun
    append(options.out, {**here, "done": True, "cpu_seconds": seconds})
    print(f"{name}, split {split}, {method}: {seconds:.0f} s", flush=True)


def append(out: Path, line: dict[str, Any]) -> None:
    with (out / LINES).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def read(out: Path) -> list[dict[str, Any]]:
    """The lines; one that a killed run left half written is left out."""
    path = out / LINES
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    found = []
    for line in lines:
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return found


# Summary --------------------------------------------------------------------------------------

Row = dict[str, Any]


def chosen(points: list[Row], reference: float | None, within: float) -> Row:
    """Of a method's points the one that held-out rows speak for."""
    if len(points) == 1 or any(p["held"] is None for p in points):
        return points[0]
    near = [p for p in points if reference is not None and p["held"][0] <= reference + within]
    if near:
        return min(near, key=lambda p: p["held"][1])
    return min(points, key=lambda p: p["held"][0])


def by_method(rows: list[Row]) -> dict[str, list[Row]]:
    grouped: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        grouped[row["method"]].append(row)
    return grouped


def summary(lines: list[Row]) -> dict[str, Any]:
    """Means and standard errors over the splits, in percent; the mean of the splits' hypervolumes."""
    done = {(r["set"], r["split"], r["run"]) for r in lines if "done" in r}
    rows = [r for r in lines if "done" not in r and (r["set"], r["split"], r["run"]) in done]
    numbers: dict[str, Any] = {}
    for name in [n for n in SETS if any(r["set"] == n for r in rows)]:
        here = [r for r in rows if r["set"] == name]
        picks: dict[str, list[Row]] = defaultdict(list)
        volumes: dict[str, list[float]] = defaultdict(list)
        for split in sorted({r["split"] for r in here}):
            methods = by_method([r for r in here if r["split"] == split])
            reference = methods.get("group_logit_adjustment", [{"held": None}])[0]["held"]
            main = reference and reference[0]
            for method, points in methods.items():
                picks[method].append(chosen(points, main, NEAR))
                costs = np.array([[p["balanced"], p["deo"]] for p in points])
                volumes[method].append(hypervolume(costs, REFERENCE))
            for method in OURS:
                if method in methods:
                    picks[f"{method}_equal"].append(chosen(methods[method], main, EQUAL))
        numbers[name] = {
            "methods": {
                method: {
                    key: mean_and_error([row[key] for row in found])
                    for key in ("balanced", "worst", "deo")
                }
                for method, found in picks.items()
            },
            "hypervolume": {method: float(np.mean(v)) for method, v in volumes.items()},
            "picks": picks,
        }
    return numbers


def noise(name: str, rows: list[Row], data: str, quick: bool) -> list[float]:
    """Per split the mean DEO, in percent, that equal true rates would measure on its test rows."""
    rng, found = np.random.default_rng(0), []
    for row in [r for r in rows if r["set"] == name and r["method"] == "group_logit_adjustment"]:
        cells = load(name, row["split"], data, quick).test.counts().astype(int)
        errors = (np.array(row["errors"]) * cells).sum(axis=0) / cells.sum(axis=0)
        drawn = rng.binomial(cells, errors, size=(2000, *cells.shape)) / cells
        found.append(100.0 * float(np.ptp(drawn, axis=1).sum(axis=-1).mean()))
    return found


def mean_and_error(values: list[float]) -> list[float | None]:
    error = None if len(values) < 2 else float(np.std(values, ddof=1) / len(values) ** 0.5)
    return [float(np.mean(values)), error]


def shown(value: list[float | None]) -> str:
    mean, error = value
    return f"{mean:6.2f}" + ("" if error is None else f" +- {error:.2f}")


def show(numbers: dict[str, Any]) -> None:
    """A table per set, and what is asked of autobalance against group-wise logit adjustment."""
    for name, found in numbers.items():
        splits = max(len(rows) for rows in found["picks"].values())
        print(f"\n{name}, {splits} splits, percent")
        print(f"{'':24} {'balanced':>15} {'worst':>15} {'DEO':>15} {'hypervolume':>12}")
        for method, values in found["methods"].items():
            columns = " ".join(f"{shown(values[k]):>15}" for k in ("balanced", "worst", "deo"))
            volume = found["hypervolume"].get(method)
            print(f"{method:24} {columns} {'' if volume is None else f'{volume:12.0f}'}")
        reference = {r["split"]: r for r in found["picks"].get("group_logit_adjustment", [])}
        for method, limit in [
            (m + end, x) for m in OURS for end, x in (("", NEAR), ("_equal", EQUAL))
        ]:
            pairs = [
                (row, reference[row["split"]])
                for row in found["picks"].get(method, [])
                if row["split"] in reference
            ]
            if not pairs:
                continue
            ours, theirs = (float(np.mean([p[i]["deo"] for p in pairs])) for i in (0, 1))
            above = [a["balanced"] - b["balanced"] for a, b in pairs]
            kept = sum(x <= 100 * limit for x in above)
            print(
                f"{method}, within {100 * limit:g} points of group-wise LA on held-out rows: DEO {ours:.2f}, "
                f"its DEO {theirs:.2f}, ratio {ours / max(theirs, 1e-9):.2f}; balanced error "
                f"{shown(mean_and_error(above)).strip()} points above, within them on test rows in "
                f"{kept} of {len(pairs)} splits"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", help="folder of the datasets' files")
    parser.add_argument("--out", type=Path, required=True, help="folder for the finished points")
    parser.add_argument("--sets", default=",".join(SETS), help="names with commas between")
    parser.add_argument("--splits", type=int, help="how many; by default 5, and 20 of COMPAS")
    parser.add_argument("--first-split", type=int, default=0)
    parser.add_argument("--methods", default=",".join(RUNS), help="names with commas between")
    parser.add_argument("--jobs", type=int, default=1, help="methods at a time")
    parser.add_argument("--quick", action="store_true", help="short training, few points")
    parser.add_argument("--summary", action="store_true", help="run nothing, show what there is")
    parser.add_argument("--noise", action="store_true", help="what DEO equal rates would measure")
    parser.add_argument("--json", type=Path, help="also write the summary here")
    options = parser.parse_args()
    sets, methods = options.sets.split(","), options.methods.split(",")
    for names, known in ((sets, SETS), (methods, RUNS)):
        for unknown in [n for n in names if n not in known]:
            parser.error(f"there is no {unknown!r}; known are {', '.join(known)}")
    if options.data is None and not options.summary:
        parser.error("--data is needed, the folder of the datasets' files")
    if options.noise:
        rows = [r for r in read(options.out) if "done" not in r]
        for name in sets:
            found = noise(name, rows, options.data, options.quick)
            if found:
                print(f"{name}, {len(found)} splits: DEO of equal rates {np.mean(found):.1f}")
        return
    if not options.summary:
        options.out.mkdir(parents=True, exist_ok=True)
        run_all(sets, methods, options)
    numbers = summary(read(options.out))
    show(numbers)
    write_json(
        options.json,
        {n: {k: v for k, v in found.items() if k != "picks"} for n, found in numbers.items()},
    )


def run_all(sets: list[str], methods: list[str], options: argparse.Namespace) -> None:
    # From the module by its name: a worker can import that, and unpickle no cache of __main__.
    from joblib import Parallel, delayed

    from groups import guarded

    done = {(r["set"], r["split"], r["run"]) for r in read(options.out) if "done" in r}
    units = [
        (name, split, method)
        for name in sets
        for split in range(
            options.first_split, options.first_split + (options.splits or SETS[name].splits)
        )
        for method in methods
        if not (SETS[name].images and method in NOT_FOR_IMAGES)
    ]
    left = [unit for unit in units if unit not in done]
    path = options.out / LINES
    if path.exists() and not path.read_text(encoding="utf-8").endswith("\n"):
        with path.open("a", encoding="utf-8") as file:
            file.write("\n")  # after a line half written when a run was killed
    Parallel(n_jobs=options.jobs)(delayed(guarded)(*unit, options) for unit in left)


def guarded(name: str, split: int, method: str, options: argparse.Namespace) -> None:
    """A method that cannot run on a set is said so, and the others go on."""
    try:
        run_unit(name, split, method, options)
    except InputError as error:
        print(f"{name}, split {split}, {method}: {error}", flush=True)


if __name__ == "__main__":
    main()
