"""The command line: from argv to calls of the library; no logic of its own.

Heavy imports happen inside the commands, so that ``--help`` shows at once.
Exit codes: 0 done, 2 bad use or bad input, 130 Ctrl-C, 143 SIGTERM, 1 anything else.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import sys
import time
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from jsonargparse import ArgumentParser, Namespace

from autobalance import __version__
from autobalance.checks import InputError, TrainingDiverged, one_of, whole
from autobalance.files import (
    checkpoint_files,
    output_folder,
    to_json,
    write_atomically,
    write_together,
)
from autobalance.settings import Recipe, SearchSettings

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from autobalance.comparison.configuration import Configuration
    from autobalance.comparison.store import Store
    from autobalance.estimator import AutoBalanceClassifier
    from autobalance.sweeping import Baseline, Frontier, FrontierPoint
    from autobalance.training import Progress

DONE, FAILED, BAD_INPUT, INTERRUPTED, TERMINATED = 0, 1, 2, 130, 143
# `autobalance.objectives.NAMED`, whose import would load torch.
OBJECTIVES = (
    "balanced_error",
    "worst_class_error",
    "cvar_error",
    "quantile_error",
    "balanced_error_and_deviation",
    "group_balanced_error",
    "worst_group_error",
    "worst_class_and_group_error",
)
# `autobalance.objectives.GAPS`.
GAP_NAMES = (
    "deo",
    "equalized_odds_difference",
    "equal_opportunity_difference",
    "demographic_parity_difference",
)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    # OpenMP's threads wait by spinning, which on a shared machine slows training many times over.
    # It is read when torch is imported, which only the commands do.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        parsed = _parser().parse_args(arguments)
        command = parsed.subcommand
        return _COMMANDS[command](parsed[command], shlex.join(["autobalance", *arguments]))
    except _BadUse as error:
        return _complain(_explained(error, arguments), BAD_INPUT)
    except InputError as error:
        return _complain(error, BAD_INPUT)
    except KeyboardInterrupt:
        return _complain("Interrupted.", INTERRUPTED)
    except BrokenPipeError:
        return FAILED
    except Exception as error:
        return _complain(f"{type(error).__name__}: {error}", FAILED)


def entry() -> None:
    """Console script: `main`, with SIGTERM handled as Ctrl-C is."""
    terminated = False

    def terminate(*_: object) -> None:
        nonlocal terminated
        terminated = True
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, terminate)
    code = main()
    for late in (signal.SIGINT, signal.SIGTERM):  # the work is done, only Python has yet to end
        signal.signal(late, signal.SIG_IGN)
    sys.exit(TERMINATED if terminated and code == INTERRUPTED else code)


def _complain(message: object, code: int) -> int:
    print(f"autobalance: {message}", file=sys.stderr)
    return code


class _BadUse(SystemExit):
    """A mistake in the options. Its options are those of the (sub)command."""

    def __init__(self, message: str, options: list[str]) -> None:
        super().__init__(BAD_INPUT)
        self.message = message
        self.options = options


class _Parser(ArgumentParser):
    """Leaves mistakes to `main`, which says them on one line and not beside the usage."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:
            super().error(message, ex)
        parser = getattr(ex, "subcommand_parser", None) or self
        options = [a.dest for a in parser._actions if a.option_strings]
        raise _BadUse(message, options)


def _explained(error: _BadUse, arguments: list[str]) -> str:
    """On one line: which file, which option, what is wrong, and what may have been meant."""
    text = " ".join(error.message.split())
    text = re.sub(r"<class '(\w+)'>", r"\1", text)
    text = re.sub(r"typing\.Literal\[(.*?)\]", r"value out of \1", text)
    text = re.sub(rf"\b({'|'.join(_COMMANDS)})\.(?=\w)", "", text)
    text = re.sub(r'^Parser key "([\w.]+)": ', r"\1: ", text)
    unknown = re.search(r"(?:accept option '|unrecognized arguments: --)([\w.-]+)", text)
    if unknown:
        close = get_close_matches(unknown[1], error.options, n=1)
        meant = f"Did you mean {close[0]}?" if close else "Add --help for a list."
        text = f"there is no option {unknown[1]}. {meant}"
    option = unknown or re.match(r"([\w.]+): ", text)
    given = option and any(a.split("=")[0] == f"--{option[1]}" for a in arguments)
    file = _config_file(arguments)
    in_file = file is not None and not given and (option or "parsing config" in text)
    return f"{file}: {text}" if in_file else text


def _config_file(arguments: list[str]) -> str | None:
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=False):
        if argument == "--config":
            return following
        if argument.startswith("--config="):
            return argument.removeprefix("--config=")
    return None


def _parser() -> ArgumentParser:
    parser = _Parser(
        prog="autobalance",
        description="Designs the training loss for imbalanced and group-sensitive data.",
        version=__version__,
    )
    commands = parser.add_subcommands(required=True)

    demo = _Parser(description="Design a loss for long-tailed images in the package.")
    demo.add_argument(
        "--out", type=str, default="demo-run", help="folder for result.json, report.html"
    )
    demo.add_argument("--seed", type=int, default=0, help="for everything random")
    demo.add_argument(
        "--overwrite", action="store_true", help="write into a folder that is not empty"
    )
    commands.add_subcommand("demo", demo, help="see it work on real images, in about a minute")

    fit = _Parser(description="Design a loss for a table and train a network with it.")
    fit.add_argument("table", type=str, help="CSV (also .gz, .xz) or Parquet file")
    fit.add_argument("--target", type=str, required=True, help="column with the labels")
    fit.add_argument(
        "--groups",
        type=str | None,
        default=None,
        help="column with the groups; not a feature then, and not needed to predict",
    )
    fit.add_argument(
        "--objective",
        type=str,
        default="balanced_error",
        help=f"what the loss is for: {', '.join(OBJECTIVES)}",
    )
    fit.add_argument("--out", type=str, required=True, help="RUN folder to write")
    fit.add_argument(
        "--overwrite", action="store_true", help="write into a folder that is not empty"
    )
    fit.add_argument(
        "--resume", action="store_true", help="continue a run that was stopped in this folder"
    )
    _add_training(fit)
    commands.add_subcommand("fit", fit, help="design a loss for your table")

    sweep = _Parser(description="Losses along the trade-off of an error and a gap between groups.")
    sweep.add_argument("table", type=str, help="CSV (also .gz, .xz) or Parquet file")
    sweep.add_argument("--target", type=str, required=True, help="column with the labels")
    sweep.add_argument(
        "--groups",
        type=str,
        required=True,
        help="column with the groups; not a feature then, and not needed to predict",
    )
    sweep.add_argument(
        "--main",
        type=str,
        default="balanced_error",
        help=f"what is to stay small: {', '.join(OBJECTIVES)}",
    )
    sweep.add_argument(
        "--gap", type=str, default="deo", help=f"what it is traded for: {', '.join(GAP_NAMES)}"
    )
    sweep.add_argument(
        "--mixes",
        type=str | None,
        default=None,
        help="weights of the gap, rising, at least 0 and below 1: by default 0,0.1,0.2 to 0.9",
    )
    sweep.add_argument(
        "--max_gap",
        "--max-gap",
        type=float | None,
        default=None,
        help="train the network of the best point whose held-out gap is at most this (0.05 is 5 "
        "points), on all data: the folder is a RUN then",
    )
    sweep.add_argument(
        "--out", type=str, required=True, help="folder for frontier.json, .csv and .svg"
    )
    sweep.add_argument(
        "--overwrite", action="store_true", help="write into a folder that is not empty"
    )
    _add_training(sweep)
    commands.add_subcommand("frontier", sweep, help="trade an error for a gap between groups")

    predict = _Parser(description="Predict with a fitted RUN.")
    predict.add_argument("run", type=str, help="RUN folder")
    predict.add_argument("table", type=str, help="CSV or Parquet file with the features")
    predict.add_argument("--out", type=str, required=True, help="CSV or Parquet file to write")
    predict.add_argument("--overwrite", action="store_true", help="replace an existing file")
    commands.add_subcommand("predict", predict, help="predict with a fitted RUN")

    evaluate = _Parser(description="Evaluate a fitted RUN on labelled data.")
    evaluate.add_argument("run", type=str, help="RUN folder")
    evaluate.add_argument("table", type=str, help="CSV or Parquet file with features and labels")
    evaluate.add_argument("--target", type=str, required=True, help="column with the labels")
    evaluate.add_argument("--groups", type=str | None, default=None, help="column with the groups")
    evaluate.add_argument("--json", action="store_true", help="print JSON in place of tables")
    commands.add_subcommand("evaluate", evaluate, help="error rates of a fitted RUN")

    compare = _Parser(description="Compare losses on datasets, over several seeds.")
    compare.add_argument(
        "config", type=str, help="YAML file that says what: datasets, methods, seeds"
    )
    compare.add_argument("--out", type=str, required=True, help="folder of the results; resumed")
    compare.add_argument("--subset", type=str | None, default=None, help="a subset of the file's")
    compare.add_argument(
        "--data",
        type=str | None,
        default=None,
        help="folder of the datasets' files; by default AUTOBALANCE_DATA, or for files of your own "
        "that of the YAML file",
    )
    compare.add_argument("--jobs", type=int, default=1, help="cells at a time")
    compare.add_argument("--threads", type=int, default=1, help="of torch, per cell")
    compare.add_argument(
        "--backend", type=str | None, default=None, help="ray, or one of joblib's, such as dask"
    )
    compare.add_argument("--device", type=str, default="cpu", help="auto, cpu, cuda, cuda:1 or mps")
    compare.add_argument(
        "--again", type=str, nargs="+", default=[], help="methods to run though they have finished"
    )
    compare.add_argument("--summary", action="store_true", help="run nothing, show what there is")
    compare.add_argument("--json", type=str | None, default=None, help="file for the summary")
    commands.add_subcommand("compare", compare, help="losses on datasets, over several seeds")
    return parser


def _add_training(parser: _Parser) -> None:
    """The options of commands that train on a table."""
    parser.add_argument("--seed", type=int, default=0, help="for everything random")
    parser.add_argument("--device", type=str, default="auto", help="auto, cpu, cuda, cuda:1 or mps")
    parser.add_argument("--config", action="config", help="YAML file with any of these options")
    parser.add_class_arguments(Recipe, "recipe")
    parser.add_class_arguments(SearchSettings, "search")


def _demo(options: Namespace, command: str) -> int:
    out = output_folder(options.out, overwrite=options.overwrite)
    whole("seed", options.seed, least=0)
    from autobalance.demo import TITLES, Demo
    from autobalance.runs import REPORT, write_run
    from autobalance.terminal import LiveProgress, print_methods

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
            return _complain(f"Interrupted. {kept}.", INTERRUPTED)
    write_run(out, demo.record(methods, command))
    print_methods(methods)
    print(f"Report: {out / REPORT}")
    return DONE


def _fit(options: Namespace, command: str) -> int:
    whole("seed", options.seed, least=0)
    out = _fit_folder(options)
    recipe, settings = Recipe(**options.recipe), SearchSettings(**options.search)
    features, target, groups = _columns(options)
    from autobalance.estimator import AutoBalanceClassifier
    from autobalance.objectives import as_objective
    from autobalance.runs import REPORT, save_run
    from autobalance.terminal import LiveProgress, print_choice

    as_objective(options.objective)
    if not options.resume:
        _remove_checkpoints(out)  # of a run that --overwrite gives up
    begun = time.perf_counter()
    last: Progress | None = None
    with LiveProgress() as live:

        def listen(progress: Progress) -> None:
            nonlocal last
            last = progress
            live.update("autobalance", progress)

        classifier = AutoBalanceClassifier(
            options.objective,
            recipe=recipe,
            settings=settings,
            device=options.device,
            random_state=options.seed,
            checkpoint=out,
            progress=listen,
        )
        status, stopped, written = "failed", None, False
        try:
            classifier.fit_keeping_checkpoints(features, target, groups, None, None)
            status = "finished"
        except (TrainingDiverged, KeyboardInterrupt) as error:
            status = "diverged" if isinstance(error, TrainingDiverged) else "interrupted"
            stopped = error
        finally:
            if hasattr(classifier, "result_"):
                record = _fit_record(classifier, command, status, begun, options.seed)
                record["progress"] = last and vars(last)
                written = save_run(out, classifier, record, target=options.target)
    if status in ("finished", "diverged"):  # one is done, the other would diverge again
        _remove_checkpoints(out)
    if stopped is not None:
        return _stopped(stopped, out, classifier, written)
    print_choice(classifier.result_)
    seconds = time.perf_counter() - begun
    print(f"Designed a loss for {len(classifier.classes_)} classes in {seconds:.0f} s: {out}")
    print(f"Report: {out / REPORT}")
    return DONE


def _columns(options: Namespace) -> tuple[pd.DataFrame, Any, Any]:
    """Features, labels and groups of the table; the latter two are no features."""
    from autobalance.data.tables import column, read_table

    table = read_table(options.table)
    target = column(table, options.target, "target")
    groups = None if options.groups is None else column(table, options.groups, "group")
    if options.groups == options.target:
        raise InputError(f"Target and groups are the same column, {options.target!r}. Give two.")
    left_out = [c for c in (options.target, options.groups) if c is not None]
    return table.drop(columns=left_out), target, groups


def _fit_folder(options: Namespace) -> Path:
    """The RUN folder, where it may be written to."""
    out = Path(options.out)
    unfinished = any(path.exists() for path in checkpoint_files(out).values())
    if options.resume and options.overwrite:
        raise InputError("--resume continues a run, --overwrite gives it up. Give one of them.")
    if unfinished and not (options.resume or options.overwrite):
        raise InputError(
            f"{out} holds an unfinished run. Add --resume to continue it, or --overwrite to give it up."
        )
    if options.resume and not unfinished:
        from autobalance.runs import run_status

        # One that was stopped before its first checkpoint starts anew, and ends alike.
        if run_status(out) not in ("interrupted", "failed"):
            raise InputError(f"{out} holds no unfinished run. Leave --resume out to start one.")
    return output_folder(out, overwrite=options.overwrite or options.resume)


def _remove_checkpoints(out: Path) -> None:
    for path in checkpoint_files(out).values():
        path.unlink(missing_ok=True)


def _stopped(
    error: BaseException, out: Path, classifier: AutoBalanceClassifier, written: bool
) -> int:
    """Say what is kept of a run that was interrupted or diverged, and how to go on."""
    from autobalance.runs import run_status

    kept = "Nothing was trained yet."
    if written:
        network = "a half-trained network" if hasattr(classifier, "module_") else "no network yet"
        kept = f"Kept in {out}: the loss so far (loss.json), its report, {network}."
    elif run_status(out) == "finished":
        kept = f"The earlier run in {out} is untouched."
    if isinstance(error, TrainingDiverged):
        return _complain(f"{error} {kept}", FAILED)
    if written or any(path.exists() for path in checkpoint_files(out).values()):
        kept += " To continue, give the same command with --resume, without --overwrite."
    return _complain(f"Interrupted. {kept}", INTERRUPTED)


def _fit_record(
    classifier: AutoBalanceClassifier, command: str, status: str, begun: float, seed: int
) -> dict[str, Any]:
    result = classifier.result_
    return {
        "kind": "fit",
        "status": status,
        "command": command,
        "objective": classifier.objective,
        "class_names": [str(c) for c in classifier.classes_],
        "group_names": classifier.groups_,
        "class_counts": result.settings["class_counts"],
        "evaluation_data": None,
        "methods": {},
        "search": result.to_dict(),
        "seconds": {"search": result.seconds["wall"], "total": time.perf_counter() - begun},
        "versions": result.versions,
        "seed": seed,
    }


def _frontier(options: Namespace, command: str) -> int:
    whole("seed", options.seed, least=0)
    if options.max_gap is not None and not 0.0 <= options.max_gap < float("inf"):
        raise InputError(f"max_gap must be at least 0; got {options.max_gap}. 0.05 is 5 points.")
    mixes = _mixes(options.mixes)
    out = output_folder(options.out, overwrite=options.overwrite)
    recipe, settings = Recipe(**options.recipe), SearchSettings(**options.search)
    features, target, groups = _columns(options)
    import warnings

    from autobalance.estimator import AutoBalanceClassifier
    from autobalance.sweeping import MIXES
    from autobalance.terminal import LiveProgress, print_frontier

    begun = time.perf_counter()
    found: Frontier | None = None
    others: list[Baseline] = []
    with LiveProgress() as live:
        title = "frontier"
        classifier = AutoBalanceClassifier(
            options.main,
            recipe=recipe,
            settings=settings,
            device=options.device,
            random_state=options.seed,
            progress=lambda p: live.update(title, p),
        )
        data = {"X": features, "y": target, "sensitive_features": groups}
        try:
            with warnings.catch_warnings():
                # said below, with the groups' names
                warnings.filterwarnings("ignore", "The held-out data lacks", UserWarning)
                found = classifier.frontier(**data, gap=options.gap, mixes=mixes or MIXES)
            title = "baselines"
            others = classifier.baselines(found, **data)
        except (TrainingDiverged, KeyboardInterrupt) as error:
            found = found or getattr(error, "partial", None)
            return _frontier_stopped(error, found, len(mixes or MIXES), out)
        _write_frontier(found, others, out, "finished")
        picked = None
        for line in _not_held_out(found, classifier):
            print(f"autobalance: {line}", file=sys.stderr)
        if options.max_gap is not None:
            try:
                picked = found.pick(gap=options.max_gap)
            except InputError:
                print_frontier(found, others)
                print(f"Frontier: {out / FRONTIER[0]}")
                raise
            title = "frontier"
            try:
                classifier.fit_point(found, picked, **data)
            except (TrainingDiverged, KeyboardInterrupt) as error:
                said = error if isinstance(error, TrainingDiverged) else "Interrupted."
                kept = f"Kept in {out}: the frontier. The network picked is not trained to its end."
                code = FAILED if isinstance(error, TrainingDiverged) else INTERRUPTED
                return _complain(f"{said} {kept}", code)
    print_frontier(found, others, picked)
    if picked is not None:
        _save_picked(classifier, found, picked, out, command, begun, options)
    print(f"Frontier: {out / FRONTIER[0]}\nPicture: {out / FRONTIER[2]}")
    return DONE


FRONTIER = ("frontier.json", "frontier.csv", "frontier.svg")


def _mixes(text: str | None) -> list[float] | None:
    if text is None:
        return None
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise InputError(
            f"mixes are numbers with commas between, 0,0.3,0.6; got {text!r}."
        ) from None


def _write_frontier(
    found: Frontier,
    others: list[Baseline],
    out: Path,
    status: str,
) -> None:
    """The three files together; a RUN that is in the folder belongs to an earlier frontier."""
    from autobalance.report.frontier import as_csv, as_svg
    from autobalance.runs import LOSS, MODEL, REPORT, RESULT, WEIGHTS

    baselines = [vars(b) for b in others]
    record = {"status": status, **found.to_dict(), "baselines": baselines}
    contents = (to_json(record, indent=1), as_csv(record), as_svg(record))
    write_together(out, {n: c.encode() for n, c in zip(FRONTIER, contents, strict=True)})
    for name in (LOSS, MODEL, REPORT, RESULT, WEIGHTS):
        (out / name).unlink(missing_ok=True)
    _remove_checkpoints(out)


def _save_picked(
    classifier: AutoBalanceClassifier,
    found: Frontier,
    picked: FrontierPoint,
    out: Path,
    command: str,
    begun: float,
    options: Namespace,
) -> None:
    from autobalance.runs import save_run

    record = _fit_record(classifier, command, "finished", begun, options.seed)
    record["kind"] = "frontier"
    record["objective"] = classifier.result_.settings["objective"]
    record["frontier"] = {"mix": picked.mix, found.main: picked.main, found.gap: picked.gap}
    save_run(out, classifier, record, target=options.target)
    print(f"Network of mix {picked.mix:g}, trained on all data: {out}")


def _frontier_stopped(error: BaseException, found: Frontier | None, points: int, out: Path) -> int:
    """Keep the points so far, unless a finished frontier is there; say so."""
    from autobalance.runs import run_status

    kept = "No point was found yet."
    if found is not None and found.points:
        old = out / FRONTIER[0]
        finished = run_status(out) == "finished"
        if old.is_file():
            finished |= '"status": "finished"' in old.read_text(encoding="utf-8")[:200]
        if finished:
            kept = f"What was finished in {out} before is untouched."
        else:
            status = "diverged" if isinstance(error, TrainingDiverged) else "interrupted"
            _write_frontier(found, [], out, status)
            kept = f"Kept in {out}: {len(found.points)} of {points} points."
    if isinstance(error, TrainingDiverged):
        return _complain(f"{error} {kept}", FAILED)
    return _complain(f"Interrupted. {kept}", INTERRUPTED)


def _not_held_out(found: Frontier, classifier: AutoBalanceClassifier) -> list[str]:
    """Groups, and classes within groups, of which nobody is held out: the gap cannot see them."""
    assert classifier.groups_ is not None
    lines = []
    counts = found.settings["validation_counts"]
    for group, row in zip(classifier.groups_, counts, strict=True):
        absent = [str(c) for c, n in zip(classifier.classes_, row, strict=True) if n == 0]
        if absent:
            whom = "nobody" if len(absent) == len(row) else f"nobody of class {', '.join(absent)}"
            lines.append(
                f"the held-out data has {whom} of group {group}, whom the gap leaves out; merge small "
                "groups, or add data"
            )
    return lines


def _predict(options: Namespace, command: str) -> int:
    out = Path(options.out)
    if out.is_dir():
        raise InputError(f"{out} is a folder; give the name of a file.")
    if out.exists() and not options.overwrite:
        raise InputError(f"{out} exists. Add --overwrite, or give another name.")
    if out.suffix not in (".csv", ".parquet"):
        raise InputError(f"{out} must end in .csv or .parquet.")
    from autobalance.data.tables import read_table

    classifier = _load(options.run)
    predictions = _predictions(classifier, read_table(options.table))
    if out.suffix == ".csv":
        content = predictions.to_csv(index=False).encode()
    else:
        content = predictions.to_parquet(index=False)
    write_atomically(out, content)
    print(f"{len(predictions):,} predictions: {out}")
    return DONE


def _predictions(classifier: AutoBalanceClassifier, table: pd.DataFrame) -> pd.DataFrame:
    import pandas as pd

    probabilities = classifier.predict_proba(_features(classifier, table))
    names = [f"probability_{c}" for c in classifier.classes_]
    frame = pd.DataFrame(probabilities, columns=names)
    frame.insert(0, "prediction", classifier.classes_[probabilities.argmax(axis=1)])
    return frame


def _evaluate(options: Namespace, command: str) -> int:
    from autobalance.data.tables import column, read_table
    from autobalance.metrics import classification_report
    from autobalance.terminal import print_report

    classifier = _load(options.run)
    table = read_table(options.table)
    target = _known(column(table, options.target, "target"), classifier)
    groups = names = None
    if options.groups is not None:
        import pandas as pd

        groups, found = pd.factorize(column(table, options.groups, "group"), sort=True)
        names = [str(name) for name in found]
    predicted = _known(classifier.predict(_features(classifier, table)), classifier)
    report = classification_report(target, predicted, len(classifier.classes_), groups, names)
    report["classes"] = [str(c) for c in classifier.classes_]
    if names is not None:
        report["groups"] = names
    if options.json:
        print(to_json(report))
    else:
        print_report(report)
    return DONE


def _compare(options: Namespace, command: str) -> int:
    from datetime import date

    from autobalance.comparison.configuration import read_configuration
    from autobalance.comparison.reporting import as_json, summaries, write_report
    from autobalance.comparison.store import Store
    from autobalance.terminal import print_comparison

    for name in ("jobs", "threads"):
        whole(name, options[name], least=1)
    configuration = read_configuration(options.config)
    if options.subset is not None:
        configuration = configuration.subset(options.subset)
    for name in options.again:
        one_of("again", name, configuration.methods)
    out = Path(options.out)
    store = Store(out / "cells.jsonl")
    failed: list[dict[str, Any]] = []
    if not options.summary:
        failed = _run_cells(options, configuration, store)
    found = []
    if options.summary or any(r["status"] == "finished" for r in store.cells()):
        found = summaries(store, configuration.objectives)
    if options.json is not None and found:
        write_atomically(options.json, as_json(found).encode())
    print_comparison(found)
    if not options.summary and found:
        report = write_report(out, found, date=date.today().isoformat(), command=command)
        print(f"Results: {store.path}\nTables: {report}")
    for line in _failures(failed):
        _complain(line, FAILED)
    return FAILED if failed else DONE


def _failures(failed: list[dict[str, Any]]) -> list[str]:
    """A line per reason, with the cells that failed for it."""
    reasons: dict[str, dict[str, list[int]]] = {}
    for record in failed:
        aim = "" if record["objective"] is None else f" for {record['objective']}"
        what = f"{record['method']}{aim} on {record['dataset']}"
        reasons.setdefault(record["reason"], {}).setdefault(what, []).append(record["seed"])
    lines = []
    for reason, places in reasons.items():
        cells = [
            f"{what}, seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"
            for what, seeds in places.items()
        ]
        number = sum(map(len, places.values()))
        lines.append(f"{number} cell{'s' * (number > 1)} failed: {'; '.join(cells)}: {reason}")
    return lines


def _run_cells(
    options: Namespace, configuration: Configuration, store: Store
) -> list[dict[str, Any]]:
    """Run what is not finished; the cells that failed."""
    from autobalance.comparison.cells import cells_of
    from autobalance.comparison.running import run_cells
    from autobalance.comparison.store import key_of
    from autobalance.terminal import CellProgress

    data = options.data or os.environ.get("AUTOBALANCE_DATA")
    cells = cells_of(configuration, data, options.device)
    with CellProgress() as live:
        try:
            run_cells(
                cells,
                store,
                jobs=options.jobs,
                backend=options.backend,
                threads=options.threads,
                again=options.again,
                progress=live.update,
            )
        except KeyboardInterrupt:
            finished = sum(store.finished(cell.key, cell.identity()) for cell in cells)
            kept = f"{finished} of {len(cells)} cells are kept in {store.path}"
            print(f"autobalance: {kept}; the same command goes on from there.", file=sys.stderr)
            raise
    wanted = {cell.key for cell in cells}
    return [r for r in store.cells() if r["status"] == "failed" and key_of(r) in wanted]


def _load(run: str) -> AutoBalanceClassifier:
    """The classifier of a RUN; a warning where its network is half trained."""
    from autobalance.runs import load_run

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
        print(
            f"autobalance: the network of {run} is half trained: its run {verb}{reached}; {remedy}",
            file=sys.stderr,
        )
    return classifier


def _features(classifier: AutoBalanceClassifier, table: pd.DataFrame) -> pd.DataFrame:
    """The columns of the training table; labels, groups and others are left out."""
    assert classifier.encoder_ is not None  # fits of the command line are on tables
    return classifier.encoder_.select(table)


def _known(labels: Any, classifier: AutoBalanceClassifier) -> np.ndarray:
    """Positions of labels among the classes; a label unseen in training is refused."""
    import numpy as np

    position = {str(c): i for i, c in enumerate(classifier.classes_)}
    unseen = sorted({str(v) for v in labels} - position.keys())
    if unseen:
        raise InputError(
            f"The labels have {len(unseen)} class{'es' * (len(unseen) > 1)} that training lacked: "
            f"{', '.join(unseen[:5])}. Leave these rows out, or train with them."
        )
    return np.array([position[str(v)] for v in labels])


_COMMANDS = {
    "demo": _demo,
    "fit": _fit,
    "frontier": _frontier,
    "predict": _predict,
    "evaluate": _evaluate,
    "compare": _compare,
}
