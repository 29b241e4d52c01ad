"""`autobalance demo --table`: five ways to decide with boosted trees, on two small real tables."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
import pandas as pd
from jsonargparse import Namespace
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.model_selection import train_test_split
from sklearn.pipeline import Pipeline, make_pipeline

from autobalance.bilevel import used_versions
from autobalance.cli.adjusted_run import AdjustedModel, ScoreColumns
from autobalance.cli.demo_record import average
from autobalance.cli.estimators import TableReader, new_pipeline
from autobalance.cli.options import DONE, INTERRUPTED, complain
from autobalance.cli.run_folder import write_run
from autobalance.cli.terminal import LiveProgress, print_legend, print_methods
from autobalance.data import TableWarning
from autobalance.data.adult import adult_sample
from autobalance.posthoc import design_adjustment, measure_taus
from autobalance.records import classification_report, confused_pairs, output_folder
from autobalance.report import REPORT
from autobalance.sklearn import LogitAdjustedClassifierCV

TITLES = {
    "cross_entropy": "Plain trees",
    "class_weights": "Class weights",
    "logit_adjustment": "Post-hoc logit adjustment",
    "autobalance": "autobalance, balanced error",
    "autobalance_worst_class": "autobalance, worst class",
}
LIGHTGBM = "lightgbm"
SCIKIT_LEARN = "sklearn.ensemble.HistGradientBoostingClassifier"
_LEGEND = (
    "Each seed splits the rows anew: one part is trained on, the other decides nothing. Worst class: that "
    "of each seed, then the mean.",
    "Runs: fits of the trees. Designing decisions takes five folds, and one fit on all rows; both "
    "objectives share them. On the two classes of Adult class weights do as well.",
)


@dataclass(frozen=True)
class Split:
    """A table's rows to train on, and rows that nothing but the last evaluation sees."""

    train: pd.DataFrame
    target: np.ndarray
    test: pd.DataFrame
    test_target: np.ndarray
    classes: list[str]


@dataclass(frozen=True)
class SmallTable:
    """A table of the demo: what it is in words, and its split for a seed."""

    title: str
    split: Callable[[int], Split]


def split_digits(seed: int) -> Split:
    """Scikit-learn's 1,797 handwritten digits, 64 columns; the training half is made long-tailed.

    Of its n rows of digit k, k = 0 to 9, n * 20^(-k / 9) are kept: 89 of digit 0 down to 5 of digit 9.
    """
    digits: Any = load_digits(as_frame=True)
    parts: list[Any] = train_test_split(
        digits.data, digits.target.to_numpy(), test_size=0.5, stratify=digits.target, random_state=seed
    )  # fmt: skip
    train, test, target, test_target = parts
    generator = np.random.default_rng(seed)
    keep = []
    for k in range(10):
        rows = generator.permutation(np.flatnonzero(target == k))
        keep.append(rows[: max(5, round(len(rows) * 20 ** (-k / 9)))])
    kept = np.concatenate(keep)
    names = [f"digit {k}" for k in range(10)]
    return Split(train.iloc[kept], target[kept], test, test_target, names)


def split_adult(seed: int) -> Split:
    """The package's 4,000 rows of Adult, as imbalanced as they are; a third is for the test."""
    table = adult_sample()
    classes, labels = np.unique(table.pop("income"), return_inverse=True)
    parts: list[Any] = train_test_split(
        table, labels, test_size=1 / 3, stratify=labels, random_state=seed
    )
    train, test, target, test_target = parts
    return Split(train, target, test, test_target, classes.tolist())


TABLES = {
    "digits": SmallTable("Digits: 10 classes, 20 to 1, 307 rows", split_digits),
    "adult": SmallTable("Adult: 2 classes, 3 to 1, 2,666 rows", split_adult),
}


def run_table_demo(options: Namespace, command: str) -> int:
    """Run the demo on tables, write its RUN folders and print its tables; returns the exit code."""
    out = output_folder(options.out or "demo-table", overwrite=options.overwrite)
    folders = {name: out if name == "digits" else out / name for name in TABLES}
    library = LIGHTGBM if find_spec("lightgbm") else SCIKIT_LEARN
    seeds = range(options.seed, options.seed + options.seeds)
    trained: dict[str, list[dict[str, Any]]] = {name: [] for name in TABLES}
    count = len(TABLES) * len(seeds)
    status = "finished"
    try:
        with LiveProgress() as live:
            for name, table in TABLES.items():
                for seed in seeds:
                    live.count("Demo", sum(map(len, trained.values())), count)
                    trained[name].append(train_trees(table.split(seed), library, seed))
    except KeyboardInterrupt:
        status = "interrupted"
    records = {
        name: _record(own, TABLES[name].split(seeds[0]), command, library, status)
        for name, own in trained.items()
        if own
    }
    written = [write_run(folders[name], record) for name, record in records.items()]
    if status == "interrupted":
        done = f"{sum(map(len, trained.values()))} of {count} trainings are done: {out / REPORT}"
        state = done if any(written) else f"Nothing was written into {out}"
        return complain(f"Interrupted. {state}.", INTERRUPTED)
    for name, record in records.items():
        print_methods(record["methods"], title=TABLES[name].title)
        print()
    print_legend(_LEGEND)
    print(f"Reports: {', '.join(str(folder / REPORT) for folder in folders.values())}")
    model = f"--model {library} --out RUN"
    print(f"Next, on a table of your own: autobalance fit TABLE.csv --target COLUMN {model}")
    return DONE


def build_trees(library: str, seed: int) -> Pipeline:
    """The reader of a table and boosted trees, as `autobalance fit --model` builds them."""
    if library == LIGHTGBM:
        return new_pipeline(LIGHTGBM, seed)
    return make_pipeline(TableReader(), HistGradientBoostingClassifier(random_state=seed))


def train_trees(split: Split, library: str, seed: int) -> dict[str, Any]:
    """Every method of `TITLES` on one split: "entries" in their order, and the first's "adjustment"."""
    k = len(split.classes)
    trees: Any = build_trees(library, seed)
    plain_trees: Any = clone(trees)
    weighted: Any = clone(trees)
    prior = np.bincount(split.target) / len(split.target)
    clock = _Clock()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TableWarning)  # of each fold
        probabilities = plain_trees.fit(split.train, split.target).predict_proba(split.test)
        plain = clock.read()
        weighted.set_params(**{f"{trees.steps[-1][0]}__class_weight": "balanced"})
        by_weights = weighted.fit(split.train, split.target).predict(split.test)
        weights = clock.read()
        designed = LogitAdjustedClassifierCV(trees, random_state=seed)
        designed.fit(split.train, split.target)
        by_design = designed.predict(split.test)
        design = clock.read()
    rows = designed.result_.rows
    scores = designed.result_.scores[rows]
    for_worst = design_adjustment(
        scores, split.target[rows], objective="worst_class_error", seed=seed
    )
    by_worst = for_worst.predict(probabilities)
    worst = clock.read()
    decided: dict[str, tuple[np.ndarray, tuple[float, float], int]] = {
        "cross_entropy": (probabilities.argmax(axis=1), plain, 1),
        "class_weights": (by_weights, weights, 1),
        "logit_adjustment": ((np.log(probabilities) - np.log(prior)).argmax(axis=1), plain, 1),
        "autobalance": (by_design, design, 6),
        # Its fits are those of the balanced error; alone it would need them, too.
        "autobalance_worst_class": (
            by_worst,
            (design[0] + worst[0], design[1] + worst[1]),
            6,
        ),
    }
    entries = [
        {
            "name": name,
            "title": TITLES[name],
            "seed": seed,
            **classification_report(split.test_target, predicted, k),
            "confused": confused_pairs(split.test_target, predicted, k),
            "seconds": seconds,
            "cpu_seconds": cpu_seconds,
            "training_runs": float(fits),
        }
        for name, (predicted, (seconds, cpu_seconds), fits) in decided.items()
    ]
    curve = measure_taus(designed.adjustment_, scores, split.target[rows], seed=seed)
    model = AdjustedModel(
        ScoreColumns([]), designed.adjustment_, np.array(split.classes), None, curve
    )
    return {"entries": entries, "decisions": model.record(), "seed": seed}


class _Clock:
    """Seconds on the clock and of the processor since the last reading."""

    def __init__(self) -> None:
        self.last = time.perf_counter(), time.process_time()

    def read(self) -> tuple[float, float]:
        before, self.last = self.last, (time.perf_counter(), time.process_time())
        return self.last[0] - before[0], self.last[1] - before[1]


def _record(
    trained: list[dict[str, Any]], split: Split, command: str, library: str, status: str
) -> dict[str, Any]:
    """A table's ``result.json``; the decisions shown are those of the first seed."""
    columns = zip(*(each["entries"] for each in trained), strict=True)
    methods = {own[0]["name"]: average(own) for own in columns}
    seeds = [each["seed"] for each in trained]
    means = f", means over {len(seeds)} splits" if len(seeds) > 1 else ""
    decisions = trained[0]["decisions"]
    decisions["adjustment"]["model"] = library
    return {
        "kind": "demo",
        "status": status,
        "command": command,
        "objective": "balanced_error",
        "evaluation_data": f"{len(split.test):,} test rows{means}",
        "methods": methods,
        "seconds": {"total": sum(m["seconds"] * len(seeds) for m in methods.values())},
        "versions": used_versions(),
        "seed": seeds[0],
        "seeds": seeds,
        **decisions,
    }
