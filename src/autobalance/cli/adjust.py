"""`autobalance adjust`: decisions on scores that a table holds already."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jsonargparse import Namespace

from autobalance._validation import InputError, whole
from autobalance.bilevel import used_versions
from autobalance.cli.adjusted_run import AdjustedModel, ScoreColumns
from autobalance.cli.fit import Columns, read_columns, read_test
from autobalance.cli.options import DONE, complain
from autobalance.cli.run_folder import save_adjusted
from autobalance.data import (
    class_labels,
    group_names,
    number_groups,
    number_of,
    shortened,
)
from autobalance.objectives import BoundedGap, Objective, as_objective
from autobalance.posthoc import design_adjustment, measure_taus
from autobalance.records import output_folder
from autobalance.report import REPORT, as_text, explanation, read_folder, read_run


def run_adjust(options: Namespace, command: str) -> int:
    """Design decisions on a table's scores and write them as a RUN; returns the exit code."""
    started = time.perf_counter()
    whole("seed", options.seed, least=0)
    goal = as_objective(options.objective)
    if isinstance(goal, BoundedGap):
        raise InputError(
            "A bound on a gap between groups needs the probabilities of class and group together, which the "
            "table does not hold. Let `autobalance fit --model` fit the classifier, or use "
            "LogitAdjustedClassifierCV in Python."
        )
    check_groups(options, goal)
    out = output_folder(options.out, overwrite=options.overwrite)
    table, labels, members = read_columns(options)
    if labels.ndim == 2:
        from autobalance.cli.label_run import adjust_labels

        adjust_labels(options, (table, labels, None), out, command, started)
        return DONE
    assert isinstance(table, pd.DataFrame)  # without a folder tables are read whole
    groups = None
    if members is not None:
        groups = number_groups(group_names(members, "refused"))[1]
        if goal.over == "class":
            complain(
                f"{options.objective} does not look at groups, so --groups serves --test alone"
            )
    classes, target = np.unique(class_labels(labels), return_inverse=True)
    scorer = ScoreColumns(columns_of_classes(table, options.scores, classes))
    scores = scorer.scores(table)
    test = None
    if options.test is not None:
        test = read_test(options, table[scorer.columns], labels)
    adjustment = design_adjustment(
        scores, target, objective=goal, groups=groups, kind=options.kind, seed=options.seed
    )
    curve = measure_taus(adjustment, scores, target, groups, seed=options.seed)
    model = AdjustedModel(scorer, adjustment, classes, curve=curve)
    named = ("table", "target", "groups", "scores", "kind", "test")
    record = adjusted_record("adjustment", command, options, named, started)
    if test is not None:
        record |= evaluate_test(model, test, Path(str(options.test)).name)
    save_adjusted(out, model, record, target=options.target)
    print_adjusted(out)
    return DONE


def check_groups(options: Namespace, goal: Objective) -> None:
    """Refuse an objective over groups where no column is named for them."""
    if goal.over not in ("class", "label") and options.groups is None:
        raise InputError(f"{options.objective} is over groups: name their column with --groups.")


def columns_of_classes(table: pd.DataFrame, pattern: str, classes: np.ndarray) -> list[str]:
    """The score column of each class: what the pattern's star matched is the class.

    Parameters
    ----------
    table : DataFrame
        Without the columns of labels and groups.
    pattern : str
        A name with one star, such as "p_*".
    classes : ndarray
        Labels, shape ``(k,)``: numbers, which "7" and "7.0" name alike, booleans or text.

    Raises
    ------
    InputError
        If the pattern has not one star, or classes and columns do not match; the message names them.
    """
    if pattern.count("*") != 1:
        raise InputError(
            f"--scores must be a pattern with one star, such as 'p_*', quoted; got {pattern!r}."
        )
    begin, end = pattern.split("*")
    found: dict[Any, str] = {}
    for name in map(str, table.columns):
        if not (name.startswith(begin) and name.endswith(end)) or len(name) <= len(pattern) - 1:
            continue
        label = _as_label(name[len(begin) : len(name) - len(end)], classes)
        if label in found:
            raise InputError(f"Columns {found[label]!r} and {name!r} are of one class, {label}.")
        found[label] = name
    if not found:
        raise InputError(
            f"No column matches --scores {pattern!r}; the table has {shortened(list(table.columns))}."
        )
    wanted = classes.tolist()
    missing = [label for label in wanted if label not in found]
    strangers = [name for label, name in found.items() if label not in wanted]
    if missing:
        but = f"; of no label are {shortened(strangers)}" if strangers else ""
        raise InputError(
            f"No column of --scores {pattern!r} is of {number_of(len(missing), 'label')}: "
            f"{shortened(missing)}{but}. The star must match the labels as the target has them."
        )
    if strangers:
        raise InputError(
            f"Score columns without a label in the target: {shortened(strangers)}. Leave them out of the "
            "table and divide the others by their sum, or add rows of these classes."
        )
    return [found[label] for label in wanted]


def _as_label(text: str, classes: np.ndarray) -> Any:
    """A class as the star matched it, of the kind of the labels; as text where it is of another."""
    if classes.dtype.kind == "b":
        return {"true": True, "false": False}.get(text.lower(), text)
    if classes.dtype.kind in "OU":
        return text
    try:
        return float(text)
    except ValueError:
        return text


def adjusted_record(
    kind: str,
    command: str,
    options: Namespace,
    named: tuple[str, ...],
    started: float,
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """What ``result.json`` says of a run beside what its decisions do; see `AdjustedModel.record`."""
    return {
        "kind": kind,
        "status": "finished",
        "command": command,
        "options": {name: options[name] for name in named},
        "objective": options.objective,
        "evaluation_data": None,
        "methods": {},
        "notes": [*notes],
        "seconds": {"total": time.perf_counter() - started},
        "versions": used_versions(),
        "seed": options.seed,
    }


def print_adjusted(out: Path) -> None:
    """What a run of decisions on scores found, and where it is."""
    print(as_text(explanation(read_run(read_folder(out)))))
    print(f"\nReport: {out / REPORT}")


def evaluate_test(model: AdjustedModel, test: Columns, name: str) -> dict[str, Any]:
    """What test data say of the decisions and of the classifier without them, for the record."""
    table, labels, groups = test
    assert isinstance(table, pd.DataFrame)
    examples = model.features(table), labels if labels.ndim == 2 else class_labels(labels)
    measured = {
        "none": ("No adjustment", model.evaluate_unadjusted),
        "autobalance": ("autobalance", model.evaluate),
    }
    return {
        "evaluation_data": f"{len(labels):,} examples of {name}",
        "methods": {
            key: {"title": title, **evaluate(*examples, sensitive_features=groups)}
            for key, (title, evaluate) in measured.items()
        },
    }
