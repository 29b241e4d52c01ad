"""Several labels on the command line: decisions on scores of them, and what `evaluate` says of a RUN."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jsonargparse import Namespace

from autobalance._validation import InputError
from autobalance.cli.adjust import (
    adjusted_record,
    columns_of_classes,
    evaluate_test,
    print_adjusted,
)
from autobalance.cli.adjusted_run import AdjustedModel, ScoreColumns
from autobalance.cli.fit import Columns, read_test, remove_checkpoints
from autobalance.cli.label_estimators import LabelEstimators, label_pipeline
from autobalance.cli.run_folder import save_adjusted
from autobalance.cli.targets import label_columns, read_labels
from autobalance.cli.terminal import print_table_warnings
from autobalance.data import TableWarning
from autobalance.objectives import as_objective
from autobalance.posthoc import design_adjustment
from autobalance.records import label_report
from autobalance.sklearn import LogitAdjustedClassifierCV


class AdjustedLabels(AdjustedModel):
    """As `AdjustedModel`, of several labels, whose names are `classes_`; decisions have shape ``(n, k)``."""

    def predict(self, scores: np.ndarray) -> np.ndarray:
        """0 and 1, shape ``(n, k)``."""
        return self.adjustment.predict(scores)

    def evaluate(
        self, scores: np.ndarray, labels: Any, *, sensitive_features: Any = None
    ) -> dict[str, Any]:
        """As `autobalance.records.label_report` measures the decisions."""
        return label_report(labels, self.adjustment.predict(scores))

    def evaluate_unadjusted(
        self, scores: np.ndarray, labels: Any, *, sensitive_features: Any = None
    ) -> dict[str, Any]:
        """The same of the labels that the scores themselves are for."""
        shift, _ = self.adjustment.standardisation
        return label_report(labels, self.adjustment.log_scores(scores) > -shift)

    def record(self) -> dict[str, Any]:
        """Same as in `AdjustedModel`."""
        return {**super().record(), "several_labels": True}


def fit_label_model(
    options: Namespace, columns: Columns, out: Path, command: str, started: float
) -> None:
    """Fit a classifier for each label, design their thresholds out of fold, and write the RUN."""
    features, labels, _ = columns
    if options.model == "auto":
        raise InputError(
            "--model auto compares for one target of classes. Of several labels choose one: --model network "
            "or lightgbm."
        )
    pipeline = label_pipeline(options.model, options.seed)
    test = None if options.test is None else read_test(options, features, labels)
    model = LogitAdjustedClassifierCV(
        pipeline, objective=as_objective(options.objective), random_state=options.seed
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TableWarning)  # of each fold; those of the table follow
        model.fit(features, labels)
    scorer = LabelEstimators.of(options.model, model.estimator_)
    decided = AdjustedLabels(scorer, model.adjustment_, np.array([*labels.columns]))
    named = ("table", "target", "test", "model")
    record = adjusted_record("fit", command, options, named, started, scorer.encoder.notes)
    if test is not None:
        with print_table_warnings():
            record |= evaluate_test(decided, test, Path(str(options.test)).name)
    remove_checkpoints(out)  # of a run that --overwrite gives up
    save_adjusted(out, decided, record, target=options.target)
    print_adjusted(out)


def adjust_labels(
    options: Namespace, columns: Columns, out: Path, command: str, started: float
) -> None:
    """Design thresholds on a table's scores of several labels and write them as a RUN."""
    table, labels, _ = columns
    assert isinstance(table, pd.DataFrame)  # without a folder tables are read whole
    names = np.array([*labels.columns])
    scorer = ScoreColumns(columns_of_classes(table, options.scores, names))
    test = None
    if options.test is not None:
        test = read_test(options, table[scorer.columns], labels)
    adjustment = design_adjustment(
        scorer.scores(table),
        labels.to_numpy(),
        objective=options.objective,
        kind=options.kind,
        seed=options.seed,
    )
    model = AdjustedLabels(scorer, adjustment, names)
    named = ("table", "target", "scores", "kind", "test")
    record = adjusted_record("adjustment", command, options, named, started)
    if test is not None:
        record |= evaluate_test(model, test, Path(str(options.test)).name)
    save_adjusted(out, model, record, target=options.target)
    print_adjusted(out)


def evaluation_labels(options: Namespace, table: pd.DataFrame, names: list[str]) -> np.ndarray:
    """The labels ``(n, k)`` of a table to evaluate a RUN of these labels on, in their order.

    Raises
    ------
    InputError
        If --target names other columns than the RUN's labels, or there are groups.
    """
    given = label_columns(table, options.target)
    if given is None or set(given) != set(names):
        shown = options.target if given is None else ", ".join(given)
        raise InputError(
            f"{options.run} was fitted on the labels {', '.join(names)}; --target names {shown}. Name all of "
            "them."
        )
    if options.groups is not None:
        raise InputError(
            "--groups is for a RUN of classes; this one has several labels. Leave it out."
        )
    return read_labels(table, names).to_numpy()
