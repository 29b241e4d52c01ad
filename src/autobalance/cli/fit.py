"""`autobalance fit`."""

from __future__ import annotations

import shlex
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from jsonargparse import Namespace

from autobalance._validation import InputError, TrainingDiverged, path_of, whole
from autobalance.bilevel import OtherRun, Progress, local_logger
from autobalance.cli.baselines import baselines_record
from autobalance.cli.options import DONE, complain, complain_of_stop, training_options
from autobalance.cli.resume import other_options
from autobalance.cli.run_folder import save_run
from autobalance.cli.targets import label_columns, split_labels
from autobalance.cli.terminal import (
    CHOICES,
    LiveProgress,
    print_baselines,
    print_choice,
    print_label_report,
    print_race,
    print_table_warnings,
    print_test,
)
from autobalance.data import TableFile, class_labels, column, open_table, read_table
from autobalance.objectives import as_objective
from autobalance.records import checkpoint_files, output_folder, run_status
from autobalance.report import REPORT, explanation, read_run
from autobalance.sklearn import AutoBalanceClassifier, network_baselines, network_errors

_RECORDED_OPTIONS = (
    "table",
    "target",
    "id",
    "groups",
    "missing_groups",
    "test",
    "augment",
    "arms",
    "retrain",
)
"""Options that the settings of a search do not hold, for its record."""

_LEFT_OUT = "the comparison with plain training and class weights is left out"
Columns = tuple[pd.DataFrame | TableFile, Any, Any]
"""Features, labels and groups."""


def run_fit(options: Namespace, command: str, notes: Sequence[str] = ()) -> int:
    """Design a loss for a table and train a network with it; returns the exit code.

    `notes` is what else to say in the record beside what the table told.
    """
    whole("seed", options.seed, least=0)
    if options.model != "network":
        from autobalance.cli.fit_model import fit_model

        return fit_model(options, command)
    out = prepare_folder(options)
    classifier = build_classifier(options, out)
    with print_table_warnings():
        features, target, groups = read_columns(options, folder=out)
    test = None if options.test is None else read_test(options, features, target)
    if not options.resume:
        remove_checkpoints(out)  # of a run that --overwrite gives up
    started = time.perf_counter()
    last: Progress | None = None
    status, error, written, record = "failed", None, False, {}
    with LiveProgress() as live, print_table_warnings():

        def listen(progress: Progress) -> None:
            nonlocal last
            last = progress
            live.update("autobalance", progress)

        classifier.progress = listen
        try:
            with warnings.catch_warnings():
                # Told below: the one with the classes' names, the other with the whole race.
                warnings.filterwarnings("ignore", "At the end of the search", UserWarning)
                warnings.filterwarnings("ignore", "The arm ", UserWarning)
                classifier.fit_keeping_checkpoints(features, target, groups, None, None, test)
            status = "finished"
        except (TrainingDiverged, KeyboardInterrupt) as stopped:
            status = "diverged" if isinstance(stopped, TrainingDiverged) else "interrupted"
            error = stopped
        except OtherRun as other:
            raise other_options(other, out) from None
        finally:
            if hasattr(classifier, "result_"):
                first = shlex.join(part for part in shlex.split(command) if part != "--resume")
                record = fit_record(classifier, first, status, started, options)
                record["notes"] += notes
                record["progress"] = last and {n: v for n, v in vars(last).items() if n != "rows"}
                if test is not None and status == "finished":
                    record |= _evaluate_test(classifier, test, Path(str(options.test)).name)
                written = save_run(out, classifier, record, target=options.target)
        if error is None and not options.no_baselines and not classifier.of_labels:
            record, error = _add_baselines(classifier, record, (features, target, groups))
            save_run(out, classifier, record, target=options.target)
    if status in ("finished", "diverged"):  # one is done, the other would diverge again
        remove_checkpoints(out)
    if error is not None and status == "finished":
        return complain_of_stop(
            error, f"The network is trained to its end and kept in {out}; {_LEFT_OUT}."
        )
    if error is not None:
        return _report_stop(error, out, classifier, written)
    _print_result(classifier, record, out, started)
    return DONE


def build_classifier(options: Namespace, out: Path | None) -> AutoBalanceClassifier:
    """The classifier that the options describe, with its checkpoints in a RUN folder if one is given."""
    recipe, settings = training_options(options)
    as_objective(options.objective)
    return AutoBalanceClassifier(
        options.objective,
        augment=None if options.augment == "none" else options.augment,
        arms=None if options.arms == "none" else options.arms,
        retrain=options.retrain,
        recipe=recipe,
        settings=settings,
        missing_groups=options.missing_groups,
        device=options.device,
        random_state=options.seed,
        checkpoint=out,
        logger=None if options.log is None or out is None else local_logger(options.log, out),
    )


def _add_baselines(
    classifier: AutoBalanceClassifier, record: dict[str, Any], data: Columns
) -> tuple[dict[str, Any], KeyboardInterrupt | None]:
    """The record with what plain training and class weights give, and the Ctrl-C that kept it without."""
    try:
        baselines = network_baselines(classifier, *data)
    except TrainingDiverged as diverged:
        note = f"{diverged} That was in plain training or with class weights; {_LEFT_OUT}"
        complain(note)
        return {**record, "notes": [*record["notes"], note]}, None
    except KeyboardInterrupt as stopped:
        return record, stopped
    own, title = network_errors(classifier), CHOICES[classifier.result_.choice].capitalize()
    rows = "held-out rows"
    beside = baselines_record(baselines, own, title, rows, classifier.groups_)
    return {**record, "baselines": beside}, None


def _print_result(
    classifier: AutoBalanceClassifier, record: dict[str, Any], out: Path, started: float
) -> None:
    print_race(classifier.result_)
    print_choice(classifier.result_)
    if "baselines" in record:
        print_baselines(record["baselines"], record["objective"])
    if record["methods"] and classifier.of_labels:
        measured = record["methods"]["autobalance"]
        print_label_report({**measured, "labels": record["class_names"]})
    elif record["methods"]:
        print_test(record)
    # What the table told is on the terminal already.
    for text in explanation(read_run({**record, "notes": []})).warnings:
        complain(text)
    seconds = time.perf_counter() - started
    what = "labels" if classifier.of_labels else "classes"
    print(f"Designed a loss for {len(classifier.classes_)} {what} in {seconds:.0f} s: {out}")
    print(f"Report: {out / REPORT}")


def read_columns(
    options: Namespace,
    path: str | None = None,
    text: tuple[str, ...] = (),
    folder: Path | None = None,
) -> Columns:
    """Features, labels and groups of the options' table, or of another `path`.

    Labels, groups and the column of ``--id`` are not among the features. The columns
    in `text` are text, whatever they look like. With a `folder` for what is made of it, a large table stays
    in its file.

    Raises
    ------
    InputError
        If the table cannot be read, or lacks a column.
    """
    own, path = path is None, str(path or options.table)
    # Either has columns by their names, and can drop some.
    table: Any = read_table(path, text=text) if folder is None else open_table(path, folder=folder)
    names = label_columns(table, options.target)
    if names is not None:
        options.target = names  # those of a test table are the same
        if isinstance(table, TableFile):
            table = read_table(path, text=text)
        features, labels, _ = split_labels(table, names, options.groups)
        other = {options.get("id")} & set(features.columns)
        return features.drop(columns=[*other]), labels, None
    target = column(table, options.target, "target")
    groups = None
    if options.groups is not None:
        unknown = options.get("missing_groups") == "unknown"
        remedy = "Fill them, or drop these rows"
        if "missing_groups" in options:
            remedy = (
                "Fill them, drop these rows, or take them for unknown: --missing-groups unknown"
            )
        groups = column(table, options.groups, "group", missing_values=unknown, remedy=remedy)
    if options.groups == options.target:
        raise InputError(f"Target and groups are the same column, {options.target!r}. Give two.")
    row_id = options.get("id")
    if row_id is not None and row_id in (options.target, options.groups):
        raise InputError(
            f"--id {row_id} is the column of the labels or groups already. Give another."
        )
    if row_id is not None and own:  # a test table may do without
        column(table, row_id, "id", missing_values=True)
    other = {options.target, options.groups, row_id} & set(table.columns)
    return table.drop(columns=[*other]), target, groups


def read_test(options: Namespace, features: pd.DataFrame | TableFile, target: Any) -> Columns:
    """Same as `read_columns`, of the test table: its features are those of the training table."""
    several = target.ndim == 2
    text = (options.target,) if not several and class_labels(target).dtype.kind in "OU" else ()
    try:
        table, labels, groups = read_columns(options, options.test, text)
    except InputError as error:
        raise InputError(f"--test {options.test}: {error}") from None
    missing = [str(c) for c in features.columns if c not in table.columns]
    if missing:
        raise InputError(
            f"{options.test} lacks columns of {options.table}: {', '.join(missing[:5])}."
        )
    return table[features.columns.tolist()], labels, groups


def prepare_folder(options: Namespace) -> Path:
    """The RUN folder, where it may be written to."""
    out = path_of("The output", options.out)
    if options.resume and options.overwrite:
        raise InputError("--resume continues a run, --overwrite gives it up. Give one of them.")
    # One that was stopped before its first checkpoint starts anew, and ends alike.
    status = run_status(out)
    unfinished = _has_checkpoint(out) or status in ("interrupted", "failed")
    if unfinished and not (options.resume or options.overwrite):
        raise InputError(
            f"{out} holds an unfinished run. Add --resume to continue it, or --overwrite to give it up."
        )
    if options.resume and not unfinished:
        if status is not None:
            ended = "is finished" if status == "finished" else f"has {status}"
            raise InputError(
                f"The run in {out} {ended}: there is nothing to continue. Give --overwrite in place of "
                "--resume to run it again."
            )
        raise InputError(f"{out} holds no unfinished run. Leave --resume out to start one.")
    return output_folder(out, overwrite=options.overwrite or options.resume)


def _has_checkpoint(out: Path) -> bool:
    return any(path.exists() for path in checkpoint_files(out).values())


def remove_checkpoints(out: Path) -> None:
    """Delete the checkpoints in a RUN folder."""
    for path in checkpoint_files(out).values():
        path.unlink(missing_ok=True)


def _report_stop(
    error: BaseException, out: Path, classifier: AutoBalanceClassifier, written: bool
) -> int:
    """Say what remains of a run that was interrupted or diverged, and how to go on."""
    state = "Nothing was trained yet."
    if written:
        network = "a half-trained network" if hasattr(classifier, "module_") else "no network yet"
        state = f"Kept in {out}: the loss so far (loss.json), its report, {network}."
    elif run_status(out) == "finished":
        state = f"The earlier run in {out} is untouched."
    if isinstance(error, TrainingDiverged):
        pass  # It would diverge again.
    elif _has_checkpoint(out):
        state += " To continue, give the same command with --resume, without --overwrite."
    elif written:
        state += " There was no checkpoint yet: the same command with --resume starts anew."
    return complain_of_stop(error, state)


def _evaluate_test(classifier: AutoBalanceClassifier, test: Columns, name: str) -> dict[str, Any]:
    """What test data say of the network, for its record."""
    features, target, groups = test
    rates = classifier.evaluate(features, target, sensitive_features=groups)
    return {
        "evaluation_data": f"{len(target):,} examples of {name}",
        "methods": {"autobalance": {"title": "autobalance", **rates}},
    }


def fit_record(
    classifier: AutoBalanceClassifier,
    command: str,
    status: str,
    started: float,
    options: Namespace,
) -> dict[str, Any]:
    """The record of a fit for ``result.json``; `started` is the `time.perf_counter` of its beginning."""
    result, groups = classifier.result_, classifier.groups_
    # The loss has a last row for examples whose group is not known.
    if groups is not None and len(result.settings["class_counts"]) > len(groups):
        groups = [*groups, "(unknown)"]
    # Of a run that was resumed nobody kept the seconds before.
    total = None if options.get("resume") else time.perf_counter() - started
    return {
        "kind": "fit",
        "status": status,
        "command": command,
        "options": {name: options[name] for name in _RECORDED_OPTIONS if name in options},
        "objective": classifier.objective,
        "class_names": [str(c) for c in classifier.classes_],
        "group_names": groups,
        "class_counts": result.settings["class_counts"],
        "several_labels": result.of_labels,
        "evaluation_data": None,
        "methods": {},
        "notes": [] if classifier.encoder_ is None else classifier.encoder_.notes,
        "search": result.to_dict(),
        "seconds": {"search": result.seconds["wall"], "total": total},
        "versions": result.versions,
        "seed": options.seed,
    }
