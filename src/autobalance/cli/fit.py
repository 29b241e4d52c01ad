"""`autobalance demo` and `fit`."""

from __future__ import annotations

import shlex
import sys
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import Namespace

from autobalance._validation import InputError, TrainingDiverged, path_of, whole
from autobalance.cli.options import DONE, FAILED, INTERRUPTED, complain, training_options
from autobalance.records import checkpoint_files, output_folder, run_status

if TYPE_CHECKING:
    import pandas as pd

    from autobalance.bilevel import Progress
    from autobalance.sklearn import AutoBalanceClassifier


_GIVEN = ("table", "target", "groups", "missing_groups", "test", "augment")
"""Options that the settings of a search do not hold, for its record."""


def run_demo(options: Namespace, command: str) -> int:
    out = output_folder(options.out, overwrite=options.overwrite)
    whole("seed", options.seed, least=0)
    from autobalance.cli.demo import TITLES, Demo
    from autobalance.cli.run_folder import write_run
    from autobalance.cli.terminal import LiveProgress, print_methods
    from autobalance.report import REPORT

    methods: dict[str, Any] = {}
    with LiveProgress() as live:
        demo = Demo(seed=options.seed, progress=live.update)
        try:
            for name in TITLES:
                methods[name] = demo.method(name)
        except KeyboardInterrupt:
            written = write_run(out, demo.record(methods, command, "interrupted"))
            done = f"{len(methods)} of {len(TITLES)} methods are done: {out / REPORT}"
            kept = done if written else f"The earlier run in {out} is untouched"
            return complain(f"Interrupted. {kept}.", INTERRUPTED)
    write_run(out, demo.record(methods, command))
    print_methods(methods)
    print(f"Report: {out / REPORT}")
    return DONE


def run_fit(options: Namespace, command: str) -> int:
    whole("seed", options.seed, least=0)
    out = _fit_folder(options)
    recipe, settings = training_options(options)
    features, target, groups = columns(options)
    test = None if options.test is None else _test_columns(options, features)
    from autobalance.bilevel import OtherRun, local_logger
    from autobalance.cli.resume import other_options
    from autobalance.cli.run_folder import save_run
    from autobalance.cli.terminal import LiveProgress, print_choice
    from autobalance.objectives import as_objective
    from autobalance.report import REPORT, explanation, read_run
    from autobalance.sklearn import AutoBalanceClassifier

    as_objective(options.objective)
    logger = None if options.log is None else local_logger(options.log, out)
    if not options.resume:
        remove_checkpoints(out)  # of a run that --overwrite gives up
    begun = time.perf_counter()
    last: Progress | None = None
    with LiveProgress() as live:

        def listen(progress: Progress) -> None:
            nonlocal last
            last = progress
            live.update("autobalance", progress)

        classifier = AutoBalanceClassifier(
            options.objective,
            augment=None if options.augment == "none" else options.augment,
            recipe=recipe,
            settings=settings,
            missing_groups=options.missing_groups,
            device=options.device,
            random_state=options.seed,
            checkpoint=out,
            progress=listen,
            logger=logger,
        )
        status, stopped, written, record = "failed", None, False, {}
        try:
            with warnings.catch_warnings():
                # said below, with the classes' names
                warnings.filterwarnings("ignore", "At the end of the search", UserWarning)
                classifier.fit_keeping_checkpoints(features, target, groups, None, None, test)
            status = "finished"
        except (TrainingDiverged, KeyboardInterrupt) as error:
            status = "diverged" if isinstance(error, TrainingDiverged) else "interrupted"
            stopped = error
        except OtherRun as error:
            raise other_options(error, out) from None
        finally:
            if hasattr(classifier, "result_"):
                record = fit_record(classifier, _anew(command), status, begun, options)
                record["progress"] = last and vars(last)
                if test is not None and status == "finished":
                    record |= _tested(classifier, test, Path(str(options.test)).name)
                written = save_run(out, classifier, record, target=options.target)
    if status in ("finished", "diverged"):  # one is done, the other would diverge again
        remove_checkpoints(out)
    if stopped is not None:
        return _stopped(stopped, out, classifier, written)
    print_choice(classifier.result_)
    for text in explanation(read_run(record)).warnings:
        print(f"autobalance: {text}", file=sys.stderr)
    seconds = time.perf_counter() - begun
    print(f"Designed a loss for {len(classifier.classes_)} classes in {seconds:.0f} s: {out}")
    print(f"Report: {out / REPORT}")
    return DONE


def _anew(command: str) -> str:
    """The command that begins the run, for one that goes on with it."""
    return shlex.join(part for part in shlex.split(command) if part != "--resume")


def columns(options: Namespace, path: str | None = None) -> tuple[pd.DataFrame, Any, Any]:
    """Features, labels and groups of the table, or of that at `path`; the latter two are no features."""
    from autobalance.data import column, read_table

    table = read_table(path or options.table)
    target = column(table, options.target, "target")
    groups = None
    if options.groups is not None:
        unknown = options.missing_groups == "unknown"
        remedy = "Fill them, drop these rows, or take them for unknown: --missing-groups unknown"
        groups = column(table, options.groups, "group", missing_values=unknown, remedy=remedy)
    if options.groups == options.target:
        raise InputError(f"Target and groups are the same column, {options.target!r}. Give two.")
    left_out = [c for c in (options.target, options.groups) if c is not None]
    return table.drop(columns=left_out), target, groups


def _test_columns(options: Namespace, features: pd.DataFrame) -> tuple[pd.DataFrame, Any, Any]:
    """As `columns`, of the test table: its features are those of the training table."""
    try:
        given, target, groups = columns(options, options.test)
    except InputError as error:
        raise InputError(f"--test {options.test}: {error}") from None
    missing = [str(c) for c in features.columns if c not in given.columns]
    if missing:
        raise InputError(
            f"{options.test} lacks columns of {options.table}: {', '.join(missing[:5])}."
        )
    return given[features.columns.tolist()], target, groups


def _fit_folder(options: Namespace) -> Path:
    """The RUN folder, where it may be written to."""
    out = path_of("The output", options.out)
    if options.resume and options.overwrite:
        raise InputError("--resume continues a run, --overwrite gives it up. Give one of them.")
    # One that was stopped before its first checkpoint starts anew, and ends alike.
    status = run_status(out)
    unfinished = any(path.exists() for path in checkpoint_files(out).values()) or status in (
        "interrupted",
        "failed",
    )
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


def remove_checkpoints(out: Path) -> None:
    for path in checkpoint_files(out).values():
        path.unlink(missing_ok=True)


def _stopped(
    error: BaseException, out: Path, classifier: AutoBalanceClassifier, written: bool
) -> int:
    """Say what is kept of a run that was interrupted or diverged, and how to go on."""
    kept = "Nothing was trained yet."
    if written:
        network = "a half-trained network" if hasattr(classifier, "module_") else "no network yet"
        kept = f"Kept in {out}: the loss so far (loss.json), its report, {network}."
    elif run_status(out) == "finished":
        kept = f"The earlier run in {out} is untouched."
    if isinstance(error, TrainingDiverged):
        return complain(f"{error} {kept}", FAILED)
    begun = any(path.exists() for path in checkpoint_files(out).values())
    if begun:
        kept += " To continue, give the same command with --resume, without --overwrite."
    elif written:
        kept += " There was no checkpoint yet: the same command with --resume starts anew."
    return complain(f"Interrupted. {kept}", INTERRUPTED)


def _tested(
    classifier: AutoBalanceClassifier, test: tuple[Any, Any, Any], name: str
) -> dict[str, Any]:
    """What test data say of the network, for its record."""
    features, target, groups = test
    found = classifier.evaluate(features, target, sensitive_features=groups)
    return {
        "evaluation_data": f"{len(target):,} examples of {name}",
        "methods": {"autobalance": {"title": "autobalance", **found}},
    }


def _row_names(classifier: AutoBalanceClassifier) -> list[str] | None:
    """Names of the loss's rows: the groups', and a last one where some are not known."""
    groups = classifier.groups_
    rows = len(classifier.result_.settings["class_counts"])
    return groups if groups is None or rows == len(groups) else [*groups, "(unknown)"]


def _total(begun: float, options: Namespace) -> float | None:
    """Seconds of the command; of a run that was resumed nobody kept those before."""
    return None if options.get("resume") else time.perf_counter() - begun


def fit_record(
    classifier: AutoBalanceClassifier, command: str, status: str, begun: float, options: Namespace
) -> dict[str, Any]:
    result = classifier.result_
    return {
        "kind": "fit",
        "status": status,
        "command": command,
        "options": {name: options[name] for name in _GIVEN if name in options},
        "objective": classifier.objective,
        "class_names": [str(c) for c in classifier.classes_],
        "group_names": _row_names(classifier),
        "class_counts": result.settings["class_counts"],
        "evaluation_data": None,
        "methods": {},
        "search": result.to_dict(),
        "seconds": {"search": result.seconds["wall"], "total": _total(begun, options)},
        "versions": result.versions,
        "seed": options.seed,
    }
