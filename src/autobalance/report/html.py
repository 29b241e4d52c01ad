"""Runs' records as one self-contained HTML file. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autobalance.records import write_atomically
from autobalance.report.multi_run_page import several_runs
from autobalance.report.record import read_run
from autobalance.report.view import page, view

__all__ = ["render_report", "render_runs", "write_report"]


def write_report(record: dict[str, Any], path: Path) -> None:
    """Write a run's report.

    Parameters
    ----------
    record : dict
        A run's result.json: "kind", "class_counts", "class_names", "search", "methods" and so on.
        What is missing is left out of the report. A method may hold "class_n", its test examples
        per class; without it intervals are shown only where the test data can be balanced.
    path : Path
        The HTML file to write. An existing one is replaced as a whole, or not at all.

    Raises
    ------
    InputError
        If the record is no run's record.
    OSError
        If the file cannot be written.
    """
    write_atomically(path, render_report(record).encode())


def render_report(record: dict[str, Any]) -> str:
    """The report as HTML; the same record gives the same text.

    Raises
    ------
    InputError
        If the record is no run's record.
    """
    shown = view(read_run(record))
    heading = shown["heading"]
    return page("run.html.j2", heading[:1].lower() + heading[1:], v=shown)


def render_runs(records: Mapping[str, dict[str, Any]]) -> str:
    """Several runs side by side on one page, then each by itself, as HTML.

    Parameters
    ----------
    records : mapping
        By the runs' names, at least two; each as for `write_report`. Runs of other data or classes
        stand beside each other too, and the page says what of them cannot be compared.

    Raises
    ------
    InputError
        If there are fewer than two, or one is no run's record.
    """
    return several_runs(records)
