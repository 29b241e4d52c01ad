"""How wide the prior on the shared strength of several labels should be, on five problems.

    python bench/label_prior.py --data DIR --json FILE [--seeds 3]
    python bench/label_prior.py --json FILE --table

The problems are one label per class of sets of the suite's developing half (Letter, Yeast, Satellite and
Fashion-MNIST, whose examples have one label each), and mosaics of four images of Fashion-MNIST, which have up
to four. Each trains logit adjustment, the loss designed under a prior of each width, and logit adjustment
with the tau of the least balanced error on validation data. FILE keeps one line for each problem, method and
seed; what it has is not run again. The table has the balanced error averaged over labels, in percent.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from autobalance import (
    ArrayData,
    BalancedError,
    HierarchicalLabelSpace,
    ParametricBinaryCrossEntropy,
    Recipe,
    retrain,
    search,
)
from autobalance.bilevel import predict_logits
from autobalance.data import concatenated, stratified_folds
from autobalance.networks import TableNetwork
from autobalance_bench.comparison.configuration import resolved
from autobalance_bench.comparison.datasets import load_problem
from measuring import mean_and_error, read_runs

RECIPE = Recipe(epochs=30, min_steps=500)
OBJECTIVE = BalancedError(over="label")
TAUS = (0.5, 0.75, 1.0, 1.25, 1.5)
WIDTHS = (0.5, 1.0, 2.0)
PROBLEMS = ("letter-lt-100", "yeast", "satellite", "fashion-lt-100-mlp", "mosaics")


@dataclass(frozen=True)
class Problem:
    """The parts of the data and the network."""

    train: ArrayData
    validation: ArrayData
    test: ArrayData
    network: Callable[[], nn.Module]
    recipe: Recipe


def labels_of(data: ArrayData) -> ArrayData:
    """One label for each class."""
    matrix = nn.functional.one_hot(data.target.long(), data.num_classes)
    return ArrayData.of(data.inputs, matrix)


def mosaics_of(data: ArrayData, number: int, generator: torch.Generator) -> ArrayData:
    """Mosaics of four images drawn at random; a label for each class that one of them has."""
    rows = torch.randint(len(data), (number, 4), generator=generator)
    images = data.in_memory().flatten(1)[rows].view(number, 4, 28, 28)
    inputs = nn.functional.avg_pool2d(torch.cat(
        [torch.cat([images[:, 0], images[:, 1]], dim=2), torch.cat([images[:, 2], images[:, 3]], dim=2)],
        dim=1,
    )[:, None], 2)  # fmt: skip
    found = nn.functional.one_hot(data.target[rows].long(), data.num_classes).amax(dim=1)
    return ArrayData.of(inputs, found)


def load(name: str, seed: int, folder: str) -> Problem:
    """A problem, its training rows split into four fifths to train and one to validate."""
    source = load_problem(
        resolved("fashion-lt-100-mlp" if name == "mosaics" else name), seed, folder, "cpu"
    )
    generator = torch.Generator().manual_seed(seed)
    network, known = source.network, source.train
    if name == "mosaics":
        whole = mosaics_of(source.train, 2000, generator)
        test = mosaics_of(source.test, 4000, generator)
        network = functools.partial(_mosaic_network, whole.num_classes)
    else:
        whole, test = labels_of(known), labels_of(source.test)
    [(rows, held)] = stratified_folds(whole.strata(), 0.2, 1, generator)
    recipe = replace(RECIPE, **source.recipe)
    return Problem(whole.subset(rows), whole.subset(held), test, network, recipe)


def _mosaic_network(labels: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), TableNetwork(784, labels))


def run(problem: Problem, method: str, seed: int) -> float:
    """The balanced error of a method on the test set, in percent."""
    whole = concatenated(problem.train, problem.validation)
    common: dict[str, Any] = {"recipe": problem.recipe, "seed": seed, "device": "cpu"}

    def fit(loss: Any, data: ArrayData) -> nn.Module:
        return retrain(problem.network, data, loss, **common)

    def adjusted(data: ArrayData, tau: float) -> ParametricBinaryCrossEntropy:
        additive = ParametricBinaryCrossEntropy.logit_adjusted(data.counts()).additive
        assert isinstance(additive, Tensor)
        return ParametricBinaryCrossEntropy(additive=tau * additive)

    def error(model: nn.Module, data: ArrayData) -> float:
        return 100.0 * OBJECTIVE.hard(predict_logits(model, data), data.target)

    if method.startswith("designed"):
        space = functools.partial(HierarchicalLabelSpace, sigma_tau=float(method.split()[1]))
        result = search(
            problem.network, problem.train, validation=problem.validation, objective=OBJECTIVE,
            space=space, **common,
        )  # fmt: skip
        return error(fit(result, whole), problem.test)
    tau = 1.0
    if method == "tuned tau":
        errors = {
            t: error(fit(adjusted(problem.train, t), problem.train), problem.validation)
            for t in TAUS
        }
        tau = min(errors, key=lambda t: errors[t])
    return error(fit(adjusted(whole, tau), whole), problem.test)


METHODS = ("logit adjustment", *(f"designed {width}" for width in WIDTHS), "tuned tau")


def print_table(rows: list[dict[str, Any]]) -> None:
    """Means over seeds and their standard errors, as Markdown."""
    print("| problem | seeds | " + " | ".join(METHODS) + " |\n" + "|---" * (len(METHODS) + 2) + "|")
    for name in PROBLEMS:
        cells, seeds = [], 0
        for method in METHODS:
            found = [r["error"] for r in rows if r["problem"] == name and r["method"] == method]
            seeds = len(found)
            cells.append("{:.1f} ± {:.1f}".format(*mean_and_error(found)) if found else "–")
        print(f"| {name} | {seeds} | " + " | ".join(cells) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", default=os.environ.get("AUTOBALANCE_DATA"))
    parser.add_argument("--json", type=Path, required=True, help="file of the finished runs")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--table", action="store_true", help="run nothing, print the table")
    options = parser.parse_args()
    torch.set_num_threads(1)
    done = read_runs(options.json, "problem", "method", "seed")
    if options.table:
        print_table([*done.values()])
        return
    if not options.data:
        parser.error("name the data folder by --data or AUTOBALANCE_DATA")
    for seed in range(options.seeds):
        for name in PROBLEMS:
            problem = load(name, seed, options.data)
            for method in METHODS:
                if (name, method, seed) in done:
                    continue
                row = {"problem": name, "method": method, "seed": seed}
                row["error"] = run(problem, method, seed)
                with options.json.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
                print(row, flush=True)


if __name__ == "__main__":
    main()
