"""Runs' records as one self-contained HTML file. Imports no torch."""

from autobalance.report.drawing import evenly_spaced
from autobalance.report.explain import as_html, as_text, explanation, few_in_a_cell
from autobalance.report.folders import EVALUATION, REPORT, SAMPLES, read_folder, save_evaluation
from autobalance.report.frontier import GAP_TITLES, as_csv, as_svg
from autobalance.report.html import render_report, render_runs, write_report
from autobalance.report.record import Part, Run, read_run
from autobalance.report.samples import LARGEST, Sheet, packed, rows_that_fit

__all__ = [
    "EVALUATION",
    "GAP_TITLES",
    "LARGEST",
    "Part",
    "REPORT",
    "Run",
    "SAMPLES",
    "Sheet",
    "as_csv",
    "as_html",
    "as_svg",
    "as_text",
    "evenly_spaced",
    "explanation",
    "few_in_a_cell",
    "packed",
    "read_folder",
    "read_run",
    "render_report",
    "render_runs",
    "rows_that_fit",
    "save_evaluation",
    "write_report",
]
