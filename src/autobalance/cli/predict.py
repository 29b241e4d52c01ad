"""`autobalance predict` and `evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jsonargparse import Namespace

from autobalance._validation import InputError, path_of
from autobalance.cli.adjusted_run import AdjustedModel
from autobalance.cli.label_run import AdjustedLabels, evaluation_labels
from autobalance.cli.options import DONE, complain
from autobalance.cli.run_folder import Model, load_run
from autobalance.cli.terminal import print_label_report, print_report, print_table_warnings
from autobalance.data import class_labels, column, positions, read_table
from autobalance.posthoc import CellDecision
from autobalance.records import to_json, write_atomically
from autobalance.report import bound_sentences, read_folder, read_run, save_evaluation
from autobalance.sklearn import AutoBalanceClassifier


def run_predict(options: Namespace, command: str) -> int:
    """Write the predictions of a RUN for a table; returns the exit code."""
    out = path_of("The output", options.out)
    if out.is_dir():
        raise InputError(f"{out} is a folder; give the name of a file.")
    if out.exists() and not options.overwrite:
        raise InputError(f"{out} exists. Add --overwrite, or give another name.")
    if out.suffix not in (".csv", ".parquet"):
        raise InputError(f"{out} must end in .csv or .parquet.")
    if out.exists() and out.samefile(path_of("The table", options.table)):
        raise InputError(f"{out} is the table itself, which would be lost. Give another name.")
    classifier, record = _load(options.run)
    table = read_table(options.table)
    names = _id_column(options, record, table)
    with print_table_warnings():
        predictions = _predict(classifier, table, options.prior)
    if names is not None:
        if names.name in predictions.columns:
            raise InputError(
                f"The id column {names.name!r} has the name of a column of the predictions. Rename it in "
                f"{options.table}."
            )
        predictions.insert(0, names.name, names.to_numpy())
    if out.suffix == ".csv":
        content = predictions.to_csv(index=False).encode()
    else:
        content = predictions.to_parquet(index=False)
    write_atomically(out, content)
    print(f"{len(predictions):,} predictions: {out}")
    return DONE


def _predict(classifier: Model, table: pd.DataFrame, prior: str | None) -> pd.DataFrame:
    features = _features(classifier, table)
    if of_labels(classifier):
        return _predict_labels(classifier, features, prior)
    probabilities = classifier.predict_proba(features, prior=prior)
    names = [f"probability_{c}" for c in classifier.classes_]
    frame = pd.DataFrame(probabilities, columns=names)
    # For a prior the most probable class is not what the loss was designed to decide.
    frame.insert(0, "prediction", classifier.predict(features))
    rules = _rules(classifier, features)
    if rules is not None:
        frame.insert(1, "rule", rules + 1)  # counted from 1, as in the report
    return frame


def _rules(classifier: Model, features: Any) -> np.ndarray | None:
    """Which rule decides each row, counted from 0; None where one rule decides all of them."""
    if isinstance(classifier, AdjustedModel):
        return classifier.rule_indices(features)
    decision = classifier.module_
    if not isinstance(decision, CellDecision) or len(decision.shares) == 1:
        return None
    inputs = torch.as_tensor(classifier.input_.transform(classifier, features))
    return decision.draw(inputs).numpy()


def _id_column(options: Namespace, record: dict[str, Any], table: pd.DataFrame) -> pd.Series | None:
    """The column that names the rows: of ``--id``, or else that of the fit where the table has it."""
    name = options.id
    if name is None:
        name = (record.get("options") or {}).get("id")
        if name is None or name not in table.columns:
            return None
    return column(table, name, "id", missing_values=True)


def run_evaluate(options: Namespace, command: str) -> int:
    """Print the error rates of a RUN on a labelled table; returns the exit code."""
    if options.groups == options.target:
        raise InputError(f"Target and groups are the same column, {options.target!r}. Give two.")
    classifier, record = _load(options.run)
    if of_labels(classifier):
        return _evaluate_labels(options, classifier, record)
    # A CSV has no types: labels that were text in training, such as "7" beside "A", still are.
    text = [options.target] if classifier.classes_.dtype.kind in "OU" else []
    table = read_table(options.table, text=text)
    labels = class_labels(column(table, options.target, "target"))
    target = positions(labels, classifier.classes_.tolist(), "class", options.table)
    groups = None if options.groups is None else column(table, options.groups, "group")
    _warn_of_data(options, record, target, classifier)
    with print_table_warnings():
        examples = _features(classifier, table), classifier.classes_[target]
        rates = classifier.evaluate(*examples, sensitive_features=groups)
        before = None
        if isinstance(classifier, AdjustedModel):
            before = classifier.evaluate_unadjusted(*examples, sensitive_features=groups)
    report = {k: v for k, v in rates.items() if k not in ("confused", "calibration")}
    report["classes"] = [str(c) for c in classifier.classes_]
    if groups is not None:
        report["groups"] = list(report["group_errors"])
    saved = _save(
        options.run, rates, before, f"{len(target):,} examples of {Path(options.table).name}"
    )
    if groups is None and classifier.groups_:
        complain(
            f"{options.table} was evaluated without --groups, so the report of {options.run} now has no "
            "errors by group of it. Add --groups to measure them"
        )
    if options.json:
        print(to_json(report))
    else:
        if saved:
            for text in bound_sentences(read_run(read_folder(Path(options.run)))):
                print(text)
        print_report(report)
    return DONE


def of_labels(model: Model) -> bool:
    """Whether a RUN's model is of several labels for each example."""
    return isinstance(model, AdjustedLabels) or (
        isinstance(model, AutoBalanceClassifier) and model.of_labels
    )


def _predict_labels(model: Model, features: Any, prior: str | None) -> pd.DataFrame:
    """A column of 0 and 1 for each label by its name, then one of its probability."""
    names = [*map(str, model.classes_)]
    decided = pd.DataFrame(model.predict(features), columns=names)
    p = model.predict_proba(features, prior=prior)
    return decided.join(pd.DataFrame(p, columns=[f"probability_{name}" for name in names]))


def _evaluate_labels(options: Namespace, model: Model, record: dict[str, Any]) -> int:
    table = read_table(options.table)
    labels = evaluation_labels(options, table, [*map(str, model.classes_)])
    _warn_of_own_table(options, record)
    with print_table_warnings():
        features = _features(model, table)
        rates, before = model.evaluate(features, labels), None
        if isinstance(model, AdjustedModel):
            before = model.evaluate_unadjusted(features, labels)
    _save(options.run, rates, before, f"{len(labels):,} examples of {Path(options.table).name}")
    report = {**rates, "labels": [*map(str, model.classes_)]}
    if options.json:
        print(to_json(report))
    else:
        print_label_report(report)
    return DONE


def _warn_of_own_table(options: Namespace, record: dict[str, Any]) -> None:
    trained = (record.get("options") or {}).get("table")
    if isinstance(trained, str) and Path(trained).resolve() == Path(options.table).resolve():
        complain(
            f"{options.table} is the table that {options.run} was trained on: these are no test "
            "errors"
        )


def _warn_of_data(
    options: Namespace,
    record: dict[str, Any],
    target: np.ndarray,
    classifier: Model,
) -> None:
    """Where errors are of training rows, or means leave classes out."""
    _warn_of_own_table(options, record)
    here = set(target.tolist())
    absent = [str(c) for i, c in enumerate(classifier.classes_) if i not in here]
    if absent:
        complain(
            f"{options.table} has no example of {', '.join(absent[:5])}"
            f"{', ...' if len(absent) > 5 else ''}; means over the classes leave it out"
        )


def _save(run: str, rates: dict[str, Any], before: dict[str, Any] | None, data: str) -> bool:
    """Put it into the RUN's report, if the folder can be written to; returns whether it could."""
    try:
        save_evaluation(run, rates, data, before)
    except OSError as error:
        complain(
            f"the report of {run} stays without this evaluation, which could not be written: {error}"
        )
        return False
    return True


def _load(run: str) -> tuple[Model, dict[str, Any]]:
    """The classifier of a RUN and its record; a warning where the network is half trained."""
    classifier, record = load_run(run)
    status = record.get("status")
    if status != "finished":
        at = record.get("progress") or {}
        reached = (
            f" at step {at['step']} of {at['total']}" if at.keys() >= {"step", "total"} else ""
        )
        verb, remedy = "was interrupted", "continue with `autobalance fit ... --resume`"
        if status == "diverged":
            verb, remedy = status, "fit again with --overwrite and a lower learning rate"
        complain(f"the network of {run} is half trained: its run {verb}{reached}; {remedy}")
    return classifier, record


def _features(classifier: Model, table: pd.DataFrame) -> Any:
    """The columns of the training table, without labels, groups and others; or the table's scores."""
    if isinstance(classifier, AdjustedModel):
        return classifier.features(table)
    assert classifier.encoder_ is not None  # fits of the command line are on tables
    return table[classifier.encoder_.select(table).names]
