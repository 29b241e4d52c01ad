"""Runs' records as one self-contained HTML file. Imports no torch."""

from autobalance.report.cautions import few_in_a_cell
from autobalance.report.drawing import evenly_spaced
from autobalance.report.explain import as_html, as_text, explanation
from autobalance.report.folders import EVALUATION, REPORT, SAMPLES, read_folder, save_evaluation
from autobalance.report.formats import setting_text
from autobalance.report.frontier import as_csv, as_svg
from autobalance.report.html import render_report, write_report
from autobalance.report.multi_run_page import render_runs
from autobalance.report.pareto import frontier_points
from autobalance.report.record import read_run
from autobalance.report.run import Run
from autobalance.report.samples import LARGEST, Sheet, pack_sheet, rows_that_fit
from autobalance.report.tables import measure_name, point_title
from autobalance.report.text import GAP_TITLES, describe_rules, in_words
from autobalance.report.verdicts import bound_sentences

__all__ = [
    "EVALUATION",
    "GAP_TITLES",
    "LARGEST",
    "REPORT",
    "SAMPLES",
    "Run",
    "Sheet",
    "as_csv",
    "as_html",
    "as_svg",
    "as_text",
    "bound_sentences",
    "describe_rules",
    "evenly_spaced",
    "explanation",
    "few_in_a_cell",
    "frontier_points",
    "in_words",
    "measure_name",
    "pack_sheet",
    "point_title",
    "read_folder",
    "read_run",
    "render_report",
    "render_runs",
    "rows_that_fit",
    "save_evaluation",
    "setting_text",
    "write_report",
]
