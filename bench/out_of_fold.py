"""Out-of-fold and test probabilities of LightGBM on the tables of `any_classifier.py`, kept in files.

The tables are the suite's, in the suite's splits and encoded as for its networks. A two-class version
of a table has one class against the rest: the smallest that has `LEAST_POSITIVES` training rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np

from autobalance.data import assign_folds
from autobalance_bench.comparison.datasets import definition_of, load_problem

TABLES = (
    "yeast", "page-blocks", "satellite", "letter-lt-10", "letter-lt-50", "letter-lt-100",
    "ecoli", "car", "abalone", "nursery", "shuttle",
)  # fmt: skip
TWO_CLASS = ("yeast", "page-blocks", "satellite", "ecoli", "car", "abalone", "nursery", "shuttle")
FOLDS = 5
LEAST_POSITIVES = 20
VARIANTS: dict[str, dict[str, Any]] = {"default": {}, "max_delta_step=1": {"max_delta_step": 1}}


@dataclass(frozen=True)
class Scores:
    """Probabilities of one table, seed and variant of LightGBM.

    Attributes
    ----------
    out_of_fold : ndarray
        Probabilities of the training rows from models that did not see them, shape ``(n, k)``; NaN
        where the row is the only one of its class and was in every training.
    target : ndarray
        Classes of the training rows, shape ``(n,)``.
    fold : ndarray
        Which fold held a row out, shape ``(n,)``; -1 for none.
    test, test_target : ndarray
        Probabilities ``(m, k)`` of the test rows from the model of all training rows, and classes.
    """

    out_of_fold: np.ndarray
    target: np.ndarray
    fold: np.ndarray
    test: np.ndarray
    test_target: np.ndarray


def load_scores(
    table: str, two_class: bool, seed: int, variant: str, *, folder: Path, data: Path | None
) -> Scores:
    """The scores from their file in `folder`; fitted, and written there, where there is none."""
    name = f"{table}{'-two-class' if two_class else ''}-{variant.replace('=', '')}-{seed}.npz"
    path = folder / "scores" / name
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        scores = _fit(table, two_class, seed, VARIANTS[variant], data)
        part = path.with_suffix(".part.npz")
        np.savez_compressed(part, **vars(scores))
        part.replace(path)
    with np.load(path) as stored:
        return Scores(**{key: stored[key] for key in stored.files})


@dataclass(frozen=True)
class Table:
    """One table and seed: encoded rows ``(n, d)`` and classes ``(n,)`` to train on, and to test on.

    `num_classes` also counts classes that training rows lack.
    """

    inputs: np.ndarray
    target: np.ndarray
    test_inputs: np.ndarray
    test_target: np.ndarray
    num_classes: int


def load_table(name: str, two_class: bool, seed: int, data: Path | None) -> Table:
    """A table in the suite's split; in two classes where `two_class`."""
    problem = load_problem(definition_of(name), seed, data)
    target, test_target = problem.train.target.numpy(), problem.test.target.numpy()
    k = problem.train.num_classes
    if two_class:
        counts = np.bincount(target, minlength=k)
        positive = int(np.where(counts >= LEAST_POSITIVES, counts, len(target)).argmin())
        target, test_target, k = 1 * (target == positive), 1 * (test_target == positive), 2
    inputs, test_inputs = problem.train.inputs.numpy(), problem.test.inputs.numpy()
    return Table(inputs, target, test_inputs, test_target, k)


def _fit(
    name: str, two_class: bool, seed: int, options: dict[str, Any], data: Path | None
) -> Scores:
    table = load_table(name, two_class, seed, data)
    inputs, target, k = table.inputs, table.target, table.num_classes

    def predict(train: np.ndarray, rows: np.ndarray) -> np.ndarray:
        model = lightgbm.LGBMClassifier(random_state=seed, n_jobs=1, verbosity=-1, **options)
        model.fit(inputs[train], target[train])
        found = np.zeros((len(rows), k), dtype=np.float32)
        found[:, model.classes_] = np.asarray(model.predict_proba(rows))
        return found

    fold = assign_folds(target, FOLDS, np.random.default_rng(seed))
    out_of_fold = np.full((len(target), k), np.nan, dtype=np.float32)
    for f in range(FOLDS):
        out_of_fold[fold == f] = predict(fold != f, inputs[fold == f])
    everything = np.ones(len(target), dtype=bool)
    return Scores(
        out_of_fold, target, fold, predict(everything, table.test_inputs), table.test_target
    )
