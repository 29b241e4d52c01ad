"""`autobalance fit --model`: another classifier than the network, with designed decisions."""

from __future__ import annotations

import time
import warnings
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from autobalance._validation import InputError
from autobalance.cli.adjust import adjusted_record, print_adjusted
from autobalance.cli.adjusted_run import AdjustedModel
from autobalance.cli.estimators import TableEstimator, new_pipeline
from autobalance.cli.fit import Columns, prepare_folder, read_columns, read_test, remove_checkpoints
from autobalance.cli.options import DONE, complain, training_options
from autobalance.cli.run_folder import save_adjusted
from autobalance.data import TableWarning
from autobalance.objectives import as_objective
from autobalance.records import Recipe, SearchSettings
from autobalance.sklearn import LogitAdjustedClassifierCV

_RECORDED = ("table", "target", "groups", "test", "model")


def fit_model(options: Namespace, command: str) -> int:
    """Fit the classifier that ``--model`` names, design its decisions, and write the RUN."""
    started = time.perf_counter()
    _refuse_other_options(options)
    out = prepare_folder(options)
    pipeline = new_pipeline(options.model, options.seed)
    features, target, groups = read_columns(options)
    test = None if options.test is None else read_test(options, features, target)
    model = fit_adjusted(options, pipeline, (features, target, groups))
    record = adjusted_record("fit", command, options, _RECORDED, started)
    if test is not None:
        record |= _evaluate_test(model, test, Path(str(options.test)).name)
    remove_checkpoints(out)  # of a run that --overwrite gives up
    save_adjusted(out, model, record, target=options.target)
    print_adjusted(out)
    return DONE


def fit_adjusted(options: Namespace, pipeline: Any, columns: Columns) -> AdjustedModel:
    """The classifier fitted on a table, with decisions designed out of fold."""
    features, target, groups = columns
    if as_objective(options.objective).over == "class":
        if groups is not None:
            complain(f"{options.objective} does not look at groups: they are left out")
        groups = None
    classifier = LogitAdjustedClassifierCV(
        pipeline, objective=options.objective, random_state=options.seed
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TableWarning)  # of each fold; those of the table follow
        classifier.fit(features, target, sensitive_features=groups)
    fitted = classifier.estimator_
    for note in fitted[0].encoder_.notes:
        complain(note)
    scorer = TableEstimator.of(options.model, fitted)
    return AdjustedModel(
        scorer, classifier.adjustment_, classifier.classes_, classifier.groups_
    )


def _refuse_other_options(options: Namespace) -> None:
    """Refuse what only the network knows, before anything is fitted."""
    recipe, settings = training_options(options)
    given = {
        "--resume": options.resume,
        "--augment": options.augment != "none",
        "--log": options.log is not None,
        "--missing-groups": options.missing_groups != "refused",
        "--recipe": recipe != Recipe(),
        "--search": settings != SearchSettings(),
    }
    wrong = [name for name, is_given in given.items() if is_given]
    if wrong:
        raise InputError(
            f"{wrong[0]} is of --model network; --model {options.model} is fitted in one go. Leave it out."
        )


def _evaluate_test(model: AdjustedModel, test: Columns, name: str) -> dict[str, Any]:
    """What test data say of the decisions and of the classifier without them, for the record."""
    features, target, groups = test
    examples = model.features(features), target.to_numpy()
    measured = {
        "none": ("No adjustment", model.evaluate_unadjusted),
        "autobalance": ("autobalance", model.evaluate),
    }
    return {
        "evaluation_data": f"{len(target):,} examples of {name}",
        "methods": {
            key: {"title": title, **evaluate(*examples, sensitive_features=groups)}
            for key, (title, evaluate) in measured.items()
        },
    }
