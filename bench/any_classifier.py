"""Decisions designed on out-of-fold probabilities of LightGBM, against none, logit adjustment and tuning.

    .venv/bin/python bench/any_classifier.py --data DIR --out FOLDER [--tables yeast,car] [--seeds 5]
    .venv/bin/python bench/any_classifier.py --out FOLDER --summary [--json FILE]

The tables are the suite's, eleven as they are and eight with one class against the rest, and LightGBM is
as it comes and with max_delta_step=1, on one thread; see `out_of_fold.py`. On the same out-of-fold
probabilities: no adjustment; post hoc logit adjustment, l = log pi; the tau of 31 from 0 to 3 with
the lowest balanced error; `design_adjustment` for the balanced error and for the worst class; and for
two classes scikit-learn's TunedThresholdClassifierCV on the same folds, and the threshold that AutoGluon's
calibration takes. Ensembles on balanced samples, of imbalanced-learn and imbalanced-ensemble, are fitted
to the same rows in place of LightGBM, so their runs are the same beside both of its variants. Test errors
are in percent, and expected over draws where the decisions for the worst class are drawn.

FOLDER keeps the probabilities in `scores/` and a line for each finished run in `cells.jsonl`; neither is
made again.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.model_selection import TunedThresholdClassifierCV

from autobalance import design_adjustment
from autobalance_bench.comparison.ensembles import ENSEMBLES, fit_ensemble
from measuring import kept_options, mean_and_error, run_unless_summary, write_json
from out_of_fold import FOLDS, TABLES, TWO_CLASS, VARIANTS, Scores, load_scores, load_table

OF_TWO_CLASSES = ("tuned_threshold", "calibrated_threshold")
METHODS = (
    "none", "post_hoc", "tuned_tau", "designed", "designed_worst", *OF_TWO_CLASSES, *ENSEMBLES
)  # fmt: skip
TAUS = np.arange(31) / 10.0
MEASURES = ("balanced", "worst")
Cell = dict[str, Any]


# Methods: from the scores to the decisions on test rows ``(n, k)``, and what to keep of how they came about


def _adjusted(scores: Scores, tau: float) -> np.ndarray:
    return _one_hot((_logs(scores.test) - tau * _log_prior(scores)).argmax(axis=1), scores)


def _one_hot(predicted: np.ndarray, scores: Scores) -> np.ndarray:
    return np.eye(scores.test.shape[1])[predicted]


def _tuned_tau(scores: Scores) -> tuple[np.ndarray, Cell]:
    held = scores.fold >= 0
    z, target = _logs(scores.out_of_fold[held]), scores.target[held]
    values = [
        errors(target, np.eye(z.shape[1])[(z - tau * _log_prior(scores)).argmax(axis=1)])[
            "balanced"
        ]
        for tau in TAUS
    ]
    tau = float(TAUS[int(np.argmin(values))])
    return _adjusted(scores, tau), {"tau": tau}


def _designed(scores: Scores, objective: str) -> tuple[np.ndarray, Cell]:
    held = scores.fold >= 0
    adjustment = design_adjustment(
        scores.out_of_fold[held],
        scores.target[held],
        objective=objective,
        class_counts=np.bincount(scores.target),
        resamples=0,
    )
    details = {"chosen": adjustment.chosen, "tau": adjustment.tau, "gain": adjustment.gain}
    return adjustment.decision_shares(scores.test), details


class KeptProbabilities(ClassifierMixin, BaseEstimator):
    """A classifier of row numbers whose probabilities are kept: those of the fold it is not fitted on."""

    def __init__(self, scores: Scores | None = None) -> None:
        self.scores = scores

    def fit(self, X: np.ndarray, y: np.ndarray) -> KeptProbabilities:
        self.classes_ = np.unique(y)
        return self

    def predict_proba(self, X: np.ndarray) -> np.ndarray:
        """Of training rows by their number, and of test rows by -1 less their number."""
        assert self.scores is not None
        rows = X[:, 0].astype(int)
        train, test = np.maximum(rows, 0), np.maximum(-1 - rows, 0)
        return np.where(
            rows[:, None] >= 0, self.scores.out_of_fold[train], self.scores.test[test]
        ).astype(np.float64)


def _tuned_threshold(scores: Scores) -> tuple[np.ndarray, Cell]:
    rows = np.arange(len(scores.target))
    splits = [(rows[scores.fold != f], rows[scores.fold == f]) for f in range(FOLDS)]
    model = TunedThresholdClassifierCV(KeptProbabilities(scores), cv=splits)
    try:
        model.fit(rows[:, None], scores.target)
    except ValueError as error:  # It refuses scores that are nearly constant in a fold.
        return _one_hot(scores.test.argmax(axis=1), scores), {"refused": str(error)}
    predicted = model.predict(-1 - np.arange(len(scores.test))[:, None])
    return _one_hot(np.asarray(predicted), scores), {"threshold": float(model.best_threshold_)}


def _calibrated_threshold(scores: Scores) -> tuple[np.ndarray, Cell]:
    held = scores.fold >= 0
    threshold = calibrate_threshold(scores.out_of_fold[held, 1], scores.target[held])
    return _one_hot(1 * (scores.test[:, 1] > threshold), scores), {"threshold": threshold}


def calibrate_threshold(p: np.ndarray, target: np.ndarray) -> float:
    """AutoGluon's threshold for the second of two classes, with the balanced accuracy as its metric.

    Its calibration tries 51 thresholds from 0 to 1, then 19 on each side of the best one. A class is decided
    on above the threshold, not at it. Of equal thresholds the one nearest to 0.5 is taken. Where the best one
    is 0 or 1, the finer ones lie outside of the two, in AutoGluon as here, so that nothing is refined.
    """
    steps = np.arange(1, 26) / 50
    grid = np.r_[0.5, np.stack([0.5 - steps, 0.5 + steps], axis=1).ravel()]
    best = _best_threshold(grid, p, target)
    fine = np.arange(1, 20) / 1000
    upper = best + fine if best > 0 else []
    lower = best - fine if best < 1 else []
    return _best_threshold(np.r_[best, upper, lower], p, target)


def _best_threshold(thresholds: np.ndarray, p: np.ndarray, target: np.ndarray) -> float:
    """The threshold with the lowest balanced error; of several the nearest to 0.5, then the first."""
    above = p[:, None] > thresholds
    error = above[target == 0].mean(axis=0) + 1.0 - above[target == 1].mean(axis=0)
    return float(thresholds[np.lexsort((abs(thresholds - 0.5), error))[0]])


RUNS: dict[str, Callable[[Scores], tuple[np.ndarray, Cell]]] = {
    "none": lambda scores: (_adjusted(scores, 0.0), {}),
    "post_hoc": lambda scores: (_adjusted(scores, 1.0), {}),
    "tuned_tau": _tuned_tau,
    "designed": lambda scores: _designed(scores, "balanced_error"),
    "designed_worst": lambda scores: _designed(scores, "worst_class_error"),
    "tuned_threshold": _tuned_threshold,
    "calibrated_threshold": _calibrated_threshold,
}


def errors(target: np.ndarray, shares: np.ndarray) -> dict[str, float]:
    """Mean and largest of the errors of the classes that have test rows, in percent.

    Shares ``(n, k)`` say how often each class is decided: where decisions are drawn, errors are those
    expected over draws.
    """
    per_class = [100.0 * np.mean(1.0 - shares[target == c, c]) for c in np.unique(target)]
    return {"balanced": float(np.mean(per_class)), "worst": float(np.max(per_class))}


def _logs(probabilities: np.ndarray) -> np.ndarray:
    return np.log(np.maximum(probabilities.astype(np.float64), 1e-9))


def _log_prior(scores: Scores) -> np.ndarray:
    return np.log(np.bincount(scores.target) / len(scores.target))


# Running --------------------------------------------------------------------------------------


def cases(options: argparse.Namespace) -> Iterator[tuple[str, bool, int, str]]:
    """Table, whether of two classes, seed and variant of LightGBM."""
    tables = options.tables.split(",")
    for seed in range(options.seeds):
        for variant in VARIANTS:
            yield from ((t, False, seed, variant) for t in TABLES if t in tables)
            yield from ((t, True, seed, variant) for t in TWO_CLASS if t in tables)


def run_all(options: argparse.Namespace) -> None:
    path = options.out / "cells.jsonl"
    methods = METHODS if options.methods is None else options.methods.split(",")
    done = {key_of(cell) for cell in read_cells(path)}
    for table, two_class, seed, variant in cases(options):
        missing = [
            method
            for method in methods
            if (two_class or method not in OF_TWO_CLASSES)
            and (table, two_class, seed, variant, method) not in done
        ]
        for method in missing:
            ensemble = method in ENSEMBLES
            run = run_ensemble if ensemble else run_method
            found = run(method, table, two_class, seed, variant, options)
            for known in VARIANTS if ensemble else (variant,):
                cell = {
                    "table": table, "two_class": two_class, "seed": seed, "variant": known,
                    "method": method, **found,
                }  # fmt: skip
                done.add(key_of(cell))
                with path.open("a") as file:
                    file.write(json.dumps(cell) + "\n")
        if missing:
            kind = ", two classes" if two_class else ""
            print(f"{table}{kind}, seed {seed}, {variant}", flush=True)


def run_method(
    method: str, name: str, two_class: bool, seed: int, variant: str, options: argparse.Namespace
) -> Cell:
    scores = _load_scores(name, two_class, seed, variant, folder=options.out, data=options.data)
    begun = time.process_time()
    shares, details = RUNS[method](scores)
    seconds = time.process_time() - begun
    return {**errors(scores.test_target, shares), "seconds": seconds, "details": details}


def run_ensemble(
    method: str, name: str, two_class: bool, seed: int, variant: str, options: argparse.Namespace
) -> Cell:
    """The same for every variant of LightGBM."""
    table = _load_table(name, two_class, seed, options.data)
    begun = time.process_time()
    decided = fit_ensemble(method, table.inputs, table.target, seed).predict(table.test_inputs)
    seconds = time.process_time() - begun
    found = errors(table.test_target, np.eye(table.num_classes)[decided])
    return {**found, "seconds": seconds, "details": {}}


# All methods of a case follow each other.
_load_scores = lru_cache(maxsize=1)(load_scores)
_load_table = lru_cache(maxsize=1)(load_table)


def read_cells(path: Path) -> list[Cell]:
    """The finished runs; an incomplete last line is left out."""
    if not path.exists():
        return []
    lines = path.read_text().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def key_of(cell: Cell) -> tuple[str, bool, int, str, str]:
    return cell["table"], cell["two_class"], cell["seed"], cell["variant"], cell["method"]


# Showing --------------------------------------------------------------------------------------


def numbers_of(cells: list[Cell]) -> dict[str, dict[str, dict[str, list[float]]]]:
    """Mean and standard error over seeds, by table with its variant, method and measure."""
    values: dict[str, dict[str, dict[str, list[float]]]] = {}
    for cell in cells:
        name = f"{cell['table']}{' two classes' if cell['two_class'] else ''}, {cell['variant']}"
        row = values.setdefault(name, {}).setdefault(cell["method"], {m: [] for m in MEASURES})
        for measure in MEASURES:
            row[measure].append(cell[measure])
    return {
        name: {
            method: {measure: list(mean_and_error(found)) for measure, found in row.items()}
            for method, row in methods.items()
        }
        for name, methods in sorted(values.items())
    }


def show(cells: list[Cell]) -> None:
    """Tables of Markdown, and what the design changes beside each rival on the same seeds."""
    numbers = numbers_of(cells)
    for measure in MEASURES:
        print(f"\n{measure} error, %\n\n| table | " + " | ".join(METHODS) + " |")
        print("| --- |" + " ---: |" * len(METHODS))
        for name, row in numbers.items():
            texts = [
                f"{row[m][measure][0]:.2f} ± {row[m][measure][1]:.2f}" if m in row else "–"
                for m in METHODS
            ]
            print(f"| {name} | " + " | ".join(texts) + " |")
    for two_class in (False, True):
        some = [cell for cell in cells if cell["two_class"] == two_class]
        for ours, measure in (("designed", "balanced"), ("designed_worst", "worst")):
            for rival in METHODS:
                if rival != ours and (two_class or rival not in OF_TWO_CLASSES):
                    _show_difference(some, ours, rival, measure, two_class)
    _show_worst_case([cell for cell in cells if not cell["two_class"]])


def _show_difference(
    cells: list[Cell], ours: str, rival: str, measure: str, two_class: bool
) -> None:
    by_key = {key_of(cell): cell[measure] for cell in cells}
    by_seed: dict[int, list[float]] = {}
    for key in by_key:
        other = (*key[:4], rival)
        if key[4] == ours and other in by_key:
            by_seed.setdefault(key[2], []).append(by_key[key] - by_key[other])
    if by_seed:
        mean, error = mean_and_error([float(np.mean(values)) for values in by_seed.values()])
        what = "two classes" if two_class else "all classes"
        print(f"{what}, {measure}: {ours} less {rival} {mean:+.2f} ± {error:.2f}, mean over tables")


def _show_worst_case(cells: list[Cell]) -> None:
    """On which tables the design is above the best of none, post hoc and tuned tau, and by how much."""
    groups: dict[tuple[str, str], dict[str, dict[int, float]]] = {}
    for cell in cells:
        row = groups.setdefault((cell["table"], cell["variant"]), {})
        row.setdefault(cell["method"], {})[cell["seed"]] = cell["balanced"]
    print("\ndesigned less the better of none, post_hoc and tuned_tau, balanced error")
    for (table, variant), row in groups.items():
        rivals = [m for m in ("none", "post_hoc", "tuned_tau") if m in row]
        if "designed" not in row or not rivals:
            continue
        best = min(rivals, key=lambda m: float(np.mean(list(row[m].values()))))
        seeds = sorted(row["designed"].keys() & row[best].keys())
        mean, error = mean_and_error([row["designed"][s] - row[best][s] for s in seeds])
        mark = " ABOVE" if mean > 0.3 and mean > 2 * error else ""
        print(f"{table}, {variant}: {mean:+.2f} ± {error:.2f} ({best}){mark}")


def main(arguments: list[str] | None = None) -> None:
    parser = kept_options(__doc__, "folder for the finished runs")
    parser.add_argument("--tables", default=",".join(TABLES), help="names with commas between")
    parser.add_argument("--seeds", type=int, default=5, help="how many, from 0")
    parser.add_argument("--methods", help="names with commas between; default all")
    options = parser.parse_args(arguments)
    run_unless_summary(parser, options, run_all)
    cells = read_cells(options.out / "cells.jsonl")
    if not cells:
        parser.error(f"{options.out} has no finished runs; run without --summary first")
    show(cells)
    write_json(options.json, numbers_of(cells))


if __name__ == "__main__":
    main()
