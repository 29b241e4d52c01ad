"""A bound on DEO with LightGBM: designed decisions, fairlearn's reduction, and the network's decisions.

    .venv/bin/python bench/any_classifier_groups.py --data DIR --out FOLDER [--sets compas_race] [--splits 3]
    .venv/bin/python bench/any_classifier_groups.py --out FOLDER --summary [--json FILE]

Sets and splits are those of `groups.py`, whose kept points of the network are read for the same splits.
LightGBM has max_delta_step=1 and one thread, here and in the reduction.

"lightgbm_decisions" are `design_adjustment` on out-of-fold p(class, group | x) for ten bounds on DEO,
decided by LightGBM's p(class, group | x) on test rows, without the group. "lightgbm_reduction" is
fairlearn's ExponentiatedGradient under equalised odds for three bounds, with at most ten rounds as for
the network. Errors are those expected over draws. FOLDER/points.jsonl has a line for each point, and
finished runs are not made again.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from lightgbm import LGBMClassifier

from autobalance import design_adjustment
from autobalance.data import assign_folds
from autobalance.posthoc import evaluate_probabilities
from autobalance.records import ErrorTable
from autobalance_bench.fairness.baselines import exponentiated_gradient
from autobalance_bench.fairness.hypervolume import hypervolume
from groups import EPSILONS, REFERENCE, Split, append, load, mean_and_error, read
from measuring import kept_options, run_unless_summary, write_json

SETS = ("adult_sex", "adult_race", "census_sex", "compas_race")
BOUNDS = (2.0, 0.25, 0.2, 0.15, 0.12, 0.09, 0.06, 0.04, 0.02, 0.0)
FOLDS = 5
NETWORK = Path(__file__).parent / "results/groups"
OF_NETWORK = {"autobalance": "network_decisions", "exponentiated_gradient": "network_reduction"}
METHODS = ("lightgbm_decisions", "lightgbm_reduction", *OF_NETWORK.values())


def _decisions(split: Split) -> Iterator[tuple[str, ErrorTable]]:
    data, test = split.task.data, split.test
    inputs, cells = data.in_memory().numpy(), data.cells().numpy()
    g, k = data.counts().shape

    def predict(train: np.ndarray, rows: np.ndarray) -> np.ndarray:
        model = _lightgbm(split.task.seed).fit(inputs[train], cells[train])
        return np.asarray(model.predict_proba(rows)).reshape(-1, g, k)

    fold = assign_folds(cells, FOLDS, np.random.default_rng(split.task.seed))
    scores = np.zeros((len(cells), g, k))
    for f in range(FOLDS):
        scores[fold == f] = predict(fold != f, inputs[fold == f])
    of_test = predict(np.ones(len(cells), dtype=bool), test.in_memory().numpy())
    for bound in BOUNDS:
        adjustment = design_adjustment(
            scores, cells % k, groups=cells // k, objective=f"balanced_error where deo <= {bound}"
        )
        yield f"deo <= {bound:g}", evaluate_probabilities(adjustment.decision_shares(of_test), test)


def _reduction(split: Split) -> Iterator[tuple[str, ErrorTable]]:
    base = _lightgbm(split.task.seed)
    for eps in EPSILONS:
        [found] = exponentiated_gradient(split.task, [eps], base=base, max_iter=10)
        yield f"eps {eps:g}", found.evaluate(split.test)


def _lightgbm(seed: int) -> LGBMClassifier:
    return LGBMClassifier(random_state=seed, n_jobs=1, verbosity=-1, max_delta_step=1)


RUNS: dict[str, Callable[[Split], Iterator[tuple[str, ErrorTable]]]] = {
    "lightgbm_decisions": _decisions,
    "lightgbm_reduction": _reduction,
}


def run_all(options: argparse.Namespace) -> None:
    options.out.mkdir(parents=True, exist_ok=True)
    done = {(r["set"], r["split"], r["run"]) for r in read(options.out)}
    for split in range(options.splits):
        for name in options.sets.split(","):
            for method, run in RUNS.items():
                if (name, split, method) in done:
                    continue
                begun = time.process_time()
                points = [
                    {
                        "point": point,
                        "balanced": 100 * table.balanced_error,
                        "deo": 100 * table.deo,
                    }
                    for point, table in run(load(name, split, str(options.data), False))
                ]
                seconds = time.process_time() - begun
                line = {"set": name, "split": split, "run": method, "points": points}
                append(options.out, line | {"seconds": seconds})
                print(f"{name}, split {split}, {method}: {seconds:.0f} s", flush=True)


def numbers_of(lines: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Hypervolumes by set and method, of each split that LightGBM has run on, and their mean and error."""
    points: dict[tuple[str, int, str], list[list[float]]] = defaultdict(list)
    for line in lines:
        key = line["set"], line["split"], line["run"]
        points[key] = [[point["balanced"], point["deo"]] for point in line["points"]]
    splits = {key[:2] for key in points}
    for line in read(NETWORK):
        name = OF_NETWORK.get(line.get("method", ""))
        if name is not None and (line["set"], line["split"]) in splits:
            points[line["set"], line["split"], name].append([line["balanced"], line["deo"]])
    numbers: dict[str, dict[str, Any]] = {}
    for (name, _, method), found in sorted(points.items()):
        row = numbers.setdefault(name, {}).setdefault(method, {"hypervolumes": []})
        row["hypervolumes"].append(hypervolume(np.array(found), REFERENCE))
    for row in numbers.values():
        for values in row.values():
            values["hypervolume"] = mean_and_error(values["hypervolumes"])
    return numbers


def show(numbers: dict[str, dict[str, Any]]) -> None:
    """Hypervolume of balanced error and DEO, with the standard error over splits; more is better."""
    print("| set | splits | " + " | ".join(METHODS) + " |")
    print("| --- | ---: |" + " ---: |" * len(METHODS))
    for name, row in numbers.items():
        texts = []
        for method in METHODS:
            mean, error = row.get(method, {}).get("hypervolume", (None, None))
            texts.append("–" if mean is None else f"{mean:.0f} ± {error or np.nan:.0f}")
        splits = max(len(values["hypervolumes"]) for values in row.values())
        print(f"| {name} | {splits} | " + " | ".join(texts) + " |")


def main(arguments: list[str] | None = None) -> None:
    parser = kept_options(__doc__, "folder for the finished runs")
    parser.add_argument("--sets", default=",".join(SETS), help="names with commas between")
    parser.add_argument("--splits", type=int, default=3, help="how many, from 0")
    options = parser.parse_args(arguments)
    run_unless_summary(parser, options, run_all)
    lines = read(options.out)
    if not lines:
        parser.error(f"{options.out} has no finished runs; run without --summary first")
    numbers = numbers_of(lines)
    show(numbers)
    write_json(options.json, numbers)


if __name__ == "__main__":
    main()
