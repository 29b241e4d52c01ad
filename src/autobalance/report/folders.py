"""RUN folders as the report reads them: the run's record, with what test data said of it since."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autobalance._validation import InputError, path_of
from autobalance.records import (
    RESULT,
    check_format,
    read_json,
    read_record,
    to_json,
    write_atomically,
)
from autobalance.report.html import write_report

EVALUATION, REPORT, SAMPLES = "evaluation.json", "report.html", "samples.json"
_FORMAT = "autobalance-evaluation"


def read_folder(folder: str | Path) -> dict[str, Any]:
    """The record of a RUN folder, with its "samples", and in its "methods" the last evaluation.

    Raises
    ------
    InputError
        If the folder is no RUN folder, or a file of it is altered; the message says what it is.
    """
    folder = path_of("The RUN folder", folder)
    if not folder.is_dir():
        raise InputError(f"There is no folder {folder}. Give the RUN folder of a fit or a demo.")
    if not (folder / RESULT).is_file():
        for name, what in (
            ("frontier.json", "a frontier without a network, drawn in frontier.svg; with --max-gap, "
             "`autobalance frontier` makes a RUN of it"),
            ("cells.jsonl", "a comparison, whose tables are in BENCHMARKS.md"),
            ("search.checkpoint", "a run that was stopped before it had a loss; continue it with "
             "--resume"),
        ):  # fmt: skip
            if (folder / name).is_file():
                raise InputError(f"{folder} is not a RUN folder: it holds {what}.")
    record = read_record(folder)
    if (folder / SAMPLES).is_file():
        record["samples"] = read_json(folder / SAMPLES)
    if not (folder / EVALUATION).is_file():
        return record
    evaluation = read_json(folder / EVALUATION)
    check_format(evaluation, _FORMAT, "an evaluation of autobalance", EVALUATION)
    if not isinstance(evaluation.get("method"), dict) or not isinstance(
        evaluation.get("data"), str
    ):
        raise InputError(f"{folder / EVALUATION} is incomplete. Evaluate the RUN again.")
    methods = record.get("methods")
    return {
        **record,
        "methods": {
            **(methods if isinstance(methods, dict) else {}),
            **(
                {"none": evaluation["before"]} if isinstance(evaluation.get("before"), dict) else {}
            ),
            "autobalance": evaluation["method"],
        },
        "evaluation_data": evaluation["data"],
    }


def save_evaluation(
    folder: str | Path,
    measured: Mapping[str, Any],
    data: str,
    before: Mapping[str, Any] | None = None,
) -> None:
    """Keep what test data say of a RUN, in place of an earlier evaluation, and show it.

    `measured` is what `autobalance.calibration.temperature.evaluate_logits` gives, and `before` the same of
    the scores without adjustment, where there are such; `data` names the data as a sentence goes on
    after "on". Raises OSError if the folder cannot be written to.
    """
    folder = Path(folder)
    method = {"title": "autobalance", **measured}
    content = {"format": _FORMAT, "version": 1, "data": data, "method": method}
    if before is not None:
        content["before"] = {"title": "No adjustment", **before}
    write_atomically(folder / EVALUATION, to_json(content).encode())
    write_report(read_folder(folder), folder / REPORT)
