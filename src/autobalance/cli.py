"""The command line: from argv to calls of the library; no logic of its own.

Heavy imports happen inside the commands, so that ``--help`` shows at once.
Exit codes: 0 done, 2 bad use or bad input, 130 Ctrl-C, 1 anything else.
"""

from __future__ import annotations

import os
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser, Namespace

from autobalance import __version__
from autobalance.checks import InputError, TrainingDiverged
from autobalance.files import output_folder, to_json, write_atomically
from autobalance.settings import Recipe, SearchSettings

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from autobalance.estimator import AutoBalanceClassifier

DONE, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    # OpenMP's threads wait by spinning, which on a shared machine slows training many times over.
    # It is read when torch is imported, which only the commands do.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    parser = _parser()
    parsed = parser.parse_args(arguments)
    command = parsed.subcommand
    try:
        return _COMMANDS[command](parsed[command], shlex.join(["autobalance", *arguments]))
    except InputError as error:
        return _complain(error, BAD_INPUT)
    except TrainingDiverged as error:
        return _complain(error, FAILED)
    except KeyboardInterrupt:
        return _complain("Interrupted.", INTERRUPTED)
    except BrokenPipeError:
        return FAILED
    except Exception as error:
        return _complain(f"{type(error).__name__}: {error}", FAILED)


def entry() -> None:
    """Console script."""
    sys.exit(main())


def _complain(message: object, code: int) -> int:
    print(f"autobalance: {message}", file=sys.stderr)
    return code


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="autobalance",
        description="Designs the training loss for imbalanced and group-sensitive data.",
        version=__version__,
    )
    commands = parser.add_subcommands(required=True)

    demo = ArgumentParser(description="Design a loss for long-tailed images in the package.")
    demo.add_argument(
        "--out", type=str, default="demo-run", help="folder for result.json, report.html"
    )
    demo.add_argument("--seed", type=int, default=0, help="for everything random")
    demo.add_argument(
        "--overwrite", action="store_true", help="write into a folder that is not empty"
    )
    commands.add_subcommand("demo", demo, help="see it work on real images, in about a minute")

    fit = ArgumentParser(description="Design a loss for a table and train a network with it.")
    fit.add_argument("table", type=str, help="CSV (also .gz, .xz) or Parquet file")
    fit.add_argument("--target", type=str, required=True, help="column with the labels")
    fit.add_argument(
        "--groups", type=str | None, default=None, help="column with the groups; not a feature"
    )
    fit.add_argument("--objective", type=str, default="balanced_error", help="what the loss is for")
    fit.add_argument("--out", type=str, required=True, help="RUN folder to write")
    fit.add_argument(
        "--overwrite", action="store_true", help="write into a folder that is not empty"
    )
    fit.add_argument(
        "--resume", action="store_true", help="continue a run that was stopped in this folder"
    )
    fit.add_argument("--seed", type=int, default=0, help="for everything random")
    fit.add_argument("--device", type=str, default="auto", help="auto, cpu, cuda, cuda:1 or mps")
    fit.add_argument("--config", action="config", help="YAML file with any of these options")
    fit.add_class_arguments(Recipe, "recipe")
    fit.add_class_arguments(SearchSettings, "search")
    commands.add_subcommand("fit", fit, help="design a loss for your table")

    predict = ArgumentParser(description="Predict with a fitted RUN.")
    predict.add_argument("run", type=str, help="RUN folder")
    predict.add_argument("table", type=str, help="CSV or Parquet file with the features")
    predict.add_argument("--out", type=str, required=True, help="CSV or Parquet file to write")
    predict.add_argument("--overwrite", action="store_true", help="replace an existing file")
    commands.add_subcommand("predict", predict, help="predict with a fitted RUN")

    evaluate = ArgumentParser(description="Evaluate a fitted RUN on labelled data.")
    evaluate.add_argument("run", type=str, help="RUN folder")
    evaluate.add_argument("table", type=str, help="CSV or Parquet file with features and labels")
    evaluate.add_argument("--target", type=str, required=True, help="column with the labels")
    evaluate.add_argument("--groups", type=str | None, default=None, help="column with the groups")
    evaluate.add_argument("--json", action="store_true", help="print JSON in place of tables")
    commands.add_subcommand("evaluate", evaluate, help="error rates of a fitted RUN")
    return parser


def _demo(options: Namespace, command: str) -> int:
    out = output_folder(options.out, overwrite=options.overwrite)
    from autobalance.demo import TITLES, Demo
    from autobalance.runs import REPORT, write_record
    from autobalance.terminal import LiveProgress, print_methods

    with LiveProgress() as live:
        demo = Demo(seed=options.seed, progress=live.update)
        methods = {name: demo.method(name) for name in TITLES}
    write_record(out, demo.record(methods, command))
    print_methods(methods)
    print(f"Report: {out / REPORT}")
    return DONE


def _fit(options: Namespace, command: str) -> int:
    out = output_folder(options.out, overwrite=options.overwrite or options.resume)
    recipe, settings = Recipe(**options.recipe), SearchSettings(**options.search)
    from autobalance.data.tables import column, read_table

    table = read_table(options.table)
    target = column(table, options.target, "target")
    groups = None if options.groups is None else column(table, options.groups, "group")
    if options.groups == options.target:
        raise InputError(f"Target and groups are the same column, {options.target!r}. Give two.")
    features = table.drop(columns=[c for c in (options.target, options.groups) if c is not None])
    from autobalance.estimator import AutoBalanceClassifier, checkpoint_files
    from autobalance.objectives import as_objective
    from autobalance.runs import REPORT, save_run
    from autobalance.terminal import LiveProgress

    as_objective(options.objective)
    kept = [path for path in checkpoint_files(out).values() if path.exists()]
    if options.resume and not kept:
        raise InputError(f"{out} holds no unfinished run. Leave --resume out to start one.")
    if not options.resume:
        for path in kept:
            path.unlink()  # of a run that --overwrite gives up
    begun = time.perf_counter()
    with LiveProgress() as live:
        classifier = AutoBalanceClassifier(
            options.objective,
            recipe=recipe,
            settings=settings,
            device=options.device,
            random_state=options.seed,
            checkpoint=out,
            progress=lambda progress: live.update("autobalance", progress),
        )
        status = "failed"
        try:
            classifier.fit(features, target, sensitive_features=groups)
            status = "finished"
        except (TrainingDiverged, KeyboardInterrupt) as stopped:
            status = "diverged" if isinstance(stopped, TrainingDiverged) else "interrupted"
            raise
        finally:
            if hasattr(classifier, "result_"):
                record = _fit_record(classifier, command, status, begun, options.seed)
                save_run(out, classifier, record, target=options.target)
    seconds = time.perf_counter() - begun
    print(f"Designed a loss for {len(classifier.classes_)} classes in {seconds:.0f} s: {out}")
    print(f"Report: {out / REPORT}")
    return DONE


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


def _predict(options: Namespace, command: str) -> int:
    out = Path(options.out)
    if out.exists() and not options.overwrite:
        raise InputError(f"{out} exists. Add --overwrite, or give another name.")
    if out.suffix not in (".csv", ".parquet"):
        raise InputError(f"{out} must end in .csv or .parquet.")
    from autobalance.data.tables import read_table
    from autobalance.runs import load_run

    classifier, _ = load_run(options.run)
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
    from autobalance.runs import load_run
    from autobalance.terminal import print_report

    classifier, _ = load_run(options.run)
    table = read_table(options.table)
    target = _known(column(table, options.target, "target"), classifier)
    groups = names = None
    if options.groups is not None:
        import pandas as pd

        groups, names = pd.factorize(column(table, options.groups, "group"), sort=True)
    predicted = _known(classifier.predict(_features(classifier, table)), classifier)
    report = classification_report(target, predicted, len(classifier.classes_), groups)
    report["classes"] = [str(c) for c in classifier.classes_]
    if names is not None:
        report["groups"] = [str(name) for name in names]
    if options.json:
        print(to_json(report))
    else:
        print_report(report)
    return DONE


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


_COMMANDS = {"demo": _demo, "fit": _fit, "predict": _predict, "evaluate": _evaluate}
