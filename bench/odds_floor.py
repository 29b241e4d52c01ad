"""How low can DEO go by the loss alone? A grid of losses on Adult, sex as the group.

    .venv/bin/python bench/odds_floor.py --data DIR [--quick] [--json FILE]

Trains one network per loss on 70 % of Adult's training file (DIR/fairness/adult_train.csv.gz; sex is not
a feature) and prints balanced error and DEO on the rest, in percent, with the differences of the two
groups' errors by class. Additive adjustments on a grid; then, at group-wise logit adjustment, weights of
the groups, weights of the (class, group) cells, and multiplicative adjustments.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from autobalance.bilevel.retraining import retrain
from autobalance.losses.modules import ParametricCrossEntropy
from autobalance.posthoc.expected_errors import evaluate_model
from autobalance.records.settings import Recipe
from autobalance_bench.comparison.dataset_definitions import definition_of
from autobalance_bench.comparison.datasets import load_problem
from measuring import options_of, prepare, write_json

GROUP_ADJUSTMENT = [[0.0, -2.1], [0.0, -0.82]]  # log odds of the classes within each group
DIFFERENCES = {"F": (-3.5, -3.0, -2.5, -2.0, -1.5), "M": (-2.0, -1.5, -1.0, -0.5, 0.0, 0.5)}
GROUP_WEIGHTS = (0.03, 0.125, 0.33, 3.0, 8.0, 30.0)
CELL_WEIGHTS = (
    [[3, 1], [1, 1]], [[1, 3], [1, 1]], [[1, 1], [3, 1]], [[1, 1], [1, 3]],
    [[1, 3], [3, 1]], [[0.3, 1], [1, 1]], [[0.3, 1], [3, 1]],
)  # fmt: skip
MULTIPLIERS = (
    [[0.3, 0.3], [1, 1]], [[3, 3], [1, 1]], [[1, 1], [3, 3]], [[1, 1], [0.3, 0.3]],
    [[0.5, 1], [1, 1]], [[2, 1], [1, 1]], [[1, 2], [1, 1]], [[1, 0.5], [1, 1]],
)  # fmt: skip


def losses(quick: bool) -> dict[str, ParametricCrossEntropy]:
    """The grid by name."""
    found: dict[str, Any] = {}
    for f in DIFFERENCES["F"]:
        for m in DIFFERENCES["M"]:
            found[f"l {f:g} {m:g}"] = {"additive": [[0.0, f], [0.0, m]]}
    at = {"additive": GROUP_ADJUSTMENT}
    found["group-wise logit adjustment"] = at
    for w in GROUP_WEIGHTS:
        found[f"group weight {w:g}"] = {"weight": [[w, w], [1, 1]], **at}
    for table in CELL_WEIGHTS:
        found[f"weights {table}"] = {"weight": table, **at}
    for table in MULTIPLIERS:
        found[f"delta {table}"] = {"multiplicative": table, **at}
    chosen = list(found)[::15] if quick else list(found)
    return {name: ParametricCrossEntropy(**found[name]) for name in chosen}


def main() -> None:
    parser = options_of(__doc__)
    parser.add_argument("--data", required=True, help="folder of the datasets' files")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    prepare(options.threads)
    definition = replace(definition_of("adult-sex"), test_path=None, test_fraction=0.3)
    problem = load_problem(definition, options.seed, options.data)
    recipe = Recipe(**problem.recipe)
    numbers = {}
    for name, loss in losses(options.quick).items():
        model = retrain(
            problem.network, problem.train, loss, recipe=recipe, seed=options.seed, device="cpu"
        )
        found = evaluate_model(model, problem.test)
        by_class = (100 * (found.errors[0] - found.errors[1])).tolist()
        numbers[name] = {
            "balanced": 100 * found.balanced_error, "deo": 100 * found.deo, "by_class": by_class,
        }  # fmt: skip
        print(
            f"{name:40} balanced {100 * found.balanced_error:5.1f}  DEO {100 * found.deo:5.1f}  "
            f"by class {by_class[0]:+.0f} {by_class[1]:+.0f}",
            flush=True,
        )
    usable = [row for row in numbers.values() if row["balanced"] < 20]
    lowest = min(usable, key=lambda row: row["deo"])
    print(f"lowest DEO below 20 % balanced error: {lowest['deo']:.1f} at {lowest['balanced']:.1f}")
    write_json(options.json, numbers)


if __name__ == "__main__":
    main()
