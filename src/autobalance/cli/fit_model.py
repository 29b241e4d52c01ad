"""`autobalance fit --model`: another classifier than the network, with designed decisions."""

from __future__ import annotations

import time
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jsonargparse import Namespace

from autobalance._validation import InputError, TrainingDiverged
from autobalance.cli.adjust import adjusted_record, check_groups, evaluate_test, print_adjusted
from autobalance.cli.adjusted_run import AdjustedModel
from autobalance.cli.baselines import baselines_record
from autobalance.cli.estimators import BOOSTERS, TableEstimator, new_pipeline
from autobalance.cli.fit import (
    Columns,
    build_classifier,
    prepare_folder,
    read_columns,
    read_test,
    remove_checkpoints,
    run_fit,
)
from autobalance.cli.options import DONE, complain, training_options
from autobalance.cli.run_folder import save_adjusted
from autobalance.cli.terminal import print_baselines, print_table_warnings, print_test
from autobalance.data import (
    TableWarning,
    assign_folds,
    class_labels,
    group_names,
    number_groups,
    number_of,
)
from autobalance.objectives import Objective, as_objective
from autobalance.posthoc import measure_taus
from autobalance.records import SearchSettings
from autobalance.sklearn import LogitAdjustedClassifierCV, estimator_baselines

AUTO = ("network", "lightgbm")
"""What ``--model auto`` compares."""
PARTS = 4
"""Of so many parts of the table one is held out for that."""
_RECORDED = ("table", "target", "id", "groups", "test", "model")


def fit_model(options: Namespace, command: str) -> int:
    """Fit the classifier that ``--model`` names, design its decisions, and write the RUN."""
    started = time.perf_counter()
    check_groups(options, as_objective(options.objective))
    auto = options.model == "auto"
    _refuse_other_options(options)
    out = prepare_folder(options)
    pipeline = new_pipeline("lightgbm" if auto else options.model, options.seed)
    columns = read_columns(options)
    if columns[1].ndim == 2:
        from autobalance.cli.label_run import fit_label_model

        fit_label_model(options, columns, out, command, started)
        return DONE
    notes = []
    if auto:
        options.model, note = _choose_model(options, columns)
        complain(note)
        notes.append(note)
    if options.model == "network":
        return run_fit(options, command, notes)
    test = None if options.test is None else read_test(options, *columns[:2])
    model, read, beside = fit_adjusted(options, pipeline, columns)
    record = adjusted_record("fit", command, options, _RECORDED, started, [*notes, *read])
    if beside is not None:
        record["baselines"] = beside
    if options.model in BOOSTERS:
        record["versions"][options.model] = import_module(options.model).__version__
    if test is not None:
        with print_table_warnings():
            record |= evaluate_test(model, test, Path(str(options.test)).name)
    remove_checkpoints(out)  # of a run that --overwrite gives up
    save_adjusted(out, model, record, target=options.target)
    print_adjusted(out)
    if beside is not None:
        print_baselines(beside, options.objective)
    if test is not None:
        print_test({**record, "class_names": model.classes_})
    return DONE


def fit_adjusted(
    options: Namespace, pipeline: Any, columns: Columns
) -> tuple[AdjustedModel, list[str], dict[str, Any] | None]:
    """The classifier fitted on a table, with decisions designed out of fold.

    With it come what the table told, and the "baselines" of the record unless they are to be left out.
    """
    features, labels, groups = columns
    goal = as_objective(options.objective)
    if goal.over == "class":
        if groups is not None:
            complain(f"{options.objective} does not look at groups, so --groups is not used")
        groups = None
    # Not every library takes labels that are text.
    classes, target = np.unique(class_labels(labels), return_inverse=True)
    classifier = LogitAdjustedClassifierCV(pipeline, objective=goal, random_state=options.seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TableWarning)  # of each fold; those of the table follow
        classifier.fit(features, target, sensitive_features=groups)
        index = None if groups is None else number_groups(group_names(groups, "refused"))[1]
        found = None
        if not options.no_baselines:
            found = estimator_baselines(classifier, features, target, index)
    curve = None
    if groups is None:
        rows = classifier.result_.rows
        scores = classifier.result_.scores[rows]
        curve = measure_taus(classifier.adjustment_, scores, target[rows], seed=options.seed)
    scorer = TableEstimator.of(options.model, classifier.estimator_)
    model = AdjustedModel(scorer, classifier.adjustment_, classes, classifier.groups_, curve)
    beside = None
    if found is not None:
        own, title = model.held_out_errors(), "Designed decisions"
        beside = baselines_record(found, own, title, "out-of-fold rows", classifier.groups_)
    return model, scorer.encoder.notes, beside


def _choose_model(options: Namespace, columns: Columns) -> tuple[str, str]:
    """Network or LightGBM, by the objective on rows that neither was fitted to, and both numbers in words."""
    features, labels, groups = columns
    goal = as_objective(options.objective)
    classes, target = np.unique(class_labels(labels), return_inverse=True)
    members, cells = None, target
    if groups is not None:
        members = number_groups(group_names(groups, "refused"))[1]
        cells = members * len(classes) + target
    held = assign_folds(cells, PARTS, np.random.default_rng(options.seed)) == 0
    if len(np.unique(target[held])) < 2:
        raise InputError(
            "--model auto compares on a quarter of the rows, and they have fewer than two classes. Choose "
            f"one: --model {' or '.join(AUTO)}."
        )
    train = features[~held], labels[~held], None if groups is None else groups[~held]
    errors, told = {}, []
    for name in AUTO:
        try:
            decided = np.searchsorted(
                classes, _fit_and_predict(name, options, train, features[held])
            )
        except TrainingDiverged:
            told.append(f"{name} diverged")
            continue
        errors[name] = _value(goal, decided, target[held], members, held, len(classes))
        told.append(f"{name} {100 * errors[name]:.1f} %")
    best = min(errors, key=lambda name: errors[name])
    rows = number_of(int(held.sum()), "row")
    return best, (
        f"--model auto took {best}. On {rows} held out from both, {options.objective} was "
        f"{', '.join(told)}. What was taken is fitted on all rows"
    )


def _fit_and_predict(
    name: str, options: Namespace, train: Columns, features: pd.DataFrame
) -> np.ndarray:
    """Labels that one of `AUTO` gives other rows."""
    if name == "network":
        network = build_classifier(options, None)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the fit to come tells
            network.fit(train[0], train[1], sensitive_features=train[2])
        return network.predict(features)
    named = Namespace({**options.as_dict(), "model": name, "no_baselines": True})
    model, _, _ = fit_adjusted(named, new_pipeline(name, options.seed), train)
    return model.predict(model.features(features))


def _value(
    goal: Objective,
    decided: np.ndarray,
    target: np.ndarray,
    members: np.ndarray | None,
    held: np.ndarray,
    k: int,
) -> float:
    """The objective of decisions on the rows held out."""
    logits = torch.eye(k)[torch.from_numpy(decided)]
    groups = None
    if members is not None and goal.over != "class":
        groups = torch.from_numpy(members[held])
    return goal.hard(logits, torch.from_numpy(target), groups=groups)


def _refuse_other_options(options: Namespace) -> None:
    """Refuse what only the network knows, before anything is fitted."""
    recipe, settings = training_options(options)
    given = {
        "--resume": options.resume,
        "--log": options.log is not None,
        "--missing-groups": options.missing_groups != "refused",
    }
    if options.model != "auto":
        given |= {
            "--augment": options.augment != "none",
            "--arms": options.arms != "default",
            "--device": options.device != "auto",
            "--recipe": recipe is not None,
            "--search": settings != SearchSettings(),
        }
    wrong = [name for name, is_given in given.items() if is_given]
    if wrong:
        raise InputError(
            f"{wrong[0]} is of --model network; --model {options.model} does not take it. Leave it out."
        )
