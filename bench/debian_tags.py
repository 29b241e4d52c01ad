"""Losses for several labels on the tags of Debian packages, from their descriptions.

    python bench/debian_tags.py --data DIR --json FILE [--seeds 3] [--only METHOD ...]
    python bench/debian_tags.py --json FILE --table

Packages are split by source, so that no description of a source is in two parts: 70 % of the sources to
train and 30 % to test; of the first a fifth is the validation set of everything that is tuned, and joins the
training in the end. Descriptions become TF-IDF of words, reduced to 256 numbers by an SVD of the training
part. Labels are the tags with at least 5 positives in training and 3 in validation and in test. One network,
one recipe, and one line of JSON for each method and seed; a method that the file has is not run again.

The table has the mean over seeds and its standard error, in percent: the balanced error of a label averaged
over labels, that of the worst tenth of the labels and of the worst, one minus macro F1 and one minus mean
average precision. DIR is the data folder of `autobalance compare`, also AUTOBALANCE_DATA.
"""

from __future__ import annotations

import argparse
import functools
import json
import lzma
import os
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from torch import Tensor, nn

from autobalance import (
    ArrayData,
    AsymmetricLoss,
    BalancedError,
    CVaRError,
    DistributionBalancedLoss,
    HierarchicalLabelSpace,
    MacroF1Error,
    ParametricBinaryCrossEntropy,
    Recipe,
    SearchSettings,
    WorstError,
    retrain,
    search,
)
from autobalance.bilevel import predict_logits
from autobalance.data import concatenated
from autobalance.records import average_precision_error
from measuring import mean_and_error, read_runs

RECIPE = Recipe(epochs=20, min_steps=1, batch_size=256)
FEATURES, HIDDEN = 256, 512
TAUS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25)
LEAST_TRAINED, LEAST_JUDGED = 5, 3
MEASURES = {
    "balanced_error": BalancedError(over="label"),
    "worst_tenth": CVaRError(over="label", fraction=0.1),
    "worst_label": WorstError(over="label"),
    "macro_f1_error": MacroF1Error(),
}


class Problem:
    """The three parts of the data for one seed, and the network for them."""

    def __init__(self, folder: Path, seed: int) -> None:
        texts, sources, tags = read_packages(folder)
        part = split_by_source(sources, np.random.default_rng(seed))
        words = TfidfVectorizer(sublinear_tf=True, min_df=3, max_features=30_000)
        counted = words.fit_transform([text for text, p in zip(texts, part, strict=True) if p < 2])
        svd = TruncatedSVD(FEATURES, random_state=seed).fit(counted)
        reduced = svd.transform(words.transform(texts))
        inputs = torch.tensor(reduced / reduced[part < 2].std(axis=0), dtype=torch.float32)
        target = tag_matrix(tags, part)
        self.train, self.validation, self.test = (
            ArrayData.of(inputs[part == p], target[part == p]) for p in range(3)
        )
        self.whole = concatenated(self.train, self.validation)
        self.seed = seed

    def network(self) -> nn.Module:
        """A multilayer perceptron."""
        return nn.Sequential(
            nn.Linear(FEATURES, HIDDEN),
            nn.BatchNorm1d(HIDDEN),
            nn.ReLU(),
            nn.Dropout(0.3),
            nn.Linear(HIDDEN, self.train.num_classes),
        )

    def fit(self, loss: Any, data: ArrayData | None = None) -> nn.Module:
        """The network trained with a loss, on all data but the test set."""
        return retrain(
            self.network, data or self.whole, loss, recipe=RECIPE, seed=self.seed, device="cpu"
        )

    def judge(self, logits: Tensor) -> dict[str, float]:
        """Every measure on the test set."""
        values = {name: m.hard(logits, self.test.target) for name, m in MEASURES.items()}
        error = average_precision_error(logits.numpy(), self.test.target.numpy())
        return {**values, "average_precision_error": error}


def read_packages(folder: Path) -> tuple[list[str], list[str], list[list[str]]]:
    """Description, source and tags of each package that has tags."""
    described: dict[str, tuple[str, str]] = {}
    with lzma.open(folder / "text/debian_sections.tsv.xz", "rt", encoding="utf-8") as lines:
        for line in lines:
            package, source, _, text = line.rstrip("\n").split("\t")
            described[package] = text, source
    rows = []
    with lzma.open(folder / "text/debian_tags.tsv.xz", "rt", encoding="utf-8") as lines:
        for line in lines:
            package, tags = line.rstrip("\n").split("\t")
            if package in described:
                rows.append((*described[package], tags.split("|")))
    texts, sources, tags = (list(column) for column in zip(*rows, strict=True))
    return texts, sources, tags


def split_by_source(sources: list[str], generator: np.random.Generator) -> np.ndarray:
    """0 to train, 1 to validate and 2 to test, one for all packages of a source."""
    names, index = np.unique(sources, return_inverse=True)
    draw = generator.random(len(names))[index]
    return np.where(draw < 0.3, 2, np.where(draw < 0.3 + 0.14, 1, 0))


def tag_matrix(tags: list[list[str]], part: np.ndarray) -> Tensor:
    """0 and 1 of the tags that every part has enough of, ``(n, k)``."""
    counts: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(3, int))
    for own, p in zip(tags, part, strict=True):
        for tag in own:
            counts[tag][p] += 1
    least = np.array([LEAST_TRAINED, LEAST_JUDGED, LEAST_JUDGED])
    kept = {
        tag: i for i, tag in enumerate(sorted(t for t, n in counts.items() if (n >= least).all()))
    }
    target = torch.zeros(len(tags), len(kept), dtype=torch.int8)
    for i, own in enumerate(tags):
        target[i, [kept[tag] for tag in own if tag in kept]] = 1
    return target


# Methods: from a problem to logits on the test set -------------------------------------------


def with_loss(build: Callable[[np.ndarray], Any]) -> Callable[[Problem], Tensor]:
    """Train once with the loss that the training counts give."""

    def run(problem: Problem) -> Tensor:
        model = problem.fit(build(problem.whole.counts()))
        return predict_logits(model, problem.test)

    return run


def adjusted_afterwards(problem: Problem) -> Tensor:
    """Plain cross-entropy; a label is predicted where it is likelier than it is frequent."""
    negatives, positives = torch.from_numpy(problem.whole.counts())
    logits = predict_logits(problem.fit(ParametricBinaryCrossEntropy()), problem.test)
    return logits - (positives / negatives).log().float()


def tuned_tau(problem: Problem) -> Tensor:
    """Logit adjustment, with the tau of the least balanced error on validation data."""
    errors = []
    for tau in TAUS:
        loss = ParametricBinaryCrossEntropy.logit_adjusted(problem.train.counts(), tau)
        logits = predict_logits(problem.fit(loss, problem.train), problem.validation)
        errors.append(MEASURES["balanced_error"].hard(logits, problem.validation.target))
    best = TAUS[int(np.argmin(errors))]
    loss = ParametricBinaryCrossEntropy.logit_adjusted(problem.whole.counts(), best)
    return predict_logits(problem.fit(loss), problem.test)


def designed(objective: Any, **space: Any) -> Callable[[Problem], Tensor]:
    """The loss designed for an objective on validation data, in the default space or with such options."""

    def run(problem: Problem) -> Tensor:
        result = search(
            problem.network, problem.train, validation=problem.validation, objective=objective,
            recipe=RECIPE, settings=SearchSettings(), seed=problem.seed, device="cpu",
            space=functools.partial(HierarchicalLabelSpace, **space) if space else None,
        )  # fmt: skip
        print(result.summary(), flush=True)
        return predict_logits(problem.fit(result), problem.test)

    return run


METHODS: dict[str, Callable[[Problem], Tensor]] = {
    "bce": with_loss(lambda counts: ParametricBinaryCrossEntropy()),
    "pos_weight": with_loss(
        lambda counts: ParametricBinaryCrossEntropy.with_pos_weight(counts[0] / counts[1])
    ),
    "asymmetric": with_loss(lambda counts: AsymmetricLoss()),
    "distribution_balanced": with_loss(DistributionBalancedLoss),
    "logit_adjusted": with_loss(ParametricBinaryCrossEntropy.logit_adjusted),
    "bce_adjusted_afterwards": adjusted_afterwards,
    "tuned_tau": tuned_tau,
    "designed": designed("balanced_error"),
    "designed_wide": designed("balanced_error", sigma_tau=2.0),
    "designed_worst": designed("worst_class_error"),
    "designed_macro_f1": designed("macro_f1"),
}


def print_table(results: dict[tuple[Any, ...], dict[str, Any]]) -> None:
    """Means over seeds and their standard errors, in percent, as Markdown."""
    names = [*MEASURES, "average_precision_error"]
    print("| method | seeds | " + " | ".join(names) + " | seconds |")
    print("|---" * (len(names) + 3) + "|")
    for method in METHODS:
        rows = [r for (name, _), r in results.items() if name == method]
        if not rows:
            continue
        cells = []
        for name in names:
            mean, error = mean_and_error(100 * r["values"][name] for r in rows)
            cells.append(f"{mean:.1f} ± {error:.1f}")
        seconds = np.mean([r["seconds"] for r in rows])
        print(f"| {method} | {len(rows)} | " + " | ".join(cells) + f" | {seconds:.0f} |")


def main() -> None:
    """Read the options; run what the file lacks, or print its table."""
    parser = argparse.ArgumentParser(description="Losses for several labels, on Debian packages.")
    parser.add_argument("--data", type=Path, default=os.environ.get("AUTOBALANCE_DATA"))
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=[*METHODS], default=[*METHODS])
    parser.add_argument("--table", action="store_true", help="print what the file has")
    options = parser.parse_args()
    results = read_runs(options.json, "method", "seed")
    if options.table:
        print_table(results)
        return
    for seed in range(options.seeds):
        missing = [name for name in options.only if (name, seed) not in results]
        if not missing:
            continue
        problem = Problem(options.data, seed)
        sizes = [len(d) for d in (problem.train, problem.validation, problem.test)]
        print(f"seed {seed}: {sizes} packages, {problem.train.num_classes} labels", flush=True)
        for name in missing:
            begun = time.process_time()
            values = problem.judge(METHODS[name](problem))
            record = {
                "method": name,
                "seed": seed,
                "labels": problem.train.num_classes,
                "values": values,
                "seconds": time.process_time() - begun,
            }
            with options.json.open("a") as file:
                file.write(json.dumps(record) + "\n")
            print(name, {k: round(100 * v, 1) for k, v in values.items()}, flush=True)


if __name__ == "__main__":
    main()
