"""CPU time of a search, of search and retraining, and of both in one run, against one plain training run.

    .venv/bin/python bench/search_cost.py [--quick] [--json FILE]

The images are the package's long-tailed sample of Fashion-MNIST: "cnn" is the demo's network,
"mlp" the table network on flat pixels. One recipe for all: a plain run is `retrain` with
cross-entropy on all data, a search is `search` as it is by default (on four fifths of the data),
end to end is the search and the retraining with its loss, and one run is `search_and_train`. The least
number of steps is put aside, so that a step's cost decides and not the size of the sample. The runs take
turns; the ratio of one turn is taken before the median over turns. A short turn comes first and does not
count.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

from torch import nn

from autobalance.bilevel.network_search import search
from autobalance.bilevel.one_run import search_and_train
from autobalance.bilevel.result import SearchResult
from autobalance.bilevel.retraining import retrain
from autobalance.cli.demo import network
from autobalance.data.array_data import ArrayData
from autobalance.data.fashion import CLASSES, long_tailed_sample
from autobalance.losses.modules import ParametricCrossEntropy
from autobalance.networks import TableNetwork
from autobalance.records.settings import Recipe
from measuring import cpu_seconds, options_of, prepare, write_json

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "cnn": network,
    "mlp": lambda: nn.Sequential(nn.Flatten(), TableNetwork(784, len(CLASSES))),
}
# Bound to meet, and what we aim at.
TARGETS = {
    "search_ratio": (1.35, 1.15),
    "end_to_end_ratio": (2.5, 2.2),
    "one_run_ratio": (1.3, 1.2),
}


@dataclass(frozen=True)
class Turn:
    """CPU seconds of the runs of one turn."""

    plain: float
    search: float
    retrain: float
    one_run: float
    upper_steps: int


def turn(name: str, data: ArrayData, recipe: Recipe, seed: int) -> Turn:
    common: dict[str, Any] = {"recipe": recipe, "seed": seed, "device": "cpu"}
    factory = NETWORKS[name]
    results: list[SearchResult] = []
    plain = cpu_seconds(
        lambda: retrain(factory, data, ParametricCrossEntropy.cross_entropy(), **common)
    )
    searching = cpu_seconds(lambda: results.append(search(factory, data, **common)))
    designed = results[0]
    again = cpu_seconds(lambda: retrain(factory, data, designed.loss, **common))
    together = cpu_seconds(lambda: search_and_train(factory, data, **common))
    return Turn(plain, searching, again, together, len(designed.history))


def main() -> None:
    parser = options_of(__doc__)
    parser.add_argument("--epochs", type=float, help="default: 60, with --quick 20")
    parser.add_argument("--turns", type=int, help="default: 5, with --quick 3")
    options = parser.parse_args()
    prepare(options.threads)
    epochs = options.epochs or (20 if options.quick else 60)
    turns = options.turns or (3 if options.quick else 5)

    data = ArrayData.of(*long_tailed_sample()[0], num_classes=len(CLASSES))
    recipe = Recipe(epochs=epochs, min_steps=1)
    measured: dict[str, list[Turn]] = {name: [] for name in NETWORKS}
    for name in NETWORKS:
        turn(name, data, Recipe(epochs=2, min_steps=1), 0)
    for seed in range(turns):
        for name in NETWORKS:
            measured[name].append(turn(name, data, recipe, seed))

    numbers: dict[str, dict[str, float]] = {
        "search_ratio": {n: median(t.search / t.plain for t in ts) for n, ts in measured.items()},
        "end_to_end_ratio": {
            n: median((t.search + t.retrain) / t.plain for t in ts) for n, ts in measured.items()
        },
        "one_run_ratio": {n: median(t.one_run / t.plain for t in ts) for n, ts in measured.items()},
    }
    print(f"{len(data):,} images, {epochs:g} epochs, {turns} turns")
    print(f"{'':24}" + "".join(f"{name:>8}" for name in NETWORKS) + f"{'bound':>8}{'aim':>8}")
    rows = {
        "plain run, CPU seconds": {n: median(t.plain for t in ts) for n, ts in measured.items()},
        "upper steps": {n: median(t.upper_steps for t in ts) for n, ts in measured.items()},
        "search / plain": numbers["search_ratio"],
        "end to end / plain": numbers["end_to_end_ratio"],
        "one run / plain": numbers["one_run_ratio"],
    }
    targets = [(), (), *TARGETS.values()]
    for (title, row), bounds in zip(rows.items(), targets, strict=True):
        cells = "".join(f"{value:8.2f}" for value in [*row.values(), *bounds])
        print(f"{title:24}{cells}")
    write_json(options.json, numbers)


if __name__ == "__main__":
    main()
