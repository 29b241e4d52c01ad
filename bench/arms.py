"""What each way to train gives on test data, and what the race between them would have picked.

    .venv/bin/python bench/arms.py --data DIR --out FOLDER [--datasets yeast,satellite] [--seeds 3]

Every arm races on every dataset whether or not it needs a network that fits, with the loss that a search
starts from, and is then trained in full on all training data with that loss. FOLDER keeps one line per
dataset and seed in arms.jsonl; what is there is not trained again. The table at the end has the balanced
error on test data, means over seeds: of each arm, of the arm with the lowest criterion, of the one that
the race's own rule takes, and of the best of them (which nobody knows beforehand).
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from autobalance.bilevel import (
    DEFAULT_ARMS,
    SearchSpec,
    predict_logits,
    race,
    retrain,
    with_arm,
)
from autobalance.records import Recipe
from autobalance.spaces import TunableCrossEntropy
from autobalance_bench.comparison.configuration import resolved
from autobalance_bench.comparison.datasets import load_problem

DATASETS = (
    "yeast", "page-blocks", "satellite", "letter-lt-100", "letter-lt-10", "fashion-lt-100-mlp",
    "fashion-lt-100-cnn", "fashion-lt-50-cnn", "fashion-lt-10-cnn",
)  # fmt: skip
"""Of the developing half, from which the arms and their rule were chosen."""
RECIPE = Recipe(epochs=30, min_steps=500)


def measure(dataset: str, seed: int, data: str) -> dict[str, Any]:
    """All arms on one dataset and seed."""
    problem = load_problem(resolved(dataset), seed, data, "cpu")
    spec = SearchSpec(
        model_factory=problem.network,
        data=problem.train,
        recipe=replace(RECIPE, **problem.recipe),
        seed=seed,
        device="cpu",
    )
    arms = [replace(arm, needs_fit=False) for arm in DEFAULT_ARMS]
    _, records = race(spec, arms)
    tested = {}
    for arm in arms:
        own = with_arm(spec, arm)
        assert own.model_factory is not None
        loss = TunableCrossEntropy(own.build_space(problem.train)).frozen()
        model = retrain(
            own.model_factory, problem.train, loss, recipe=own.recipe, seed=seed, device="cpu"
        )
        logits = predict_logits(model, problem.test.inputs)
        tested[arm.name] = spec.objective.hard(logits, problem.test.target)
    ruled, _ = race(spec, DEFAULT_ARMS)
    return {
        "dataset": dataset,
        "seed": seed,
        "arms": [{**vars(record), "test": tested[record.name]} for record in records],
        "taken": ruled.name,
    }


def picks(row: dict[str, Any]) -> dict[str, float]:
    """Test errors of one row: of each arm, and of the picks."""
    arms = row["arms"]
    test = {arm["name"]: arm["test"] for arm in arms}
    lowest = min(arms, key=lambda arm: arm["criterion"])
    return {
        **test,
        "lowest criterion": lowest["test"],
        "the race": test[row["taken"]],
        "the best": min(test.values()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", required=True, help="data folder of `autobalance compare`")
    parser.add_argument("--out", type=Path, required=True, help="folder for arms.jsonl")
    parser.add_argument("--datasets", default=",".join(DATASETS))
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    kept = options.out / "arms.jsonl"
    rows = [json.loads(line) for line in kept.open()] if kept.exists() else []
    done = {(row["dataset"], row["seed"]) for row in rows}
    names = options.datasets.split(",")
    for seed in range(options.seeds):
        for name in names:
            if (name, seed) not in done:
                rows.append(measure(name, seed, options.data))
                with kept.open("a") as file:
                    file.write(json.dumps(rows[-1]) + "\n")
                print(name, seed, rows[-1]["taken"], flush=True)
    columns = [*picks(rows[0])]
    print(f"{'balanced error, %':22}" + "".join(f"{column:>18}" for column in columns))
    for name in names:
        own = [picks(row) for row in rows if row["dataset"] == name]
        means = [100 * np.mean([row[column] for row in own]) for column in columns]
        print(f"{name:22}" + "".join(f"{mean:18.2f}" for mean in means))


if __name__ == "__main__":
    main()
