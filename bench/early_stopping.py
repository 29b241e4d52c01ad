"""Whether stopping early on held-out rows pays for the training of tables.

    .venv/bin/python bench/early_stopping.py [--rows 100000] [--seeds 0,1,2] [--data DIR] [--json FILE]

The table network is trained with logit adjustment under the default recipe of the table's size, once on
four fifths of the rows. Of the others at most 10,000 are looked at twenty times: the cross-entropy of
balanced classes. From that training two rules are read, "best" (the weights with the lowest held-out value)
and "patience" (those of the lowest value before it has not fallen for `PATIENCE` looks, which saves the
steps after). A third, "anew", trains on all rows for as many steps as the lowest value came after, under a
schedule of that length, as `autobalance.bilevel.stop_early` finds it. "all" trains on all rows for the whole
recipe. Errors are balanced, on rows that took no part. The tables are those
of `large_tables.py` and, with ``--data``, the developing half of the bench's datasets.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autobalance.data import ArrayData, TableEncoder, assign_folds, class_labels
from autobalance.losses import COSINE_SCALE, with_normalized_head
from autobalance.networks import TableNetwork
from autobalance.records import Recipe
from autobalance_bench.comparison.configuration import resolved
from autobalance_bench.comparison.dataset_definitions import DatasetDefinition
from autobalance_bench.comparison.datasets import load_problem
from large_tables import TEST_ROWS, make_table

LOOKS, PATIENCE = 20, 4
HELD_OUT = 10_000
"""Most held-out rows that are looked at, which makes a look as dear as a few training steps."""
DEVELOPING = ("letter-lt-100", "fashion-lt-100-mlp", "satellite", "yeast", "page-blocks")
WHOLE = ("letter-lt-100", "fashion-lt-100-mlp")
"""Of these also all rows, as they are without a long tail: 14,000 and 60,000."""


def train(
    build: Any, data: ArrayData, recipe: Recipe, steps: int, seed: int, held: ArrayData | None
) -> tuple[nn.Module, list[tuple[int, float, dict[str, Tensor]]], float]:
    """A network after so many steps, its held-out values and weights at `LOOKS` of them, and CPU seconds."""
    torch.manual_seed(seed)
    model = build()
    optimizer = torch.optim.AdamW(model.parameters(), recipe.lr, weight_decay=recipe.weight_decay)
    counts = torch.as_tensor(np.atleast_1d(data.counts()), dtype=torch.float32)
    adjustment = torch.log(counts / counts.sum())
    generator, looks, seconds = torch.Generator().manual_seed(seed), [], 0.0
    order = torch.empty(0, dtype=torch.int64)
    started = time.process_time()
    for step in range(steps):
        if len(order) < min(recipe.batch_size, len(data)):
            order = torch.cat([order, torch.randperm(len(data), generator=generator)])
        index, order = order[: recipe.batch_size], order[recipe.batch_size :]
        batch = data.batch(index)
        for group in optimizer.param_groups:
            group["lr"] = recipe.lr * recipe.lr_factor(step, steps)
        optimizer.zero_grad()
        F.cross_entropy(model(batch.inputs) + adjustment, batch.target).backward()
        nn.utils.clip_grad_norm_(model.parameters(), recipe.max_grad_norm)
        optimizer.step()
        if held is not None and (step + 1) % max(1, steps // LOOKS) == 0:
            seconds += time.process_time() - started
            weights = {name: value.clone() for name, value in model.state_dict().items()}
            looks.append((step + 1, measure(model, held)[0], weights))
            started = time.process_time()
    return model, looks, seconds + time.process_time() - started


@torch.no_grad()
def measure(model: nn.Module, data: ArrayData) -> tuple[float, float]:
    """Cross-entropy and error, each the mean over the classes, of adjusted logits."""
    model.eval()
    logits = torch.cat([model(x) for x in data.inputs.split(4096)])
    model.train()
    weight = 1.0 / torch.bincount(data.target, minlength=data.num_classes).clamp(min=1).double()
    share = weight[data.target] / weight[data.target].sum()
    losses = F.cross_entropy(logits.double(), data.target, reduction="none")
    wrong = (logits.argmax(dim=1) != data.target).double()
    return float(share @ losses), float(share @ wrong)


def compare(
    build: Any, data: ArrayData, test: ArrayData, recipe: Recipe, seed: int
) -> dict[str, Any]:
    """Test errors and costs of the rules on one table."""
    held = assign_folds(data.target.numpy(), 5, np.random.default_rng(seed)) == 0
    rest, rows = data.subset(np.flatnonzero(~held)), np.flatnonzero(held)
    validation = data.subset(rows[:: -(-len(rows) // HELD_OUT)])
    steps = recipe.steps(len(rest))
    last, looks, seconds = train(build, rest, recipe, steps, seed, validation)
    values = [value for _, value, _ in looks]
    best = int(np.argmin(values))
    stop = next(
        (i for i in range(len(values)) if i - int(np.argmin(values[: i + 1])) >= PATIENCE), None
    )
    patient = best if stop is None else int(np.argmin(values[: stop + 1]))
    errors = {"last": measure(last, test)[1]}
    for name, i in (("best", best), ("patience", patient)):
        model = copy.deepcopy(last)
        model.load_state_dict(looks[i][2])
        errors[name] = measure(model, test)[1]
    share = looks[patient][0] / steps
    total = recipe.steps(len(data))
    whole, _, whole_seconds = train(build, data, recipe, total, seed, None)
    anew, _, anew_seconds = train(build, data, recipe, max(1, round(share * total)), seed, None)
    errors |= {"all": measure(whole, test)[1], "anew": measure(anew, test)[1]}
    stopped = 1.0 if stop is None else looks[stop][0] / steps
    return {
        "errors": {name: round(100 * error, 2) for name, error in errors.items()},
        "share_of_lowest": round(share, 3),
        "share_run": round(stopped, 3),
        "cpu_seconds": {"held_out": seconds, "all": whole_seconds, "anew": anew_seconds},
    }


def made(rows: int, seed: int) -> tuple[Any, ArrayData, ArrayData, Recipe]:
    """A table of `large_tables.py`, its network and recipe."""
    table, other = make_table(rows, 2 * seed), make_table(TEST_ROWS, 2 * seed + 1)
    encoder = TableEncoder(one_hot=False)
    labels = class_labels(table["class"])
    classes, target = np.unique(labels, return_inverse=True)
    inputs = encoder.encode(encoder.fit_raw(table.drop(columns="class"), target))
    test_target = np.searchsorted(classes, class_labels(other["class"]))
    data = ArrayData.of(inputs, target, num_classes=len(classes))
    test = ArrayData.of(
        encoder.transform(other.drop(columns="class")), test_target, num_classes=len(classes)
    )

    def build() -> nn.Module:
        return TableNetwork(encoder.num_features, len(classes), categories=encoder.code_sizes)

    return build, data, test, Recipe.for_rows(len(data))


def real(definition: DatasetDefinition, seed: int, folder: str) -> Any:
    """A dataset of the bench, its network and the default recipe for its rows."""
    problem = load_problem(definition, seed, folder, "cpu")
    recipe = Recipe.for_rows(len(problem.train))
    return problem.network, problem.train, problem.test, recipe


def with_cosine(build: Callable[[], nn.Module]) -> nn.Module:
    """The network with the cosine classifier of the race's second arm."""
    return with_normalized_head(build(), COSINE_SCALE)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", default="100000", help="of the made tables, such as 30000,100000")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--cosine", action="store_true", help="a cosine classifier on top")
    parser.add_argument(
        "--data", help="folder of the bench's datasets; without it made tables alone"
    )
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    results = []
    for seed in map(int, options.seeds.split(",")):
        cases: list[tuple[str, Any]] = [
            (f"made, {rows:,} rows", partial(made, rows, seed))
            for rows in map(int, filter(None, options.rows.split(",")))
        ]
        for name in DEVELOPING if options.data else ():
            definitions = {name: resolved(name)}
            if name in WHOLE:
                definitions[f"{name}, all rows"] = replace(resolved(name), long_tail=None)
            for title, definition in definitions.items():
                cases.append((title, partial(real, definition, seed, options.data)))
        for name, case in cases:
            build, data, test, recipe = case()
            if options.cosine:
                build = partial(with_cosine, build)
            found = compare(build, data, test, recipe, seed)
            results.append({"table": name, "seed": seed, "cosine": options.cosine, **found})
            print(json.dumps(results[-1]), flush=True)
    if options.json is not None:
        options.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
